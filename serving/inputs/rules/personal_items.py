"""What single users must not be shown: from a file, from the dislikes of a prepared data set, from their rows of a frame.

Histories hold what people took, so a dislike is not in them, and the rule about seen items does not know it. All of it
becomes :class:`~recsys.decoding.rules.personal_lists.PersonalLists` of item_index; items that the model does not know say
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.decoding.rules.personal_lists import PersonalLists
from serving.bundle.catalogue import Catalogue, index_of
from serving.inputs.history_columns import id_values, whole_floats
from serving.inputs.rules.item_lists import read_rule_table, refuse_rows

logger = logging.getLogger("recsys.serving")

DISLIKES: Final = ("dislike", "hate", "report")
"""Signals by which people say that they do not want an item, as data sets call them."""


def listed_in_file(path: Path, catalogue: Catalogue, user_ids: pl.Series) -> PersonalLists:
    """Read a table of pairs; those of other users are left out.

    Args:
        user_ids: ``[U]``, all users in the order of the job.

    Raises:
        DataError: A row lacks the user or the item, or no row names a user of the job.
    """
    table = read_rule_table(path, {Columns.USER_ID: user_ids.dtype, Columns.ITEM_ID: catalogue.item_ids.dtype})
    refuse_rows(table, pl.any_horizontal(pl.all().is_null()), path, "lack the user or the item")
    user = index_of(table[Columns.USER_ID], user_ids, "user ids of the job")
    if len(table) and (user < 0).all():
        raise DataError(
            f"rule file '{path}': none of its {len(table)} rows names a user of the job; the first has user_id "
            f"{table[Columns.USER_ID][0]!r}, the job's first is {user_ids[0]!r}"
        )
    item = catalogue.listed_index(table[Columns.ITEM_ID], f"'{path}'")
    known = (user >= 0) & (item >= 0)
    return _told("personal_deny", PersonalLists.from_pairs(user[known], item[known], len(user_ids)))


def disliked_in(prepared: Dataset, signals: Sequence[str] | None, catalogue: Catalogue) -> PersonalLists | None:
    """What the users of a prepared data set gave one of the signals, in any split and whatever else they did with it.

    Args:
        signals: Yes/no signals; ``None`` takes those of :data:`DISLIKES` that the data set has.

    Returns:
        One list per user_index; ``None`` where there is no such signal.

    Raises:
        ConfigError: The data set lacks a signal that is named, or it is no yes/no signal.
    """
    declared = prepared.spec.signals
    if signals is None and not set(DISLIKES) & set(declared):
        return None
    events = prepared.scan_events()
    schema = events.collect_schema()
    if signals is None:
        signals = [name for name in DISLIKES if name in declared and schema[name] == pl.Boolean]
    for name in signals:
        if name not in declared:
            raise ConfigError(
                f"recommend.exclude_disliked names the signal '{name}', which the data set lacks (it has "
                f"{', '.join(declared) or 'none'}); declare it in source.signals, or leave it out"
            )
        if schema[name] != pl.Boolean:
            raise ConfigError(
                f"recommend.exclude_disliked names the signal '{name}', which is {schema[name]}, expected yes or no"
            )
    if not signals:
        return None
    said = pl.any_horizontal(pl.col(name).fill_null(False) for name in signals)
    pairs = events.filter(said).select(Columns.USER_INDEX, Columns.ITEM_INDEX).unique(maintain_order=True).collect()
    item_of = catalogue.item_index(prepared.items[Columns.ITEM_ID], "item ids of the data")
    item = item_of[pairs[Columns.ITEM_INDEX].to_numpy()]
    user = pairs[Columns.USER_INDEX].to_numpy()[item >= 0]
    return _told(" or ".join(signals), PersonalLists.from_pairs(user, item[item >= 0], prepared.spec.num_users))


def denied_in_rows(lists: pl.Series, catalogue: Catalogue, user_ids: pl.Series | None = None) -> PersonalLists:
    """Read the column ``deny_item_ids`` of a frame of histories: a list per user, null for none.

    Args:
        lists: ``[N]`` as given.
        user_ids: ``[N]`` whose they are, for the error; ``None``: not known.

    Raises:
        DataError: Ids are not of the type of the model's, or a list is longer than the bundle's limit of a history.
    """
    if isinstance(lists.dtype, pl.Array):
        lists = lists.arr.to_list()
    elif lists.dtype == pl.Null:
        lists = lists.cast(pl.List(catalogue.item_ids.dtype))
    lengths, limit = lists.list.len().fill_null(0).to_numpy(), catalogue.limits.max_history_items
    if (lengths > limit).any():
        raise DataError(
            f"row {lengths.argmax()} has {lengths.max()} {Columns.DENY_ITEM_IDS}, at most {limit} are read "
            "(export.limits.max_history_items); give long lists to the batch job as recommend.personal_deny"
        )
    rows = (
        pl.DataFrame({"list": lists})
        .with_row_index("row")
        .filter(pl.col("list").list.len() > 0)
        .explode("list")
        .drop_nulls("list")
    )
    item = catalogue.listed_index(_denied_ids(rows, catalogue.item_ids.dtype, user_ids), Columns.DENY_ITEM_IDS)
    return PersonalLists.from_pairs(rows["row"].to_numpy()[item >= 0], item[item >= 0], len(lists))


def _denied_ids(rows: pl.DataFrame, expected: pl.DataType, user_ids: pl.Series | None) -> pl.Series:
    """Return the ids of ``rows`` (``row, list``) in the type of the model's, or name the row of the first that is none."""
    given = rows["list"]
    cause: DataError | None = None
    try:
        ids = id_values(given, Columns.DENY_ITEM_IDS)
        if ids.dtype == pl.Null or ids.dtype.is_integer() == expected.is_integer():
            return ids
    except DataError as error:
        cause = error
    place = _first_that_is_none(given)
    where = ""
    if place is not None:
        row = int(rows["row"][place])
        who = "" if user_ids is None else f" (user_id {user_ids[row]!r})"
        value = given[place]
        shown = value.to_list() if isinstance(value, pl.Series) else value  # of lists of lists
        where = f"; first in row {row}{who}: {shown!r:.100}"
    raise DataError(
        f"column '{Columns.DENY_ITEM_IDS}' holds lists of {given.dtype}, expected lists of {expected}, as the model's ids "
        f"are{where}; convert them"
    ) from cause


def _first_that_is_none(given: pl.Series) -> int | None:
    """Where the first value stands that is no id; the first of all where it is the type that none has."""
    if given.dtype.is_float():
        wrong = given.is_not_nan() & ((given.round() != given) | (given.abs() >= whole_floats(given.dtype)))
    elif given.dtype == pl.UInt64:
        wrong = given > np.iinfo(np.int64).max
    else:
        return 0 if len(given) else None
    found = wrong.fill_null(value=False).arg_max() if wrong.any() else 0
    return found if len(given) else None


def _told(what: str, lists: PersonalLists) -> PersonalLists:
    logger.info("%s: %d items of %d users", what, len(lists.items), int((np.diff(lists.offsets) > 0).sum()))
    return lists
