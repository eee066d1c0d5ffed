"""Summaries of runs that did nothing, to be changed where a test looks."""

from __future__ import annotations

from typing import Any


def record_of_a_run(**changed: Any) -> dict[str, Any]:
    """A run that ended well, without any result."""
    return {
        "command": "run",
        "state": "done",
        "exit_code": 0,
        "ended_at": "1970-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "cpu_seconds": 1.0,
        "model": "shop",
        "output_dir": "/runs",
        "warnings": [],
        "stages": [],
        "rows": {},
        "figures": [],
        "verdict": None,
        "champion": None,
        "candidates": None,
    } | changed
