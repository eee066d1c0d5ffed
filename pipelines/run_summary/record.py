"""What one run did, as plain JSON values: the content of a summary.

Reads a workflow at its end, however it ended; produces a dictionary. Nothing is opened that the run did not open, so that
a run that failed can be summarised too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pipelines.engine.stop_signals import Stopped
from recsys.contracts.errors import ArtifactError, GateRefused, RecsysError
from serving.registry.masking import masked, shown

if TYPE_CHECKING:
    from pipelines.workflow import Workflow
    from recsys.contracts.manifest import Artifact

SCHEMA_VERSION: Final = 1
State = Literal["done", "registered", "refused", "failed", "stopped"]
ROWS: Final = {"events": "kept", "positive_events": "positive_events", "users": "users", "items": "items"}
"""Counts of the prepared data, and what its manifest calls them."""
UNEXPECTED: Final = 1
"""Exit code of a fault of ours."""


@dataclass(frozen=True)
class Call:
    """One call of the command line.

    Attributes:
        command: The verb.
        arguments: What followed the program's name; secrets are masked when it is written.
        as_of: The day that was run, ``None`` for a run of everything there is.
        started: When, UTC.
        cpu_before: Processor seconds of this process and its children until then.
    """

    command: str
    arguments: Sequence[str] = ()
    as_of: date | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    cpu_before: float = field(default_factory=lambda: cpu_seconds())

    @property
    def id(self) -> str:
        """Name of the summary: the day, or when which command began in which process."""
        if self.as_of is not None:
            return self.as_of.isoformat()
        return f"{self.started:%Y%m%dT%H%M%S.%fZ}-{self.command}-{os.getpid()}"


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def record_of(call: Call, workflow: Workflow, error: BaseException | None, warnings: Sequence[str]) -> dict[str, Any]:
    """Describe a run that has ended.

    Args:
        error: What ended it, ``None`` where nothing did.
        warnings: What was logged as a warning or worse.

    Returns:
        JSON values alone, without secrets; a number that is not finite is ``None``.
    """
    from importlib.metadata import version as installed_version  # not cheap, and needed only at the end

    ended = datetime.now(UTC)
    config = workflow.config
    outcomes = workflow.runner.outcomes
    record = {
        "schema_version": SCHEMA_VERSION,
        "id": call.id,
        "command": call.command,
        "arguments": list(call.arguments),
        "as_of": call.as_of.isoformat() if call.as_of else None,
        "state": _state(workflow, error),
        "exit_code": exit_code_of(error),
        "message": None if error is None else str(error) or type(error).__name__,
        "started_at": call.started.isoformat(timespec="milliseconds"),
        "ended_at": ended.isoformat(timespec="milliseconds"),
        "seconds": round((ended - call.started).total_seconds(), 3),
        "cpu_seconds": round(cpu_seconds() - call.cpu_before, 3),
        "name": config.name,
        "model": config.registered_name,
        "output_dir": str(config.output_dir.absolute()),
        "recsys_version": installed_version("recsys-gen"),
        "git_sha": workflow.tracker.tags.get("git_sha", "unknown"),
        "stages": [
            {
                "stage": name,
                "ran": outcome.ran,
                "seconds": round(outcome.seconds, 3),
                "digest": outcome.artifact.digest[:16],
                "path": str(outcome.artifact.path.absolute()),
            }
            for name, outcome in outcomes.items()
        ],
        "stopped_in": workflow.runner.working_on,
        "rows": _rows(_artifact(workflow, "prepare")),
        "figures": _figures(_artifact(workflow, "evaluate"), config.promote.metric),
        "version": workflow.version.number if workflow.version is not None else None,
        "verdict": asdict(workflow.decision) if workflow.decision is not None else None,
        "champion": _champion(config.output_dir, config.registered_name),
        "candidates": _candidates(workflow),
        "tracking": shown(workflow.tracker.uri),
        "paths": _paths(workflow),
        "warnings": list(warnings),
    }
    clean: dict[str, Any] = _plain(record)
    return clean


def exit_code_of(error: BaseException | None) -> int:
    """The exit code that an error becomes."""
    if error is None:
        return 0
    return error.exit_code if isinstance(error, RecsysError | Stopped) else UNEXPECTED


def _state(workflow: Workflow, error: BaseException | None) -> State:
    if isinstance(error, Stopped):
        return "stopped"
    if isinstance(error, GateRefused):
        return "refused"
    if error is not None:
        return "failed"
    if workflow.decision is not None and not workflow.decision.promoted:
        return "refused"
    return "done" if workflow.version is None else "registered"


def _artifact(workflow: Workflow, stage: str) -> Artifact | None:
    outcome = workflow.runner.outcomes.get(stage)
    return outcome.artifact if outcome is not None else None


def _rows(prepared: Artifact | None) -> dict[str, int]:
    if prepared is None:
        return {}
    summary = prepared.manifest.summary
    rows = {name: int(summary[key]) for name, key in ROWS.items() if key in summary}
    return rows | {"quarantined": sum(int(count) for count in summary.get("quarantined", {}).values())}


def _figures(evaluation: Artifact | None, gate_metric: str) -> list[dict[str, Any]]:
    """The headline and the gate's metric of the served ranking, seen items filtered where that was evaluated."""
    if evaluation is None:
        return []
    summary = evaluation.manifest.summary
    system = summary.get("reference")
    if system is None:
        return []
    by_filter: Mapping[str, Any] = summary["systems"][system]
    cells = by_filter.get("filtered") or by_filter["unfiltered"]
    return [
        {
            "metric": metric,
            "system": system,
            "value": cells[metric]["mean"],
            "low": cells[metric]["low"],
            "high": cells[metric]["high"],
            "confidence": summary["confidence"],
            "split": summary["split"],
            "rows": summary["rows"],
        }
        for metric in dict.fromkeys((*summary["headline"], gate_metric))
        if metric in cells
    ]


