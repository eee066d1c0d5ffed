"""Inputs that were once misread, by kind, from the file to the prepared data set; each runs `prepare` on a small file.

The kinds: types guessed from what a text file holds, values compared as text, ambiguous or imprecise times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.build import FeaturesConfig, foresee, prepare
from features.sources import RecBoleSource, TableSource
from features.sources.base import Source
from recsys.contracts.errors import DataError

START = 1_700_000_000
USERS = 20
EVENTS = USERS * 3
LENIENT = FeaturesConfig(split={"kind": "leave_last_out"}, quarantine={"max_share": 0.2}, duplicates="keep")

Cells = dict[str, Sequence[Any]]


def cells(**changed: Sequence[Any]) -> Cells:
    """Three events of each of twenty users, one after the other."""
    users = [user for user in range(USERS) for _ in range(3)]
    items = [(user + place) % 5 for user in range(USERS) for place in range(3)]
    return {"user_id": users, "item_id": items, "timestamp": [START + place for place in range(EVENTS)], **changed}


def csv(folder: Path, columns: Cells, /, **declared: Any) -> TableSource:
    lines = [",".join(columns)] + [
        ",".join(f'"{cell}"' if "," in str(cell) else str(cell) for cell in row)
        for row in zip(*columns.values(), strict=True)
    ]
    (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return TableSource(path=folder, interactions="log.csv", **{"timestamp_unit": "s", **declared})


def parquet(folder: Path, columns: Cells, /, **declared: Any) -> TableSource:
    pl.DataFrame({name: pl.Series(values, strict=False) for name, values in columns.items()}).write_parquet(
        folder / "log.parquet"
    )
    return TableSource(path=folder, interactions="log.parquet", **{"timestamp_unit": "s", **declared})


def recbole(folder: Path, columns: Cells, /, **declared: Any) -> RecBoleSource:
    kinds = {"user_id": "token", "item_id": "token"}
    head = "\t".join(f"{name}:{kinds.get(name, 'float')}" for name in columns)
    lines = [head] + ["\t".join(str(cell) for cell in row) for row in zip(*columns.values(), strict=True)]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return RecBoleSource(path=folder, name="toy", **{"timestamp_unit": "s", **declared})


def prepared(
    source: Source, folder: Path, config: FeaturesConfig = LENIENT
) -> tuple[dict[str, Any], list, pl.DataFrame]:
    """Report, user ids and quarantine; the identity of the counts is checked on the way."""
    report = prepare(source, config, folder / "out", seed=0)
    assert (
        report["rows_in"]
        == report["kept"] + sum(report["quarantined"].values()) + report["k_core_removed"] + report["merged"]
    )
    users = pl.read_parquet(folder / "out" / "users.parquet")["user_id"].to_list()
    return report, users, pl.read_parquet(folder / "out" / "quarantine.parquet")


# A. Types are not guessed from what a text file holds

TEXT_FILES: dict[str, Callable[..., Source]] = {"csv": csv, "recbole": recbole}
every_text_file = pytest.mark.parametrize("write", TEXT_FILES.values(), ids=TEXT_FILES)


@every_text_file
@pytest.mark.parametrize(
    "ids",
    [
        [f"{user:06}" for user in range(USERS)],
        ["3", "03", *(f"u{user}" for user in range(USERS - 2))],
        [f"{user + 1}e12" for user in range(USERS)],
        [f"{user}.0" for user in range(USERS)],
        [f"{10**19 + user}" for user in range(USERS)],
        ["true", "false", *(f"{user}" for user in range(USERS - 2))],
        [f"+{user}" for user in range(USERS)],
        [f"2023-01-{user + 1:02}" for user in range(USERS)],
        [f"é{user}" for user in range(USERS)],
    ],
    ids=lambda ids: ids[0],
)
def test_ids_of_text_files_come_back_as_written(write: Callable[..., Source], ids: list[str], tmp_path: Path) -> None:
    report, users, _ = prepared(write(tmp_path, cells(user_id=[ids[user] for user in cells()["user_id"]])), tmp_path)
    assert users == sorted(ids)
    assert report["kept"] == EVENTS


@every_text_file
@pytest.mark.parametrize("marker", ["NULL", "\\N", "nan", "None", "<NA>", "N/A", "", "NaN", " null "])
def test_nobody_owns_the_events_of_anonymous_visitors(
    write: Callable[..., Source], marker: str, tmp_path: Path
) -> None:
    """The three events of user 0 belong to nobody."""
    users = [marker if user == 0 else user for user in cells()["user_id"]]
    report, known, quarantine = prepared(write(tmp_path, cells(user_id=users)), tmp_path)
    assert report["quarantined"] == {"null user_id": 3}
    assert sorted(map(int, known)) == list(range(1, USERS))
    assert [json.loads(raw)["user_id"] or "" for raw in quarantine["raw"]] == [marker] * 3, (
        "the file says what stood there"
    )
    if marker.strip():
        assert report["null_markers"] == {"user_id": {marker.strip(): 3}}


@every_text_file
@pytest.mark.parametrize("blank", [" ", "\u00a0", "\u200b", "\ufeff", "\u3000"])
def test_blanks_make_no_second_user(write: Callable[..., Source], blank: str, tmp_path: Path) -> None:
    users = [f"u{user}{blank}" if place == 1 else f"u{user}" for place, user in enumerate(cells()["user_id"])]
    report, known, _ = prepared(write(tmp_path, cells(user_id=users)), tmp_path)
    assert len(known) == USERS
    assert report["blanks_stripped"] == {"user_id": 1}


@every_text_file
@pytest.mark.parametrize("last", [("total", 60, ""), ("# exported", "by nightly", START), ("TOTAL", "60", START)])
def test_a_summary_line_changes_no_other_id(write: Callable[..., Source], last: tuple, tmp_path: Path) -> None:
    """Where integers are declared the line is refused; else the report says which line it was."""
    columns = {name: [*values, last[place]] for place, (name, values) in enumerate(cells().items())}
    source = write(tmp_path, columns)
    report, users, _ = prepared(source, tmp_path)
    assert {str(user) for user in range(USERS)} <= set(users)
    told = [warning for warning in report["warnings"] if "user_id reads as an integer in 60 of 61 rows" in warning]
    assert f"others: {last[0]!r}" in told[0]
    assert "line 62" in told[0]
    assert report == foresee(source, LENIENT, seed=0).report
    declared = write(tmp_path, columns, types={"user_id": "integer", "item_id": "integer"})
    report, users, quarantine = prepared(declared, tmp_path)
    assert users == list(range(USERS))
    assert report["quarantined"] == {"user_id is not an integer": 1}
    assert quarantine["row"].to_list() == [61]


@pytest.mark.parametrize("odd", ["007", "+5", "1e3", "seven", "99999999999999999999"])
def test_declared_integers_refuse_other_spellings_and_too_many_of_them_stop_the_run(odd: str, tmp_path: Path) -> None:
    users = [odd if place == 0 else user for place, user in enumerate(cells()["user_id"])]
    source = csv(tmp_path, cells(user_id=users), types={"user_id": "integer"})
    report, _, _ = prepared(source, tmp_path)
    assert report["quarantined"] == {"user_id is not an integer": 1}
    strict = FeaturesConfig(split={"kind": "leave_last_out"}, quarantine={"max_share": 0.0})
    with pytest.raises(DataError, match="user_id is not an integer: 1"):
        prepare(source, strict, tmp_path / "strict", seed=0)


def test_ids_of_two_tables_must_be_of_one_type(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": range(5), "title": ["a"] * 5}).write_parquet(tmp_path / "items.parquet")
    source = csv(tmp_path, cells(), items="items.parquet")
    with pytest.raises(
        DataError, match=r"'item_id' is integer in '.*items.parquet' and text in '.*log.csv'.*source.types"
    ):
        source.read(0)
    declared = csv(
        tmp_path, cells(), items="items.parquet", item_columns={"title": ["title"]}, types={"item_id": "integer"}
    )
    assert prepared(declared, tmp_path)[0]["items_without_metadata"] == 0


# D. Values are compared by their type

SIGNALS: dict[str, tuple[list, dict[str, Any]]] = {
    "number in text": (["1", "0"], {"equals": 1}),
    "decimal in text": (["1.0", "0.0"], {"equals": 1}),
    "blank before": ([" 1", "0"], {"equals": 1}),
    "code": (["01", "1"], {"equals": "01"}),
    "upper case boolean": (["TRUE", "FALSE"], {"equals": True}),
    "boolean": (["True", "False"], {"equals": True}),
    "yes": (["yes", "no"], {"equals": True}),
    "false is meant": (["false", "true"], {"equals": False}),
    "no rule": (["True", "False"], {}),
    "no rule, numbers": (["2.5", "0.0"], {}),
    "thumbs": (["1", "-1"], {"at_least": 1}),
    "thumbs equal": (["1", "-1"], {"equals": 1}),
    "several": (["buy", "view"], {"in": ["buy", "cart"]}),
    "at most": (["1", "5"], {"at_most": 2}),
}


def as_typed(values: list) -> list:
    """What a typed file would hold of the same values, where there is such a type."""
    words = {"true": True, "false": False}
    if all(value.lower() in words for value in values):
        return [words[value.lower()] for value in values]
    try:
        return [float(value) for value in values]
    except ValueError:
        return values


@pytest.mark.parametrize("case", SIGNALS)
def test_a_signal_is_true_where_the_value_says_so(case: str, tmp_path: Path) -> None:
    """Every third event is, 20 of 60, in a CSV and with the same values in Parquet."""
    (yes, no), rule = SIGNALS[case]
    column = [yes if place % 3 == 0 else no for place in range(EVENTS)]
    signals = [{"name": "liked", "column": "code", **rule}]
    report, _, _ = prepared(csv(tmp_path, cells(code=column), signals=signals), tmp_path)
    assert report["signal_rows"] == {"liked": {"true": 20, "false": 40, "not known": 0}}
    events = pl.read_parquet(tmp_path / "out" / "events.parquet")
    assert events["liked"].sum() == 20
    typed = as_typed(column) if case != "code" else column
    report, _, _ = prepared(parquet(tmp_path, cells(code=typed), signals=signals), tmp_path)
    assert report["signal_rows"]["liked"]["true"] == 20


@pytest.mark.parametrize("values", [(1, -1), (1.0, -0.5), ("1", "-1")])
def test_a_dislike_is_no_like(values: tuple, tmp_path: Path) -> None:
    column = [values[place % 3 == 0] for place in range(EVENTS)]
    source = parquet(tmp_path, cells(thumb=column), signals=[{"name": "liked", "column": "thumb"}], positive=["liked"])
    with pytest.raises(DataError, match=r"signal 'liked': column 'thumb' holds negative numbers.*give at_least"):
        prepare(source, LENIENT, tmp_path / "out", seed=0)


@pytest.mark.parametrize(
    ("values", "rule", "told"),
    [
        (["1.0", "0.0"], {"equals": "1"}, "holds '0.0', '1.0'"),
        (["Buy", "View"], {"equals": "buy"}, "'Buy', which differs from equals: 'buy' in upper and lower case only"),
        (["5", "3"], {"at_least": 50}, "true in none of 60 rows (at_least: 50.0); column 'code' holds '3', '5'"),
        (["view", "cart"], {"in": ["buy"]}, "holds 'cart', 'view'"),
        (["", ""], {"equals": 1}, "holds nothing"),
    ],
)
def test_a_signal_that_is_never_true_is_named(
    values: list, rule: dict, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    column = [values[place % 3 == 0] for place in range(EVENTS)]
    source = csv(tmp_path, cells(code=column), signals=[{"name": "liked", "column": "code", **rule}])
    report, _, _ = prepared(source, tmp_path)
    assert any(told in warning for warning in report["warnings"])
    assert told in caplog.text, "and prepare says it aloud"


@pytest.mark.parametrize(
    ("odd", "rule", "reason"),
    [
        ("4,5", {"at_least": 4}, "code is not a number"),
        ("five", {"equals": 5}, "code is not a number"),
        ("maybe", {"equals": True}, "code is not a boolean"),
        ("inf", {"at_least": 4}, "code is not a finite number"),
        ("?", {}, "code is not a boolean or a number"),
    ],
)
def test_a_value_that_cannot_be_compared_goes_to_the_quarantine(
    odd: str, rule: dict, reason: str, tmp_path: Path
) -> None:
    column = [odd if place == 7 else place % 2 for place in range(EVENTS)]
    source = csv(tmp_path, cells(code=column), signals=[{"name": "liked", "column": "code", **rule}])
    report, _, quarantine = prepared(source, tmp_path)
    assert report["quarantined"] == {reason: 1}
    assert json.loads(quarantine["raw"][0])["code"] == odd


# E. Times that may be read in two ways, or hold less than they seem to

STAMPS: dict[str, tuple[Callable[[int], str], dict[str, Any]]] = {
    "Z": (lambda place: f"2023-11-14T22:13:{place % 60:02}Z", {}),
    "offset": (lambda place: f"2023-11-14T23:13:{place % 60:02}+01:00", {}),
    "UTC suffix": (lambda place: f"2023-11-14 22:13:{place % 60:02} UTC", {}),
    "naive": (lambda place: f"2023-11-14 22:13:{place % 60:02}", {}),
    "fraction": (lambda place: f"2023-11-14T22:13:{place % 60:02}.000000000Z", {}),
    "declared zone": (lambda place: f"2023-11-14 23:13:{place % 60:02}", {"timestamp_zone": "Europe/Paris"}),
    "declared format": (lambda place: f"14/11/2023 22:13:{place % 60:02}", {"timestamp_format": "%d/%m/%Y %H:%M:%S"}),
    "mixed, zone declared": (
        lambda place: f"2023-11-14T22:13:{place:02}Z" if place % 2 else f"2023-11-14T23:13:{place:02}",
        {"timestamp_zone": "Europe/Paris"},
    ),
}


@pytest.mark.parametrize("case", STAMPS)
def test_times_as_text_are_the_instants_they_say(case: str, tmp_path: Path) -> None:
    """22:13:00 UTC on 14 November 2023 is 1,700,000,000 - 20 s."""
    write, declared = STAMPS[case]
    columns = cells(timestamp=[write(place) for place in range(EVENTS)])
    report, _, _ = prepared(csv(tmp_path, columns, timestamp_unit="datetime", **declared), tmp_path)
    events = pl.read_parquet(tmp_path / "out" / "events.parquet")
    assert sorted(events["timestamp"]) == [(START - 20 + place) * 10**6 for place in range(EVENTS)]
    assert report["kept"] == EVENTS


@pytest.mark.parametrize(
    ("stamp", "declared", "message"),
    [
        (lambda place: "01/02/2023", {}, "which part is the day.*'%d/%m/%Y' or '%m/%d/%Y'"),
        (lambda place: f"{place % 28 + 1:02}/02/2023 10:00", {}, "declare source.timestamp_format: '%d/%m/%Y %H:%M'"),
        (lambda place: f"02/{place % 28 + 1:02}/2023", {}, "declare source.timestamp_format: '%m/%d/%Y'"),
        (lambda place: "5 Jan 2023", {}, "declare source.timestamp_format: '%d %b %Y'"),
        (lambda place: f"2023-11-14T22:13:00{'Z' * (place % 2)}", {}, "with a zone .* and without one"),
        (lambda place: START + place, {}, "these are numbers: declare timestamp_unit: s"),
        (lambda place: "2023-11-14", {"timestamp_unit": "s"}, "declare timestamp_unit: datetime"),
        (lambda place: START * 1000, {"timestamp_unit": "s"}, "wrong unit.*declare timestamp_unit: ms"),
        (
            lambda place: START * 1000 ** (place % 2),
            {"timestamp_unit": "s"},
            "two units: 30 rows fit 's'.*and 30 fit 'ms'",
        ),
        (lambda place: "", {}, "no timestamp could be read|null timestamp"),
    ],
)
def test_times_that_nothing_explains_stop_the_run(
    stamp: Callable[[int], Any], declared: dict, message: str, tmp_path: Path
) -> None:
    columns = cells(timestamp=[stamp(place) for place in range(EVENTS)])
    with pytest.raises(DataError, match=message):
        prepare(csv(tmp_path, columns, **{"timestamp_unit": "datetime", **declared}), LENIENT, tmp_path / "out", seed=0)


def test_a_format_for_what_is_no_text_is_refused(tmp_path: Path) -> None:
    stamps = pl.Series([START * 10**6] * EVENTS).cast(pl.Datetime("us"))
    source = parquet(tmp_path, cells(timestamp=stamps), timestamp_unit="datetime", timestamp_format="%d/%m/%Y")
    with pytest.raises(DataError, match="timestamp_format is declared, but column 'timestamp' is Datetime"):
        source.read(0)


@pytest.mark.parametrize("unit", ["s", "ms"])
def test_float32_times_are_refused(unit: str, tmp_path: Path) -> None:
    source = parquet(tmp_path, cells(timestamp=pl.Series(cells()["timestamp"], dtype=pl.Float32)), timestamp_unit=unit)
    with pytest.raises(DataError, match="is Float32, which holds the seconds of today to 128 s only"):
        source.read(0).interactions.collect()


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("soon", "timestamp is not a number"),
        ("0", "implausible timestamp"),
        ("-1", "implausible timestamp"),
        ("inf", "timestamp is infinite"),
        ("NaT", "null timestamp"),
        ("1700000000000", "implausible timestamp"),
        ("", "null timestamp"),
    ],
)
def test_a_time_that_is_none_goes_to_the_quarantine(odd: str, reason: str, tmp_path: Path) -> None:
    stamps = [odd if place == 7 else START + place for place in range(EVENTS)]
    report, _, quarantine = prepared(csv(tmp_path, cells(timestamp=stamps)), tmp_path)
    assert report["quarantined"] == {reason: 1}
    assert quarantine["row"].to_list() == [8], "the header is line 0"


@pytest.mark.parametrize(
    ("ascending", "types"),
    [
        ([2, 10, 33], {}),
        ([0.5, 1.5, 2.5], {}),
        (["2", "10", "33"], {}),
        (["10", "2", "33"], {"seq": "text"}),
        (["01H8", "01HB", "01Ha"], {"seq": "text"}),
        ([1, 10, 2], {"seq": "text"}),
    ],
    ids=str,
)
def test_a_declared_column_orders_events_of_the_same_instant(ascending: list, types: dict, tmp_path: Path) -> None:
    """Each user's three rows stand in the file in the order 2, 0, 1 of their sequence."""
    order = [2, 0, 1]
    columns = cells(timestamp=[START] * EVENTS, seq=[ascending[order[place % 3]] for place in range(EVENTS)])
    source = parquet(tmp_path, columns, columns={"tie_break": "seq"}, types=types)
    prepared(source, tmp_path)
    events = pl.read_parquet(tmp_path / "out" / "events.parquet").filter(pl.col("user_index") == 0)
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")["item_id"]
    assert items.gather(events["item_index"]).to_list() == [1, 2, 0], (
        "rows 1, 2 and 0 of user 0, who took items 0, 1, 2"
    )
