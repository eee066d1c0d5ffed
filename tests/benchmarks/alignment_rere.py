"""ReRe on real data: variants of the method, each from the same policies, judged on the same test rows.

For every seed a policy is trained by the pipeline (stages prepare to train of the data set's recipe) unless its folder is
there. Every variant then starts from it: roll-outs and rewards come from train targets alone, whose histories end before
them, and the guard looks at validation rows. A finished (data set, seed, variant) is one JSON file and one file of values
per test row, so the run can be stopped and started again; the page is written from all that exist.

Run: ``python -m tests.benchmarks.alignment_rere --dataset beauty --runs runs --seeds 1 2 3``; about 20 minutes for a policy
of Beauty and 4 for a variant, on one thread. ``--tune`` measures the candidates for the settings on validation rows of
seed 1 instead.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from pipelines.config import RunConfig, load_run_config
from pipelines.lock import run_lock
from pipelines.options import LogLevel, ProgressMode, make_progress, set_up_logging
from pipelines.workflow import Workflow
from recsys.alignment.align import align_policy
from recsys.alignment.alignment_report import CURVES_NAME, REPORT_NAME
from recsys.alignment.config import AlignConfig, GuardConfig
from recsys.contracts.columns import SPLIT_NAMES, TEST, VALID
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import MANIFEST_NAME, open_artifact, read_json, write_json
from recsys.contracts.prepared import PreparedData, Targets
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics import coverage, row_metrics
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import set_threads
from recsys.semantic_ids.generation import SemanticIds
from tests.benchmarks.alignment_rere_page import START, write_page

logger = logging.getLogger("recsys.benchmarks")

RECIPES: Final = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"
KS: Final = (1, 5, 10, 20, 50)
BEAM_WIDTH: Final = 50
"""Of every judged beam, as in ReRe's evaluation."""
SAMPLE_SEED: Final = 0
TRAINED_STAGES: Final = ("prepare", "embed", "tokenize", "train")


@dataclass(frozen=True)
class Dataset:
    """A data set of the experiment.

    Attributes:
        recipe: Name of the pipeline's recipe that trains the policies.
        folder: Below ``RECSYS_DATA``.
        judged_rows: Rows judged; of more, so many are drawn, once for all seeds and variants.
        guard_rows: Validation rows that the guard looks at.
    """

    recipe: str
    folder: str
    judged_rows: int
    guard_rows: int


DATASETS: Final = {
    "beauty": Dataset("beauty.yaml", "amazon14_beauty", 8000, 1500),
    "industrial": Dataset("industrial.yaml", "minionerec_industrial", 4533, 1_000_000),
}


@dataclass(frozen=True)
class Settings:
    """What all variants share; chosen on validation rows of seed 1 (``--tune``).

    Attributes:
        rounds: Parts of a run, each looked at by the guard.
        steps_per_round: Updates of a part.
        requests: Train targets per update.
        beta: Weight of the divergence of the policy-gradient loss.
        preference_beta: beta of the softmax-DPO loss.
        supervised: Weight of the next-token loss on the same requests.
    """

    learning_rate: float = 1e-4
    rounds: int = 3
    steps_per_round: int = 100
    requests: int = 128
    beta: float = 1e-3
    preference_beta: float = 1.0
    supervised: float = 0.0


Kind = Literal["rere", "sdpo", "next_token"]


@dataclass(frozen=True)
class Variant:
    """One way to align.

    Attributes:
        kind: Policy gradient, softmax-DPO, or the next-token loss alone.
        rewards: Names, weight 1 each.
        group: Candidates per request, G.
        strategy: Of the roll-outs.
        all_groups: softmax-DPO on every group, the target as chosen; otherwise only on groups that hold it, which are those
            that teach the policy gradient something.
        learning_rate: Instead of the data set's setting.
    """

    kind: Kind = "rere"
    rewards: tuple[str, ...] = ("rule", "ranking")
    group: int = 16
    strategy: Literal["beam", "sampling", "dynamic"] = "beam"
    all_groups: bool = False
    learning_rate: float | None = None


LARGE_STEPS: Final = "rule+ranking, lr 1e-4"
"""What Beauty takes anyway, for the data set that takes less."""

