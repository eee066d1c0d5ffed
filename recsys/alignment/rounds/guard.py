"""The guard: whether a round of alignment improved one thing at the cost of another, and what to do then.

All figures are decided on the same validation rows as before the first round, by the rules of
:mod:`recsys.alignment.rounds.rules`. They find the *alignment tax* (the first place gets better while recall at depth
falls), *over-optimisation* (the reward that is trained on rises while a reward model of other users falls), and rounds in
which everything falls together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from recsys.alignment.config import GuardConfig
from recsys.alignment.rounds.comparison import compare
from recsys.alignment.rounds.measurement import Measurement
from recsys.alignment.rounds.rules import RULES, non_finite

Decision = Literal["keep", "back_off", "stop"]
_STRENGTH: Final[Mapping[str, int]] = {"record": 0, "back_off": 1, "stop": 2}
_DECISIONS: Final[tuple[Decision, ...]] = ("keep", "back_off", "stop")


@dataclass(frozen=True)
class GuardResult:
    """The guard's result for a round.

    Attributes:
        broken: One sentence per broken rule; empty for a good round.
        changes: Per compared figure: paired difference from the start and its interval.
        decision: The strongest action of the broken rules; ``keep`` where none acts.
    """

    broken: tuple[str, ...]
    changes: dict[str, dict[str, float]] = field(default_factory=dict)
    decision: Decision = "keep"

    def summary(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {"broken": list(self.broken), "changes": self.changes, "decision": self.decision}

    @classmethod
    def from_summary(cls, values: Mapping[str, Any]) -> GuardResult:
        """Read what :meth:`summary` gave."""
        return cls(tuple(values["broken"]), dict(values["changes"]), values["decision"])


def check_round(
    start: Measurement,
    now: Measurement,
    users: npt.NDArray[np.integer],
    config: GuardConfig,
    seed: int,
    kept: Measurement | None = None,
    looks: int = 1,
) -> GuardResult:
    """Apply every rule to a round.

    Args:
        users: ``[N]`` whose row it is.
        seed: Of the bootstrap.
        kept: What the last kept round measured; ``None``: the start.
        looks: Rounds of the run, over which the chance of a false stop is shared.

    Example:
        >>> before = Measurement({}, {"beam_hr@1": np.zeros(40), "beam_recall@50": np.ones(40)})
        >>> after = Measurement({}, {"beam_hr@1": np.ones(40), "beam_recall@50": np.zeros(40)})
        >>> result = check_round(before, after, np.arange(40), GuardConfig(), seed=0)
        >>> result.decision, result.broken
        ('stop', ('beam_recall@50 fell by 1.0000 [-1.0000, -1.0000]',))
    """
    if sick := non_finite(now):  # no interval holds a NaN: the other rules cannot be asked
        return GuardResult(tuple(sick), {}, "stop")
    measured = compare(start, kept or start, now, users, config, seed=seed, looks=looks)
    said = [(rule.action(config), sentence) for rule in RULES for sentence in rule.broken(measured)]
    strongest = max((_STRENGTH[action] for action, _ in said), default=0)
    changes = {name: change.summary() for name, change in measured.changes["start"].items()}
    return GuardResult(tuple(sentence for _, sentence in said), changes, _DECISIONS[strongest])
