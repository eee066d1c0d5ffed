"""Rejection-sampling fine-tuning: the train samples whose exposure sessions were worth more than the others.

The exposure sessions that training targets come from are ordered by a measure, such as how long the user watched, and those
below a quantile of it are dropped with their targets. What is left feeds the next-token loss, the requests that
candidates are generated for, or both, as the method of alignment has it.

Source: OneRec technical report (arXiv 2506.13695), section 3.3: the bottom half of exposure sessions by play duration is
dropped, and the users of the reinforcement learning are drawn from what is left. Which sessions the half is of, and what
happens at the median, is not said. Here it is the half of the sessions that hold a training target; a session *at* the
quantile stays: where many are worth the same, fewer are dropped than ``drop_share`` says, and never one of two equals.

Legend: N samples, S sessions, E events.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys.alignment.rollouts.sampler import Requests
from recsys.alignment.sample_config import RsftConfig
from recsys.contracts.columns import TRAIN, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.data.samples import TargetRows
from recsys.reward.combining.combination import combine_rewards
from recsys.reward.scoring import SessionScorer

logger = logging.getLogger(__name__)

REWARD: Final = "reward"
"""Measure a sample by the reward model instead of by a column."""
SAMPLES_PER_BATCH: Final = 4096


def kept_samples(prepared: Dataset, config: RsftConfig, scorer: SessionScorer | None) -> npt.NDArray[np.int64]:
    """Numbers of the train samples that stay, ascending.

    Args:
        scorer: The reward model, for ``by: reward``.

    Raises:
        DataError: The log has no such column, or it is empty in every session that a target comes from.
        ConfigError: ``by: reward`` without a reward model.
    """
    samples = TargetRows.from_dataset(prepared, 1)
    if config.by == REWARD:
        if scorer is None:
            raise ConfigError("align.rsft.by is 'reward', and no reward model is given; run `reward` first")
        measure_N = target_rewards(prepared, samples, scorer)
        kept = np.flatnonzero(not_below(measure_N, config.drop_share))
    else:
        session_N = session_of_samples(prepared, samples)
        worth = session_sums(prepared, config.by)
        used = np.unique(session_N)
        if np.isnan(worth[used]).all():
            raise DataError(
                f"rsft: column '{config.by}' is not known of any of the {len(used)} sessions that training targets come "
                "from; name another in align.rsft.by"
            )
        stays = np.zeros(len(worth), bool)
        stays[used] = not_below(worth[used], config.drop_share)
        kept = np.flatnonzero(stays[session_N])
    logger.info("rsft: %d of %d train samples stay, by %s", len(kept), len(samples), config.by)
    return kept


def not_below(worth: npt.NDArray[np.float64], drop_share: float) -> npt.NDArray[np.bool_]:
    """Mark what is not below the quantile ``drop_share`` of the known values; what is not known is dropped.

    Example:
        >>> not_below(np.array([4.0, 1.0, 3.0, 2.0, np.nan]), 0.5).tolist()  # the median is 2.5
        [True, False, True, False, False]
        >>> not_below(np.array([1.0, 2.0, 2.0, 3.0]), 0.5).tolist()  # the median is 2, and both stay
        [False, True, True, True]
    """
    return np.asarray(worth >= np.nanquantile(worth, drop_share))


def session_sums(prepared: Dataset, column: str) -> npt.NDArray[np.float64]:
    """``[S]`` sum of a column over the train exposures of each session; NaN where none is known.

    Every exposure counts, whether it became a target or not.
    """
    events = prepared.events
    if column not in events.columns or not (events.schema[column].is_numeric() or events.schema[column] == pl.Boolean):
        fitting = [Columns.WATCH_TIME_MS, *prepared.spec.signals]
        raise DataError(
            f"rsft: align.rsft.by is '{column}', which events.parquet does not have as a number or a yes/no signal; it has "
            f"{', '.join(name for name in fitting if name in events.columns) or 'none'}; '{REWARD}' asks the reward model"
        )
    train = events.filter(pl.col(Columns.SPLIT) == TRAIN)
    values = train[column].cast(pl.Float64).fill_nan(None)
    if values.null_count() == len(values):
        raise DataError(f"rsft: column '{column}' is empty in every train event; name another in align.rsft.by")
    known = values.is_not_null().to_numpy()
    session = train[Columns.SESSION_INDEX].to_numpy()[known]
    size = int(events[Columns.SESSION_INDEX].max()) + 1  # type: ignore[arg-type]  # there are events
    sums = np.bincount(session, values.drop_nulls().to_numpy(), size)
    return np.where(np.bincount(session, minlength=size) > 0, sums, np.nan)


def session_of_samples(prepared: Dataset, samples: TargetRows) -> npt.NDArray[np.int64]:
    """``[N]`` session_index of each sample's first target: the event right behind its history."""
    positive = prepared.events.filter(pl.col(Columns.POSITIVE))[Columns.SESSION_INDEX].to_numpy()
    return positive[samples.targets.history_end].astype(np.int64)


def target_rewards(prepared: Dataset, samples: TargetRows, scorer: SessionScorer) -> npt.NDArray[np.float64]:
    """``[N]`` the towers' weighted values for what users took: unlike a combined reward they compare between users."""
    parts = []
    for begin in range(0, len(samples), SAMPLES_PER_BATCH):
        rows = np.arange(begin, min(begin + SAMPLES_PER_BATCH, len(samples)))
        requests = Requests.from_targets(prepared, samples.targets.take(rows))
        values_B1T = scorer.values(requests.histories, requests.targets_NM[:, None])
        parts.append(combine_rewards(values_B1T, scorer.weights, "raw")[:, 0].double())
    return torch.cat(parts).cpu().numpy()
