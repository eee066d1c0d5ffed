"""The guard: what it measures, and when it says no."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from recsys.alignment.align import align_policy
from recsys.alignment.config import AlignConfig, GuardConfig, ObjectiveConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rounds.comparison import errors, resamples_for
from recsys.alignment.rounds.guard import check_round
from recsys.alignment.rounds.measurement import Measurement
from recsys.alignment.rounds.policy_evaluator import PolicyEvaluator, _summary
from recsys.alignment.rounds.rules import RULES, table
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.model.config import ModelConfig
from recsys.training.fit import build_policy
from tests.toy.alignment import MODEL, QUIET, EvenTaste, next_item_ring, ring_policy, session_ring, weights_of
from tests.toy.dataset import ring_ids

GUARD = GuardConfig(ks=(1, 5, 10, 50), recall_at=5, num_generations=4, users=50)


def evaluator_of(prepared, policy, **options) -> PolicyEvaluator:
    reward_set = RewardSet(options.pop("rewards", {"learned": 1.0}), learned=EvenTaste())
    return PolicyEvaluator(
        prepared, ring_ids(), policy, options.pop("guard", GUARD), DecodeConfig(), reward_set, EvenTaste(-1.0), seed=0
    )


def test_the_start_is_the_origin_of_every_scale(tmp_path: Path) -> None:
    """Rewards are deviations from the start, so they begin at 0; the divergence from itself is 0; cut-offs stay below 12."""
    prepared = next_item_ring(tmp_path)
    policy = ring_policy(prepared)
    start = evaluator_of(prepared, policy).measure(policy, None, QUIET)
    assert start.values["reward"] == pytest.approx(0, abs=1e-6)
    assert start.values["held_out_reward"] == pytest.approx(0, abs=1e-6)
    assert start.values["kl_to_start"] == 0
    assert "beam_hr@10" in start.values
    assert "beam_hr@50" not in start.values
    for level, codes in enumerate((3, 4), start=1):
        assert 0 < start.values[f"entropy_level_{level}"] <= math.log(codes)
    assert start.rows["beam_recall@5"].mean() == pytest.approx(start.values["beam_recall@5"])
    assert {"served_ndcg@10", "coverage@10", "reward_best", "held_out_reward_even"} <= start.values.keys()


def test_entropy_and_divergence_by_hand(tmp_path: Path) -> None:
    """A policy whose code biases alone decide: softmax (ln 2, 0, 0) at level 1 is (1/2, 1/4, 1/4), entropy 1.5 ln 2; level 2
    is even, entropy ln 4. Against the even start, KL = ln 3 - 1.5 ln 2 at level 1 and 0 at level 2."""
    prepared = next_item_ring(tmp_path)
    policy = ring_policy(prepared)
    with torch.no_grad():
        policy.codes.weight.zero_()
        policy.decoder.code_bias.zero_()
    evaluator = evaluator_of(prepared, policy)
    with torch.no_grad():
        policy.decoder.code_bias[0] = math.log(2)
    values = evaluator.measure(policy, None, QUIET).values
    assert values["entropy_level_1"] == pytest.approx(1.5 * math.log(2), abs=1e-5)
    assert values["entropy_level_2"] == pytest.approx(math.log(4), abs=1e-5)
    assert values["kl_to_start"] == pytest.approx(math.log(3) - 1.5 * math.log(2), abs=1e-5)


def test_rewards_are_measured_in_deviations_of_the_start(tmp_path: Path) -> None:
    """The start generates even items with share p and deviation sqrt(p (1 - p)); all-even groups are (1 - p) / that."""
    prepared = session_ring(tmp_path)
    policy = ring_policy(prepared)
    evaluator = evaluator_of(prepared, policy, rewards={"learned": 2.0, "rule": 1.0})
    start = evaluator.measure(policy, None, QUIET)
    p, deviation = start.values["reward_even"], start.values["reward_even_deviation"]
    with torch.no_grad():  # level 2's codes 0 and 2 are the even items
        policy.decoder.code_bias[3 + 1] -= 50
        policy.decoder.code_bias[3 + 3] -= 50
    now = evaluator.measure(policy, start, QUIET)
    assert now.values["reward_even"] == pytest.approx(1.0)
    assert now.values["held_out_reward"] == pytest.approx(-(1 - p) / deviation, rel=1e-5)
    rule = now.values["reward"] - 2 * (1 - p) / deviation
    assert 0 <= rule <= 1


class Dislikes(EvenTaste):
    """Even items are disliked and reported: both towers are their share, and lower the reward."""

    towers, weights = ("dislike", "report"), -torch.ones(2)

    def values(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        return super().values(histories, items_BGM).expand(-1, -1, 2)


def test_a_wish_that_lets_dislikes_count_wants_fewer_of_them(tmp_path: Path) -> None:
    """Towers of weight -1: whatever a request weighs them with, the level falls where its items are all that are shown."""
    prepared = session_ring(tmp_path)
    policy = build_policy(prepared, ring_ids(), ModelConfig(**MODEL, num_objectives=2), None).eval()
    evaluator = PolicyEvaluator(
        prepared,
        ring_ids(),
        policy,
        GUARD,
        DecodeConfig(),
        RewardSet({"learned": 1.0}, learned=Dislikes()),
        Dislikes(),
        seed=0,
        objective=ObjectiveConfig(diversity=False),
    )
    start = evaluator.measure(policy, None, QUIET)
    with torch.no_grad():  # level 2's codes 0 and 2 are the even items
        policy.decoder.code_bias[3 + 1] -= 50
        policy.decoder.code_bias[3 + 3] -= 50
    now = evaluator.measure(policy, start, QUIET)
    names = [name for name in now.values if name.endswith("reward_steered")]
    assert len(names) == 2
    for name in [*names, "reward", "held_out_reward"]:
        assert now.values[name] < -0.5


ROWS = 200
EVERYONE = np.arange(ROWS)


def fake(hr1: float, recall: float, reward: float, held_out: float, **values: float) -> Measurement:
    """A policy whose figures have these means; the same noise in each, so that differences are exact."""
    noise = np.random.default_rng(0).normal(0, 0.05, ROWS)
    columns = {"beam_hr@1": hr1, "beam_recall@5": recall, "reward": reward, "held_out_reward": held_out}
    rows = {name: mean + noise - noise.mean() for name, mean in columns.items()}
    return Measurement({**columns, **values}, rows)


START = fake(0.2, 0.5, 0.0, 0.0)


@pytest.mark.parametrize(
    ("after", "broken"),
    [
        (fake(0.3, 0.6, 1.0, 1.0), []),  # everything better
        (fake(0.3, 0.4, 0.0, 0.0), ["beam_recall@5 fell by 0.1000"]),  # the alignment tax
        (fake(0.1, 0.4, 0.0, 0.0), ["beam_recall@5 fell by 0.1000", "beam_hr@1 fell by 0.1000"]),  # nothing bought
        (fake(0.2, 0.5, 1.0, -1.0), ["held_out_reward fell by 1.0000"]),  # over-optimisation
        (fake(0.2, 0.5, -1.0, 0.0), ["reward fell by 1.0000"]),
        (fake(0.3, 0.4, 1.0, -1.0), ["held_out_reward fell by", "beam_recall@5 fell by"]),
        (
            fake(0.3, 0.6, 1.0, 1.0, **{"kl_to_start": 0.4, "kl_to_start_item_3": 1.25}),
            ["kl_to_start_item_3 is 1.2500"],
        ),
        (
            fake(0.3, 0.6, 1.0, 1.0, **{"kl_to_start": 0.4, "kl_to_start_steered": 4.5}),
            ["kl_to_start_steered is 4.5000"],
        ),
        (fake(0.3, 0.6, 1.0, 1.0, **{"kl_to_start": 0.9, "kl_to_start_steered": 3.9}), []),
    ],
)
def test_rules_of_the_guard(after: Measurement, broken: list[str]) -> None:
    result = check_round(START, after, EVERYONE, GUARD, seed=0)
    assert result.decision == ("stop" if broken else "keep")
    assert len(result.broken) == len(broken)
    for said, expected in zip(result.broken, broken, strict=True):
        assert said.startswith(expected)


def test_the_reward_may_not_fall_from_where_it_has_been() -> None:
    """Still far above the start, but below the round kept last."""
    kept, now = fake(0.2, 0.5, 1.0, 1.0), fake(0.2, 0.5, 1.5, 0.8)
    assert check_round(START, now, EVERYONE, GUARD, 0).broken == ()
    assert check_round(START, now, EVERYONE, GUARD, 0, kept).broken == (
        "held_out_reward fell by 0.2000 [-0.2000, -0.2000] since the last kept round",
    )
    worse = check_round(START, fake(0.2, 0.5, 1.5, -0.2), EVERYONE, GUARD, 0, kept)
    assert worse.broken == ("held_out_reward fell by 0.2000 [-0.2000, -0.2000]",)  # said once, against the start
    recorded = GUARD.model_copy(update={"held_out_falls": "record"})
    assert check_round(START, now, EVERYONE, recorded, 0, kept).decision == "keep"


def test_a_margin_by_hand() -> None:
    """Recall starts at .5 and may lose 1 % of it, .005; the reward's deviation over rows is that of the noise."""
    small, large = fake(0.2, 0.496, 0.0, 0.0), fake(0.2, 0.494, 0.0, 0.0)
    assert check_round(START, small, EVERYONE, GUARD, 0).broken == ()
    assert check_round(START, large, EVERYONE, GUARD, 0).broken == ("beam_recall@5 fell by 0.0060 [-0.0060, -0.0060]",)
    strict = GUARD.model_copy(update={"recall_margin": 0.0})
    assert check_round(START, small, EVERYONE, strict, 0).broken
    deviation = START.rows["reward"].std()
    for fall, broken in ((0.019, 0), (0.021, 1)):
        assert len(check_round(START, fake(0.2, 0.5, -fall * deviation, 0.0), EVERYONE, GUARD, 0).broken) == broken


