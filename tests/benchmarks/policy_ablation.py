"""Which options of a policy pay at equal epochs: one change at a time, several seeds, measured on validation rows alone.

Every run trains a policy from the same prepared data, embeddings and semantic IDs, validates once after the last epoch, and
answers rows of the validation split in three ways: the plain beam, the beam guided by the dense head (``decode.guidance``)
and the exact order of the whole catalogue by the dense head; seen items are left out, no test row is read. A finished run is
one JSON line in ``--log``; a killed benchmark goes on with the next run, and the page is written from all lines there are.

Run: ``python -m tests.benchmarks.policy_ablation --artifacts runs/office/artifacts --data amazon14_office`` after
``prepare``, ``embed`` and ``tokenize`` of the recipe on that folder; about 90 CPU seconds a run on one thread, several times
that on Beauty. ``--variants`` and ``--seeds`` choose, ``--size recipe`` takes the recipe's own width and epochs,
``--page-only`` writes the page and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

import lightning
import numpy as np
import torch

from pipelines.cli.options import LogLevel, set_up_logging
from pipelines.config import RunConfig, load_run_config
from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.ranking import RankedItems, concatenate, top_k
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import row_metrics
from recsys.model.checkpoint import load_policy, save_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import SilentProgress, set_threads
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.averaging import WeightAverage
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from tests.benchmarks import findings
from tests.benchmarks.paired import write_table

SIZES: Final[Mapping[str, tuple[str, ...]]] = {
    "small": (
        "model.width=64",
        "model.dropout=0.2",
        "model.embedding_dropout=0.2",
        "train.max_epochs=8",
        "train.batch_size=64",
    ),
    "recipe": (),
}
BASE: Final = "reference"

VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    BASE: (),
    "no label smoothing": ("train.label_smoothing=0",),
    "half batches": ("train.batch_size=32",),
    "dropout .3": ("model.dropout=0.3", "model.embedding_dropout=0.3"),
    "dense share 1": ("train.dense_targets_share=1",),
    "dense weight .5": ("train.dense_weight=0.5",),
    "dense weight 2": ("train.dense_weight=2",),
    "learning rate .004": ("train.learning_rate=0.004",),
    "width 96": ("model.width=96",),
    "3 + 3 blocks": ("model.num_encoder_layers=3", "model.num_decoder_layers=3"),
    "random item table": ("train.init_items_from_embeddings=false",),
    "average .97": ("train.average_decay=0.97",),
    "average .99": ("train.average_decay=0.99",),
    "crop .5": ("train.augment.crop_share=0.5",),
    "reorder .5": ("train.augment.reorder_share=0.5",),
    "mask .1": ("train.augment.mask_share=0.1",),
    "prefix .5": ("train.prefix_weight=0.5",),
    "adaptive prefix .5": ("train.prefix_weight=0.5", "train.prefix_adaptivity=1"),
    "distillation 1": ("train.distillation_weight=1",),
    "distillation 3": ("train.distillation_weight=3",),
    "item table without codes": ("model.features=[item,author,category,behaviour,gap,watch]",),
}
"""By name, what differs from the size's own settings."""

AVERAGES: Final[Mapping[str, float]] = {"average .97": 0.97, "average .99": 0.99}
"""Measured from the reference's own run: an average changes nothing in the training that it watches."""

METRICS: Final = ("hr@10", "ndcg@10")
LISTS: Final = ("beam", "guided", "dense head")
SEARCH_ROWS: Final = 2000
BEAM_WIDTH: Final = 50
GUIDANCE: Final = 2.0
ROWS_SEED: Final = 12


def dense_order(policy: GenerativeRecommender, histories: Histories, k: int) -> RankedItems:
    """Rank the whole catalogue by the dense head, seen items left out."""
    with torch.inference_mode():
        vectors_ID = policy.item_vectors()[1:]
        parts = []
        for start in range(0, len(histories), 512):
            block = histories.take(np.arange(start, min(start + 512, len(histories))))
            query_BD = policy.start(collate_histories(block, policy.spec.model.max_history)).dense_query_BD
            score_BI = (query_BD @ vectors_ID.T).numpy()
            for row, seen in enumerate(block.seen_items()):
                score_BI[row, seen] = -np.inf
            parts.append(top_k(score_BI, k))
    return concatenate(parts)


