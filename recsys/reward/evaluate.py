"""The reward models evaluated on sessions of the test split, beside baselines of popularity and of user means.

Reads models and :class:`~recsys.reward.feedback.dataset.SessionFeedback`; produces two tables and a summary.
Baselines know all train sessions, of every user; a model knows those of its own users only.

Legend: N sessions, T towers, I items, U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import spearmanr

from recsys.contracts.columns import TEST, TRAIN
from recsys.contracts.errors import DataError
from recsys.metrics.bootstrap import MetricEstimate
from recsys.metrics.classification import metric_estimates, reliability
from recsys.reward.feedback.dataset import SessionFeedback
from recsys.reward.feedback.labels import FloatArray, rank_among, smoothed_means
from recsys.reward.model import SessionRewardModel
from recsys.reward.scoring import raw_reward, score_sessions

SMOOTHING = 5.0
"""Exposures (sessions) of the global mean that are added to every item's (user's) own."""

BASELINES = ("popularity", "user_mean")
METRIC_COLUMNS = {
    "model": pl.String,
    "users": pl.String,
    "tower": pl.String,
    "system": pl.String,
    "metric": pl.String,
    "sessions": pl.Int64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}


@dataclass(frozen=True)
class RewardReport:
    """Result of :func:`evaluate_reward_models`.

    Attributes:
        metrics: One row per model, group of users, tower, system and metric with its 95 % interval; ``model - popularity``
            and ``model - user_mean`` are paired differences. Users ``new`` have trained no part of that model.
        calibration: Reliability table of the models on all users.
        agreement: Spearman correlation of reward model and held-out one over test sessions, per tower and of the
            weighted sum; ``None`` where one of them gives every session the same.
    """

    metrics: pl.DataFrame
    calibration: pl.DataFrame
    agreement: dict[str, float | None]

    def summary(self) -> dict[str, object]:
        """AUC, AUC inside a user and calibration of every model and tower, on new users."""
        wanted = self.metrics.filter((pl.col("users") == "new") & (pl.col("system") == "model"))
        result: dict[str, dict[str, dict[str, float | None]]] = {}
        for model, tower, metric, value in wanted.select("model", "tower", "metric", "value").iter_rows():
            result.setdefault(model, {}).setdefault(tower, {})[metric] = _rounded(value)
        return {"test": result, "agreement": {name: _rounded(value) for name, value in self.agreement.items()}}


def evaluate_reward_models(
    models: Mapping[str, SessionRewardModel],
    feedback: SessionFeedback,
    trained_on: Mapping[str, npt.NDArray[np.bool_]],
    *,
    resamples: int,
    bins: int,
    seed: int,
) -> RewardReport:
    """Evaluate models on the test split, on all its users and on those that the model has not seen.

    Args:
        models: By name.
        feedback: All splits; the baselines are fitted on train.
        trained_on: ``[U]`` per model, which users trained it.

    Raises:
        DataError: The test split has no session.
    """
    test = feedback.of(TEST)
    if not len(test):
        raise DataError(
            "reward model: the test split has no session to evaluate on; check the split dates in `prepare`"
        )
    systems = {name: predict(feedback.of(TRAIN), test) for name, predict in _PREDICTORS.items()}
    rows: list[tuple[object, ...]] = []
    tables, predictions = [], {}
    for name, model in models.items():
        scored = score_sessions(model, test.histories, test.padded_items(model.spec.max_items)[:, None])
        predictions[name] = scored.probabilities[:, 0]
        new = ~trained_on[name][test.user_index]
        for tower, signal in enumerate(test.signals):
            known = ~np.isnan(test.labels[:, tower])
            for users, group in (("all", known), ("new", known & new)):
                if group.any():
                    found = {"model": predictions[name], **systems}
                    compared = _compare(
                        {system: predicted[group, tower] for system, predicted in found.items()},
                        test.labels[group, tower],
                        test.user_index[group],
                        resamples=resamples,
                        seed=seed,
                    )
                    count = int(group.sum())
                    rows += [
                        (name, users, signal.name, system, metric, count, _known(figure.value), *_bounds(figure))
                        for system, metric, figure in compared
                    ]
            if known.any():
                table, error = reliability(predictions[name][known, tower], test.labels[known, tower], bins)
                tables.append(table.select(pl.lit(name).alias("model"), pl.lit(signal.name).alias("tower"), pl.all()))
                rows.append((name, "all", signal.name, "model", "ece", int(known.sum()), error, None, None))
    calibration = pl.concat(tables) if tables else pl.DataFrame()
    agreement = _agreement(models, predictions, test.names)
    return RewardReport(pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row"), calibration, agreement)


def _compare(
    predicted: Mapping[str, FloatArray],
    labels: FloatArray,
    users: npt.NDArray[np.integer],
    *,
    resamples: int,
    seed: int,
) -> list[tuple[str, str, MetricEstimate]]:
    """Every system's metrics on one tower, then the model's minus each baseline's: ``(system, metric, estimate)``."""
    found = {
        system: metric_estimates(values, labels, users, resamples=resamples, seed=seed)
        for system, values in predicted.items()
    }
    for baseline in BASELINES:
        found[f"model - {baseline}"] = {
            metric: figure.minus(found[baseline][metric]) for metric, figure in found["model"].items()
        }
    return [(system, metric, figure) for system, metrics in found.items() for metric, figure in metrics.items()]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _bounds(figure: MetricEstimate) -> tuple[float | None, float | None]:
    low, high = figure.interval()
    return (None, None) if np.isnan(low) else (low, high)


