"""Evaluate any number of systems on the same rows: per-user results, means with intervals, paired comparisons.

Reads a prepared data set and one ranking per system, with and without the items already seen. Steps:

The rows are evaluated one block of users at a time, and what is needed again lies on disk: memory does not grow with them.

1. every ranking -> metrics per row -> ``per_user.parquet`` (system, exclude_seen, user_id, one column per metric)
2. slices and bootstrap -> ``metrics.parquet`` (mean, low, high for every system, filter, slice and metric)
3. differences from the reference system, row by row -> ``comparisons.parquet``
4. all of it, and a summary for people and trackers -> ``metrics.json``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.manifest import write_json
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.by_id import IdArray, rank_ids, target_ids
from recsys.evaluation.config import BY_ID, EvaluateConfig
from recsys.evaluation.per_user import PerUserFile
from recsys.evaluation.rankings import ROWS_PER_BLOCK, rows_of
from recsys.evaluation.slices import ALL_ROWS, Mask, row_slices
from recsys.metrics.bootstrap import ResampledMeans, UserSums
from recsys.metrics.list_quality import ListQuality
from recsys.metrics.ranking import ROW_METRICS, Values, coverage_of, exposures, gini_of, row_metrics
from recsys.metrics.row_store import RowStore

Rankings = Mapping[str, Mapping[bool, RankedItems]]

FILTER_NAMES: Final = {True: "filtered", False: "unfiltered"}
METRICS_FILE: Final = "metrics.parquet"
COMPARISONS_FILE: Final = "comparisons.parquet"
PER_USER_FILE: Final = "per_user.parquet"
SUMMARY_FILE: Final = "metrics.json"


def evaluate(
    prepared: Dataset,
    rankings: Rankings,
    config: EvaluateConfig,
    out_dir: Path,
    seed: int,
    *,
    ids: IdArray | None = None,
    vectors: npt.NDArray[np.floating] | None = None,
    rows_per_block: int = ROWS_PER_BLOCK,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate all rankings and write the four files of the module docstring into ``out_dir``.

    Args:
        rankings: ``{system: {exclude_seen: ranking}}`` of the rows of ``prepared.targets(config.split_code)``, in that
            order, at least ``max(ks)`` wide; every system needs each filter of ``config.filters``.
        seed: Of the bootstrap.
        ids: ``[I]`` number of each item's semantic ID, where ``config.by_id`` asks for figures by ID.
        vectors: ``[I, D]`` item vectors, for the metrics of ``config.list_metrics`` that compare items.
        rows_per_block: Rows evaluated at once, rounded up to whole users; what is needed of earlier ones lies on disk.
        notes: What a reader of the table has to know; they stand below it.

    Returns:
        The summary: ``systems[system][filtered | unfiltered][metric]`` is ``{mean, low, high}`` over all rows, and
        ``comparisons[system][filter][metric]`` is ``{difference, low, high, p_value}`` of reference minus system.

    Raises:
        ConfigError: The reference is none of the systems.
        DataError: The split is empty, a filter is missing, or a ranking does not fit the targets.
    """
    targets = prepared.targets(config.split_code)
    _check(targets, rankings, config)
    if (config.by_id is None) != (ids is None):
        raise ConfigError(
            f"evaluate.by_id is {config.by_id}, but {'no' if ids is None else 'the'} item IDs are given; give both"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    counts = prepared.items[Columns.TRAIN_COUNT].to_numpy()
    slices = row_slices(targets, counts, config.slices)
    blocks = user_blocks(targets.user_index, rows_per_block)
    quality = ListQuality.of(prepared, config.list_metrics, config.headline_k, vectors)
    work = _Work(prepared, rankings, config, targets, slices, blocks, out_dir, ids, quality)
    rows: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    references = {exclude: work.reference_values(exclude) for exclude in config.filters} if config.reference else {}
    with PerUserFile(out_dir / PER_USER_FILE) as table:
        for system in rankings:
            for exclude in config.filters:
                found = work.measure(system, exclude, references.get(exclude), table)
                means = found.means.resample(config.resamples, seed)
                rows += _metric_rows(system, exclude, work.names, slices, means, config)
                rows += _catalogue_rows(system, exclude, found.shown, len(targets))
                if found.gaps is not None:
                    gaps = found.gaps.resample(config.resamples, seed)
                    compared += _compared_rows(system, exclude, work.names, gaps, config)
    metrics = pl.DataFrame(rows, schema=_METRICS_SCHEMA)
    metrics.write_parquet(out_dir / METRICS_FILE)
    comparisons = pl.DataFrame(compared, schema=_COMPARISONS_SCHEMA)
    comparisons.write_parquet(out_dir / COMPARISONS_FILE)
    notes = [*notes, *quality.notes]
    summary = {**_summary(metrics, comparisons, slices, targets, config), "notes": notes}
    write_json(out_dir / SUMMARY_FILE, {**summary, "metrics": metrics.to_dicts()})
    return summary


_METRICS_SCHEMA = {
    "system": pl.String,
    "exclude_seen": pl.Boolean,
    "slice": pl.String,
    "metric": pl.String,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "rows": pl.Int64,
}
_COMPARISONS_SCHEMA = {
    "reference": pl.String,
    "system": pl.String,
    "exclude_seen": pl.Boolean,
    "metric": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_value": pl.Float64,
}


def _check(targets: Targets, rankings: Rankings, config: EvaluateConfig) -> None:
    if not len(targets):
        raise DataError(
            f"the {config.split} split has no rows to evaluate; check the dates or shares of the split in `prepare`"
        )
    if config.reference is not None and config.reference not in rankings:
        raise ConfigError(f"reference '{config.reference}' is none of the systems evaluated: {', '.join(rankings)}")
    for system, by_filter in rankings.items():
        for exclude in config.filters:
            if exclude not in by_filter:
                raise DataError(
                    f"system '{system}' has no {FILTER_NAMES[exclude]} ranking, filter_seen={config.filter_seen} "
                    f"needs it; rank with exclude_seen={exclude} too"
                )
            if len(by_filter[exclude]) != len(targets):
                raise DataError(
                    f"the {FILTER_NAMES[exclude]} ranking of '{system}' has {len(by_filter[exclude])} rows, the targets "
                    f"{len(targets)}; rank the histories of these targets"
                )


def user_blocks(users: npt.NDArray[np.integer], rows_per_block: int) -> list[slice]:
    """Cut rows into blocks of whole users; rows that are not in the order of their users stay in one block.

    Example:
        >>> user_blocks(np.array([0, 0, 1, 2, 2, 2, 3]), 2)
        [slice(0, 2, None), slice(2, 6, None), slice(6, 7, None)]
    """
    if (np.diff(users) < 0).any():
        return [slice(0, len(users))]
    starts = np.flatnonzero(np.diff(users, prepend=users[0] - 1))  # first row of every user
    cuts = [0]
    while cuts[-1] < len(users):
        place = np.searchsorted(starts, cuts[-1] + rows_per_block)
        cuts.append(int(starts[place]) if place < len(starts) else len(users))
    return [slice(begin, end) for begin, end in pairwise(cuts)]


@dataclass(frozen=True)
class _Measured:
    """What one ranking gave: sums per user, gaps of the reference to it, and how often each item was shown, by cut-off."""

    means: UserSums
    gaps: UserSums | None
    shown: dict[int, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class _Work:
    """The rows that all systems are evaluated on, and how they are cut."""

    prepared: Dataset
    rankings: Rankings
    config: EvaluateConfig
    targets: Targets
    slices: Mapping[str, Mask]
    blocks: list[slice]
    scratch: Path
    ids: IdArray | None
    quality: ListQuality

    @property
    def names(self) -> list[str]:
        """Metrics, in the order of the columns: by item, then by semantic ID, then what else is said of lists."""
        kinds = ("",) if self.ids is None else ("", BY_ID)
        hits = [f"{metric}{kind}@{k}" for kind in kinds for k in self.config.ks for metric in ROW_METRICS]
        return [*hits, *self.quality.names]

    def reference_values(self, exclude: bool) -> RowStore:
        """Metrics of the reference, one block of rows after the other."""
        store = RowStore(self.scratch)
        for rows in self.blocks:
            store.add(self._values(rows_of(self.rankings[self.config.reference or ""][exclude], rows), rows))
        return store

    def measure(self, system: str, exclude: bool, reference: RowStore | None, table: PerUserFile) -> _Measured:
        """Go over the rows once."""
        ranked, users = self.rankings[system][exclude], self.targets.user_index
        user_ids = self.prepared.users[Columns.USER_ID]
        masks = np.stack(list(self.slices.values()), axis=1)
        compared = reference is not None and system != self.config.reference
        means, gaps = UserSums(self.scratch), UserSums(self.scratch) if compared else None
        shown = {k: np.zeros(self.prepared.spec.num_items, np.int64) for k in self.config.ks}
        for rows, known in zip(self.blocks, reference or [None] * len(self.blocks), strict=True):
            part = rows_of(ranked, rows)
            values = known if known is not None and not compared else self._values(part, rows)
            means.add(values, masks[rows], users[rows])
            if gaps is not None and known is not None:
                gaps.add(known - values, np.ones((len(values), 1), bool), users[rows])
            for k, counts in shown.items():
                counts += exposures(part, k, len(counts))
            columns = {name: values[:, m].astype(np.float32) for m, name in enumerate(self.names)}
            table.add(system, exclude, user_ids.gather(users[rows]), columns)
        return _Measured(means, gaps, shown)

    def _values(self, ranked: RankedItems, rows: slice) -> Values:
        targets = self.targets.take(np.arange(rows.start, rows.stop))
        found = row_metrics(ranked, targets, self.config.ks, first_row=rows.start)
        if self.ids is not None:
            as_ids = (rank_ids(ranked, self.ids), target_ids(targets, self.ids))
            by_id = row_metrics(*as_ids, self.config.ks, first_row=rows.start)
            found |= {name.replace("@", f"{BY_ID}@"): values for name, values in by_id.items()}
        found |= self.quality.values(ranked, targets)
        return np.stack([found[name] for name in self.names], axis=1)


def _metric_rows(
    system: str,
    exclude: bool,
    names: list[str],
    slices: Mapping[str, Mask],
    resampled: ResampledMeans,
    config: EvaluateConfig,
) -> list[dict[str, Any]]:
    low, high = resampled.interval(config.confidence)
    return [
        {
            "system": system,
            "exclude_seen": exclude,
            "slice": slice_name,
            "metric": metric,
            "mean": _or_none(resampled.mean[s, m]),
            "low": _or_none(low[s, m]),
            "high": _or_none(high[s, m]),
            "rows": int(mask.sum()),
        }
        for s, (slice_name, mask) in enumerate(slices.items())
        for m, metric in enumerate(names)
    ]


def _catalogue_rows(
    system: str, exclude: bool, shown: Mapping[int, npt.NDArray[np.int64]], num_rows: int
) -> list[dict[str, Any]]:
    """Coverage and Gini belong to a whole system, so they have no interval over users."""
    common = {"system": system, "exclude_seen": exclude, "slice": ALL_ROWS, "low": None, "high": None}
    found = [(f"{name}@{k}", function(counts)) for name, function in _CATALOGUE.items() for k, counts in shown.items()]
    return [{**common, "metric": metric, "mean": value, "rows": num_rows} for metric, value in found]


_CATALOGUE = {"coverage": coverage_of, "gini": gini_of}


def _compared_rows(
    system: str, exclude: bool, names: list[str], gaps: ResampledMeans, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """The reference minus one system, by metric."""
    (low, high), p_value = gaps.interval(config.confidence), gaps.p_value()
    return [
        {
            "reference": config.reference,
            "system": system,
            "exclude_seen": exclude,
            "metric": metric,
            "difference": float(gaps.mean[0, m]),
            "low": float(low[0, m]),
            "high": float(high[0, m]),
            "p_value": float(p_value[0, m]),
        }
        for m, metric in enumerate(names)
    ]


def _summary(
    metrics: pl.DataFrame,
    comparisons: pl.DataFrame,
    slices: Mapping[str, Mask],
    targets: Targets,
    config: EvaluateConfig,
) -> dict[str, Any]:
    systems: dict[str, Any] = {}
    for row in metrics.filter(pl.col("slice") == ALL_ROWS).iter_rows(named=True):
        by_metric = systems.setdefault(row["system"], {}).setdefault(FILTER_NAMES[row["exclude_seen"]], {})
        by_metric[row["metric"]] = {key: row[key] for key in ("mean", "low", "high")}
    compared: dict[str, Any] = {}
    for row in comparisons.iter_rows(named=True):
        by_metric = compared.setdefault(row["system"], {}).setdefault(FILTER_NAMES[row["exclude_seen"]], {})
        by_metric[row["metric"]] = {key: row[key] for key in ("difference", "low", "high", "p_value")}
    return {
        "split": config.split,
        "count_until": config.count_until,
        "rows": len(targets),
        "users": len(np.unique(targets.user_index)),
        "reference": config.reference,
        "resamples": config.resamples,
        "confidence": config.confidence,
        "headline": list(config.headline),
        "headline_by_id": list(config.headline_by_id),
        "slices": {name: int(mask.sum()) for name, mask in slices.items()},
        "systems": systems,
        "comparisons": compared,
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
