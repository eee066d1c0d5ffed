"""Does a step wait for the GPU: torch raises at the first synchronising call inside."""

from __future__ import annotations

from collections.abc import Callable

import torch

from recsys.decoding.beam_search import beam_search
from tests.benchmarks.gpu import training, worlds
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.decoding import TINY, Searched


def waiting(bench: Bench) -> None:
    """A training step of every form, and a search; on a CPU the same calls run without the watch."""
    for cell, preset, session in (("training_all_prefixes", "tiny", 1), ("training_sessions", "paper_v1", 3)):
        with bench.cell(cell):
            shape = training.Shape(preset, bench.size(16, 3), 16, 3000, 64, session)
            shape = shape.shrunk() if bench.smoke else shape
            codes = worlds.random_codes(shape.items, shape.codebook)
            config = worlds.model_config(preset, smoke=True)  # what waits does not depend on widths
            policy = worlds.policy_on(bench.device, config, codes, shape.codebook, session=shape.session).train()
            batch = training.random_batch(policy, shape, shape.batch).to(bench.device)
            watched(bench, cell, training.TrainingStep(bench, policy, batch))
    with bench.cell("search"):
        searched = Searched(bench, TINY)
        history = searched.histories(bench.size(32, 2))
        width = bench.size(20, 4)

        def search() -> object:
            with torch.inference_mode(), bench.autocast():
                return beam_search(searched.policy, history, searched.index, width)

        watched(bench, "search", search)


def watched(bench: Bench, cell: str, run: Callable[[], object]) -> None:
    """Run twice unwatched, so that what is initialised once is done, and then under the watch."""
    for _ in range(2):
        run()
    bench.wait()
    if not bench.is_gpu:
        bench.row(cell, skipped="a CPU never waits for itself")
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        bench.wait()
    bench.row(cell, waits=0)
