"""Whether a sentence steers: the named value's share of the list, with and without it, and what saying nothing costs.

Run, behind the stages ``prepare``, ``embed`` and ``tokenize`` of a recipe, whose folders it reads:
``python -m tests.benchmarks.words --config pipelines/recipes/industrial.yaml --artifacts FOLDER --work FOLDER
[train.max_epochs=5]``.

Two policies of one recipe and seed, one trained with ``model.words``, and a second stage that is fitted for that one on rows
that say nothing. Every test row is asked in three ways: saying nothing, naming a category or brand that is drawn for it,
whatever the row's own next item is, and naming one of its next item's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from pipelines.config import RunConfig, load_run_config
from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.data.options import WordsConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.second_stage.fit import fit_second_stage
from recsys.decoding.second_stage.recommender import Order, RankedRecommender
from recsys.evaluation.steering.words import NamedValues, sentences
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


def hits(ranked: RankedItems, targets: Targets) -> npt.NDArray[np.float64]:
    """HR@10 of every row."""
    return np.asarray(row_metrics(ranked, targets, (K,))[f"hr@{K}"])


def second_stage(
    given: argparse.Namespace, config: RunConfig, prepared: Dataset, ids: SemanticIds, policy: GenerativeRecommender
) -> RankedRecommender:
    """The policy with a second stage, fitted as the stage `rank` does."""
    folder = next((given.artifacts / "embeddings").iterdir())
    vectors = {name: np.load(folder / f"{name}.npy") for name in ("fused", "text") if (folder / f"{name}.npy").exists()}
    decode, rank = config.decode, config.rank
    fitted, _ = fit_second_stage(prepared, policy, ids, decode, rank, vectors, config.seed, PlainProgress())
    return RankedRecommender(policy, ids, decode, fitted)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True, help="output_dir/artifacts of the recipe")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_args()


def main() -> None:
    """Train twice, ask three times, and write the page."""
    given = arguments()
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
    values = NamedValues.of(prepared.items, words, FEWEST_ITEMS)
    named = generator.integers(0, len(values.names), len(targets))
    own = [generator.permutation(np.flatnonzero(values.has_VI[:, item]))[:1].tolist() for item in targets.items]
    asked = {
        SILENT: silent,
        DRAWN: silent.with_words(sentences([values.names[value] for value in named], policies["with"].spec)),
        OWN: silent.with_words(
            sentences([values.names[row[0]] if row else None for row in own], policies["with"].spec)
        ),
    }
    plain = Recommender(policies["without"], ids, config.decode).recommend(silent, K, rescore=False)
    recommender = second_stage(given, config, prepared, ids, policies["with"])
    found = {
        (order, said): ranked
        for said, histories in asked.items()
        for order, ranked in zip(ORDERS, recommender.orders(histories, K, tuple(ORDERS)), strict=True)
    }
    share = {key: values.share(ranked.items, named) for key, ranked in found.items()}
    before, after = share["beam", SILENT], share["beam", DRAWN]
    ratio = after.mean() / before.mean()
    served = share["served", DRAWN].mean() / share["served", SILENT].mean()
    difference = hits(found["beam", SILENT], targets) - hits(plain, targets)
    print(
        write_table(
            "words",
            "A request in words",
            f"A sentence raises the share of the category or brand that it names from {before.mean():.3f} to "
            f"{after.mean():.3f} of a list of ten by the beam, {ratio:.1f} times, and {served:.1f} times where a second "
            f"stage serves; HR@10 of who says nothing differs by {interval(difference)} from a policy without words.",
            ["policy, list, request", "HR@10 [95 %]", "share of the named value at 10 [95 %]"],
            [
                [
                    "trained without words, beam",
                    interval(hits(plain, targets)),
                    interval(values.share(plain.items, named)),
                ],
                *[
                    [
                        f"trained with words, {ORDERS[order]}, {said}",
                        interval(hits(ranked, targets)),
                        interval(share[order, said]) if said != OWN else "",
                    ]
                    for (order, said), ranked in found.items()
                ],
            ],
            [
                f"{len(targets)} test rows; {len(values.names)} values of at least {FEWEST_ITEMS} items, one drawn for "
                "every row; `something in {value}`.",
                "Served: candidates of all sources in the order of the ranker; a request that says something gets the order "
                "of the dense head, because neither item scorers nor the ranker read what is said.",
                "The rows of the next item tell the answer's category or brand, which no user need do; they show that "
                "history and sentence are read together.",
            ],
        )
    )


SILENT: Final = "says nothing"
DRAWN: Final = "names a drawn value"
OWN: Final = "names a value of the next item"
ORDERS: Final[dict[Order, str]] = {"beam": "beam", "served": "served with a second stage"}

if __name__ == "__main__":
    main()
