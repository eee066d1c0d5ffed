"""What moved between two versions."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recsys.contracts.errors import DataError
from recsys.semantic_ids.config import RefitConfig
from recsys.semantic_ids.generations.comparison import compare, comparison_text
from recsys.semantic_ids.generations.summary import export_frame, summary_text, table_summary
from recsys.semantic_ids.versions import SemanticIds

BOOKS = (np.array([[0.0], [100.0]], np.float32), np.array([[0.0], [1.0], [2.0]], np.float32))
OLD = SemanticIds(
    np.array([[0, 0], [0, 1], [1, 2], [1, 0]], np.int32),
    (2, 3),
    pl.Series(["a", "b", "c", "gone"]),
    BOOKS,
    traffic=np.array([100, 100, 100, 100]),
)
NEW = SemanticIds(
    np.array([[1, 1], [0, 0], [0, 2], [0, 1]], np.int32),
    (2, 3),
    pl.Series(["new", "a", "b", "c"]),
    BOOKS,
    traffic=np.array([9, 1, 6, 3]),
)


def test_by_hand():
    """Of a, b, c with 1, 6, 3 events: a keeps its ID, b its first code (7 of 10), c both not and its second neither."""
    found = compare(OLD, NEW)
    assert found["items"] == {"in_both": 3, "kept": 1, "moved": 2, "new": 1, "gone": 1}
    assert found["kept"] == {"items": pytest.approx(1 / 3), "traffic": 0.1}
    assert found["levels"][0]["up_to"] == {"items": pytest.approx(2 / 3), "traffic": 0.7}
    assert found["levels"][1] == {"level": 2, "up_to": found["kept"], "alone": found["kept"]}
    assert [entry["item_id"] for entry in found["examples"]] == ["b", "c"]
    assert found["examples"][0] == {"item_id": "b", "old": "<a_0><b_1>", "new": "<a_0><b_2>"}
    assert not found["same_generation"]
    text = comparison_text(found)
    assert "3 items in both: 1 keep their ID, 2 moved; 1 new, 1 gone" in text
    assert "up to level 1         66.7%    70.0%" in text
    assert "b  <a_0><b_1> -> <a_0><b_2>" in text


def test_traffic_of_the_older_table_stands_in_and_none_is_said():
    bare = replace(NEW, traffic=None)
    assert compare(OLD, bare)["kept"]["traffic"] == pytest.approx(1 / 3)
    assert compare(replace(OLD, traffic=None), bare)["kept"]["traffic"] is None
    assert "66.7%        -" in comparison_text(compare(replace(OLD, traffic=None), bare))


def test_versions_of_a_generation_move_nothing():
    grown = OLD.grown(["c", "n", "b"], np.zeros((3, 1), np.float32))
    found = compare(OLD, grown)
    assert found["same_generation"]
    assert found["items"] == {"in_both": 2, "kept": 2, "moved": 0, "new": 1, "gone": 2}
    back = grown.grown(["gone", "c"], np.zeros((2, 1), np.float32))
    assert compare(grown, back)["items"] == {"in_both": 1, "kept": 1, "moved": 0, "new": 1, "gone": 2}
    assert "the same generation: no published ID may move" in comparison_text(found)


def test_tables_of_other_levels_and_other_ids():
    deeper = SemanticIds(np.zeros((1, 3), np.int32), (2, 3, 4), pl.Series(["a"]), BOOKS)
    found = compare(OLD, deeper)
    assert found["kept"]["items"] == 0.0
    assert found["levels"][1]["up_to"]["items"] == 1.0
    nothing = compare(OLD, SemanticIds(np.zeros((1, 2), np.int32), (2, 3), pl.Series(["z"]), BOOKS))
    assert nothing["kept"] == {"items": None, "traffic": None}
    assert "-" in comparison_text(nothing)
    numbers = SemanticIds(np.zeros((1, 2), np.int32), (2, 3), pl.Series([1], dtype=pl.Int32), BOOKS)
    large = SemanticIds(np.array([[0, 0], [1, 1]], np.int32), (2, 3), pl.Series([2**40, 1]), BOOKS)
    assert compare(numbers, large)["items"] == {"in_both": 1, "kept": 0, "moved": 1, "new": 1, "gone": 0}
    with pytest.raises(DataError, match="String in one table and Int64 in the other"):
        compare(OLD, SemanticIds(np.zeros((1, 2), np.int32), (2, 3), pl.Series([1]), BOOKS))


def test_a_summary_names_versions_and_due_generations():
    grown = OLD.grown(["c", "n", "b"], np.zeros((3, 1), np.float32))
    found = table_summary(grown, {"fill": 5 / 6, "drift": None}, RefitConfig())
    assert (found["founders"], found["later"], found["reserved"]) == (2, 1, 2)
    assert [(entry["items"], entry["new"]) for entry in found["versions"]] == [(4, 4), (3, 1)]
    text = summary_text(found)
    assert "a new generation is due: fill is 0.833, tokenize.refit.max_fill allows 0.5: IDs run out" in text
    assert "no limit of tokenize.refit is reached" in summary_text(table_summary(grown, {"fill": 0.1}, RefitConfig()))
    assert "no report beside it says how used up" in summary_text(table_summary(grown, {}, RefitConfig()))


def test_the_exported_table_has_who_left_when_asked():
    grown = OLD.grown(["c", "n", "b"], np.zeros((3, 1), np.float32))
    rows = export_frame(grown, with_reserved=True)
    assert rows.columns == ["item_id", "sid", "code_1", "code_2", "born", "in_catalogue"]
    assert rows.rows() == [
        ("c", "<a_1><b_2>", 1, 2, 0, True),
        ("n", "<a_0><b_2>", 0, 2, 1, True),
        ("b", "<a_0><b_1>", 0, 1, 0, True),
        ("a", "<a_0><b_0>", 0, 0, 0, False),
        ("gone", "<a_1><b_0>", 1, 0, 0, False),
    ]
    assert export_frame(grown, with_reserved=False).rows() == rows.rows()[:3]
