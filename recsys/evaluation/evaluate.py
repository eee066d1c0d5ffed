"""Evaluate any number of systems on the same rows: per-user results, means with intervals, paired comparisons.

Reads a prepared data set and one ranking per system, with and without the items already seen. Steps:

1. every ranking -> metrics per row -> ``per_user.parquet`` (system, exclude_seen, user_id, one column per metric)
2. slices and bootstrap -> ``metrics.parquet`` (mean, low, high for every system, filter, slice and metric)
3. differences from the reference system, row by row -> ``comparisons.parquet``
4. all of it, and a summary for people and trackers -> ``metrics.json``
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.manifest import write_json
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.slices import ALL_ROWS, Mask, row_slices
from recsys.metrics.bootstrap import ResampledMeans, resample_means
from recsys.metrics.ranking import Values, coverage, gini, row_metrics

Rankings = Mapping[str, Mapping[bool, RankedItems]]

FILTER_NAMES: Final = {True: "filtered", False: "unfiltered"}
METRICS_FILE: Final = "metrics.parquet"
COMPARISONS_FILE: Final = "comparisons.parquet"
PER_USER_FILE: Final = "per_user.parquet"
SUMMARY_FILE: Final = "metrics.json"


def evaluate(prepared: Dataset, rankings: Rankings, config: EvaluateConfig, out_dir: Path, seed: int) -> dict[str, Any]:
    """Evaluate all rankings and write the four files of the module docstring into ``out_dir``.

    Args:
        rankings: ``{system: {exclude_seen: ranking}}`` of the rows of ``prepared.targets(config.split_code)``, in that
            order, at least ``max(ks)`` wide; every system needs each filter of ``config.filters``.
        seed: Of the bootstrap.

    Returns:
        The summary: ``systems[system][filtered | unfiltered][metric]`` is ``{mean, low, high}`` over all rows, and
        ``comparisons[system][filter][metric]`` is ``{difference, low, high, p_value}`` of reference minus system.

    Raises:
        ConfigError: The reference is none of the systems.
        DataError: The split is empty, a filter is missing, or a ranking does not fit the targets.
    """
    targets = prepared.targets(config.split_code)
    _check(targets, rankings, config)
    out_dir.mkdir(parents=True, exist_ok=True)
    counts = prepared.items[Columns.TRAIN_COUNT].to_numpy()
    slices = row_slices(targets, counts, config.slices)
    evaluated = {
        (system, exclude): row_metrics(rankings[system][exclude], targets, config.ks)
        for system in rankings
        for exclude in config.filters
    }
    _per_user_table(prepared, targets, evaluated).write_parquet(out_dir / PER_USER_FILE)
    rows: list[dict[str, Any]] = []
    for (system, exclude), values in evaluated.items():
        resampled = _resample(values, slices, targets, config, seed)
        rows += _metric_rows(system, exclude, list(values), slices, resampled, config)
        rows += _catalogue_rows(system, exclude, rankings[system][exclude], prepared.spec.num_items, config)
    metrics = pl.DataFrame(rows, schema=_METRICS_SCHEMA)
    metrics.write_parquet(out_dir / METRICS_FILE)
    comparisons = _compare(evaluated, slices[ALL_ROWS], targets, config, seed)
    comparisons.write_parquet(out_dir / COMPARISONS_FILE)
    summary = _summary(metrics, comparisons, slices, targets, config)
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


def _per_user_table(
    prepared: Dataset, targets: Targets, evaluated: Mapping[tuple[str, bool], Mapping[str, Values]]
) -> pl.DataFrame:
    user_ids = prepared.users[Columns.USER_ID].gather(targets.user_index)
    parts = [
        pl.DataFrame({"system": [system], "exclude_seen": [exclude]}).join(
            pl.DataFrame({Columns.USER_ID: user_ids, **{name: v.astype(np.float32) for name, v in values.items()}}),
            how="cross",
        )
        for (system, exclude), values in evaluated.items()
    ]
    return pl.concat(parts)


def _resample(
    values: Mapping[str, Values], slices: Mapping[str, Mask], targets: Targets, config: EvaluateConfig, seed: int
) -> ResampledMeans:
    return resample_means(
        np.stack(list(values.values()), axis=1),
        np.stack(list(slices.values()), axis=1),
        targets.user_index,
        resamples=config.resamples,
        seed=seed,
    )


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
    system: str, exclude: bool, ranked: RankedItems, num_items: int, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Coverage and Gini belong to a whole system, so they have no interval over users."""
    common = {"system": system, "exclude_seen": exclude, "slice": ALL_ROWS, "low": None, "high": None}
    found = [
        (f"{name}@{k}", function(ranked, k, num_items)) for name, function in _CATALOGUE.items() for k in config.ks
    ]
    return [{**common, "metric": metric, "mean": value, "rows": len(ranked)} for metric, value in found]


_CATALOGUE = {"coverage": coverage, "gini": gini}


def _compare(
    evaluated: Mapping[tuple[str, bool], Mapping[str, Values]],
    everybody: Mask,
    targets: Targets,
    config: EvaluateConfig,
    seed: int,
) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for (system, exclude), values in evaluated.items():
        if config.reference is None or system == config.reference:
            continue
        reference = evaluated[config.reference, exclude]
        differences = {metric: reference[metric] - value for metric, value in values.items()}
        resampled = _resample(differences, {ALL_ROWS: everybody}, targets, config, seed)
        (low, high), p_value = resampled.interval(config.confidence), resampled.p_value()
        rows += [
            {
                "reference": config.reference,
                "system": system,
                "exclude_seen": exclude,
                "metric": metric,
                "difference": float(resampled.mean[0, m]),
                "low": float(low[0, m]),
                "high": float(high[0, m]),
                "p_value": float(p_value[0, m]),
            }
            for m, metric in enumerate(differences)
        ]
    return pl.DataFrame(rows, schema=_COMPARISONS_SCHEMA)


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
        "slices": {name: int(mask.sum()) for name, mask in slices.items()},
        "systems": systems,
        "comparisons": compared,
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
