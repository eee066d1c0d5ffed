"""The guard: whether a round of alignment improved one thing at the cost of another.

It looks for two trade-offs. The *alignment tax*: the first place gets better while recall at depth falls. And
*over-optimisation*: the reward that is trained on rises while a reward model that was trained on other users, with
another seed, falls. A round that loses even the reward it is trained on fails, too, and a bound
on the divergence from the start can stop a run before any of it shows. All are decided on the same validation rows as
before the first round, by paired bootstrap intervals over users, so a fall inside the noise stops no run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.alignment.config import GuardConfig
from recsys.alignment.rounds.policy_evaluator import HELD_OUT_REWARD, HR1, KL_TO_START, REWARD, Measurement
from recsys.metrics.bootstrap import estimate_means


@dataclass(frozen=True)
class GuardResult:
    """The guard's result for a round.

    Attributes:
        broken: One sentence per broken rule; empty for a good round.
        changes: Per compared figure: paired difference from the start and its interval.
    """

    broken: tuple[str, ...]
    changes: dict[str, dict[str, float]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {"broken": list(self.broken), "changes": self.changes}

    @classmethod
    def from_summary(cls, values: Mapping[str, Any]) -> GuardResult:
        """Read what :meth:`summary` gave."""
        return cls(tuple(values["broken"]), dict(values["changes"]))


def check_round(
    start: Measurement,
    now: Measurement,
    users: npt.NDArray[np.integer],
    config: GuardConfig,
    seed: int,
    kept: Measurement | None = None,
) -> GuardResult:
    """Hold a round against the start, and the held-out reward also against the round kept last; paired bootstrap.

    A policy that is pushed too far rises first and falls later: by the time it is below the start, most of what was gained
    is lost. So the held-out reward may not fall from where it has been, whatever the reward does.

    Args:
        users: ``[N]`` whose row it is.
        kept: What the last kept round measured; ``None``: the start.

    Example:
        >>> before = Measurement({}, {"beam_hr@1": np.zeros(40), "beam_recall@50": np.ones(40), "reward": np.zeros(40)})
        >>> after = Measurement({}, {"beam_hr@1": np.ones(40), "beam_recall@50": np.zeros(40), "reward": np.zeros(40)})
        >>> check_round(before, after, np.arange(40), GuardConfig(), seed=0).broken
        ('beam_recall@50 fell by 1.0000 [-1.0000, -1.0000] while beam_hr@1 rose by 1.0000',)
    """
    changes = _changes(start, now, users, config, seed)
    broken = []
    recall = f"beam_recall@{config.recall_at}"
    if _fell(changes[recall]):
        rose = changes[HR1]["difference"] > 0
        if config.recall_falls == "always" or (config.recall_falls == "while_hr1_rises" and rose):
            broken.append(_fall(recall, changes[recall]) + (_rise(HR1, changes[HR1]) if rose else ""))
    if config.reward_falls == "always" and _fell(changes[REWARD]):
        broken.append(_fall(REWARD, changes[REWARD]))
    if HELD_OUT_REWARD in changes and _fell(changes[HELD_OUT_REWARD]):
        rose = changes[REWARD]["difference"] > 0
        if config.held_out_falls == "always" or (config.held_out_falls == "while_reward_rises" and rose):
            broken.append(
                _fall(HELD_OUT_REWARD, changes[HELD_OUT_REWARD]) + (_rise(REWARD, changes[REWARD]) if rose else "")
            )
    elif HELD_OUT_REWARD in changes and kept is not None and config.held_out_falls != "ignore":
        since = _changes(kept, now, users, config, seed)[HELD_OUT_REWARD]
        if _fell(since):
            broken.append(_fall(HELD_OUT_REWARD, since) + " since the last kept round")
    kl = now.values.get(KL_TO_START, 0.0)
    if config.max_kl is not None and kl > config.max_kl:
        broken.append(f"{KL_TO_START} is {kl:.4f}, more than max_kl {config.max_kl:g}")
    return GuardResult(tuple(broken), changes)


def _changes(
    before: Measurement, now: Measurement, users: npt.NDArray[np.integer], config: GuardConfig, seed: int
) -> dict[str, dict[str, float]]:
    names = sorted(now.rows)
    differences = np.stack([now.rows[name] - before.rows[name] for name in names], axis=1)
    estimates = estimate_means(differences, users, resamples=config.resamples, seed=seed, confidence=config.confidence)
    return {
        name: {"difference": one.mean, "low": one.low, "high": one.high}
        for name, one in zip(names, estimates, strict=True)
    }


def _fell(change: Mapping[str, float]) -> bool:
    return change["high"] < 0


def _fall(name: str, change: Mapping[str, float]) -> str:
    return f"{name} fell by {-change['difference']:.4f} [{change['low']:.4f}, {change['high']:.4f}]"


def _rise(name: str, change: Mapping[str, float]) -> str:
    return f" while {name} rose by {change['difference']:.4f}"
