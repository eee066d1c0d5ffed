"""Try a small grid of settings for one baseline and keep the best.

Reads a prepared data set, the configured settings and the grid; produces a fitted baseline and a record of what was tried.
Everything is fitted on train events and measured on validation rows, see
:class:`~recsys.evaluation.tuning.validation_rows.ValidationRows`. What several settings share is counted once: ``fit_each``
of the baselines takes them in the order of :func:`points`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from recsys.config import FrozenConfig
from recsys.contracts.dataset import Dataset
from recsys.evaluation.baselines.base import Ranker
from recsys.evaluation.baselines.config import BaselinesConfig, EASEConfig, SASRecConfig
from recsys.evaluation.baselines.ease import EASE
from recsys.evaluation.baselines.item_knn import ItemKNN
from recsys.evaluation.baselines.markov import Markov
from recsys.evaluation.baselines.registry import build_baselines
from recsys.evaluation.tuning.config import EASEGrid, Grid, TuningConfig
from recsys.evaluation.tuning.validation_rows import METRIC, ValidationRows
from recsys.scorers.config import Until

logger = logging.getLogger(__name__)


@dataclass
class Tuned:
    """The best of what was tried.

    Attributes:
        name: Of the baseline.
        tried: Names of the settings that were varied.
        configured: Where the search began; it wins ties.
        trials: Settings and their NDCG, in the order they were tried.
        ranker: The best so far, fitted on train events; ``None`` until there is one, and in a trial that is not kept.
        config: Its settings.
        value: Its NDCG on the validation rows.
    """

    name: str
    tried: tuple[str, ...]
    configured: FrozenConfig
    trials: list[tuple[FrozenConfig, float]] = field(default_factory=list)
    ranker: Ranker | None = None
    config: FrozenConfig | None = None
    value: float = float("-inf")

    def see(self, config: FrozenConfig, value: float, ranker: Ranker | None) -> None:
        """Take note of one trial."""
        self.trials.append((config, value))
        if value > self.value or (value == self.value and config == self.configured):
            self.config, self.value, self.ranker = config, value, ranker

    def record(self, rows: int, seconds: float) -> dict[str, Any]:
        """What is written down: everything tried, what was chosen, and what it took."""
        assert self.config is not None, "nothing was tried"
        configured = [value for config, value in self.trials if config == self.configured]
        return {
            "baseline": self.name,
            "metric": METRIC,
            "rows": rows,
            "fits": len(self.trials),
            "minutes": round(seconds / 60, 2),
            "chosen": _varied(self.config, self.tried),
            "value": self.value,
            "configured": _varied(self.configured, self.tried),
            "configured_value": configured[0] if configured else None,
            "settings": self.config.model_dump(mode="json"),
            "trials": [{**_varied(config, self.tried), METRIC: value} for config, value in self.trials],
        }


def _varied(config: FrozenConfig, tried: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in sorted(tried)}


def tune(
    name: str, prepared: Dataset, settings: BaselinesConfig, config: TuningConfig, valid: ValidationRows, seed: int
) -> tuple[Ranker, dict[str, Any]]:
    """Return the best of a baseline's settings, fitted on train events, and the record of the search.

    Raises:
        DataError: The data do not allow the baseline.
    """
    started = time.monotonic()
    base = getattr(settings, name)
    if name == "markov":
        found = _try_all(name, base, config.markov, lambda some: Markov.fit_each(prepared, some, "train"), valid)
    elif name == "item_knn":
        found = _try_all(name, base, config.item_knn, lambda some: ItemKNN.fit_each(prepared, some, "train"), valid)
    elif name == "ease":
        found = _climb(base, config.ease, lambda some: EASE.fit_each(prepared, some, "train"), valid)
    elif name == "sasrec":
        found = _train_few(prepared, settings, config, valid, seed)
    else:
        found = Tuned(name, (), base)
        ranker = fit_with(name, base, prepared, settings, seed, "train")
        found.see(base, valid.value(ranker), ranker)
    assert found.ranker is not None
    record = found.record(len(valid), time.monotonic() - started)
    logger.info("%s", describe(record))
    return found.ranker, record


def fit_with(
    name: str, config: FrozenConfig, prepared: Dataset, settings: BaselinesConfig, seed: int, until: Until
) -> Ranker:
    """Build one baseline with given settings and fit it."""
    (ranker,) = build_baselines([name], settings.model_copy(update={name: config}))
    ranker.fit(prepared, seed, until)
    return ranker


def points(base: FrozenConfig, lists: dict[str, tuple[Any, ...]]) -> list[FrozenConfig]:
    """All combinations of the lists and the configured values; the last list changes fastest.

    Example:
        >>> from recsys.evaluation.baselines.config import EASEConfig
        >>> [p.history_decay for p in points(EASEConfig(history_decay=0.7), {"history_decay": (0.8, 0.9)})]
        [0.7, 0.8, 0.9]
    """
    values = [_with_own(values, getattr(base, name)) for name, values in lists.items()]
    return [base.model_copy(update=dict(zip(lists, point, strict=True))) for point in product(*values)]


def _with_own(values: Sequence[Any], own: Any) -> list[Any]:
    """Sort, with the configured value among them; ``None`` means no limit and stands last."""
    return sorted({*values, own}, key=lambda value: (value is None, value if value is not None else 0))


def _try_all(
    name: str,
    base: FrozenConfig,
    grid: Grid,
    fit_each: Callable[[Sequence[Any]], Iterable[Ranker]],
    valid: ValidationRows,
) -> Tuned:
    found = Tuned(name, tuple(grid.lists()), base)
    configs = points(base, grid.lists())
    for config, ranker in zip(configs, fit_each(configs), strict=True):
        found.see(config, valid.value(ranker), ranker)
    return found


def _climb(
    base: EASEConfig, grid: EASEGrid, fit_each: Callable[[Sequence[Any]], Iterable[Ranker]], valid: ValidationRows
) -> Tuned:
    """Walk through the values of the regularisation from the configured one, up while it helps, else down."""
    found = Tuned("ease", tuple(grid.lists()), base)
    values = _with_own(grid.regularisation, base.regularisation)
    start = values.index(base.regularisation)

    def better_at(place: int) -> bool:
        before = found.value
        here = base.model_copy(update={"regularisation": values[place]})
        configs = points(here, {"history_decay": grid.history_decay})
        for config, ranker in zip(configs, fit_each(configs), strict=True):
            found.see(config, valid.value(ranker), ranker)
        return found.value > before

    better_at(start)
    for steps in (range(start + 1, len(values)), range(start - 1, -1, -1)):
        helped = False
        for place in steps:
            if not better_at(place):
                break
            helped = True
        if helped:
            break
    return found


def _train_few(
    prepared: Dataset, settings: BaselinesConfig, config: TuningConfig, valid: ValidationRows, seed: int
) -> Tuned:
    """Train every setting for some epochs, then the best in full."""
    base, grid = settings.sasrec, config.sasrec
    candidates = [base]
    for change in grid.changes:
        changed = SASRecConfig.model_validate(base.model_dump() | change)
        candidates += [changed] if changed not in candidates else []
    varied = tuple(dict.fromkeys(name for change in grid.changes for name in change))
    best = base
    found = Tuned("sasrec", varied, base)
    if len(candidates) > 1:
        for candidate in candidates:
            epochs = max(1, round(grid.epochs_share * candidate.max_epochs))
            trial = candidate.model_copy(update={"max_epochs": epochs})
            found.see(candidate, valid.value(fit_with("sasrec", trial, prepared, settings, seed, "train")), None)
        assert isinstance(found.config, SASRecConfig)
        best = found.config
    found.ranker = fit_with("sasrec", best, prepared, settings, seed, "train")
    found.config, found.value = best, valid.value(found.ranker)
    found.trials = found.trials or [(best, found.value)]
    return found


def describe(record: dict[str, Any]) -> str:
    """Say in a line what was chosen out of how much, and what it took.

    Example:
        >>> describe({"baseline": "ease", "chosen": {"regularisation": 200.0}, "fits": 6, "rows": 943, "minutes": 0.21,
        ...           "metric": "ndcg@10", "value": 0.15})
        'ease: regularisation 200; the best of 6 settings on 943 validation rows (ndcg@10 .1500), 0.2 minutes'
    """
    settings = ", ".join(f"{name} {_shown(value)}" for name, value in record["chosen"].items()) or "one setting"
    best = f"the best of {record['fits']} settings on" if record["fits"] > 1 else "not chosen, measured on"
    value = f"{record['value']:.4f}".removeprefix("0")
    return (
        f"{record['baseline']}: {settings}; {best} {record['rows']} validation rows ({record['metric']} {value}), "
        f"{record['minutes']:.1f} minutes"
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(str(part) for part in value)
    return "all" if value is None else f"{value:g}"
