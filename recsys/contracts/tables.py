"""Schemas of the tables that cross stages: column types, what may be null, ranges, and how rows are ordered.

Each class describes one file; columns beyond those named are allowed. :mod:`recsys.contracts.table_checks` reads a file
against its class. dataframely costs a fifth of a second to import, so whoever checks imports this module where it checks.
"""

from __future__ import annotations

from typing import Any, Final

import dataframely as dy
import polars as pl

from recsys.contracts.columns import SPLIT_NAMES, Columns

ID_TYPES: Final = "an integer or String"


class IdColumn(dy.Any):
    """Ids as the source gives them, integers or text, never null."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description)
        self.nullable = False  # `Any` itself admits nulls, because it stands for the Null type as well

    def validate_dtype(self, dtype: Any) -> bool:
        """Whether a column of this type can hold ids."""
        return bool(dtype.is_integer() or dtype == pl.String)


def _index(description: str) -> dy.Int32:
    return dy.Int32(min=0, description=description)


def _split() -> dy.Int8:
    return dy.Int8(min=0, max=len(SPLIT_NAMES) - 1, description="0 train, 1 validation, 2 test")


def _figure(description: str) -> dy.Float64:
    """A measured number, kept as it came out: a mean of no rows is null or NaN, a loss may run off to infinity."""
    return dy.Float64(nullable=True, allow_nan=True, allow_inf=True, description=description)


def _is_row_number(column: str) -> pl.Expr:
    return pl.col(column) == pl.int_range(pl.len())


class EventsTable(dy.Schema):
    """``events.parquet``: every kept event, positive or not, sorted by user and time; feedback signals may follow."""

    user_index = _index("row of users.parquet")
    item_index = _index("row of items.parquet")
    timestamp = dy.Int64(nullable=True, description="UTC microseconds, null where the source has an order but no time")
    session_index = _index("row of sessions.parquet")
    split = _split()
    positive = dy.Bool(description="whether the event counts as liked")
    behaviour = dy.UInt8(description="packed signals, 0 not known")
    watch_ratio = dy.Float32(nullable=True, allow_inf=True, description="watched time / duration, null where not known")

    @dy.rule()
    def rows_are_sorted_by_user_index(cls) -> pl.Expr:
        """Histories are runs of rows, so the rows of one user stand together."""
        return pl.col(Columns.USER_INDEX) >= pl.col(Columns.USER_INDEX).shift(1)


class ItemsTable(dy.Schema):
    """``items.parquet``: one row per item, row number = item_index."""

    item_index = _index("row number")
    item_id = IdColumn("as the source gives it, integer or text")
    title = dy.String(nullable=True, description="for people")
    text = dy.String(nullable=True, description="for the text encoder; the title stands in where it is null")
    categories = dy.List(dy.String(nullable=True), nullable=True, description="names, from general to specific")
    author_index = _index("0 is not known")
    category_index = _index("0 is not known")
    has_metadata = dy.Bool(description="whether the source says anything about the item")
    train_count = dy.Int64(min=0, description="positive events in the train split")

    @dy.rule()
    def item_index_is_the_row_number(cls) -> pl.Expr:
        """Codes, embeddings and counts are arrays that item_index points into."""
        return _is_row_number(Columns.ITEM_INDEX)


class UsersTable(dy.Schema):
    """``users.parquet``: one row per user, row number = user_index; attributes of the source may follow."""

    user_index = _index("row number")
    user_id = IdColumn("as the source gives it, integer or text")

    @dy.rule()
    def user_index_is_the_row_number(cls) -> pl.Expr:
        """The history offsets are an array that user_index points into."""
        return _is_row_number(Columns.USER_INDEX)


class SessionsTable(dy.Schema):
    """``sessions.parquet``: one row per session, row number = session_index."""

    session_index = _index("row number")
    user_index = _index("row of users.parquet")
    event_start = dy.Int64(min=0, description="first row of the session in events.parquet")
    event_end = dy.Int64(min=0, description="row after its last one")
    split = _split()

    @dy.rule()
    def session_index_is_the_row_number(cls) -> pl.Expr:
        """Events point into this table by session_index."""
        return _is_row_number(Columns.SESSION_INDEX)

    @dy.rule()
    def event_end_is_after_event_start(cls) -> pl.Expr:
        """A session has at least one event."""
        return pl.col(Columns.EVENT_END) > pl.col(Columns.EVENT_START)


class TargetsTable(dy.Schema):
    """``targets.parquet``: one row per prediction to make."""

    user_index = _index("whose")
    history_start = dy.Int64(min=0, description="first row of the history in the history arrays")
    history_end = dy.Int64(min=0, description="row after the last one that may be looked at")
    targets = dy.List(dy.Int32(min=0), description="item_index of what comes next, in order of time")
    split = _split()

    @dy.rule()
    def history_end_is_not_before_history_start(cls) -> pl.Expr:
        """A history may be empty, but not shorter than that."""
        return pl.col(Columns.HISTORY_END) >= pl.col(Columns.HISTORY_START)


class SemanticIdsTable(dy.Schema):
    """``semantic_ids.parquet``: one row per item, row number = item_index; ``born`` and ``train_count`` may follow."""

    item_index = _index("row number")
    item_id = IdColumn("as the source gives it, integer or text")
    codes = dy.List(dy.Int32(min=0), description="one code per level")
    sid = dy.String(description="the codes as text")

    @dy.rule()
    def item_index_is_the_row_number(cls) -> pl.Expr:
        """The codes are an array that item_index points into."""
        return _is_row_number(Columns.ITEM_INDEX)


class ReservedIdsTable(dy.Schema):
    """``reserved.parquet``: one row per item that has left the catalogue and keeps its ID."""

    item_id = IdColumn("as the source gives it, integer or text")
    codes = dy.List(dy.Int32(min=0), description="one code per level")
    sid = dy.String(description="the codes as text")
    born = dy.Int32(min=0, description="version of the generation that gave it its ID")


class BundleItemsTable(dy.Schema):
    """``items.parquet`` of a serving bundle: what an answer needs to say about an item."""

    item_index = _index("row number")
    item_id = IdColumn("as the source gives it, integer or text")
    title = dy.String(nullable=True, description="for people")

    @dy.rule()
    def item_index_is_the_row_number(cls) -> pl.Expr:
        """The model answers with item_index."""
        return _is_row_number(Columns.ITEM_INDEX)


class PerUserTable(dy.Schema):
    """``per_user.parquet`` of an evaluation: one row per system, filter and target row; one more column per metric."""

    system = dy.String(description="name of the recommender")
    exclude_seen = dy.Bool(description="whether items of the history were left out")
    user_id = IdColumn("as the source gives it, integer or text")


class MetricsTable(dy.Schema):
    """``metrics.parquet`` of an evaluation: the mean of every metric, for every system, filter and slice."""

    system = dy.String(description="name of the recommender")
    exclude_seen = dy.Bool(description="whether items of the history were left out")
    slice = dy.String(description="which target rows")
    metric = dy.String(description="name of the metric")
    mean = _figure("over the rows of the slice; null where it has none")
    low = _figure("lower end of the bootstrap interval")
    high = _figure("upper end of the bootstrap interval")
    rows = dy.Int64(min=0, description="target rows in the slice")


class ComparisonsTable(dy.Schema):
    """``comparisons.parquet`` of an evaluation: the reference minus every other system, row by row."""

    reference = dy.String(description="name of the system that the others are compared with")
    system = dy.String(description="name of the other recommender")
    exclude_seen = dy.Bool(description="whether items of the history were left out")
    metric = dy.String(description="name of the metric")
    difference = _figure("mean of reference minus system")
    low = _figure("lower end of the bootstrap interval")
    high = _figure("upper end of the bootstrap interval")
    p_value = _figure("of no difference, two-sided")


class CurvesTable(dy.Schema):
    """``curves.parquet``: points of training curves; a column ``step`` or ``epoch`` says where each one lies."""

    name = dy.String(description="name of the curve")
    value = _figure("height of the point")


class StepCurvesTable(CurvesTable):
    """Curves whose points lie at steps of training or rounds of alignment."""

    step = dy.Int64(min=0, description="step or round of the point")


DATASET_TABLES: Final[dict[str, type[dy.Schema]]] = {
    "events.parquet": EventsTable,
    "items.parquet": ItemsTable,
    "users.parquet": UsersTable,
    "sessions.parquet": SessionsTable,
    "targets.parquet": TargetsTable,
}
"""The tables of a prepared data set by file name."""
