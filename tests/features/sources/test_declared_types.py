"""Declared types: what a value has to be, and the row that is refused where it is not."""

from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from features.sources import TableSource

TIME = 1_650_000_000


def events(tmp_path: Path, values: list[str], kind: str, **signal: object) -> pl.DataFrame:
    lines = [f"u{place},i1,{TIME + place},{value}" for place, value in enumerate(values)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,mark", *lines]) + "\n")
    signals = [{"name": "marked", "column": "mark", **signal}]
    source = TableSource(path=tmp_path / "log.csv", timestamp_unit="s", types={"mark": kind}, signals=signals)
    return source.read(0).interactions.collect()


@pytest.mark.parametrize(
    ("kind", "values", "rule", "marked", "refused"),
    [
        ("number", ["4", " 4.5 ", "NULL", "3", "good"], {"at_least": 4}, [True, True, None, False, None], [4]),
        ("integer", ["1", "1.0", "007", "1.5", ""], {"equals": 1}, [True, True, False, None, None], [3]),
        ("boolean", ["true", "No", "1", "Y", "maybe"], {}, [True, False, True, True, None], [4]),
        ("boolean", ["on", "OFF", "t", "F", "2"], {}, [True, False, True, False, None], [4]),
        ("text", ["01", "1", "1.0", "nan", "x"], {"equals": "01"}, [True, False, False, None, False], []),
        ("text", ["none", "a", "NULL", ""], {"equals": "none"}, [True, False, None, None], []),
        ("text", ["NULL", "a", "nan"], {"equals": "NULL"}, [True, False, None], []),
    ],
)
def test_a_value_of_another_type_refuses_its_row(tmp_path: Path, kind, values, rule, marked, refused) -> None:
    found = events(tmp_path, values, kind, **rule)
    assert found["marked"].to_list() == marked
    bad = found.drop_nulls("refused")
    assert bad["row"].to_list() == [place + 1 for place in refused]  # the header is line 0
    assert set(bad["refused"]) == ({f"mark is not a{'n' * (kind == 'integer')} {kind}"} if refused else set())
    for place, raw in zip(refused, bad["raw"], strict=True):
        assert f'"mark":"{values[place]}"' in raw


def test_attributes_of_users_come_in_their_type(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n01,02,{TIME}\n")
    (tmp_path / "users.csv").write_text("user_id,age,zip\n01,31,00501\n")
    source = TableSource(
        path=tmp_path,
        interactions="log.csv",
        users="users.csv",
        user_columns=["age", "zip"],
        timestamp_unit="s",
        types={"age": "integer"},
    )
    users = source.read(0).users
    assert users is not None
    assert users.to_dicts() == [{"user_id": "01", "age": 31, "zip": "00501"}]


@pytest.mark.parametrize(
    ("markers", "expected"),
    [
        (None, ["NA", None, None, None, "-", "at"]),
        (("-",), ["NA", "NULL", "nan", None, None, "at"]),
        ((), ["NA", "NULL", "nan", None, "-", "at"]),
    ],
)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_what_stands_for_nothing_is_no_attribute(tmp_path: Path, form: str, markers, expected: list) -> None:
    """NA is Namibia; what only programs write for a missing value is none, and the recipe can say otherwise."""
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\nu0,i,{TIME}\n")
    table = pl.DataFrame({"user_id": [f"u{n}" for n in range(6)], "country": ["NA", " NULL", "nan", "", "-", "at"]})
    (table.write_csv if form == "csv" else table.write_parquet)(tmp_path / f"users.{form}")
    source = TableSource(
        path=tmp_path,
        interactions="log.csv",
        users=f"users.{form}",
        user_columns=["country"],
        timestamp_unit="s",
        null_values=markers,
    )
    users = source.read(0).users
    assert users is not None
    assert [value and value.strip() for value in users["country"]] == expected


@pytest.mark.parametrize(
    ("types", "shown"),
    [
        ({"user_id": "number"}, "the ids in 'user_id' are number; ids are integer or text"),
        ({"other": "text"}, "types names 'other', which plays no part; these do: user_id, item_id, timestamp"),
        (
            {"timestamp": "datetime"},
            "'timestamp' is a datetime, but it is not the timestamp of timestamp_unit: datetime",
        ),
        ({"user_id": "float"}, "'integer', 'text', 'number', 'boolean' or 'datetime'"),
    ],
)
def test_types_that_cannot_be(types: dict[str, str], shown: str) -> None:
    with pytest.raises(ValidationError, match=shown):
        TableSource(path="x", timestamp_unit="s", types=types)