VARIANTS: Final = {
    "rule+ranking": Variant(),
    LARGE_STEPS: Variant(learning_rate=1e-4),
    "rule": Variant(rewards=("rule",)),
    "sdpo, same groups": Variant("sdpo"),
    "sdpo, all groups": Variant("sdpo", all_groups=True),
    "sampling": Variant(strategy="sampling"),
    "G=4": Variant(group=4),
    "G=8": Variant(group=8),
    "G=32": Variant(group=32),
    "next-token only": Variant("next_token"),
}

DUELS: Final = (
    ("rule+ranking", "rule"),
    ("rule+ranking", "sampling"),
    ("rule+ranking", "sdpo, same groups"),
    ("rule+ranking", "sdpo, all groups"),
    ("rule+ranking", "next-token only"),
    ("rule+ranking", "G=4"),
    ("rule+ranking", "G=8"),
    ("rule+ranking", "G=32"),
)
"""Variants compared with each other, row by row."""

CHOSEN: Final = {"beauty": Settings(), "industrial": Settings(learning_rate=3e-5)}
_ONE = Settings(rounds=1, steps_per_round=300)
CANDIDATES: Final = {
    "lr 3e-5": ("rule+ranking", replace(_ONE, learning_rate=3e-5)),
    "lr 3e-5, next-token 0.3": ("rule+ranking", replace(_ONE, learning_rate=3e-5, supervised=0.3)),
    "lr 6e-5": ("rule+ranking", replace(_ONE, learning_rate=6e-5)),
    "lr 6e-5, next-token 0.3": ("rule+ranking", replace(_ONE, learning_rate=6e-5, supervised=0.3)),
    "lr 1e-4, KL 0.1": ("rule+ranking", replace(_ONE, beta=0.1)),
    "lr 1e-4": ("rule+ranking", _ONE),
    "lr 3e-4": ("rule+ranking", replace(_ONE, learning_rate=3e-4)),
    "lr 3e-4, next-token 1": ("rule+ranking", replace(_ONE, learning_rate=3e-4, supervised=1.0)),
    "sdpo 0.1, lr 1e-4": ("sdpo, same groups", replace(_ONE, preference_beta=0.1)),
    "sdpo 1, lr 1e-4": ("sdpo, same groups", _ONE),
    "sdpo all groups 1, lr 1e-4": ("sdpo, all groups", _ONE),
}
"""Variant and settings of every run of ``--tune``."""

NOTES: Final = """\
- policies: the recipe of the data set, stages prepare to train, one per seed; every variant of a seed starts from
  the same policy, and sees the same train targets in the same order; no validation or test item is ever a reward
- judged: item level, whole catalogue, constrained beam of 50 (ReRe's width; the recipe serves from 100); filtered
  means that items of the history are left out; served is the dense head's order of the same 50 candidates, so its
  HR@50 is the beam's
- first row of a table: means over the seeds that are there; other rows: relative change, in brackets a 95 % paired
  bootstrap interval over users; users are drawn with their rows under all seeds, so the interval says nothing about
  other seeds: see the table seed by seed
- rule+ranking, rule: ReRe with both rewards or the first (GRPO, G = 16, beam); sampling, G=...: rule+ranking with
  other groups
- sdpo, same groups: the softmax-DPO loss on groups of a beam of 16 that hold the target, the other 15 rejected:
  what the policy gradient learns from; all groups: the target is chosen whether the beam holds it or not; groups
  come from the policy at the beginning of the round, not of the step
- next-token only: as many updates on the same requests with the next-token loss and the dense head's, as a control
- guard: after each round, on 1,500 (beauty) or all 4,532 (industrial) validation rows; it stops if HR@50 falls
  beyond its interval while HR@1 rises, or the reward falls beyond its own
- sdpo, all groups (beauty): run before the guard had its rule about the reward, which stops it after the first round
- rule+ranking, lr 1e-4 (industrial): the rate that Beauty takes
- industrial: validation and test are the official rows of ReRe and MiniOneRec, the train file is rebuilt (30,213
  rows for 36,259, 83 %): a lower bound of what the official file gives; its published metric is the unfiltered one
"""