def test_the_error_is_shared_by_rounds_and_by_rules_that_act() -> None:
    """HR@1, recall@5 against the start, reward and held-out reward against start and last round: 6 comparisons. The soft
    recall at the deepest cut-off beside them takes half of all; one at another depth is one of many."""
    assert [*errors(GUARD, START.rows, looks=1).values()] == pytest.approx([0.05 / 6] * 6)
    assert errors(GUARD, START.rows, looks=5)["reward", "kept"] == pytest.approx(0.05 / 30)
    fewer = GUARD.model_copy(update={"reward_falls": "record", "hr1_falls": "record", "false_stops": 0.3})
    assert errors(fewer, START.rows, looks=2) == {
        ("beam_recall@5", "start"): pytest.approx(0.05),
        ("held_out_reward", "start"): pytest.approx(0.05),
        ("held_out_reward", "kept"): pytest.approx(0.05),
    }
    with_soft = errors(GUARD, [*START.rows, "beam_soft_recall@5"], looks=2)
    assert with_soft.pop(("beam_soft_recall@5", "start")) == pytest.approx(0.0125)
    assert [*with_soft.values()] == pytest.approx([0.0125 / 6] * 6)
    assert errors(GUARD, ["beam_soft_recall@5"], looks=2) == {("beam_soft_recall@5", "start"): pytest.approx(0.025)}


