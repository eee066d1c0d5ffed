"""A real language model on one CPU core or one GPU: before it is fine-tuned, after that, and after ReRe.

Run, behind the stages ``prepare``, ``embed`` and ``tokenize`` of the recipe, whose folders it reads:
``python -m tests.benchmarks.llm_finetune --config pipelines/recipes/industrial_llm.yaml --prepared FOLDER
--semantic-ids FOLDER --source-folder $RECSYS_DATA/minionerec_industrial --work FOLDER``.

The same rows are answered three times: loss of the next item's codes on validation rows, lists of the beam alone on test
rows, by item and by the semantic ID that came with the data. With ``--beside pipelines/recipes/industrial.yaml`` the
policy of another recipe is trained on the same data for as many minutes, and answers the same rows.

On a GPU (``device=cuda train.max_epochs=1 train.max_minutes=null``) minutes are of the wall, else of the processor.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.config import RunConfig, load_run_config
from pipelines.placement import check_placements
from recsys.alignment.align import align_policy
from recsys.alignment.inputs import AlignmentInputs
from recsys.contracts.columns import TEST, VALID
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.ranking import RankedItems
from recsys.data.batch import collate_targets
from recsys.data.histories import Histories
from recsys.decoding.recommender import Recommender
from recsys.device import resolve_device
from recsys.evaluation.by_id import rank_ids, read_ids, target_ids
from recsys.metrics.ranking import row_metrics
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import PlainProgress, seed_everything
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.fit import build_policy, train_policy
from recsys.training.inputs import TrainingInputs
from tests.benchmarks.paired import write_table

ROWS_AT_ONCE = 4


@dataclass(frozen=True)
class Measured:
    """One state of the policy.

    Attributes:
        minutes, steps: What it took, see :class:`Stopwatch`, and optimiser steps.
        loss: Nats per item on validation rows.
        by_item, by_id: ``HR@10 / NDCG@10 [interval]`` on test rows.
    """

    minutes: float
    steps: int
    loss: str
    by_item: str
    by_id: str

    def row(self, name: str) -> list[str]:
        """Of the table."""
        return [name, f"{self.minutes:.1f}", str(self.steps), self.loss, self.by_item, self.by_id]


class Stopwatch:
    """Minutes of the processor, or of the wall where a GPU computes and the processor waits."""

    def __init__(self, device: torch.device) -> None:
        self.clock = time.process_time if device.type == "cpu" else time.perf_counter
        self.began = self.clock()

    def minutes(self) -> float:
        """Since it was made."""
        return (self.clock() - self.began) / 60


def drawn(targets: Targets, count: int, seed: int) -> Targets:
    """Some rows, the same for every state."""
    rows = np.random.default_rng([seed, 5]).choice(len(targets), min(count, len(targets)), replace=False)
    return targets.take(np.sort(rows))


@torch.no_grad()
def losses(policy: GenerativeRecommender, prepared: Dataset, targets: Targets) -> npt.NDArray[np.float64]:
    """Minus the log-probability of every row's item, nats."""
    histories, found = Histories.from_targets(prepared.history, targets), []
    for first in range(0, len(targets), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(targets)))
        part = targets.take(rows)
        batch = collate_targets(histories.take(rows), part.items, part.item_offsets, 1, policy.spec.model.max_history)
        batch = batch.to(policy.codes.weight.device)
        found.append(-policy.eval().log_prob(batch)[:, 0, 0].double().cpu().numpy())
    return np.concatenate(found)


def figures(ranked: RankedItems, targets: Targets) -> str:
    """HR@10 / NDCG@10 with the latter's interval."""
    metrics = row_metrics(ranked, targets, (10,))
    return f"{metrics['hr@10'].mean():.3f} / {interval(metrics['ndcg@10'])}"