def settings_note() -> str:
    """One line about what all variants share, and one rate per data set."""
    settings = CHOSEN["beauty"]
    rates = ", ".join(f"{chosen.learning_rate:g} ({name})" for name, chosen in CHOSEN.items())
    return (
        f"- settings: {settings.rounds} rounds of {settings.steps_per_round} updates of {settings.requests} requests, AdamW "
        f"with {rates} and cosine decay to a tenth, KL beta {settings.beta:g} (k3), softmax-DPO beta "
        f"{settings.preference_beta:g}, next-token loss with weight {settings.supervised:g}, no dropout; chosen on "
        "validation rows of seed 1 (highest NDCG@10 of the beam order among settings whose HR@50 does not fall there) and "
        "used for all seeds\n"
    )


def align_config(variant: Variant, settings: Settings, guard: GuardConfig) -> AlignConfig:
    """Turn a variant into the configuration of the `align` stage."""
    optimiser = {"learning_rate": settings.learning_rate}
    supervised = {"weight": settings.supervised}
    rollouts = {"num_generations": variant.group, "strategy": variant.strategy}
    if variant.kind == "rere":
        method: dict[str, Any] = {
            "rounds": settings.rounds,
            "steps_per_round": settings.steps_per_round,
            "requests_per_step": settings.requests,
            "rewards": dict.fromkeys(variant.rewards, 1.0),
            "loss": {"beta": settings.beta},
        }
    else:
        method = {
            "rounds": settings.rounds,
            "samples_per_round": settings.steps_per_round * settings.requests,
            "batch_size": settings.requests,
            "rewards": {"rule": 1.0},
            "preference_reduction": "pairs",
            "loss": {"loss_type": "sdpo", "beta": settings.preference_beta},
            "num_negatives": variant.group - 1,
        }
        method["pair_rule"] = "target_rest" if variant.all_groups else "best_all"
        method["preference_share"] = 1.0
        if variant.kind == "next_token":  # the loop of the pairs without their loss
            method |= {"preference_share": 0.01, "preference_weight": 1e-12}
            supervised = {"weight": 1.0}
    method |= {"optimiser": optimiser, "supervised": supervised, "rollouts": rollouts}
    name = "rere" if variant.kind == "rere" else "ipa"
    return AlignConfig.model_validate({"method": name, name: method, "guard": guard, "checkpoint_every_steps": 1000})


@dataclass(frozen=True)
class Base:
    """A trained policy and what it was trained on."""

    folder: Path
    dataset: str
    seed: int

    @property
    def artefacts(self) -> Path:
        """Where the pipeline keeps them."""
        return self.folder / "artifacts"

    @cached_property
    def policy_path(self) -> Path:
        """The one trained policy of the folder."""
        return _only(self.artefacts / "policy")

    def parent(self, stage: str, kind: str) -> Path:
        """Artefact that the policy was trained from."""
        digest = open_artifact(self.policy_path).manifest.parents[stage]
        return self.artefacts / kind / digest[:16]

    @cached_property
    def prepared(self) -> PreparedData:
        """The data."""
        return PreparedData.open(self.parent("prepare", "prepared"))

    @cached_property
    def semantic_ids(self) -> SemanticIds:
        """The generation of the policy."""
        return SemanticIds.load(self.parent("tokenize", "semantic_ids"))

    def policy(self) -> GenerativeRecommender:
        """A fresh copy of the policy."""
        return load_policy(self.policy_path / "model", self.semantic_ids.digest)

    def rows_to_judge(self, split: int) -> Targets:
        """The rows to judge: the same users for every seed, because the data do not depend on it."""
        targets, wanted = self.prepared.targets(split), DATASETS[self.dataset].judged_rows
        if len(targets) <= wanted:
            return targets
        rows = np.random.default_rng(SAMPLE_SEED).choice(len(targets), wanted, replace=False)
        return targets.take(np.sort(rows))


def open_base(runs: Path, dataset: str, seed: int) -> Base:
    """Open the policy of one seed, and train it first where the folder has none."""
    base = Base(runs / f"{dataset}_{seed}", dataset, seed)
    if not list((base.artefacts / "policy").glob(f"[!.]*/{MANIFEST_NAME}")):
        _train(_recipe(dataset, base.folder, seed))
    return base


