"""Finished runs, grouped by the data they are on.

Reads the folders that ``recsys run`` and ``recsys reproduce`` leave; produces a :class:`DataSet` for each data set, with one
run per seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml

from pipelines.reproduction.figures import Evaluations
from pipelines.reproduction.run import newest_evaluation
from recsys.contracts.errors import ArtifactError

HEADLINE: Final = "ndcg@10"
TITLES: Final = {
    "amazon14_beauty": "Amazon Beauty 2014",
    "amazon14_toys": "Amazon Toys 2014",
    "amazon18_scientific": "Amazon Scientific 2018",
    "kuairand_pure": "KuaiRand-Pure, sessions",
    "minionerec_industrial": "Amazon Industrial 2018, MiniOneRec's rows",
    "movielens100k": "MovieLens-100K",
    "movielens1m": "MovieLens-1M",
}
"""By the folder of the data; another one is called by its name."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: Its output folder.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration that lies in it."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise ArtifactError(
                f"'{self.folder}' is no folder of a run: it has no config.yaml; give output_dir of runs"
            )
        loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return loaded

    @property
    def seed(self) -> int:
        """Of all stages."""
        return int(self.config["seed"])

    @property
    def data(self) -> str:
        """Name of the folder of the data, or the kind of a source without one."""
        source = self.config["source"]
        return Path(source["path"]).name if source.get("path") else str(source["kind"])

    @cached_property
    def evaluation(self) -> Path:
        """Folder of the newest evaluation."""
        return newest_evaluation(self.folder)


@dataclass(frozen=True)
class DataSet:
    """All runs on one data set, in the order of their seeds.

    Attributes:
        name: Folder of the data.
        runs: One per seed.
    """

    name: str
    runs: tuple[Run, ...]

    @cached_property
    def evaluations(self) -> Evaluations:
        """Their evaluations."""
        return Evaluations(tuple(run.evaluation for run in self.runs), tuple(run.seed for run in self.runs))

    @property
    def title(self) -> str:
        """What tables call it."""
        return TITLES.get(self.name, self.name)

    @property
    def users(self) -> int:
        """Users that are evaluated."""
        return int(self.evaluations.summaries[0]["users"])

    def order(self, seen: str) -> list[str]:
        """Systems by the headline metric, best first."""
        found = self.evaluations
        return sorted(found.systems, key=lambda system: (-found.figure(system, seen, HEADLINE).mean, system))


def data_sets(folders: Sequence[Path]) -> list[DataSet]:
    """Group finished runs by data set.

    Raises:
        ArtifactError: Two runs of one data set have one seed, or other systems to show for it.
    """
    by_name: dict[str, list[Run]] = {}
    for folder in folders:
        run = Run(folder)
        by_name.setdefault(run.data, []).append(run)
    for name, runs in by_name.items():
        seeds = [run.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            said = ", ".join(f"'{run.folder}' seed {run.seed}" for run in runs)
            raise ArtifactError(f"several runs on {name} have one seed ({said}); give one folder per seed")
    return [DataSet(name, tuple(sorted(runs, key=lambda run: run.seed))) for name, runs in by_name.items()]