def interval(values: npt.NDArray[np.floating]) -> str:
    """``mean [low, high]`` by bootstrap, 95 %."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


class Study:
    """Measures the states of one recipe's policy.

    Args:
        source_folder: Where the file of given IDs lies.
        rows: Test rows that are answered; validation rows whose loss is taken.
    """

    def __init__(
        self, config: RunConfig, prepared: Dataset, semantic_ids: SemanticIds, source_folder: Path, rows: int
    ) -> None:
        assert config.evaluate.by_id is not None
        self.config, self.prepared, self.semantic_ids = config, prepared, semantic_ids
        self.ids = read_ids(config.evaluate.by_id, source_folder, prepared.items["item_id"])
        self.valid = drawn(prepared.targets(VALID), rows, config.seed)
        self.test = drawn(prepared.targets(TEST), rows, config.seed)

    def measure(self, policy: GenerativeRecommender, minutes: float, steps: int) -> Measured:
        """Loss and lists."""
        recommender = Recommender(policy, self.semantic_ids, self.config.decode)
        histories = Histories.from_targets(self.prepared.history, self.test)
        ranked = recommender.recommend(histories, self.config.decode.beam_width, rescore=False)
        by_id = figures(rank_ids(ranked, self.ids), target_ids(self.test, self.ids))
        found = losses(policy, self.prepared, self.valid)
        result = Measured(minutes, steps, interval(found), figures(ranked, self.test), by_id)
        print(result, flush=True)
        return result

    def trained(self, config: RunConfig, folder: Path, progress: PlainProgress) -> tuple[GenerativeRecommender, int]:
        """Train a recipe's policy on the study's data; the policy where it was trained, and the steps taken."""
        device = resolve_device(config.device)
        inputs = TrainingInputs(
            self.prepared, self.semantic_ids, config.model, config.train, config.decode, config.seed, device=device
        )
        report = train_policy(inputs, folder, progress)
        return load_policy(folder / "model", self.semantic_ids.digest).to(device), report["steps"]

    def popularity(self) -> tuple[str, str]:
        """The most frequent items of the training events, for everybody: by item and by ID."""
        history = self.prepared.history
        item = [history.item[first:end] for first, end in zip(history.offsets[:-1], history.train_end, strict=True)]
        counts = np.bincount(np.concatenate(item), minlength=len(self.ids)).astype(np.float32)
        k = self.config.decode.beam_width
        order = np.argsort(-counts, kind="stable")[:k].astype(np.int32)
        shape = (len(self.test), k)
        ranked = RankedItems(
            np.ascontiguousarray(np.broadcast_to(order, shape)),
            np.ascontiguousarray(np.broadcast_to(counts[order], shape)),
        )
        return figures(ranked, self.test), figures(rank_ids(ranked, self.ids), target_ids(self.test, self.ids))


def main() -> None:
    """Train, align, measure, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--semantic-ids", type=Path, required=True)
    parser.add_argument("--source-folder", type=Path, required=True, help="source.path of the recipe")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--beside", type=Path, help="recipe of another policy, trained for the same minutes")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = f"source.path={given.source_folder}"
    config = load_run_config(given.config, [source, *given.overrides])
    check_placements(("train", "align", "evaluate"), config)
    device = resolve_device(config.device)
    prepared, semantic_ids = Dataset.open(given.prepared), SemanticIds.load(given.semantic_ids)
    study, progress = Study(config, prepared, semantic_ids, given.source_folder, given.rows), PlainProgress()

    seed_everything(config.seed)
    policy = build_policy(prepared, semantic_ids, config.model, None).to(device)
    size = sum(parameter.numel() for parameter in policy.parameters())
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    before = study.measure(policy, 0.0, 0)
    del policy

    watch = Stopwatch(device)
    policy, steps = study.trained(config, given.work / "train", progress)
    minutes = watch.minutes()
    tuned = study.measure(policy, minutes, steps)
    rows = [before.row("before fine-tuning"), tuned.row("fine-tuned")]

    watch = Stopwatch(device)
    alignment = AlignmentInputs(prepared, semantic_ids, policy, config.align, config.decode, config.seed)
    aligned = align_policy(alignment, given.work / "align", progress)
    rere = config.align.rere
    last = study.measure(policy, minutes + watch.minutes(), steps + rere.rounds * rere.steps_per_round)
    rows.append(last.row("and ReRe"))

    if given.beside is not None:
        other = load_run_config(given.beside, [source, f"device={config.device}", f"train.max_minutes={minutes}"])
        watch = Stopwatch(device)
        policy, steps = study.trained(other, given.work / "beside", progress)
        rows.append(study.measure(policy, watch.minutes(), steps).row(f"`{other.name}`, as many minutes"))

    by_item, by_id = study.popularity()
    where, minutes_of = ("core", "processor minutes") if device.type == "cpu" else ("GPU", "minutes")
    language = config.model.language_model
    low_rank = language is not None and language.tune == "lora"
    taught = (
        f"{tuned.steps} steps{' of LoRA' if low_rank else ''}, {last.loss.split()[0]} after "
        f"{last.steps - tuned.steps} steps of ReRe"
    )
    print(
        write_table(
            "llm_finetune",
            f"A language model of {size / 1e6:.1f} M parameters, fine-tuned on one {where}",
            f"Validation loss {before.loss.split()[0]} nats per item before, {tuned.loss.split()[0]} after "
            f"{taught}; HR@10 / NDCG@10 by item "
            f"{_short(before.by_item)}, {_short(tuned.by_item)}, {_short(last.by_item)}; popularity {_short(by_item)}.",
            ["state", minutes_of, "steps", "validation loss", "HR@10 / NDCG@10 by item", "by ID"],
            [*rows, ["popularity, same rows", "", "", "", by_item, by_id]],
            [
                f"{trained / 1e6:.1f} M parameters are trained"
                f"{': adapters, new tokens, the item table of the dense head' if low_rank else ''}. "
                f"{len(study.test)} test rows and {len(study.valid)} validation rows, drawn once; intervals 95 %.",
                f"The beam alone, {config.decode.beam_width} wide, seen items kept. Minutes of training and alignment, "
                "their validation and guard included, measuring left out.",
                f"ReRe: {rere.requests_per_step} requests of {rere.rollouts.num_generations} roll-outs per step; KL to the "
                f"start {aligned['after'].get('kl_to_start', 0.0):.3f}, reward {aligned['before']['reward']:.3f} before and "
                f"{aligned['after']['reward']:.3f} after on the guard's {config.align.guard.users} rows.",
            ],
        )
    )


def _short(figure: str) -> str:
    return figure.split(" [")[0]


if __name__ == "__main__":
    main()
