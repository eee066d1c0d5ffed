"""Rows that cannot be used: each goes to ``quarantine.parquet`` with a reason, and too many stop the stage.

Reads raw interactions; produces the good rows, the refused rows with reasons, and the refusal above a configured share.
"""

from __future__ import annotations

from typing import Final

import polars as pl
from pydantic import Field

from features.sources.base import PREHISTORY, ROW, RawTables
from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import EARLIEST_US, LATEST_US

DUPLICATE: Final = "duplicate"


class QuarantineConfig(FrozenConfig):
    """How many raw rows may be refused.

    Attributes:
        max_share: Share of raw rows that may be refused before the stage stops.
    """

    max_share: float = Field(0.05, ge=0.0, le=1.0)


def refuse_rows(raw: RawTables, *, need_session_id: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split raw interactions into usable and refused rows.

    A row gets the first reason that applies, in the order: null ids, missing or implausible time (1990 to 2100), missing
    position, negative watch time or duration, missing session.

    Args:
        raw: The source's tables.
        need_session_id: Sessions are given by the source, so a timed row without one is refused.

    Returns:
        Usable rows, in the order of the source; refused rows with the column ``reason``.

    Example:
        >>> from features.sources.base import EventStream
        >>> rows = pl.DataFrame({"row": [0, 1], "prehistory": False, "user_id": [7, None], "item_id": [1, 2],
        ...                      "position": [0, 1]})
        >>> events = EventStream.from_frame(rows, "log")
        >>> good, bad = refuse_rows(RawTables(events, None, None, (), (), False), need_session_id=False)
        >>> good["user_id"].to_list(), bad["reason"].to_list()
        ([7], ['null user_id'])
    """
    interactions = raw.interactions.collect()
    columns = interactions.columns
    timed = ~pl.col(PREHISTORY)
    rules: list[tuple[str, pl.Expr]] = [
        (f"null {Columns.USER_ID}", pl.col(Columns.USER_ID).is_null()),
        (f"null {Columns.ITEM_ID}", pl.col(Columns.ITEM_ID).is_null()),
    ]
    if raw.has_timestamps:
        time = pl.col(Columns.TIMESTAMP)
        rules.append((f"null {Columns.TIMESTAMP}", timed & time.is_null()))
        rules.append((f"implausible {Columns.TIMESTAMP}", timed & ~time.is_between(EARLIEST_US, LATEST_US)))
    if raw.has_positions:
        ordered_by_place = pl.lit(True) if not raw.has_timestamps else pl.col(PREHISTORY)
        rules.append((f"null {Columns.POSITION}", ordered_by_place & pl.col(Columns.POSITION).is_null()))
    rules += [
        (f"negative {name}", (pl.col(name) < 0).fill_null(False))
        for name in (Columns.WATCH_TIME_MS, Columns.DURATION_MS)
        if name in columns
    ]
    if need_session_id:
        rules.append((f"null {Columns.SESSION_ID}", timed & pl.col(Columns.SESSION_ID).is_null()))

    bad = interactions.select(pl.any_horizontal(rule for _, rule in rules).fill_null(True)).to_series()
    if not bad.any():
        return interactions, _refused(interactions.head(0), pl.lit(None, pl.String))
    reason: pl.Expr = pl.lit("unknown")
    for text, rule in reversed(rules):
        reason = pl.when(rule.fill_null(False)).then(pl.lit(text)).otherwise(reason)
    return interactions.filter(~bad), _refused(interactions.filter(bad), reason)


def as_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """Return refused rows for repeats of an event that was kept."""
    return _refused(rows, pl.lit(DUPLICATE))


def _refused(rows: pl.DataFrame, reason: pl.Expr) -> pl.DataFrame:
    wanted = (ROW, PREHISTORY, Columns.USER_ID, Columns.ITEM_ID, Columns.TIMESTAMP, Columns.POSITION)
    shown = [name for name in wanted if name in rows.columns]
    return rows.select(*shown, reason.alias(Columns.REASON))


def reasons(refused: pl.DataFrame) -> dict[str, int]:
    """Return rows per reason, sorted by reason."""
    counted = refused.group_by(Columns.REASON).len().sort(Columns.REASON)
    return dict(counted.iter_rows())


def check_share(refused: pl.DataFrame, rows_in: int, config: QuarantineConfig) -> None:
    """Stop when too large a share of the raw rows was refused.

    Raises:
        DataError: Names the share, the limit, and each reason with its count.
    """
    share = len(refused) / max(rows_in, 1)
    if share <= config.max_share:
        return
    counts = reasons(refused)
    listed = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    way_out = "mend the source, or raise features.quarantine.max_share"
    if DUPLICATE in counts:
        way_out += ", or set features.duplicates: keep if repeated rows are meant"
    raise DataError(
        f"{len(refused)} of {rows_in} rows ({share:.1%}) are unusable, allowed are {config.max_share:.1%} ({listed}); "
        f"{way_out}"
    )
