"""The search alone: users per second and MFU per preset, against transformers, over a million items, with wide beams.

Legend: B users, H history events, W beams.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from recsys.data.batch import HistoryBatch
from recsys.decoding.beam_search import beam_search
from recsys.decoding.bfloat16 import bfloat16_policy
from recsys.decoding.graphed_search import GraphedSearch
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.decoding.search_index import SearchIndex
from recsys.model.summary import summarise
from tests.benchmarks.gpu import worlds
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.training import profiled

BEAM: Final = 50


@dataclass(frozen=True)
class Shape:
    """A decoding measurement."""

    preset: str
    events: int
    items: int = 12_000
    codebook: int = 256

    def shrunk(self) -> Shape:
        """The smoke form's."""
        return Shape(self.preset, 8, 300, 8)


PAPER: Final = Shape("paper_v1", 256, 100_000, 8192)
SMALL: Final = Shape("small", 100)
TINY: Final = Shape("tiny", 50)


class Searched:
    """A policy and its index on the device, ready to answer batches."""

    def __init__(self, bench: Bench, shape: Shape) -> None:
        self.bench, self.shape = bench, shape.shrunk() if bench.smoke else shape
        codes = worlds.random_codes(self.shape.items, self.shape.codebook)
        config = worlds.model_config(shape.preset, smoke=bench.smoke)
        self.policy = worlds.policy_on(bench.device, config, codes, self.shape.codebook).eval()
        self.half = bfloat16_policy(self.policy)  # what a Recommender decodes with
        index = PrefixIndex.build(codes, (self.shape.codebook,) * worlds.LEVELS)
        self.index = SearchIndex.from_index(index, bench.device)

    def histories(self, batch: int) -> HistoryBatch:
        """Full histories, on the device."""
        return worlds.histories(batch, self.shape.events, self.shape.items).to(self.bench.device)

    def search(self, batch: int, width: int, *, graph: bool, bfloat16: bool = True) -> Callable[[], object]:
        """A call that answers one batch."""
        history = self.histories(batch)
        policy = self.half if bfloat16 else self.policy
        graphed = GraphedSearch(policy, self.index, [width], batch) if graph else None

        def run() -> object:
            with torch.inference_mode(), self.bench.autocast(bfloat16):
                if graphed is not None:
                    return graphed(history, BatchRules())
                return beam_search(policy, history, self.index, width)

        return run

    def encode(self, batch: int, *, bfloat16: bool = True) -> Callable[[], object]:
        """A call that only encodes."""
        history, policy = self.histories(batch), self.half if bfloat16 else self.policy

        def run() -> object:
            with torch.inference_mode(), self.bench.autocast(bfloat16):
                return policy.start(history)

        return run


def measure(
    bench: Bench, cell: str, searched: Searched, batch: int, width: int, *, graph: bool = False, bfloat16: bool = True
) -> None:
    """One row: users per second, milliseconds, share of the roof."""
    batch, width = bench.size(batch, 2), bench.size(width, 4)
    shape = searched.shape
    with bench.cell(cell, 3):
        if graph and not bench.is_gpu:
            bench.row(cell, skipped="a graph needs a GPU")
            return
        sizes = summarise(searched.policy, history=shape.events, beam_width=width)

        def run(users: int) -> dict[str, Any]:
            start = time.perf_counter()
            search = searched.search(users, width, graph=graph, bfloat16=bfloat16)
            search()
            bench.wait()
            first = time.perf_counter() - start
            seconds = bench.seconds(search, 8, 2)
            encoding = bench.seconds(searched.encode(users, bfloat16=bfloat16), 5, 1)
            flops = users * sizes.decode_mflops_per_user * 1e6
            return {
                "users_per_s": round(users / seconds, 1),
                "ms": round(seconds * 1e3, 3),
                "encode_ms": round(encoding * 1e3, 3),
                "mfu": round(flops / seconds / bench.roofs["bf16" if bfloat16 else "f32"], 4),
                "gflop_per_user": round(sizes.decode_mflops_per_user / 1e3, 3),
                "first_call_s": round(first, 2),
                "peak_gb": bench.peak_gb(),
            }

        users, figures = bench.largest(cell, batch, run)
        kind = {"preset": shape.preset, "items": shape.items, "events": shape.events, "batch": users, "beam": width}
        precision = "bfloat16" if bfloat16 else "float32"
        bench.row(cell, **kind, precision=precision, graph=graph, **figures)