def measure(policy: GenerativeRecommender, prepared: Dataset, semantic_ids: SemanticIds) -> dict[str, float]:
    """HR@10 and NDCG@10 of the three lists: the dense head's on all validation rows, the searches' on a drawn part."""
    targets = prepared.targets(VALID)
    count = min(SEARCH_ROWS, len(targets))
    rows = np.sort(np.random.default_rng(ROWS_SEED).choice(len(targets), count, replace=False))
    searched = targets.take(rows)
    histories = Histories.from_targets(prepared.history, searched)
    figures = _figures(
        "dense head", dense_order(policy, Histories.from_targets(prepared.history, targets), 10), targets
    )
    for name, guidance in (("beam", 0.0), ("guided", GUIDANCE)):
        decode = DecodeConfig(beam_width=BEAM_WIDTH, rescore="none", guidance=guidance)
        found = Recommender(policy, semantic_ids, decode).recommend(histories, 10, progress=SilentProgress())
        figures |= _figures(name, found, searched)
    return figures


def _figures(name: str, ranked: RankedItems, targets: Targets) -> dict[str, float]:
    metrics = row_metrics(ranked, targets, [10])
    return {f"{name} {metric}": float(metrics[metric].mean()) for metric in METRICS}


class Averages(lightning.Callback):
    """Keep several weight averages of one training, and at its end the policies that hold them."""

    def __init__(self, folder: Path, decays: Mapping[str, float]) -> None:
        self.folder = folder
        self.averages = {name: WeightAverage(decay) for name, decay in decays.items()}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin all."""
        for average in self.averages.values():
            average.on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        """Move all."""
        for average in self.averages.values():
            average.on_train_batch_end(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save all."""
        assert isinstance(pl_module, PolicyModule)
        for name, average in self.averages.items():
            average.on_validation_start(trainer, pl_module)
            save_policy(self.folder / name, pl_module.policy)
            average.on_validation_end(trainer, pl_module)