def _champion(output_dir: Path, name: str) -> str | None:
    """Number of the version that the record of this folder says is champion; a server is not asked."""
    from pipelines.release.gate.audit import AuditLog

    try:
        events = AuditLog(output_dir).events(name)
    except ArtifactError:  # changed by hand: what it says cannot be relied on, and the gate refuses it itself
        return None
    moves = [event["challenger"] for event in events if event["event"] in ("promoted", "rolled back")]
    return str(moves[-1]) if moves else None


def _candidates(workflow: Workflow) -> dict[str, Any] | None:
    artifact = _artifact(workflow, "recommend")
    if artifact is None:
        return None
    summary = artifact.manifest.summary
    counts: dict[str, Any] = {key: summary[key] for key in ("users", "rows", "users_without_items") if key in summary}
    return {**counts, "path": str(artifact.path.absolute())}


def _paths(workflow: Workflow) -> dict[str, str]:
    output_dir = workflow.config.output_dir.absolute()
    found = {"config": output_dir / "config.yaml", "decisions": output_dir / "promotions"}
    for stage, name, file in (
        ("prepare", "data_report", "data_report.html"),
        ("evaluate", "report", "report.html"),
        ("export", "bundle", ""),
        ("recommend", "candidates", ""),
    ):
        artifact = _artifact(workflow, stage)
        if artifact is not None:
            found[name] = artifact.path.absolute() / file
    return {name: str(path) for name, path in found.items() if path.exists()}


def _plain(value: Any) -> Any:
    """JSON values alone, every text masked."""
    if isinstance(value, Mapping):
        return {masked(str(key)): _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, str):
        return masked(value)
    number = float(value)  # of NumPy too
    return number if math.isfinite(number) else None


def is_record(value: Any) -> bool:
    """Whether JSON that was read is a summary of a form that we know."""
    if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
        return False
    return isinstance(value.get("id"), str) and _is_instant(value.get("ended_at"))


def _is_instant(value: Any) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True
