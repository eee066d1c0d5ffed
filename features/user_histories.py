"""Histories of any interactions table, in the form that the serving side reads: one row per user.

Reads a source by the same map, quarantine, order and signals as `prepare`, and no split, k-core or catalogue: every user of
the table is answered, and items that a model does not know are counted where it answers. Produces the frame of
:mod:`serving.inputs.history_frame`.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from features.build import FeaturesConfig
from features.events import KCoreConfig, build_event_log
from features.histories import event_behaviour, event_watch_ratio
from features.quarantine import check_share, refuse_rows
from features.sources.base import Source
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError

_NO_K_CORE: Final = KCoreConfig(user=0, item=0)


def user_histories(source: Source, config: FeaturesConfig, seed: int) -> pl.DataFrame:
    """Return the positive events of every user, oldest first.

    Args:
        source: Where the logs come from.
        config: Of the run whose model will read the histories: its quarantine and its rule for repeated rows.
        seed: Used by the simulator only.

    Returns:
        ``user_id``, ``item_ids``, and as far as the source declares them lists of the same lengths: ``timestamps`` (UTC
        microseconds, null where there is an order only), ``behaviours``, ``watch_ratios``. A user without any positive event
        has empty lists.

    Raises:
        DataError: Unreadable files, missing columns, a wrong unit, too many bad rows.
    """
    raw = source.read(seed)
    good, refused = refuse_rows(raw, need_session_id=False)
    rows_in = len(good) + len(refused)
    if rows_in == 0:
        raise DataError("the source has no interactions at all; check source.path and the column map")
    log = build_event_log(raw, good, _NO_K_CORE, config.duplicates)
    check_share(pl.concat([refused, log.duplicates]), rows_in, config.quarantine)
    events = pl.DataFrame({"user": log.user, "item_ids": log.item_ids.gather(log.item)})
    if raw.has_timestamps:
        time = pl.Series(log.timestamp)
        events = events.with_columns(timestamps=time.set(time < 0, None))
    if raw.signals:
        events = events.with_columns(behaviours=pl.Series(event_behaviour(log.frame, raw.signals)).cast(pl.Int64))
    if Columns.WATCH_TIME_MS in log.frame.columns and Columns.DURATION_MS in log.frame.columns:
        events = events.with_columns(
            watch_ratios=pl.Series(event_watch_ratio(log.frame)).cast(pl.Float64).fill_nan(None)
        )
    lists = events.filter(pl.Series(log.positive)).group_by("user", maintain_order=True).agg(pl.exclude("user"))
    users = pl.DataFrame({Columns.USER_ID: log.user_ids}).with_row_index("user").cast({"user": events.schema["user"]})
    rows = users.join(lists, on="user", how="left", maintain_order="left").drop("user")
    return rows.with_columns(pl.exclude(Columns.USER_ID).fill_null([]))
