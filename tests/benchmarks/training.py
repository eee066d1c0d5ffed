"""An optimiser step of our model against one of transformers' T5, full length and ragged.

Run: ``python -m tests.benchmarks.training [--users 256] [--rounds 3] [--threads 1]`` (about 6 minutes).

256 users, 80 positions in, 4 codes out; width 128, 4 + 4 layers, attention of 8 heads of 16, equal feed-forward FLOPs (ReLU
with 1024 hidden channels, SwiGLU with 680), bidirectional encoder, both without dropout unless a row says so. Both sides are
clipped and stepped by AdamW in its fused form, with gradients accumulated over micro-batches; T5 runs as one batch and in
micro-batches, and its better time counts. Ragged: less than half of the positions are real; T5 pads its batch, ours are
sorted by length.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.training.config import TrainConfig
from recsys.training.losses import next_token_loss
from recsys.training.schedule import adamw
from tests.benchmarks import findings
from tests.benchmarks.cpu_time import alternate_cpu
from tests.benchmarks.decoder_models import (
    HIDDEN,
    INPUT_ITEMS,
    LAYERS,
    LEVELS,
    VOCAB_SIZE,
    WIDTH,
    own_history,
    own_policy,
)
from tests.benchmarks.paired import write_table
from tests.benchmarks.t5_policy import FIRST_CODE

ITEMS = 12_000
POSITIONS = INPUT_ITEMS * LEVELS
MICRO_BATCH = 32
SHORTEST, MEAN_EXCESS = 4, 33.0
"""Ragged lengths: 4 + an exponential of mean 33, cut at 80; 42 % full in expectation, 47 % for the 256 users drawn here."""
HEADS, TIGER_HEADS = (8, 16), (6, 64)


def t5(heads: tuple[int, int], dropout: float) -> T5ForConditionalGeneration:
    """T5 with random weights; ``heads`` are their number and width."""
    config = T5Config(
        vocab_size=VOCAB_SIZE,
        d_model=WIDTH,
        num_heads=heads[0],
        d_kv=heads[1],
        d_ff=HIDDEN,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        dropout_rate=dropout,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=True,
    )
    return T5ForConditionalGeneration(config).train()


def own(dense: bool, dropout: float) -> GenerativeRecommender:
    """Our model of those sizes."""
    policy = own_policy(ITEMS, dense)
    changes = {"dropout": dropout, "embedding_dropout": dropout, "encoder_attention": "bidirectional"}
    model = type(policy.spec.model).model_validate({**policy.spec.model.model_dump(), **changes})
    spec = PolicySpec(**{**dict(policy.spec), "model": model})
    tower = policy.item_tower
    return GenerativeRecommender(spec, tower.catalogue).train()


class T5Step:
    """One optimiser step of T5 on all users."""

    def __init__(self, model: T5ForConditionalGeneration, lengths_B: torch.Tensor, micro_batch: int) -> None:
        self.model, self.micro_batch = model, micro_batch
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        users = len(lengths_B)
        self.mask = (torch.arange(POSITIONS) < lengths_B[:, None]).long()
        self.tokens = torch.randint(FIRST_CODE, VOCAB_SIZE, (users, POSITIONS)) * self.mask
        self.labels = torch.randint(FIRST_CODE, VOCAB_SIZE, (users, LEVELS))

    def __call__(self) -> None:
        users = len(self.tokens)
        self.optimiser.zero_grad()
        for start in range(0, users, self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            tokens, mask, labels = self.tokens[rows], self.mask[rows], self.labels[rows]
            loss = self.model(input_ids=tokens, attention_mask=mask, labels=labels).loss
            (loss * (len(tokens) / users)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()


class OwnStep:
    """One optimiser step of ours on all users, in micro-batches of similar length."""

    def __init__(self, policy: GenerativeRecommender, lengths_B: torch.Tensor) -> None:
        self.policy = policy
        self.optimiser = adamw(policy, TrainConfig(learning_rate=1e-4))
        order = lengths_B.argsort(stable=True)
        self.batches = [self.batch_of(lengths_B[rows]) for rows in order.split(MICRO_BATCH)]

    @staticmethod
    def batch_of(lengths_B: torch.Tensor) -> TrainingBatch:
        """Random histories of given lengths, padded to the longest, and a target each."""
        users, longest = len(lengths_B), int(lengths_B.max())
        full = own_history(users, ITEMS)
        real = torch.arange(longest) < lengths_B[:, None]
        changed = {"item_BH": full.item_BH[:, :longest] * real, "lengths_B": lengths_B}
        for field in fields(full):
            value = getattr(full, field.name)
            if field.name not in changed:
                changed[field.name] = value if value is None or value.dim() == 1 else value[:, :longest]
        target_BPM = torch.randint(1, ITEMS + 1, (users, 1, 1))
        return TrainingBatch(HistoryBatch(**changed), target_BPM, lengths_B[:, None].contiguous())

    def __call__(self) -> None:
        users = sum(len(batch) for batch in self.batches)
        self.optimiser.zero_grad()
        for batch in self.batches:
            hidden, _ = self.policy(batch)
            loss = next_token_loss(self.policy.code_losses(hidden, batch.target_BPM).flatten(0, 2), "mean")
            (loss * (len(batch) / users)).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimiser.step()


def ragged_lengths(users: int) -> torch.Tensor:
    """Lengths of which the shortest are common."""
    excess = np.random.default_rng(3).exponential(MEAN_EXCESS, users)
    return torch.from_numpy(np.minimum(SHORTEST + excess, POSITIONS).astype(np.int64))


def main() -> None:
    """Time all rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    users = arguments.users
    lengths = {"full": torch.full((users,), POSITIONS), "ragged": ragged_lengths(users)}
    cases = [
        ("full", HEADS, 0.0),
        ("ragged", HEADS, 0.0),
        ("full", HEADS, 0.1),
        ("full", TIGER_HEADS, 0.0),
        ("ragged", TIGER_HEADS, 0.0),
    ]
    rows = []
    for shape, heads, dropout in cases:
        lengths_B = lengths[shape]
        model = t5(heads, dropout)
        contestants: dict[str, Callable[[], None]] = {
            "one batch": T5Step(model, lengths_B, users),
            "micro-batches": T5Step(model, lengths_B, MICRO_BATCH),
            "ours": OwnStep(own(True, dropout), lengths_B),
            "ours, MoE": OwnStep(own(False, dropout), lengths_B),
        }
        timings = alternate_cpu(contestants, arguments.rounds)
        theirs = min(timings["one batch"], timings["micro-batches"], key=lambda timing: timing.best)
        rows.append(
            [
                f"{shape}, {float(lengths_B.float().mean()) / POSITIONS:.0%} real",
                f"{heads[0]} x {heads[1]}",
                f"{dropout:g}",
                f"{timings['one batch'].best:.2f} / {timings['micro-batches'].best:.2f}",
                f"{timings['ours'].best:.2f}",
                timings["ours"].faster_than(theirs),
                timings["ours, MoE"].faster_than(theirs),
            ]
        )
        print("  ".join(rows[-1]), flush=True)
    header = (
        "positions | heads of T5 | dropout | T5, s (one batch / micro-batches) | ours, s | ours, times faster | "
        "ours with 8 experts (top-2), times faster"
    )
    sizes = {
        "T5": sum(p.numel() for p in t5(HEADS, 0.0).parameters()),
        "ours": sum(p.numel() for p in own(True, 0.0).parameters()),
    }
    notes = [
        f"{users} users, one optimiser step; micro-batches of {MICRO_BATCH}; ours with 8 heads of 16 in every row. T5 with "
        "6 x 64 is TIGER's published shape and multiplies more in attention: those rows are no comparison at equal sizes",
        f"parameters: T5 {sizes['T5'] / 1e6:.2f} M, ours {sizes['ours'] / 1e6:.2f} M; ours has one more position, the user",
        "dropout: T5 drops inside attention and feed-forward too, ours after the embeddings and on the residuals",
        "seconds are the processor's; ratio to T5's better way: minimum over rounds, lowest and highest round in brackets",
    ]
    print(
        write_table(
            "training", "An optimiser step against T5", findings.of_training(rows), header.split(" | "), rows, notes
        )
    )


if __name__ == "__main__":
    main()
