"""ReRe on real data: the data sets, what all variants share, and the variants themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from recsys.alignment.config import AlignConfig, GuardConfig


@dataclass(frozen=True)
class Dataset:
    """A data set of the experiment.

    Attributes:
        recipe: Name of the pipeline's recipe that trains the policies.
        folder: Below ``RECSYS_DATA``.
        eval_rows: Rows evaluated; of more, so many are drawn, once for all seeds and variants.
        guard_rows: Validation rows that the guard looks at.
    """

    recipe: str
    folder: str
    eval_rows: int
    guard_rows: int


DATASETS: Final = {
    "beauty": Dataset("beauty.yaml", "amazon14_beauty", 8000, 1500),
    "industrial": Dataset("industrial.yaml", "minionerec_industrial", 4533, 1_000_000),
    "toys": Dataset("beauty.yaml", "amazon14_toys", 8000, 1500),  # nothing was ever chosen on it
}


@dataclass(frozen=True)
class Settings:
    """What all variants share; chosen on validation rows of seed 1 (``--tune``).

    Attributes:
        rounds: Parts of a run, each looked at by the guard.
        steps_per_round: Updates of a part.
        requests: Train targets per update.
        beta: Weight of the divergence of the policy-gradient loss.
        preference_beta: beta of the softmax-DPO loss.
        supervised: Weight of the next-token loss on the same requests.
    """

    learning_rate: float = 1e-4
    rounds: int = 3
    steps_per_round: int = 100
    requests: int = 128
    beta: float = 1e-3
    preference_beta: float = 1.0
    supervised: float = 0.0


Kind = Literal["rere", "sdpo", "next_token"]


@dataclass(frozen=True)
class Variant:
    """One way to align.

    Attributes:
        kind: Policy gradient, softmax-DPO, or the next-token loss alone.
        rewards: Names, weight 1 each.
        group: Candidates per request, G.
        strategy: Of the roll-outs.
        all_groups: softmax-DPO on every group, the target as chosen; otherwise only on groups that hold it, which are those
            that teach the policy gradient something.
        learning_rate: Instead of the data set's setting.
    """

    kind: Kind = "rere"
    rewards: tuple[str, ...] = ("rule", "ranking")
    group: int = 16
    strategy: Literal["beam", "sampling", "dynamic"] = "beam"
    all_groups: bool = False
    learning_rate: float | None = None


LARGE_STEPS: Final = "rule+ranking, lr 1e-4"
"""What Beauty takes anyway, for the data set that takes less."""

VARIANTS: Final = {
    "rule+ranking": Variant(),
    LARGE_STEPS: Variant(learning_rate=1e-4),
    "rule": Variant(rewards=("rule",)),
    "sdpo, same groups": Variant("sdpo"),
    "sdpo, all groups": Variant("sdpo", all_groups=True),
    "sampling": Variant(strategy="sampling"),
    "G=4": Variant(group=4),
    "G=8": Variant(group=8),
    "G=32": Variant(group=32),
    "next-token only": Variant("next_token"),
}

DUELS: Final = (
    ("rule+ranking", "rule"),
    ("rule+ranking", "sampling"),
    ("rule+ranking", "sdpo, same groups"),
    ("rule+ranking", "sdpo, all groups"),
    ("rule+ranking", "next-token only"),
    ("rule+ranking", "G=4"),
    ("rule+ranking", "G=8"),
    ("rule+ranking", "G=32"),
)
"""Variants compared with each other, row by row."""

CHOSEN: Final = {"beauty": Settings(), "industrial": Settings(learning_rate=3e-5), "toys": Settings()}
_ONE = Settings(rounds=1, steps_per_round=300)
CANDIDATES: Final = {
    "lr 3e-5": ("rule+ranking", replace(_ONE, learning_rate=3e-5)),
    "lr 3e-5, next-token 0.3": ("rule+ranking", replace(_ONE, learning_rate=3e-5, supervised=0.3)),
    "lr 6e-5": ("rule+ranking", replace(_ONE, learning_rate=6e-5)),
    "lr 6e-5, next-token 0.3": ("rule+ranking", replace(_ONE, learning_rate=6e-5, supervised=0.3)),
    "lr 1e-4, KL 0.1": ("rule+ranking", replace(_ONE, beta=0.1)),
    "lr 1e-4": ("rule+ranking", _ONE),
    "lr 3e-4": ("rule+ranking", replace(_ONE, learning_rate=3e-4)),
    "lr 3e-4, next-token 1": ("rule+ranking", replace(_ONE, learning_rate=3e-4, supervised=1.0)),
    "sdpo 0.1, lr 1e-4": ("sdpo, same groups", replace(_ONE, preference_beta=0.1)),
    "sdpo 1, lr 1e-4": ("sdpo, same groups", _ONE),
    "sdpo all groups 1, lr 1e-4": ("sdpo, all groups", _ONE),
}
"""Variant and settings of every run of ``--tune``."""

NOTES: Final = """\
- policies: the recipe of the data set, stages prepare to train, one per seed; every variant of a seed starts from
  the same policy, and sees the same train targets in the same order; no validation or test item is ever a reward
