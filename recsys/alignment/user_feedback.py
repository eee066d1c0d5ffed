"""Policy gradient on users' own reactions: no reward model, no roll-outs, what was shown and what came of it.

An exposure of the log has advantage +1 if the user watched it to the upper part of what they watch of such durations and
said nothing against it, -1 if they said so, else 0. The policy's probability of the exposed item is pulled up or pushed down
under GBPO, whose gradient is bounded on both sides, beside the next-token loss on samples of the train split.

Source: OneRec-V2 (arXiv 2508.20900), sections 3.1.1 (advantages, which are not normalised), 3.1.2 (GBPO), 3.2 (joint
training). For items that the old system showed the paper takes the policy itself for the one that acted, so that the ratio
is 1; so it is here for every exposure without a logged propensity, or all. With ``logged_propensities`` the ratio of an
exposure is the policy's probability of the item to the logged one, at least ``propensity_floor``: GBPO keeps it at most 1
for what was liked, ``pi / (1 - pi)`` and the floor's inverse for what was not. Departures: exposures with advantage 0
are left out and not averaged over; the bound of the upper part is fixed (:mod:`features.derived.watch_percentile`), not
taken anew in every batch.

Legend: E exposures, B of a step, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys.alignment.config import UserFeedbackConfig
from recsys.alignment.losses.policy_gradient import policy_gradient_loss
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rounds.learner import Learner, TargetPass, supervised_loss
from recsys.alignment.rounds.loop import CarriesNothing, RoundWork
from recsys.contracts.columns import TRAIN, Columns
from recsys.contracts.errors import DataError
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.reward.config import FeedbackConfig, RewardSignal
from recsys.reward.feedback.dataset import session_feedback


@dataclass(frozen=True)
class Exposures:
    """Shown items with an advantage other than 0, and what their users had done before.

    Attributes:
        histories: E rows.
        items: ``[E]`` item_index.
        advantages: ``[E]`` in {-1, 1}.
        log_propensities: ``[E]`` log of the probability with which the item was shown, NaN not known; ``None``: not asked.
    """

    histories: Histories
    items: npt.NDArray[np.int64]
    advantages: npt.NDArray[np.float32]
    log_propensities: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.items)


def feedback_advantages(
    positive_E: npt.NDArray[np.bool_], negative_E: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Advantages of exposures: explicit dislikes go before everything else.

    Example:
        >>> positive, negative = np.array([True, True, False, False]), np.array([False, True, True, False])
        >>> feedback_advantages(positive, negative).tolist()
        [1.0, -1.0, -1.0, 0.0]
    """
    return np.where(negative_E, -1.0, np.where(positive_E, 1.0, 0.0)).astype(np.float32)


def log_propensities(events: pl.DataFrame, floor: float) -> npt.NDArray[np.float32]:
    """Logarithms of the logged probabilities of all train exposures, in the order of the log; NaN where not known.

    Args:
        floor: Smaller ones count as this much.

    Raises:
        DataError: The log has no propensities, or one lies outside (0, 1].

    Example:
        >>> shown = {"split": pl.Series([0, 0, 0], dtype=pl.Int8), "propensity": pl.Series([1.0, None, 1e-9])}
        >>> log_propensities(pl.DataFrame(shown), np.exp(-2.0)).tolist()
        [0.0, nan, -2.0]
    """
    if Columns.PROPENSITY not in events.columns:
        raise DataError(
            f"user feedback: align.feedback.logged_propensities reads the column '{Columns.PROPENSITY}', which "
            "events.parquet does not have; map source.columns.propensity and run `prepare` again, or leave the option out"
        )
    column = events.filter(pl.col(Columns.SPLIT) == TRAIN)[Columns.PROPENSITY].cast(pl.Float64)
    values = column.fill_null(float("nan")).to_numpy()
    known = values[~np.isnan(values)]
    if not len(known):
        raise DataError(
            f"user feedback: column '{Columns.PROPENSITY}' is empty in every train event; leave "
            "align.feedback.logged_propensities out"
        )
    wrong = known[(known <= 0) | (known > 1)]
    if len(wrong):
        raise DataError(
            f"user feedback: {len(wrong)} train events have a '{Columns.PROPENSITY}' outside (0, 1], the first "
            f"{wrong[0]:g}; it is the probability with which the item was chosen"
        )
    return np.log(np.maximum(values, floor)).astype(np.float32)


