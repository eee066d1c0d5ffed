"""From raw measurements of an event to the small integers a model reads; one place for training and serving.

Code 0 always means "not known", so a source without timestamps or watch time uses the same tables.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

NUM_GAP_BUCKETS: Final = 32
NUM_WATCH_BUCKETS: Final = 12
MAX_SIGNALS: Final = 7

_WATCH_EDGES: Final = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.1, 1.5, 2.0])


def gap_buckets(gap_us: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Bucket the time since the previous event of the same user by powers of two of a second.

    Args:
        gap_us: Microseconds; negative means not known (first event, or no timestamps).

    Returns:
        0 not known, 1 for less than a second, then ``2 + floor(log2(seconds))``, at most ``NUM_GAP_BUCKETS - 1``.

    Example:
        >>> gap_buckets(np.array([-1, 500_000, 1_000_000, 3_000_000])).tolist()
        [0, 1, 2, 3]
    """
    # floor(log2(n)) is the exponent of n as a float64: bits 52 and up, less 1023; a tenth of the time of a logarithm. That
    # of 0, and of numbers below it, is less than -1000
    bucket = (gap_us // 1_000_000).astype(np.float64).view(np.int64) >> 52
    bucket -= 1021
    found = np.clip(bucket, 1, NUM_GAP_BUCKETS - 1, out=bucket).astype(np.uint8)
    found[gap_us < 0] = 0
    return found


def watch_buckets(watch_ratio: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Bucket watched time / duration; NaN means not known.

    Example:
        >>> watch_buckets(np.array([np.nan, 0.0, 0.5, 9.0])).tolist()
        [0, 1, 6, 11]
    """
    known = ~np.isnan(watch_ratio)
    if not known.any():
        return np.zeros(len(watch_ratio), np.uint8)
    bucket = 1 + np.searchsorted(_WATCH_EDGES, np.where(known, watch_ratio, 0.0), side="right")
    return np.where(known, bucket, 0).astype(np.uint8)


def behaviour_codes(signals: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Pack the declared yes/no signals of an event (click, like, follow …) into one code.

    Args:
        signals: ``[events, signals]``, at most :data:`MAX_SIGNALS` columns in the declared order.

    Returns:
        ``1 + sum(signal_j * 2**j)``; 0 is kept for "not known".

    Example:
        >>> behaviour_codes(np.array([[False, False], [True, False], [True, True]])).tolist()
        [1, 2, 4]
    """
    if signals.shape[1] > MAX_SIGNALS:
        raise ValueError(f"{signals.shape[1]} signals were declared, at most {MAX_SIGNALS} fit one behaviour code")
    weights = 1 << np.arange(signals.shape[1])
    return (1 + signals.astype(np.int64) @ weights).astype(np.uint8)
