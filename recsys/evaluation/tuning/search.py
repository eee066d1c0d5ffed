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

import numpy as np

from recsys.config import FrozenConfig
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.evaluation.baselines.base import Ranker
from recsys.evaluation.baselines.config import BaselinesConfig, EASEConfig, SASRecConfig
from recsys.evaluation.baselines.ease import EASE
from recsys.evaluation.baselines.item_knn import ItemKNN
from recsys.evaluation.baselines.markov import Markov
from recsys.evaluation.baselines.registry import build_baselines
from recsys.evaluation.tuning.config import EASEGrid, Grid, TuningConfig
from recsys.evaluation.tuning.validation_rows import METRIC, ValidationRows
from recsys.metrics.ranking import Values
from recsys.scorers.config import Until

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        values: ``[N]`` NDCG of every validation row.
    """

    config: FrozenConfig
    values: Values

    @property
    def mean(self) -> float:
        """NDCG of all rows."""
        return float(self.values.mean())


def choose(trials: Sequence[Trial], configured: FrozenConfig) -> Trial:
    """Choose the setting that departs least from the configured one among those that rows cannot tell from the best.

    The best of many settings on a thousand rows is often the luckiest of several that are as good, and luck does not
    repeat on test rows. A setting counts as good as the best if it is behind by at most one standard error of the
    difference, row by row. Of equal departures the better setting is taken, of equals the first.

    Source: the one-standard-error rule of Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3, with
    the number of changed settings in the place of the size of a tree.
    """
    best = max(trials, key=lambda trial: trial.mean)

    def as_good(trial: Trial) -> bool:
        behind = best.values - trial.values
        return bool(behind.mean() <= behind.std() / np.sqrt(len(behind)))

    return min(
        (trial for trial in trials if as_good(trial)),
        key=lambda trial: (num_changes(trial.config, configured), -trial.mean),
    )


def num_changes(config: FrozenConfig, configured: FrozenConfig) -> int:
    """Settings in which two configurations of one baseline differ.

    Example:
        >>> num_changes(EASEConfig(regularisation=100.0), EASEConfig())
        1
    """
    return sum(getattr(config, name) != getattr(configured, name) for name in type(configured).model_fields)


@dataclass
class Tuned:
    """What was tried, and what is kept of it.

    Attributes:
        name: Of the baseline.
        tried: Names of the settings that were varied.
        configured: Where the search began.
        trials: In the order they were tried.
        ranker: The best so far, fitted on train events; ``None`` until there is one, and where trials are not kept.
        best: Its trial.
        chosen: What :func:`choose` made of them, or what was trained in full afterwards.
    """

    name: str
    tried: tuple[str, ...]
    configured: FrozenConfig
    trials: list[Trial] = field(default_factory=list)
    ranker: Ranker | None = None
    best: Trial | None = None
    chosen: Trial | None = None

    def see(self, config: FrozenConfig, values: Values, ranker: Ranker | None) -> bool:
        """Take note of one trial; says whether it is the best so far."""
        trial = Trial(config, values)
        self.trials.append(trial)
        if self.best is not None and trial.mean <= self.best.mean:
            return False
        self.best, self.ranker = trial, ranker
        return True

    def record(self, rows: int, seconds: float) -> dict[str, Any]:
        """What is written down: everything tried, what was chosen, and what it took."""
        assert self.chosen is not None, "nothing was chosen"
        configured = [trial.mean for trial in self.trials if trial.config == self.configured]
        settings = self.chosen.config
        return {
            "baseline": self.name,
            "metric": METRIC,
            "rows": rows,
            "fits": len(self.trials),
            "minutes": round(seconds / 60, 2),
            "chosen": _varied(settings, self.tried),
            "value": self.chosen.mean,
            "best_value": max(trial.mean for trial in self.trials),
            "configured": _varied(self.configured, self.tried),
            "configured_value": configured[0] if configured else None,
            "settings": settings.model_dump(mode="json"),
            "trials": [{**_varied(trial.config, self.tried), METRIC: trial.mean} for trial in self.trials],
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
        found.see(base, valid.values(ranker), ranker)
    if found.chosen is None:
        found.chosen = choose(found.trials, base)
        if found.best is None or found.chosen.config != found.best.config:
            found.ranker = fit_with(name, found.chosen.config, prepared, settings, seed, "train")
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
        found.see(config, valid.values(ranker), ranker)
    return found


def _climb(
    base: EASEConfig, grid: EASEGrid, fit_each: Callable[[Sequence[Any]], Iterable[Ranker]], valid: ValidationRows
) -> Tuned:
    """Walk through the values of the regularisation from the configured one, up while it helps, else down.

    A value too small for the data helps nothing; where the configured one is, the first above it that can be solved does.

    Raises:
        DataError: None of the values that were tried can be solved.
    """
    found = Tuned("ease", tuple(grid.lists()), base)
    refusals: list[DataError] = []
    values = _with_own(grid.regularisation, base.regularisation)
    start = values.index(base.regularisation)

    def better_at(place: int) -> bool:
        here = base.model_copy(update={"regularisation": values[place]})
        configs, better = points(here, {"history_decay": grid.history_decay}), False
        try:
            for config, ranker in zip(configs, fit_each(configs), strict=True):
                better = found.see(config, valid.values(ranker), ranker) or better
        except DataError as refusal:
            logger.info("%s", refusal)
            refusals.append(refusal)
        return better

    better_at(start)
    for steps in (range(start + 1, len(values)), range(start - 1, -1, -1)):
        helped = False
        for place in steps:
            if better_at(place):
                helped = True
            elif found.best is not None:
                break
        if found.best is None:
            raise refusals[-1]
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
    best: FrozenConfig = base
    found = Tuned("sasrec", varied, base)
    if len(candidates) > 1:
        for candidate in candidates:
            epochs = max(1, round(grid.epochs_share * candidate.max_epochs))
            trial = candidate.model_copy(update={"max_epochs": epochs})
            found.see(candidate, valid.values(fit_with("sasrec", trial, prepared, settings, seed, "train")), None)
        found.chosen = choose(found.trials, base)
        best = found.chosen.config
    found.ranker = fit_with("sasrec", best, prepared, settings, seed, "train")
    found.chosen = Trial(best, valid.values(found.ranker))
    found.trials = found.trials or [found.chosen]
    return found


def describe(record: dict[str, Any]) -> str:
    """Say in a line what was chosen out of how much, and what it took.

    Example:
        >>> describe({"baseline": "ease", "chosen": {"regularisation": 200.0}, "fits": 6, "rows": 943, "minutes": 0.21,
        ...           "metric": "ndcg@10", "value": 0.15})
        'ease: regularisation 200; chosen of 6 settings on 943 validation rows (ndcg@10 .1500), 0.2 minutes'
    """
    settings = ", ".join(f"{name} {_shown(value)}" for name, value in record["chosen"].items()) or "one setting"
    best = f"chosen of {record['fits']} settings on" if record["fits"] > 1 else "not chosen, measured on"
    value = f"{record['value']:.4f}".removeprefix("0")
    return (
        f"{record['baseline']}: {settings}; {best} {record['rows']} validation rows ({record['metric']} {value}), "
        f"{record['minutes']:.1f} minutes"
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(str(part) for part in value)
    return "all" if value is None else f"{value:g}"
