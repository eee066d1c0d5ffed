"""How a policy is aligned: roll-outs, the two methods, and the guard over both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from recsys.alignment.losses.config import CurriculumConfig, PairRule, PolicyGradientConfig, PreferenceLossConfig
from recsys.alignment.recall.config import RecallConfig
from recsys.alignment.rewards.names import RewardWeights
from recsys.alignment.sample_config import DislikesConfig, ObjectiveConfig, RsftConfig
from recsys.config import FrozenConfig
from recsys.contracts.errors import ConfigError


class RolloutConfig(FrozenConfig):
    """The candidates that are generated for a request.

    Attributes:
        strategy: ``beam``: one constrained beam, distinct candidates; ``sampling``: independent constrained samples;
            ``dynamic``: 1.5 times as many samples, of which a group without needless repeats is chosen (ReRe).
        num_generations: Candidates per request, G; OneRec uses 128, ReRe 16.
        temperature: Of the sampling strategies.
        exclude_seen: Do not generate items of the history.
        add_ground_truth: Put the target into the last place of a group that lacks it.
        rows_per_batch: Requests times candidates generated together; bounds memory.
        guided: Guide the beam by the dense head of the policy that generates (:mod:`recsys.decoding.guide`): candidates
            come in the order of the guided score, their log-probabilities stay those of the policy alone.
        guidance: Weight of the dense head's scores where ``guided`` is set.
    """

    strategy: Literal["beam", "sampling", "dynamic"] = "beam"
    guided: bool = False
    guidance: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    num_generations: int = Field(default=16, ge=2)
    temperature: float = Field(default=1.0, gt=0)
    exclude_seen: bool = False
    add_ground_truth: bool = False
    rows_per_batch: int = Field(default=3200, ge=1)

    @model_validator(mode="after")
    def _only_a_beam_is_guided(self) -> Self:
        if self.guided and self.strategy != "beam":
            raise ValueError(f"guided needs strategy: beam, not {self.strategy}; set guided: false, or strategy: beam")
        if self.guidance != 1.0 and not self.guided:
            raise ValueError(f"guidance is {self.guidance:g}, and nothing is guided; set guided: true, or leave it out")
        if self.temperature != 1.0 and self.strategy == "beam":
            raise ValueError(
                f"temperature is {self.temperature:g}, and a beam draws nothing; set strategy: sampling, or leave it out"
            )
        return self


class OptimiserConfig(FrozenConfig):
    """AdamW with warm-up and cosine decay over all rounds; its state is carried from round to round.

    Dropout stays off, as in TRL: with it the log-ratio at the reference is noise instead of 0. So do the balancing biases
    of the experts, which would move the policy without a gradient.

    Attributes:
        learning_rate: Peak, after the warm-up.
        final_learning_rate_share: Share of the peak that the cosine ends at.
        warmup_share: Share of all steps in which the rate rises.
        weight_decay: Of everything but tables.
        table_weight_decay: Of the tables of ids and codes.
        gradient_clip: Largest norm of the gradient.
    """

    learning_rate: float = Field(default=1e-4, gt=0)
    objective_rate: float = Field(default=20.0, gt=0)
    """Factor on the rate of the input for objective weights, which begins at zero while the policy does not."""
    final_learning_rate_share: float = Field(default=0.1, ge=0, le=1)
    warmup_share: float = Field(default=0.03, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    table_weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=1.0, ge=0)


class SupervisedConfig(FrozenConfig):
    """The next-token loss that is joined with the alignment loss.

    Attributes:
        weight: Of next-token and dense loss together.
        dense_weight: Of the dense head's loss beside the next-token loss; without it the served order, which the dense head
            decides, drifts away from an encoder that moves.
        loss_reduction: Over the codes of an item, as in training.
        session_reduction: Over the items of a session. ``sum`` is OneRec's eq. 4; with ``mean``, as in training, the weight
            of the preference loss beside it counts as many times more as a session has items.
    """

    weight: float = Field(default=1.0, ge=0)
    dense_weight: float = Field(default=1.0, ge=0)
    loss_reduction: Literal["sum", "mean"] = "sum"
    session_reduction: Literal["mean", "sum"] = "mean"


class IpaConfig(FrozenConfig):
    """Iterative preference alignment (OneRec, arXiv 2502.18965, Alg. 2).

    Attributes:
        rounds: Snapshots taken; 1 is plain one-shot DPO. Unpublished.
        samples_per_round: Training samples of a round, N_sample; ``None`` is one pass over the train split. Unpublished.
        preference_share: Share of the samples that get a preference pair, r_DPO.
        preference: ``pairs``, or ``none``: the next-token loss on the same samples alone, a control that makes no roll-outs.
        preference_weight: lambda. Unpublished.
        preference_reduction: ``batch`` divides the sum of the pairs' losses by the samples of the batch, as Alg. 2 does
            sample by sample; ``pairs`` by the pairs in the batch, so that their weight does not depend on the share.
        min_reward_gap: A candidate is rejected only if its reward is lower than the best by more than this.
        rewards: Weights of the rewards that order the candidates; ``learned`` is the session reward model.
        dislikes: Explicit dislikes as rejected candidates; ``None``: only what the reward rejects.
        objective: Steer by weights of the reward's towers; ``None``: one policy for the reward's own weights.
        optimiser: OneRec's rate, constant: a decay over the whole run would leave the last rounds without effect.
        batch_size: Samples per update.
        pair_rule: Which candidates make a pair: best against worst, against random ones, against evenly spaced ranks,
            against all; ``target_rest``: the target against the first others.
        num_negatives: Rejected candidates per pair, N.
    """

    rounds: int = Field(default=3, ge=1)
    samples_per_round: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=128, ge=1)
    preference_share: float = Field(default=0.01, gt=0, le=1)
    preference: Literal["pairs", "none"] = "pairs"
    preference_weight: float = Field(default=1.0, gt=0)
    preference_reduction: Literal["batch", "pairs"] = "batch"
    pair_rule: PairRule = "best_worst"
    num_negatives: int = Field(default=1, ge=1)
    min_reward_gap: float = Field(default=1e-4, ge=0)
    rewards: RewardWeights = Field(default={"learned": 1.0}, min_length=1)
    loss: PreferenceLossConfig = PreferenceLossConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    dislikes: DislikesConfig | None = None
    objective: ObjectiveConfig | None = None
    rollouts: RolloutConfig = RolloutConfig(num_generations=128)
    supervised: SupervisedConfig = SupervisedConfig()
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=2e-4, final_learning_rate_share=1.0)

    @model_validator(mode="after")
    def _some_loss_is_left(self) -> Self:
        if self.preference == "none" and self.dislikes is not None:
            raise ValueError("preference 'none' makes no pairs, and dislikes are pairs; leave dislikes out")
        if self.preference == "none" and self.supervised.weight == 0:
            raise ValueError("preference 'none' leaves the next-token loss, and supervised.weight is 0; raise it")
        return self

    @model_validator(mode="after")
    def _pairs_fit_group(self) -> Self:
        if self.num_negatives >= self.rollouts.num_generations:
            raise ValueError(
                f"num_negatives {self.num_negatives} needs more than rollouts.num_generations "
                f"{self.rollouts.num_generations} candidates"
            )
        if self.objective is not None and "learned" not in self.rewards:
            raise ValueError("objective weighs the towers of the learned reward; add 'learned' to rewards")
        if self.pair_rule == "target_rest" and self.curriculum.by == "reward":
            raise ValueError(
                "curriculum.by is 'reward', and rewards play no part in pair_rule 'target_rest': all would be as easy; "
                "set curriculum.by: reference, or another pair_rule"
            )
        return self


class RereConfig(FrozenConfig):
    """Policy gradient on ranked roll-outs (ReRe, arXiv 2510.12211).

    Attributes:
        rounds: Parts of the run; the guard looks after each.
        requests_per_step: Groups generated together by the current policy; ReRe has 32.
        num_iterations: Updates per group; 1 is strictly on-policy, more use the clipped ratio to the policy that generated.
        rewards: Weights; ReRe's own are rule and ranking, 1 each.
        zero_signal_weight: Weight of groups whose rewards are all equal: 0 filters them (and saves their gradient pass), 1
            keeps them, for the pull to the reference that is all they give.
        group_average: ``all`` divides the loss by all groups of a step, those without signal too, as ReRe does;
            ``informative`` by those with a signal, so that a batch of few such groups makes as long a step as any other.
        reference_sync_every: Steps between ``reference <- mixup * policy + (1 - mixup) * reference``; ``None``: never.
        supervised: Next-token loss on the same requests; off by default, as in ReRe.
        recall: What is done beside the rewards so that depth is not the price of the first place; nothing by default.
        steps_per_round: Updates of a round.
        reference_mixup: Share of the policy in the new reference.
    """

    rounds: int = Field(default=5, ge=1)
    steps_per_round: int = Field(default=200, ge=1)
    requests_per_step: int = Field(default=32, ge=1)
    num_iterations: int = Field(default=1, ge=1)
    rewards: RewardWeights = Field(default={"rule": 1.0, "ranking": 1.0}, min_length=1)
    loss: PolicyGradientConfig = PolicyGradientConfig()
    recall: RecallConfig = RecallConfig()
    zero_signal_weight: float = Field(default=0.0, ge=0, le=1)
    group_average: Literal["all", "informative"] = "all"
    reference_sync_every: int | None = Field(default=512, ge=1)
    reference_mixup: float = Field(default=0.6, gt=0, le=1)
    rollouts: RolloutConfig = RolloutConfig(num_generations=16)
    supervised: SupervisedConfig = SupervisedConfig(weight=0.0)
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=1e-4)

    @model_validator(mode="after")
    def _recall_fits(self) -> Self:
        recall, group = self.recall, self.rollouts.num_generations
        if recall.narrowing is not None and recall.narrowing.negatives >= group:
            raise ValueError(
                f"recall.narrowing.negatives {recall.narrowing.negatives} needs more than rollouts.num_generations {group} "
                "candidates"
            )
        reader = self.loss.reads_one_reward or recall.reads_one_reward
        if "first_difference" in self.rewards and reader:
            raise ValueError(
                f"reward 'first_difference' values codes, and {reader} reads one reward per candidate; give one"
            )
        if recall.narrowing is not None and self.loss.loss_type == "tawin":
            raise ValueError(
                "loss_type 'tawin' weighs candidates by their ranks, and recall.narrowing leaves a few without their ranks: "
                "give one of them"
            )
        if recall.repair is not None and self.rollouts.add_ground_truth:
            raise ValueError(
                "recall.repair and rollouts.add_ground_truth both put targets into groups; leave add_ground_truth out"
            )
        if recall.constraint is not None and self.reference_sync_every is not None:
            raise ValueError(
                f"recall.constraint is held against the start, and the reference moves every {self.reference_sync_every} "
                "steps; set reference_sync_every: null"
            )
        if recall.sibling_share > 0 and self.loss.is_sequence_level:
            raise ValueError(
                f"recall.sibling_share gives every code an advantage of its own, loss.loss_type '{self.loss.loss_type}' has "
                "one ratio per candidate; take ratio_level: token, or another loss_type"
            )
        return self


class UserFeedbackConfig(FrozenConfig):
    """Policy gradient on what users did with what they were shown (OneRec-V2, arXiv 2508.20900, sections 3.1 and 3.2).

    Attributes:
        positive: Yes/no signal that gives an exposure advantage 1; the paper's is the derived signal ``watch_percentile``.
        negative: Signals that give -1, whatever else the user did; those that the data set does not have are passed over.
        rounds, steps_per_round: The guard looks after each round of so many updates.
        exposures_per_step: Exposures with an advantage other than 0 per update, beside as many next-token samples.
        weight: Of the policy gradient beside the next-token loss.
        rewards: What the guard measures as the reward; nothing is trained on it.
        logged_propensities: Take the column ``propensity`` of the log for the probability of the policy that acted; where it
            is not known, and without the option, the policy itself is taken (ratio 1).
        propensity_floor: Smaller propensities count as this much, so that no ratio exceeds its inverse.
    """

    positive: str = "watch_percentile"
    negative: tuple[str, ...] = ("dislike", "hate", "report")
    rounds: int = Field(default=3, ge=1)
    steps_per_round: int = Field(default=100, ge=1)
    exposures_per_step: int = Field(default=64, ge=1)
    weight: float = Field(default=0.1, gt=0)
    rewards: RewardWeights = Field(default={"rule": 1.0}, min_length=1)
    loss: PolicyGradientConfig = PolicyGradientConfig(loss_type="gbpo", beta=0.0)
    supervised: SupervisedConfig = SupervisedConfig()
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=1e-4)
    logged_propensities: bool = False
    propensity_floor: float = Field(default=1e-4, gt=0, le=1)

    @model_validator(mode="after")
    def _signals_say_one_thing(self) -> Self:
        if len({self.positive, *self.negative}) <= len(self.negative):
            raise ValueError(f"positive {self.positive} and negative {list(self.negative)} name a signal twice")
        return self

    @model_validator(mode="after")
    def _propensities_are_of_items(self) -> Self:
        if self.logged_propensities and not self.loss.is_sequence_level:
            raise ValueError(
                f"logged_propensities are probabilities of items, and loss_type '{self.loss.loss_type}' has one ratio per "
                "code here; set loss: {loss_type: gbpo, beta: 0.0, ratio_level: sequence}"
            )
        return self

    @model_validator(mode="after")
    def _needs_no_reference(self) -> Self:
        if self.loss.beta > 0:
            raise ValueError(
                f"loss.beta is {self.loss.beta:g}, and user feedback has no reference: the next-token loss beside it holds "
                "the policy; set it to 0"
            )
        return self


RuleAction = Literal["stop", "back_off", "record"]


class GuardConfig(FrozenConfig):
    """What is measured before and after every round, which falls count, and what a fall does.

    The rules themselves are one table, :data:`recsys.alignment.rounds.rules.RULES`; here are their settings. A figure has
    fallen when its mean fell by more than its margin *and* the upper end of its paired bootstrap interval lies below 0.

    Attributes:
        users: Validation rows that are measured.
        ks: Cut-offs of HR, NDCG and recall; those not below the size of the catalogue are left out. 1 is always measured,
            and nothing beyond the largest is decoded unless ``decode.beam_width`` asks for it.
        recall_at: Deepest cut-off whose recall must not fall; the smaller ones of ``ks`` above 1 must not fall either.
        false_stops: Chance that a run whose rounds changed nothing is stopped by a fall. It is shared by all rounds and all
            comparisons of the rules that act, half of it for the soft recall at ``recall_at``
            (:mod:`recsys.alignment.rounds.comparison`), so that looking often does not stop more.
        recall_margin, hr1_margin, coverage_margin: Falls that are worth acting on, as a share of the start's figure.
        reward_margin: The same for reward and held-out reward, in standard deviations of the start's figure over rows.
        recall_falls, hr1_falls, coverage_falls, reward_falls, held_out_falls: What a fall of that figure does: an action
            as in ``on_violation``; ``None``: what that says.
        max_kl: Largest divergence from the start, nats per item, over all items of a session and at each place of it;
            rewards are over-optimised by distance (Gao et al., arXiv 2210.10760). ``None``: any.
        max_kl_steered: The same under drawn objective weights, for a policy that is steered by them: its answers are meant
            to move with the weights.
        kl_exceeds: What a divergence beyond its bound does; ``None``: what ``on_violation`` says.
        on_violation: ``stop`` keeps the last good round and ends; ``back_off`` goes back to it and takes smaller steps;
            ``record`` only writes it down. A figure that is not finite stops in any case.
        num_generations: Candidates per request whose rewards are measured.
        exclude_seen: Measure without items of the history.
        confidence: Of the intervals that are shown.
        resamples: Of the bootstrap over users, at least; more are drawn where the corrected error asks for it.
        back_off_learning_rate: Factor on the learning rate at every back-off.
        back_off_weight: Factor on the weight of the alignment loss, beside which the next-token loss keeps its own.
        back_off_loss: How far a loss turns the setting of its own that makes it gentler, where it has one: ipo and the
            policy gradients raise ``beta``, listwise its ``temperature``, simpo lowers ``simpo_gamma``.
        max_back_offs: After so many the run ends.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"judge_falls": "held_out_falls", "back_off_beta": "back_off_loss"}
    users: int = Field(default=2000, ge=1)
    ks: tuple[int, ...] = (1, 5, 10, 50)
    recall_at: int = Field(default=50, ge=2)
    false_stops: float = Field(default=0.05, gt=0, lt=1)
    recall_margin: float = Field(default=0.01, ge=0)
    hr1_margin: float = Field(default=0.02, ge=0)
    coverage_margin: float = Field(default=0.1, ge=0)
    reward_margin: float = Field(default=0.02, ge=0)
    recall_falls: RuleAction | None = None
    hr1_falls: RuleAction | None = None
    coverage_falls: RuleAction | None = None
    reward_falls: RuleAction | None = None
    held_out_falls: RuleAction | None = None
    max_kl: float | None = Field(default=1.0, gt=0)
    max_kl_steered: float | None = Field(default=4.0, gt=0)
    kl_exceeds: RuleAction | None = None
    on_violation: RuleAction = "stop"
    num_generations: int = Field(default=16, ge=2)
    exclude_seen: bool = False
    confidence: float = Field(default=0.95, gt=0, lt=1)
    resamples: int = Field(default=1000, ge=1)
    back_off_learning_rate: float = Field(default=0.5, gt=0, le=1)
    back_off_weight: float = Field(default=0.5, gt=0, le=1)
    back_off_loss: float = Field(default=2.0, ge=1)
    max_back_offs: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _recall_is_measured(self) -> Self:
        if not self.ks or min(self.ks) < 1 or self.recall_at not in self.ks:
            raise ValueError(f"recall_at {self.recall_at} must be one of ks {self.ks}, which must be at least 1")
        return self

    @property
    def recall_depths(self) -> list[int]:
        """Cut-offs whose recall must not fall, ascending."""
        return sorted({k for k in self.ks if 1 < k <= self.recall_at})