def acting_log_probs(codes_B1C: torch.Tensor, mask_B1C: torch.Tensor, logged_B: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the policy that acted, in codes whose sum is the logged one; the policy's own where none was.

    Only the sum of a row counts, because ratios are per row.
    """
    number_B11 = mask_B1C.sum(-1, keepdim=True).clamp(min=1)
    each_B1C = (logged_B[:, None, None] / number_B11).expand_as(codes_B1C)
    return torch.where(each_B1C.isnan(), codes_B1C.detach().float(), each_B1C)


def _ever(events: pl.DataFrame, name: str) -> bool:
    """Whether anybody gave a signal; a column of another kind is left to whoever reads it."""
    return name in events.columns and (events.schema[name] != pl.Boolean or bool(events[name].any()))


@dataclass
class UserFeedbackLearning(CarriesNothing):
    """User feedback as a method of :mod:`recsys.alignment.rounds.loop`.

    Attributes:
        stream: Samples of the next-token loss, by step.
        seed: Of the order of exposures.
    """

    config: UserFeedbackConfig
    learner: Learner
    stream: RequestStream
    seed: int

    @property
    def num_rounds(self) -> int:
        """Rounds at most."""
        return self.config.rounds

    @property
    def steps_per_round(self) -> int:
        """Updates of one round."""
        return self.config.steps_per_round

    @cached_property
    def exposures(self) -> Exposures:
        """Exposures of the train split with an advantage.

        Raises:
            DataError: The data set lacks the positive signal or, where they are asked for, propensities; or the signal is
                the same of all exposures.
        """
        dataset, config = self.stream.prepared, self.config
        if config.positive not in dataset.events.columns:
            raise DataError(
                f"user feedback: the data set has no signal '{config.positive}' (it has "
                f"{', '.join(dataset.spec.signals) or 'none'}); add it to features.derived_signals, or name another in "
                "align.feedback.positive"
            )
        said_at_all = dataset.events.filter(pl.col(Columns.SPLIT) == TRAIN)
        liked = said_at_all[config.positive].drop_nulls()
        if liked.dtype == pl.Boolean and not (liked.any() and not liked.all()):
            raise DataError(
                f"user feedback: signal '{config.positive}' is true of {liked.sum()} of the {len(liked)} train exposures "
                "that have it, expected some of either kind; name another in align.feedback.positive"
            )
        names = [config.positive, *(name for name in config.negative if _ever(said_at_all, name))]
        signals = tuple(RewardSignal(name=name, column=name, kind="any") for name in names)
        asked = FeedbackConfig(signals=signals, max_items=1, span="timeline", min_positives=1)
        shown = session_feedback(dataset, asked).of(TRAIN)
        said = shown.event_values > 0.5  # what is not known was not said
        advantages = feedback_advantages(said[:, 0], np.asarray(said[:, 1:].any(1)))
        rows = np.flatnonzero(advantages)
        logged = None
        if config.logged_propensities:
            logged = log_propensities(dataset.events, config.propensity_floor)[rows]
        return Exposures(shown.histories.take(rows), shown.items[rows].astype(np.int64), advantages[rows], logged)

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Exposures of a step, a function of seed and step alone: every one at most once per epoch.

        Those that make no whole step are left out of it, others in every epoch.
        """
        size = min(self.config.exposures_per_step, len(self.exposures))
        per_epoch = len(self.exposures) // size
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.exposures))
        return order[place * size : (place + 1) * size]

    def train(self, work: RoundWork) -> dict[str, Any]:
        """Update step by step."""
        first = (work.number - 1) * self.steps_per_round
        steps = range(work.first_step, self.steps_per_round)
        for step in work.progress.track(steps, f"round {work.number}", len(steps)):
            self._update(work, self.rows(first + step), self.stream.rows(first + step))
            work.checkpoint(step + 1)
        advantages = self.exposures.advantages
        return {"exposures": len(advantages), "disliked_share": float((advantages < 0).mean())}

    def keep(self, folder: Path, work: RoundWork) -> None:
        """Exposures are those of the log and not kept."""

    def _update(self, work: RoundWork, rows: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> None:
        """GBPO on the exposures plus the next-token loss on the samples."""
        config, policy, device = self.config, self.learner.policy, self.learner.device
        max_history = policy.spec.model.max_history
        history = collate_histories(self.exposures.histories.take(rows), max_history).to(device)
        items_B11 = torch.from_numpy(self.exposures.items[rows])[:, None, None].to(device)
        advantages_B1 = torch.from_numpy(self.exposures.advantages[rows])[:, None].to(device)
        with self.learner.mixed():
            scored = candidate_log_probs(policy, history, items_B11)
        codes_B1C, mask_B1C = scored.codes.flatten(2), scored.mask.flatten(2)
        acted_B1C = None
        if self.exposures.log_propensities is not None:
            logged_B = torch.from_numpy(self.exposures.log_propensities[rows]).to(device)
            acted_B1C = acting_log_probs(codes_B1C, mask_B1C, logged_B)
        result = policy_gradient_loss(
            config.loss.gentler(work.smaller_steps.loss),
            codes_B1C,
            advantages_B1,
            mask_B1C,
            old_log_probs_BGC=acted_B1C,
        )
        terms = [config.weight * work.smaller_steps.weight * result.loss]
        log_probs_B = scored.sessions.detach()[:, 0]
        liked_B = advantages_B1[:, 0] > 0
        figures = {"clip_share": float(result.clip_share)}
        if acted_B1C is not None:
            figures |= {"ratio": float(result.mean_ratio), "ratio_max": float(result.max_ratio)}
        figures |= {
            f"{name}_log_prob": float(log_probs_B[chosen].mean())
            for name, chosen in (("liked", liked_B), ("disliked", ~liked_B))
            if chosen.any()
        }
        if config.supervised.weight > 0:
            batch = self.stream.collate(samples).to(device)
            with self.learner.mixed():
                supervised = supervised_loss(policy, TargetPass.of(policy, batch), config.supervised)
            terms.append(config.supervised.weight * supervised)
            figures["supervised"] = supervised.item()
        step, rate = self.learner.step, self.learner.learning_rate
        norm = self.learner.update(torch.stack(terms).sum())
        work.curve.add(step, gradient_norm=norm, learning_rate=rate, **figures)
