"""Are a batch job's candidates legal? Told by outside ids, from the files alone, without any code of the job.

Every rule is a join: what is left of the candidates after it is illegal.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from serving.config import RecommendConfig
from tests.toy.batch_world import World


def illegal_rows(world: World, config: RecommendConfig, out: Path) -> dict[str, int]:
    """Count the offences against every rule, over all shards.

    Args:
        config: Rules of :func:`~tests.toy.batch_world.write_rules`; ``allow`` and ``deny`` are not read.
    """
    prepared = Dataset.open(world.prepared)
    items = prepared.items.select(Columns.ITEM_ID, Columns.ITEM_INDEX, Columns.CATEGORY_INDEX)
    total: dict[str, int] = {}
    for path in sorted(out.glob("part-*.parquet")):
        rows = pl.read_parquet(path, columns=[Columns.USER_ID, Columns.ITEM_ID])
        for rule, count in _offences(rows, prepared, items, config).items():
            total[rule] = total.get(rule, 0) + count
    return total


def _offences(rows: pl.DataFrame, prepared: Dataset, items: pl.DataFrame, config: RecommendConfig) -> dict[str, int]:
    counts = {
        "not in the catalogue": len(rows.join(items, on=Columns.ITEM_ID, how="anti")),
        "repeated": len(rows) - rows.n_unique(),
        "more than k": int((rows.group_by(Columns.USER_ID).len()["len"] > config.k).sum()),
    }
    if config.available is not None:
        counts["not available"] = len(rows.join(pl.read_parquet(config.available), on=Columns.ITEM_ID, how="anti"))
    if config.segments is not None and config.segment_rules is not None:
        placed = rows.join(pl.read_parquet(config.segments), on=Columns.USER_ID, how="left")
        placed = placed.with_columns(pl.col("segment").fill_null(config.default_segment))
        counts["not for the segment"] = _against_segments(placed, pl.read_parquet(config.segment_rules))
    if config.limits_categories:
        grouped = (
            rows.join(items, on=Columns.ITEM_ID)
            .group_by(Columns.USER_ID, Columns.CATEGORY_INDEX)
            .len()
            .filter(pl.col(Columns.CATEGORY_INDEX) > 0)
        )
        limit = pl.lit(config.max_per_category or config.k)
        for name, value in config.category_limits.items():
            limit = pl.when(pl.col(Columns.CATEGORY_INDEX) == int(name)).then(value).otherwise(limit)
        counts["over the quota"] = len(grouped.filter(pl.col("len") > limit))
    if config.exclude_seen:
        counts["seen"] = len(rows.join(_seen(rows, prepared, items), on=[Columns.USER_ID, Columns.ITEM_ID], how="semi"))
    return counts


def _against_segments(placed: pl.DataFrame, rules: pl.DataFrame) -> int:
    allow, deny = (rules.filter(pl.col("rule") == rule) for rule in ("allow", "deny"))
    keys = ["segment", Columns.ITEM_ID]
    limited = placed.join(allow, on="segment", how="semi")
    return len(limited.join(allow, on=keys, how="anti")) + len(placed.join(deny, on=keys, how="semi"))


def _seen(rows: pl.DataFrame, prepared: Dataset, items: pl.DataFrame) -> pl.DataFrame:
    """Pairs of user_id and item_id in the histories of the users of ``rows``."""
    users = prepared.users.join(rows, on=Columns.USER_ID, how="semi")
    offsets, item = prepared.history.offsets, prepared.history.item
    return (
        users.with_columns(
            pl.Series(
                Columns.ITEM_INDEX,
                [item[offsets[user] : offsets[user + 1]].tolist() for user in users[Columns.USER_INDEX]],
                dtype=pl.List(pl.Int32),
            )
        )
        .explode(Columns.ITEM_INDEX)
        .join(items, on=Columns.ITEM_INDEX)
        .select(Columns.USER_ID, Columns.ITEM_ID)
    )
