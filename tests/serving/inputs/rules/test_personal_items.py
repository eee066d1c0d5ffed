"""Items that single users must not be shown: their dislikes in the data, the column of a frame, and both with a file."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.decoding.rules.personal_lists import PersonalLists
from recsys.runtime import PlainProgress
from serving.answers.scorer import Scorer
from serving.batch.candidates import write_candidates
from serving.config import RecommendConfig
from serving.export.export import BundleSources
from serving.inputs.rules.personal_items import denied_in_rows, disliked_in
from serving.inputs.user_histories import FrameUsers, PreparedUsers
from tests.serving.conftest import HISTORIES, NUM_ITEMS, frame_of

QUIET = PlainProgress()
SIGNALS = ("like", "hate", "report", "stars")
EVENTS = {
    "user_index": [0, 0, 0, 1, 2, 2],
    "item_index": [4, 5, 4, 3, 5, 6],
    "like": [None, True, None, True, True, None],
    "hate": [True, None, True, None, False, None],
    "report": [None, True, None, None, None, None],
    "stars": [1, 5, 1, 5, 5, None],
}
"""u0 hates 4, twice, and reports 5, which it liked as well; nobody else dislikes anything."""


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Scorer:
    return Scorer.open(bundle)


@pytest.fixture
def prepared(sources: BundleSources, tmp_path: Path) -> Dataset:
    folder = tmp_path / "prepared"
    shutil.copytree(sources.prepared, folder)
    events = pl.DataFrame(EVENTS, schema_overrides={"user_index": pl.Int32, "item_index": pl.Int32})
    rest = {
        "timestamp": pl.lit(None, pl.Int64),
        "session_index": pl.lit(0, pl.Int32),
        "split": pl.lit(0, pl.Int8),
        "positive": pl.lit(value=True),
        "behaviour": pl.lit(0, pl.UInt8),
        "watch_ratio": pl.lit(None, pl.Float32),
    }
    events.with_columns(**rest).write_parquet(folder / "events.parquet")
    found = Dataset.open(folder, checked=False)
    return replace(found, spec=found.spec.model_copy(update={"signals": SIGNALS}))


def lists_of(lists: PersonalLists | None) -> list[list[int]]:
    assert lists is not None
    return [sorted(lists.of(user).tolist()) for user in range(len(lists))]


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        (None, [[4, 5], [], [], [], []]),
        (("hate",), [[4], [], [], [], []]),
        (("report",), [[5], [], [], [], []]),
        (("report", "hate"), [[4, 5], [], [], [], []]),
    ],
)
def test_dislikes_of_the_data_by_hand(
    prepared: Dataset, scorer: Scorer, signals: tuple[str, ...] | None, expected: list[list[int]]
) -> None:
    assert lists_of(disliked_in(prepared, signals, scorer.catalogue)) == expected


def test_no_signal_no_lists(sources: BundleSources, prepared: Dataset, scorer: Scorer) -> None:
    assert disliked_in(prepared, (), scorer.catalogue) is None
    assert disliked_in(Dataset.open(sources.prepared), None, scorer.catalogue) is None


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        (("dislike",), "names the signal 'dislike', which the data set lacks .it has like, hate, report, stars"),
        (("hate", "stars"), "names the signal 'stars', which is Int64, expected yes or no"),
    ],
)
def test_other_signals_are_refused(prepared: Dataset, scorer: Scorer, signals: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        disliked_in(prepared, signals, scorer.catalogue)


def test_damaged_events_are_refused_by_name(prepared: Dataset, scorer: Scorer) -> None:
    (prepared.path / "events.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=r"events\.parquet' cannot be read"):
        disliked_in(prepared, None, scorer.catalogue)


def test_a_job_shows_nobody_what_they_dislike(
    bundle: Path, prepared: Dataset, scorer: Scorer, item_ids: list[int], tmp_path: Path
) -> None:
    """u0 has seen 0 1 2 and dislikes 4 and 5; the file adds 6: of 12 items 6 are left. The others' lists are as without."""
    users = PreparedUsers(prepared.path, "d" * 64)
    users.prepared = prepared
    own = tmp_path / "own.csv"
    own.write_text(f"user_id,item_id\nu0,{item_ids[6]}\n")
    given = {}
    for name, options in {"off": {"exclude_disliked": []}, "on": {}, "both": {"personal_deny": own}}.items():
        config = RecommendConfig.model_validate({"k": NUM_ITEMS, **options})
        write_candidates(bundle, users, config, tmp_path / name, QUIET)
        rows = pl.concat([pl.read_parquet(path) for path in sorted((tmp_path / name).glob("part-*.parquet"))])
        given[name] = {
            user: [item_ids.index(item) for item in part["item_id"]]
            for (user,), part in rows.group_by("user_id", maintain_order=True)
        }
    assert set(given["off"]["u0"]) == {3, 4, 5, 6, 7, 8, 9, 10, 11}
    assert set(given["on"]["u0"]) == {3, 6, 7, 8, 9, 10, 11}
    assert set(given["both"]["u0"]) == {3, 7, 8, 9, 10, 11}
    for name in ("on", "both"):
        assert {user: items for user, items in given[name].items() if user != "u0"} == {
            user: items for user, items in given["off"].items() if user != "u0"
        }