class Benchmark:
    """What all runs share.

    Args:
        artifacts: Folder with ``prepared``, ``embeddings`` and ``semantic_ids`` of one run of the recipe.
        log: File of one JSON line per finished run.
    """

    def __init__(self, recipe: Path, artifacts: Path, log: Path) -> None:
        self.recipe, self.log = recipe, log
        self.prepared = Dataset.open(_only(artifacts / "prepared"))
        self.semantic_ids = SemanticIds.load(_only(artifacts / "semantic_ids"))
        self.embeddings = np.load(_only(artifacts / "embeddings") / "fused.npy", mmap_mode="r")

    def finished(self) -> list[dict[str, Any]]:
        """All lines of the log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def run(self, size: str, variant: str, seed: int) -> None:
        """Train, measure and write one line per policy, unless the line is there."""
        names = [variant, *AVERAGES] if variant == BASE else [variant]
        keys = {name: self._key(size, name, seed) for name in names}
        done = [{name: line[name] for name in keys[variant]} for line in self.finished()]
        if all(key in done for key in keys.values()):
            return
        config = load_run_config(
            self.recipe, [*keys[variant]["overrides"], f"seed={seed}", "train.validation_users=100"]
        )
        folder = self.log.parent / f"run {size} {variant} {seed}"
        averages = Averages(folder / "averages", {name: AVERAGES[name] for name in names[1:]})
        cpu = time.process_time()
        train_policy(self._inputs(config), folder, SilentProgress(), watchers=[averages])
        cpu = time.process_time() - cpu
        for name, key in keys.items():
            policy_folder = folder / "model" if name == variant else folder / "averages" / name
            figures = measure(load_policy(policy_folder, self.semantic_ids.digest), self.prepared, self.semantic_ids)
            line = json.dumps(key | {"cpu_s": round(cpu, 1)} | figures)
            with self.log.open("a") as out:
                out.write(line + "\n")
            print(line, flush=True)
        shutil.rmtree(folder)

    def _key(self, size: str, variant: str, seed: int) -> dict[str, Any]:
        overrides = [*SIZES[size], *VARIANTS[variant]]
        return {"size": size, "variant": variant, "seed": seed, "overrides": overrides}

    def _inputs(self, config: RunConfig) -> TrainingInputs:
        train = config.train.model_copy(update={"validate_every_epochs": config.train.max_epochs})
        return TrainingInputs(
            dataset=self.prepared,
            semantic_ids=self.semantic_ids,
            model=config.model,
            train=train,
            decode=DecodeConfig(beam_width=10),
            seed=config.seed,
            item_embeddings=self.embeddings,
        )


def _only(folder: Path) -> Path:
    """The one artefact of a kind."""
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(found) != 1:
        raise SystemExit(f"{folder} holds {len(found)} artefacts, expected one; run the recipe in a folder of its own")
    return found[0]


def table_rows(lines: Sequence[Mapping[str, Any]], size: str) -> list[list[str]]:
    """One row per variant: seeds, NDCG@10 and HR@10 of each list, its change against the reference, training time."""
    by_variant: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        current = [*SIZES[size], *VARIANTS.get(line["variant"], ("unknown",))]
        if line["size"] == size and line["overrides"] == current:
            by_variant.setdefault(line["variant"], []).append(line)
    base = by_variant.get(BASE, [])
    return [
        [
            variant,
            str(len(found)),
            *(_cell(found, base, name) for name in LISTS),
            f"{mean(line['cpu_s'] for line in found) / mean(line['cpu_s'] for line in base):.2f}" if base else "–",
        ]
        for variant, found in by_variant.items()
    ]


def _cell(found: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], name: str) -> str:
    """``.0612 / .0310 (+2.1 % ± 1.0)``: means over seeds; change of NDCG@10 on the same seeds, and its standard error."""
    means = " / ".join(f"{mean(line[f'{name} {metric}'] for line in found):.4f}".lstrip("0") for metric in METRICS)
    by_seed = {line["seed"]: line[f"{name} ndcg@10"] for line in base}
    shared = [(line[f"{name} ndcg@10"], by_seed[line["seed"]]) for line in found if line["seed"] in by_seed]
    if found is base or not shared:
        return means
    scale = mean(theirs for _, theirs in shared)
    changes = [100 * (ours - theirs) / scale for ours, theirs in shared]
    spread = f" ± {stdev(changes) / len(changes) ** 0.5:.1f}" if len(changes) > 1 else ""
    return f"{means} ({mean(changes):+.1f} %{spread})"


def write_page(lines: Sequence[Mapping[str, Any]], data: str, num_rows: int) -> str:
    """Write ``results/policy_ablation.md``: the small size first, then what was run at the recipe's.

    Args:
        data: What the notes call the data set.
        num_rows: Validation rows.
    """
    rows = [[size, *row] for size in SIZES for row in table_rows(lines, size)]
    run = {line["variant"] for line in lines}
    header = ["size", "change", "seeds", *(f"{name}: HR@10 / NDCG@10" for name in LISTS), "training time"]
    notes = [
        f"{data}, validation rows only: the dense head on all {num_rows}, beam and guided (width {BEAM_WIDTH}, guidance "
        f"{GUIDANCE:g}) on the same {min(SEARCH_ROWS, num_rows)}; seen items filtered; the last epoch counts",
        f"small: {', '.join(SIZES['small'])}, otherwise the recipe; recipe: pipelines/recipes/beauty.yaml as it is",
        "in brackets: change of NDCG@10 against the reference of the same size and seeds, ± standard error over seeds",
        "an average is measured from the reference's own run, whose steps it does not change",
        "training time: CPU time of the process as a ratio to the reference's; the machine was shared",
        f"not run: {', '.join(name for name in VARIANTS if name not in run) or 'none'}",
        *(f"{name}: {', '.join(values)}" for name, values in VARIANTS.items() if values and name in run),
    ]
    return write_table(
        "policy_ablation",
        "What makes a policy stronger",
        findings.of_policy_ablation(rows, num_rows),
        header,
        rows,
        notes,
    )


def main() -> None:
    """Run what is asked for and not there yet, seed by seed, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("pipelines/recipes/beauty.yaml"))
    parser.add_argument("--artifacts", type=Path, default=Path("runs/beauty/artifacts"))
    parser.add_argument("--data", default="amazon14_beauty", help="what the page calls the data set")
    parser.add_argument("--log", type=Path, default=Path("runs/policy_ablation.jsonl"))
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--page-only", action="store_true")
    arguments = parser.parse_args()
    set_up_logging(LogLevel.WARNING)
    set_threads(1)
    benchmark = Benchmark(arguments.recipe, arguments.artifacts, arguments.log)
    if not arguments.page_only:
        arguments.log.parent.mkdir(parents=True, exist_ok=True)
        for seed in arguments.seeds:
            for variant in [name for name in arguments.variants if name not in AVERAGES]:
                benchmark.run(arguments.size, variant, seed)
    print(write_page(benchmark.finished(), arguments.data, len(benchmark.prepared.targets(VALID))))


if __name__ == "__main__":
    main()
