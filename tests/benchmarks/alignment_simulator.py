"""Alignment against the truth: variants of the loop from the same policies, evaluated by the simulator.

For every seed another world is simulated, and policy, reward model and held-out reward model are trained by the
pipeline's stages with the recipe ``simulated_sessions.yaml``. Every variant starts from that policy, changes some keys
of the recipe's ``align`` section, and is evaluated by what its sessions are truly worth to the same users at the end of
the log: their best beam, which is what would be served, and sessions drawn from the policy. A finished (seed, variant)
is one JSON file and one file of values per user, so the run can be stopped and started again; the page is written from
all that exist.

The settings were chosen in worlds of seeds 0 and 17, so seeds 1 to 3 are clean.

Run: ``python -m tests.benchmarks.alignment_simulator --seeds 3``; under 30 minutes on two free cores.
"""

from __future__ import annotations

import argparse
import copy
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from pipelines.cli.options import LogLevel, set_up_logging
from pipelines.config import RunConfig, load_run_config
from pipelines.engine.lock import run_lock
from pipelines.engine.runner import Runner
from pipelines.simulation.users import Sessions, SimulatedUsers, best_by
from pipelines.stages import stages_of
from recsys.alignment.align import align_policy
from recsys.alignment.config import RolloutConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler
from recsys.alignment.rounds.report import CURVES_NAME, REPORT_NAME
from recsys.config import validate
from recsys.contracts.columns import TRAIN
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import ArtifactStore, read_json, write_json
from recsys.decoding.recommender import Recommender
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.reward.checkpoint import load_reward_model
from recsys.reward.config import CombinationConfig
from recsys.reward.feedback.dataset import session_feedback
from recsys.reward.scoring import ModelScorer
from recsys.reward.training import fit_combination, split_raters, split_users
from recsys.runtime import SilentProgress, set_threads
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks.alignment_simulator_page import TIME_NAME, write_page
from tests.benchmarks.alignment_simulator_variants import LATER, VARIANTS, Variant, align_config

logger = logging.getLogger("recsys.benchmarks")

RECIPE: Final = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "simulated_sessions.yaml"
BASE_STAGES: Final = ("prepare", "embed", "tokenize", "train", "reward")
BASE_NAME: Final = "base.json"
MEASURED_USERS: Final = 1500
ROUND_USERS: Final = 500
"""Of the evaluated ones, for the policy of every round."""
DRAWS: Final = 8
"""Responses of a user that are averaged, per session."""
SAMPLED_SESSIONS: Final = 4
MARK_DRAWS: Final = 4
MARK_BEAMS: Final = 32


@dataclass(frozen=True)
class Base:
    """World, policy, reward model and evaluate of one seed.

    Attributes:
        changed: ``key=value`` of the recipe, the same for all seeds, such as a smaller world.
    """

    folder: Path
    seed: int
    changed: tuple[str, ...] = ()

    @property
    def config(self) -> RunConfig:
        """The recipe for this seed, with the keys that were changed."""
        return load_run_config(RECIPE, [f"seed={self.seed}", f"output_dir={self.folder}", "threads=1", *self.changed])

    @cached_property
    def artefacts(self) -> dict[str, Path]:
        """Folder of every stage's artefact; trains what is missing, once and for all.

        What was trained is written down, so that all variants of a seed start from one policy even if the code changes
        between two calls.
        """
        record = self.folder / BASE_NAME
        if not record.exists():
            config = self.config
            self.folder.mkdir(parents=True, exist_ok=True)
            with run_lock(self.folder):
                store = ArtifactStore(self.folder / "artifacts")
                runner = Runner(config, config.seed, store, SilentProgress())
                runner.run_all(stage for stage in stages_of(config, also=("reward",)) if stage.name in BASE_STAGES)
            seconds = {name: outcome.seconds for name, outcome in runner.outcomes.items()}
            paths = {name: str(outcome.artifact.path) for name, outcome in runner.outcomes.items()}
            write_json(record, {"artefacts": paths, "seconds": seconds, "changed": list(self.changed)})
        made = read_json(record)
        before, now = (_not_of_align(keys) for keys in (made.get("changed", []), self.changed))
        if before != now:
            raise ArtifactError(f"'{record}' was made with --set {before}, not {now}; give another --runs")
        folders = {name: Path(path) for name, path in made["artefacts"].items()}
        missing = [str(folder) for folder in folders.values() if not folder.is_dir()]
        if missing:
            raise ArtifactError(f"'{record}' names '{missing[0]}', which is not there; delete '{self.folder}'")
        return folders

    @cached_property
    def prepared(self) -> Dataset:
        """The log."""
        return Dataset.open(self.artefacts["prepare"])

    @cached_property
    def semantic_ids(self) -> SemanticIds:
        """The generation of the policy."""
        return SemanticIds.load(self.artefacts["tokenize"])

    @cached_property
    def users(self) -> SimulatedUsers:
        """The users that are evaluated, spread over all of the world."""
        config = self.config
        everybody = SimulatedUsers.open(config.source, self.prepared, config.seed)
        return everybody.take(np.unique(np.linspace(0, len(everybody) - 1, MEASURED_USERS).astype(np.int64)))

    @cached_property
    def scorers(self) -> dict[str, ModelScorer]:
        """Reward model and held-out reward model."""
        folder = self.artefacts["reward"]
        return {
            name: ModelScorer(load_reward_model(folder / part, self.semantic_ids.digest))
            for name, part in (("reward", "reward"), ("held_out_reward", "held_out"))
        }

    def combined(self, combination: Mapping[str, Any]) -> ModelScorer:
        """The reward model with its towers combined in another way, which is fitted on the model's own train sessions."""
        config, seed = self.config.reward, self.seed
        users = split_users(self.prepared.spec.num_users, config, seed)["reward"]
        own = session_feedback(self.prepared, config.feedback).of_users(users & ~split_raters(users, config, seed))
        model = copy.deepcopy(self.scorers["reward"].model)
        wanted = validate(CombinationConfig, dict(combination), "the variant's combination")
        model.spec = model.spec.model_copy(update={"combination": wanted})
        fit_combination(model, own.of(TRAIN))
        return ModelScorer(model)

    def policy(self, folder: Path | None = None) -> GenerativeRecommender:
        """A fresh copy of the trained policy, or the policy of another folder."""
        return load_policy(folder or self.artefacts["train"] / "model", self.semantic_ids.digest)


