"""The leakage audit of a configuration: its prepared data, and all that was fitted on them.

Reads the artefacts of a configuration; produces ``<output_dir>/leakage.json``. ``recsys audit`` calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, ArtifactStore, explain_write_errors, open_artifact, write_json

if TYPE_CHECKING:
    from pipelines.config import RunConfig

FITTED = ("embed", "tokenize", "train", "align")
"""Stages whose result was fitted on the events."""


def audit_run(config: RunConfig, others: Sequence[Path] = ()) -> tuple[Path, dict[str, Any]]:
    """Audit the prepared data of a configuration with every check, and price what is found.

    Args:
        others: Folders of further artefacts, such as embeddings or semantic IDs that another run made.

    Returns:
        The file, and what it holds.

    Raises:
        ArtifactError: `prepare` has not run with this configuration, or a folder is no artefact.
    """
    from features.audit.leakage.audit import LEAKAGE_NAME, AuditInputs, audit, mapped_columns
    from pipelines.engine.stage import explain
    from pipelines.nightly.footing import footing_of
    from pipelines.stages import PREPARE, stages_of
    from recsys.contracts.dataset import Dataset

    store = ArtifactStore(config.output_dir / "artifacts")
    steps = {step.stage.name: step for step in footing_of(config).steps(stages_of(config))}
    prepared = store.find(PREPARE.kind, steps[PREPARE.name].digest)
    if prepared is None:
        raise ArtifactError(
            f"`audit` reads the result of 'prepare', which has not run with this configuration "
            f"({explain(steps[PREPARE.name], store)}); run `recsys prepare` with the same config first"
        )
    fitted: list[Artifact] = [open_artifact(folder, verify=False) for folder in others]
    for name in FITTED:
        if name in steps:
            found = store.find(steps[name].stage.kind, steps[name].digest, verify=False)
            fitted += [found] if found is not None else []

    def data_of(digest: str) -> Path | None:
        other = store.find(PREPARE.kind, digest, verify=False) if digest else None
        return other.path if other is not None else None

    inputs = AuditInputs(
        split_kind=config.features.split.kind,
        columns=mapped_columns(config.source.model_dump(mode="json"), prepared.path / "users.parquet"),
        artefacts=fitted,
        digest=prepared.digest,
        data_of=data_of,
    )
    result = audit(Dataset.open(prepared.path), inputs)
    path = config.output_dir / LEAKAGE_NAME
    with explain_write_errors(config.output_dir):
        write_json(path, {**result, "data_digest": prepared.digest})
    return path, result


def table_of(result: dict[str, Any]) -> str:
    """Return what was found as text: a line per finding with its price, its words and advice below.

    Example:
        >>> print(table_of({"findings": [], "checked": {"ties": "targets at one instant"}, "rows": {"test": 3}}))
        no leak found (1 check on 3 test rows)
    """
    found = result["findings"]
    if not found:
        rows = ", ".join(f"{count:,} {split}" for split, count in result["rows"].items())
        checks = len(result["checked"])
        return f"no leak found ({checks} check{'s' * (checks != 1)} on {rows} rows)"
    lines = []
    for finding in found:
        price = [
            f"{name} {finding[key]:.4f}"
            for name, key in (("at most", "hr_bound"), ("leak alone", "hr_at_10"), ("without it", "hr_without"))
            if finding[key] is not None
        ]
        where = f" [{finding['split']}]" if finding["split"] else ""
        lines.append(
            f"{finding['severity']:8} {finding['title']}{where}: {finding['rows']:,} of {finding['of']:,} {finding['unit']}"
            f" ({finding['share']:.1%}); HR@10 {', '.join(price) or 'not priced'}"
        )
        lines += [f"         {finding['words']}", f"         -> {finding['advice']}"]
    return "\n".join(lines)
