"""Guided against plain beam search: one core, 12,101 and a million items, with the cost of every part.

Run: ``python -m tests.benchmarks.guided_search [--items 12101 1000000]``; about 6 minutes of one core, 3 GB.

A policy of TIGER's widths (:mod:`tests.benchmarks.decoder_models`) with random weights, beam 50; histories of 9 of the
events that item scorers are counted on. All contestants decode the same batch and take turns; seconds are the processor's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.decoding.beam_search import DenseGuidance, Guidance, beam_search
from recsys.decoding.guide import PrefixGuide, fused_scores
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.decoding.search_index import SearchIndex
from recsys.scorers.config import EASEScorerConfig, ScorersConfig, SimilarityConfig
from recsys.scorers.scorer_set import ScorerSet
from tests.benchmarks import findings
from tests.benchmarks.cpu_time import alternate_cpu
from tests.benchmarks.decoder_models import CODES, LEVELS, own_history, own_policy, random_catalogue
from tests.benchmarks.paired import Timing, write_table
from tests.toy.builders import history_lists, in_memory

BEAM: Final = 50
EVENTS: Final = 8
WIDTH: Final = 64
"""Of the vectors that similarities compare."""
STRENGTH: Final = 2.0


def random_events(items: int, users: int, seed: int = 2) -> Dataset:
    """Users whose next item is near their last one, so that transitions and neighbours are not all single."""
    generator = np.random.default_rng(seed)
    first = generator.integers(0, items, (users, 1))
    steps = generator.integers(-30, 31, (users, EVENTS + 1))
    walks = (first + steps.cumsum(1)) % items
    return in_memory(history_lists(walks.tolist(), held_out=2), items)


def fitted_scorers(prepared: Dataset) -> ScorerSet:
    """All scorers that the catalogue allows, of random vectors."""
    items = prepared.spec.num_items
    generator = np.random.default_rng(3)
    vectors = {name: generator.normal(size=(items, WIDTH)).astype(np.float32) for name in ("fused", "text")}
    config = ScorersConfig(
        ease=EASEScorerConfig(max_items=20_000),
        similar=SimilarityConfig(width=WIDTH),
        similar_text=SimilarityConfig(width=WIDTH),
    )
    return ScorerSet.fit(prepared, config, vectors, catalogue="benchmark")


def measure(items: int, batch: int, rounds: int) -> list[list[str]]:
    """Rows of the table for one size of catalogue."""
    index = SearchIndex.from_index(PrefixIndex.build(random_catalogue(items).astype(np.int32), (CODES,) * LEVELS))
    prepared = random_events(items, max(20_000, items // 10))
    scorers = fitted_scorers(prepared)
    histories = Histories.from_targets(prepared.history, prepared.all_users()).take(np.arange(batch))
    policy, history = own_policy(items, dense=True), own_history(batch, items)
    vectors = policy.item_vectors()[1:]
    given = fused_scores(policy.start(history).dense_query_BD, vectors, histories, None, {})
    rules, out = BatchRules(), given.clone().numpy()

    def search(guidance: Guidance | DenseGuidance | None) -> Callable[[], object]:
        return lambda: beam_search(policy, history, index, BEAM, guidance=guidance)

    leaf_vectors = vectors[index.item_of_leaf]

    def fused(names: tuple[str, ...]) -> Guidance:
        weights = dict.fromkeys(names, 0.5)
        return Guidance(lambda query: fused_scores(query, vectors, histories, scorers, weights), STRENGTH)

    counted = tuple(name for name in scorers.names if not name.startswith("similar"))
    contestants: dict[str, Callable[[], object]] = {
        "plain search": search(None),
        "guided, scores given": search(Guidance(lambda _: given, STRENGTH)),
        "guided by the dense head": search(DenseGuidance(leaf_vectors, STRENGTH)),
        "guided, dense head and counted scorers": search(fused(counted)),
        "guided, dense head and all scorers": search(fused(scorers.names)),
        "part: sums over the prefix index": lambda: PrefixGuide.from_item_scores(given, STRENGTH, index, rules),
        "part: dense head": lambda: fused_scores(policy_query, vectors, histories, None, {}),
        "part: dense head with its sums": lambda: PrefixGuide.from_dense_head(
            policy_query, leaf_vectors, STRENGTH, index, rules
        ),
    }
    policy_query = policy.start(history).dense_query_BD
    for name in scorers.names:
        contestants[f"part: {name}"] = lambda name=name: scorers.add_fused(histories, {name: 0.5}, out)  # type: ignore[misc]
    timings = alternate_cpu(contestants, rounds)
    return [_row(items, batch, name, timing, timings["plain search"]) for name, timing in timings.items()]


def _row(items: int, batch: int, name: str, timing: Timing, plain: Timing) -> list[str]:
    ratios = sorted(own / base for own, base in zip(timing.seconds, plain.seconds, strict=True))
    ratio = f"{timing.best / plain.best:.3f} ({ratios[0]:.3f} … {ratios[-1]:.3f})"
    return [f"{items:,}", f"{batch}", name, f"{1e3 * timing.best / batch:.2f}", ratio]


def main() -> None:
    """Measure every size, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 1_000_000])
    parser.add_argument(
        "--users", type=int, default=64, help="at once; what decode.rows_per_batch makes of a beam of 50"
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows = [row for items in arguments.items for row in measure(items, arguments.users, arguments.rounds)]
    header = ["items", "users at once", "what", "ms per user", "time over the plain search's"]
    notes = [
        f"beam {BEAM}, 4 levels of {CODES} codes drawn at random, width 128, 4 + 4 layers, 80 history positions",
        "ms per user: of one core, best round; ratio: of the best rounds, lowest and highest round",
        "scores given: the search with item scores that are there already: the order of the leaves, exp and the sums",
        "counted scorers: transitions and the like, popularity, EASE where the catalogue allows it; all: with the cosines "
        f"of two kinds of vectors of width {WIDTH}",
    ]
    print(write_table("guided_search", "Guided search", findings.of_guided_search(rows), header, rows, notes))


if __name__ == "__main__":
    main()
