"""From what a caller knows about users to what the model reads.

Reads a frame of item ids; produces :class:`~recsys.data.histories.Histories` in the model's own indices.

The frame has one row per user: ``user_id``, ``item_ids`` (list, oldest first) and, where known, lists of the same
length ``timestamps`` (UTC microseconds, Datetime, or ISO text), ``behaviours`` (codes as in
:func:`~recsys.contracts.event_features.behaviour_codes`) and ``watch_ratios``. Null instead of a list means "not known" for
that user, ``item_ids`` null is an empty history; null inside a list is not known for that event, and an item that is null is
one that the model does not know. A column ``objective`` (JSON text, see :mod:`serving.inputs.objectives`) says what a row's
request wants more of; a column ``words`` says it as a sentence. A column ``deny_item_ids`` lists, in any number, what this
user must not be shown (:mod:`serving.inputs.rules.personal_items`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import NumberUnit
from recsys.data.histories import Histories
from serving.bundle.catalogue import Catalogue
from serving.inputs.history_columns import behaviour_values, id_values, user_values, watch_values
from serving.inputs.history_times import FUTURE, gaps, later_than_now, times_us

OPTIONAL_LISTS: Final = (Columns.TIMESTAMPS, Columns.BEHAVIOURS, Columns.WATCH_RATIOS)
_KNOWN: Final = (
    Columns.USER_ID,
    Columns.ITEM_IDS,
    *OPTIONAL_LISTS,
    Columns.DENY_ITEM_IDS,
    Columns.OBJECTIVE,
    Columns.WORDS,
)


@dataclass(frozen=True)
class MappedHistories:
    """Histories in the model's indices.

    Attributes:
        user_ids: ``[N]`` as given.
        histories: N rows.
        num_unknown: ``[N]`` events left out because the model has no such item.
        objectives: ``[N]`` JSON text of each row's objective weights, as given; ``None`` where the rows name none.
        sentences: ``[N]`` what each row says, as given; ``None`` where nobody says anything.
    """

    user_ids: pl.Series
    histories: Histories
    num_unknown: npt.NDArray[np.int32]
    objectives: pl.Series | None = None
    sentences: pl.Series | None = None

    def take(self, rows: npt.NDArray[np.integer]) -> MappedHistories:
        """Return the rows given by number, in that order."""
        return MappedHistories(
            self.user_ids.gather(rows),
            self.histories.take(rows),
            self.num_unknown[rows],
            None if self.objectives is None else self.objectives.gather(rows),
            None if self.sentences is None else self.sentences.gather(rows),
        )

    @classmethod
    def joined(cls, parts: Sequence[MappedHistories]) -> MappedHistories:
        """The rows of all parts, one after the other.

        What they asked for stays in their histories, as numbers; the texts are left out.

        Args:
            parts: At least one; the histories of all ask with objectives and words, or those of none do.
        """
        return cls(
            pl.concat([part.user_ids for part in parts]),
            Histories.joined([part.histories for part in parts]),
            np.concatenate([part.num_unknown for part in parts]),
        )


def map_frame(
    frame: pl.DataFrame,
    catalogue: Catalogue,
    user_index: npt.NDArray[np.int32] | None = None,
    *,
    timestamp_unit: NumberUnit = "us",
    reports: set[str] | None = None,
) -> MappedHistories:
    """Map a frame of histories.

    Items that the catalogue lacks are left out and counted; an empty history stays and is answered as well.

    Args:
        user_index: What :meth:`~serving.bundle.catalogue.Catalogue.user_index` gave for the rows, if the caller has it
            already; the look-up costs as much for one row as for a million.
        timestamp_unit: What numbers in ``timestamps`` count.
        reports: Takes what is to be said once: what is not known, what lies in the future; ``None`` says nothing.

    Raises:
        DataError: A column is missing, unknown or of the wrong type; ``user_id`` is null or occurs twice; lists of one
            row differ in length or are too long; times are in another unit, implausible or run backwards; a code or a ratio
            is none.
    """
    frame = untyped_if_empty(frame)
    check_columns(frame.schema)
    users = user_values(frame[Columns.USER_ID])
    if users.dtype == pl.Null:  # nobody; the answer's column has a type all the same
        users = users.cast(pl.String if catalogue.user_ids is None else catalogue.user_ids.dtype)
    present = [name for name in OPTIONAL_LISTS if _is_given(frame, name)]
    if Columns.TIMESTAMPS in present and not catalogue.spec.has_timestamps:
        raise DataError("histories have timestamps, but the model was trained on data without; leave the column out")
    rows = _same_lengths(frame, users, present, catalogue.limits.max_history_items)
    if reports is not None:
        reports.update(_missing(frame, rows, present, catalogue))
    events = rows.filter(pl.col(Columns.ITEM_IDS).list.len() > 0).explode([Columns.ITEM_IDS, *present])
    row = events["row"].to_numpy()
    owner = users.gather(events["row"])
    item = catalogue.item_index(id_values(events[Columns.ITEM_IDS], Columns.ITEM_IDS), Columns.ITEM_IDS)
    gap = np.zeros(len(events), np.uint8)
    if Columns.TIMESTAMPS in present:
        times = times_us(events[Columns.TIMESTAMPS], owner, timestamp_unit)
        gap = gaps(times, row, owner)
        if reports is not None and later_than_now(times):
            reports.add(FUTURE)
    known = item >= 0
    counts = np.bincount(row[known], minlength=len(frame)).astype(np.int64)
    ends = np.cumsum(counts)
    codes, ratios = (events[name] if name in present else None for name in (Columns.BEHAVIOURS, Columns.WATCH_RATIOS))
    histories = Histories(
        user_index=catalogue.user_index(users) if user_index is None else user_index,
        start=ends - counts,
        end=ends,
        item=item[known],
        behaviour=behaviour_values(codes, catalogue.spec, len(events), owner)[known],
        gap=gap[known],
        watch=watch_values(ratios, len(events), owner)[known],
    )
    num_unknown = np.bincount(row[~known], minlength=len(frame)).astype(np.int32)
    objectives, sentences = (asked_texts(frame, name) for name in (Columns.OBJECTIVE, Columns.WORDS))
    return MappedHistories(users, histories, num_unknown, objectives, sentences)


def asked_texts(frame: pl.DataFrame, name: str) -> pl.Series | None:
    """A column of what the rows ask for; ``None`` where it is missing or nobody asks for anything; no words are null."""
    if name not in frame.columns:
        return None
    texts = frame[name]
    if name == Columns.WORDS and texts.dtype == pl.String:
        blank = texts.str.strip_chars() == ""
        texts = texts.set(blank.fill_null(value=False), None)
    return None if texts.null_count() == len(frame) else texts


def untyped_if_empty(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a frame without rows as one without types, too: what its lists would have held nobody can say."""
    if len(frame):
        return frame
    return pl.DataFrame(
        [frame[name] if name == Columns.USER_ID else pl.Series(name, [], pl.Null) for name in frame.columns]
    )