def _not_of_align(changed: Sequence[str]) -> list[str]:
    return sorted(one for one in changed if not one.startswith("align."))


Evaluated = dict[str, npt.NDArray[np.float64]]


def measure(base: Base, policy: GenerativeRecommender, users: SimulatedUsers) -> Evaluated:
    """Values per user of the policy's best session, and the utility of sessions drawn from it.

    Reward and held-out reward are the towers' weighted probabilities, which mean the same for every policy.
    """
    best = users.policy_sessions(Recommender(policy, base.semantic_ids, base.config.decode))
    values = measure_sessions(users, best)
    for name, scorer in base.scorers.items():
        towers = scorer.values(users.histories, torch.from_numpy(best))[:, 0].nan_to_num(0.0)
        values[name] = (towers * scorer.weights).sum(-1).double().numpy()
    values["sampled_utility"] = users.truth(sampled_sessions(base, policy, users), draws=DRAWS).utility.mean(1)
    return {name: value.astype(np.float64) for name, value in values.items()}


def measure_sessions(users: SimulatedUsers, sessions: Sessions) -> Evaluated:
    """True outcomes per user, means over their sessions."""
    truth = users.truth(sessions, draws=DRAWS)
    values = {name: getattr(truth, name).mean(1) for name in ("utility", "watch_ms", "long_views", "likes")}
    values["frozen_utility"] = users.frozen_utility(sessions).mean(1)
    return {name: value.astype(np.float64) for name, value in values.items()}


def sampled_sessions(base: Base, policy: GenerativeRecommender, users: SimulatedUsers) -> Sessions:
    """Sessions drawn from the policy among what the users have not seen."""
    config = RolloutConfig(strategy="sampling", num_generations=SAMPLED_SESSIONS, exclude_seen=True)
    sampler = RolloutSampler(base.semantic_ids, config)
    nothing = torch.full((len(users), users.session_length), -1)
    requests = Requests(users.histories, nothing)
    generator = torch.Generator().manual_seed(base.seed)
    return sampler.all_items(policy, requests, generator, SilentProgress())[0].numpy()


