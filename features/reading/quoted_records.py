"""Records with quotes that are not plainly right: read one by one, field by field, over several lines if need be.

Reads lines that :mod:`features.reading.text_lines` could not settle at once; produces the fields of a record, or why there
are none. The rules, those of RFC 4180 where it says anything:

- a field that begins with a quote ends at the next quote that is not doubled; blanks beside the two quotes do not count;
- a quote inside a field that does not begin with one is plain text (``27" wide``);
- a quoted field may hold line ends. If one of the lines it would take in is a record by itself (as many fields as there are
  columns, and numbers where the other records have numbers; where no column holds numbers, all of the lines; but not a line
  whose first quote ends a field behind no number), the quote was never closed: the line that opens it is refused, and the
  next line is read as a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LONGEST_RECORD: Final = 4 << 20  # bytes; a quoted field that goes on for longer was not meant to

UNCLOSED: Final = "a quote is not closed"
BEHIND_QUOTE: Final = "text behind a closing quote"
TOO_FEW: Final = "too few fields"
TOO_MANY: Final = "too many fields"

_NUMBER: Final = re.compile(rb'\s*"?[+-]?\d+(?:\.\d+)?"?\s*')
_SAMPLE: Final = 200
_BLANKS: Final = b" \t"
_LF, _CR = 10, 13

Offsets = Sequence[int] | memoryview
"""Whole numbers of Python; of an array a view is enough, where a list of six million lines would take half a gigabyte."""


@dataclass(frozen=True)
class Record:
    """One record that was read slowly.

    Attributes:
        fields: Its fields without their quotes; ``None`` when it is refused or incomplete.
        lines: How many lines it takes.
        reason: Why it is refused.
        as_written: Whether the bytes of the file can be given to the parser as they are.
    """

    fields: list[bytes] | None
    lines: int
    reason: str | None = None
    as_written: bool = True

    @property
    def incomplete(self) -> bool:
        """Whether the data end inside of a quoted field, so that more has to be read first."""
        return self.fields is None and self.reason is None


class RecordReader:
    """Reads single records.

    Args:
        separator: One byte.
        quote: One byte.
        num_fields: How many fields a record has; 0: not known yet, as for a header.
    """

    def __init__(self, separator: bytes, quote: bytes, num_fields: int) -> None:
        self.separator = separator
        self.quote = quote
        self.num_fields = num_fields
        self._numbers: tuple[int, ...] | None = None

    def learn(self, lines: Sequence[bytes]) -> None:
        """Remember which fields hold numbers in records that are right; the first lines decide."""
        if self._numbers is not None or not lines:
            return
        rows = [line.split(self.separator) for line in lines[:_SAMPLE]]
        rows = [row for row in rows if len(row) == self.num_fields]
        if rows:
            columns = range(self.num_fields)
            self._numbers = tuple(j for j in columns if all(_NUMBER.fullmatch(row[j]) for row in rows))

    def record_like(self, line: bytes) -> bool:
        """Return whether a line inside of a quoted field is a record by itself, with numbers where the others have them."""
        if self.quote not in line:
            fields = line.split(self.separator)
        elif self._ends_a_field(line):
            return False
        else:
            alone = RecordReader(self.separator, self.quote, 0).read(line + b"\n", [0], [len(line)], 0, final=True)
            if alone.fields is None:
                return False
            fields = alone.fields
        return len(fields) == self.num_fields and all(_NUMBER.fullmatch(fields[j]) for j in self._numbers or ())

    def _ends_a_field(self, line: bytes) -> bool:
        """Return whether the first quote of a line closes a field that began on a line before: it opens none here.

        Numbers in front of it, where the other records have numbers, speak against it: ``7,1700000000,nice"``.
        """
        before, found, after = line.replace(self.quote * 2, b"").partition(self.quote)
        return (
            bool(found and before)
            and not before.endswith(self.separator)
            and not any(column < before.count(self.separator) for column in self._numbers or ())
            and after.strip((_BLANKS + b"\r").replace(self.separator, b""))[:1] in (b"", self.separator)
        )

    def _could_tell(self) -> bool:
        """Whether lines of prose are unlikely to pass for records: of two texts, one comma would do."""
        return self.num_fields > 2 and not self._numbers

    def read(self, data: bytes, starts: Offsets, ends: Offsets, first: int, *, final: bool) -> Record:
        """Read the record that begins on line ``first``.

        Args:
            data: Whole lines, each with its line end.
            starts, ends: Offsets of the first byte and of the line end of every line.
            first: Place of the line.
            final: Whether nothing comes after ``data``.
        """
        fields: list[bytes] = []
        place, line, as_written = starts[first], first, True
        while True:
            begin = place
            while data[begin] in _BLANKS and data[begin : begin + 1] != self.separator:
                begin += 1
            if data[begin : begin + 1] == self.quote:
                close, line, record = self._closing(data, starts, ends, first, line, begin, final=final)
                if record is not None:
                    return record
                after = close + 1
                while data[after] in _BLANKS and data[after : after + 1] != self.separator:
                    after += 1
                as_written &= begin == place and after == close + 1
                end = self._field_end(data, after, ends[line])
                if end is None:
                    return Record(None, 1, UNCLOSED if line > first else BEHIND_QUOTE)
                fields.append(data[begin + 1 : close].replace(self.quote * 2, self.quote))
            else:
                end = data.find(self.separator, place, ends[line])
                if end < 0:
                    end = ends[line] - (ends[line] > place and data[ends[line] - 1] == _CR)
                fields.append(data[place:end])
                as_written &= self.quote not in fields[-1]
            if end >= ends[line] - 1 and data[end : end + 1] != self.separator:
                taken_in = (data[starts[k] : ends[k]] for k in range(first + 1, line + 1))
                if line > first and self._could_tell() and all(map(self.record_like, taken_in)):
                    return Record(None, 1, UNCLOSED)
                return self._checked(fields, line - first + 1, as_written=as_written)
            place = end + 1

    def _checked(self, fields: list[bytes], lines: int, *, as_written: bool) -> Record:
        if self.num_fields and len(fields) != self.num_fields:
            return Record(None, lines, TOO_FEW if len(fields) < self.num_fields else TOO_MANY)
        return Record(fields, lines, as_written=as_written)

    def _closing(
        self,
        data: bytes,
        starts: Offsets,
        ends: Offsets,
        first: int,
        line: int,
        begin: int,
        *,
        final: bool,
    ) -> tuple[int, int, Record | None]:
        """Find the closing quote: its offset and its line, or the record that says why there is none."""
        search = begin + 1
        while True:
            close = data.find(self.quote, search)
            while close < 0 or close > ends[line]:
                line += 1
                if line >= len(ends):
                    too_long = len(data) - starts[first] > LONGEST_RECORD
                    return 0, line, Record(None, 1, UNCLOSED if final or too_long else None)
                if self._numbers and self.record_like(data[starts[line] : ends[line]]):
                    return 0, line, Record(None, 1, UNCLOSED)
                if starts[line] - starts[first] > LONGEST_RECORD:
                    return 0, line, Record(None, 1, UNCLOSED)
            if data[close + 1 : close + 2] != self.quote:
                return close, line, None
            search = close + 2

    def _field_end(self, data: bytes, after: int, line_end: int) -> int | None:
        """Return where the field ends, or ``None`` if more text follows the closing quote."""
        if data[after : after + 1] == self.separator or after == line_end:
            return after
        return after if data[after] == _CR and after + 1 == line_end else None

    def written(self, fields: Sequence[bytes]) -> bytes:
        """Write a record so that any parser reads it, with its line end."""
        doubled = (field.replace(self.quote, self.quote * 2) for field in fields)
        return self.separator.join(self.quote + field + self.quote for field in doubled) + b"\n"
