"""The recommender end to end, seen items left out, against the raw search; one user's latency; the batch job's rate.

Legend: N users of the data set, B users of a batch, k items of an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from recsys.data.batch import HistoryBatch, collate_histories
from recsys.data.histories import Histories
from recsys.decoding.beam_search import beam_search
from recsys.decoding.config import DecodeConfig
from recsys.decoding.graphed_search import GraphedSearch
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks.gpu import worlds
from tests.benchmarks.gpu.bench import Bench

K: Final = 20
BEAM: Final = 50


class World:
    """Beauty's users, a policy for them, and batches of similar lengths as the recommender cuts them."""

    def __init__(self, bench: Bench, preset: str) -> None:
        self.bench, self.preset = bench, preset
        history, items, self.source = worlds.beauty_history(smoke=bench.smoke)
        codebook = 8 if bench.smoke else 256
        codes = worlds.random_codes(items, codebook)
        self.ids: SemanticIds = worlds.semantic_ids(codes, codebook)
        config = worlds.model_config(preset, smoke=bench.smoke)
        self.policy = worlds.policy_on(bench.device, config, codes, codebook, digest=self.ids.digest).eval()
        offsets = np.asarray(history.offsets)
        users = len(history.train_end)
        events = (history.item, history.behaviour, history.gap, history.watch)
        self.histories = Histories(np.full(users, -1, np.int32), offsets[:-1], offsets[1:] - 1, *events)

    def recommender(self, batch: int, *, graph: bool) -> Recommender:
        """In bfloat16 on a GPU."""
        precision = "bfloat16" if self.bench.is_gpu else "float32"
        width = self.bench.size(BEAM, 8)
        config = DecodeConfig(
            beam_width=width, rows_per_batch=width * batch, precision=precision, cuda_graph=graph, exclude_seen=True
        )
        return Recommender(self.policy, self.ids, config)

    def raw(self, recommender: Recommender, batch: int, *, graph: bool) -> Callable[[], object]:
        """The searches of the same batches alone: histories on the device already, no rules, answers left there."""
        width, limit = self.bench.size(BEAM, 8), self.policy.spec.model.max_history
        order = np.argsort(np.minimum(self.histories.lengths, limit), kind="stable")
        blocks = [order[start : start + batch] for start in range(0, len(order), batch)]
        batches = [collate_histories(self.histories.take(block), limit).to(self.bench.device) for block in blocks]
        graphed = GraphedSearch(recommender.policy, recommender.search_index, [width], batch) if graph else None

        def one(history: HistoryBatch) -> object:
            if graphed is not None:
                return graphed(history, BatchRules())
            return beam_search(recommender.policy, history, recommender.search_index, width)

        def run() -> object:
            with torch.inference_mode(), self.bench.autocast(self.bench.is_gpu):
                return [one(history) for history in batches][-1]

        return run


def serving(bench: Bench) -> None:
    """Answer all of Beauty's users, and one user alone."""
    for preset in ("small", "tiny"):
        with bench.cell(preset, 5):
            world = World(bench, preset)
            for graph in (False, True):
                end_to_end(bench, world, graph=graph)
            if preset == "small":
                latency(bench, world)
            del world


def end_to_end(bench: Bench, world: World, *, graph: bool) -> None:
    """``Recommender.recommend`` over all users against the raw search of the same batches."""
    batch = bench.size(1024, 16)
    cell = f"{world.preset}_{batch}{'_graph' if graph else ''}"
    with bench.cell(cell, 4):
        if graph and not bench.is_gpu:
            bench.row(cell, skipped="a graph needs a GPU")
            return
        recommender = world.recommender(batch, graph=graph)
        users = len(world.histories)
        whole = bench.seconds(lambda: recommender.recommend(world.histories, K), 3, 1)
        unfiltered = bench.seconds(lambda: recommender.recommend(world.histories, K, exclude_seen=False), 3, 1)
        raw = bench.seconds(world.raw(recommender, batch, graph=graph), 3, 1)
        bench.row(
            cell,
            preset=world.preset,
            source=world.source,
            users=users,
            batch=batch,
            beam=bench.size(BEAM, 8),
            graph=graph,
            users_per_s=round(users / whole),
            with_seen_users_per_s=round(users / unfiltered),
            raw_users_per_s=round(users / raw),
            of_raw=round(raw / whole, 3),
        )


def latency(bench: Bench, world: World) -> None:
    """Milliseconds until one user's answer lies on the CPU, for users of all lengths."""
    for graph in (False, True):
        cell = f"one_user{'_graph' if graph else ''}"
        with bench.cell(cell, 4):
            if graph and not bench.is_gpu:
                bench.row(cell, skipped="a graph needs a GPU")
                continue
            recommender = world.recommender(1, graph=graph)
            longest = np.argsort(-world.histories.lengths, kind="stable")[: bench.size(20, 2)]
            drawn = np.random.default_rng(0).choice(len(world.histories), bench.size(200, 4), replace=False)
            figures: dict[str, Any] = {}
            for name, rows in (("longest", longest), ("any", drawn)):
                asked = [partial(recommender.recommend, world.histories.take(np.array([row])), K) for row in rows]
                for ask in asked:  # every length once, so that nothing is recorded while it is timed
                    ask()
                times = [bench.times(ask, 1, 0)[0] for ask in asked]
                figures |= {f"{name}_ms": ms(times, 50), f"{name}_ms_p95": ms(times, 95)}
            bench.row(cell, preset=world.preset, beam=bench.size(BEAM, 8), k=K, graph=graph, **figures)


def ms(seconds: list[float], percentile: float) -> float:
    """A percentile in milliseconds."""
    return round(float(np.percentile(seconds, percentile)) * 1e3, 3)
