"""Feedback signals as bits: for every event, which signals are true, and which are known at all.

Reads Boolean columns; produces two bytes per event. Bit ``j`` belongs to the ``j``-th declared signal, so the first byte is
the behaviour code without its 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from features.log.arrays import is_constant
from features.sources.base import MergeRule
from recsys.contracts.dataset import ByteArray
from recsys.contracts.errors import ConfigError
from recsys.contracts.event_features import MAX_SIGNALS

DEFAULT_RULE: Final[MergeRule] = "any"


def check_signal_count(signals: Sequence[str]) -> None:
    """Refuse more signals than a behaviour code holds.

    Raises:
        ConfigError: Says how many there are and how many fit.
    """
    if len(signals) > MAX_SIGNALS:
        raise ConfigError(
            f"source.signals declares {len(signals)} signals ({', '.join(signals)}), at most {MAX_SIGNALS} fit one "
            "behaviour code; leave out those that the model does not need"
        )


def pack_signals(frame: pl.DataFrame, signals: Sequence[str]) -> tuple[ByteArray, ByteArray]:
    """Return ``[rows]`` bits that are true and bits that are known; an unknown bit is 0 in both.

    Example:
        >>> frame = pl.DataFrame({"like": [True, None], "share": [False, True]})
        >>> [bits.tolist() for bits in pack_signals(frame, ["like", "share"])]
        [[1, 2], [3, 2]]
    """
    values, known = np.zeros(len(frame), np.uint8), np.zeros(len(frame), np.uint8)
    for place, name in enumerate(signals):
        column, bit = frame[name], np.uint8(1 << place)
        values |= column.fill_null(False).to_numpy().view(np.uint8) * bit
        if column.null_count():
            known |= column.is_not_null().to_numpy().view(np.uint8) * bit
        else:
            known |= bit
    return values, known


def unpack_signal(values: ByteArray, known: ByteArray, place: int) -> pl.Series:
    """Return one signal as Booleans, null where it is not known.

    Args:
        values, known: ``[rows]`` bits.
        place: Of the signal in the declared order.
    """
    bit = np.uint8(1 << place)
    column = pl.Series((values & bit) != 0)
    is_known = (known & bit) != 0
    return column if is_known.all() else column.set(~pl.Series(is_known), None)


def behaviour_bytes(values: ByteArray, known: ByteArray, num_signals: int) -> ByteArray:
    """Return the behaviour code of each event; 0 where no signal is known, and an unknown one among known ones counts as no.

    Example:
        >>> behaviour_bytes(np.array([0, 2, 0], np.uint8), np.array([3, 2, 0], np.uint8), 2).tolist()
        [1, 3, 0]
    """
    if is_constant(values) and is_constant(known) and len(values):
        return np.broadcast_to(behaviour_bytes(values[:1].copy(), known[:1].copy(), num_signals), (len(values),))
    code = values + np.uint8(1)
    if num_signals:
        code[known == 0] = 0
    return code


def positive_mask(values: ByteArray, signals: Sequence[str], positive: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return whether any of the signals ``positive`` is true; without any every event is positive."""
    if not positive:
        return np.broadcast_to(np.True_, (len(values),))
    bits = sum(1 << list(signals).index(name) for name in positive)
    return (values & np.uint8(bits)) != 0


def merge_bits(
    values: ByteArray, known: ByteArray, starts: npt.NDArray[np.int64], rules: Sequence[MergeRule]
) -> tuple[ByteArray, ByteArray]:
    """Make one event of each group of events.

    Args:
        values, known: ``[rows]`` bits, the rows of a group next to each other and in order of time.
        starts: ``[groups]`` first row of each group.
        rules: One per signal.

    Returns:
        ``[groups]`` bits that are true and bits that are known: a signal is known when any event of the group knows it.

    Example:
        A view, and a like of the same second.

        >>> merged = merge_bits(np.array([0, 1], np.uint8), np.array([1, 1], np.uint8), np.array([0]), ["any"])
        >>> [bits.tolist() for bits in merged]
        [[1], [1]]
    """
    some_known = np.bitwise_or.reduceat(known, starts)
    any_true = np.bitwise_or.reduceat(values, starts)
    all_true = np.bitwise_and.reduceat(values | ~known, starts) & some_known
    result = np.zeros(len(starts), np.uint8)
    for place, rule in enumerate(rules):
        bit = np.uint8(1 << place)
        if rule == "any":
            result |= any_true & bit
        elif rule == "all":
            result |= all_true & bit
        else:
            result |= _end_of_group(values & bit, (known & bit) != 0, starts, rule)
    return result, some_known


def _end_of_group(
    values: ByteArray, known: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64], rule: Literal["first", "last"]
) -> ByteArray:
    """Value of the first or last row of each group that is known; 0 where none is."""
    rows = np.arange(len(values))
    if rule == "first":
        chosen = np.minimum.reduceat(np.where(known, rows, len(values)), starts)
        found = chosen < len(values)
    else:
        chosen = np.maximum.reduceat(np.where(known, rows, -1), starts)
        found = chosen >= 0
    return np.where(found, values[np.where(found, chosen, 0)], 0).astype(np.uint8)
