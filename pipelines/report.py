"""The HTML reports of an evaluation and of its data: found among the artefacts, and written once more.

Reads the artefacts of a configuration; produces HTML files. ``recsys report`` calls it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import ArtifactStore, explain_write_errors, read_json

if TYPE_CHECKING:
    from pipelines.config import RunConfig


def rewrite_data_report(config: RunConfig) -> Path | None:
    """Write the page of this configuration's prepared data into the output folder.

    It holds the last comparison with the data before, and the whole audit where `audit` has looked at these very data.

    Returns:
        The file; ``None`` where `prepare` has not run with this configuration.
    """
    from pipelines.nightly.footing import footing_of
    from pipelines.release.nights import changes_of
    from pipelines.stages import PREPARE
    from recsys.reports.data.page import PAGE_NAME, write_data_page

    store = ArtifactStore(config.output_dir / "artifacts")
    (step,) = footing_of(config).steps([PREPARE])
    prepared = store.find(PREPARE.kind, step.digest, verify=False)
    if prepared is None:
        return None
    audited = config.output_dir / "leakage.json"
    leakage = read_json(audited) if audited.exists() else {}
    with explain_write_errors(config.output_dir):
        return write_data_page(
            prepared.path,
            config.output_dir / PAGE_NAME,
            leakage=leakage if leakage.get("data_digest") == prepared.digest else None,
            changes=changes_of(config.output_dir, config.registered_name, prepared.digest),
        )


def rewrite_report(config: RunConfig, out_file: Path) -> tuple[Path, str]:
    """Write the HTML report of this configuration's evaluation.

    Returns:
        The file, and the table as text.

    Raises:
        ArtifactError: The evaluation, or a stage before it, has not run with this configuration.
    """
    from pipelines.engine.stage import explain
    from pipelines.nightly.footing import footing_of
    from pipelines.stages import EVALUATE, stages_of
    from recsys.evaluation.table import format_table
    from recsys.reports.evaluation import report_on

    store = ArtifactStore(config.output_dir / "artifacts")
    opened = {}
    stages = stages_of(config)
    shown = next((*stage.parents, stage.name) for stage in stages if stage.name == EVALUATE.name)
    for step in footing_of(config).steps(stages):
        name = step.stage.name
        if name in shown:
            artifact = store.find(step.stage.kind, step.digest)
            if artifact is None:
                raise ArtifactError(
                    f"no result of '{name}' with this configuration ({explain(step, store)}); run `recsys run` first"
                )
            opened[name] = artifact
    evaluation = opened.pop(EVALUATE.name)
    with explain_write_errors(out_file.parent, "--out"):
        out_file.parent.mkdir(parents=True, exist_ok=True)
        report_on(out_file, f"Evaluation of '{config.name}'", evaluation.path, opened)
    return out_file, format_table(evaluation.manifest.summary)