DENIED = [[4, 5], [], None, [0], [7, 7, 8]]


def denied_frame(item_ids: list[int]) -> pl.DataFrame:
    lists = [None if items is None else [item_ids[item] for item in items] for items in DENIED]
    lists[1] = [4711]  # which the model does not know
    return frame_of(item_ids).with_columns(pl.Series("deny_item_ids", lists, pl.List(pl.Int64)))


def test_rows_of_a_frame_by_hand(scorer: Scorer, item_ids: list[int]) -> None:
    """What a row denies is out of its list alone, and what it has seen stays out; the rest is answered in the same order."""
    frame = denied_frame(item_ids)
    plain = scorer.score_frame(frame.drop("deny_item_ids"), NUM_ITEMS)
    found = scorer.score_frame(frame, NUM_ITEMS)
    for user, denied in enumerate(DENIED):
        before, after = (
            [item_ids.index(item) for item in rows.filter(pl.col("user_id") == f"u{user}")["item_id"]]
            for rows in (plain, found)
        )
        assert after == [item for item in before if item not in (denied or [])]
        assert set(after) == set(range(NUM_ITEMS)) - set(HISTORIES[user]) - set(denied or [])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_file_of_users_denies_the_same(
    bundle: Path, scorer: Scorer, item_ids: list[int], tmp_path: Path, form: str
) -> None:
    frame = denied_frame(item_ids)
    path = tmp_path / f"users.{form}"
    if form == "parquet":
        frame.write_parquet(path)
    else:
        as_text = [pl.Series(n, [json.dumps(v) for v in frame[n].to_list()]) for n in frame.columns if n != "user_id"]
        frame.with_columns(as_text).write_csv(path)
    write_candidates(bundle, FrameUsers(path), RecommendConfig(k=NUM_ITEMS), tmp_path / "out", QUIET)
    rows = pl.concat([pl.read_parquet(part) for part in sorted((tmp_path / "out").glob("part-*.parquet"))])
    expected = scorer.score_frame(frame, NUM_ITEMS)
    assert rows.select("user_id", "item_id").equals(expected.select("user_id", "item_id"))
    with pytest.raises(ConfigError, match="hold no signals; name the items in the column 'deny_item_ids'"):
        FrameUsers(path).personal_lists(["hate"], scorer.catalogue)


@pytest.mark.parametrize(
    "lists",
    [
        pl.Series([None, None]),
        pl.Series([[], None], dtype=pl.List(pl.Int64)),
        pl.Series([[], []], dtype=pl.List(pl.Null)),
        pl.Series([[None], None], dtype=pl.List(pl.Int64)),
    ],
)
def test_lists_that_say_nothing(scorer: Scorer, lists: pl.Series) -> None:
    assert lists_of(denied_in_rows(lists, scorer.catalogue)) == [[], []]


