"""Signals: compared by type, with a reason for what cannot be compared, and a word where nothing ever is true."""

from __future__ import annotations

from decimal import Decimal

import polars as pl
import pytest
from pydantic import ValidationError

from features.sources.columns.cells import Parsed, Place
from features.sources.columns.signals import SignalReader
from features.sources.columns_map import Signal
from recsys.contracts.errors import DataError

T, F = True, False
N = None


def read(values: list | pl.Series, **rule: object) -> tuple[SignalReader, Parsed]:
    raw = pl.Series("code", values)
    reader = SignalReader(Signal.model_validate({"name": "yes", "column": "code", **rule}), raw.dtype, "log")
    place = Place(("log",), pl.zeros(len(raw), dtype=pl.Int32, eager=True), pl.int_range(len(raw), eager=True))
    parsed = reader.read(raw, place)
    reader.finish()
    return reader, parsed


@pytest.mark.parametrize(
    "values",
    [
        ["1", "0", "2"],
        ["1.0", "0.0", "2.0"],
        ["01", "00", "1e3"],
        [" 1", "0 ", "2"],
        [1, 0, 2],
        [1.0, 0.0, 2.0],
        pl.Series([1, 0, 2], dtype=pl.Int8),
        pl.Series([1, 0, 2], dtype=pl.Float32),
        pl.Series([Decimal("1.00"), Decimal("0.00"), Decimal("2.50")]),
        pl.Series(["1", "0", "2"], dtype=pl.Categorical),
    ],
)
@pytest.mark.parametrize("one", [1, 1.0])
def test_a_number_equals_the_same_number_however_it_is_written(values: list, one: float) -> None:
    assert read(values, equals=one)[1].values.to_list() == [T, F, F]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False, None], [T, F, N]),
        (["true", "False", ""], [T, F, N]),
        (["True", "FALSE", "NULL"], [T, F, N]),
        (["TRUE", "f", None], [T, F, N]),
        (["t", "no", "nan"], [T, F, N]),
        (["1", "0", "\\N"], [T, F, N]),
        (["yes", "n", "None"], [T, F, N]),
        (["1.0", "0.0", " "], [T, F, N]),
        ([1, 0, None], [T, F, N]),
    ],
)
def test_true_equals_true_however_it_is_written(values: list, expected: list) -> None:
    assert read(values, equals=True)[1].values.to_list() == expected
    assert read(values, equals=False)[1].values.to_list() == [
        None if value is None else not value for value in expected
    ]
    assert read(values)[1].values.to_list() == expected, "without a rule the column says so itself"


@pytest.mark.parametrize(
    ("wanted", "true_for"),
    [("01", ["01"]), ("1", ["1"]), ("buy", ["buy"]), ("true", ["true"]), ("none", ["none"]), ("é", ["é"])],
)
def test_text_equals_exactly_that_text(wanted: str, true_for: list[str]) -> None:
    """Blanks around it aside, which nobody sees."""
    values = ["01", "1", "1.0", "buy", "Buy", "true", "none", "é", f" {wanted}\u00a0"]
    _, parsed = read(values, equals=wanted)
    assert [value for value, yes in zip(values[:-1], parsed.values, strict=False) if yes] == true_for
    assert parsed.values[-1]


def test_one_of_several_values() -> None:
    assert read(["buy", "cart", "view", None], **{"in": ["buy", "cart"]})[1].values.to_list() == [T, T, F, N]
    assert read(["1", "2.0", "3"], **{"in": [1, 2]})[1].values.to_list() == [T, T, F]
    assert read([1, 2, 3], **{"in": [1, 2.0, 2.5]})[1].values.to_list() == [T, T, F]


def test_limits() -> None:
    """.7 as Float32 is 0.699999988 as Float64, and is still at least .7."""
    assert read([1, 3, 4, None], at_least=3)[1].values.to_list() == [F, T, T, N]
    assert read(["1", "3", "4.5", ""], at_least=3, at_most=4)[1].values.to_list() == [F, T, F, N]
    assert read(pl.Series([0.7, 0.6], dtype=pl.Float32), at_least=0.7)[1].values.to_list() == [T, F]
    assert read(pl.Series([0.1, 0.2], dtype=pl.Float32), equals=0.1)[1].values.to_list() == [T, F]
    assert read([2**53, 2**53 + 1], equals=2**53)[1].values.to_list() == [T, F]


@pytest.mark.parametrize("values", [[1, -1, 1], [1.5, -0.5], ["1", "-1", "0"], pl.Series([Decimal(1), Decimal(-1)])])
def test_negative_numbers_need_a_rule(values: list) -> None:
    with pytest.raises(DataError, match=r"holds negative numbers \('?-.*give at_least"):
        read(values)
    assert read(values, at_least=1)[1].values[:2].to_list() == [T, F]


@pytest.mark.parametrize(
    ("values", "rule", "reason"),
    [
        (["1", "0", "buy"], {"equals": 1}, "code is not a number"),
        (["4", "5", "4,5"], {"at_least": 4}, "code is not a number"),
        (["true", "false", "maybe"], {"equals": True}, "code is not a boolean"),
        (["1", "yes", "perhaps"], {}, "code is not a boolean or a number"),
        (["1", "2", "inf"], {"at_least": 1}, "code is not a finite number"),
        ([1, 0, 2], {"equals": True}, "code is not a boolean"),
        ([1.0, 2.0, float("inf")], {}, "code is not a finite number"),
    ],
)
def test_what_cannot_be_compared_refuses_its_row(values: list, rule: dict, reason: str) -> None:
    _, parsed = read(values, **rule)
    assert [(refusal.reason, refusal.rows.to_list()) for refusal in parsed.refusals] == [(reason, [F, F, T])]
    assert parsed.values[2] is None


