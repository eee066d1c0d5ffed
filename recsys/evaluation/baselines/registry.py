"""Names, settings and construction of all baselines.

Settings were chosen on the validation split of Amazon Beauty, once; every one can be changed in a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, get_args

from recsys.config import FrozenConfig
from recsys.contracts.errors import ConfigError
from recsys.evaluation.baselines.base import Ranker
from recsys.evaluation.baselines.ease import EASE, EASEConfig
from recsys.evaluation.baselines.item_knn import ItemKNN, ItemKNNConfig
from recsys.evaluation.baselines.markov import Markov, MarkovConfig
from recsys.evaluation.baselines.popularity import Popularity, PopularityConfig
from recsys.evaluation.baselines.repeat_last import RepeatLast, RepeatLastConfig
from recsys.evaluation.baselines.sasrec import SASRecConfig

BaselineName = Literal["popularity", "repeat_last", "markov", "item_knn", "ease", "sasrec"]

BASELINE_NAMES: Final[tuple[BaselineName, ...]] = get_args(BaselineName)


class BaselinesConfig(FrozenConfig):
    """Settings of each baseline; those of baselines that are not asked for are not used."""

    popularity: PopularityConfig = PopularityConfig()
    repeat_last: RepeatLastConfig = RepeatLastConfig()
    markov: MarkovConfig = MarkovConfig()
    item_knn: ItemKNNConfig = ItemKNNConfig()
    ease: EASEConfig = EASEConfig()
    sasrec: SASRecConfig = SASRecConfig()


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
