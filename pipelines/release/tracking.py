"""What MLflow learns about a run. Stages know nothing of it: their manifests are logged after publication.

For every stage a record is written first (``<output_dir>/tracking/pending``), then logged, then moved to
``tracking/logged``. So a server that is down, or a kill, costs nothing: the next run logs what is still pending. The
verb `prepare` leaves its record pending where MLflow is a file: importing MLflow and building that file take longer than
the work.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from pipelines.engine.stop_signals import Stopped
from pipelines.release.open_runs import OpenRuns
from pipelines.release.run_contents import lineage_tags, log_contents
from recsys.config import FrozenConfig
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, digest_of, explain_write_errors, open_artifact, read_json, write_json
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
from serving.registry.masking import shown
from serving.registry.mlflow_client import TrackingUnreachable, connect, tracking_uri, translated_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient

logger = logging.getLogger("recsys.pipelines")

NEVER_ACCEPTED: Final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
"""Answers of MLflow that the same record gets every night."""
Status = Literal["FINISHED", "FAILED", "KILLED"]


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
        waiting = sorted(self._pending.glob("[!.]*.json"))
        if self.postponed or self._unreachable:
            return not waiting
        records = {path: record for path in waiting if (record := self._readable(path)) is not None}
        try:
            for path in sorted(records, key=lambda path: (records[path]["noted_at"], path.name)):
                self._log(path, records[path])
            return True
        except TrackingUnreachable as error:
            self._unreachable = True
            logger.warning("%s (%d records wait in '%s')", error, len(records), self._pending)
        return False

    def _readable(self, path: Path) -> dict[str, Any] | None:
        """A pending record whose artefact is there; another can never be logged, and is set aside."""
        try:
            record = read_json(path)
            if (
                not isinstance(record, dict)
                or not {"stage", "artifact", "seconds", "tags", "noted_at"} <= record.keys()
            ):
                raise ArtifactError(f"'{path}' is no tracking record")
            open_artifact(self.output_dir / record["artifact"], verify=False)
        except ArtifactError as error:
            self._set_aside(path, error)
            return None
        return record

    def _set_aside(self, path: Path, why: Exception) -> None:
        aside = self.output_dir / "tracking" / "set_aside"
        with explain_write_errors(self.output_dir):
            aside.mkdir(parents=True, exist_ok=True)
            path.replace(aside / path.name)
        logger.warning(
            "tracking: the record '%s' can never be logged and was moved to '%s'; nothing else waits for it: %s",
            path.name,
            aside,
            why,
        )

    def run_of(self, stage: str, digest: str) -> str | None:
        """MLflow run id of a stage that was logged, or ``None``."""
        path = self._logged / f"{stage}-{digest[:16]}.json"
        return str(read_json(path)["run_id"]) if path.exists() else None

    def _log(self, path: Path, record: dict[str, Any]) -> None:
        artifact = open_artifact(self.output_dir / record["artifact"], verify=False)
        client, experiment = self._open()
        try:
            with translated_errors(self.uri):
                run_id = self._stage_run(client, experiment, record, artifact)
                with self._open_runs.open(run_id):
                    log_contents(client, run_id, artifact, record)
                    client.set_terminated(run_id, "FINISHED")
        except TrackingUnreachable as error:
            if getattr(error.__cause__, "error_code", None) not in NEVER_ACCEPTED:
                raise
            self._set_aside(path, error)
            return
        self._logged.mkdir(parents=True, exist_ok=True)
        write_json(self._logged / path.name, {**record, "run_id": run_id, "uri": shown(self.uri)})
        path.unlink()

    @property
    def _open_runs(self) -> OpenRuns:
        return OpenRuns(self.output_dir / "tracking" / "open_runs.json", shown(self.uri))

    @contextmanager
    def working_on(self, run_id: str) -> Iterator[None]:
        """Somebody else writes into a run meanwhile; if this process dies, the next one marks it KILLED."""
        with self._open_runs.open(run_id):
            yield

    def _open(self) -> tuple[MlflowClient, str]:
        if self._client is None:
            self._client = connect(self.uri, self.config.timeout_s)
            self._open_runs.end_left_over(self._client)
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
            **lineage_tags(artifact),
        }
        return str(client.create_run(experiment, tags=tags).info.run_id)

    def _parent_run(self, client: MlflowClient, experiment: str) -> str:
        if self._parent is None:
            tags = {**self.tags, "mlflow.runName": f"{self.name} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}"}
            self._parent = str(client.create_run(experiment, tags=tags).info.run_id)
            self._open_runs.add(self._parent)
            client.log_text(self._parent, self.config_text, "config.yaml")
        return self._parent

    def close(self, status: Status = "FINISHED") -> None:
        """End the parent run."""
        if self._parent is not None and self._client is not None and not self._unreachable:
            with translated_errors(self.uri):
                self._client.set_terminated(self._parent, status)
            self._open_runs.remove(self._parent)
            if status != "FINISHED":  # a stage that was being logged
                self._open_runs.end_left_over(self._client)


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
    try:
        tracker.flush()
        yield tracker
    except Stopped:
        _close_quietly(tracker, "KILLED")  # what is pending waits: whoever asked us to stop does not
        raise
    except BaseException:
        tracker.flush()
        _close_quietly(tracker, "FAILED")
        raise
    tracker.flush()
    tracker.close()


def _close_quietly(tracker: Tracker, status: Status) -> None:
    """End the parent run on the way out; what ends the process is the news, not a server that does not answer."""
    try:
        tracker.close(status)
    except TrackingUnreachable as error:
        logger.warning("%s", error)
