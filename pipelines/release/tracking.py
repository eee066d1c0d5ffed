"""What MLflow learns about a run. Stages know nothing of it: their manifests are logged after publication.

For every stage a record is written first (``<output_dir>/tracking/pending``), then logged, then moved to
``tracking/logged``. So a server that is down, or a kill, costs nothing: the next run logs what is still pending. The
verb `prepare` leaves its record pending where MLflow is a file: importing MLflow and building that file take longer than
the work.
"""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.manifest import Artifact, digest_of, explain_write_errors, open_artifact, read_json, write_json
from recsys.metrics.names import tracked_name
from serving.registry.file_store import (
    ARTIFACTS_NAME,
    DATABASE_NAME,
    check_there,
    database_of,
    is_sqlite,
    local_path,
    move_experiment,
    own_artifacts,
)
from serving.registry.mlflow_client import TrackingUnreachable, connect, shown, tracking_uri, translated_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger("recsys.pipelines")

MAX_PARAM_CHARS: Final = 500
MAX_BATCH: Final = 100
"""Params per log_batch call that every MLflow server accepts."""
MAX_FILE_BYTES: Final = 20_000_000
LOGGED_SUFFIXES: Final = (".json", ".html", ".txt", ".yaml")
DATA_STAGE: Final = "prepare"


class TrackingConfig(FrozenConfig):
    """Where runs and models are recorded.

    Attributes:
        uri: Any MLflow tracking URI. ``None``: the environment variable ``MLFLOW_TRACKING_URI`` if it is set, otherwise
            SQLite in the output folder.
        experiment: Name of the MLflow experiment; ``None`` takes the name of the run.
        timeout_s: Seconds to wait for a server before its records are kept for later.
    """

    uri: str | None = None
    experiment: str | None = None
    timeout_s: float = Field(default=5.0, gt=0)


