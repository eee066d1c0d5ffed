"""Which lines are records: counted and checked over the bytes, before and apart from the parser.

Reads blocks of whole lines; produces the bytes of the good records, their line numbers, and the refused lines. A block costs
two or three vectorised passes; only lines that are not plainly right are looked at one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from features.reading.quoted_records import TOO_FEW, TOO_MANY, RecordReader

NUL_BYTE: Final = "a NUL byte"
HEADER_AGAIN: Final = "the header again"
LIKE_A_COMMENT: Final = "begins with '#' as a comment does, and is no record"

_COMMENT: Final = "a comment"
_LF, _CR, _BLANK = 10, 13, 32
_LEARN_LINES: Final = 200

Offsets = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RefusedLine:
    """A line (or several) that is no record: its number from 0, why, and what it says."""

    line: int
    reason: str
    text: bytes


@dataclass
class Scan:
    """What a block holds.

    Attributes:
        clean: The good records, for the parser.
        lines: ``[records]`` line, from 0, on which each good record begins.
        refused: In the order of the file.
        quoted: Whether the parser has to mind quotes.
        blank: Lines with nothing on them.
        comments: Lines that are remarks.
        wrapped: Good records that take several lines.
        used: How many bytes of the data were settled; the rest begins a record that the next block goes on with.
        used_lines: How many lines that is.
        plain: Whether the fields hold visible ASCII characters only; where it is false, they may.
    """

    clean: bytes
    lines: Offsets
    used: int
    used_lines: int
    refused: list[RefusedLine] = field(default_factory=list)
    quoted: bool = False
    blank: int = 0
    comments: int = 0
    wrapped: int = 0
    plain: bool = False


class LineScanner:
    """Checks the lines of one file, block after block.

    Args:
        separator: One byte.
        quote: One byte; ``None``: quotes are plain text.
        num_fields: How many fields a record has.
        header: The line of the header, refused when it stands there again; ``None`` when the file has none.
        comment: What remarks begin with; ``None``: there are none.
    """

    def __init__(
        self,
        separator: bytes,
        quote: bytes | None,
        num_fields: int,
        header: bytes | None = None,
        comment: bytes | None = None,
    ) -> None:
        self.comment = comment
        self.separator = separator
        self.quote = quote
        self.num_fields = num_fields
        self.header = header
        self.next_line = 0
        self._records = RecordReader(separator, quote or b"", num_fields)

    def scan(self, data: bytes, *, final: bool) -> Scan:
        """Check the lines of ``data``, which begins at the start of a record.

        Args:
            data: Whole lines; of the last block, the last line may lack its end.
            final: Whether nothing comes after it.
        """
        if data and not data.endswith(b"\n"):
            data += b"\n"
        array = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(array == _LF)
        quotes = np.flatnonzero(array == self.quote[0]) if self.quote is not None and self.quote in data else None
        if quotes is not None and not self._any_opening(array, quotes):
            quotes = None  # all of them stand inside of fields that do not begin with one
        counts, doubtful = self._count(array, ends, quotes)
        wanted = self.num_fields - 1
        bad = doubtful if counts is None else doubtful | (counts != wanted)
        marks = self._marked(data, array, ends)
        for line in marks:
            bad[line] = True
        if wanted == 0:
            bad |= np.diff(ends, prepend=-1) <= 2  # perhaps blank: one column has no separator that would tell
        self._learn(data, ends, bad)
        scan = Scan(data, np.empty(0, np.int64), len(data), len(ends), quoted=quotes is not None)
        scan.plain = counts is None and self._is_plain(data, array, len(ends))
        lines = np.arange(len(ends))
        if bad.any():
            lines = self._settle(data, ends, counts, bad, doubtful, marks, scan, final=final)
        scan.lines = lines + self.next_line
        self.next_line += scan.used_lines
        return scan

    def _is_plain(self, data: bytes, array: npt.NDArray[np.uint8], lines: int) -> bool:
        """Return whether all bytes are visible ASCII, beside the line ends and separators of records that are whole."""
        between = lines * (self.num_fields - 1) if self.separator[0] <= _BLANK else 0
        return data.isascii() and int(np.count_nonzero(array <= _BLANK)) == lines + between

    def _any_opening(self, array: npt.NDArray[np.uint8], quotes: Offsets) -> bool:
        before = array[np.maximum(quotes, 1) - 1]
        return bool(np.any((quotes == 0) | _is_any(before, _LF, self.separator[0], 32, 9)))

    def _count(
        self, array: npt.NDArray[np.uint8], ends: Offsets, quotes: Offsets | None
    ) -> tuple[Offsets | None, Mask]:
        """Count the separators of each line; ``None`` when all lines have the right number.

        Returns:
            ``[lines]`` separators outside quotes, and whether the quotes of the line need a closer look.
        """
        separators = array == self.separator[0]
        doubtful = np.zeros(len(ends), bool)
        if quotes is not None:
            inside = np.logical_xor.accumulate(array == self.quote[0])  # type: ignore[index]
            doubtful = self._doubtful(array, ends, quotes, inside)
            if doubtful.any():
                at_start = np.zeros(len(ends), bool)
                at_start[1:] = inside[ends[:-1]]
                places = np.flatnonzero(separators)
                line = np.searchsorted(ends, places)
                outside = inside[places] == at_start[line]
                return np.bincount(line[outside], minlength=len(ends)), doubtful
            separators &= ~inside
        places = np.flatnonzero(separators)
        wanted = self.num_fields - 1
        if len(places) == wanted * len(ends):
            if wanted == 0:
                return None, doubtful
            table = places.reshape(len(ends), wanted)
            if bool(np.all(table[1:, 0] > ends[:-1])) and bool(np.all(table[:, -1] < ends)):
                return None, doubtful
        return np.diff(np.searchsorted(places, ends), prepend=0), doubtful

    def _doubtful(self, array: npt.NDArray[np.uint8], ends: Offsets, quotes: Offsets, inside: Mask) -> Mask:
        """Mark lines that have an odd number of quotes, or one at a place where none is expected."""
        if not inside[ends].any() and self._regular(array, quotes):
            return np.zeros(len(ends), bool)
        line = np.searchsorted(ends, quotes)
        first = np.searchsorted(quotes, np.concatenate([[0], ends[:-1] + 1]))
        rank = np.arange(len(quotes)) - first[line]
        opens = rank % 2 == 0
        before = array[np.maximum(quotes, 1) - 1]
        after, second = array[quotes + 1], array[np.minimum(quotes + 2, len(array) - 1)]
        doubled_before = (rank > 0) & (np.diff(quotes, prepend=-2) == 1)
        starts_field = (quotes == 0) | _is_any(before, _LF, self.separator[0]) | doubled_before
        quote = self.quote[0]  # type: ignore[index]
        ends_field = _is_any(after, _LF, self.separator[0], quote) | ((after == _CR) & (second == _LF))
        wrong = np.where(opens, ~starts_field, ~ends_field)
        doubtful = np.zeros(len(ends), bool)
        doubtful[line[wrong]] = True
        doubtful |= inside[ends] != np.concatenate([[False], inside[ends[:-1]]])
        return doubtful

    def _regular(self, array: npt.NDArray[np.uint8], quotes: Offsets) -> bool:
        """Return whether every quote, in pairs over the whole block, stands where a field begins or ends."""
        opening, closing = quotes[0::2], quotes[1::2]
        before, after = array[np.maximum(opening, 1) - 1], array[closing + 1]
        begins = (opening == 0) | _is_any(before, _LF, self.separator[0])
        begins[1:] |= opening[1:] == closing[:-1] + 1
        if not begins.all():
            return False
        finishes = _is_any(after, _LF, self.separator[0], self.quote[0])  # type: ignore[index]
        if not finishes.all():
            left = closing[~finishes]
            return bool(np.all((array[left + 1] == _CR) & (array[np.minimum(left + 2, len(array) - 1)] == _LF)))
        return True

    def _marked(self, data: bytes, array: npt.NDArray[np.uint8], ends: Offsets) -> dict[int, str]:
        """Find lines that are refused for what they hold, whatever their number of fields."""
        marks: dict[int, str] = {}
        if self.comment is not None and self.comment in data:
            starts = np.concatenate([[0], ends[:-1] + 1])
            maybe = starts[array[starts] == self.comment[0]] if len(ends) else starts[:0]
            found = [start for start in maybe.tolist() if data.startswith(self.comment, start)]
            marks |= dict.fromkeys(np.searchsorted(ends, found).tolist(), _COMMENT)
        if b"\0" in data:
            for line in np.searchsorted(ends, np.flatnonzero(array == 0)).tolist():
                marks.setdefault(line, NUL_BYTE)
        if self.header is not None:
            place = data.find(self.header)
            while place >= 0:
                after = data[place + len(self.header) : place + len(self.header) + 2]
                if (place == 0 or data[place - 1] == _LF) and (after[:1] == b"\n" or after == b"\r\n"):
                    marks[int(np.searchsorted(ends, place))] = HEADER_AGAIN
                place = data.find(self.header, place + len(self.header))
        return marks

    def _learn(self, data: bytes, ends: Offsets, bad: Mask) -> None:
        if self.quote is not None:
            places = np.flatnonzero(~bad[:_LEARN_LINES])
            bounds = ((int(ends[i - 1]) + 1 if i else 0, int(ends[i])) for i in places)
            self._records.learn([data[begin:end] for begin, end in bounds])

    def _settle(
        self,
        data: bytes,
        ends: Offsets,
        counts: Offsets | None,
        bad: Mask,
        doubtful: Mask,
        marks: dict[int, str],
        scan: Scan,
        *,
        final: bool,
    ) -> Offsets:
        """Look at each line that is not plainly right; fill ``scan`` and return the lines that begin good records."""
        starts = np.concatenate([[0], ends[:-1] + 1])
        is_record = ~bad
        pieces: list[bytes] = []
        copied, settled = 0, 0
        first_view, end_view = starts.data, ends.data
        for line in np.flatnonzero(bad).data:
            if line < settled:
                continue
            begin, end = int(starts[line]), int(ends[line])
            text = data[begin:end]
            taken, replacement, reason = 1, b"", marks.get(line)
            if reason == _COMMENT:
                scan.comments, reason = scan.comments + 1, None
                is_record[line] = False
            elif not text.strip() and reason is None:
                scan.blank += 1
            elif reason is None and doubtful[line]:
                record = self._records.read(data, first_view, end_view, line, final=final)
                if record.incomplete:
                    is_record[line:] = False
                    scan.used, scan.used_lines = begin, line
                    break
                taken, reason = record.lines, record.reason
                end = int(ends[line + taken - 1])
                text = data[begin:end]
                if record.fields is not None:
                    is_record[line : line + taken] = False
                    is_record[line] = True
                    scan.wrapped += taken > 1
                    replacement = data[begin : end + 1] if record.as_written else self._records.written(record.fields)
                else:
                    is_record[line : line + taken] = False
            elif reason is None:
                missing = 0 if counts is None else self.num_fields - 1 - int(counts[line])
                if missing == 0:
                    is_record[line] = True
                    continue
                reason = TOO_FEW if missing > 0 else TOO_MANY
                if self.comment is None and text.startswith(b"#"):
                    reason = LIKE_A_COMMENT
            if reason is not None:
                scan.refused.append(RefusedLine(self.next_line + line, reason, text.rstrip(b"\r")))
            pieces += [piece for piece in (data[copied:begin], replacement) if piece]
            copied, settled = end + 1, line + taken
        pieces.append(data[copied : scan.used])
        scan.clean = b"".join(pieces)
        return np.flatnonzero(is_record)


def _is_any(values: npt.NDArray[np.uint8], *wanted: int) -> Mask:
    result = values == wanted[0]
    for value in wanted[1:]:
        result |= values == value
    return result
