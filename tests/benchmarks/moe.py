"""Mixture of experts against the dense feed-forward layer of equal active FLOPs.

Run: ``python -m tests.benchmarks.moe [--threads 1] [--rounds 31]`` (about a minute).

Width 128; the dense layer has 680 hidden channels, the mixture 2 of E experts with 340 each, so both multiply as often and
the difference is routing, sorting, shorter products and adding up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn

from recsys.model.layers.attention import FeedForward
from recsys.model.layers.moe import MixtureOfExperts
from tests.benchmarks import findings
from tests.benchmarks.cpu_time import alternate_cpu
from tests.benchmarks.paired import write_table

WIDTH, HIDDEN, TOP_K = 128, 680, 2
CASES = [("inference", 50), ("inference", 1600), ("inference", 3200), ("training", 1600), ("training", 3200)]
EXPERTS = [8, 32]


def contestant(layer: nn.Module, tokens: int, training: bool) -> Callable[[], None]:
    """Forward, or forward and backward down to the input."""
    x_ND = torch.randn(tokens, WIDTH, requires_grad=training)
    grad_ND = torch.randn(tokens, WIDTH)

    def infer() -> None:
        with torch.inference_mode():
            layer(x_ND)

    def train() -> None:
        layer.zero_grad()
        layer(x_ND).backward(grad_ND)

    return train if training else infer


def main() -> None:
    """Time all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {"dense": FeedForward(WIDTH, HIDDEN)}
    layers |= {str(e): MixtureOfExperts(WIDTH, e, HIDDEN // TOP_K, TOP_K, init_std=WIDTH**-0.5) for e in EXPERTS}
    rows = []
    for mode, tokens in CASES:
        training = mode == "training"
        runs = {name: contestant(layer.train(training), tokens, training) for name, layer in layers.items()}
        timings = alternate_cpu(runs, arguments.rounds)
        dense = timings["dense"]
        rows.append([mode, f"{tokens:,}", f"{1e3 * dense.best:.2f}"])
        # the dense layer is as many times faster than the mixture as the mixture is slower than it
        rows[-1] += [dense.faster_than(timings[str(experts)]) for experts in EXPERTS]
        print("  ".join(rows[-1]), flush=True)
    header = ["mode", "tokens", "dense, ms", *(f"{experts} experts, times dense" for experts in EXPERTS)]
    notes = [
        f"width {WIDTH}, dense SwiGLU layer with {HIDDEN} hidden channels, top-{TOP_K} experts with {HIDDEN // TOP_K} each",
        "seconds are the processor's; ratio: minimum over rounds, lowest and highest round in brackets",
    ]
    print(write_table("moe", "Mixture of experts against the dense layer", findings.of_moe(rows), header, rows, notes))


if __name__ == "__main__":
    main()
