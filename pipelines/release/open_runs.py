"""MLflow runs that a process has begun and not ended, remembered on disk so that none stays RUNNING for ever.

Reads and writes ``<output_dir>/tracking/open_runs.json``. Whoever holds the lock of the output folder is alone, so every run
in the file that this process did not begin belongs to one that was killed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import explain_write_errors, read_json, write_json
from serving.registry.mlflow_client import TrackingUnreachable, translated_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger("recsys.pipelines")


@dataclass(frozen=True)
class OpenRuns:
    """The open runs of one output folder at one server.

    Attributes:
        path: The file.
        server: Its URI without secrets; runs of another server wait until that is used again.
    """

    path: Path
    server: str

    @contextmanager
    def open(self, run_id: str) -> Iterator[None]:
        """Remember a run until the block has ended it; after an exception it stays remembered."""
        self.add(run_id)
        yield
        self.remove(run_id)

    def add(self, run_id: str) -> None:
        """Remember a run."""
        self._write([*self._runs(), (self.server, run_id)])

    def remove(self, run_id: str) -> None:
        """Forget a run that has ended."""
        self._write([run for run in self._runs() if run != (self.server, run_id)])

    def end_left_over(self, client: MlflowClient) -> list[str]:
        """Mark the runs of processes that were killed; those that go on later are opened again by whoever goes on."""
        ours = [run_id for server, run_id in self._runs() if server == self.server]
        for run_id in ours:
            try:
                with translated_errors(self.server):
                    if client.get_run(run_id).info.status == "RUNNING":
                        client.set_terminated(run_id, "KILLED")
            except TrackingUnreachable as error:
                if getattr(error.__cause__, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                    raise
            self.remove(run_id)
        if ours:
            logger.info("tracking: %d runs of processes that were killed are marked KILLED", len(ours))
        return ours

    def _runs(self) -> list[tuple[str, str]]:
        try:
            found = read_json(self.path) if self.path.exists() else []
        except ArtifactError:  # torn by a full disk: nothing is known of open runs any more
            return []
        return [(str(server), str(run_id)) for server, run_id in found]

    def _write(self, runs: list[tuple[str, str]]) -> None:
        with explain_write_errors(self.path.parent):
            if runs:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, runs)
            else:
                self.path.unlink(missing_ok=True)
