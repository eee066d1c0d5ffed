"""A sample of a set of ids that is the same sample every night, so that two nights can be compared by a small file.

The ids with the smallest hashes are kept (bottom-k, also called a KMV sketch). Of two sets the hashes below the smaller of
their two largest kept ones are a fair sample of both, and what they share there estimates what the sets share. Sets of at
most :data:`SIZE` ids are kept whole, and the answer is exact. The hash reads the id's text, so 7 and "7" are the same id.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

HashArray = npt.NDArray[np.uint64]

SIZE: Final = 2048
"""Ids kept: a share of one half is known to within 2 per cent points."""

SHAPES_KEPT: Final = 4

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class IdSketch:
    """A sample of a set of ids.

    Attributes:
        count: Ids in the set.
        hashes: The smallest hashes, ascending, at most :data:`SIZE`.
        shapes: Share of the sampled ids by the form of their text, the most frequent first, for example ``{"a9": 1.0}``.
    """

    count: int
    hashes: tuple[int, ...]
    shapes: dict[str, float]


def sketch(ids: pl.Series) -> IdSketch:
    """Sample distinct ids, integers or text; nulls are left out.

    Example:
        >>> found = sketch(pl.Series([7, 12, 105]))
        >>> found.count, found.shapes
        (3, {'9': 1.0})
    """
    texts = ids.drop_nulls().cast(pl.String)
    hashes = text_hashes(texts)
    order = np.argsort(hashes, kind="stable")[:SIZE] if len(hashes) <= SIZE else _smallest(hashes)
    kept = texts.gather(order)
    shapes = Counter(_shapes(kept).to_list())
    most = sorted(shapes.items(), key=lambda pair: (-pair[1], pair[0]))[:SHAPES_KEPT]
    return IdSketch(
        count=len(texts),
        hashes=tuple(hashes[order].tolist()),
        shapes={shape: round(number / len(kept), 4) for shape, number in most},
    )


def shared_share(before: IdSketch, now: IdSketch) -> float:
    """Return which share of the smaller set is in the other one, 1.0 when either is empty.

    The smaller one, so that neither growth nor a shorter window of the same users looks like other users.

    Example:
        >>> shared_share(sketch(pl.Series([1, 2, 3, 4])), sketch(pl.Series(["1", "2", "9"])))
        0.6666666666666666
    """
    if not before.count or not now.count:
        return 1.0
    limits = [each.hashes[-1] for each in (before, now) if each.count > len(each.hashes)]
    limit = min(limits) if limits else None
    left, right = ({value for value in each.hashes if limit is None or value <= limit} for each in (before, now))
    return len(left & right) / max(min(len(left), len(right)), 1)


def shape_of(text: str) -> str:
    """Return the form of an id: a run of digits as 9, of small letters as a, of capitals as A, the rest as it is.

    Example:
        >>> shape_of("A-u0042"), shape_of("B00XYZ")
        ('A-a9', 'A9A')
    """
    return str(_shapes(pl.Series([text])).item())


def _shapes(texts: pl.Series) -> pl.Series:
    for run, sign in (("[0-9]+", "9"), ("[a-z]+", "a"), ("[A-Z]+", "A")):
        texts = texts.str.replace_all(run, sign)
    return texts.str.slice(0, 40)


def text_hashes(texts: pl.Series) -> HashArray:
    """Return a 64-bit hash of every text, the same on every machine and with every library.

    A sum of the UTF-8 bytes, each times an odd random number of its place, then mixed.
    """
    if not len(texts):
        return np.empty(0, np.uint64)
    lengths = texts.str.len_bytes().to_numpy().astype(np.int64)
    data = np.frombuffer(texts.str.join("").item().encode(), np.uint8)
    factors = mix(np.arange(int(lengths.max(initial=0)) + 1, dtype=np.uint64)) | np.uint64(1)
    sums = (
        _sums_of_one_length(data, len(texts), factors)
        if (lengths == lengths[0]).all()
        else _sums(data, lengths, factors)
    )
    return mix(sums + lengths.astype(np.uint64))


def _sums_of_one_length(data: npt.NDArray[np.uint8], rows: int, factors: HashArray) -> HashArray:
    """The sums of texts that are equally long, as most catalogues' ids are: a tenth of the time of :func:`_sums`."""
    sums = np.zeros(rows, np.uint64)
    for place, column in enumerate(data.reshape(rows, -1).T):
        sums += (column.astype(np.uint64) + np.uint64(1)) * factors[place]
    return sums


def _sums(data: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64], factors: HashArray) -> HashArray:
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    values = (data.astype(np.uint64) + np.uint64(1)) * factors[place]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    return sums[starts + lengths] - sums[starts]


def mix(values: HashArray) -> HashArray:
    """Spread every number over 64 bits (the finaliser of splitmix64; overflow is meant)."""
    with np.errstate(over="ignore"):
        z = values * _GOLDEN + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return z ^ (z >> np.uint64(31))


def _smallest(hashes: HashArray) -> npt.NDArray[np.int64]:
    places = np.argpartition(hashes, SIZE)[:SIZE]
    return places[np.argsort(hashes[places], kind="stable")]
