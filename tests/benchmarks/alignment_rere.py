"""ReRe on real data: variants of the method, each from the same policies, evaluated on the same test rows.

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
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.cli.options import LogLevel, set_up_logging
from pipelines.config import RunConfig, load_run_config
from pipelines.engine.lock import run_lock
from pipelines.workflow import Workflow
from recsys.alignment.align import align_policy
from recsys.alignment.config import AlignConfig, GuardConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.rounds.report import CURVES_NAME, REPORT_NAME
from recsys.contracts.columns import SPLIT_NAMES, TEST, VALID
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import MANIFEST_NAME, open_artifact, read_json, write_json
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import coverage, row_metrics
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import SilentProgress, set_threads
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks.alignment_rere_page import START, write_page
from tests.benchmarks.alignment_rere_variants import (
    CANDIDATES,
    CHOSEN,
    DATASETS,
    DUELS,
    NOTES,
    VARIANTS,
    align_config,
    settings_note,
)

logger = logging.getLogger("recsys.benchmarks")

RECIPES: Final = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"
KS: Final = (1, 5, 10, 20, 50)
BEAM_WIDTH: Final = 50
"""Of every evaluated beam, as in ReRe's evaluation."""
SAMPLE_SEED: Final = 0
TRAINED_STAGES: Final = ("prepare", "embed", "tokenize", "train")


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
    def prepared(self) -> Dataset:
        """The data."""
        return Dataset.open(self.parent("prepare", "prepared"))

    @cached_property
    def semantic_ids(self) -> SemanticIds:
        """The generation of the policy."""
        return SemanticIds.load(self.parent("tokenize", "semantic_ids"))

    def policy(self) -> GenerativeRecommender:
        """A fresh copy of the policy."""
        return load_policy(self.policy_path / "model", self.semantic_ids.digest)

    def rows_to_measure(self, split: int) -> Targets:
        """The rows to evaluate: the same users for every seed, because the data do not depend on it."""
        targets, wanted = self.prepared.targets(split), DATASETS[self.dataset].eval_rows
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
        workflow = Workflow(config, SilentProgress())
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
    """Align (``None``: do not) and measure; nothing is done where the result exists.

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
    targets = base.rows_to_measure(split)
    values, facts["mean"] = measure(base, policy, targets)
    facts |= {"rows": len(targets), "align_seconds": aligned - started, "measure_seconds": time.monotonic() - aligned}
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
    inputs = AlignmentInputs(base.prepared, base.semantic_ids, policy, config, decode, seed=job.seed)
    align_policy(inputs, work, SilentProgress())
    report = read_json(work / REPORT_NAME)
    shutil.copyfile(work / CURVES_NAME, job.folder.joinpath(f"{job.stem}_curves.parquet"))
    shutil.rmtree(work)
    return {name: report[name] for name in ("settings", "guard", "kept_round", "stopped", "rounds")}


def measure(
    base: Base, policy: GenerativeRecommender, targets: Targets
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, float]]:
    """Rank the rows with and without seen items, in both orders; return values per row and their means.

    Names are ``<beam|served>/<filtered|unfiltered>/<metric>``; recall and mrr say nothing more for a single target.
    """
    histories = Histories.from_targets(base.prepared.history, targets)
    recommender = Recommender(policy, base.semantic_ids, DecodeConfig(beam_width=BEAM_WIDTH))
    values: dict[str, npt.NDArray[np.float32]] = {}
    means: dict[str, float] = {}
    for filtered in (True, False):
        orders = recommender.both_orders(histories, KS[-1], exclude_seen=filtered, progress=SilentProgress())
        for order, ranked in zip(("beam", "served"), orders, strict=True):
            prefix = f"{order}/{'filtered' if filtered else 'unfiltered'}/"
            for metric, per_row in row_metrics(ranked, targets, KS).items():
                if metric.startswith(("hr", "ndcg")):
                    values[prefix + metric] = per_row.astype(np.float32)
                    means[prefix + metric] = float(per_row.mean())
            means[prefix + "coverage@10"] = coverage(ranked, 10, base.prepared.spec.num_items)
    return values, means


def tune(base: Base, out: Path) -> None:
    """Run every candidate for the settings in one round that nothing stops, and measure it on validation rows."""
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
