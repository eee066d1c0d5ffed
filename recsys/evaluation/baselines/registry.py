"""Construction of all baselines by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recsys.contracts.errors import ConfigError
from recsys.evaluation.baselines.base import Ranker
from recsys.evaluation.baselines.config import (
    BaselinesConfig,
    SASRecConfig,
)
from recsys.evaluation.baselines.ease import EASE
from recsys.evaluation.baselines.item_knn import ItemKNN
from recsys.evaluation.baselines.markov import Markov
from recsys.evaluation.baselines.popularity import Popularity
from recsys.evaluation.baselines.repeat_last import RepeatLast


def build_baselines(names: Sequence[str], config: BaselinesConfig) -> list[Ranker]:
    """Build the named baselines, in the order given.

    Raises:
        ConfigError: A name is unknown or given twice.

    Example:
        >>> [ranker.name for ranker in build_baselines(["markov", "popularity"], BaselinesConfig())]
        ['markov', 'popularity']
    """
    builders: dict[str, Callable[[], Ranker]] = {
        "popularity": lambda: Popularity(config.popularity),
        "repeat_last": lambda: RepeatLast(config.repeat_last),
        "markov": lambda: Markov(config.markov),
        "item_knn": lambda: ItemKNN(config.item_knn),
        "ease": lambda: EASE(config.ease),
        "sasrec": lambda: _build_sasrec(config.sasrec),
    }
    unknown = [name for name in names if name not in builders]
    if unknown:
        raise ConfigError(f"unknown baseline '{unknown[0]}'; known baselines: {', '.join(builders)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"baselines {list(names)} name one twice; a system has one row in the table")
    return [builders[name]() for name in names]


def _build_sasrec(config: SASRecConfig) -> Ranker:
    # Lightning takes seconds to import; only those who train pay for it
    from recsys.evaluation.baselines.sasrec_training import SASRec

    return SASRec(config)
