"""Processor seconds beside wall seconds, for machines that are busy with other things.

A process that waits for a core spends wall time and no processor time. With one thread the two agree on a quiet machine;
on a busy one the processor's are the fairer comparison (what remains is the neighbours' use of the shared cache).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from tests.benchmarks.paired import Timing, alternate


def alternate_cpu(
    contestants: Mapping[str, Callable[[], object]], rounds: int = 3, warmup: bool = True
) -> dict[str, Timing]:
    """Take turns as :func:`~tests.benchmarks.paired.alternate` does; seconds are the processor's, of all threads."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}

    def watched(name: str, run: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            start = time.process_time()
            result = run()
            seconds[name].append(time.process_time() - start)
            return result

        return call

    alternate({name: watched(name, run) for name, run in contestants.items()}, rounds, warmup)
    return {name: Timing(tuple(values[-rounds:])) for name, values in seconds.items()}


def matmul_roof(size: int = 2048, rounds: int = 5) -> float:
    """Float32 FLOP per processor second of a large matrix product in this process, best of ``rounds``."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = alternate_cpu({"matmul": lambda: left @ right}, rounds)["matmul"].best
    return 2 * size**3 / best
