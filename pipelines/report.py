"""The HTML report of an evaluation: found among the artefacts of a configuration, and written once more.

Reads the artefacts of a configuration; produces one HTML file. ``recsys report`` calls it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import ArtifactStore, explain_write_errors

if TYPE_CHECKING:
    from pipelines.config import RunConfig


def rewrite_report(config: RunConfig, out_file: Path) -> tuple[Path, str]:
    """Write the HTML report of this configuration's evaluation.

    Returns:
        The file, and the table as text.

    Raises:
        ArtifactError: The evaluation, or a stage before it, has not run with this configuration.
    """
    from pipelines.engine.stage import explain, make_plan
    from pipelines.stages import EVALUATE, stages_of
    from recsys.evaluation.table import format_table
    from recsys.reports.evaluation import report_on

    store = ArtifactStore(config.output_dir / "artifacts")
    opened = {}
    stages = stages_of(config)
    shown = next((*stage.parents, stage.name) for stage in stages if stage.name == EVALUATE.name)
    for step in make_plan(stages, config, config.seed):
        name = step.stage.name
        if name in shown:
            artifact = store.find(step.stage.kind, step.digest)
            if artifact is None:
                raise ArtifactError(
                    f"no result of '{name}' with this configuration ({explain(step, store)}); run `recsys run` first"
                )
            opened[name] = artifact
    evaluation = opened.pop(EVALUATE.name)
    with explain_write_errors(out_file.parent):
        out_file.parent.mkdir(parents=True, exist_ok=True)
        report_on(out_file, f"Evaluation of '{config.name}'", evaluation.path, opened)
    return out_file, format_table(evaluation.manifest.summary)