def _recipe(dataset: str, folder: Path, seed: int) -> RunConfig:
    data = os.environ.get("RECSYS_DATA")
    if data is None:
        raise ConfigError("RECSYS_DATA is not set; it names the folder of the data sets, needed to train a policy")
    known = DATASETS[dataset]
    overrides = [f"source.path={data}/{known.folder}", f"output_dir={folder}", f"seed={seed}", "threads=1"]
    return load_run_config(RECIPES / known.recipe, overrides)


def _train(config: RunConfig) -> None:
    logger.info("training the policy of '%s', seed %d", config.output_dir, config.seed)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    with run_lock(config.output_dir):
        workflow = Workflow(config, make_progress(ProgressMode.OFF))
        for stage in TRAINED_STAGES:
            workflow.run_verb(stage)


def _only(folder: Path) -> Path:
    found = sorted(path.parent for path in folder.glob(f"[!.]*/{MANIFEST_NAME}"))
    if len(found) != 1:
        raise ArtifactError(f"'{folder}' holds {len(found)} trained policies, expected 1; give a folder of one recipe")
    return found[0]


@dataclass(frozen=True)
class Job:
    """One (data set, seed, variant) and where its result lies."""

    dataset: str
    seed: int
    name: str
    out: Path

    @property
    def folder(self) -> Path:
        """Folder of its seed."""
        return self.out / self.dataset / f"seed_{self.seed}"

    @property
    def stem(self) -> str:
        """File name without ending."""
        return "".join(c if c.isalnum() or c in "+-=" else "_" for c in self.name)

    @property
    def result(self) -> Path:
        """Written last."""
        return self.folder / f"{self.stem}.json"

    @property
    def rows(self) -> Path:
        """Values per test row."""
        return self.folder / f"{self.stem}.npz"


def run_job(job: Job, base: Base, config: AlignConfig | None, split: int) -> None:
    """Align (``None``: do not) and judge; nothing is done where the result exists.

    Raises:
        ArtifactError: The result that exists was made with other settings.
    """
    if job.result.exists():
        if config is not None:
            _check_same_settings(job, config)
        return
    logger.info("%s, seed %d: %s", job.dataset, job.seed, job.name)
    job.folder.mkdir(parents=True, exist_ok=True)
    policy = base.policy()
    facts: dict[str, Any] = {"dataset": job.dataset, "seed": job.seed, "variant": job.name, "split": SPLIT_NAMES[split]}
    started = time.monotonic()
    if config is not None:
        facts |= align(job, base, policy, config)
    aligned = time.monotonic()
    targets = base.rows_to_judge(split)
    values, facts["mean"] = judge(base, policy, targets)
    facts |= {"rows": len(targets), "align_seconds": aligned - started, "judge_seconds": time.monotonic() - aligned}
    np.savez_compressed(job.rows, users=targets.user_index, **values)  # type: ignore[arg-type]
    write_json(job.result, facts)


def _check_same_settings(job: Job, config: AlignConfig) -> None:
    facts = read_json(job.result)
    wanted = {"settings": config.active.model_dump(mode="json"), "guard": config.guard.model_dump(mode="json")}
    for part, settings in wanted.items():
        if other := _differences(settings, facts[part]):
            raise ArtifactError(
                f"'{job.result}' was made with other settings: {', '.join(other)}; delete it, or give another --out"
            )


def _differences(wanted: dict[str, Any], found: dict[str, Any], where: str = "") -> list[str]:
    """Keys that both know and set otherwise. The rate of the input for objectives is none of these policies' business."""
    result = []
    for key in sorted((wanted.keys() & found.keys()) - {"objective_rate"}):
        name, now, then = f"{where}{key}", wanted[key], found[key]
        if isinstance(now, dict) and isinstance(then, dict):
            result += _differences(now, then, f"{name}.")
        elif now != then:
            result.append(f"{name} {then!r}, now {now!r}")
    return result


