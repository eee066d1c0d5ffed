"""Arrays of histories: as narrow as their values, the same bytes however they are cut, and the same numbers when read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.appended import event_arrays
from features.appended.event_arrays import EventArrayWriter
from features.histories import in_seconds
from recsys.contracts.dataset import (
    HISTORY_ARRAYS,
    HistoryArrays,
    read_history_arrays,
    stored_array,
    write_history_arrays,
)
from recsys.contracts.errors import ArtifactError
from recsys.contracts.event_times import WholeSeconds

US = 1_000_000
TIMES = [5 * US, 7 * US, 0, (2**32 - 1) * US, -1, 7 * US + 1, 2**32 * US]
"""Four that are whole seconds of four bytes, one that is not known, one between seconds, and the first that needs five."""


def history_of(time: list[int], code: list[int]) -> HistoryArrays:
    """One user with these times and codes."""
    count, codes = len(time), np.array(code, np.uint8)
    ends = {name: np.array([count]) for name in ("train_end", "valid_end")}
    return HistoryArrays(
        item=np.arange(count, dtype=np.int32),
        behaviour=codes,
        gap=codes,
        watch=codes,
        timestamp=np.array(time, np.int64),
        offsets=np.array([0, count]),
        **ends,
    )


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_pieces_are_the_bytes_of_all_at_once(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever fits, and wherever the first value stands that does not."""
    usual, other = data.draw(st.sampled_from(TIMES)), data.draw(st.sampled_from(TIMES))
    time = data.draw(st.lists(st.sampled_from([usual, usual, usual, other, 5 * US]), max_size=12))
    code = data.draw(st.lists(st.sampled_from([3, 3, 3, 4]), min_size=len(time), max_size=len(time)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(time)), max_size=3)))
    history, folder = history_of(time, code), tmp_path_factory.mktemp("arrays")
    write_history_arrays(folder / "whole", history)
    write_history_arrays(folder / "seconds", in_seconds(history))
    (folder / "pieces").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(event_arrays, "_SLICE", 2)
        for name in ("item", "behaviour", "gap", "watch", "timestamp"):
            values = getattr(history, name)
            with EventArrayWriter(folder / "pieces" / f"{name}.npy") as writer:
                for start, end in itertools.pairwise([0, *cuts, len(time)]):
                    writer.write(values[start:end])
            expected = (folder / "whole" / f"{name}.npy").read_bytes()
            assert (folder / "pieces" / f"{name}.npy").read_bytes() == expected
            assert (folder / "seconds" / f"{name}.npy").read_bytes() == expected
    assert [path.name for path in (folder / "pieces").glob(".*")] == []
    found = read_history_arrays(folder / "whole")
    for name, dtype in HISTORY_ARRAYS.items():
        read = np.asarray(getattr(found, name))
        assert read.dtype == dtype
        assert read.tolist() == getattr(history, name).tolist(), name


@pytest.mark.parametrize(
    ("time", "shape", "dtype"),
    [
        ([5 * US, 7 * US], (2,), np.uint32),
        ([(2**32 - 1) * US, 0], (2,), np.uint32),
        ([5 * US, 2**32 * US], (2,), np.int64),
        ([5 * US, 5 * US + 1], (2,), np.int64),
        ([-US, 5 * US], (2,), np.int64),
        ([-1, 5 * US], (2,), np.int64),
        ([5 * US, 5 * US], (), np.int64),
        ([-1, -1], (), np.int64),
        ([], (0,), np.int64),
    ],
)
def test_times_take_as_little_as_they_can(time: list[int], shape: tuple[int, ...], dtype: Any, tmp_path: Path) -> None:
    """Two events of 8 bytes become 4 each where seconds say it, and 8 in all where they are equal."""
    write_history_arrays(tmp_path, history_of(time, [1] * len(time)))
    file = np.load(tmp_path / "timestamp.npy")
    assert (file.shape, file.dtype) == (shape, dtype)
    assert np.asarray(read_history_arrays(tmp_path).timestamp).tolist() == time


def test_users_and_items_are_stored_as_declared() -> None:
    """Whoever reads them counts on their length, equal or not."""
    for name in ("item", "offsets", "train_end", "valid_end"):
        assert stored_array(name, np.array([1, 1])).shape == (2,)


def test_arrays_of_the_earlier_layout_are_read(tmp_path: Path) -> None:
    """Microseconds and equal codes at full length, as every data set had them."""
    history = history_of([5 * US, 7 * US], [3, 3])
    write_history_arrays(tmp_path, history)
    for name in ("timestamp", "behaviour", "gap", "watch"):
        np.save(tmp_path / f"{name}.npy", getattr(history, name))
    found = read_history_arrays(tmp_path)
    assert [np.asarray(getattr(found, name)).tolist() for name in HISTORY_ARRAYS] == [
        getattr(history, name).tolist() for name in HISTORY_ARRAYS
    ]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("item", np.array(3, np.int32), r"item.npy' has shape \(\), expected one dimension"),
        ("offsets", np.array(0), r"offsets.npy' has shape \(\), expected one dimension"),
        ("gap", np.array(3, np.int32), "gap.npy' holds int32, expected uint8"),
        ("gap", np.array([3, 4], np.uint32), "gap.npy' holds uint32, expected uint8"),
        ("timestamp", np.array(3, np.uint32), r"timestamp.npy' has shape \(\), expected one dimension"),
        ("timestamp", np.array([3], np.uint32), "timestamp.npy has 1 entries, expected 2"),
        ("timestamp", np.array([3, 4], np.float64), "timestamp.npy' holds float64, expected int64"),
    ],
)
def test_other_forms_are_refused(name: str, array: Any, message: str, tmp_path: Path) -> None:
    write_history_arrays(tmp_path, history_of([5 * US, 7 * US], [3, 4]))
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(ArtifactError, match=f"{message}.*; run `prepare` again"):
        read_history_arrays(tmp_path)


def test_seconds_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    """No index reads what it does not name: the seconds are a file, mapped into memory."""
    history = history_of([5 * US, 7 * US, 9 * US], [3, 4, 5])
    write_history_arrays(tmp_path, history)
    times = read_history_arrays(tmp_path).timestamp
    assert isinstance(times, WholeSeconds)
    assert isinstance(times.seconds, np.memmap)
    assert (times.shape, len(times), times[1], type(times[1])) == ((3,), 3, 7 * US, np.int64)
    for rows in (slice(1, None), np.array([2, 0]), np.array([True, False, True]), slice(3, 3)):
        assert times[rows].tolist() == np.asarray(history.timestamp)[rows].tolist()
        assert times[rows].dtype == np.int64
    assert np.asarray(times, np.float64).tolist() == [5e6, 7e6, 9e6]
    with pytest.raises(ValueError, match="only in a copy"):
        np.array(times, copy=False)


def test_seconds_need_no_second_look(tmp_path: Path) -> None:
    """Times that are seconds in memory are written as they are."""
    history = history_of([5 * US, 7 * US], [3, 4])
    kept = in_seconds(history)
    assert isinstance(kept.timestamp, WholeSeconds)
    assert in_seconds(kept) is kept
    unknown = replace(history, timestamp=np.array([-1, 7 * US]))
    assert in_seconds(unknown) is unknown
