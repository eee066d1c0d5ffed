"""What the two policies cost and give: parameters, tokens and FLOPs per request, users per second, NDCG@10.

Run, behind runs of two recipes of one data set each, whose folders it reads: ``python -m tests.benchmarks.llm_costs --pair
"MovieLens-100K" runs/movielens/artifacts runs/movielens_llm/artifacts --pair simulator runs/demo/artifacts
runs/llm_tiny/artifacts``; a few minutes of one core.

Both policies of a pair answer the same test rows with the same beam, in turns, seen items left out. Counts are those of
:mod:`recsys.model.summary` for the events that were read, and the same on every machine; seconds are the processor's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.manifest import open_artifact
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import row_metrics
from recsys.model.checkpoint import load_policy
from recsys.model.summary import decoding_flops, fed_widths, memory_positions, own_costs, summarise
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks.cpu_time import alternate_cpu
from tests.benchmarks.paired import write_table

BEAM: Final = 50
TIMED_ROWS: Final = 128
ROUNDS: Final = 3
KINDS: Final = {"encoder_decoder": "encoder-decoder", "llm": "language model"}


@dataclass(frozen=True)
class Side:
    """One trained policy with its data."""

    prepared: Dataset
    recommender: Recommender

    @classmethod
    def open(cls, artifacts: Path) -> Side:
        """Open the one policy of a run."""
        trained = open_artifact(next(path for path in (artifacts / "policy").iterdir() if path.name[0] != "."))
        parent = {stage: digest[:16] for stage, digest in trained.manifest.parents.items()}
        ids = SemanticIds.load(artifacts / "semantic_ids" / parent["tokenize"])
        policy = load_policy(trained.path / "model", ids.digest)
        recommender = Recommender(policy, ids, DecodeConfig(beam_width=BEAM))
        return cls(Dataset.open(artifacts / "prepared" / parent["prepare"]), recommender)

    @property
    def targets(self) -> Targets:
        """Test rows."""
        return self.prepared.targets(TEST)

    def histories(self, rows: npt.NDArray[np.integer]) -> Histories:
        """Of test rows."""
        return Histories.from_targets(self.prepared.history, self.targets.take(rows))

    def answer(self, rows: npt.NDArray[np.integer]) -> Callable[[], object]:
        """Ten items for each of these rows."""
        return lambda: self.recommender.recommend(self.histories(rows), 10, exclude_seen=True)

    def tokens(self, events_N: npt.NDArray[np.int64]) -> tuple[float, int]:
        """Positions that are read per request, mean, and tokens that the beams are fed."""
        policy = self.recommender.policy
        own: Any = own_costs(policy)
        read = own.prompt_tokens(events_N) if own is not None else memory_positions(policy.spec.model, events_N)
        return float(np.mean(read)), sum(self.widths)

    @property
    def widths(self) -> list[int]:
        """Beams that are fed at every level."""
        return fed_widths(BEAM, self.recommender.index.max_children)


def interval(values: npt.NDArray[np.floating]) -> str:
    """``mean [low, high]`` by bootstrap over rows, 95 %."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def measure(name: str, sides: list[Side]) -> tuple[list[list[str]], float]:
    """Rows of the table for one data set, and how many times the users per second of the second the first has."""
    first, second = (side.targets for side in sides)
    if len(first) != len(second) or (first.items != second.items).any():
        raise SystemExit(f"{name}: the two runs have other test rows; run both recipes on the same data")
    generator = np.random.default_rng(0)
    timed = np.sort(generator.choice(len(first), min(TIMED_ROWS, len(first)), replace=False))
    labels = [KINDS[side.recommender.policy.spec.model.backbone] for side in sides]
    timings = alternate_cpu(
        {label: side.answer(timed) for label, side in zip(labels, sides, strict=True)}, rounds=ROUNDS
    )
    rate = {label: len(timed) / timing.best for label, timing in timings.items()}
    rows = []
    for label, side in zip(labels, sides, strict=True):
        policy, targets = side.recommender.policy, side.targets
        histories = side.histories(np.arange(len(targets)))
        events_N = np.minimum(histories.lengths, policy.spec.model.max_history)
        sizes = summarise(policy)
        read, fed = side.tokens(events_N)
        beam, dense = side.recommender.both_orders(histories, 10, exclude_seen=True)
        ndcg = [row_metrics(ranked, targets, (10,))["ndcg@10"] for ranked in (beam, dense)]
        flops = decoding_flops(policy, events_N, side.widths) / len(events_N) / 1e6
        rows.append(
            [
                name,
                label,
                f"{sizes.total / 1e6:.2f} M",
                f"{sizes.active / 1e6:.2f} M",
                f"{sizes.train_mflops_per_target:.1f}",
                f"{read:.0f} + {fed}",
                f"{flops:.0f}",
                f"{timings[labels[0]].best / timings[label].best:.2f}",
                f"{rate[label]:.0f}",
                interval(ndcg[0]),
                interval(ndcg[1]),
            ]
        )
    return rows, rate[labels[0]] / rate[labels[1]]


def main() -> None:
    """Measure every pair, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--pair",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "ENCODER_DECODER", "LANGUAGE_MODEL"),
        help="output_dir/artifacts of two recipes",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = [
        (name, *measure(name, [Side.open(Path(first)), Side.open(Path(second))])) for name, first, second in given.pair
    ]
    times = " and ".join(f"{ratio:.1f} ({name})" for name, _, ratio in found)
    flops = " and ".join(f"{float(rows[1][6]) / float(rows[0][6]):.1f}" for _, rows, _ in found)
    print(
        write_table(
            "llm_costs",
            "What the two policies cost",
            f"At these sizes an encoder-decoder answers {times} times as many users per second as a language model, which "
            f"multiplies {flops} times as much per request.",
            [
                *("data", "policy", "parameters", "active per token", "MFLOP per training target"),
                *("tokens per request: read + fed by beams", "MFLOP per request", "users/s as a ratio", "users/s"),
                *("NDCG@10, beam [95 %]", "NDCG@10, dense order [95 %]"),
            ],
            [row for _, rows, _ in found for row in rows],
            [
                f"Beam {BEAM}, float32, one thread, seen items left out. Seconds: {TIMED_ROWS} test rows at once, best of "
                f"{ROUNDS} rounds in turns, of the processor, beside other work: the ratio says more than the rate.",
                "Read: positions of the history, once per user, whatever the beam: one per event and one more, or the "
                "tokens of a prompt. Fed: one token per beam and level.",
                "Active: parameters but tables of ids and experts that a token is not sent to. The recipes differ in size, "
                "epochs and minutes: nothing here is at equal training.",
                "No GPU was had: what reading a prompt costs there was not measured.",
            ],
        )
    )


if __name__ == "__main__":
    main()
