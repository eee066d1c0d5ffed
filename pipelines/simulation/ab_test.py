"""A simulated A/B test: show each policy's sessions to the simulator's users and compare what they truly bring.

Reads sessions of several policies for the same users (:class:`~pipelines.simulation.users.SimulatedUsers`); produces means
and paired bootstrap intervals over users.

    recsys simulate --config pipelines/recipes/simulated_sessions.yaml

rolls out the recipe's policies, before and after alignment, runs the stages that are missing, and prints the table and what
the learned rewards say of the same sessions. ``--policy NAME=FOLDER`` adds another policy.

Legend: N users, S sessions per user, M items per session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.sources.simulated.behaviour import ExpectedOutcomes
from pipelines.config import RunConfig
from pipelines.simulation.trial import UNALIGNED, Trial
from pipelines.simulation.users import Sessions, SimulatedUsers
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError
from recsys.contracts.manifest import write_json
from recsys.metrics.bootstrap import Estimate, ResampledMeans, resample_means
from recsys.runtime import Progress

Values = npt.NDArray[np.float64]

OUTCOMES: Final = (*(field.name for field in fields(ExpectedOutcomes)), "frozen_utility")
UTILITY: Final = "utility"
_ARM: Final = "arm"


@dataclass(frozen=True)
class ArmOutcome:
    """One outcome of one arm.

    Attributes:
        value: Mean over users.
        difference: Arm minus reference, on the same users.
        lift: The difference as a share of the reference's mean.
        p_value: Two-sided, of "the difference is 0"; 1 for the reference itself.
    """

    value: Estimate
    difference: Estimate
    lift: Estimate
    p_value: float


@dataclass(frozen=True)
class SimulatedAb:
    """The result of a test.

    Attributes:
        reference: Arm that all others are compared with.
        arms: By arm, then by outcome (:data:`OUTCOMES`).
        per_user: One row per user and arm: ``user_index``, ``arm``, the outcomes.
        confidence: Of the intervals.
    """

    reference: str
    arms: dict[str, dict[str, ArmOutcome]]
    per_user: pl.DataFrame
    confidence: float

    def table(self) -> str:
        """Format the arms, best first; a mark says how an arm stands against the reference on the same users."""
        header = ["arm", "true utility", "lift", "watch, s", "long views", "likes", "utility, no response"]
        rows = [header]
        ranked = sorted(self.arms, key=lambda name: -self.arms[name][UTILITY].value.mean)
        for name in ranked:
            outcomes = self.arms[name]
            utility, watch = outcomes[UTILITY], outcomes["watch_ms"].value
            lift = utility.lift
            rows.append(
                [
                    name,
                    str(utility.value),
                    "reference"
                    if name == self.reference
                    else f"{lift.mean:+.1%} [{lift.low:+.1%}, {lift.high:+.1%}] {'-=+'[utility.difference.sign + 1]}",
                    f"{watch.mean / 1e3:.1f} [{watch.low / 1e3:.1f}, {watch.high / 1e3:.1f}]",
                    str(outcomes["long_views"].value),
                    str(outcomes["likes"].value),
                    str(outcomes["frozen_utility"].value),
                ]
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        users = self.per_user[Columns.USER_INDEX].n_unique()
        head = f"simulated A/B, {users} users, per session, {self.confidence * 100:g} % bootstrap intervals over users"
        foot = f"paired with {self.reference}: + better, - worse, = not distinguishable"
        return "\n".join([head, *lines, foot])

    def as_json(self) -> dict[str, Any]:
        """Return everything but the rows per user, as plain values."""
        arms = {name: {metric: asdict(cell) for metric, cell in cells.items()} for name, cells in self.arms.items()}
        return {
            "users": self.per_user[Columns.USER_INDEX].n_unique(),
            "reference": self.reference,
            "confidence": self.confidence,
            "arms": arms,
        }

    def write(self, folder: Path) -> None:
        """Write ``simulated_ab.json`` and ``simulated_ab.parquet``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.per_user.write_parquet(folder / "simulated_ab.parquet")
        write_json(folder / "simulated_ab.json", self.as_json())