class AlignConfig(FrozenConfig):
    """The `align` stage.

    Attributes:
        method: ``none`` leaves the stages `reward` and `align` out of a run.
        rsft: Read the better sessions alone; ``None``: all. With ``ipa.preference: none`` that is RSFT itself.
        checkpoint_every_steps: What a kill can cost, in steps.
        precision: Of the updates, as Lightning has it; the run's ``precision`` decides where it is not set.
    """

    method: Literal["none", "ipa", "rere", "feedback"] = "none"
    ipa: IpaConfig = IpaConfig()
    rere: RereConfig = RereConfig()
    feedback: UserFeedbackConfig = UserFeedbackConfig()
    guard: GuardConfig = GuardConfig()
    rsft: RsftConfig | None = None
    checkpoint_every_steps: int = Field(default=50, ge=1)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    @property
    def active(self) -> IpaConfig | RereConfig | UserFeedbackConfig:
        """Settings of the chosen method; ``ConfigError`` if that is ``none``."""
        if self.method == "none":
            raise ConfigError("align.method is 'none': there is nothing to align; set it to ipa, rere or feedback")
        if self.method == "feedback":
            return self.feedback
        return self.ipa if self.method == "ipa" else self.rere

    @property
    def needs_reward_model(self) -> bool:
        """Whether the chosen method's rewards name the learned one, or the train samples are chosen by it."""
        by_reward = self.rsft is not None and self.rsft.by == "reward"
        return self.method != "none" and (by_reward or "learned" in self.active.rewards)
