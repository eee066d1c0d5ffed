"""The files of a run's summary in its output folder: ``summaries/<id>.json``, ``summaries/latest.json``, ``metrics.prom``.

Written when a command that works in the output folder ends, done, failed or stopped, while it still holds the folder's
lock; each file appears by rename. A command that finds the folder locked, or whose configuration cannot be read, has worked
nowhere and writes none: its exit code, 75 or 2, says so. Nor can a process that was killed (SIGKILL) write one;
``recsys_run_last_success_timestamp_seconds`` then grows old.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipelines.run_summary.prometheus import metrics_text
from pipelines.run_summary.record import Call, is_record, record_of
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import explain_write_errors, read_json, write_json
from serving.registry.masking import masked

if TYPE_CHECKING:
    from pipelines.workflow import Workflow

logger = logging.getLogger("recsys.pipelines")

FOLDER: Final = "summaries"
LATEST: Final = "latest.json"
METRICS: Final = "metrics.prom"
KEPT: Final = 400
"""Summaries that are kept, a year of nights and a month of single verbs; the oldest go first."""
_MOST_WARNINGS: Final = 100


class _Listener(logging.Handler):
    """Collects what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, the first hundred of them."""
        if len(self.messages) < _MOST_WARNINGS:
            self.messages.append(record.getMessage())


@contextmanager
def summarised(workflow: Workflow, call: Call) -> Iterator[None]:
    """Write the summary of what the block does with a workflow, however it ends.

    Raises:
        ArtifactError: The work is done, and its summary cannot be written. Where the block fails itself, that error counts,
            and a summary that cannot be written is a warning.
    """
    listener = _Listener()
    logging.getLogger().addHandler(listener)
    try:
        yield
    except BaseException as error:
        try:
            write_summary(workflow.config.output_dir, record_of(call, workflow, error, listener.messages))
        except (OSError, ArtifactError) as unwritable:
            logger.warning("the summary of this run cannot be written: %s", unwritable)
        raise
    else:
        write_summary(workflow.config.output_dir, record_of(call, workflow, None, listener.messages))
    finally:
        logging.getLogger().removeHandler(listener)


def write_summary(output_dir: Path, record: dict[str, Any]) -> None:
    """Write a summary, make it the latest, and renew the metrics from all that are kept.

    Raises:
        ArtifactError: No room, or no right to write.
    """
    folder = output_dir / FOLDER
    with explain_write_errors(output_dir):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{record['id']}.json", record)
        write_json(folder / LATEST, record)
        # what has just ended is the newest, also where the clock was set back since the one before it
        known = sorted(read_summaries(output_dir), key=lambda entry: entry[1]["id"] == record["id"])
        for old, _ in known[:-KEPT]:
            old.unlink(missing_ok=True)
        _write_text(output_dir / METRICS, metrics_text([found for _, found in known[-KEPT:]]))


def read_summaries(output_dir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return all summaries of an output folder, the oldest first; a file that is none is passed over with a warning."""
    found = []
    for path in (output_dir / FOLDER).glob("[!.]*.json"):
        if path.name == LATEST:
            continue
        try:
            record = read_json(path)
        except ArtifactError as error:
            logger.warning("passing over a summary: %s", masked(str(error)))
            continue
        if is_record(record):
            found.append((path, record))
    return sorted(found, key=lambda entry: (entry[1]["ended_at"], entry[0].name))


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
