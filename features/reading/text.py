"""Text tables: CSV, TSV and files with any other separator, several files as one table, every value as it is written.

The lines are checked and counted over the bytes (:mod:`features.reading.text_lines`); Polars splits the good ones into
fields; both counts must agree. Reads files; produces batches of text columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from features.reading.errors import explain_file_errors
from features.reading.files import hive_keys, place_of, relative_name, source_names
from features.reading.opened import FILE, PLACE_TYPES, RAW, REFUSED, ROW, OpenedTable
from features.reading.text_bytes import BLOCK_BYTES, read_blocks
from features.reading.text_format import TextFormat
from features.reading.text_header import SUBSTITUTES, TextHeader, read_header
from features.reading.text_lines import LineScanner, RefusedLine, Scan
from recsys.contracts.errors import DataError

SHOWN_BYTES: Final = 2000
"""How much of a refused line is kept."""


def open_text(
    paths: Sequence[Path], root: Path, text: TextFormat | None = None, where: str | None = None
) -> OpenedTable:
    """Open text files as one table.

    Columns are found by the names in each file's header, so the files may have them in another order, and a file may have
    more. A file without bytes among others is skipped.

    Args:
        paths: In the order in which they are to be read.
        root: Folder that relative paths start from.
        text: How the files are written; ``TextFormat()`` for ``None``.
        where: For messages; the first path for ``None``.

    Raises:
        DataError: A file is missing, empty, no text, of another encoding or separator; or one of several files has no
            header.
    """
    return TextTable(paths, root, text or TextFormat(), where or str(paths[0]))


@dataclass
class _Facts:
    """What was met in one file."""

    records: int = 0
    refused: int = 0
    blank: int = 0
    comments: int = 0
    wrapped: int = 0


@dataclass(frozen=True)
class _Sources:
    """Where the asked columns stand in one file: name -> place of the field, or a value that is the same in all rows."""

    fields: dict[str, int] = field(default_factory=dict)
    constants: dict[str, str | None] = field(default_factory=dict)


class TextTable(OpenedTable):
    """See :func:`open_text`."""

    is_text = True

    def __init__(self, paths: Sequence[Path], root: Path, text: TextFormat, where: str) -> None:
        self.text = text
        self.empty_files: list[str] = []
        self._paths: list[Path] = []
        self._headers: list[TextHeader] = []
        self._facts: dict[int, _Facts] = {}
        self._plain = False
        for path in paths:
            with explain_file_errors(path):
                if path.stat().st_size == 0 and len(paths) > 1:
                    self.empty_files.append(relative_name(path, root))
                    continue
                self._headers.append(read_header(path, text))
                self._paths.append(path)
        if not self._paths:
            raise DataError(f"{where}: all {len(paths)} files are empty (0 bytes)")
        files = source_names(self._paths, root)
        self._hive = [hive_keys(name) for name in files]
        names = dict.fromkeys(name for header in self._headers for name in header.names if name)
        names |= dict.fromkeys(name for keys in self._hive for name in keys)
        _check_headers(self._paths, self._headers, text.remedy)
        super().__init__(where, files, dict.fromkeys(names, pl.String()))

    @property
    def notes(self) -> dict[str, object]:
        """See :attr:`OpenedTable.notes`."""
        facts = self._facts.values()
        found: dict[str, object] = {
            "malformed_lines": sum(fact.refused for fact in facts),
            "blank_lines": sum(fact.blank for fact in facts),
            "comment_lines": sum(fact.comments for fact in facts),
            "records_over_several_lines": sum(fact.wrapped for fact in facts),
            "header_names_with_blanks": sorted({name for header in self._headers for name in header.stripped}),
            "empty_files": self.empty_files,
            "ignored_files": list(self.ignored),
            "rows_without_column": self.rows_without,
        }
        return {name: value for name, value in found.items() if value}

    @property
    def plain(self) -> bool:
        """See :attr:`OpenedTable.plain`."""
        return self._plain

    def batches(self, columns: Sequence[str], only: Collection[str] | None = None) -> Iterator[pl.DataFrame]:
        """See :meth:`OpenedTable.batches`."""
        self.check_asked(columns)
        places = self.chosen(only)
        sources = {place: self._sources(place, columns) for place in places}
        first: str | None = None
        good = False
        for place in places:
            with explain_file_errors(self._paths[place]):
                rows = 0
                for batch in self._read(place, columns, sources[place]):
                    rows += len(batch)
                    good = good or batch[REFUSED].null_count() > 0
                    if not good and first is None:
                        first = self._describe(batch)
                    yield batch
                self.lacks(place, sources[place].constants.keys() - self._hive[place].keys(), rows)
        if first is not None and not good:
            raise DataError(f"{self.where}: no line is a record. {first}")

    def _describe(self, batch: pl.DataFrame) -> str:
        """Phrase what is wrong with the first line of a batch."""
        place, row, reason, raw = batch.select(FILE, ROW, REFUSED, RAW).row(0)
        names = self._headers[place].names
        return (
            f"{place_of(self.files[place], row)}, is refused ({reason}): {raw[:200]!r}; the header has {len(names)} names: "
            f"{', '.join(names[:12])}. Mend the header or "
            f"{self.text.remedy or 'set source.separator, source.quote or source.header'}"
        )

    def _sources(self, place: int, columns: Sequence[str]) -> _Sources:
        header, found = self._headers[place], _Sources()
        for name in columns:
            if name in header.twice:
                raise DataError(
                    f"'{self._paths[place]}': column '{name}' stands {header.names.count(name)} times in the header; "
                    "rename the ones that are not meant"
                )
            if name in header.places:
                found.fields[name] = header.places[name]
            else:
                found.constants[name] = self._hive[place].get(name)
        return found

    def _read(self, place: int, columns: Sequence[str], sources: _Sources) -> Iterator[pl.DataFrame]:
        path, header = self._paths[place], self._headers[place]
        facts = self._facts[place] = _Facts(comments=header.comments)
        comment = self.text.comment.encode() if self.text.comment is not None else None
        quote = self.text.quote.encode() if self.text.quote is not None else None
        separator = self.text.separator.encode()
        scanner: LineScanner | None = None
        rest, skip, total_lines, last = b"", header.lines, 0, b""
        for block in read_blocks(path, self.text.encoding, BLOCK_BYTES, declarable=self.text.encoding_key):
            total_lines += block.data.count(b"\n")
            last = block.data or last
            data = rest + block.data
            data, single = one_byte_separator(data, separator, path)
            if scanner is None or scanner.separator != single:
                scanner = _follow(
                    scanner, LineScanner(single, quote, header.num_fields, header.line_with(single), comment)
                )
            if skip:
                data, skipped = drop_lines(data, skip)
                scanner.next_line += skipped
                skip -= skipped
            scan = scanner.scan(data, final=block.final)
            rest = data[scan.used :]
            if single != separator:
                rest = rest.replace(single, separator)
            facts.records += len(scan.lines)
            facts.refused += len(scan.refused)
            facts.blank += scan.blank
            facts.comments += scan.comments
            facts.wrapped += scan.wrapped
            if len(scan.lines) or scan.refused:
                self._plain = scan.plain and all(value is None for value in sources.constants.values())
                yield self._batch(place, columns, sources, scan, single, separator)
        total_lines += bool(last) and not last.endswith(b"\n")
        settled = scanner.next_line if scanner is not None else 0
        if rest or settled != total_lines:
            raise DataError(
                f"'{path}': the file has {total_lines} lines, and {settled} of them were settled; no line may be lost: "
                "write the file again as Parquet, and report the fault of the reader"
            )

    def _batch(
        self, place: int, columns: Sequence[str], sources: _Sources, scan: Scan, single: bytes, separator: bytes
    ) -> pl.DataFrame:
        fields = self._parse(place, sorted(set(sources.fields.values())), scan, single)
        if single != separator and scan.quoted:  # inside quotes the separator is text
            fields = fields.with_columns(pl.all().str.replace_all(single.decode(), separator.decode(), literal=True))
        good = fields.select(
            *(pl.col(f"{sources.fields[name]}").alias(name) for name in columns if name in sources.fields),
            *(pl.lit(value, pl.String).alias(name) for name, value in sources.constants.items()),
            pl.lit(place, pl.Int32).alias(FILE),
            pl.Series(ROW, scan.lines),
            pl.lit(None, pl.String).alias(REFUSED),
            pl.lit(None, pl.String).alias(RAW),
        ).select(*columns, *PLACE_TYPES)
        if not scan.refused:
            return good
        refused = _refused_rows(scan.refused, place, columns, single, separator)
        return pl.concat([good, refused]).sort(ROW, maintain_order=True)

    def _parse(self, place: int, wanted: list[int], scan: Scan, single: bytes) -> pl.DataFrame:
        """Split the good records into fields, and hold the parser to the number of records that were counted."""
        schema = {str(number): pl.String() for number in range(self._headers[place].num_fields)}
        if not len(scan.lines):
            return pl.DataFrame(schema=schema)
        parsed = pl.read_csv(
            scan.clean,
            has_header=False,
            schema=schema,
            columns=wanted or [0],
            separator=single.decode(),
            quote_char=self.text.quote if scan.quoted else None,
            infer_schema=False,
        )
        if len(parsed) != len(scan.lines):
            first = int(scan.lines[0]) + 1
            raise DataError(
                f"'{self._paths[place]}': {len(scan.lines)} records were counted from line {first} on, and the parser gave "
                f"{len(parsed)}; no record may be lost: write the file again with every text field in quotes, or as Parquet"
            )
        return parsed


def one_byte_separator(data: bytes, separator: bytes, path: Path) -> tuple[bytes, bytes]:
    """Put one byte that the data do not hold in the place of a longer separator.

    Returns:
        The data and the byte.

    Raises:
        DataError: All control characters are in use; then the file is no text.
    """
    if len(separator) == 1:
        return data, separator
    for substitute in SUBSTITUTES:
        if substitute not in data:
            return data.replace(separator, substitute), substitute
    raise DataError(f"'{path}' holds all control characters, so it is no text file; check its format")


def drop_lines(data: bytes, count: int) -> tuple[bytes, int]:
    """Return the data behind the first ``count`` lines, and how many lines that were."""
    place, dropped = 0, 0
    while dropped < count and place < len(data):
        end = data.find(b"\n", place)
        place = len(data) if end < 0 else end + 1
        dropped += 1
    return data[place:], dropped


def _follow(before: LineScanner | None, scanner: LineScanner) -> LineScanner:
    if before is not None:
        scanner.next_line = before.next_line
    return scanner


def _refused_rows(
    refused: list[RefusedLine], place: int, columns: Sequence[str], single: bytes, separator: bytes
) -> pl.DataFrame:
    texts = [line.text[:SHOWN_BYTES].replace(single, separator).decode("utf-8", "replace") for line in refused]
    return pl.DataFrame(
        {
            **{name: pl.Series([None] * len(refused), dtype=pl.String) for name in columns},
            FILE: pl.Series([place] * len(refused), dtype=pl.Int32),
            ROW: pl.Series(np.array([line.line for line in refused], np.int64)),
            REFUSED: pl.Series([line.reason for line in refused], dtype=pl.String),
            RAW: pl.Series(texts, dtype=pl.String),
        }
    )


def _check_headers(paths: Sequence[Path], headers: Sequence[TextHeader], remedy: str) -> None:
    """Refuse a file whose first line shares no name with the first file's header: it is data, and would be lost."""
    first = headers[0]
    for path, header in zip(paths[1:], headers[1:], strict=True):
        if first.places and not set(header.places) & set(first.places):
            raise DataError(
                f"'{path}' shares no column with '{paths[0]}': its first line is {', '.join(header.names[:8])}, there it is "
                f"{', '.join(first.names[:8])}; put the header on every file, or "
                f"{remedy or 'give the names as source.header and take them out of the files'}"
            )
