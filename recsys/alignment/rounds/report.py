"""The alignment report as data: what every round measured, the guard's results, and curves over rounds and steps.

Reads finished rounds; writes ``alignment_report.json`` and ``curves.parquet`` (step, name, value). Whoever draws a
page of it reads these two; figures of the rounds are named ``measured/…`` against the round number, figures of the updates
``training/…`` against the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import polars as pl

from recsys.alignment.config import AlignConfig
from recsys.alignment.rounds.loop import CURVE_NAME, CURVE_SCHEMA, AlignmentRun
from recsys.contracts.manifest import read_json, write_json
from recsys.contracts.table_checks import read_table

REPORT_NAME: Final = "alignment_report.json"
CURVES_NAME: Final = "curves.parquet"


def write_alignment_report(run: AlignmentRun, config: AlignConfig, folder: Path) -> dict[str, Any]:
    """Write both files and return the report."""
    report = {
        "method": config.method,
        "settings": config.active.model_dump(mode="json"),
        "guard": config.guard.model_dump(mode="json"),
        "kept_round": run.kept,
        "stopped": run.stopped,
        "rounds": [
            {"round": finished.number, "digest": finished.digest, **finished.summary} for finished in run.rounds
        ],
    }
    curves(run).write_parquet(folder / CURVES_NAME)
    write_json(folder / REPORT_NAME, report)
    loaded: dict[str, Any] = read_json(folder / REPORT_NAME)
    return loaded


def curves(run: AlignmentRun) -> pl.DataFrame:
    """Figures of all rounds and updates: columns step, name, value."""
    from recsys.contracts.tables import StepCurvesTable

    measured = [
        (finished.number, f"measured/{name}", float(value))
        for finished in run.rounds
        for name, value in finished.summary["measured"].items()
    ]
    tables = [pl.DataFrame(measured, schema=CURVE_SCHEMA, orient="row")]
    for finished in run.rounds[1:]:
        table = read_table(finished.path / CURVE_NAME, StepCurvesTable, "delete its round and run `align` again")
        tables.append(table.with_columns(name="training/" + pl.col("name")))
    return pl.concat(tables)
