"""What an MLflow run holds about an artefact: tags, metrics, parameters, the data set, small files."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from recsys.contracts.columns import Columns
from recsys.contracts.manifest import Artifact
from recsys.metrics.names import tracked_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

MAX_PARAM_CHARS: Final = 500
MAX_BATCH: Final = 100
"""Params per log_batch call that every MLflow server accepts."""
MAX_FILE_BYTES: Final = 20_000_000
LOGGED_SUFFIXES: Final = (".json", ".html", ".txt", ".yaml")
DATA_STAGE: Final = "prepare"


def lineage_tags(artifact: Artifact) -> dict[str, str]:
    """Digests of what an artefact was made from."""
    manifest = artifact.manifest
    tags = {f"parent_{name}": digest for name, digest in manifest.parents.items()}
    data = artifact.digest if manifest.kind == "prepared" else manifest.parents.get(DATA_STAGE)
    if data is not None:
        tags["data_digest"] = data
    if "semantic_id_digest" in manifest.summary:
        tags["semantic_id_digest"] = str(manifest.summary["semantic_id_digest"])
    return tags


def log_contents(client: MlflowClient, run_id: str, artifact: Artifact, record: Mapping[str, Any]) -> None:
    """Write everything into a run; a second time changes nothing."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    values = {**metrics_of(artifact.manifest.summary), "seconds": float(record["seconds"])}
    metrics = [Metric(name, value, now, 0) for name, value in values.items()] + _curves(artifact.path, now)
    params = [Param(key, text[:MAX_PARAM_CHARS]) for key, text in params_of(artifact.manifest.config).items()]
    for start in range(0, len(params), MAX_BATCH):
        client.log_batch(run_id, params=params[start : start + MAX_BATCH])
    for start in range(0, len(metrics), 10 * MAX_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + 10 * MAX_BATCH])
    if artifact.manifest.kind == "prepared":
        _log_dataset(client, run_id, artifact)
    for entry in artifact.manifest.files:
        if entry.path.endswith(LOGGED_SUFFIXES) and entry.bytes <= MAX_FILE_BYTES and "/" not in entry.path:
            client.log_artifact(run_id, str(artifact.path / entry.path))
    client.log_artifact(run_id, str(artifact.path / "manifest.json"))


def _log_dataset(client: MlflowClient, run_id: str, artifact: Artifact) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": artifact.path.resolve().as_uri()})
    dataset = Dataset(name="prepared", digest=artifact.digest[:16], source_type="local", source=source)
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _curves(folder: Path, now: int) -> list[Metric]:
    """Training curves as metrics with steps, where the stage wrote ``curves.parquet`` (step or epoch, name, value)."""
    from mlflow.entities import Metric

    from recsys.contracts.table_checks import read_table
    from recsys.contracts.tables import CurvesTable

    path = folder / "curves.parquet"
    if not path.exists():
        return []
    table = read_table(path, CurvesTable, f"delete '{folder}' and run its stage again")
    step = Columns.STEP if Columns.STEP in table.columns else Columns.EPOCH
    rows = table.select(step, Columns.NAME, Columns.VALUE).drop_nulls().iter_rows()
    return [Metric(metric_name(name), float(value), now, int(at)) for at, name, value in rows if math.isfinite(value)]


def metrics_of(summary: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten the finite numbers of a summary into metric names that MLflow accepts.

    Example:
        >>> metrics_of({"test": {"ndcg@10": 0.05}, "text": "no", "epochs": 3})
        {'test/ndcg_at_10': 0.05, 'epochs': 3.0}
    """
    found: dict[str, float] = {}
    for key, value in summary.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            found.update(metrics_of(value, name))
        elif isinstance(value, int | float) and math.isfinite(value):
            found[metric_name(name)] = float(value)
    return found


def metric_name(name: str) -> str:
    """Return a name made of the characters that MLflow accepts.

    Example:
        >>> metric_name("generative (beam)/hr@10")
        'generative_beam/hr_at_10'
    """
    return (
        re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_\-./]+", "_", tracked_name(name))).replace("_/", "/").strip("_")[:250]
    )


def params_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a configuration into dotted keys and texts.

    Example:
        >>> params_of({"train": {"max_epochs": 5, "betas": [0.9, 0.99]}})
        {'train.max_epochs': '5', 'train.betas': '[0.9, 0.99]'}
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            found.update(params_of(value, name))
        else:
            found[name] = str(value)
    return found
