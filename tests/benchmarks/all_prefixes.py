"""One pass over a user's sequence against one (history, target) pair per sample: targets per second, and what is learned.

Run: ``python -m tests.benchmarks.all_prefixes [--run runs/beauty] [--epochs 2] [--seeds 1 2 3] [--threads 1]`` after
``recsys run --config pipelines/recipes/beauty.yaml`` has prepared and tokenized Beauty in that folder (about 8 minutes per
seed; ``--epochs 0`` leaves the learning out, 2).

Both forms train the same model on the same 150 thousand targets, with as many targets per optimiser step; the targets of a
step then come from fewer users where all prefixes are trained, so half the batch stands beside it. Pairs come in two
orders: bucketed by length, as our own loader does, and shuffled, as is usual. The dense head's softmax over the catalogue
costs the same per target in both forms, so figures stand with and without it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError
from recsys.data.batch import TrainingBatch
from recsys.data.datamodule import PolicyData
from recsys.data.loader import BucketedLoader
from recsys.data.samples import Samples, TrainingForm
from recsys.decoding.config import DecodeConfig
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import seed_everything
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.config import TrainConfig
from recsys.training.fit import build_policy
from recsys.training.losses import dense_loss, next_token_loss
from recsys.training.module import PolicyModule
from recsys.training.schedule import adamw
from tests.benchmarks import findings
from tests.benchmarks.cpu_time import alternate_cpu
from tests.benchmarks.paired import Timing, write_table

MODEL = ModelConfig.model_validate(
    {"preset": "tiny", "width": 96, "max_history": 20, "dropout": 0.2, "embedding_dropout": 0.2}
)
"""The recipe's own model; so are the settings of training."""
TRAIN = TrainConfig(label_smoothing=0.1, dense_targets_share=0.5, validation_users=2000)
WINDOWS_PER_BATCH = 96
TIMED_BATCHES = 6
SEED = 17


def open_artifact(run: Path, kind: str) -> Path:
    """Folder of the only artefact of a kind in a run."""
    found = sorted((run / "artifacts" / kind).glob("*/manifest.json"))
    if len(found) != 1:
        raise ArtifactError(
            f"{len(found)} artefacts of kind '{kind}' in '{run}', expected 1; run the recipe beauty.yaml there first"
        )
    return found[0].parent


def loader_of(prepared: Dataset, form: TrainingForm, batch_size: int) -> BucketedLoader:
    """The loader that training would use."""
    data = PolicyData(
        prepared,
        form=form,
        max_history=MODEL.max_history,
        batch_size=batch_size,
        validation_users=TRAIN.validation_users,
        seed=SEED,
    )
    return data.loader


def timed_batches(samples: Samples, order: Sequence[npt.NDArray[np.int64]]) -> list[TrainingBatch]:
    """A few batches that stand for an epoch: in order of cost, the middles of equal parts."""
    by_cost = sorted(order, key=lambda rows: int(samples.lengths[rows].max()))
    places = ((2 * np.arange(TIMED_BATCHES) + 1) * len(by_cost)) // (2 * TIMED_BATCHES)
    return [samples.collate(by_cost[place]) for place in places]


def train_on(
    policy: GenerativeRecommender, optimiser: torch.optim.Optimizer, batches: list[TrainingBatch], dense: bool
) -> None:
    """One optimiser step per batch."""
    for batch in batches:
        hidden, query_BPD = policy(batch)
        asked_BPM = batch.target_BPM > 0
        loss = next_token_loss(policy.code_losses(hidden[asked_BPM], batch.target_BPM[asked_BPM], 0.1), "sum")
        if dense:
            first_BP = batch.target_BPM[..., 0]
            asked_BP = first_BP > 0
            loss = loss + dense_loss(query_BPD[asked_BP], policy.item_vectors(), first_BP[asked_BP])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def speed_rows(prepared: Dataset, semantic_ids: SemanticIds, rounds: int) -> tuple[list[list[str]], int]:
    """Targets per second of each form and order, and the number of pairs that hold a batch's targets."""
    windows = loader_of(prepared, "all_prefixes", WINDOWS_PER_BATCH)
    per_batch = round(windows.samples.num_targets / len(windows))
    pairs = loader_of(prepared, "pairs", per_batch)
    shuffled = np.random.default_rng(SEED).permutation(len(pairs.samples))
    half = loader_of(prepared, "all_prefixes", WINDOWS_PER_BATCH // 2)
    batches = {
        "all prefixes": timed_batches(windows.samples, windows.batches(0)),
        "all prefixes, half the batch": timed_batches(half.samples, half.batches(0)),
        "pairs, bucketed": timed_batches(pairs.samples, pairs.batches(0)),
        "pairs, shuffled": timed_batches(pairs.samples, np.array_split(shuffled, len(pairs))),
    }
    targets = {name: sum(int((b.target_BPM > 0).sum()) for b in some) for name, some in batches.items()}
    rows = []
    for dense in (False, True):
        contestants: dict[str, Callable[[], None]] = {}
        for name, some in batches.items():
            policy = fresh_policy(prepared, semantic_ids).train()
            contestants[name] = partial(train_on, policy, adamw(policy, TRAIN), some, dense)
        seconds = alternate_cpu(contestants, rounds)
        timings = {n: Timing(tuple(s / targets[n] for s in timing.seconds)) for n, timing in seconds.items()}
        for name, timing in timings.items():
            ratio = "1" if name == "all prefixes" else timings["all prefixes"].faster_than(timing)
            positions = sum(batch.history.item_BH.numel() + len(batch) for batch in batches[name]) / targets[name]
            head = "with dense head" if dense else "codes only"
            rows.append([head, name, f"{positions:.2f}", f"{1 / timing.best:,.0f}", ratio])
            print("  ".join(rows[-1]), flush=True)
    return rows, per_batch


def fresh_policy(prepared: Dataset, semantic_ids: SemanticIds, seed: int = SEED) -> GenerativeRecommender:
    """The same untrained policy every time."""
    seed_everything(seed)
    return build_policy(prepared, semantic_ids, MODEL, None)


def learn(
    prepared: Dataset, semantic_ids: SemanticIds, form: TrainingForm, batch_size: int, epochs: int, seed: int
) -> list[tuple[float, float]]:
    """Train and validate epoch by epoch; NDCG@10 of beam order and of the served order.

    The validation users are the same under every seed.
    """
    policy = fresh_policy(prepared, semantic_ids, seed)
    data = PolicyData(
        prepared,
        form=form,
        max_history=MODEL.max_history,
        batch_size=batch_size,
        validation_users=TRAIN.validation_users,
        seed=SEED,
    )
    figures: list[tuple[float, float]] = []

    class Note(lightning.Callback):
        def on_validation_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
            metrics = trainer.callback_metrics
            figures.append((float(metrics["valid/beam_ndcg_at_10"]), float(metrics["valid/served_ndcg_at_10"])))
            print(form, seed, len(figures), figures[-1], flush=True)

    module = PolicyModule(
        policy, TRAIN, DecodeConfig(beam_width=50), semantic_ids, total_steps=data.steps_per_epoch * epochs
    )
    lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=TRAIN.gradient_clip,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[Note()],
    ).fit(module, datamodule=data)
    return figures