@dataclass
class Tracker:
    """Logs published artefacts; remembers on disk what it has logged where.

    Attributes:
        output_dir: Output folder of the run.
        config: Where MLflow is.
        name: Name of the run, for experiment and parent run.
        tags: Tags of every MLflow run (git_sha, config_hash, split …).
        config_text: The resolved configuration, logged with the parent run.
        postponed: Write records only; the next run or verb logs them.
    """

    output_dir: Path
    config: TrackingConfig
    name: str
    tags: dict[str, str]
    config_text: str
    postponed: bool = False
    _client: MlflowClient | None = None
    _unreachable: bool = False
    _parent: str | None = None

    @property
    def uri(self) -> str:
        """Tracking URI, decided."""
        return tracking_uri(self.config.uri, self.output_dir)

    @property
    def is_file(self) -> bool:
        """MLflow is a database file, so nobody waits for a record."""
        return is_sqlite(self.uri)

    @property
    def _own_database(self) -> Path | None:
        """The database of the output folder, if that is where MLflow is."""
        own = (self.output_dir / DATABASE_NAME).resolve()
        database = database_of(self.uri)
        return own if database is not None and database.resolve() == own else None

    @property
    def _logged(self) -> Path:
        """What this MLflow has; the output folder's own is called so wherever the folder lies."""
        server = "own" if self._own_database is not None else digest_of(self.uri)[:8]
        return self.output_dir / "tracking" / "logged" / server

    @property
    def _pending(self) -> Path:
        return self.output_dir / "tracking" / "pending"

    def note(self, stage: str, artifact: Artifact, seconds: float) -> None:
        """Record that a stage's artefact exists; nothing happens when this server has it already."""
        name = f"{stage}-{artifact.digest[:16]}.json"
        if (self._logged / name).exists() or (self._pending / name).exists():
            return
        with explain_write_errors(self.output_dir):
            self._pending.mkdir(parents=True, exist_ok=True)
            record = {
                "stage": stage,
                "artifact": artifact.path.resolve().relative_to(self.output_dir.resolve()).as_posix(),
                "seconds": round(seconds, 3),
                "tags": self.tags,
                "noted_at": time.time(),
            }
            write_json(self._pending / name, record)

    def flush(self) -> bool:
        """Log everything that is pending.

        Returns:
            Whether nothing is pending any more. An unreachable server is reported once, as a warning.
        """
        if self.postponed:
            return not any(self._pending.glob("[!.]*.json"))
        waiting = sorted(self._pending.glob("[!.]*.json"), key=lambda path: (read_json(path)["noted_at"], path.name))
        if waiting and not self._unreachable:
            try:
                for path in waiting:
                    self._log(path)
                return True
            except TrackingUnreachable as error:
                self._unreachable = True
                logger.warning("%s (%d records wait in '%s')", error, len(waiting), self._pending)
        return not waiting

    def run_of(self, stage: str, digest: str) -> str | None:
        """MLflow run id of a stage that was logged, or ``None``."""
        path = self._logged / f"{stage}-{digest[:16]}.json"
        return str(read_json(path)["run_id"]) if path.exists() else None

    def _log(self, path: Path) -> None:
        record = read_json(path)
        artifact = open_artifact(self.output_dir / record["artifact"], verify=False)
        client, experiment = self._open()
        with translated_errors(self.uri):
            run_id = self._stage_run(client, experiment, record, artifact)
            _log_contents(client, run_id, artifact, record)
            client.set_terminated(run_id, "FINISHED")
        self._logged.mkdir(parents=True, exist_ok=True)
        write_json(self._logged / path.name, {**record, "run_id": run_id, "uri": shown(self.uri)})
        path.unlink()

    def _open(self) -> tuple[MlflowClient, str]:
        if self._client is None:
            self._client = connect(self.uri, self.config.timeout_s)
        name = self.config.experiment or self.name
        with translated_errors(self.uri):
            found = self._client.get_experiment_by_name(name)
            if found is not None:
                return self._client, self._with_place(str(found.experiment_id), found.artifact_location)
            # a database alone has no place for files: give it one; a server decides for itself
            place = (self.output_dir / ARTIFACTS_NAME).resolve().as_uri() if self.is_file else None
            return self._client, str(self._client.create_experiment(name, artifact_location=place))

    def _with_place(self, experiment: str, place: str) -> str:
        """Return the experiment, sure that its new runs write to a place that is there, and is no other run's.

        Raises:
            ArtifactError: The place is gone.
        """
        database = self._own_database
        if database is not None and local_path(place) not in (None, own_artifacts(database)):
            move_experiment(database, experiment)
        elif self.is_file:
            check_there(place, f"experiment {experiment} at '{shown(self.uri)}'")
        return experiment

    def _stage_run(self, client: MlflowClient, experiment: str, record: Mapping[str, Any], artifact: Artifact) -> str:
        """Find the run that an interrupted call began, or create it below this invocation's parent run."""
        found = client.search_runs([experiment], f"tags.stage_digest = '{artifact.digest}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {
            **record["tags"],
            "mlflow.parentRunId": self._parent_run(client, experiment),
            "mlflow.runName": record["stage"],
            "stage": record["stage"],
            "stage_digest": artifact.digest,
            "seed": str(artifact.manifest.seed),
            **_lineage_tags(artifact),
        }
        return str(client.create_run(experiment, tags=tags).info.run_id)

    def _parent_run(self, client: MlflowClient, experiment: str) -> str:
        if self._parent is None:
            tags = {**self.tags, "mlflow.runName": f"{self.name} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}"}
            self._parent = str(client.create_run(experiment, tags=tags).info.run_id)
            client.log_text(self._parent, self.config_text, "config.yaml")
        return self._parent

    def close(self) -> None:
        """Mark the parent run as finished."""
        if self._parent is not None and self._client is not None and not self._unreachable:
            with translated_errors(self.uri):
                self._client.set_terminated(self._parent, "FINISHED")


def _lineage_tags(artifact: Artifact) -> dict[str, str]:
    manifest = artifact.manifest
    tags = {f"parent_{name}": digest for name, digest in manifest.parents.items()}
    data = artifact.digest if manifest.kind == "prepared" else manifest.parents.get(DATA_STAGE)
    if data is not None:
        tags["data_digest"] = data
    if "semantic_id_digest" in manifest.summary:
        tags["semantic_id_digest"] = str(manifest.summary["semantic_id_digest"])
    return tags


def _log_contents(client: MlflowClient, run_id: str, artifact: Artifact, record: Mapping[str, Any]) -> None:
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


def git_sha(folder: Path) -> str:
    """Return the revision of the code, ``-dirty`` when files differ from it, ``unknown`` outside a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    if not sha:
        return "unknown"
    return f"{sha}-dirty" if git("status", "--porcelain") else sha


@contextmanager
def tracked(tracker: Tracker) -> Iterator[Tracker]:
    """Log what earlier runs left pending, and close the parent run at the end."""
    tracker.flush()
    try:
        yield tracker
    finally:
        tracker.flush()
        tracker.close()