def soft(recall: float, soft_recall: float, noise: float = 0.0) -> Measurement:
    """A round whose recall's rows differ by so much noise from the start's, and whose soft recall's do not."""
    spread = np.where(np.arange(ROWS) % 2, noise, -noise)
    rows = {"beam_recall@5": recall + spread, "beam_soft_recall@5": np.full(ROWS, soft_recall)}
    return Measurement({name: float(values.mean()) for name, values in rows.items()}, rows)


def test_the_soft_recall_finds_what_the_recall_is_too_noisy_for() -> None:
    """A fall of .01 in noise of deviation 1 over 200 rows is .14 standard errors; the soft recall has none. Where the recall
    itself rose beyond its interval, the soft one is silent; where it rose within it, it is not."""
    start = soft(0.5, 0.5)
    assert check_round(start, soft(0.49, 0.49, noise=1.0), EVERYONE, GUARD, 0).broken == (
        "beam_soft_recall@5 fell by 0.0100 [-0.0100, -0.0100]",
    )
    assert check_round(start, soft(0.51, 0.49, noise=1.0), EVERYONE, GUARD, 0).decision == "stop"
    assert check_round(start, soft(0.51, 0.49), EVERYONE, GUARD, 0).broken == ()
    assert check_round(start, soft(0.49, 0.496, noise=1.0), EVERYONE, GUARD, 0).broken == ()  # less than 1 % of .5
    recorded = GUARD.model_copy(update={"recall_falls": "record"})
    assert check_round(start, soft(0.49, 0.49, noise=1.0), EVERYONE, recorded, 0).decision == "keep"


