"""Summaries of runs as metrics for monitoring, in Prometheus' text format.

Reads the summaries of one output folder; produces the text of a file for node_exporter's textfile collector. Every metric
says what was true last, so that a night that fails early does not take away what the nights before said.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format, version 0.0.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, get_args

from pipelines.run_summary.record import State

Record = Mapping[str, Any]
_PREFIX: Final = "recsys_"


@dataclass
class Metric:
    """One metric and its samples.

    Attributes:
        name: Without the prefix.
        about: The help text.
        samples: Labels and value of each.
    """

    name: str
    about: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)

    def add(self, value: Any, **labels: str) -> None:
        """Add a sample unless its value is not known."""
        if value is not None:
            self.samples.append((labels, float(value)))


def metrics_text(records: Sequence[Record]) -> str:
    """Return the metrics of an output folder.

    Args:
        records: Its summaries, the oldest first. All samples carry the registered name and the folder of the newest.

    Example:
        >>> run = {"command": "run", "state": "failed", "exit_code": 3, "ended_at": "1970-01-01T00:01:00+00:00",
        ...        "seconds": 2.5, "cpu_seconds": 2.0, "model": "shop", "output_dir": "runs", "warnings": [], "stages": [],
        ...        "rows": {}, "figures": [], "verdict": None, "champion": None, "candidates": None}
        >>> print(metrics_text([run]).splitlines()[2])
        recsys_run_last_end_timestamp_seconds{model="shop",output_dir="runs",command="run"} 60.0
    """
    if not records:
        return ""
    newest = records[-1]
    common = {"model": str(newest["model"]), "output_dir": str(newest["output_dir"])}
    metrics = [*_of_runs(records), *_of_stages(records), *_of_data(records), *_of_quality(records)]
    lines = [line for metric in metrics if metric.samples for line in _lines(metric, common)]
    return "\n".join([*lines, ""])


def _of_runs(records: Sequence[Record]) -> Iterator[Metric]:
    ended = Metric("run_last_end_timestamp_seconds", "When the last run of a command ended, however it ended.")
    success = Metric("run_last_success_timestamp_seconds", "When a run of a command last ended with exit code 0.")
    code = Metric("run_exit_code", "Exit code of the last run of a command.")
    state = Metric("run_state", "1 for the state in which the last run of a command ended, 0 for the others.")
    seconds = Metric("run_duration_seconds", "Wall-clock time of the last run of a command.")
    cpu = Metric("run_cpu_seconds", "Processor time of the last run of a command, its children included.")
    warnings = Metric("run_warnings", "Warnings of the last run of a command.")
    for command, last in _last_by_command(records).items():
        ended.add(_timestamp(last), command=command)
        code.add(last["exit_code"], command=command)
        for name in get_args(State):
            state.add(last["state"] == name, command=command, state=name)
        seconds.add(last["seconds"], command=command)
        cpu.add(last["cpu_seconds"], command=command)
        warnings.add(len(last["warnings"]), command=command)
    for command, last in _last_by_command([one for one in records if one["exit_code"] == 0]).items():
        success.add(_timestamp(last), command=command)
    yield from (ended, success, code, state, seconds, cpu, warnings)


def _of_stages(records: Sequence[Record]) -> Iterator[Metric]:
    """A stage that was skipped keeps the time of when it ran last."""
    seconds = Metric("stage_duration_seconds", "Wall-clock time of a stage when it ran last.")
    when = Metric("stage_last_run_timestamp_seconds", "End of the run in which a stage ran last.")
    found: dict[str, tuple[float, float]] = {}
    for record in records:
        for stage in record["stages"]:
            if stage["ran"]:
                found[stage["stage"]] = stage["seconds"], _timestamp(record)
    for name, (took, ended) in found.items():
        seconds.add(took, stage=name)
        when.add(ended, stage=name)
    yield from (seconds, when)


def _of_data(records: Sequence[Record]) -> Iterator[Metric]:
    rows = Metric("data_rows", "Rows of the data prepared last.")
    for table, count in (_last(records, "rows") or {}).items():
        rows.add(count, table=table)
    candidates = _last(records, "candidates") or {}
    written = Metric("candidates_rows", "Rows of the candidates written last.")
    users = Metric("candidates_users", "Users of the candidates written last.")
    written.add(candidates.get("rows"))
    users.add(candidates.get("users"))
    yield from (rows, written, users)


def _of_quality(records: Sequence[Record]) -> Iterator[Metric]:
    bounds = {
        "value": Metric("evaluation_value", "A metric of the served ranking, of the model evaluated last."),
        "low": Metric("evaluation_low", "Lower end of its interval."),
        "high": Metric("evaluation_high", "Upper end of its interval."),
    }
    for figure in _last(records, "figures") or []:
        for name, metric in bounds.items():
            metric.add(figure[name], metric=figure["metric"], split=figure["split"])
    promoted = Metric("gate_promoted", "1 where the gate's last verdict was to promote, 0 where it refused.")
    verdict = _last(records, "verdict")
    promoted.add(None if verdict is None else verdict["promoted"])
    champion = Metric("champion_version", "Number of the version that is champion.")
    champion.add(_last(records, "champion"))
    yield from (*bounds.values(), promoted, champion)


def _last_by_command(records: Iterable[Record]) -> dict[str, Record]:
    return {str(record["command"]): record for record in records}


def _last(records: Sequence[Record], key: str) -> Any:
    """What the newest run said of this that said anything."""
    return next((record[key] for record in reversed(records) if record[key]), None)


def _timestamp(record: Record) -> float:
    return datetime.fromisoformat(record["ended_at"]).timestamp()


def _lines(metric: Metric, common: Mapping[str, str]) -> Iterator[str]:
    name = f"{_PREFIX}{metric.name}"
    yield f"# HELP {name} {escaped(metric.about)}"
    yield f"# TYPE {name} gauge"
    for labels, value in metric.samples:
        pairs = ",".join(f'{key}="{escaped(text, quotes=True)}"' for key, text in {**common, **labels}.items())
        yield f"{name}{{{pairs}}} {value!r}"


def escaped(text: str, quotes: bool = False) -> str:
    r"""Escape a help text, or the value of a label.

    Args:
        quotes: Escape double quotes too, as the values of labels need.

    Example:
        >>> print(escaped('a\\b "c"\nd', quotes=True))
        a\\b \"c\"\nd
    """
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
