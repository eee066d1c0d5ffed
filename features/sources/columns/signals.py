"""Signals: yes, no or not known, by a declared rule; see :class:`~features.sources.columns_map.Signal` for what equals what.

A value that the rule cannot compare (``buy`` where a number is expected) refuses its row. A column with negative numbers
and no rule stops the run: "not 0" would count every dislike as a like. A signal that is true in no row is named with
the values met.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import polars as pl

from features.sources.columns.cells import (
    SHOWN_VALUES,
    ColumnReader,
    Parsed,
    Place,
    Refusal,
    Unread,
    comma_advice,
    no_rows,
    phrase,
    shown,
)
from features.sources.columns.numbers import as_numbers, inexact_integers
from features.sources.columns_map import Signal
from recsys.contracts.errors import DataError
from recsys.contracts.null_markers import MACHINE_MARKERS, NULL_MARKERS

TRUE_WORDS: Final = frozenset({"true", "t", "yes", "y", "on", "1", "1.0"})
FALSE_WORDS: Final = frozenset({"false", "f", "no", "n", "off", "0", "0.0"})

_TEXTS: Final = (pl.String, pl.Categorical, pl.Enum)
_MET: Final = 20
_MET_ROWS: Final = 1000


class SignalReader(ColumnReader):
    """Reads one signal, and counts where it is true, false and not known."""

    def __init__(
        self, signal: Signal, raw_type: pl.DataType, where: str, *, markers: tuple[str, ...] = NULL_MARKERS
    ) -> None:
        # for a text 'none' is an answer, unless it is declared; what the rule names is a value in any case
        if signal.kind == "text":
            markers = MACHINE_MARKERS if markers == NULL_MARKERS else markers
            markers = tuple(name for name in markers if name not in signal.values)
        super().__init__(signal.column, signal.name, pl.Boolean(), where, markers)
        self.signal = signal
        self.counts = {"true": 0, "false": 0, "not known": 0}
        self._met: list[str] = []
        self._near: Counter[str] = Counter()
        self._unread = Unread()
        self._kind = ""
        self._check_type(raw_type)

    def _check_type(self, raw_type: pl.DataType) -> None:
        kind, rule = self.signal.kind, self.signal.rule
        if raw_type == pl.Null:
            return
        way_out = ""
        if not (raw_type == pl.Boolean or raw_type.is_numeric() or raw_type in _TEXTS):
            way_out = "expected a boolean, a number or text"
        elif kind == "text" and raw_type not in _TEXTS:
            wanted = "true or false" if raw_type == pl.Boolean else "numbers"
            way_out = f"and '{rule}' compares with text; write {wanted} without quotes"
        elif kind == "number" and raw_type == pl.Boolean and self.signal.values:
            way_out = f"and '{rule}' compares with a number; write equals: true"
        elif kind == "boolean" and raw_type.is_numeric() and not raw_type.is_integer():
            way_out = f"and '{rule}' compares with a boolean; write equals: 1 or at_least"
        if way_out:
            raise DataError(
                f"{self.where}: signal '{self.signal.name}': column '{self.column}' is {raw_type}, {way_out}"
            )

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        del place
        reading = {"truth": self._truth, "number": self._number, "boolean": self._boolean, "text": self._text}
        values, wrong, kind = reading[self.signal.kind](raw)
        self._kind = kind if wrong.any() else self._kind
        self._unread.see(len(raw) - raw.null_count(), raw.filter(wrong))
        self._check_readable(at_end=False)
        refusals = [Refusal(self.not_(kind), wrong)] if wrong.any() else []
        yes, missing = int(values.sum() or 0), values.null_count()
        self.counts["true"] += yes
        self.counts["not known"] += missing
        self.counts["false"] += len(raw) - yes - missing
        if not self.counts["true"] and len(self._met) < _MET:
            distinct = raw.head(_MET_ROWS).drop_nulls().unique(maintain_order=True)
            self._met = list(dict.fromkeys([*self._met, *map(phrase, distinct)]))[:_MET]
        return Parsed(values.alias(self.canonical), tuple(refusals))

    def _truth(self, raw: pl.Series) -> tuple[pl.Series, pl.Series, str]:
        """Without a rule: true, or not 0."""
        if raw.dtype == pl.Boolean:
            return raw, no_rows(len(raw)), "a boolean"
        numbers, wrong = as_numbers(self, raw)
        truth = numbers != 0
        if wrong.any():  # words
            words, wrong_words = self._words(raw.filter(wrong).cast(pl.String))
            places = wrong.arg_true()
            truth, wrong = truth.scatter(places, words), wrong.scatter(places, wrong_words)
        self._check_negative(raw.filter(numbers < 0))
        return self._finite(numbers, truth, wrong, "a boolean or a number")

    def _check_negative(self, negative: pl.Series) -> None:
        if len(negative):
            raise DataError(
                f"{self.where}: signal '{self.signal.name}': column '{self.column}' holds negative numbers "
                f"({shown(negative)}), and without a rule every number but 0 would count as yes; give at_least "
                "(such as at_least: 1), equals or in"
            )

    def _number(self, raw: pl.Series) -> tuple[pl.Series, pl.Series, str]:
        signal = self.signal
        if raw.dtype == pl.Boolean:
            raw = raw.cast(pl.Float64)
        numbers, wrong = as_numbers(self, raw)
        if raw.dtype == pl.Float32:  # .7 of a Float32 is not .7 of a Float64; both sides in the column's precision
            numbers = numbers.cast(pl.Float32)
        if signal.values:
            if raw.dtype.is_integer():  # beyond 2^53 a float would equal its neighbours
                whole = [int(value) for value in signal.values if float(value).is_integer()]
                truth = raw.is_in(pl.Series(whole, dtype=pl.Int128).cast(raw.dtype, strict=False).drop_nulls())
            else:
                truth = numbers.is_in(pl.Series([float(value) for value in signal.values], dtype=numbers.dtype))
                truth = self._exactly(raw, numbers, truth)
        else:
            truth = pl.Series([True]).new_from_index(0, len(raw))
            if signal.at_least is not None:
                truth &= numbers >= pl.Series([signal.at_least], dtype=numbers.dtype)
            if signal.at_most is not None:
                truth &= numbers <= pl.Series([signal.at_most], dtype=numbers.dtype)
        return self._finite(numbers, truth, wrong, "a number")

    def _exactly(self, raw: pl.Series, numbers: pl.Series, truth: pl.Series) -> pl.Series:
        """Compare texts of whole numbers beyond 2^53, such as ids of campaigns, digit by digit: as floats they are equal."""
        places = inexact_integers(raw, numbers)
        if not len(places):
            return truth
        whole = {int(value) for value in self.signal.values if float(value).is_integer()}
        return truth.scatter(places, [int(text) in whole for text in raw.gather(places)])

    def _finite(
        self, numbers: pl.Series, truth: pl.Series, wrong: pl.Series, kind: str
    ) -> tuple[pl.Series, pl.Series, str]:
        endless = numbers.is_infinite().fill_null(False) if numbers.dtype.is_float() else no_rows(len(numbers))
        if endless.any():
            wrong = wrong | endless
            kind = f"finite, or {kind}" if (wrong & ~endless).any() else "a finite number"
            truth = truth.to_frame("t").select(pl.when(~endless).then("t")).to_series()
        return truth, wrong, kind

    def _boolean(self, raw: pl.Series) -> tuple[pl.Series, pl.Series, str]:
        wanted = {bool(value) for value in self.signal.values}
        if raw.dtype == pl.Boolean:
            truth, wrong = raw, no_rows(len(raw))
        else:
            truth, wrong = self._words(raw.cast(pl.String))
        if wanted == {False}:
            truth = ~truth
        elif wanted == {True, False}:
            truth = truth | ~truth
        return truth, wrong, "a boolean"

    def _words(self, texts: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Return the truth of words such as ``yes`` and ``f``, and which texts are no such word."""
        known = self.known(texts)
        lower = known.str.to_lowercase()
        yes, no = lower.is_in(list(TRUE_WORDS)), lower.is_in(list(FALSE_WORDS))
        wrong = known.is_not_null() & ~(yes | no).fill_null(False)
        truth = yes.to_frame("y").select(pl.when(~wrong).then("y")).to_series()
        return truth, wrong

    def _text(self, raw: pl.Series) -> tuple[pl.Series, pl.Series, str]:
        texts = self.known(raw.cast(pl.String))
        wanted = [str(value) for value in self.signal.values]
        truth = texts == wanted[0] if len(wanted) == 1 else texts.is_in(wanted)
        folded = {value.casefold() for value in wanted}
        for value in texts.unique():
            if value is not None and value not in wanted and value.casefold() in folded:
                self._near[value] += int((texts == value).sum())
        return truth, no_rows(len(raw)), "text"

    def finish(self) -> None:
        """Check that most values can be compared.

        Raises:
            DataError: Most cannot.
        """
        self._check_readable(at_end=True)

    def _check_readable(self, *, at_end: bool) -> None:
        if self._unread.is_most(at_end=at_end):
            way_out = "for text give equals: '<value>' in quotes"
            rule = f"'{self.signal.rule}' compares with" if self.signal.kind != "truth" else "without a rule it must be"
            raise DataError(
                f"{self.where}: signal '{self.signal.name}': column '{self.column}' holds {shown(self._unread.sample)}, "
                f"and {rule} {self._kind}; {comma_advice(self._unread.sample) or way_out}"
            )

    def warnings(self) -> list[str]:
        """Tell of a signal that is true in no row, and of texts that differ from the rule in upper and lower case only."""
        name = f"{self.where}: signal '{self.signal.name}'"
        said = []
        rows = sum(self.counts.values())
        if rows and self.counts["true"] == 0:
            met = ", ".join(self._met[:SHOWN_VALUES]) + (" …" if len(self._met) > SHOWN_VALUES else "")
            said.append(
                f"{name} is true in none of {rows} rows ({self.signal.rule}); "
                f"column '{self.column}' holds {met or 'nothing'}"
            )
        said += [
            f"{name}: {count} rows of column '{self.column}' hold {value!r}, which differs from {self.signal.rule} in upper "
            "and lower case only and does not count"
            for value, count in self._near.most_common(SHOWN_VALUES)
        ]
        return said
