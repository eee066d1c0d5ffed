"""A round held against the start and the round kept last: paired differences, and how sure they are.

The errors of the one-sided intervals sum to ``false_stops`` over all rounds and comparisons that act: the chance that any of
the rules stops any of the rounds of a run that changed nothing is then at most ``false_stops``, whatever the figures have to
do with each other. Half of it goes to the soft recall at the deepest cut-off, where the harm that matters is smallest beside
the noise; all others share the other half evenly.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.alignment.config import GuardConfig
from recsys.alignment.rounds.measurement import Measurement, recall_name
from recsys.alignment.rounds.rules import FALLS, Against, Change, MeasuredRound
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.metrics.bootstrap import ResampledMeans, resample_means

DEEPEST_SHARE: Final = 0.5
"""Part of ``false_stops`` that the soft recall at the deepest cut-off takes."""
TAIL_RESAMPLES: Final = 5
"""Resamples that should lie beyond the bound of an interval, so that the bound is more than the extreme of a few draws."""
MOST_RESAMPLES: Final = 2_000_000
"""Drawn and kept at a time; twenty figures of so many take 320 MB."""


def errors(config: GuardConfig, measured: Collection[str], looks: int) -> dict[tuple[str, Against], float]:
    """One-sided error of every comparison that acts; their sum over all looks is ``false_stops``.

    Args:
        measured: Names of the figures that have rows.
        looks: Rounds of the run.

    Example:
        Two figures against the start, three rounds: .05 / 6 each. With the soft recall at the deepest cut-off beside them,
        that takes .05 / 6 and they take .05 / 12.

        >>> {name: round(error, 4) for (name, _), error in errors(GuardConfig(), ["beam_hr@1", "coverage@10"], 3).items()}
        {'beam_hr@1': 0.0083, 'coverage@10': 0.0083}
        >>> three = ["beam_hr@1", "coverage@10", "beam_soft_recall@50"]
        >>> {name: round(error, 4) for (name, _), error in errors(GuardConfig(), three, 3).items()}
        {'beam_soft_recall@50': 0.0083, 'beam_hr@1': 0.0042, 'coverage@10': 0.0042}
    """
    acting = [pair for rule in FALLS if rule.action(config) != "record" for pair in rule.comparisons(config, measured)]
    deepest: tuple[str, Against] = (recall_name(config.recall_at, soft=True), "start")
    in_a_round = config.false_stops / looks
    if deepest not in acting or len(acting) == 1:
        return {pair: in_a_round / len(acting) for pair in acting}
    others = in_a_round * (1 - DEEPEST_SHARE) / (len(acting) - 1)
    return {pair: in_a_round * DEEPEST_SHARE if pair == deepest else others for pair in acting}


def resamples_for(config: GuardConfig, measured: Collection[str], looks: int) -> int:
    """How many resamples the smallest error of a comparison asks for, at least as many as are configured.

    Args:
        measured, looks: As in :func:`errors`.

    Raises:
        ConfigError: They are more than are drawn.

    Example:
        A bound at an error of .0083 has five draws beyond it where there are 600.

        >>> resamples_for(GuardConfig(resamples=100), ["beam_hr@1", "coverage@10"], 3)
        600
    """
    smallest = min(errors(config, measured, looks).values(), default=config.false_stops)
    wanted = max(config.resamples, math.ceil(TAIL_RESAMPLES / smallest))
    if wanted > MOST_RESAMPLES:
        raise ConfigError(
            f"align.guard.false_stops is {config.false_stops:g}, shared by {looks} rounds and all comparisons: the bounds "
            f"ask for {wanted:,} resamples, at most {MOST_RESAMPLES:,} are drawn; raise it, or take fewer rounds or fewer ks"
        )
    return wanted


def compare(
    start: Measurement,
    kept: Measurement,
    now: Measurement,
    users: npt.NDArray[np.integer],
    config: GuardConfig,
    *,
    seed: int,
    looks: int,
) -> MeasuredRound:
    """Hold a round against the start and the round kept last, on the same draws of users.

    Args:
        users: ``[N]`` whose row it is.
        looks: Rounds of the run.
    """
    names = sorted(now.rows)
    share = errors(config, now.rows, looks)
    earlier: dict[Against, Measurement] = {"start": start} if kept is start else {"start": start, "kept": kept}
    for against, before in earlier.items():
        if missing := now.rows.keys() - before.rows.keys():
            raise ArtifactError(
                f"the measurement of the {against} has no {', '.join(sorted(missing))}; it was made by another version: "
                "delete the run's folder of rounds and run `align` again"
            )
    differences = np.stack(
        [now.rows[name] - before.rows[name] for before in earlier.values() for name in names], axis=1
    )
    smallest = min(share.values(), default=config.false_stops)
    resamples = resamples_for(config, now.rows, looks)
    everybody = np.ones((len(differences), 1), bool)
    means = resample_means(differences, everybody, users, resamples=resamples, seed=seed)
    compared = [(name, against) for against in earlier for name in names]
    found = _changes(means, config.confidence, [share.get(pair, smallest) for pair in compared])
    changes: dict[Against, dict[str, Change]] = {against: {} for against in earlier}
    for (name, against), change in zip(compared, found, strict=True):
        changes[against][name] = change
    return MeasuredRound(start, kept, now, config, {"kept": changes["start"], **changes})


def _changes(means: ResampledMeans, confidence: float, error_of_each: list[float]) -> list[Change]:
    bounds = [np.quantile(means.samples[:, 0, column], 1.0 - e) for column, e in enumerate(error_of_each)]
    return [
        Change(shown.mean, shown.low, shown.high, float(bound))
        for shown, bound in zip(means.estimates(confidence), bounds, strict=True)
    ]
