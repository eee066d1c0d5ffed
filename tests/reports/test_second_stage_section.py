"""What the report says of candidates and ranker, by hand."""

from __future__ import annotations

from typing import Any

from recsys.reports.second_stage import SHOWN, second_stage_section

RANKED: dict[str, Any] = {
    "serves": "lightgbm",
    "verdict": "the LightGBM ranker is served: +0.01 <b>",
    "guidance": 2.0,
    "weights": {"dense": 1.0, "transitions": 0.25},
    "learned": "lightgbm",
    "features": [[f"feature_{place}", 10.0] for place in range(SHOWN + 2)] + [["dense_score", 60.0]],
    "left_out": ["ease is left out: the catalogue has 30000 items"],
    "rows": 1000,
    "candidates_per_row": 181.5,
    "rows_with_target": 0.25,
    "seconds": {"the scorers": 3.0, "the ranker": 12.4},
}


def test_shares_of_hits_and_gains() -> None:
    """Of 40 hits the beam had 10 (25 %) and 4 alone (10 %); a gain of 10 of 200 is 5 %."""
    counts = {"beam": {"found": 10, "alone": 4}, "dense": {"found": 36, "alone": 30}}
    html = second_stage_section(RANKED, {"filtered": {"k": 10, "rows": 100, "hits": 40, "sources": counts}})
    for text in ("25.0\xa0%", "10.0\xa0%", "90.0\xa0%", "5.0\xa0%", "181.5 candidates", "2 s for", "ease is left out"):
        assert text.replace("2 s for", "12 s for the ranker") in html
    assert "3 more features" in html
    assert "&lt;b&gt;" in html


def test_without_hits_nothing_is_divided_and_a_linear_weight_is_signed() -> None:
    linear = {**RANKED, "learned": "linear", "features": [["dense_score", -0.5]]}
    nothing = {"k": 10, "rows": 3, "hits": 0, "sources": {"beam": {"found": 0, "alone": 0}}}
    html = second_stage_section(linear, {"unfiltered": nothing})
    assert "–" in html
    assert "-0.500" in html
    assert "Which source" not in second_stage_section(linear, None)
