"""Random tables through `prepare`: every row is accounted for, ids come back as written, order is what a plain reader finds.

The expectation is made without the code under test: Python's :mod:`csv`, dictionaries and :func:`sorted`.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from features.build import FeaturesConfig, prepare
from features.sources import RecBoleSource, TableSource
from recsys.contracts.dataset import Dataset
from recsys.contracts.null_markers import NULL_MARKERS
from recsys.contracts.plain_text import SURROUNDINGS

START = 1_650_000_000
ANCHOR = [("anchor", "a", START), ("anchor", "b", START + 1), ("anchor", "c", START + 2)]
"""A user with three events, so that validation and test are never empty."""

SPECIAL = (
    *(
        "007",
        "7",
        "7.0",
        "1e5",
        "true",
        "True",
        "NA",
        "na",
        "null",
        "nan",
        "-",
        "0x1F",
        "inf",
        "\\N",
        "",
        " 7 ",
        "\ufeff7",
    ),
    *(
        "#1",
        "a,b",
        "a;b",
        "a\tb",
        "a|b",
        'a"b',
        '"',
        '""',
        "'",
        "a\nb",
        "a\r\nb",
        "é",
        "e\u0301",
        "中",
        "\u202eabc",
        "𝔘7",
    ),
    *("A", "a", "\u200b", "user_id", "9" * 20, "2022-05-01", "=1+1", "\\", "a\\", "{}", "[1]"),
)
CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"), include_characters="\t\n,;|\"'")
IDS = st.one_of(st.sampled_from(SPECIAL), st.text(CHARACTERS, max_size=6))
Row = tuple[str, str, int]
ROWS = st.lists(st.tuples(IDS, IDS, st.integers(0, 5).map(lambda day: START + day)), max_size=25)


def meant(written: str) -> str | None:
    """What an id is without what surrounds it; ``None`` where it stands for nobody."""
    bare = written.strip(SURROUNDINGS)
    return None if not bare or bare in NULL_MARKERS else bare


@dataclass(frozen=True)
class Expected:
    """What a plain reader finds.

    Attributes:
        sequences: User -> items in order of time; equal times as they stand in the file, repeats of an event once.
        nobody: Rows without a user or an item.
        repeats: Rows of the same user, item and time as an earlier one.
    """

    sequences: dict[str, list[str]]
    nobody: int
    repeats: int


def plain_reader(rows: list[Row]) -> Expected:
    known = [(meant(user), meant(item), time) for user, item, time in rows]
    usable = [row for row in known if row[0] is not None and row[1] is not None]
    once = list(dict.fromkeys(usable))
    sequences: dict[str, list[str]] = {}
    for user, item, _ in sorted(once, key=lambda row: row[2]):
        sequences.setdefault(str(user), []).append(str(item))
    return Expected(sequences, len(rows) - len(usable), len(usable) - len(once))


def check(source: Any, rows: list[Row], out: Path) -> None:
    """Prepare and compare."""
    config = FeaturesConfig(split={"kind": "leave_last_out"}, quarantine={"max_share": 1.0})
    report = prepare(source, config, out, seed=0)
    expected = plain_reader(rows)
    data = Dataset.open(out)
    quarantined = sum(report["quarantined"].values())
    assert report["rows_in"] == len(rows)
    assert (quarantined, report["merged"], report["k_core_removed"]) == (expected.nobody, expected.repeats, 0)
    assert report["kept"] + quarantined + report["merged"] == len(rows)
    assert pl.read_parquet(out / "quarantine.parquet").height == quarantined
    items, users = data.items["item_id"], data.users["user_id"].to_list()
    found = {
        user: items.gather(data.history.item[begin:end]).to_list()
        for user, begin, end in zip(users, data.history.offsets[:-1], data.history.offsets[1:], strict=True)
    }
    assert found == expected.sequences
    assert users == sorted(expected.sequences, key=str.encode)


def as_csv(rows: list[Row], separator: str, quoting: int, line_end: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=line_end)
    writer.writerow(["user_id", "item_id", "timestamp"])
    writer.writerows(rows)
    return text.getvalue()


@given(
    rows=ROWS,
    separator=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
@example(
    rows=[("a\nb", '"', START), (" 7 ", "007", START), ("", "x", START)],
    separator=",",
    quoting=0,
    line_end="\n",
    bom=True,
)
@example(rows=[("a\nb", "007", START), ("x\n", "\n", START)], separator="\t", quoting=0, line_end="\n", bom=False)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[Row], separator: str, quoting: int, line_end: str,
             bom: bool) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("csv")
    table = [*rows, *ANCHOR]
    text = as_csv(table, separator, quoting, line_end)
    (folder / "log.csv").write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    back = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))[1:]
    written = [(user, item, int(time)) for user, item, time in back]
    source = TableSource(path=folder / "log.csv", separator=separator, timestamp_unit="s")
    check(source, written, folder / "out")


@given(rows=ROWS, parts=st.integers(1, 3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parquet(tmp_path_factory: pytest.TempPathFactory, rows: list[Row], parts: int) -> None:
    """In parts: row ``k`` lies in part ``k % parts``, and the parts are read one after the other."""
    folder = tmp_path_factory.mktemp("parquet")
    table = [*rows, *ANCHOR]
    pieces = [table[part::parts] for part in range(parts)]
    for number, piece in enumerate(pieces):
        columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*piece, strict=True), strict=True))
        frame = pl.DataFrame(columns, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64})
        frame.write_parquet(folder / f"part-{9 + number}.parquet")
    source = TableSource(path=folder, interactions="part-*.parquet", timestamp_unit="s")
    check(source, [row for piece in pieces for row in piece], folder / "out")


@given(rows=ROWS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_recbole(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    """An atomic file has one line per event and no quotes, so a tab or a line end cannot stand in a field."""
    folder = tmp_path_factory.mktemp("recbole")
    table = [(_one_line(user), _one_line(item), time) for user, item, time in [*rows, *ANCHOR]]
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in table)]
    (folder / "shop.inter").write_bytes("".join(f"{line}\n" for line in lines).encode())
    source = RecBoleSource(path=folder, name="shop", timestamp_unit="s")
    check(source, table, folder / "out")


def _one_line(text: str) -> str:
    for character in "\t\n\r":
        text = text.replace(character, " ")
    return text
