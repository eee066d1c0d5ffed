"""Figures of several finished evaluations of one data set: means over seeds, intervals over users, and spread over seeds.

Reads ``per_user.parquet`` of each seed's evaluation; produces a :class:`SeedEstimate` for each. Rows of one user
under all seeds stay together in the bootstrap, so an interval over users says how much the figure depends on who was asked;
the spread over seeds says how much it depends on the draw of the model, and needs at least two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json
from recsys.evaluation.evaluate import PER_USER_FILE, SUMMARY_FILE
from recsys.metrics.bootstrap import resample_means

RESAMPLES: Final = 1000
CONFIDENCE: Final = 0.95
BOOTSTRAP_SEED: Final = 0
SEEN: Final = {"filtered": True, "kept": False}
FUSION: Final = "fusion (best two baselines)"
"""One name for the row whose two parts are chosen under every seed anew."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeedEstimate:
    """One metric of one system.

    Attributes:
        mean: Over rows and seeds.
        low, high: 95 % bootstrap interval over users, of the mean over seeds.
        per_seed: Mean of every seed, in the order of the seeds.
        seed_margin: Half the 95 % interval of the mean over seeds, by Student's t; ``None`` for one seed.
    """

    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    seed_margin: float | None


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one recipe under several seeds.

    Attributes:
        folders: Folder of each seed's evaluation.
        seeds: Their seeds.
    """

    folders: tuple[Path, ...]
    seeds: tuple[int, ...]

    @cached_property
    def summaries(self) -> list[dict[str, Any]]:
        """``metrics.json`` of each seed."""
        return [read_json(folder / SUMMARY_FILE) for folder in self.folders]

    @property
    def systems(self) -> list[str]:
        """Systems that every seed evaluated, in the order of the first."""
        found = [[row_name(system) for system in summary["systems"]] for summary in self.summaries]
        return [name for name in found[0] if all(name in one for one in found)]

    def seen_kinds(self) -> list[str]:
        """Which of ``filtered`` and ``kept`` every seed evaluated."""
        names = {"filtered": "filtered", "kept": "unfiltered"}
        of_system = [next(iter(summary["systems"].values())) for summary in self.summaries]
        return [kind for kind, name in names.items() if all(name in one for one in of_system)]

    def figure(self, system: str, seen: str, metric: str) -> SeedEstimate:
        """Measure one system.

        Raises:
            ArtifactError: A seed has no such figure, or the seeds evaluated other rows.
        """
        return self._estimated(system, None, seen, metric)

    def gap(self, system: str, other: str, seen: str, metric: str) -> SeedEstimate:
        """Measure a system minus another on the same rows of the same seeds."""
        return self._estimated(system, other, seen, metric)

    def _estimated(self, system: str, other: str | None, seen: str, metric: str) -> SeedEstimate:
        key = (system, other, seen, metric)
        if key not in self._known:
            values = np.stack([self._values(seed, system, seen, metric) for seed in range(len(self.seeds))])
            if other is not None:
                values -= np.stack([self._values(seed, other, seen, metric) for seed in range(len(self.seeds))])
            self._known[key] = _estimate(values, self._users)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[str, str | None, str, str], SeedEstimate]:
        """What has been drawn already."""
        return {}

    @cached_property
    def _tables(self) -> list[dict[tuple[str, bool], pl.DataFrame]]:
        keys = [Columns.SYSTEM, Columns.EXCLUDE_SEEN]
        tables = [pl.read_parquet(folder / PER_USER_FILE, glob=False) for folder in self.folders]
        return [
            {
                (row_name(str(key[0])), bool(key[1])): part
                for key, part in table.partition_by(keys, as_dict=True).items()
            }
            for table in tables
        ]

    @cached_property
    def _users(self) -> npt.NDArray[np.int64]:
        """``[N]`` number of each row's user, checked to be the same for every seed and system."""
        first = next(iter(self._tables[0].values()))[Columns.USER_ID]
        for folder, table in zip(self.folders, self._tables, strict=True):
            for (system, _), part in table.items():
                if not part[Columns.USER_ID].equals(first):
                    raise ArtifactError(
                        f"'{folder}' evaluated other rows for '{system}' than '{self.folders[0]}'; figures of one "
                        "table need the same data and split under every seed"
                    )
        return first.cast(pl.String).rank("dense").cast(pl.Int64).to_numpy()

    def _values(self, seed: int, system: str, seen: str, metric: str) -> Values:
        part = self._tables[seed].get((system, SEEN[seen]))
        if part is None or metric not in part.columns:
            raise ArtifactError(
                f"'{self.folders[seed]}' has no {metric} of '{system}' with seen items {seen}; it has "
                f"{', '.join(dict.fromkeys(name for name, _ in self._tables[seed]))}"
            )
        return part[metric].cast(pl.Float64).to_numpy()


def _estimate(values: Values, users: npt.NDArray[np.int64]) -> SeedEstimate:
    """Mean and both intervals of ``[S, N]`` values of S seeds."""
    over_rows, order = values.mean(axis=0), np.argsort(users, kind="stable")
    drawn = resample_means(
        over_rows[order, None],
        np.ones((len(users), 1), bool),
        users[order],
        resamples=RESAMPLES,
        seed=BOOTSTRAP_SEED,
    )
    low, high = drawn.interval(CONFIDENCE)
    per_seed = values.mean(axis=1)
    return SeedEstimate(
        float(over_rows.mean()), float(low[0, 0]), float(high[0, 0]), tuple(map(float, per_seed)), seed_margin(per_seed)
    )


def row_name(system: str) -> str:
    """Return what a system's row is called over seeds.

    Example:
        >>> row_name("fusion (sasrec + markov)"), row_name("markov")
        ('fusion (best two baselines)', 'markov')
    """
    return FUSION if system.startswith("fusion (") else system


def seed_margin(per_seed: Sequence[float] | Values) -> float | None:
    """Half the 95 % interval of a mean over seeds, by Student's t with one degree of freedom less than seeds.

    Example:
        >>> round(seed_margin([0.10, 0.11, 0.12]), 4)  # 4.3027 * .01 / sqrt(3)
        0.0248
        >>> seed_margin([0.1]) is None
        True
    """
    count = len(per_seed)
    if count < 2:
        return None
    from scipy.stats import t

    spread = float(np.std(np.asarray(per_seed), ddof=1))
    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread / float(np.sqrt(count))


def as_json(figure: SeedEstimate) -> Mapping[str, Any]:
    """Return a figure as plain values."""
    return {
        "mean": figure.mean,
        "low": figure.low,
        "high": figure.high,
        "per_seed": list(figure.per_seed),
        "seed_margin": figure.seed_margin,
    }
