"""The page of the data report: counts that add up or say so, warnings with advice, nothing from data unescaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from recsys.reports.data.page import data_page, write_data_page
from recsys.reports.data.warnings import warnings_of
from tests.toy.data_report import FACTS, LEAK, NONE, REPORT


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).replace("\u00a0", " ")


def test_the_counts_add_up_in_words() -> None:
    """900 + 40 + 40 + 20 = 1000."""
    text = text_of(data_page(REPORT, FACTS, NONE))
    assert "1,000 read = 900 kept + 40 in the quarantine + 40 merged + 20 removed by the k-core" in text
    assert "900 events of 90 users and 50 items are ready; 1 thing should be looked at." in text
    assert "40 of 1,000 rows (4.0 %) are in the quarantine, most because of: null user_id." in text
    assert "New are 50.0 % of the users and 25.0 % of the items" in text
    assert "+1.00 [-2.00, +4.00] points" in text


@pytest.mark.parametrize(("lines", "said"), [(1, "1 line was passed"), (1200, "1,200 lines were passed"), (0, None)])
def test_lines_that_are_remarks_are_counted_on_the_page(lines: int, said: str | None) -> None:
    text = text_of(data_page({**REPORT, "comment_lines": lines} if lines else REPORT, FACTS, NONE))
    assert ("over as remarks" in text) == (said is not None)
    assert said is None or f"{said} over as remarks (source.comment); no count of rows holds them." in text


def test_counts_that_do_not_add_up_are_said() -> None:
    assert "The rows do not add up: 1,000 read" in text_of(data_page({**REPORT, "kept": 899}, FACTS, NONE))


def test_nothing_from_the_data_is_markup() -> None:
    page = data_page(REPORT, FACTS, {**NONE, "findings": [LEAK]})
    for markup in ("<script>", "<b>1</b>", "<i>7</i>"):
        assert markup not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_severe_leak_decides_the_first_sentence() -> None:
    page = data_page(REPORT, FACTS, {**NONE, "findings": [{**LEAK, "severity": "severe"}, {**LEAK, "split": "valid"}]})
    assert "conclusion worse" in page
    text = text_of(page)
    assert "ready, but results from them cannot be trusted: see the first warning below" in text
    assert "4 of 8 rows (50.0 %) 0.5000 0.2500 –" in text


def test_data_without_fault_say_so() -> None:
    clean = {**REPORT, "rows_in": 900, "merged": 0, "k_core_removed": 0, "quarantined": {}}
    page = data_page(clean, FACTS, NONE)
    assert "conclusion better" in page
    assert "nothing stands out" in page


def said(report: dict[str, Any] | None = None, facts: dict[str, Any] | None = None) -> str:
    clean = {**REPORT, "rows_in": 900, "merged": 0, "k_core_removed": 0, "quarantined": {}}
    found = warnings_of({**clean, **(report or {})}, {**FACTS, **(facts or {})}, {})
    assert all(one.advice for one in found)
    return " ".join(one.said for one in found)


@pytest.mark.parametrize(
    ("report", "facts", "words"),
    [
        ({"rows_in": 1000, "merged": 100}, {}, "100 of 1,000 rows (10.0 %) repeat an event"),
        ({"rows_in": 2000, "k_core_removed": 1100}, {}, "The k-core removed 1,100 of 2,000 rows (55 %)"),
        ({"future_events": 3}, {}, "3 events are later than the day"),
        ({"signals": {"like": {"true": 0, "false": 9, "not_known": 0}}}, {}, "'like' is false in every event"),
        ({"signals": {"like": {"true": 0, "false": 0, "not_known": 9}}}, {}, "'like' is not known in every event"),
        ({"signals": {"like": {"true": 9, "false": 0, "not_known": 0}}}, {}, "'like' is true in every event"),
        ({"absent_item_columns": ["brand"]}, {}, "The item column 'brand' was not there"),
        ({}, {"metadata": {"title": {"items": 0.2, "events": 0.9}}}, "Only 20 % of the items have a title"),
        ({}, {"size": {"events": 10_000}, "users": {"largest": 500}}, "One user has 500 events, 5.0 % of all"),
        (
            {},
            {"ids": {"item": {"type": "text", "odd": {"an exponent": {"count": 2, "examples": ["9e12"]}}}}},
            "2 item ids have an exponent, for example '9e12'",
        ),
        (
            {},
            {"drift": {**FACTS["drift"], "now": {"events": 10}}},
            "The last day hold 10 events, the day before 400",
        ),
        (
            {},
            {"drift": {**FACTS["drift"], "signals": {"like": {"before": 0.1, "now": 0.3, "low": 0.1, "high": 0.3}}}},
            "The rate of 'like' went from 10.00 % to 30.00 %",
        ),
    ],
)
def test_each_warning(report: dict[str, Any], facts: dict[str, Any], words: str) -> None:
    assert words in said(report, facts).replace("\u00a0", " ")
    assert said() == ""


def test_what_changed_since_last_time_is_on_the_page() -> None:
    change = {"kind": "users", "words": "other users", "stops": True, "accepted": False}
    changes = {"before": "the champion", "changes": [change, {**change, "kind": "signals", "accepted": True}]}
    text = text_of(data_page(REPORT, FACTS, NONE, changes))
    assert "Compared with the champion." in text
    assert "users other users stops the run" in text
    assert "signals other users accepted" in text
    assert "Since last time" not in data_page(REPORT, FACTS, NONE)


def test_the_same_files_give_the_same_bytes_and_missing_ones_leave_parts_out(tmp_path: Path) -> None:
    (tmp_path / "data_report.json").write_text(json.dumps(REPORT))
    bare = write_data_page(tmp_path, tmp_path / "bare.html").read_text()
    assert "Where every row went" in bare
    assert "The long tail" not in bare
    (tmp_path / "data_facts.json").write_text(json.dumps(FACTS))
    first, second = (write_data_page(tmp_path, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    assert str(tmp_path) not in first.decode()
