"""Options of alignment that nothing would read, and weights that cannot be: refused when the configuration is read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from recsys.alignment.config import IpaConfig, RereConfig, RolloutConfig, UserFeedbackConfig
from recsys.alignment.losses.config import CurriculumConfig
from recsys.config import FrozenConfig

CODES = {"rewards": {"first_difference": 1.0, "rule": 1.0}}
"""Rewards of single codes."""

UNREAD: list[tuple[type[FrozenConfig], dict[str, Any], str]] = [
    (RolloutConfig, {"temperature": 0.5}, "a beam draws nothing; set strategy: sampling"),
    (RolloutConfig, {"guidance": 2.0}, "nothing is guided; set guided: true"),
    (CurriculumConfig, {"start_share": 0.5}, "by is 'none'"),
    (CurriculumConfig, {"softness": 0.5}, "by is 'none'"),
    (IpaConfig, {"pair_rule": "target_rest", "curriculum": {"by": "reward"}}, "rewards play no part"),
    (IpaConfig, {"rewards": {"rule": 1.0}, "objective": {}}, "add 'learned' to rewards"),
    (RereConfig, {"loss": {"loss_type": "tawin"}, "recall": {"narrowing": {}}}, "without their ranks"),
    (RereConfig, CODES | {"loss": {"loss_type": "tawin"}}, "loss_type 'tawin' reads one reward"),
    (RereConfig, CODES | {"loss": {"loss_type": "gspo"}}, "loss_type 'gspo' reads one reward"),
    (
        RereConfig,
        CODES | {"loss": {"loss_type": "ecpo", "ratio_level": "sequence"}},
        "ratio_level 'sequence' reads one reward",
    ),
    (RereConfig, CODES | {"recall": {"narrowing": {}}}, "recall.narrowing reads one reward"),
    (RereConfig, CODES | {"recall": {"lambda_loss": {}}}, "recall.lambda_loss reads one reward"),
    (RereConfig, CODES | {"recall": {"sibling_share": 0.5}}, "recall.sibling_share reads one reward"),
]
READ: list[tuple[type[FrozenConfig], dict[str, Any]]] = [
    (RolloutConfig, {"temperature": 0.5, "strategy": "sampling"}),
    (RolloutConfig, {"temperature": 0.5, "strategy": "dynamic"}),
    (RolloutConfig, {"guidance": 2.0, "guided": True}),
    (CurriculumConfig, {"start_share": 0.5, "softness": 0.5, "by": "reference"}),
    (IpaConfig, {"pair_rule": "target_rest", "curriculum": {"by": "reference"}}),
    (IpaConfig, {"objective": {}}),
    (RereConfig, {"loss": {"loss_type": "grpo"}, "recall": {"narrowing": {}}}),
    (RereConfig, CODES | {"loss": {"loss_type": "ecpo", "ratio_level": "token"}}),
]


@pytest.mark.parametrize(("kind", "values", "message"), UNREAD)
def test_what_nothing_reads_is_refused(kind: type[FrozenConfig], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(values)


@pytest.mark.parametrize(("kind", "values"), READ)
def test_what_is_read_is_taken(kind: type[FrozenConfig], values: dict[str, Any]) -> None:
    assert holds(kind.model_validate(values).model_dump(), values)


def holds(found: Any, given: Any) -> bool:
    """Whether every value that was given stands where it was given; a section without values only has to be there."""
    if not isinstance(given, dict):
        return bool(found == given)
    return isinstance(found, dict) and all(holds(found[name], value) for name, value in given.items())


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [IpaConfig, RereConfig, UserFeedbackConfig])
def test_a_reward_without_a_weight_is_refused(kind: type[FrozenConfig], weight: float) -> None:
    """One of 0 is no reward, and with NaN the guard would blame the policy."""
    with pytest.raises(ValidationError, match=r"rewards\n.*learned has weight .*leave the reward out"):
        kind.model_validate({"rewards": {"learned": weight}})
    kind.model_validate({"rewards": {"learned": -0.5}})
