"""Rows that cannot be used: each goes to ``quarantine.parquet`` with a reason, and too many stop the stage.

Reads batches of raw rows; produces the good rows of each, the table of refused rows, and the refusal above a configured
share. The share is looked at when all rows have been read, so that its message counts everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Final

import polars as pl
from pydantic import Field, field_validator

from features.reading import LIKE_A_COMMENT, place_of
from features.refused import RefusedRows
from features.sources.base import FILE, PREHISTORY, RAW, REFUSED, ROW
from recsys.config import FrozenConfig, an_instant
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import EARLIEST_US, LATEST_US, microseconds

DUPLICATE: Final = "duplicate"

_NAMED_REASONS: Final = 10  # of the message; the table has all


class QuarantineConfig(FrozenConfig):
    """How many raw rows may be refused, and from which instant on a time is refused.

    Attributes:
        max_share: Share of raw rows that may be refused before the stage stops.
        not_after: Rows later than this instant are refused, UTC unless it carries an offset; ``None``: the future is
            reported and kept.
    """

    max_share: float = Field(0.05, ge=0.0, le=1.0)
    not_after: datetime | date | None = None

    _instants = field_validator("not_after", mode="wrap")(an_instant)


class Quarantine:
    """Takes refused rows out of the batches of one log.

    Attributes:
        refused: The refused rows, as ``quarantine.parquet`` holds them: ``file``, ``row``, ``reason``, all that was read.
        rows_in: Rows that were looked at.

    A row gets the first reason that applies: what its reader says, null ids, missing, implausible (1990 to 2100) or too late
    a time, missing position, negative watch time or duration, missing session.

    Example:
        >>> from features.sources.base import EventStream
        >>> rows = pl.DataFrame({"user_id": [7, None], "item_id": [1, 2], "position": [0, 1]})
        >>> stream = EventStream.from_frame(rows, "log")
        >>> quarantine = Quarantine(stream.schema, stream.files, QuarantineConfig(), need_session_id=False)
        >>> [quarantine.sift(batch)["user_id"].to_list() for batch in stream.batches()]
        [[7]]
        >>> quarantine.refused.table().select("file", "row", "reason").rows()
        [('log', 1, 'null user_id')]
    """

    def __init__(
        self, schema: pl.Schema, files: Sequence[str], config: QuarantineConfig, *, need_session_id: bool
    ) -> None:
        """Prepare the rules.

        Args:
            schema: Columns of the batches.
            files: Their files.
            config: Limits.
            need_session_id: Sessions are given by the source, so a timed row without one is refused.
        """
        self._config = config
        self._files = pl.Series(list(files), dtype=pl.String)
        rules = _rules(schema, config, need_session_id=need_session_id)
        self._any = pl.any_horizontal(rule for _, rule in rules).fill_null(True)
        reason: pl.Expr = pl.col(REFUSED)
        for text, rule in rules:
            reason = pl.coalesce(reason, pl.when(rule.fill_null(False)).then(pl.lit(text)))
        shown = [name for name in schema.names() if name not in (FILE, ROW, PREHISTORY, REFUSED, RAW)]
        # in the order of a reader's eye: where, why, what
        self._shown = [FILE, ROW, reason.alias(Columns.REASON), PREHISTORY, *shown, RAW]
        self.refused = RefusedRows(self._with_paths(schema.to_frame().select(self._shown)).schema)
        self.rows_in = 0

    def sift(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Return the usable rows of a batch and keep the others."""
        self.rows_in += len(batch)
        bad = batch.select(self._any).to_series()
        if not bad.any():
            return batch
        self.refused.append(self._with_paths(batch.filter(bad).select(self._shown)))
        return batch.filter(~bad)

    def _with_paths(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(self._files.gather(rows[FILE]).alias(FILE))


def _rules(schema: pl.Schema, config: QuarantineConfig, *, need_session_id: bool) -> list[tuple[str, pl.Expr]]:
    timed = ~pl.col(PREHISTORY)
    rules: list[tuple[str, pl.Expr]] = [
        (REFUSED, pl.col(REFUSED).is_not_null()),
        (f"null {Columns.USER_ID}", pl.col(Columns.USER_ID).is_null()),
        (f"null {Columns.ITEM_ID}", pl.col(Columns.ITEM_ID).is_null()),
    ]
    if Columns.TIMESTAMP in schema:
        time = pl.col(Columns.TIMESTAMP)
        rules.append((f"null {Columns.TIMESTAMP}", timed & time.is_null()))
        rules.append((f"implausible {Columns.TIMESTAMP}", timed & ~time.is_between(EARLIEST_US, LATEST_US)))
        if config.not_after is not None:
            limit = microseconds(config.not_after)
            rules.append((f"{Columns.TIMESTAMP} after {config.not_after.isoformat()}", timed & (time > limit)))
    if Columns.POSITION in schema:
        ordered_by_place = pl.lit(True) if Columns.TIMESTAMP not in schema else pl.col(PREHISTORY)
        rules.append((f"null {Columns.POSITION}", ordered_by_place & pl.col(Columns.POSITION).is_null()))
    rules += [
        (f"negative {name}", (pl.col(name) < 0).fill_null(False))
        for name in (Columns.WATCH_TIME_MS, Columns.DURATION_MS)
        if name in schema
    ]
    if Columns.PROPENSITY in schema:
        propensity = pl.col(Columns.PROPENSITY)
        within = (propensity > 0) & (propensity <= 1)
        rules.append((f"{Columns.PROPENSITY} outside (0, 1]", (~within).fill_null(False)))
    if need_session_id:
        rules.append((f"null {Columns.SESSION_ID}", timed & pl.col(Columns.SESSION_ID).is_null()))
    return rules


def and_duplicates(refused: RefusedRows, rows: pl.DataFrame) -> RefusedRows:
    """Return the refused rows, and behind them repeats of an event that was kept.

    Args:
        refused: As they were read.
        rows: As :meth:`features.log.encoded_log.EncodedLog.decode` gives them.
    """
    complete = rows.with_columns(pl.lit(DUPLICATE).alias(Columns.REASON), pl.lit(None, pl.String).alias(RAW))
    return refused.and_also(complete.select(pl.col(name).cast(dtype) for name, dtype in refused.schema.items()))


def check_share(refused: RefusedRows, rows_in: int, config: QuarantineConfig) -> None:
    """Stop when too large a share of the raw rows was refused, or every one, whatever is allowed.

    Raises:
        DataError: Names the share, the limit, and each reason with its count and its first row.
    """
    share = len(refused) / max(rows_in, 1)
    if share <= config.max_share and (len(refused) < rows_in or not rows_in):
        return
    found = sorted(refused.reasons.items(), key=lambda reason: -reason[1].rows)
    named = found[:_NAMED_REASONS]
    listed = "; ".join(f"{text}: {one.rows}, first in {place_of(one.file, one.row)}" for text, one in named)
    if len(found) > len(named):
        listed += f"; and {len(found) - len(named)} more reasons"
    way_out = "mend the source, or raise features.quarantine.max_share"
    if LIKE_A_COMMENT in refused.reasons:
        way_out += ", or set source.comment: '#' (of kind: table) if lines that begin with it are comments"
    if DUPLICATE in refused.reasons:
        way_out += ", or set features.duplicates: keep or merge if repeated rows are meant"
    if len(refused) >= rows_in:
        raise DataError(f"all {rows_in} rows are unusable, so there is nothing to prepare ({listed}); mend the source")
    raise DataError(
        f"{len(refused)} of {rows_in} rows ({share:.1%}) are unusable, allowed are {config.max_share:.1%} ({listed}); "
        f"{way_out}"
    )
