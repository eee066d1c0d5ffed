"""Whether a sentence steers: the named value's share of the list, with and without it, and what saying nothing costs.

Run, behind the stages ``prepare``, ``embed`` and ``tokenize`` of a recipe, whose folders it reads:
``python -m tests.benchmarks.words --config pipelines/recipes/industrial.yaml --artifacts FOLDER [train.max_epochs=6]``.

Two policies of one recipe and seed, one trained with ``model.words``. Every test row is asked in three ways: saying nothing,
naming a category or brand that is drawn for it, whatever the row's own next item is, and naming one of its next item's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.config import load_run_config
from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.data.options import WordsConfig
from recsys.data.words import WordList, item_values
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import row_metrics
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import PlainProgress
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs
from tests.benchmarks.paired import write_table

FEWEST_ITEMS = 20
"""Items that a named value has at least, so that a list of ten can be full of them."""
K = 10


def interval(values: npt.NDArray[np.floating]) -> str:
    """``mean [low, high]`` by bootstrap over rows, 95 %."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def lists(
    policy: GenerativeRecommender, ids: SemanticIds, decode: DecodeConfig, asked: Histories
) -> npt.NDArray[np.int32]:
    """Beam-ordered lists, seen items kept or not as the recipe says."""
    return Recommender(policy, ids, decode).recommend(asked, K, rescore=False).items


def share(items: npt.NDArray[np.int32], has_VI: npt.NDArray[np.bool_], value: npt.NDArray[np.int64]) -> npt.NDArray:
    """Share of each list that has its row's value, ``[N]``."""
    return has_VI[value[:, None], items].mean(1)


def main() -> None:
    """Train twice, ask three times, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True, help="output_dir/artifacts of the recipe")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_run_config(given.config, given.overrides)
    prepared = Dataset.open(next((given.artifacts / "prepared").iterdir()))
    ids = SemanticIds.load(next((given.artifacts / "semantic_ids").iterdir()))
    words = WordsConfig(absent_share=0.5)
    models = {"without": config.model, "with": config.model.model_copy(update={"words": words})}
    policies = {}
    for name, model in models.items():
        inputs = TrainingInputs(prepared, ids, model, config.train, config.decode, config.seed)
        if not (given.work / name / "model").exists():  # a run that was cut off is taken up where it was
            train_policy(inputs, given.work / name, PlainProgress())
        policies[name] = load_policy(given.work / name / "model", ids.digest)

    generator = np.random.default_rng(0)
    targets = prepared.targets(TEST)
    rows = np.sort(generator.choice(len(targets), min(given.rows, len(targets)), replace=False))
    targets = targets.take(rows)
    silent = Histories.from_targets(prepared.history, targets)
    values = item_values(prepared.items, words)
    count: dict[str, int] = {}
    for row in values:
        for value in set(row):
            count[value] = count.get(value, 0) + 1
    names = sorted(value for value, items in count.items() if items >= FEWEST_ITEMS)
    has_VI = np.array([[name in row for row in values] for name in names])
    named = generator.integers(0, len(names), len(targets))
    word_list = WordList(policies["with"].spec.words, words.longest)
    said = silent.with_words(word_list.encode([f"something in {names[value]}" for value in named]))
    own = [
        next((value for value in generator.permutation(values[item]).tolist() if value in names), None)
        for item in targets.items
    ]
    told = silent.with_words(word_list.encode([None if value is None else f"something in {value}" for value in own]))

    plain = lists(policies["without"], ids, config.decode, silent)
    quiet = lists(policies["with"], ids, config.decode, silent)
    steered = lists(policies["with"], ids, config.decode, said)
    helped = lists(policies["with"], ids, config.decode, told)

    def hits(items: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        from recsys.contracts.ranking import RankedItems

        return np.asarray(row_metrics(RankedItems(items, np.zeros(items.shape, np.float32)), targets, (K,))[f"hr@{K}"])

    before, after = share(quiet, has_VI, named), share(steered, has_VI, named)
    ratio = after.mean() / max(float(before.mean()), 1e-9)
    difference = hits(quiet) - hits(plain)
    print(
        write_table(
            "words",
            "A request in words",
            f"A sentence raises the share of the category or brand that it names from {before.mean():.3f} to "
            f"{after.mean():.3f} of a list of ten, {ratio:.1f} times; HR@10 of requests that say nothing differs from a "
            f"policy without words by {interval(difference)}.",
            ["policy, request", "HR@10 [95 %]", "share of the named value at 10 [95 %]"],
            [
                ["trained without words", interval(hits(plain)), interval(share(plain, has_VI, named))],
                ["trained with words, says nothing", interval(hits(quiet)), interval(before)],
                ["trained with words, names a drawn value", interval(hits(steered)), interval(after)],
                ["trained with words, names a value of the next item", interval(hits(helped)), ""],
            ],
            [
                f"{len(targets)} test rows; {len(names)} values of at least {FEWEST_ITEMS} items, one drawn for every "
                "row; lists of the beam alone, `something in {value}`.",
                "The last row tells the answer's category or brand, which no user need do; it shows that history and "
                "sentence are read together.",
            ],
        )
    )


if __name__ == "__main__":
    main()
