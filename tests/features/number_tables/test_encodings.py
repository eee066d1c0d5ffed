"""Numbers become the bytes that the Parquet format asks for, with the kernels and without them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.number_tables.encodings import bits, delta_packed, levels, varint, zigzag
from recsys import native


def without_kernels(*parts: npt.NDArray) -> bytes:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("recsys.native.columns.available", lambda: False)
        return delta_packed(*parts)


def test_differences_by_hand() -> None:
    """7, 5, 3, 1, 2: steps -2, -2, -2, 1, so the least is -2 (zigzag 3) and 0, 0, 0, 3 are left: two bits each.

    Head: block 128 = 80 01, 4 miniblocks, 5 values, first 7 = 0e. Widths 2, 0, 0, 0. The fourth number's two bits are the
    highest of the first byte: c0; 32 numbers of two bits are eight bytes.
    """
    expected = "8001 04 05 0e 03 02000000 c000000000000000".replace(" ", "")
    values = np.array([7, 5, 3, 1, 2], np.int64)
    assert without_kernels(values).hex() == expected
    assert delta_packed(values).hex() == expected


def test_no_numbers_and_one() -> None:
    assert without_kernels(np.array([], np.int32)).hex() == delta_packed(np.array([], np.int32)).hex() == "8001040000"
    assert without_kernels(np.array([-1], np.int8)).hex() == delta_packed(np.array([-1], np.int8)).hex() == "8001040101"


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_kernel_gives_the_bytes_of_numpy(dtype: type, data: st.DataObject) -> None:
    info = np.iinfo(dtype)
    size = data.draw(st.sampled_from([2, 3, 32, 33, 34, 128, 129, 130, 300]))
    spread = data.draw(st.sampled_from([0, 1, 3, 120, int(info.max)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
    values = rng.integers(-spread if info.min < 0 else 0, spread, size, dtype=dtype, endpoint=True)
    if data.draw(st.booleans()):
        values = np.sort(values)
    assert without_kernels(values) == delta_packed(values)


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
@pytest.mark.parametrize("width", range(65))
def test_differences_of_every_width(width: int) -> None:
    """Steps of up to so many bits beyond the least one, which wrap around at 64."""
    steps = np.random.default_rng(width).integers(0, 2**width - 1, 200, dtype=np.uint64, endpoint=True)
    steps[[3, 150]], steps[[7, 160]] = 0, 2**width - 1
    values = np.cumsum(steps, dtype=np.uint64).view(np.int64)
    assert without_kernels(values) == delta_packed(values)


def test_marks_of_missing_values_by_hand() -> None:
    """Ten values of which one is missing: two groups of eight bits, 2 * 2 + 1 = 05, behind a length of three bytes."""
    known = np.ones(10, bool)
    known[1] = False
    assert levels(known, 10).hex() == "03000000" + "05" + "fd03"
    assert levels(np.zeros(200, bool), 200).hex() == "03000000" + "9003" + "00"
    assert levels(np.ones(10, bool), 10) == levels(None, 10)
    assert bits(np.array([True, False, True])).hex() == "05"


def test_short_numbers() -> None:
    assert [zigzag(number) for number in (-3, -1, 0, 2)] == [5, 1, 0, 4]
    assert [varint(number).hex() for number in (0, 127, 128, 16384)] == ["00", "7f", "8001", "808001"]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_numbers_in_parts_are_the_numbers_at_once(dtype: type, data: st.DataObject) -> None:
    """Cut anywhere: within a block of 128, between two, before the first number, and with nothing in a part."""
    size = data.draw(st.sampled_from([0, 1, 2, 128, 129, 257, 400]))
    values = np.random.default_rng(data.draw(st.integers(0, 999))).integers(-9, 9, size, dtype=dtype)
    cuts = sorted(data.draw(st.lists(st.sampled_from([0, 1, 2, 127, 128, 129, 130, 256, 257, 300]), max_size=4)))
    parts = np.split(values, cuts)
    expected = without_kernels(values)
    assert delta_packed(*parts) == expected
    assert without_kernels(*parts) == expected
