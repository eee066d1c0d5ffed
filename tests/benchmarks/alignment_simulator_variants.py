"""The variants of the simulator experiment: keys of the recipe's ``align`` section that each changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from recsys.alignment.config import AlignConfig
from recsys.config import validate
from tests.benchmarks.alignment_simulator_page import (
    CONTROL,
    GUARDED,
    IPA,
    LOSS,
    ONE_SHOT,
    PUSHED,
    PUSHED_GUARDED,
    START,
)


@dataclass(frozen=True)
class Variant:
    """One way to align.

    Attributes:
        changes: Keys of the recipe's ``align`` section that are replaced; ``None``: no alignment at all.
        one_round: Put all samples of the recipe's rounds into one.
        every_round: Evaluate the policy of every round, not only the one that is kept.
        combination: Of the reward model's towers, in place of the recipe's.
    """

    changes: Mapping[str, Any] | None = field(default_factory=dict)
    one_round: bool = False
    every_round: bool = False
    combination: Mapping[str, Any] | None = None


def _loss(loss_type: str, beta: float, **options: Any) -> Variant:
    """A loss on a smaller budget, so that there can be many."""
    loss = {"loss_type": loss_type, "beta": beta}
    return Variant({"ipa": {"rounds": 2, "samples_per_round": 2000, "loss": loss, **options}})


_PUSH: Final = {
    "rounds": 5,
    "samples_per_round": 1500,
    "preference_weight": 1.0,
    "supervised": {"weight": 0.0},
    "optimiser": {"learning_rate": 1e-3, "final_learning_rate_share": 1.0},
    "loss": {"beta": 0.02},
}
"""No next-token loss, a weak pull to the reference, large steps: what a careless run would do."""

_STRICT: Final = {
    **dict.fromkeys(("hr1_falls", "recall_falls", "coverage_falls"), "back_off"),
    "on_violation": "back_off",
}
"""No fall is accepted."""

_SPACED: Final = {"pair_rule": "rank_spaced"}

VARIANTS: Final = {
    START: Variant(None),
    IPA: Variant(every_round=True),
    GUARDED: Variant({"guard": _STRICT}, every_round=True),
    ONE_SHOT: Variant(one_round=True),
    CONTROL: Variant({"ipa": {"preference": "none"}}),
    PUSHED: Variant({"ipa": _PUSH, "guard": {"on_violation": "record"}}, every_round=True),
    PUSHED_GUARDED: Variant({"ipa": _PUSH, "guard": {"on_violation": "back_off"}}, every_round=True),
    f"{LOSS}dpo": _loss("dpo", 0.2),
    f"{LOSS}ipo": _loss("ipo", 0.2),
    f"{LOSS}cdpo": _loss("cdpo", 0.2),
    f"{LOSS}rdpo": _loss("rdpo", 0.2),
    f"{LOSS}cpo": _loss("cpo", 0.2),
    f"{LOSS}simpo": _loss("simpo", 2.0),
    f"{LOSS}sdpo, 4 negatives": _loss("sdpo", 0.2, **_SPACED, num_negatives=4),
    f"{LOSS}plackett_luce, 8 of the group": _loss("plackett_luce", 0.2, **_SPACED, num_negatives=7),
    f"{LOSS}listwise, 8 of the group": _loss("listwise", 0.2, **_SPACED, num_negatives=7),
    f"{LOSS}dpo, easy pairs first": _loss("dpo", 0.2, curriculum={"by": "reward"}),
}

_SHORT: Final[Mapping[str, Any]] = {"rounds": 2, "samples_per_round": 2000}
_NO_PAIRS: Final = {"ipa": {**_SHORT, "preference": "none"}}

_FEEDBACK: Final[Mapping[str, Any]] = {
    "rounds": 2,
    "steps_per_round": 31,  # 2,000 samples in batches of 64, as the others
    "supervised": {"weight": 1.0},
    "optimiser": {"learning_rate": 3e-4, "final_learning_rate_share": 0.3},
}

LATER: Final = {
    "ipa": Variant({"ipa": _SHORT}),
    "next-token only": Variant(_NO_PAIRS),
    "rsft, watch time": Variant({**_NO_PAIRS, "rsft": {"by": "watch_time_ms"}}),
    "ipa, log_sigmoid": Variant({"ipa": _SHORT}, combination={"mode": "raw", "transform": "log_sigmoid"}),
    "ipa, personal weights": Variant({"ipa": _SHORT}, combination={"personal": {}}),
    "ipa on the better half": Variant({"ipa": _SHORT, "rsft": {"by": "watch_time_ms"}}),
    "user feedback, weight .1": Variant({"method": "feedback", "feedback": {**_FEEDBACK, "weight": 0.1}}),
    "user feedback, weight 1": Variant({"method": "feedback", "feedback": {**_FEEDBACK, "weight": 1.0}}),
}
"""What later papers add, on the smaller budget of the losses; :mod:`tests.benchmarks.reward_combinations` runs them."""


def align_config(base: AlignConfig, variant: Variant) -> AlignConfig:
    """Apply the changes of a variant to the recipe's section."""
    values = base.model_dump(mode="json")
    if variant.one_round:
        assert base.ipa.samples_per_round is not None
        values["ipa"] |= {"rounds": 1, "samples_per_round": base.ipa.rounds * base.ipa.samples_per_round}
    return validate(AlignConfig, _merged(values, variant.changes or {}), "the variant's align section")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, change in changes.items():
        before = merged[name]
        both = isinstance(before, Mapping) and isinstance(change, Mapping)
        merged[name] = _merged(before, change) if both else change
    return merged
