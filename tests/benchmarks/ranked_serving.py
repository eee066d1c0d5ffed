"""What candidates of several sources and a ranker cost: users per second of one core, against the same policy without them.

Run: ``python -m tests.benchmarks.ranked_serving [--users 400] [--items 12000]`` (two minutes of one quiet core).

Policy, catalogue and histories are simulated, and the ranker's weights drawn: speed does not depend on what was learned. All
answer the same users in turns in one process; a turn's time is that of the processor, so that other work on the machine
counts little. The first row is the beam's items in the order of the dense head (``rank.method: none``).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.second_stage.recommender import RankedRecommender
from recsys.decoding.second_stage.stage import SecondStage
from recsys.model.checkpoint import load_policy
from recsys.ranker.config import CandidateCounts
from recsys.runtime import SilentProgress
from recsys.scorers.config import ScorerName, ScorersConfig
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks.paired import write_table
from tests.toy.batch_world import WorldSize, build_world
from tests.toy.ranker import second_stage_of

SCORERS: tuple[ScorerName, ...] = (
    "transitions",
    "slow_transitions",
    "preceding",
    "item_knn",
    "similar",
    "similar_text",
    "popularity",
)
MODEL = {"width": 128, "num_heads": 4, "ffn_width": 256, "expert_width": 256, "max_history": 20}
ROUNDS = 3


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--items", type=int, default=12_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        contestants, histories = _contestants(Path(scratch), asked.users, asked.items)
        rates = _rates(contestants, histories)
    plain = rates["no ranker"]
    rows = []
    for name, found in rates.items():
        ratios = [mine / other for mine, other in zip(found, plain, strict=True)]
        rows.append(
            [name, f"{max(found):.0f}", f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"]
        )
    share = statistics.median(mine / other for mine, other in zip(rates["all sources"], plain, strict=True))
    print(
        write_table(
            "ranked_serving" if asked.items == 12_000 else f"ranked_serving_{asked.items}",
            "What a ranker and its sources cost",
            f"With all sources and the ranker, a core answers {share:.0%} of the users per second that it answers without.",
            ["answered by", "users per second of one core", "against no ranker"],
            rows,
            [
                f"{asked.users} users, {asked.items:,} items, beam 100, histories of 1 to 20 events; "
                f"{len(SCORERS)} item scorers beside the dense head (all but EASE), a linear order of the candidates",
                "ratios: median of the rounds, lowest and highest in brackets; processor time",
                "LightGBM's trees and EASE are not part of it; a shared machine, so that differences between the sources "
                "are within the spread",
            ],
            module="ranked_serving",
        )
    )


def _contestants(folder: Path, users: int, items: int) -> tuple[dict[str, Recommender], Histories]:
    levels = (256, 256, 256)
    build_world(folder, WorldSize(max(4 * users, 20_000), items, 20, 20, levels, MODEL, 100))
    prepared, ids, policy = (
        Dataset.open(folder / "prepared"),
        SemanticIds.load(folder / "ids"),
        load_policy(folder / "model"),
    )
    vectors = np.random.default_rng(1).normal(size=(items, 64)).astype(np.float32)
    config = ScorersConfig(names=SCORERS)
    stages = {
        "all sources": CandidateCounts(),
        "all sources, search not guided": CandidateCounts(),
        "without the dense head's 50": CandidateCounts(dense=1),
        "without the fused score's 100": CandidateCounts(fused=0),
        "without transitions' 50": CandidateCounts(transitions=0),
    }
    decode = DecodeConfig(beam_width=100)
    contestants: dict[str, Recommender] = {"no ranker": Recommender(policy, ids, decode)}
    for name, counts in stages.items():
        stage = second_stage_of(prepared, policy, ids, config, counts, {"fused": vectors, "text": vectors})
        if "not guided" in name:
            stage = replace(stage, fusion=replace(stage.fusion, guidance=0.0))
        contestants[name] = RankedRecommender(policy, ids, decode, stage)
    contestants["simple order of the guard"] = RankedRecommender(policy, ids, decode, _simple(contestants))
    everyone = Histories.from_targets(prepared.history, prepared.all_users())
    return contestants, everyone.take(np.arange(users))


def _simple(contestants: dict[str, Recommender]) -> SecondStage:
    ranked = contestants["all sources"]
    assert isinstance(ranked, RankedRecommender)
    return replace(ranked.second_stage, ranker=replace(ranked.second_stage.ranker, served="dense"))


def _rates(contestants: dict[str, Recommender], histories: Histories) -> dict[str, list[float]]:
    """Users per second of every round, all in turns; the first round warms up."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(ROUNDS + 1):
        names = list(contestants) if round_ % 2 else list(reversed(contestants))
        for name in names:
            used = histories if round_ else histories.take(np.arange(32))
            started = time.process_time()
            contestants[name].recommend(used, 20, progress=SilentProgress())
            if round_:
                rates[name].append(len(used) / (time.process_time() - started))
    return rates


if __name__ == "__main__":
    main()