- evaluated: item level, whole catalogue, constrained beam of 50 (ReRe's width; the recipe serves from 100); filtered
  means that items of the history are left out; served is the dense head's order of the same 50 candidates, so its
  HR@50 is the beam's
- first row of a table: means over the seeds that are there; other rows: relative change, in brackets a 95 % paired
  bootstrap interval over users; users are drawn with their rows under all seeds, so the interval says nothing about
  other seeds: see the table seed by seed
- rule+ranking, rule: ReRe with both rewards or the first (GRPO, G = 16, beam); sampling, G=...: rule+ranking with
  other groups
- sdpo, same groups: the softmax-DPO loss on groups of a beam of 16 that hold the target, the other 15 rejected:
  what the policy gradient learns from; all groups: the target is chosen whether the beam holds it or not; groups
  come from the policy at the beginning of the round, not of the step
- next-token only: as many updates on the same requests with the next-token loss and the dense head's, as a control
- guard: after each round, on 1,500 (beauty) or all 4,532 (industrial) validation rows; it stops if HR@50 falls
  beyond its interval while HR@1 rises, or the reward falls beyond its own
- sdpo, all groups (beauty): run before the guard had its rule about the reward, which stops it after the first round
- rule+ranking, lr 1e-4 (industrial): the rate that Beauty takes. It was industrial's, too, when the rule allowed HR@50 to
  fall inside its interval; the rule was made stricter after depth was lost on the test rows, so industrial's HR@50 is no
  untouched figure
- toys: Beauty's recipe and settings on another data set, on which nothing was chosen
- industrial: validation and test are the official rows of ReRe and MiniOneRec, the train file is rebuilt (30,213
  rows for 36,259, 83 %): a lower bound of what the official file gives; its published metric is the unfiltered one
"""


def settings_note() -> str:
    """One line about what all variants share, and one rate per data set."""
    settings = CHOSEN["beauty"]
    rates = ", ".join(f"{chosen.learning_rate:g} ({name})" for name, chosen in CHOSEN.items())
    return (
        f"- settings: {settings.rounds} rounds of {settings.steps_per_round} updates of {settings.requests} requests, AdamW "
        f"with {rates} and cosine decay to a tenth, KL beta {settings.beta:g} (k3), softmax-DPO beta "
        f"{settings.preference_beta:g}, next-token loss with weight {settings.supervised:g}, no dropout; chosen on "
        "validation rows of seed 1 (highest NDCG@10 of the beam order among settings whose HR@50 does not fall there) and "
        "used for all seeds\n"
    )


def align_config(variant: Variant, settings: Settings, guard: GuardConfig) -> AlignConfig:
    """Turn a variant into the configuration of the `align` stage."""
    optimiser = {"learning_rate": settings.learning_rate}
    supervised = {"weight": settings.supervised}
    rollouts = {"num_generations": variant.group, "strategy": variant.strategy}
    if variant.kind == "rere":
        method: dict[str, Any] = {
            "rounds": settings.rounds,
            "steps_per_round": settings.steps_per_round,
            "requests_per_step": settings.requests,
            "rewards": dict.fromkeys(variant.rewards, 1.0),
            "loss": {"beta": settings.beta},
        }
    else:
        method = {
            "rounds": settings.rounds,
            "samples_per_round": settings.steps_per_round * settings.requests,
            "batch_size": settings.requests,
            "rewards": {"rule": 1.0},
            "preference_reduction": "pairs",
            "loss": {"loss_type": "sdpo", "beta": settings.preference_beta},
            "num_negatives": variant.group - 1,
        }
        method["pair_rule"] = "target_rest" if variant.all_groups else "best_all"
        method["preference_share"] = 1.0
        if variant.kind == "next_token":  # the loop of the pairs without their loss
            method |= {"preference": "none"}
            supervised = {"weight": 1.0}
    method |= {"optimiser": optimiser, "supervised": supervised, "rollouts": rollouts}
    name = "rere" if variant.kind == "rere" else "ipa"
    return AlignConfig.model_validate({"method": name, name: method, "guard": guard, "checkpoint_every_steps": 1000})