@dataclass(frozen=True)
class Job:
    """One (seed, variant) and where its result lies."""

    runs: Path
    seed: int
    name: str
    changed: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Results of its seed."""
        return self.runs / f"seed_{self.seed}"

    @property
    def stem(self) -> str:
        """File name without ending."""
        return "".join(c if c.isalnum() or c in "+-=" else "_" for c in self.name)

    @property
    def result(self) -> Path:
        """Written last."""
        return self.folder / f"{self.stem}.json"


@lru_cache(maxsize=4)
def open_base(runs: Path, seed: int, changed: tuple[str, ...]) -> Base:
    """One per process and seed, so that a worker simulates a world once."""
    return Base(runs / f"base_{seed}", seed, changed)


def run_job(job: Job) -> str:
    """Align and measure; the start also measures the marks that any policy can be held against."""
    set_up_logging(LogLevel.WARNING)
    set_threads(1)
    base = open_base(job.runs, job.seed, job.changed)
    job.folder.mkdir(parents=True, exist_ok=True)
    variant = (VARIANTS | LATER)[job.name]
    facts: dict[str, Any] = {"seed": job.seed, "variant": job.name, "rows": len(base.users)}
    started = time.process_time()
    policy = base.policy()
    if variant.changes is None:
        facts["marks"] = marks(base)
        facts["base_seconds"] = read_json(base.folder / BASE_NAME)["seconds"]
    else:
        facts |= align(job, base, policy, variant)
    values = measure(base, policy, base.users)
    facts["mean"] = {name: float(value.mean()) for name, value in values.items()}
    facts["cpu_seconds"] = time.process_time() - started
    user = job.seed * 1_000_000 + base.users.histories.user_index.astype(np.int64)  # every seed has people of its own
    np.savez_compressed(job.result.with_suffix(".npz"), users=user, **values)  # type: ignore[arg-type]
    write_json(job.result, facts)
    return f"seed {job.seed}, {job.name}: utility {facts['mean']['utility']:.3f}, {facts['cpu_seconds']:.0f} s"


def align(job: Job, base: Base, policy: GenerativeRecommender, variant: Variant) -> dict[str, Any]:
    """Align the policy in place; return the report's facts, with the truth of every round where it is wanted."""
    work = job.folder / f".{job.stem}"
    config = base.config
    inputs = AlignmentInputs(
        dataset=base.prepared,
        semantic_ids=base.semantic_ids,
        policy=policy,
        config=align_config(config.align, variant),
        decode=config.decode,
        seed=job.seed,
        reward_model=base.scorers["reward"] if variant.combination is None else base.combined(variant.combination),
        held_out_reward_model=base.scorers["held_out_reward"],
    )
    align_policy(inputs, work, SilentProgress())
    report = read_json(work / REPORT_NAME)
    if variant.every_round:
        some = base.users.take(np.arange(0, len(base.users), len(base.users) // ROUND_USERS))
        for number, one in enumerate(report["rounds"]):
            folder = None if number == 0 else work / "rounds" / f"{number:02d}" / "model"
            rolled = measure(base, base.policy(folder), some)
            one["truth"] = {name: float(value.mean()) for name, value in rolled.items()}
    shutil.copyfile(work / CURVES_NAME, job.folder / f"{job.stem}_curves.parquet")
    shutil.rmtree(work)
    return {name: report[name] for name in ("settings", "guard", "kept_round", "stopped", "rounds")}


def marks(base: Base) -> dict[str, dict[str, float]]:
    """Mean outcomes of the sessions that a policy can be held against; the last ones use what no policy may know."""
    users, seed = base.users, base.seed
    wide = base.config.decode.model_copy(update={"beam_width": MARK_BEAMS})
    beams = users.policy_sessions(Recommender(base.policy(), base.semantic_ids, wide), MARK_BEAMS)
    # picked by other draws than they are evaluated by, or the luckiest would seem the best
    lucky = users.truth(beams, draws=DRAWS, seed=1).utility
    sessions = {
        "random": users.random_sessions(MARK_DRAWS, seed),
        "popularity": users.popular_sessions(seed),
        "logging policy": users.logging_sessions(MARK_DRAWS, seed),
        f"truly best of the policy's {MARK_BEAMS} beams": best_by(lucky, beams),
        "greedy on the truth": users.greedy_sessions(),
    }
    evaluated = {name: measure_sessions(users, shown) for name, shown in sessions.items()}
    return {name: {key: float(value.mean()) for key, value in cells.items()} for name, cells in evaluated.items()}


def train_base(runs: Path, seed: int, changed: tuple[str, ...]) -> str:
    """Train policy, reward model and evaluate of a seed."""
    set_up_logging(LogLevel.WARNING)
    set_threads(1)
    open_base(runs, seed, changed).artefacts  # noqa: B018
    return f"seed {seed}: policy and reward models are there"


def run_missing(runs: Path, seeds: Sequence[int], names: Sequence[str], workers: int, changed: tuple[str, ...]) -> None:
    """Run what has no result yet in ``workers`` processes of one thread each: first the bases, then all variants."""
    jobs = [Job(runs, seed, name, changed) for name in names for seed in seeds]
    jobs = [job for job in jobs if not job.result.exists()]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        _report([pool.submit(train_base, runs, seed, changed) for seed in sorted({job.seed for job in jobs})])
        _report([pool.submit(run_job, job) for job in jobs])


def _report(futures: Sequence[Future[str]]) -> None:
    for future in as_completed(futures):
        logger.info(future.result())


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=1, help="the settings were chosen on 0 and 17")
    parser.add_argument("--runs", type=Path, default=Path("runs/alignment_simulator"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of the recipe, for all seeds")
    parser.add_argument("--variants", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of one thread")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from what exists")
    chosen = parser.parse_args()
    set_up_logging(LogLevel.INFO)
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    started = time.monotonic()
    if not chosen.page:
        run_missing(chosen.runs, seeds, chosen.variants, chosen.workers, tuple(chosen.set))
        path = chosen.runs / TIME_NAME
        before = read_json(path)["minutes"] if path.exists() else 0.0
        write_json(path, {"minutes": before + (time.monotonic() - started) / 60, "workers": chosen.workers})
    print(write_page(chosen.runs, seeds, [*VARIANTS], chosen.set))


if __name__ == "__main__":
    main()