def _agreement(
    models: Mapping[str, SessionRewardModel], predictions: Mapping[str, FloatArray], names: tuple[str, ...]
) -> dict[str, float | None]:
    if len(models) < 2:
        return {}
    first, second = (predictions[name] for name in list(models)[:2])
    result = {name: _spearman(first[:, tower], second[:, tower]) for tower, name in enumerate(names)}
    weights = next(iter(models.values())).default_weights()
    return {**result, "reward": _spearman(raw_reward(first, weights), raw_reward(second, weights))}


def _spearman(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> float | None:
    if len(first) < 2 or not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return None
    return float(spearmanr(first, second).statistic)


def popularity_baseline(train: SessionFeedback, sessions: SessionFeedback) -> FloatArray:
    """Predict ``[N, T]`` from the items' own means in the train sessions, whoever the user is.

    An item's mean is smoothed by :data:`SMOOTHING` exposures of the global one. ``share``: mean over the items; ``any``:
    ``1 - prod(1 - p)``; ``watch_time``: rank of the summed means among the train sessions.
    """
    predicted = np.empty(sessions.labels.shape, np.float32)
    starts = sessions.item_offsets[:-1]
    num_items = 1 + max(int(train.items.max(initial=0)), int(sessions.items.max(initial=0)))
    for tower, signal in enumerate(train.signals):
        means = smoothed_means(train.items, train.event_values[:, tower], num_items, SMOOTHING)[sessions.items]
        if signal.kind == "watch_time":
            predicted[:, tower] = rank_among(np.add.reduceat(means, starts), train.watch_scale.reference)
        elif signal.kind == "share":
            predicted[:, tower] = np.add.reduceat(means, starts) / sessions.lengths
        else:
            predicted[:, tower] = 1.0 - np.multiply.reduceat(1.0 - means, starts)
    return predicted


def user_mean_baseline(train: SessionFeedback, sessions: SessionFeedback) -> FloatArray:
    """Predict ``[N, T]`` from the user's own mean label in the train sessions, smoothed; new users get the global mean."""
    num_users = 1 + max(int(train.user_index.max(initial=0)), int(sessions.user_index.max(initial=0)))
    columns = [
        smoothed_means(train.user_index, train.labels[:, tower], num_users, SMOOTHING)[sessions.user_index]
        for tower in range(len(train.signals))
    ]
    return np.stack(columns, axis=1).astype(np.float32)


_PREDICTORS = {"popularity": popularity_baseline, "user_mean": user_mean_baseline}
