"""The JSON files of a small data report, with hostile texts, as a page reads them."""

from __future__ import annotations

from typing import Any

REPORT: dict[str, Any] = {
    "rows_in": 1000,
    "kept": 900,
    "merged": 40,
    "k_core_removed": 20,
    "quarantined": {"null user_id": 38, "<script>alert(1)</script>": 2},
    "users": 90,
    "files": [{"file": "day/<b>1</b>.csv", "rows_in": 1000, "quarantined": 40}],
    "first_event": "2022-05-01T00:00:00+00:00",
    "last_event": "2022-05-09T23:00:00+00:00",
    "positive_events": 300,
    "ties": {"events": 30, "share": 0.033, "by_file_order": 30, "by_file_order_share": 0.033},
    "signals": {"like": {"true": 90, "false": 810, "not_known": 0}},
    "split": {"kind": "global_temporal"},
}
TAIL: dict[str, Any] = {
    "gini": 0.5, "top_1_percent": 0.1, "top_10_percent": 0.4, "largest": 60, "without": 0, "once": 3,
    "quantiles": {"p50": 5, "p90": 20}, "curve": [place / 20 for place in range(21)],
}  # fmt: skip
FACTS: dict[str, Any] = {
    "size": {"events": 900, "users": 90, "items": 50, "events_per_user": 10.0, "events_per_item": 18.0, "filled": 0.2},
    "items": TAIL,
    "users": TAIL,
    "history_lengths": [["0", 5], ["1", 20], ["2–3", 65]],
    "session_lengths": [["0", 0], ["1", 100]],
    "gaps": [90, 10, *[0] * 28, 2],
    "watch": [0, 5, 4],
    "metadata": {"title": {"items": 1.0, "events": 1.0}, "author_id": {"items": 0.0, "events": 0.0}},
    "ids": {"user": {"type": "text", "odd": {}}, "item": {"type": "integer", "odd": {}}},
    "splits": {"test": {"events": 90, "users": 40, "first": "2022-05-09 00:00", "last": "2022-05-09 23:00"}},
    "over_time": {
        "step": "day", "days": 1, "from": ["2022-05-01", "2022-05-02", "2022-05-03"], "events": [400, 0, 500],
        "users": [40, 0, 60], "positive": [0.3, None, 0.4], "signals": {"like": [0.1, None, 0.1]},
    },
    "drift": {
        "days": 1, "before": {"events": 400, "users": 40, "items": 30}, "now": {"events": 500, "users": 60, "items": 40},
        "new_users": 0.5, "new_items": 0.25, "events_on_new_items": 0.1, "psi": 0.3, "jensen_shannon": 0.2,
        "signals": {"like": {"before": 0.1, "now": 0.11, "difference": 0.01, "low": -0.02, "high": 0.04}},
    },
}  # fmt: skip
LEAK = {
    "code": "ties", "title": "Ties", "severity": "warning", "split": "test", "rows": 4, "of": 8, "unit": "rows",
    "share": 0.5,     "words": "4 of 8 tie", "advice": "order them", "examples": ["<i>7</i>"],
    "hr_bound": 0.5, "hr_at_10": 0.25, "hr_without": None,
}  # fmt: skip
NONE: dict[str, Any] = {"findings": [], "checked": {"ties": "targets at one instant"}}
