"""What is read comes back: from the arrays, from saved files, from batches of any size, in the order of a naive reader."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log import encode
from features.log.encode import read_log
from features.log.encoded_log import EncodedLog
from features.log.event_log import keep_events
from features.log.k_core import KCoreConfig
from features.log.quarantine import QuarantineConfig
from features.sources.base import EventStream, RawTables
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from tests.toy.logs import START, US, raw_tables, read_rows

EVERYTHING = {
    "file": [0, 0, 2, 2, 2],
    "row": [0, 1, 0, 1, 2],
    "prehistory": [False, False, False, True, False],
    "user_id": ["b", "a", "b", "b", None],
    "item_id": ["x", "x", "y", "x", "x"],
    "timestamp": [START + US, START, START, None, START],
    "position": [4, None, 1, 9, 1],
    "tie_break": [None, 3, 2, None, 1],
    "session_id": [11, 12, None, None, 11],
    "split": ["train", "test", "train", None, "valid"],
    "watch_time_ms": pl.Series([1.5, None, 0.0, None, 2.0], dtype=pl.Float32),
    "duration_ms": pl.Series([None, 4.0, 0.0, None, 2.0], dtype=pl.Float32),
    "like": [True, None, False, None, True],
    "share": [None, False, True, None, True],
}


def everything() -> RawTables:
    """Every column there is, and a file without rows between two others."""
    stream = EventStream.from_frame(pl.DataFrame(EVERYTHING), "one.csv", "empty.csv", "two.csv")
    return RawTables(stream, None, None, ("like", "share"), ("like",), True)


def test_every_column_comes_back_as_it_was_read() -> None:
    read = read_log(everything(), QuarantineConfig(), need_session_id=False)
    log = read.log
    assert log.file_records == (2, 0, 3)
    back = log.decode(slice(None))
    expected = pl.DataFrame(EVERYTHING).with_columns(
        file=pl.Series(["one.csv", "one.csv", "two.csv", "two.csv", "two.csv"])
    )[[1, 3, 2, 0]]  # a; then b: the prehistory, and two times
    assert back.to_dicts() == expected.select(back.columns).to_dicts()
    assert read.refused.table().to_dicts()[0] == {
        **{name: EVERYTHING[name][4] for name in back.columns},
        "file": "two.csv",
        "reason": "null user_id",
        "raw": None,
    }


def test_a_saved_log_is_the_same_log_and_the_same_bytes(tmp_path: Path) -> None:
    log = read_log(everything(), QuarantineConfig(), need_session_id=False).log
    for name in ("a", "b"):
        log.save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 13 + 4 + 1
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    opened = EncodedLog.load(tmp_path / "a")
    for name, array in log.arrays().items():
        same = opened.arrays()[name]
        assert (same.dtype, same.tobytes()) == (array.dtype, array.tobytes()), name
    assert opened.decode(slice(None)).equals(log.decode(slice(None)))
    assert (opened.files, opened.file_records, opened.signals) == (log.files, log.file_records, log.signals)


def test_texts_that_break_ties_come_back_and_order_by_their_bytes(tmp_path: Path) -> None:
    """Of four rows of one instant: nothing, then '10', '9', 'a'."""
    rows = {"user_id": [7] * 4, "item_id": [1, 2, 3, 4], "timestamp": [START] * 4, "tie_break": ["a", None, "9", "10"]}
    log = read_rows(rows).log
    assert log.decode(slice(None)).select("item_id", "tie_break").rows() == [(2, None), (4, "10"), (3, "9"), (1, "a")]
    log.save(tmp_path)
    assert EncodedLog.load(tmp_path).decode(slice(None)).equals(log.decode(slice(None)))


def test_columns_that_a_source_lacks_are_not_saved(tmp_path: Path) -> None:
    log = read_rows({"user_id": [7], "item_id": [1], "position": [0]}).log
    log.save(tmp_path)
    opened = EncodedLog.load(tmp_path)
    assert opened.timestamp is None
    assert opened.session is None
    assert set(opened.arrays()) == {
        "user", "item", "record", "prehistory", "position", "signal_values", "signal_known"
    }  # fmt: skip


def test_a_damaged_log_is_refused(tmp_path: Path) -> None:
    read_rows({"user_id": [7], "item_id": [1], "position": [0]}).log.save(tmp_path)
    (tmp_path / "item.npy").write_bytes(b"no array")
    with pytest.raises(ArtifactError, match="run prepare again"):
        EncodedLog.load(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        EncodedLog.load(tmp_path / "nowhere")


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_batches_of_any_size_give_the_same_log(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_log(everything(), QuarantineConfig(), need_session_id=False)
    monkeypatch.setattr(encode, "_BATCH_ROWS", rows)
    parts = read_log(everything(), QuarantineConfig(), need_session_id=False)
    assert parts.log.decode(slice(None)).equals(whole.log.decode(slice(None)))
    assert parts.refused.table().equals(whole.refused.table())
    assert parts.rows_in == whole.rows_in == 5


def test_a_file_reaches_to_its_largest_row_wherever_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused line may come behind later ones, and a file over several batches: the second file starts after row 5."""
    monkeypatch.setattr(encode, "_BATCH_ROWS", 3)
    rows = {"user_id": [7] * 6, "item_id": [1, 2, 3, 4, 5, 6], "timestamp": [START + place for place in range(6)]}
    places = {"file": [0, 0, 0, 0, 1, 1], "row": [0, 5, 1, 3, 2, 0]}
    stream = EventStream.from_frame(pl.DataFrame(rows | places), "one.csv", "two.csv")
    log = read_log(RawTables(stream, None, None, (), (), True), QuarantineConfig(), need_session_id=False).log
    assert (log.file_records, log.file_spans) == ((4, 2), (6, 3))
    assert log.record.tolist() == [0, 5, 1, 3, 6 + 2, 6 + 0]
    assert log.decode(slice(None)).select("file", "row").rows() == [
        *(("one.csv", row) for row in (0, 5, 1, 3)),
        *(("two.csv", row) for row in (2, 0)),
    ]