def check_columns(schema: pl.Schema, where: str = "histories") -> None:
    """Check names and types of the columns.

    Args:
        where: What they belong to, for the error.

    Raises:
        DataError: A column is missing, unknown, or no list where a list is expected.
    """
    names = schema.names()
    missing = [name for name in (Columns.ITEM_IDS, Columns.USER_ID) if name not in names]
    if missing:
        others = [name for name in names if name not in (*_KNOWN, Columns.ITEM_ID)]
        close = difflib.get_close_matches(missing[0], others, n=1)
        hint = f"; is '{close[0]}' meant?" if close else ""
        if not close and missing[0] == Columns.ITEM_IDS:
            hint = "; of a table of interactions `recsys histories --config my.yaml --out histories.parquet` makes histories"
        raise DataError(f"{where} lack the column '{missing[0]}'; they have {names}, expected {list(_KNOWN)}{hint}")
    extra = [name for name in names if name not in _KNOWN]
    if extra:
        close = difflib.get_close_matches(extra[0], _KNOWN, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise DataError(
            f"{where} have the column '{extra[0]}', which the model would not read; {hint}allowed are {list(_KNOWN)}"
        )
    for name in names:
        if name in (Columns.USER_ID, Columns.OBJECTIVE, Columns.WORDS) or schema[name] == pl.Null:
            continue
        if not isinstance(schema[name], pl.List | pl.Array):
            raise DataError(f"{where}: column '{name}' is {schema[name]}, expected a list per user")


def _is_given(frame: pl.DataFrame, name: str) -> bool:
    """Whether anybody's list is known; a column of nulls says the same as none."""
    return name in frame.columns and frame[name].null_count() < len(frame)


def _same_lengths(frame: pl.DataFrame, users: pl.Series, present: Sequence[str], limit: int) -> pl.DataFrame:
    """Return the lists with one entry per event and the row number; a list that is not known becomes one of nulls.

    Raises:
        DataError: Lists of a user differ in length, or are longer than the limit.
    """
    lists = [_as_list(frame[name]) for name in (Columns.ITEM_IDS, *present)]
    items = lists[0]
    if items.dtype == pl.List(pl.Null) or items.null_count():
        items = items.to_frame().select(pl.col(items.name).fill_null([])).to_series()
    lengths = items.list.len()
    rows = pl.DataFrame([items]).with_columns(pl.int_range(pl.len()).alias("row"))
    longest = int(lengths.arg_max() or 0) if len(lengths) else 0
    if len(lengths) and lengths[longest] > limit:
        raise DataError(
            f"histories: user_id {users[longest]!r} has {lengths[longest]} item_ids, at most {limit} are read "
            "(export.limits.max_history_items); give the newest, the model reads no more than its own window of them"
        )
    for values in lists[1:]:
        name = values.name
        inner = values.dtype.inner  # type: ignore[attr-defined]  # of lists
        unknown = pl.lit(None, dtype=inner).repeat_by(lengths)
        rows = rows.with_columns(pl.when(values.is_null()).then(unknown).otherwise(values).alias(name))
        wrong = (rows[name].list.len() != lengths).arg_true()
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"histories: user_id {users[row]!r} has {lengths[row]} item_ids but another number of {name} "
                f"({rows[name].list.len()[row]}); every event needs one entry, null where it is not known"
            )
    return rows


def _as_list(values: pl.Series) -> pl.Series:
    if values.dtype == pl.Null:
        return values.cast(pl.List(pl.Null))
    return values.arr.to_list() if isinstance(values.dtype, pl.Array) else values


def _missing(frame: pl.DataFrame, rows: pl.DataFrame, present: Sequence[str], catalogue: Catalogue) -> list[str]:
    """Say what the model was trained with and the caller does not give; the answer stands, but it is a poorer one."""
    trained_with = {
        Columns.TIMESTAMPS: catalogue.spec.has_timestamps,
        Columns.BEHAVIOURS: bool(catalogue.spec.signals),
    }
    has_items = rows[Columns.ITEM_IDS].list.len() > 0
    if not has_items.any():
        return []
    missing = [name for name, used in trained_with.items() if used and name not in present]
    said = []
    if missing:
        said.append(
            f"histories lack {' and '.join(missing)}, which the model was trained with; it ranks without, and "
            "differently from a "
            "batch job that has them"
        )
    said += [
        f"{name} of some users are not known; the model was trained with them, and ranks these users without"
        for name in present
        if trained_with.get(name, False) and (frame[name].is_null() & has_items).any()
    ]
    return said