@pytest.mark.parametrize(
    ("values", "rule", "message"),
    [
        ([1, 0], {"equals": "01"}, "is Int64, and 'equals: '01'' compares with text; write numbers without quotes"),
        ([True], {"equals": "true"}, "is Boolean, and .* write true or false without quotes"),
        ([True], {"equals": 1}, "is Boolean, and 'equals: 1' compares with a number; write equals: true"),
        ([1.0], {"equals": True}, "is Float64, and 'equals: True' compares with a boolean"),
        ([[1]], {"at_least": 1}, r"is List\(Int64\), expected a boolean, a number or text"),
        ([{"a": 1}], {}, "is Struct"),
        ([b"a"], {"equals": "a"}, "is Binary"),
        (["buy", "view"], {"equals": 1}, "holds 'buy', 'view', and 'equals: 1' compares with a number"),
        (["buy", "view"], {"at_least": 1}, "holds 'buy', 'view'"),
        (["buy", "view"], {}, "holds 'buy', 'view', and without a rule it must be a boolean or a number"),
    ],
)
def test_a_column_of_another_kind_is_refused_by_name(values: list, rule: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"signal 'yes': column 'code' {message}"):
        read(values, **rule)


def test_every_row_is_counted() -> None:
    """Two 1, one 0, one missing."""
    reader, _ = read(["1", "0", "1", ""], equals=1)
    assert reader.counts == {"true": 2, "false": 1, "not known": 1}
    assert reader.warnings() == []


@pytest.mark.parametrize(
    ("values", "rule", "told"),
    [
        (["1.0", "0.0"], {"equals": "1"}, "true in none of 2 rows (equals: '1'); column 'code' holds '1.0', '0.0'"),
        ([0, 0], {}, "true in none of 2 rows (no rule); column 'code' holds 0"),
        ([1, 2], {"at_least": 5}, "true in none of 2 rows (at_least: 5.0); column 'code' holds 1, 2"),
        ([None, None], {"equals": 1}, "true in none of 2 rows (equals: 1); column 'code' holds nothing"),
        (
            ["BUY", "view"],
            {"equals": "buy"},
            "1 rows of column 'code' hold 'BUY', which differs from equals: 'buy' in upper",
        ),
    ],
)
def test_a_signal_that_is_never_true_is_named_with_what_was_met(values: list, rule: dict, told: str) -> None:
    reader, _ = read(values, **rule)
    assert any(told in warning for warning in reader.warnings())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"equals": 1, "at_least": 2}, "has at_least or at_most and equals; give one"),
        ({"in": [1, "2"]}, "different types"),
        ({"in": []}, "at least 1 item"),
        ({"name": "user_id"}, "is a column of ours"),
        ({"equals": float("nan")}, "nan is no number"),
        ({"at_least": float("inf")}, "finite number"),
        ({"at_least": 4, "at_most": 2}, "from at_least: 4 up to at_most: 2, which no number is"),
        ({"merge": "sum"}, "'any', 'all', 'first' or 'last'"),
    ],
)
def test_rules_that_contradict_themselves(rule: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Signal.model_validate({"name": "yes", "column": "code", **rule})


def test_a_saved_rule_is_the_same_rule() -> None:
    """What JSON makes of true, 1 and '1' stays apart."""
    for value in (True, 1, 1.5, "1"):
        signal = Signal(name="yes", column="code", equals=value)
        assert type(Signal.model_validate_json(signal.model_dump_json()).equals) is type(value)
    several = Signal.model_validate({"name": "yes", "column": "code", "in": ["a", "b"]})
    assert Signal.model_validate_json(several.model_dump_json()) == several


def test_limits_hold_themselves() -> None:
    assert read([2, 3, 4, 5], at_least=3, at_most=4)[1].values.to_list() == [F, T, T, F]
    assert read(["2", "3.0", "4.0", "4.01"], at_least=3, at_most=4)[1].values.to_list() == [F, T, T, F]


def test_a_table_without_rows_and_texts_of_another_meaning_are_not_spoken_of() -> None:
    """Of 'buy', 'Buy' and 'cart' only 'Buy' may have been meant; and of no rows none is true, which says nothing."""
    assert read(pl.Series([], dtype=pl.Int64), equals=1)[0].warnings() == []
    (said,) = read(["buy", "Buy", "cart"], equals="buy")[0].warnings()
    assert "1 rows of column 'code' hold 'Buy'" in said


def test_ratings_with_a_decimal_comma_say_how_to_write_them() -> None:
    with pytest.raises(DataError, match=r"column 'code' holds '4,5', '3,5'.*decimal comma.*write them as 1234.5"):
        read(["4,5", "3,5", "4"], at_least=4)


def test_whole_numbers_beyond_2_to_the_53_are_told_apart_in_a_text_file() -> None:
    """As floats the ids of two campaigns would be one: 2^53 + 1 is no Float64."""
    campaigns = ["9007199254740992", " 9007199254740993", "7.0", None]
    assert read(campaigns, equals=9007199254740993)[1].values.to_list() == [F, T, F, N]
    assert read(campaigns, one_of=[7, 9007199254740992])[1].values.to_list()[:2] == [T, F]
    assert read(campaigns, equals=7.0)[1].values.to_list() == [F, F, T, N]