def test_no_rows_and_too_many_signals_are_refused() -> None:
    with pytest.raises(DataError, match="no interactions at all"):
        read_rows({"user_id": pl.Series([], dtype=pl.Int64), "item_id": pl.Series([], dtype=pl.Int64)})
    names = tuple(f"s{number}" for number in range(8))
    rows = {"user_id": [7], "item_id": [1], "position": [0]} | {name: [True] for name in names}
    with pytest.raises(ConfigError, match=r"declares 8 signals .*at most 7"):
        read_rows(rows, names)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ü", None]),
        st.sampled_from(["x", "y", "z"]),
        st.sampled_from([0, 1, 2, 3, None]),
        st.sampled_from([True, False, None]),
    ),
    min_size=1,
    max_size=40,
)


@given(rows=ROWS, user=st.integers(0, 3), item=st.integers(0, 2), duplicates=st.sampled_from(["merge", "drop", "keep"]))
@settings(max_examples=150, deadline=None)
def test_no_row_is_lost_or_made_up(rows: list[tuple], user: int, item: int, duplicates: Any) -> None:
    """Rows in = kept + quarantined + merged + removed, and the kept ones stand as a naive reader would put them."""
    users, items, seconds, likes = zip(*rows, strict=True)
    raw = raw_tables(
        {
            "user_id": pl.Series(users, dtype=pl.String),
            "item_id": list(items),
            "timestamp": pl.Series([None if s is None else START + s * US for s in seconds], dtype=pl.Int64),
            "like": pl.Series(likes, dtype=pl.Boolean),
        },
        ("like",),
    )
    read = read_log(raw, QuarantineConfig(max_share=1.0), need_session_id=False)
    try:
        kept = keep_events(read.log, KCoreConfig(user=user, item=item), duplicates, {})
    except DataError:
        return  # nothing left, and said so
    accounted = len(read.refused) + len(kept.dropped) + len(kept.merged) + kept.k_core_removed + len(kept.log)
    assert accounted == len(rows)
    if user or item:
        return
    naive: dict[tuple, list] = {}
    good = [(u, s, place, i, like) for place, (u, i, s, like) in enumerate(rows) if u is not None and s is not None]
    for u, s, place, i, like in sorted(good):
        key = (u, s, i, place if duplicates == "keep" else 0)
        naive.setdefault(key, []).append(like)
    log = kept.log
    found = list(
        zip(
            log.user_ids.gather(pl.Series(log.user)),
            log.item_ids.gather(pl.Series(log.item)),
            ((log.timestamp - START) // US).tolist(),
            np.where(log.signal_known == 0, -1, log.signal_values.astype(int)).tolist(),
            strict=True,
        )
    )
    merged = {"merge": lambda known: max(known, default=-1), "drop": None, "keep": None}[duplicates]
    expected = []
    for (u, s, i, _), values in naive.items():
        known = [int(value) for value in values if value is not None]
        first = -1 if values[0] is None else int(values[0])
        expected.append((u, i, s, merged(known) if merged else first))
    assert found == expected