def run_test(
    users: SimulatedUsers,
    arms: Mapping[str, Sessions],
    reference: str,
    *,
    seed: int = 0,
    draws: int = 16,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> SimulatedAb:
    """Show every arm's sessions to every user and compare the arms on the same users.

    Args:
        arms: ``[N, S, M]`` item_index by name; an arm with several sessions per user counts with their mean.
        reference: Name of the arm that the others are compared with.
        seed: Of the users' responses and of the bootstrap.
        draws: Responses drawn per session.

    Raises:
        ConfigError: The reference is no arm.
    """
    if reference not in arms:
        raise ConfigError(f"the reference '{reference}' is no arm of this test; arms are {', '.join(sorted(arms))}")
    outcomes = {name: _outcomes(users, sessions, draws, seed) for name, sessions in arms.items()}
    user_index = users.histories.user_index
    per_user = pl.concat(
        [
            pl.DataFrame({Columns.USER_INDEX: user_index, _ARM: [name] * len(users), **values})
            for name, values in outcomes.items()
        ]
    )
    names = list(outcomes)
    values = np.stack([np.stack([outcomes[name][metric] for metric in OUTCOMES], axis=1) for name in names], axis=1)
    compared = _compare(values, user_index, names.index(reference), resamples, seed, confidence)
    result = {
        name: {metric: compared[row][column] for column, metric in enumerate(OUTCOMES)}
        for row, name in enumerate(names)
    }
    return SimulatedAb(reference, result, per_user, confidence)


def _outcomes(users: SimulatedUsers, sessions: Sessions, draws: int, seed: int) -> dict[str, Values]:
    """Mean outcome over each user's sessions, ``[N]`` by name."""
    truth = users.truth(sessions, draws=draws, seed=seed)
    values = {field.name: getattr(truth, field.name).mean(axis=1) for field in fields(truth)}
    values["frozen_utility"] = users.frozen_utility(sessions).mean(axis=1)
    return {name: values[name].astype(np.float64) for name in OUTCOMES}


def _compare(
    values: Values,
    user_index: npt.NDArray[np.integer],
    reference: int,
    resamples: int,
    seed: int,
    confidence: float,
) -> list[list[ArmOutcome]]:
    """Bootstrap ``[N, arms, outcomes]`` once, so that all arms and their differences share the draws."""
    count, num_arms, num_outcomes = values.shape
    everybody = np.ones((count, 1), bool)
    means = resample_means(values.reshape(count, -1), everybody, user_index, resamples=resamples, seed=seed)
    arms = ResampledMeans(
        means.mean.reshape(num_arms, num_outcomes), means.samples.reshape(resamples, num_arms, num_outcomes)
    )
    differences, lifts = arms.against(reference)
    estimates = (part.estimates(confidence) for part in (arms, differences, lifts))
    cells = [ArmOutcome(*cell) for cell in zip(*estimates, map(float, differences.p_value().flat), strict=True)]
    return [cells[first : first + num_outcomes] for first in range(0, len(cells), num_outcomes)]


def simulate(
    config: RunConfig, further: Sequence[str], num_users: int, beams: int, progress: Progress
) -> tuple[SimulatedAb, list[str]]:
    """Roll out a recipe's policies beside the marks they can be compared with.

    Args:
        config: Of a run with ``source.kind: simulated`` and ``features.task: session``; stages that are missing are run.
        further: More policies, ``NAME=FOLDER`` each.
        num_users: Users to show sessions to, spread over all of them.
        beams: Candidates that the truth picks the best of.

    Returns:
        The comparison, and what the learned rewards say of the same sessions, a line each.

    Raises:
        ConfigError: The source is not the simulator, the task is not sessions, or a policy's name is taken.
        ArtifactError: A policy's folder is missing, or holds a policy of other semantic IDs.
    """
    trial = Trial.open(config, further, num_users, progress)
    result = run_test(trial.users, trial.arms(beams), UNALIGNED, seed=config.seed)
    return result, trial.reward_lines(beams)
