"""Business rules of a request: from files, lists and numbers to masks and quotas in the model's indices.

Reads the rule files that :class:`~serving.config.RecommendConfig` names, or the lists that a caller of the registered model
gives; produces :class:`~recsys.decoding.rules.item_rules.ItemRules`. All of it happens before the first user is scored, so
that a bad file costs no night. Nothing in the bundle is rebuilt.

Legend: I items, U users of the job, S segments, G categories.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError, DataError
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.rules.personal_lists import PersonalLists
from serving.bundle.catalogue import BoolMask, Catalogue, index_of
from serving.config import RecommendConfig
from serving.inputs.callers_frame import typed_values
from serving.inputs.history_columns import id_values
from serving.inputs.rules.item_lists import plain_texts, read_item_list, read_rule_table, refuse_rows
from serving.inputs.rules.personal_items import listed_in_file

logger = logging.getLogger("recsys.serving")

ALLOW, DENY, NONE = "allow", "deny", "none"


def read_rules(
    config: RecommendConfig, catalogue: Catalogue, user_ids: pl.Series, own: PersonalLists | None = None
) -> ItemRules:
    """Read and check everything that restricts a job.

    Args:
        user_ids: ``[U]``, all users in the order of the job.
        own: What is known beside the files of items that single users must not be shown.

    Raises:
        ConfigError: A file is missing, or a rule names something that does not exist.
        DataError: A file does not keep its form, or a user has no segment.
    """
    allowed = _lists(config, catalogue)
    segment_U: npt.NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    if config.segments is not None and config.segment_rules is not None:
        names, own_SI = _segment_masks(config.segment_rules, catalogue)
        segment_U = _segments_of(user_ids, config.segments, names, config)
        allowed = own_SI if allowed is None else own_SI & allowed
    quotas = None
    if config.limits_categories:
        length = _answer_length(catalogue, config.k, config.answer)
        quotas = category_quotas(
            catalogue, length, config.max_per_category, config.category_limits, config.item_categories
        )
    personal = own
    if config.personal_deny is not None:
        personal = listed_in_file(config.personal_deny, catalogue, user_ids).joined(own)
    _log(allowed, segment_U, names, quotas)
    return ItemRules(allowed, None, segment_U, quotas, config.exclude_seen, personal)


def listed_rules(
    catalogue: Catalogue,
    k: int,
    answer: str,
    *,
    allow: Sequence[Any] = (),
    deny: Sequence[Any] = (),
    max_per_category: int = 0,
    exclude_seen: bool = True,
) -> ItemRules:
    """Make rules of what a caller gives in memory; they are the same for every user.

    Args:
        k: Items of a list, if ``answer`` is ``items``.
        allow, deny: Item ids; empty sets no rule.
        max_per_category: Items of one category in a list or session; 0 sets no limit.

    Raises:
        ConfigError: A limit is below 0, or set for a model that knows no categories.
        DataError: An id is not of the catalogue's type, or null, or there are more than the bundle's limit.
    """
    if max_per_category < 0:
        raise ConfigError(f"max_per_category is {max_per_category}, expected at least 1, or 0 for no limit")
    return ItemRules(
        allow=_listed(catalogue, allow, "allow") if len(allow) else None,
        deny=_listed(catalogue, deny, "deny") if len(deny) else None,
        quotas=category_quotas(catalogue, _answer_length(catalogue, k, answer), max_per_category)
        if max_per_category
        else None,
        exclude_seen=exclude_seen,
    )


def _listed(catalogue: Catalogue, item_ids: Sequence[Any], what: str) -> BoolMask:
    limit = catalogue.limits.max_rule_items
    if len(item_ids) > limit:
        raise DataError(
            f"{what} lists {len(item_ids)} items, at most {limit} are taken in one call "
            "(export.limits.max_rule_items); give long "
            "lists to the batch job as files"
        )
    ids, dtype = typed_values(what, list(item_ids)), catalogue.item_ids.dtype
    ids = plain_texts(ids, catalogue.item_ids) if ids.dtype == dtype == pl.String else id_values(ids, what)
    if ids.null_count():
        raise DataError(
            f"{what} holds {ids.null_count()} values that are null or stand for nothing, expected item ids alone"
        )
    if ids.dtype.is_integer() != dtype.is_integer():
        raise DataError(f"{what} is to hold item ids of type {dtype}, and a value does not: {ids[0]!r}")
    return catalogue.mask(ids, what)


def _answer_length(catalogue: Catalogue, k: int, answer: str) -> int:
    """Items that stand in one answer, within which a limit per category counts."""
    return k if answer == "items" else catalogue.spec.session_length


def _lists(config: RecommendConfig, catalogue: Catalogue) -> BoolMask | None:
    """``allow`` and ``available`` and not ``deny``, ``[I]``."""
    mask = None
    for path, listed_are_possible in ((config.allow, True), (config.available, True), (config.deny, False)):
        if path is not None:
            listed = catalogue.mask(read_item_list(path, catalogue.item_ids.dtype, catalogue.item_ids), f"'{path}'")
            possible = listed if listed_are_possible else ~listed
            mask = possible if mask is None else mask & possible
    return mask


def _segment_masks(path: Path, catalogue: Catalogue) -> tuple[tuple[str, ...], BoolMask]:
    """Return the names of the segments and what each may have, ``[S, I]``."""
    item_ids = catalogue.item_ids
    text = pl.String()
    table = read_rule_table(path, {Columns.SEGMENT: text, Columns.ITEM_ID: item_ids.dtype, Columns.RULE: text})
    rule = pl.col(Columns.RULE)
    refuse_rows(table, pl.col(Columns.SEGMENT).is_null(), path, "name no segment")
    known = rule.is_in([ALLOW, DENY, NONE]).fill_null(False)
    refuse_rows(table, ~known, path, f"have a rule that is none of {ALLOW}, {DENY}, {NONE}")
    wrong = pl.col(Columns.ITEM_ID).is_null() != (rule == NONE)
    refuse_rows(table, wrong, path, f"name an item under '{NONE}', or none under '{ALLOW}' or '{DENY}'")
    if table.is_empty():
        raise DataError(f"rule file '{path}' holds no row, expected at least one for every segment")
    names = tuple(table[Columns.SEGMENT].unique().sort())
    segment = _numbers(table[Columns.SEGMENT], names)
    item = catalogue.listed_index(table[Columns.ITEM_ID].drop_nulls(), f"'{path}'")
    listed = (table[Columns.RULE] != NONE).to_numpy()
    segment, allows = segment[listed], (table[Columns.RULE] == ALLOW).to_numpy()[listed]
    allow_SI, deny_SI = np.zeros((2, len(names), len(item_ids)), bool)
    for marks, chosen in ((allow_SI, allows & (item >= 0)), (deny_SI, ~allows & (item >= 0))):
        marks[segment[chosen], item[chosen]] = True
    has_list = np.bincount(segment[allows], minlength=len(names)) > 0  # a list of unknown items allows nothing
    allow_SI[~has_list] = True
    return names, allow_SI & ~deny_SI


def _segments_of(
    user_ids: pl.Series, path: Path, names: tuple[str, ...], config: RecommendConfig
) -> npt.NDArray[np.int64]:
    """Segment number of every user, ``[U]``."""
    table = read_rule_table(path, {Columns.USER_ID: user_ids.dtype, Columns.SEGMENT: pl.String()})
    refuse_rows(table, pl.any_horizontal(pl.all().is_null()), path, "lack the user or the segment")
    refuse_rows(table, pl.col(Columns.USER_ID).is_duplicated(), path, "name a user that occurs more than once")
    refuse_rows(
        table,
        ~pl.col(Columns.SEGMENT).is_in(names),
        path,
        f"have a segment without rules in '{config.segment_rules}' (it has {_shorten(names)}; a segment without a list "
        f"of its own needs one row with the rule '{NONE}')",
    )
    default = config.default_segment
    if default is not None and default not in names:
        raise ConfigError(
            f"default_segment is '{default}', which has no rules in '{config.segment_rules}'; it has {_shorten(names)}"
        )
    place = index_of(user_ids, table[Columns.USER_ID], "user ids of the job")
    without = place < 0
    if without.any() and default is None:
        raise DataError(
            f"segments '{path}': {int(without.sum())} of {len(user_ids)} users have no segment, the first is user_id "
            f"{user_ids[int(np.argmax(without))]!r}; list them, or set default_segment"
        )
    fallback = 0 if default is None else names.index(default)
    return np.append(_numbers(table[Columns.SEGMENT], names), fallback)[place]  # -1 reads the last entry


def category_quotas(
    catalogue: Catalogue,
    length: int,
    max_per_category: int | None,
    limits: Mapping[str, int] | None = None,
    item_categories: Path | None = None,
) -> Quotas:
    """Limit how many items of a category stand in one list or session.

    Args:
        length: Items of a list or session; the others are as in :class:`~serving.config.RecommendConfig`.

    Raises:
        ConfigError: A limit names a category that no item has, or the model knows no categories and no file is given.
        DataError: The file does not keep its form.
    """
    group_I, names = _categories(item_categories, catalogue)
    # no list is longer than this, so this is "no limit"
    limit_G = np.full(len(names), min(max_per_category or length, length), np.int64)
    for name, limit in (limits or {}).items():
        if name not in names[1:]:
            close = difflib.get_close_matches(name, names[1:], n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {_shorten(names[1:])}"
            raise ConfigError(f"category_limits: no item is of category '{name}'; {hint}")
        limit_G[names.index(name)] = min(limit, length)
    return Quotas.from_groups(group_I, limit_G)


def _categories(path: Path | None, catalogue: Catalogue) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Category of every item, ``[I]``, and the names of the categories; number 0 is "no category"."""
    if path is None:
        group_I = catalogue.category_I
        if group_I is None or not group_I.any():
            raise ConfigError(
                "a limit per category is set, but the model was trained with no category of any item; give item_categories"
            )
        present = set(group_I.tolist())
        # an index that no item has gets a name that nobody can ask for
        return group_I, [str(number) if number in present else "" for number in range(int(group_I.max()) + 1)]
    table = read_rule_table(path, {Columns.ITEM_ID: catalogue.item_ids.dtype, Columns.CATEGORY: pl.String()})
    refuse_rows(table, pl.any_horizontal(pl.all().is_null()), path, "lack the item or the category")
    refuse_rows(table, pl.col(Columns.ITEM_ID).is_duplicated(), path, "name an item that occurs more than once")
    names = ["", *table[Columns.CATEGORY].unique().sort()]
    place = index_of(catalogue.item_ids, table[Columns.ITEM_ID], "item ids of the model")
    if (place < 0).any():
        logger.warning(
            "'%s' gives no category for %d of the model's %d items; they have no limit",
            path,
            int((place < 0).sum()),
            len(place),
        )
    return np.append(_numbers(table[Columns.CATEGORY], names), 0)[place], names


def _numbers(values: pl.Series, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Position of each value in ``names``; every value has one."""
    numbers: npt.NDArray[np.int64] = values.cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()
    return numbers


def _log(
    allowed: BoolMask | None, segment_U: npt.NDArray[np.int64] | None, names: tuple[str, ...], quotas: Quotas | None
) -> None:
    if allowed is None and quotas is None:
        return
    if segment_U is None or allowed is None:
        possible = "all" if allowed is None else f"{int(allowed.sum())} of {len(allowed)}"
        logger.info("item rules: %s items possible%s", possible, "" if quotas is None else ", limits per category")
        return
    users_S, items_S = np.bincount(segment_U, minlength=len(names)), allowed.sum(1)
    for name, users, items in zip(names, users_S, items_S, strict=True):
        log = logger.warning if users and not items else logger.info
        log("item rules: segment '%s': %d users, %d of %d items possible", name, users, items, allowed.shape[1])


def _shorten(names: Sequence[str], limit: int = 8) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
