"""Whether a sentence steers: the share of a list that has the category or author it names, with and without the sentence.

Reads a prepared data set and a recommender whose policy was trained with ``model.words``; writes ``words.json``. Every row
is asked twice, saying nothing and naming a value that is drawn for it, whatever the row's own next item is.

Legend: N rows, V values, I items, k places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import write_json
from recsys.data.histories import Histories
from recsys.data.options import WordsConfig
from recsys.data.words import WordList, filled, item_values
from recsys.decoding.recommender import Recommender
from recsys.decoding.second_stage.recommender import RankedRecommender
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.rankings import BEAM, SERVED
from recsys.metrics.bootstrap import resample_means
from recsys.model.generative_recommender import PolicySpec

WORDS_FILE: Final = "words.json"
MOST_ROWS: Final = 1000
_SILENT: Final = "without"
_SAYING: Final = "with"


@dataclass(frozen=True)
class NamedValues:
    """Categories and authors that enough items have for a list to be full of them.

    Attributes:
        names: In the order of the alphabet.
        has_VI: bool ``[V, I]``.
    """

    names: tuple[str, ...]
    has_VI: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, items: pl.DataFrame, config: WordsConfig, fewest: int) -> NamedValues:
        """Collect them.

        Args:
            items: Of a prepared data set, row number = item_index.
            fewest: Items that a value has at least.
        """
        values = item_values(items, config)
        pairs = [(value, item) for item, row in enumerate(values) for value in set(row)]
        count: dict[str, int] = {}
        for value, _ in pairs:
            count[value] = count.get(value, 0) + 1
        names = tuple(sorted(value for value, number in count.items() if number >= fewest))
        place = {name: number for number, name in enumerate(names)}
        has_VI = np.zeros((len(names), len(values)), np.bool_)
        for value, item in pairs:
            if value in place:
                has_VI[place[value], item] = True
        return cls(names, has_VI)

    def share(self, items_Nk: npt.NDArray[np.integer], value_N: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Share of each list's items that have its row's value, ``[N]``; an empty list has 0.

        Example:
            >>> values = NamedValues(("glue",), np.array([[True, False, True]]))
            >>> values.share(np.array([[0, 1], [2, -1], [-1, -1]]), np.array([0, 0, 0])).tolist()
            [0.5, 1.0, 0.0]
        """
        there_Nk = items_Nk >= 0
        has_Nk = self.has_VI[value_N[:, None], items_Nk] & there_Nk
        return np.asarray(has_Nk.sum(1) / there_Nk.sum(1).clip(1))


def sentences(names: Sequence[str | None], spec: PolicySpec) -> npt.NDArray[np.int32]:
    """Words of a request in the policy's second template, or its only one, for every name; ``None`` says nothing."""
    config = spec.model.words
    assert config is not None
    template = config.templates[min(1, len(config.templates) - 1)]
    said = [None if name is None else filled(template, name) for name in names]
    return WordList(spec.words, config.longest).encode(said)


def write_words(
    prepared: Dataset, recommender: Recommender, config: EvaluateConfig, out_dir: Path, seed: int
) -> list[str]:
    """Ask every row, a thousand at most, twice; return what a reader of the table has to know.

    Args:
        recommender: Of a policy with words.
        seed: Draws rows and values.
    """
    spec, k, exclude = recommender.policy.spec, config.headline_k, config.filters[0]
    assert spec.model.words is not None
    values = NamedValues.of(prepared.items, spec.model.words, fewest=2 * k)
    if not values.names:
        return [f"words: no category or author has {2 * k} items, so how far a sentence steers was not measured"]
    generator, targets = np.random.default_rng([seed, 4]), prepared.targets(config.split_code)
    rows = np.sort(generator.choice(len(targets), min(MOST_ROWS, len(targets)), replace=False))
    value_N = generator.integers(0, len(values.names), len(rows))
    silent = Histories.from_targets(prepared.history, targets.take(rows))
    saying = silent.with_words(sentences([values.names[value] for value in value_N], spec))
    shares = {
        f"{system} {asked}": values.share(items, value_N)
        for asked, histories in ((_SILENT, silent), (_SAYING, saying))
        for system, items in _lists(recommender, histories, k, exclude).items()
    }
    everybody = np.ones((len(rows), 1), np.bool_)
    resampled = resample_means(
        np.stack(list(shares.values()), 1),
        everybody,
        targets.user_index[rows],
        resamples=config.resamples,
        seed=seed,
    )
    shown = dict(zip(shares, resampled.estimates(config.confidence), strict=True))
    found: dict[str, Any] = {
        system: {
            asked: {name: getattr(shown[f"{system} {asked}"], name) for name in ("mean", "low", "high")}
            for asked in (_SILENT, _SAYING)
        }
        for system in (SERVED, BEAM)
    }
    write_json(out_dir / WORDS_FILE, {"k": k, "rows": len(rows), "values": len(values.names), "systems": found})
    return [
        f"words, {system}: the category or author that a sentence names has {_figure(each[_SAYING])} of the first {k} "
        f"places with the sentence, {_figure(each[_SILENT])} without; {len(rows)} rows, {len(values.names)} values of at "
        f"least {2 * k} items"
        for system, each in found.items()
    ]


def _lists(
    recommender: Recommender, histories: Histories, k: int, exclude_seen: bool
) -> dict[str, npt.NDArray[np.int32]]:
    """What is served, and the beam alone."""
    if isinstance(recommender, RankedRecommender):
        served, beam = recommender.orders(histories, k, ("served", "beam"), exclude_seen=exclude_seen)
    else:
        beam, served = recommender.both_orders(histories, k, exclude_seen=exclude_seen)
        served = served if recommender.config.rescore == "dense" else beam
    return {SERVED: served.items, BEAM: beam.items}


def _figure(shown: dict[str, float]) -> str:
    return f"{shown['mean']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}]"