def test_lists_of_other_kinds(scorer: Scorer, item_ids: list[int], caplog: pytest.LogCaptureFixture) -> None:
    as_array = pl.Series([[item_ids[0], item_ids[1]], [item_ids[2], item_ids[2]]], dtype=pl.Array(pl.Int64, 2))
    as_floats = pl.Series([[float(item_ids[3])], [float(item_ids[4])]])
    assert lists_of(denied_in_rows(as_array, scorer.catalogue)) == [[0, 1], [2, 2]]
    assert lists_of(denied_in_rows(as_floats, scorer.catalogue)) == [[3], [4]]
    with_null = pl.Series([[item_ids[3], None], [None]])
    with caplog.at_level(logging.INFO, logger="recsys.serving"):
        assert lists_of(denied_in_rows(with_null, scorer.catalogue)) == [[3], []]
    assert not caplog.records, "nothing is unknown"
    longest = scorer.catalogue.limits.max_history_items
    with pytest.raises(DataError, match=f"row 1 has {longest + 1} deny_item_ids, at most {longest} are read"):
        denied_in_rows(pl.Series([[], [item_ids[0]] * (longest + 1)]), scorer.catalogue)


@pytest.mark.parametrize(
    ("lists", "found", "first"),
    [
        (pl.Series([[], [7.0], [7.0, 7.5]]), "Float64", "; first in row 2 (user_id 'w'): 7.5"),
        (pl.Series([[], [float("nan"), 7.0], [1e300]]), "Float64", "; first in row 2 (user_id 'w'): 1e+300"),
        (pl.Series([[None], ["seven"], ["8"]]), "String", "; first in row 1 (user_id 'v'): 'seven'"),
        (pl.Series([[], None, [True]]), "Boolean", "; first in row 2 (user_id 'w'): True"),
        (
            pl.Series([[1], [2**63], []], dtype=pl.List(pl.UInt64)),
            "UInt64",
            "; first in row 1 (user_id 'v'): " + str(2**63),
        ),
        (pl.Series([[], [], None], dtype=pl.List(pl.Date)), "Date", ""),
        (pl.Series([[], [[7, 8]], None]), "List(Int64)", "; first in row 1 (user_id 'v'): [7, 8]"),
        (pl.Series([[{"id": 7}], [], None]), "Struct({'id': Int64})", "; first in row 0 (user_id 'u'): {'id': 7}"),
    ],
)
def test_denied_ids_of_another_type_name_the_first_row(
    scorer: Scorer, lists: pl.Series, found: str, first: str
) -> None:
    """The column, its type, what was expected, and whose list has the first value that is no id."""
    expected = (
        f"'deny_item_ids' holds lists of {found}, expected lists of Int64, as the model's ids are{first}; convert"
    )
    with pytest.raises(DataError, match=re.escape(expected)):
        denied_in_rows(lists, scorer.catalogue, pl.Series(["u", "v", "w"]))
    if first:
        with pytest.raises(DataError, match=re.escape(first.partition(" (")[0] + ": ")):
            denied_in_rows(lists, scorer.catalogue)


def test_joined_lists_by_hand() -> None:
    """[7] [] and [8 7] [6] are [7 8 7] [6]; others must be of as many users."""
    one = PersonalLists.from_pairs(np.array([0]), np.array([7]), 2)
    two = PersonalLists.from_pairs(np.array([0, 0, 1]), np.array([8, 7, 6]), 2)
    joined = one.joined(two)
    assert [joined.of(user).tolist() for user in range(2)] == [[7, 8, 7], [6]]
    assert one.joined(None) is one
    with pytest.raises(DataError, match="are of 2 and 1 users"):
        one.joined(two.take(np.array([0])))
