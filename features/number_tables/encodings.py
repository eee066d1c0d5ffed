"""How the values of a column become the bytes of a Parquet page.

Reads arrays; produces what the format calls PLAIN, DELTA_BINARY_PACKED, and the definition levels that say which values are
there. Every function has two forms that give the same bytes: NumPy, and a kernel of :mod:`recsys.native.columns` where
those are compiled.

Source: the Parquet format, ``Encodings.md``: plain (0), RLE / bit-packing hybrid (3), delta encoding (5).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.native import columns as native

Bytes = npt.NDArray[np.uint8]
BLOCK: Final = 128
MINIBLOCK: Final = 32
_PER_BLOCK: Final = BLOCK // MINIBLOCK
_MOST_VARINT: Final = 10


def varint(number: int) -> bytes:
    """Return a whole number of 0 and more in groups of seven bits, the lowest first.

    Example:
        >>> varint(1).hex(), varint(300).hex()
        ('01', 'ac02')
    """
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def zigzag(number: int) -> int:
    """Return 0, 1, 2, 3, 4 for 0, -1, 1, -2, 2, so that numbers near 0 are short.

    Example:
        >>> [zigzag(number) for number in (0, -1, 1, -2)]
        [0, 1, 2, 3]
    """
    return 2 * number if number >= 0 else -2 * number - 1


def bits(values: npt.NDArray[np.bool_]) -> bytes:
    """Return Booleans as PLAIN stores them: eight to a byte, the first one lowest."""
    return np.packbits(values, bitorder="little").tobytes()


def levels(known: npt.NDArray[np.bool_] | None, count: int) -> bytes:
    """Return the definition levels of a page: one bit per value, whether it is there.

    Args:
        known: ``[count]``; ``None``: all are there.
        count: Values of the page.

    Example:
        Three values that are all there are one run; with a null, they are bits.

        >>> levels(None, 3).hex(), levels(np.array([True, False, True]), 3).hex()
        ('020000000601', '020000000305')
    """
    if known is None or known.all():
        run = varint(count << 1) + b"\x01"
    elif not known.any():
        run = varint(count << 1) + b"\x00"
    else:
        run = varint((count + 7) // 8 << 1 | 1) + bits(known)
    return len(run).to_bytes(4, "little") + run


def delta_packed(*parts: npt.NDArray[Any]) -> bytes:
    """Return whole numbers as differences, in as few bits as those of 32 neighbours need.

    Args:
        parts: ``[N]`` int8, uint8, int32 or int64 in one part or several; those of one byte are stored as int32, as the
            format asks.

    Example:
        Four numbers: block, miniblocks and count, the first number 5, least difference 1, and one bit for each difference
        beyond it: 0, 0, 1.

        >>> delta_packed(np.array([5, 6, 7, 9], np.int32)).hex()
        '800104040a020100000004000000'
    """
    if native.available():
        return native.delta_packed(*map(np.ascontiguousarray, parts))
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    values = values.astype(np.int32, copy=False) if values.dtype.itemsize == 1 else values
    first = zigzag(int(values[0])) if len(values) else 0
    head = varint(BLOCK) + varint(_PER_BLOCK) + varint(len(values)) + varint(first)
    return head if len(values) < 2 else head + _blocks(values[1:] - values[:-1])


def _blocks(steps: npt.NDArray[Any]) -> bytes:
    """Return the blocks of differences, which wrap around as their type does."""
    count, blocks = len(steps), -(-len(steps) // BLOCK)
    padded = np.full(blocks * BLOCK, np.iinfo(steps.dtype).max, steps.dtype)
    padded[:count] = steps
    least = padded.reshape(blocks, BLOCK).min(axis=1)
    beyond = (padded.reshape(blocks, BLOCK) - least[:, None]).view(f"u{steps.dtype.itemsize}").reshape(-1)
    beyond[count:] = 0
    small = beyond.reshape(-1, MINIBLOCK)
    width = _bit_lengths(small.max(axis=1))
    heads, head_sizes = _varints(least.astype(np.int64))
    there = np.arange(len(width)) * MINIBLOCK < count  # miniblocks behind the last value are not written
    sizes = np.where(there, width.astype(np.int64) * (MINIBLOCK // 8), 0).reshape(blocks, _PER_BLOCK)
    block_sizes = head_sizes + _PER_BLOCK + sizes.sum(axis=1)
    begins = np.cumsum(block_sizes) - block_sizes
    out = np.zeros(int(block_sizes.sum()), np.uint8)
    for place in range(_MOST_VARINT):
        has = head_sizes > place
        out[begins[has] + place] = heads[has, place]
    widths_at = begins + head_sizes
    for place in range(_PER_BLOCK):
        out[widths_at + place] = width.reshape(blocks, _PER_BLOCK)[:, place]
    small_at = (widths_at + _PER_BLOCK)[:, None] + np.cumsum(sizes, axis=1) - sizes
    _pack(out, small, width, there, small_at.reshape(-1))
    return out.tobytes()


def _pack(
    out: Bytes, small: npt.NDArray[Any], width: Bytes, there: npt.NDArray[np.bool_], at: npt.NDArray[np.int64]
) -> None:
    """Write the miniblocks of each width at once."""
    for bit_width in np.unique(width[there]).tolist():
        if bit_width == 0:
            continue
        rows = np.flatnonzero(there & (width == bit_width))
        shifts = np.arange(bit_width, dtype=small.dtype)
        apart = (small[rows][:, :, None] >> shifts & small.dtype.type(1)).astype(np.uint8)
        packed = np.packbits(apart.reshape(len(rows), -1), axis=1, bitorder="little")
        out[at[rows][:, None] + np.arange(packed.shape[1])] = packed


def _bit_lengths(values: npt.NDArray[Any]) -> Bytes:
    lengths = np.zeros(len(values), np.uint8)
    for bit in range(8 * values.dtype.itemsize):
        lengths[values >> values.dtype.type(bit) != 0] = bit + 1
    return lengths


def _varints(numbers: npt.NDArray[np.int64]) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Return ``[N, 10]`` bytes of numbers as zigzag varints, and ``[N]`` how many count."""
    left = (numbers << 1 ^ numbers >> 63).view(np.uint64)
    found, sizes = np.zeros((len(numbers), _MOST_VARINT), np.uint8), np.ones(len(numbers), np.int64)
    for place in range(_MOST_VARINT):
        more = left > 0x7F
        found[:, place] = (left & np.uint64(0x7F)).astype(np.uint8) | more.astype(np.uint8) << 7
        left >>= np.uint64(7)
        sizes += more
    return found, sizes
