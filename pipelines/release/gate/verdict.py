"""The verdict on a challenger, from rows alone: pure functions that know no registry and no files.

Reads a metric per row of the challenger, the champion, the anchor and the baselines, which rows belong to which slice, and
what a probe of the bundles found; produces :class:`Findings`: every check with its numbers, and one sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipelines.release.gate.config import PromoteConfig
from pipelines.release.gate.shares import Mask, Owners, Share, Values, holm, loss_on_slice, share_of

POPULARITY = "popularity"
"""The baseline that a first version has to beat."""


@dataclass(frozen=True)
class Service:
    """What lists look like beside their hits; ``None`` where it was not measured.

    Attributes:
        coverage: Share of the catalogue that the lists of the evaluated rows show.
        shortfall: Share of probed rows with fewer items than asked.
        seconds_per_row: Of the probed rows, on this machine.
    """

    coverage: float | None = None
    shortfall: float | None = None
    seconds_per_row: float | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything a verdict is made from; all arrays are of the same N rows in the same order.

    Attributes:
        users: ``[N]`` whose row it is.
        challenger: ``[N]`` metric of the served ranking.
        champion: Likewise; ``None`` when there is none.
        anchor: Likewise, of the best champion so far; ``None`` when that is the champion.
        baselines: Metric per row of each baseline.
        slices: Rows of each slice.
        service, champion_service: See :class:`Service`.
    """

    users: Owners
    challenger: Values
    champion: Values | None = None
    anchor: Values | None = None
    baselines: Mapping[str, Values] = field(default_factory=dict)
    slices: Mapping[str, Mask] = field(default_factory=dict)
    service: Service = Service()
    champion_service: Service = Service()


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: ``champion``, ``budget``, ``floor``, ``slice <name>``, ``coverage``, ``shortfall`` or ``latency``.
        words: What was found and what was asked, without subject.
        numbers: The same, finite, for machines.
    """

    name: str
    passed: bool
    words: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Findings:
    """All checks.

    Attributes:
        checks: In the order in which they are told.
        anchor_moves: The challenger is proven better than the anchor, or the first there is.
    """

    checks: tuple[Check, ...]
    anchor_moves: bool

    @property
    def promoted(self) -> bool:
        """Whether nothing speaks against the challenger."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """One sentence: what speaks against it, or else the comparison that mattered."""
        against = [check.words for check in self.checks if not check.passed]
        if against:
            return "; ".join(against)
        return self.checks[0].words if self.checks else "nothing was asked of a first version (promote.floor: none)"

    @property
    def numbers(self) -> dict[str, float]:
        """Of the comparison that mattered most."""
        return self.checks[0].numbers if self.checks else {}


def decide(evidence: Evidence, config: PromoteConfig) -> Findings:
    """Ask every question of the configuration.

    Example:
        >>> users, good = np.arange(50), np.full(50, 0.5)
        >>> decide(Evidence(users, good, good), PromoteConfig()).promoted
        True
        >>> decide(Evidence(users, good * 0.9, good), PromoteConfig()).promoted
        False
    """
    checks: list[Check] = []
    anchor_moves = True
    if evidence.champion is None:
        checks += _first_floor(evidence, config)
    else:
        checks.append(_against_champion(evidence, evidence.champion, config))
        if evidence.anchor is not None:
            checks.append(_within_budget(evidence, evidence.anchor, config))
        checks += _floor(evidence, evidence.champion, config)
        checks += _slices(evidence, evidence.champion, config)
        checks += _guards(evidence, config)
        best = evidence.champion if evidence.anchor is None else evidence.anchor
        anchor_moves = share_of(evidence.challenger, best, evidence.users).low(config.budget_risk) > 0
    return Findings(tuple(checks), anchor_moves)


def _against_champion(evidence: Evidence, champion: Values, config: PromoteConfig) -> Check:
    found = share_of(evidence.challenger, champion, evidence.users)
    numbers = _numbers(evidence, champion, found, config)
    if math.isnan(found.value):
        better = float(evidence.challenger.mean()) > 0
        words = f"{config.metric} of the champion is 0 on all {found.rows} rows"
        return Check("champion", better or config.rule == "not_worse", words, numbers)
    said = (
        f"{config.metric} {numbers['challenger']:.4f} against {numbers['champion']:.4f}, difference "
        f"{_signed(numbers['difference'])} [{_signed(numbers['low'])}, {_signed(numbers['high'])}] on {found.rows} rows"
    )
    if config.rule == "better":
        return Check("champion", numbers["low"] > 0, f"{said}; a proven gain is asked for", numbers)
    worst = found.low(config.margin_risk)
    numbers["worst"] = _finite(worst)
    passed = worst > -config.margin
    asked = f"{said}; a loss of {config.margin:.1%} has to be ruled out, and at worst it is {max(-worst, 0):.1%}"
    if not passed and found.value > -config.margin:
        needed = found.rows_needed(config.margin, config.margin_risk)
        numbers["rows_needed"] = float(needed)
        if needed > found.rows:
            asked += f" (rows as different as these would have to be about {needed:,})"
    return Check("champion", passed, asked, numbers)


def _within_budget(evidence: Evidence, anchor: Values, config: PromoteConfig) -> Check:
    found = share_of(evidence.challenger, anchor, evidence.users)
    if math.isnan(found.value):
        return Check("budget", True, f"{config.metric} of the anchor is 0 on all {found.rows} rows", {})
    worst = found.low(config.budget_risk)
    words = (
        f"against the anchor, the best champion so far, the difference is {found.value:+.1%} and at worst {worst:+.1%}; all "
        f"nights together may lose {config.budget:.1%}"
    )
    numbers = {"share": found.value, "error": _finite(found.error), "worst": _finite(worst)}
    return Check("budget", worst > -config.budget, words, numbers)


def _first_floor(evidence: Evidence, config: PromoteConfig) -> list[Check]:
    if config.floor == "none":
        return []
    if POPULARITY not in evidence.baselines:
        words = (
            "a first version has to beat popularity, and its evaluation has no such row: add popularity to "
            "evaluate.baselines, or set promote.floor=none"
        )
        return [Check("floor", False, words, {})]
    ours, theirs = float(evidence.challenger.mean()), float(evidence.baselines[POPULARITY].mean())
    words = (
        f"there was no champion; {config.metric} {ours:.4f} against {theirs:.4f} of popularity on {len(evidence.users)} "
        "rows, and a first version has to be better"
    )
    return [Check("floor", ours > theirs, words, {"challenger": ours, POPULARITY: theirs})]


def _floor(evidence: Evidence, champion: Values, config: PromoteConfig) -> list[Check]:
    names = [POPULARITY] if config.floor == "popularity" else list(evidence.baselines)
    known = {name: evidence.baselines[name] for name in names if name in evidence.baselines}
    if config.floor == "none" or not known:
        return []
    best = max(known, key=lambda name: (float(known[name].mean()), name))
    found = share_of(evidence.challenger, known[best], evidence.users)
    if math.isnan(found.value):
        return []
    climbing = champion.mean() <= known[best].mean() and evidence.challenger.mean() >= champion.mean()
    passed = found.high(config.floor_risk) >= 0 or bool(climbing)
    words = f"the baseline '{best}' reaches {found.base:.4f}, and the challenger is {found.value:+.1%} from it"
    return [Check("floor", passed, words, {"share": found.value, "baseline": found.base})]


def _slices(evidence: Evidence, champion: Values, config: PromoteConfig) -> list[Check]:
    found: dict[str, Share] = {}
    for name, mask in evidence.slices.items():
        if int(mask.sum()) >= config.min_slice_rows:
            share = share_of(evidence.challenger, champion, evidence.users, mask)
            if not math.isnan(share.value):
                found[name] = share
    losses = [
        loss_on_slice(evidence.challenger, champion, evidence.users, evidence.slices[name], config.slice_margin)
        for name in found
    ]
    rejected = holm(losses, config.slice_risk)
    return [
        Check(
            f"slice {name}",
            not lost,
            f"on the slice '{name}' ({share.rows} rows) the difference is {share.value:+.1%}, proven beyond "
            f"{-config.slice_margin:+.1%} among {len(found)} slices"
            if lost
            else f"no proven loss on the slice '{name}'",
            {"share": share.value, "error": _finite(share.error), "rows": float(share.rows)},
        )
        for (name, share), lost in zip(found.items(), rejected, strict=True)
    ]


def _guards(evidence: Evidence, config: PromoteConfig) -> list[Check]:
    ours, theirs = evidence.service, evidence.champion_service
    checks = []
    if config.max_coverage_loss is not None and ours.coverage is not None and theirs.coverage:
        lost = 1 - ours.coverage / theirs.coverage
        words = (
            f"the lists show {ours.coverage:.1%} of the catalogue, the champion's {theirs.coverage:.1%}; "
            f"{config.max_coverage_loss:.0%} of it may be lost"
        )
        checks.append(Check("coverage", lost <= config.max_coverage_loss, words, {"lost": lost}))
    if ours.shortfall is not None and theirs.shortfall is not None:
        rise = ours.shortfall - theirs.shortfall
        words = f"{ours.shortfall:.1%} of the probed lists are short, the champion's {theirs.shortfall:.1%}"
        checks.append(Check("shortfall", rise <= config.max_shortfall_rise + 1e-12, words, {"rise": rise}))
    if config.max_latency_ratio is not None and ours.seconds_per_row is not None and theirs.seconds_per_row:
        ratio = ours.seconds_per_row / theirs.seconds_per_row
        words = f"a row takes {ratio:.2f} times as long as with the champion; {config.max_latency_ratio:g} is allowed"
        checks.append(Check("latency", ratio <= config.max_latency_ratio, words, {"ratio": ratio}))
    return checks


def _numbers(evidence: Evidence, champion: Values, found: Share, config: PromoteConfig) -> dict[str, float]:
    """Means, and the difference with its two-sided interval, in units of the metric."""
    tail = (1 - config.confidence) / 2
    difference = float(evidence.challenger.mean() - champion.mean())
    low, high = found.low(tail) * found.base, found.high(tail) * found.base
    return {
        "challenger": float(evidence.challenger.mean()),
        "champion": float(champion.mean()),
        "difference": difference,
        "low": _finite(low),
        "high": _finite(high),
        "share": _finite(found.value),
        "error": _finite(found.error),
    }


def _signed(value: float) -> str:
    """Four digits with their sign; what rounds to zero is +0."""
    return f"{round(value, 4) + 0.0:+.4f}"


def _finite(value: float) -> float:
    """A number that JSON has: where nothing can be said, the largest magnitude."""
    return float(np.nan_to_num(value, nan=0.0, posinf=1e9, neginf=-1e9))
