"""Histories of any interactions table, in the form that the serving side reads: one row per user.

Reads a source by the same map, quarantine, order and signals as `prepare`, and no split, k-core or catalogue: every user of
the table is answered, and items that a model does not know are counted where it answers. Produces the frame of
:mod:`serving.inputs.history_frame`.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from features.build import FeaturesConfig, check_read
from features.histories import event_watch_ratio
from features.log.encode import read_log
from features.log.event_log import keep_events
from features.log.k_core import KCoreConfig
from features.log.quarantine import and_duplicates, check_share
from features.log.signal_bits import behaviour_bytes
from features.sources.base import Source
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError

_NO_K_CORE: Final = KCoreConfig(user=0, item=0)


def user_histories(source: Source, config: FeaturesConfig, seed: int) -> pl.DataFrame:
    """Return the positive events of every user, oldest first.

    Args:
        source: Where the logs come from.
        config: Of the run whose model will read the histories: its quarantine and its rule for repeated rows.
        seed: Used by the simulator only.

    Returns:
        ``user_id``, ``item_ids``, and as far as the source declares them lists of the same lengths: ``timestamps``
        (``Datetime[us, UTC]``, null where there is an order only), ``behaviours``, ``watch_ratios``. A user without any
        positive event has empty lists.

    Raises:
        ConfigError: The model reads derived signals, whose bounds only `prepare` knows.
        DataError: Unreadable files, missing columns, a wrong unit, too many bad rows.
    """
    if config.derived_signals:
        raise ConfigError(
            f"histories: features.derived_signals ('{config.derived_signals[0].name}') are fitted by `prepare` on its train "
            "events, which this table need not hold; score the users of the prepared data (recommend --config), or train "
            "without them"
        )
    raw = source.read(seed)
    read = read_log(raw, config.quarantine, need_session_id=False)
    check_read(raw, read, config)
    kept = keep_events(read.log, _NO_K_CORE, config.duplicates, raw.merge_rules)
    check_share(and_duplicates(read.refused, kept.dropped), read.rows_in, config.quarantine)
    log = kept.log
    events = pl.DataFrame({"user": log.user, Columns.ITEM_IDS: log.item_ids.gather(pl.Series(log.item))})
    if raw.has_timestamps:
        time = pl.Series(log.timestamp)
        events = events.with_columns(time.set(time < 0, None).cast(pl.Datetime("us", "UTC")).alias(Columns.TIMESTAMPS))
    if raw.signals:
        codes = behaviour_bytes(log.signal_values, log.signal_known, len(log.signals))
        events = events.with_columns(pl.Series(Columns.BEHAVIOURS, codes).cast(pl.Int64))
    if log.watch_time is not None and log.duration is not None:
        ratio = pl.Series(Columns.WATCH_RATIOS, event_watch_ratio(log)).cast(pl.Float64)
        events = events.with_columns(ratio.fill_nan(None))
    lists = events.filter(pl.Series(log.positive)).group_by("user", maintain_order=True).agg(pl.exclude("user"))
    users = pl.DataFrame({Columns.USER_ID: log.user_ids}).with_row_index("user").cast({"user": events.schema["user"]})
    rows = users.join(lists, on="user", how="left", maintain_order="left").drop("user")
    # a user without positive events has met no list: an empty one, of the column's own type
    return rows.with_columns(
        pl.col(name).fill_null(pl.lit(pl.Series([[]], dtype=dtype)).first())
        for name, dtype in rows.schema.items()
        if name != Columns.USER_ID
    )