def align(job: Job, base: Base, policy: GenerativeRecommender, config: AlignConfig) -> dict[str, Any]:
    """Align the policy in place; return the report's facts."""
    work = job.folder / f".{job.stem}"
    decode = DecodeConfig(beam_width=BEAM_WIDTH)
    align_policy(
        base.prepared, base.semantic_ids, policy, config, decode, work, job.seed, make_progress(ProgressMode.OFF)
    )
    report = read_json(work / REPORT_NAME)
    shutil.copyfile(work / CURVES_NAME, job.folder.joinpath(f"{job.stem}_curves.parquet"))
    shutil.rmtree(work)
    return {name: report[name] for name in ("settings", "guard", "kept_round", "stopped", "rounds")}


def judge(
    base: Base, policy: GenerativeRecommender, targets: Targets
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, float]]:
    """Rank the rows with and without seen items, in both orders; return values per row and their means.

    Names are ``<beam|served>/<filtered|unfiltered>/<metric>``; recall and mrr say nothing more for a single target.
    """
    histories = Histories.of_targets(base.prepared.history, targets)
    recommender = Recommender(policy, base.semantic_ids, DecodeConfig(beam_width=BEAM_WIDTH))
    values: dict[str, npt.NDArray[np.float32]] = {}
    means: dict[str, float] = {}
    for filtered in (True, False):
        orders = recommender.both_orders(
            histories, KS[-1], exclude_seen=filtered, progress=make_progress(ProgressMode.OFF)
        )
        for order, ranked in zip(("beam", "served"), orders, strict=True):
            prefix = f"{order}/{'filtered' if filtered else 'unfiltered'}/"
            for metric, per_row in row_metrics(ranked, targets, KS).items():
                if metric.startswith(("hr", "ndcg")):
                    values[prefix + metric] = per_row.astype(np.float32)
                    means[prefix + metric] = float(per_row.mean())
            means[prefix + "coverage@10"] = coverage(ranked, 10, base.prepared.vocabulary.num_items)
    return values, means


def tune(base: Base, out: Path) -> None:
    """Run every candidate for the settings in one round that nothing stops, and judge it on validation rows."""
    guard = GuardConfig(users=500, ks=KS, recall_at=KS[-1], on_violation="record")
    run_job(Job(base.dataset, base.seed, START, out / "tune"), base, None, VALID)
    for name, (variant, settings) in CANDIDATES.items():
        job = Job(base.dataset, base.seed, name, out / "tune")
        run_job(job, base, align_config(VARIANTS[variant], settings, guard), VALID)


def jobs(dataset: str, seeds: Sequence[int], names: Sequence[str], out: Path) -> Iterator[Job]:
    """All jobs, variant by variant, each with all seeds, the starts first."""
    for name in (START, *names):
        for seed in seeds:
            yield Job(dataset, seed, name, out)


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="beauty")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds DATASET_SEED, one folder per policy")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment_rere"), help="results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=sorted(VARIANTS), default=None)
    parser.add_argument("--tune", action="store_true", help="measure candidates for the settings instead")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from what exists")
    arguments = parser.parse_args()
    set_up_logging(LogLevel.INFO)
    set_threads(1)
    dataset, settings = arguments.dataset, CHOSEN[arguments.dataset]
    if arguments.tune:
        tune(open_base(arguments.runs, dataset, arguments.seeds[0]), arguments.out)
        return
    names = arguments.variants or [
        name for name, variant in VARIANTS.items() if variant.learning_rate != settings.learning_rate
    ]
    if not arguments.page:
        for job in jobs(dataset, arguments.seeds, names, arguments.out):
            base, config = open_base(arguments.runs, dataset, job.seed), None
            if job.name != START:
                variant = VARIANTS[job.name]
                guard = GuardConfig(users=DATASETS[dataset].guard_rows, ks=KS, recall_at=KS[-1])
                used = replace(settings, learning_rate=variant.learning_rate or settings.learning_rate)
                config = align_config(variant, used, guard)
            run_job(job, base, config, TEST)
    known = {START, *VARIANTS, *CANDIDATES}
    print(write_page(arguments.out, "ReRe on real data", list(DATASETS), known, DUELS, settings_note() + NOTES))


if __name__ == "__main__":
    main()
