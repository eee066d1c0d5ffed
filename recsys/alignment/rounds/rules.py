"""The rules of the guard, as one table.

A rule reads what was measured at the start, after the round kept last and now, and says what is wrong; it knows no loop.
There are three kinds: figures that may not *fall*, divergences that are *bound*, and figures that must be *finite*.

A figure has fallen when two things hold: its mean over rows fell by more than the rule's margin, and the upper end of its
paired bootstrap interval over users lies below 0. The second alone would stop runs for falls of .0000, the first alone for
noise. Both only get truer the larger a fall is, row by row, so a larger fall never passes where a smaller one stops.

How sure the interval is: :mod:`recsys.alignment.rounds.comparison`.

Recall is asked twice at every depth: as it is, and with a soft edge (:mod:`recsys.alignment.rounds.soft_recall`), which
finds a fall of a few percent in about a fourth of the rows. The soft one is silent where the recall itself rose beyond its
interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from recsys.alignment.config import GuardConfig, RuleAction
from recsys.alignment.rounds.measurement import (
    COVERAGE,
    HELD_OUT_REWARD,
    HR1,
    KL_TO_START,
    REWARD,
    STEERED,
    Measurement,
    recall_name,
)

Against = Literal["start", "kept"]

SMALLEST_FALL: Final = 5e-5
"""A fall below this is written as .0000; no margin is smaller."""


@dataclass(frozen=True)
class Change:
    """A figure now minus before, paired by row.

    Attributes:
        difference: Of the means.
        low, high: Interval at ``guard.confidence``, for readers.
        bound: Upper end of the one-sided interval at the corrected error, for the rule.
    """

    difference: float
    low: float
    high: float
    bound: float

    def summary(self) -> dict[str, float]:
        """What a report shows."""
        return {"difference": self.difference, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class MeasuredRound:
    """What the rules read of one round.

    Attributes:
        start, kept, now: Measured before the first round, after the one kept last, and after this one.
        changes: Against start and kept, by name of a figure.
    """

    start: Measurement
    kept: Measurement
    now: Measurement
    config: GuardConfig
    changes: Mapping[Against, Mapping[str, Change]]


class Rule(Protocol):
    """One row of the table."""

    @property
    def name(self) -> str:
        """What the rule is about, in a word or two."""
        ...

    @property
    def compared(self) -> str:
        """Which figures, with what, for a reader."""
        ...

    @property
    def threshold(self) -> str:
        """From where on it counts, for a reader."""
        ...

    @property
    def setting(self) -> str:
        """Key of ``align.guard`` that says what happens, or what happens in any case."""
        ...

    def action(self, config: GuardConfig) -> RuleAction:
        """What happens when the rule is broken."""
        ...

    def broken(self, round_: MeasuredRound) -> list[str]:
        """One sentence per figure that breaks the rule."""
        ...


@dataclass(frozen=True)
class MayNotFall:
    """A mean over validation rows that may not fall, beyond margin and noise.

    Attributes:
        figures: Names in :attr:`Measurement.rows`, by configuration; those that were not measured are left out.
        against: What it is held against.
        margin_key: Setting of the margin.
        unit: ``start``: the margin is a share of the start's mean; ``deviation``: of its standard deviation over rows.
        silent_if_rose: By name of a figure, the one that speaks for it: where the whole interval of that lies above 0, the
            figure has not fallen.
    """

    name: str
    compared: str
    setting: str
    figures: Callable[[GuardConfig], list[str]]
    against: tuple[Against, ...]
    margin_key: str
    unit: Literal["start", "deviation"]
    silent_if_rose: Callable[[str], str | None] = lambda name: None

    @property
    def threshold(self) -> str:
        """Margin and interval."""
        of = "the start's figure" if self.unit == "start" else "the start's standard deviation over rows"
        return f"`{self.margin_key}` of {of}, and the interval at the corrected error below 0"

    def action(self, config: GuardConfig) -> RuleAction:
        """The rule's own, or the guard's."""
        return cast("RuleAction | None", getattr(config, self.setting)) or config.on_violation

    def comparisons(self, config: GuardConfig, measured: Collection[str]) -> list[tuple[str, Against]]:
        """Which figures are held against what."""
        return [(name, against) for name in self.figures(config) if name in measured for against in self.against]

    def margin(self, rows: npt.NDArray[np.floating], config: GuardConfig) -> float:
        """The fall from which on it counts, in the figure's own unit; it depends on the start alone.

        Example:
            >>> recall = next(rule for rule in FALLS if rule.name == "recall")
            >>> round(recall.margin(np.array([0.0, 1.0]), GuardConfig()), 4)  # 1 % of .5
            0.005
        """
        scale = float(rows.mean()) if self.unit == "start" else float(rows.std())
        return max(float(getattr(config, self.margin_key)) * abs(scale), SMALLEST_FALL)

    def broken(self, round_: MeasuredRound) -> list[str]:
        """Every figure once, with what it fell against first."""
        said: dict[str, str] = {}
        for name, against in self.comparisons(round_.config, round_.now.rows):
            change = round_.changes[against][name]
            fell = -change.difference > self.margin(round_.start.rows[name], round_.config) and change.bound < 0
            spoken_for = round_.changes[against].get(self.silent_if_rose(name) or "")
            rose = spoken_for is not None and spoken_for.low > 0
            if fell and not rose and name not in said:
                since = "" if against == "start" else " since the last kept round"
                said[name] = f"{name} fell by {-change.difference:.4f} [{change.low:.4f}, {change.high:.4f}]{since}"
        return list(said.values())


@dataclass(frozen=True)
class Bound:
    """Divergences that have an upper bound.

    Attributes:
        limit_key: Setting of the bound; ``None`` there switches the rule off.
        steered: The figures under drawn objective weights, or those without any.
    """

    name: str
    compared: str
    limit_key: str
    steered: bool
    setting: str = "kl_exceeds"

    @property
    def threshold(self) -> str:
        """The bound."""
        return f"more than `{self.limit_key}`"

    def action(self, config: GuardConfig) -> RuleAction:
        """The rule's own, or the guard's."""
        return config.kl_exceeds or config.on_violation

    def broken(self, round_: MeasuredRound) -> list[str]:
        """The largest of the figures that exceed the bound."""
        limit = getattr(round_.config, self.limit_key)
        found = {
            name: value
            for name, value in round_.now.values.items()
            if name.startswith(KL_TO_START) and (STEERED in name) == self.steered
        }
        if limit is None or not found:
            return []
        largest = max(found, key=lambda name: found[name])
        if found[largest] <= limit:
            return []
        return [f"{largest} is {found[largest]:.4f}, more than {self.limit_key} {limit:g}"]


@dataclass(frozen=True)
class Finite:
    """Figures that must be finite: NaN is smaller than nothing, and would pass every comparison."""

    name: str = "not finite"
    compared: str = "every figure that was measured"
    threshold: str = "NaN or infinite"
    setting: str = "always stops"

    def action(self, config: GuardConfig) -> RuleAction:
        """There is nothing to go on from."""
        return "stop"

    def broken(self, round_: MeasuredRound) -> list[str]:
        """Names of the figures."""
        return non_finite(round_.now)


def non_finite(measured: Measurement) -> list[str]:
    """Say which figures are no finite number, one sentence each.

    Example:
        >>> non_finite(Measurement({"reward": float("nan"), "beam_hr@1": 0.5}, {}))
        ['reward is nan, expected a finite number']
    """
    single = [f"{name} is {value}, expected a finite number" for name, value in measured.values.items()]
    finite = [math.isfinite(value) for value in measured.values.values()]
    said = [sentence for sentence, fine in zip(single, finite, strict=True) if not fine]
    for name, rows in measured.rows.items():
        missing = int((~np.isfinite(rows)).sum())
        if missing and math.isfinite(measured.values.get(name, 0.0)):
            said.append(f"{name} is not finite in {missing} of {len(rows)} rows")
    return said


FALLS: Final = (
    MayNotFall(
        "held-out reward",
        "reward of a model that nothing is trained on, against the start and the round kept last; for a steered policy also "
        "under drawn objective weights",
        "held_out_falls",
        lambda config: [HELD_OUT_REWARD, HELD_OUT_REWARD + STEERED],
        ("start", "kept"),
        "reward_margin",
        "deviation",
    ),
    MayNotFall(
        "reward",
        "the reward that is trained on, against the start and the round kept last; for a steered policy also under drawn "
        "objective weights",
        "reward_falls",
        lambda config: [REWARD, REWARD + STEERED],
        ("start", "kept"),
        "reward_margin",
        "deviation",
    ),
    MayNotFall(
        "recall",
        "recall of the beam at every one of `ks` from 2 to `recall_at`, against the start",
        "recall_falls",
        lambda config: [recall_name(k) for k in config.recall_depths],
        ("start",),
        "recall_margin",
        "start",
    ),
    MayNotFall(
        "soft recall",
        "the same with a soft edge: how far inside the list the targets stand, against the start; silent where that recall "
        "rose beyond its interval",
        "recall_falls",
        lambda config: [recall_name(k, soft=True) for k in config.recall_depths],
        ("start",),
        "recall_margin",
        "start",
        lambda name: name.replace("_soft", ""),
    ),
    MayNotFall(
        "first place",
        "hit rate of the beam's first place, against the start",
        "hr1_falls",
        lambda config: [HR1],
        ("start",),
        "hr1_margin",
        "start",
    ),
    MayNotFall(
        "coverage",
        "share of the catalogue among all rows' first ten, against the start",
        "coverage_falls",
        lambda config: [COVERAGE],
        ("start",),
        "coverage_margin",
        "start",
    ),
)
"""What may not fall."""

RULES: Final[tuple[Rule, ...]] = (
    Finite(),
    *FALLS,
    Bound(
        "divergence", "divergence from the start over all items of a session, and at each place of it", "max_kl", False
    ),
    Bound("divergence, steered", "the same under drawn objective weights", "max_kl_steered", True),
)
"""Every rule of the guard, in the order of its sentences."""


def table() -> str:
    """Return the rules as a Markdown table, for the documentation."""
    rows = [("rule", "compared", "counts from", "what happens")]
    for rule in RULES:
        setting = f"`{rule.setting}`" if rule.setting in GuardConfig.model_fields else rule.setting
        rows.append((rule.name, rule.compared, rule.threshold, setting))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
