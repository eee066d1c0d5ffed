"""What a policy-gradient step costs: share of the roll-outs, and of encoding the history once instead of once per candidate.

Run: ``python -m tests.benchmarks.rollouts [--users 256] [--generations 16] [--threads 1]`` (about 3 minutes).

A step of ReRe: one constrained beam of G candidates per user, one update on all of them. The update scores the G candidates
as G prediction points of one history (:mod:`recsys.alignment.rollouts.log_probs`); the usual way repeats the history G
times. The model is that of the decoder's benchmark, with 80 history positions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.losses.policy_gradient import policy_gradient_loss
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.data.batch import HistoryBatch
from recsys.decoding.beam_search import beam_search
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.search_index import SearchIndex
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.training.config import TrainConfig
from recsys.training.schedule import adamw
from tests.benchmarks import findings
from tests.benchmarks.cpu_time import alternate_cpu
from tests.benchmarks.decoder_models import CODES, LEVELS, own_history, own_policy, random_catalogue
from tests.benchmarks.paired import Timing, write_table

ITEMS = 12_000
ROWS_TOGETHER = 64
"""Histories of a micro-batch, in roll-out and update alike."""


def parts(users: int, together: int = ROWS_TOGETHER) -> Iterator[slice]:
    """Micro-batches."""
    for start in range(0, users, together):
        yield slice(start, start + together)


def take(history: HistoryBatch, rows: slice | torch.Tensor) -> HistoryBatch:
    """Some of the users."""
    chosen = {f.name: getattr(history, f.name) for f in fields(history)}
    return HistoryBatch(**{name: None if value is None else value[rows] for name, value in chosen.items()})


class GroupStep:
    """Roll-out and update of one policy."""

    def __init__(self, policy: GenerativeRecommender, history: HistoryBatch, index: SearchIndex, size: int) -> None:
        self.policy, self.history, self.index, self.size = policy, history, index, size
        self.optimiser = adamw(policy, TrainConfig(learning_rate=1e-5))
        self.loss = PolicyGradientConfig(beta=0.0)
        self.items_BGM = self.roll_out()
        self.advantages_BG = torch.randn(len(history), size)

    def roll_out(self) -> torch.Tensor:
        """One constrained beam of G per user."""
        found = [
            beam_search(self.policy, take(self.history, rows), self.index, self.size).items.clone()
            for rows in parts(len(self.history))
        ]
        return torch.cat(found)

    def update(self, shared: bool, users: int) -> None:
        """One policy-gradient update on the first users, in micro-batches, with or without a shared encoder pass."""
        self.optimiser.zero_grad()
        for rows in parts(users, ROWS_TOGETHER if shared else ROWS_TOGETHER // self.size):
            codes_BGC = self.log_probs(take(self.history, rows), self.items_BGM[rows], shared)
            mask = torch.ones_like(codes_BGC, dtype=torch.bool)
            advantages = self.advantages_BG[rows]
            share = len(advantages) / users
            (policy_gradient_loss(self.loss, codes_BGC, advantages, mask).loss * share).backward()
        self.optimiser.step()

    def log_probs(self, history: HistoryBatch, items_BGM: torch.Tensor, shared: bool) -> torch.Tensor:
        """Log-probabilities of the candidates' codes, ``[B, G, C]``."""
        if shared:
            return candidate_log_probs(self.policy, history, items_BGM).codes.flatten(2)
        users, size = items_BGM.shape[:2]
        repeated = take(history, torch.arange(users).repeat_interleave(size))
        return candidate_log_probs(self.policy, repeated, items_BGM.flatten(0, 1)[:, None]).codes.view(users, size, -1)

    def gradient(self, shared: bool) -> torch.Tensor:
        """All gradients of an update, flattened."""
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        log_probs = self.log_probs(take(self.history, slice(4)), self.items_BGM[:4], shared)
        grads = torch.autograd.grad(log_probs.sum(), parameters, allow_unused=True)
        return torch.cat([grad.flatten() for grad in grads if grad is not None])


def main() -> None:
    """Check that both updates agree, count, time, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--generations", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    users, size = arguments.users, arguments.generations
    few = min(users, ROWS_TOGETHER)
    index = SearchIndex.from_index(PrefixIndex.build(random_catalogue(ITEMS), (CODES,) * LEVELS))
    history = own_history(users, ITEMS)
    rows = []
    for name, dense in (("dense", True), ("8 experts, top-2", False)):
        step = GroupStep(own_policy(ITEMS, dense), history, index, size)
        shared, repeated = step.gradient(shared=True), step.gradient(shared=False)
        torch.testing.assert_close(shared, repeated, rtol=1e-3, atol=1e-3 * float(repeated.abs().max()))
        flops = {}
        for is_shared in (True, False):
            # torch does not count the fused attention of a CPU
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                step.update(is_shared, ROWS_TOGETHER)
            flops[is_shared] = counter.get_total_flops() / ROWS_TOGETHER
        timings = alternate_cpu(
            {
                "roll-out": step.roll_out,
                "shared": partial(step.update, shared=True, users=users),
                "repeated": partial(step.update, shared=False, users=few),
            },
            arguments.rounds,
            warmup=False,
        )
        scaled = tuple(seconds * users / few for seconds in timings["repeated"].seconds)
        timings["repeated"] = Timing(scaled)
        shares = [r / (r + u) for r, u in zip(timings["roll-out"].seconds, timings["shared"].seconds, strict=True)]
        best, update = timings["roll-out"].best, timings["shared"].best
        rows.append(
            [
                name,
                f"{best:.2f}",
                f"{update:.2f}",
                f"{best / (best + update):.0%} ({min(shares):.0%} … {max(shares):.0%})",
                f"{best / (best + timings['repeated'].best):.0%}",
                timings["shared"].faster_than(timings["repeated"]),
                # torch does not count grouped products; the experts in use multiply as often as the dense layer
                f"{flops[True] / 1e9:.2f}" if dense else "as dense",
                f"{flops[False] / flops[True]:.1f}" if dense else "as dense",
            ]
        )
        print("  ".join(rows[-1]), flush=True)
    header = (
        "feed-forward | roll-out, s | update, s | roll-out's share of the step | share with repeated histories | update "
        "faster than with repeated histories by | update, GFLOP per user | repeated histories cost, times"
    )
    notes = [
        f"{users} users, {LEVELS * 20} history events, G = {size}, {ITEMS:,} items of {LEVELS} codes, width 128, "
        f"4 + 4 layers; micro-batches of {ROWS_TOGETHER} histories; no reference policy; "
        f"repeated histories timed on {few} users and scaled",
        "both updates were compared: equal gradients to rounding",
        "FLOPs: matrix products and attention, forward and backward, counted by torch (2 per multiply-add)",
        "seconds are the processor's; minimum over rounds, lowest and highest round in brackets",
    ]
    print(
        write_table(
            "rollouts",
            "Cost of a policy-gradient step",
            findings.of_rollouts(rows, size),
            header.split(" | "),
            rows,
            notes,
        )
    )


if __name__ == "__main__":
    main()
