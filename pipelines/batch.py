"""Work outside a run: candidates by any model for any users, and the report of an evaluation written once more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import MANIFEST_NAME, ArtifactStore, explain_write_errors, open_artifact
from recsys.runtime import Progress
from serving.config import RecommendConfig


def recommend_with(
    settings: RecommendConfig, users: Path, out: Path, tracking_uri: str | None, progress: Progress
) -> dict[str, Any]:
    """Write candidates for users that belong to no run.

    Args:
        settings: ``model`` names the bundle folder or registry reference.
        users: Parquet file of histories, or the folder of a prepared data set.
        tracking_uri: MLflow of a registry reference; ``None`` takes ``MLFLOW_TRACKING_URI``.
    """
    from serving.candidates import write_candidates
    from serving.user_histories import FrameUsers, PreparedUsers, UserHistories

    if settings.model is None:
        raise ConfigError("recommend: no model given; use --model with a registry reference or a bundle folder")
    bundle, pinned = _open_bundle(settings.model, out, tracking_uri)
    people: UserHistories
    if users.is_dir():
        digest = open_artifact(users, "prepared").digest if (users / MANIFEST_NAME).exists() else str(users.resolve())
        people = PreparedUsers(users, digest)
    else:
        people = FrameUsers(users)
    return write_candidates(bundle, people, settings.model_copy(update={"model": pinned}), out, progress)


def _open_bundle(reference: str, out: Path, tracking_uri: str | None) -> tuple[Path, str]:
    if not reference.startswith("models:/"):
        if not Path(reference).is_dir():
            raise ArtifactError(
                f"model '{reference}' is neither models:/name@alias, models:/name/version, nor an existing bundle folder"
            )
        return Path(reference), reference
    from serving.registry import Registry

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            f"'{reference}' is in a registry; give --tracking-uri, for example sqlite:///runs/demo/mlflow.db"
        )
    registry = Registry(uri, out / ".models")
    version = registry.resolve(reference)
    return registry.fetch(version), version.reference


def rewrite_report(config: RunConfig, out_file: Path) -> tuple[Path, str]:
    """Write the HTML report of this configuration's evaluation.

    Returns:
        The file, and the table as text.

    Raises:
        ArtifactError: The evaluation, or a stage before it, has not run with this configuration.
    """
    from pipelines.judging import report_on
    from pipelines.stage import explain, make_plan
    from pipelines.stages import EVALUATE, stages_of
    from recsys.evaluation.table import format_table

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