def test_a_start_of_another_version_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"the start has no beam_soft_recall@5; .* run `align` again"):
        check_round(fake(0.2, 0.5, 0.0, 0.0), soft(0.5, 0.5), EVERYONE, GUARD, 0)


def test_many_looks_ask_for_more_certainty() -> None:
    """Differences of mean -.1 and deviation 1 over 400 users: 2 standard errors, enough for one look and not for twenty."""
    noise = np.random.default_rng(1).normal(size=400)
    noise = (noise - noise.mean()) / noise.std()
    start = Measurement({}, {"beam_hr@1": np.full(400, 0.5)})
    now = Measurement({}, {"beam_hr@1": 0.4 + noise})
    assert check_round(start, now, np.arange(400), GUARD, 0, looks=1).broken
    assert check_round(start, now, np.arange(400), GUARD, 0, looks=20).broken == ()


def test_users_are_drawn_with_all_their_rows() -> None:
    """10 users of 40 equal rows each: as 400 independent rows the fall is certain, as 10 users it is not."""
    per_user = np.array([-1.0, -1.0, -1.0, -1.0, -1.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    users = np.repeat(np.arange(10), 40)
    start = Measurement({}, {"beam_hr@1": np.full(400, 0.5)})
    now = Measurement({}, {"beam_hr@1": 0.5 + np.repeat(per_user, 40)})
    assert check_round(start, now, np.arange(400), GUARD, 0).broken
    assert check_round(start, now, users, GUARD, 0).broken == ()


def test_a_fall_inside_its_interval_breaks_nothing() -> None:
    """Paired differences of mean -0.01 and deviation 1 over 50 users: the interval holds 0."""
    generator = np.random.default_rng(1)
    before = {"beam_hr@1": np.zeros(50), "beam_recall@5": np.zeros(50), "reward": np.zeros(50)}
    noise = generator.normal(size=50)
    after = {**before, "beam_hr@1": np.ones(50), "beam_recall@5": noise - noise.mean() - 0.01}
    assert check_round(Measurement({}, before), Measurement({}, after), np.arange(50), GUARD, 0).broken == ()
    certain = {**after, "beam_recall@5": np.full(50, -0.01)}
    assert check_round(Measurement({}, before), Measurement({}, certain), np.arange(50), GUARD, 0).broken


def test_every_rule_has_an_action_of_its_own() -> None:
    worse = fake(0.1, 0.4, -1.0, -1.0, kl_to_start=2.0)
    assert len(check_round(START, worse, EVERYONE, GUARD, 0).broken) == 5
    falls = ("recall_falls", "hr1_falls", "reward_falls", "held_out_falls", "kl_exceeds")
    recorded = GUARD.model_copy(update=dict.fromkeys(falls, "record"))
    noted = check_round(START, worse, EVERYONE, recorded, 0)
    assert (noted.decision, len(noted.broken)) == ("keep", 5)
    for fall in falls:
        assert (
            check_round(START, worse, EVERYONE, recorded.model_copy(update={fall: "back_off"}), 0).decision
            == "back_off"
        )
        inherited = recorded.model_copy(update={fall: None, "on_violation": "back_off"})
        assert check_round(START, worse, EVERYONE, inherited, 0).decision == "back_off"
    mixed = recorded.model_copy(update={"recall_falls": "back_off", "kl_exceeds": "stop"})
    assert check_round(START, worse, EVERYONE, mixed, 0).decision == "stop"
    unbound = GUARD.model_copy(update={"max_kl": None})
    assert check_round(START, fake(0.2, 0.5, 0.0, 0.0, kl_to_start=9.0), EVERYONE, unbound, 0).broken == ()


def test_the_table_names_every_rule_and_setting() -> None:
    lines = table().splitlines()
    assert len(lines) == 2 + len(RULES) == 11
    for setting in ("recall_falls", "hr1_falls", "coverage_falls", "reward_falls", "held_out_falls", "kl_exceeds"):
        assert any(f"`{setting}`" in line for line in lines)
    assert all(line.count("|") == 5 for line in lines)


def test_measurements_survive_the_disk(tmp_path: Path) -> None:
    measured = Measurement({"beam_hr@1": 0.25}, {"beam_hr@1": np.array([0.0, 0.5])})
    measured.save(tmp_path)
    again = Measurement.load(tmp_path)
    assert again.values == measured.values
    np.testing.assert_array_equal(again.rows["beam_hr@1"], measured.rows["beam_hr@1"])


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="recall_at 7 must be one of"):
        GuardConfig(recall_at=7)
    prepared = next_item_ring(tmp_path)
    with pytest.raises(ConfigError, match="recall_at is 50, the catalogue holds 12 items"):
        evaluator_of(prepared, ring_policy(prepared), guard=GuardConfig())


def test_a_guided_search_is_not_what_the_policy_is_measured_by(tmp_path: Path) -> None:
    """The soft recall holds log-probabilities of targets against those of a list; guided scores lie far below them."""
    prepared = next_item_ring(tmp_path)
    policy, found = ring_policy(prepared), []
    for guidance in (0.0, 2.0):
        evaluator = PolicyEvaluator(
            prepared, ring_ids(), policy, GUARD, DecodeConfig(guidance=guidance), RewardSet({"rule": 1.0}), None, seed=0
        )
        found.append(evaluator.measure(policy, None, QUIET))
    assert found[0].values["beam_soft_recall@5"] < 0.9
    assert found[0].values == found[1].values


def test_more_resamples_than_are_drawn_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """Two figures, one round, an error of 1e-7 / 2 each: 5 draws beyond it are one of 1e8."""
    figures = ["beam_hr@1", "coverage@10"]
    with pytest.raises(ConfigError, match=r"false_stops is 1e-07, shared by 1 rounds .* ask for 100,000,000 resamples"):
        resamples_for(GuardConfig(false_stops=1e-7), figures, 1)
    assert resamples_for(GuardConfig(false_stops=1e-5), figures, 1) == 1_000_000
    assert resamples_for(GuardConfig(resamples=5000), figures, 1) == 5000
    prepared = next_item_ring(tmp_path / "data")
    policy = ring_policy(prepared)
    before = weights_of(policy)
    config = AlignConfig(
        method="ipa",
        ipa={"preference": "none", "rewards": {"rule": 1.0}, "samples_per_round": 32},
        guard=GUARD.model_copy(update={"false_stops": 1e-9}),
    )
    inputs = AlignmentInputs(prepared, ring_ids(), policy, config, DecodeConfig(), 5)
    with pytest.raises(ConfigError, match="raise it, or take fewer rounds"):
        align_policy(inputs, tmp_path / "run", QUIET)
    assert all(torch.equal(before[name], now) for name, now in policy.state_dict().items())


def test_the_best_of_a_row_is_one_that_exists() -> None:
    """Rewards -3 and -1 and a place without a candidate, which holds 0; and a row without any: mean -2, best -1, and 0."""
    level, exists = np.array([[-3.0, -1.0, 0.0], [0.0, 0.0, 0.0]]), np.array([[True, True, False], [False] * 3])
    values, rows = _summary("reward", level, exists, {})
    assert rows["reward"].tolist() == [-2.0, 0.0]
    assert values == {"reward": -1.0, "reward_best": -0.5}