def learning_notes(
    prepared: Dataset, semantic_ids: SemanticIds, per_batch: int, epochs: int, seeds: Sequence[int]
) -> list[str]:
    """Train both forms from the same weights under every seed; one line per form and one of differences."""
    forms: dict[str, tuple[TrainingForm, int]] = {
        "all prefixes": ("all_prefixes", WINDOWS_PER_BATCH),
        "all prefixes, half the batch": ("all_prefixes", WINDOWS_PER_BATCH // 2),
        "pairs": ("pairs", per_batch),
        "pairs, half the batch": ("pairs", per_batch // 2),
    }
    found = {
        name: np.array([learn(prepared, semantic_ids, form, size, epochs, seed) for seed in seeds])
        for name, (form, size) in forms.items()
    }  # [seeds, epochs, 2]
    return notes_of(found, epochs)


def notes_of(found: Mapping[str, npt.NDArray[np.float64]], epochs: int) -> list[str]:
    """Means after every epoch, and differences from pairs seed by seed; values are ``[seeds, epochs, 2]``."""
    seeds = len(found["pairs"])
    notes = [
        f"{name}: validation NDCG@10 (beam / served order, {TRAIN.validation_users} users, {seeds} seeds) after each "
        f"of {epochs} epochs: " + ", ".join(f"{beam:.4f} / {served:.4f}" for beam, served in values.mean(0))
        for name, values in found.items()
    ]
    for name, against in (
        ("all prefixes", "pairs"),
        ("all prefixes, half the batch", "pairs, half the batch"),
        ("all prefixes, half the batch", "pairs"),
    ):
        gain = found[name] - found[against]
        told = ", ".join(
            f"epoch {epoch + 1} {order} {gain[:, epoch, place].mean():+.4f} "
            f"({' '.join(f'{g:+.4f}' for g in gain[:, epoch, place])})"
            for epoch in range(epochs)
            for place, order in enumerate(("beam", "served"))
        )
        notes.append(f"{name} minus {against}, mean (seed by seed): {told}")
    return notes


def main() -> None:
    """Time, train both forms, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/beauty"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prepared = Dataset.open(open_artifact(arguments.run, "prepared"))
    semantic_ids = SemanticIds.load(open_artifact(arguments.run, "semantic_ids"))
    rows, per_batch = speed_rows(prepared, semantic_ids, arguments.rounds)
    notes = [
        f"Beauty, model {MODEL.preset} with width {MODEL.width} and {MODEL.max_history} events; "
        f"{WINDOWS_PER_BATCH} windows or {per_batch} pairs a batch: as many targets per step in both forms; AdamW fused",
        "positions: encoder positions computed per target, padding and user position included",
        "seconds are the processor's; ratio: minimum over rounds, lowest and highest round in brackets",
    ]
    if arguments.epochs:
        notes += learning_notes(prepared, semantic_ids, per_batch, arguments.epochs, arguments.seeds)
    header = "loss | form | positions per target | targets/s | all prefixes are faster by"
    print(
        write_table(
            "all_prefixes",
            "All-prefix training against one target per sample",
            findings.of_all_prefixes(rows),
            header.split(" | "),
            rows,
            notes,
        )
    )


if __name__ == "__main__":
    main()