def decoding(bench: Bench) -> None:
    """Users per second and MFU of the presets."""
    with bench.cell("paper_v1", 15):
        paper = Searched(bench, PAPER)
        measure(bench, "paper_v1_512", paper, 512, BEAM)
        measure(bench, "paper_v1_512_graph", paper, 512, BEAM, graph=True)
        measure(bench, "paper_v1_128_graph", paper, 128, BEAM, graph=True)
        with bench.cell("paper_v1_profile", 5):
            bench.row(
                "paper_v1_profile",
                **profiled(bench, paper.search(bench.size(512, 2), bench.size(BEAM, 4), graph=False)),
            )
        del paper
    for shape in (SMALL, TINY):
        with bench.cell(shape.preset, 5):
            searched = Searched(bench, shape)
            for batch in (256, 1024)[: bench.size(2, 1)]:
                measure(bench, f"{shape.preset}_{batch}", searched, batch, BEAM)
                measure(bench, f"{shape.preset}_{batch}_graph", searched, batch, BEAM, graph=True)
            measure(bench, f"{shape.preset}_256_float32", searched, 256, BEAM, bfloat16=False)
            del searched


def catalogue(bench: Bench) -> None:
    """Users per second over 1M items against 12k, in turns."""
    with bench.cell("ratio", 15):
        batch, width = bench.size(256, 2), bench.size(BEAM, 4)
        few = Searched(bench, SMALL)
        many = Searched(bench, Shape("small", 100, 1_000_000))
        for graph in (False, True):
            if graph and not bench.is_gpu:
                continue
            searches = [searched.search(batch, width, graph=graph) for searched in (few, many)]
            seconds: list[list[float]] = [[], []]
            for _ in range(3):
                for place, search in enumerate(searches):
                    seconds[place] += bench.times(search, 4, 2)
            small, large = (float(np.median(times)) for times in seconds)
            figures = {
                "ms_12k": round(small * 1e3, 3),
                "ms_1m": round(large * 1e3, 3),
                "ratio": round(small / large, 3),
            }
            bench.row("ratio_graph" if graph else "ratio", preset="small", batch=batch, beam=width, **figures)


def wide_beams(bench: Bench) -> None:
    """``paper_v1`` with the beams that engines for language models are measured with."""
    with bench.cell("paper_v1", 12):
        searched = Searched(bench, PAPER)
        for width, batch in ((256, 1), (256, 8), (5000, 1))[: bench.size(3, 1)]:
            for graph in (False, True):
                measure(
                    bench, f"beam_{width}_batch_{batch}{'_graph' if graph else ''}", searched, batch, width, graph=graph
                )
        del searched


def transformers(bench: Bench) -> None:
    """The T5 of TIGER's sizes: the same weights by our search and by ``transformers`` with its prefix function."""
    from tests.benchmarks import decoder as cpu
    from tests.benchmarks import decoder_models as models
    from tests.benchmarks.t5_policy import FIRST_CODE, T5Policy

    items, width = bench.size(12_000, 500), bench.size(BEAM, 4)
    codes = models.random_catalogue(items)
    table = cpu.PrefixTable(codes)
    index = PrefixIndex.build(codes, (models.CODES,) * models.LEVELS)
    model = models.tiger_t5().to(bench.device)
    with torch.inference_mode():
        policy = T5Policy(model, (models.CODES,) * models.LEVELS)
    search_index = SearchIndex.from_index(index, bench.device)
    for batch in (bench.size(32, 2), bench.size(256, 3)):
        with bench.cell(f"batch_{batch}", 5):
            drawn = np.random.default_rng(1).integers(0, items, (batch, models.INPUT_ITEMS))
            flat = (codes[drawn] + FIRST_CODE + models.CODES * np.arange(models.LEVELS)).reshape(batch, -1)
            tokens = torch.from_numpy(flat).to(bench.device)
            with torch.inference_mode():
                found = beam_search(policy, tokens, search_index, width)
                ours = bench.seconds(lambda tokens=tokens: beam_search(policy, tokens, search_index, width), 10, 3)
                theirs_found = cpu.generate(model, tokens, width, table)
                theirs = bench.seconds(lambda tokens=tokens: cpu.generate(model, tokens, width, table), 2, 0)
            wrong, difference = compared(found, codes, theirs_found)
            bench.row(
                f"batch_{batch}",
                items=items,
                beam=width,
                ours_users_per_s=round(batch / ours, 1),
                theirs_users_per_s=round(batch / theirs, 2),
                times=round(theirs / ours, 1),
                mfu_float32=round(models.useful_flops(batch, width) / ours / bench.roofs["f32"], 3),
                ranks_with_another_item=wrong,
                largest_score_difference=difference,
            )


def compared(found: Any, codes: Any, theirs: tuple[torch.Tensor, torch.Tensor]) -> tuple[int, float]:
    """As :func:`tests.benchmarks.decoder.compare_answers`, wherever the answers lie."""
    from recsys.decoding.beam_search import Beams
    from tests.benchmarks.decoder import compare_answers

    moved = Beams(found.items.cpu(), found.scores.cpu(), found.dense_query.cpu(), found.log_probs.cpu())
    return compare_answers(moved, codes, (theirs[0].cpu(), theirs[1].cpu()))
