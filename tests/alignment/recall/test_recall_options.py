"""Options against the alignment tax: each by hand, against an independent form, inside a step, and refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from recsys.alignment.config import RereConfig, RolloutConfig
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.losses.policy_gradient import advantages_of
from recsys.alignment.recall.config import (
    LambdaLossConfig,
    NarrowingConfig,
    PrefixAnchorConfig,
    RecallConfig,
    RecallConstraintConfig,
    RepairConfig,
)
from recsys.alignment.recall.constraint import RecallConstraint
from recsys.alignment.recall.lambda_loss import lambda_loss
from recsys.alignment.recall.prefix_anchor import prefix_anchor
from recsys.alignment.recall.sibling_advantages import sibling_advantages
from recsys.alignment.rere import RankingRewardLearning, _advantages, _Signal
from recsys.alignment.rewards.functions import RolloutGroup, target_share
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.narrowing import chosen, narrow, repaired
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.learner import Learner
from recsys.contracts.errors import ConfigError, DataError
from tests.alignment.rollouts.test_lost_targets import method_of, step
from tests.toy.alignment import ring_policy, session_ring, weights_of
from tests.toy.dataset import ring_ids

WIDE = RolloutConfig(num_generations=6)


def slow_siblings(rewards: list[float], codes: list[tuple[int, ...]], eps: float) -> list[list[float]]:
    """The tree, prefix by prefix: standard score of a prefix's mean reward among its siblings, shared by its candidates."""
    found = [[0.0] * len(codes[0]) for _ in codes]
    for level in range(len(codes[0])):
        for parent in {code[:level] for code in codes}:
            nodes: dict[tuple[int, ...], list[int]] = {}
            for place, code in enumerate(codes):
                if code[:level] == parent:
                    nodes.setdefault(code[: level + 1], []).append(place)
            values = {node: sum(rewards[p] for p in places) / len(places) for node, places in nodes.items()}
            mean = sum(values.values()) / len(values)
            variance = sum((value - mean) ** 2 for value in values.values()) / max(len(values) - 1, 1)
            for node, places in nodes.items():
                for place in places:
                    if max(values.values()) - min(values.values()) > 1e-6:
                        found[place][level] = (values[node] - mean) / (math.sqrt(variance) + eps) / len(places)
    return found


def test_sibling_advantages_are_those_of_the_tree() -> None:
    codes = [(0, 0, 1), (0, 0, 2), (0, 1, 0), (1, 2, 2), (1, 2, 0), (2, 0, 0)]
    rewards = [1.0, -0.2, -0.1, -0.3, 0.0, -0.5]
    got = sibling_advantages(torch.tensor([rewards]), torch.tensor([codes]), torch.ones(1, 6, dtype=torch.bool))
    torch.testing.assert_close(got[0], torch.tensor(slow_siblings(rewards, codes, 1e-4)), atol=1e-5, rtol=1e-5)


def test_siblings_add_up_to_nothing_and_absent_candidates_change_nothing() -> None:
    codes = torch.tensor([[[0, 0], [0, 1], [1, 0], [7, 7]]])
    exists = torch.tensor([[True, True, True, False]])
    rewards = torch.tensor([[1.0, 0.0, 0.5, 99.0]])
    got = sibling_advantages(rewards, codes, exists)
    torch.testing.assert_close(got.sum(1), torch.zeros(1, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(got[:, :3], sibling_advantages(rewards[:, :3], codes[:, :3], exists[:, :3]))
    assert (got[:, 3] == 0).all()


def test_equal_rewards_give_siblings_no_advantage() -> None:
    codes = torch.tensor([[[0, 0], [0, 1], [1, 0]]])
    assert (sibling_advantages(torch.full((1, 3), 0.1), codes, torch.ones(1, 3, dtype=torch.bool)) == 0).all()


def test_siblings_refuse_rewards_of_codes() -> None:
    with pytest.raises(DataError, match="one per candidate"):
        sibling_advantages(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2).long(), torch.ones(1, 3, dtype=torch.bool))


def group_by_hand(scores: list[float], items: list[int], target: int) -> RolloutGroup:
    item = torch.tensor(items)[None, :, None]
    codes = torch.stack([item // 4, item % 4], dim=-1)
    asked = torch.tensor([[target]])
    return RolloutGroup(
        item, asked, codes, torch.stack([asked // 4, asked % 4], dim=-1), torch.tensor([scores]), None, None
    )


def test_a_narrow_group_is_the_positive_and_the_most_probable_of_lower_reward() -> None:
    """Scores -1 -2 -3 -4; the third is the target: the first two are its hardest negatives, the fourth is left out."""
    group = group_by_hand([-1.0, -2.0, -3.0, -4.0], [5, 9, 2, 7], target=2)
    small, rewards = narrow(group, torch.tensor([[-0.3, -0.2, 1.0, -0.1]]), 2)
    assert small.items[0, :, 0].tolist() == [2, 5, 9]
    assert rewards[0].tolist() == pytest.approx([1.0, -0.3, -0.2])
    assert small.codes[0, 0, 0].tolist() == [0, 2]
    assert small.scores[0].tolist() == [-3.0, -1.0, -2.0]


def test_a_narrow_group_has_no_negative_of_equal_reward() -> None:
    group = group_by_hand([-1.0, -2.0, -3.0], [5, 9, -1], target=5)
    small, _ = narrow(group, torch.tensor([[1.0, 1.0, 0.0]]), 2)
    assert small.items[0, :, 0].tolist() == [5, -1, -1]


def test_of_equal_positives_the_most_probable_is_chosen() -> None:
    assert chosen(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[-3.0, -1.0, -2.0]]), 1).tolist() == [[1, 2]]


def test_narrowing_refuses_rewards_of_codes() -> None:
    with pytest.raises(ConfigError, match="first_difference"):
        narrow(group_by_hand([-1.0], [5], 5), torch.zeros(1, 1, 2), 1)


def test_a_repaired_group_gets_its_target_in_the_last_place(tmp_path: Path) -> None:
    method = method_of(tmp_path, rollouts=RolloutConfig(num_generations=3))
    policy, requests = method.learner.policy, method.stream.requests(method.stream.rows(0))
    group = method.sampler.roll_out(policy, requests, torch.Generator())
    whole, repaired_B = repaired(policy, group, None)
    lacked = ~(target_share(group) > 0).any(1)
    assert repaired_B.any()
    assert not repaired_B.all()
    assert torch.equal(repaired_B, lacked)
    assert torch.equal(whole.items[lacked, -1], group.target[lacked])
    assert torch.equal(whole.codes[lacked, -1], group.target_codes[lacked])
    assert torch.equal(whole.items[~lacked], group.items[~lacked])
    own = candidate_log_probs(policy, group.history, whole.items[:, -1:]).sessions[:, 0]
    torch.testing.assert_close(whole.scores[lacked, -1], own[lacked], atol=1e-5, rtol=1e-5)
    near, near_B = repaired(policy, group, 0.5)
    assert torch.equal(near_B, lacked & (own_score(policy, group) >= group.scores.amin(1) - 0.5))
    assert torch.equal(near.items[~near_B], group.items[~near_B])


def test_groups_that_all_hold_their_target_need_no_repair(tmp_path: Path) -> None:
    """A beam as wide as the catalogue misses nothing: no target is left to be scored."""
    method = method_of(tmp_path, rollouts=RolloutConfig(num_generations=12))
    group = method.sampler.roll_out(
        method.learner.policy, method.stream.requests(method.stream.rows(0)), torch.Generator()
    )
    whole, repaired_B = repaired(method.learner.policy, group, 2.0)
    assert not repaired_B.any()
    assert torch.equal(whole.items, group.items)


def own_score(policy, group: RolloutGroup) -> torch.Tensor:
    return candidate_log_probs(policy, group.history, group.target[:, None]).sessions[:, 0]


def test_the_anchor_weighs_prefixes_by_their_loss() -> None:
    """Prefix losses 1, 2, 4 (codes 1, 3, 8); with eta 1 weights are proportional to 1 e, 2 e^2, 4 e^4."""
    loss = prefix_anchor(torch.tensor([[1.0, 3.0, 8.0]]), eta=1.0)
    weights = [1 * math.e, 2 * math.e**2, 4 * math.e**4]
    assert loss.item() == pytest.approx(sum(w * v for w, v in zip(weights, (1, 2, 4), strict=True)) / sum(weights))


def test_the_anchor_pulls_early_codes_up_most_and_its_weights_have_no_gradient() -> None:
    losses = torch.full((5, 3), 2.0, requires_grad=True)
    prefix_anchor(losses).backward()
    assert losses.grad is not None
    first, second, third = losses.grad.sum(0).tolist()
    assert (first, second, third) == pytest.approx((11 / 18, 5 / 18, 2 / 18))


def test_a_large_eta_does_not_overflow() -> None:
    assert prefix_anchor(torch.tensor([[90.0, 120.0]]), eta=50.0).item() == pytest.approx(105.0)


def test_an_anchor_without_targets_is_refused() -> None:
    with pytest.raises(DataError, match="no target"):
        prefix_anchor(torch.empty(0, 3))


def test_the_dual_variable_rises_while_the_constraint_is_broken_and_falls_to_nothing() -> None:
    constraint = RecallConstraint(RecallConstraintConfig(allowed=0.1, rate=1.0, largest=0.5))
    start = torch.zeros(4)
    log_probs = torch.full((4,), -0.4, requires_grad=True)
    first, lost = constraint.loss(log_probs, start)
    assert (first.item(), lost, constraint.dual) == pytest.approx((0.0, 0.4, 0.3))
    second, _ = constraint.loss(log_probs, start)
    second.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([-0.3 / 4] * 4)
    assert constraint.dual == 0.5  # the bound
    for _ in range(6):
        constraint.loss(start + 1.0, start)  # targets gained: nothing is lost
    assert constraint.dual == 0.0


def test_the_constraint_refuses_other_targets() -> None:
    with pytest.raises(DataError, match="as many"):
        RecallConstraint(RecallConstraintConfig()).loss(torch.zeros(3), torch.zeros(2))


def slow_lambda(scores: list[float], gains: list[float], sigma: float) -> float:
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    discount = {place: 1 / math.log2(rank + 2) for rank, place in enumerate(order)}
    ideal = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(sorted(gains, reverse=True)))
    total = 0.0
    for i, better in enumerate(gains):
        for j, worse in enumerate(gains):
            if better > worse:
                swap = (better - worse) * abs(discount[i] - discount[j]) / ideal
                total += swap * math.log1p(math.exp(-sigma * (scores[i] - scores[j])))
    return total


def test_lambda_loss_is_the_sum_over_pairs() -> None:
    scores, rewards = [-1.0, -3.0, -2.0, -2.5], [-0.3, 1.0, -0.3, 0.2]
    got = lambda_loss(
        torch.tensor([[*scores, 9.0]]), torch.tensor([[*rewards, 5.0]]), torch.tensor([[True] * 4 + [False]]), 0.7
    )
    assert got.item() == pytest.approx(slow_lambda(scores, [r + 0.3 for r in rewards], 0.7), rel=1e-5)


def test_lambda_loss_of_equal_rewards_is_nothing_and_has_a_gradient_of_nothing() -> None:
    scores = torch.randn(2, 4, requires_grad=True)
    loss = lambda_loss(scores, torch.full((2, 4), 0.25), torch.ones(2, 4, dtype=torch.bool))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert scores.grad is not None
    assert (scores.grad == 0).all()


def test_lambda_loss_refuses_rewards_of_codes() -> None:
    with pytest.raises(DataError, match="a reward per candidate"):
        lambda_loss(torch.zeros(1, 3), torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("recall", "figure"),
    [
        (RecallConfig(sibling_share=0.5), "kl"),
        (RecallConfig(narrowing=NarrowingConfig(negatives=2)), "kl"),
        (RecallConfig(narrowing=NarrowingConfig(), repair=RepairConfig(weight=0.5, reach=None)), "kl"),
        (RecallConfig(anchor=PrefixAnchorConfig()), "prefix_anchor"),
        (RecallConfig(constraint=RecallConstraintConfig()), "target_log_prob_lost"),
        (RecallConfig(policy_gradient_weight=0.0, lambda_loss=LambdaLossConfig()), "lambda_loss"),
    ],
)
def test_every_option_changes_the_update_of_a_step_and_is_seen_in_its_curve(
    tmp_path: Path, recall: RecallConfig, figure: str
) -> None:
    weights = []
    for own in (recall, RecallConfig()):
        method = method_of(tmp_path, rollouts=WIDE, recall=own, reference_sync_every=None)
        curve = step(method, tmp_path)
        weights.append(weights_of(method.learner.policy))
        if own is recall:
            assert figure in {name for _, name, _ in curve.points}
            if recall.constraint is not None:  # at the start nothing is lost; the second step pays
                assert method.constraint is not None
                method.constraint.dual = 3.0
                step(method, tmp_path)
                weights[0] = weights_of(method.learner.policy)
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_step_without_options_is_that_of_before(tmp_path: Path) -> None:
    """Zero weights of everything new leave the published update, computed here once more from its parts."""
    method = method_of(tmp_path, loss=PolicyGradientConfig(beta=0.0), rollouts=WIDE, rewards={"rule": 1.0})
    assert method.reference is None
    assert method.constraint is None
    assert method._targets(method.stream.rows(0)) is None


def test_the_dual_variable_is_carried_over_a_kill(tmp_path: Path) -> None:
    changes = {"recall": RecallConfig(constraint=RecallConstraintConfig(allowed=0.0)), "reference_sync_every": None}
    method = method_of(tmp_path, **changes)
    assert method.constraint is not None
    method.constraint.dual = 1.25
    other = method_of(tmp_path, **changes)
    other.begin(method.state_dict())
    assert other.constraint is not None
    assert other.constraint.dual == 1.25
    assert other.reference is not None
    other.begin(None)
    assert other.constraint.dual == 0.0


def test_repaired_groups_weigh_what_they_were_given(tmp_path: Path) -> None:
    """Half weight: 13 repaired of 24 count 6.5 in the share of groups that the loss is divided by."""
    method = method_of(tmp_path, rollouts=WIDE, recall=RecallConfig(repair=RepairConfig(weight=0.5, reach=None)))
    seen = []
    kept = method._updates
    method._updates = lambda work, rows, signal, **rest: (seen.append(signal), kept(work, rows, signal, **rest))[1]  # type: ignore[method-assign]
    curve = step(method, tmp_path)
    count = curve.counts["groups_repaired"]
    assert 0 < count < 24
    assert seen[0].weights_B.sum().item() == pytest.approx(24 - count / 2)
    assert seen[0].share == pytest.approx((24 - count / 2) / 24)
    assert not method.drops_early


def test_sessions_have_no_siblings(tmp_path: Path) -> None:
    prepared = session_ring(tmp_path)
    config = RereConfig(recall=RecallConfig(sibling_share=0.5), rollouts=RolloutConfig(num_generations=4))
    policy = ring_policy(prepared)
    with pytest.raises(ConfigError, match="no tree of single items"):
        RankingRewardLearning(
            config,
            Learner(policy, config.optimiser, 10),
            RequestStream(prepared, 6, 4, seed=0),
            RolloutSampler(ring_ids(), config.rollouts),
            RewardSet(config.rewards),
            seed=0,
        )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"recall": {"sibling_share": 0.5, "narrowing": {}}}, "give one of them"),
        ({"recall": {"policy_gradient_weight": 0}}, "would teach nothing"),
        ({"recall": {"narrowing": {"negatives": 16}}}, "needs more than rollouts.num_generations"),
        ({"recall": {"repair": {}}, "rollouts": {"add_ground_truth": True}}, "leave add_ground_truth out"),
        ({"recall": {"constraint": {}}}, "set reference_sync_every: null"),
        ({"recall": {"sibling_share": 1}, "loss": {"loss_type": "gspo"}}, "one ratio per candidate"),
        ({"recall": {"repair": {"weight": 0}}}, "greater than 0"),
        ({"recall": {"anchor": {"weight": -1}}}, "greater than 0"),
        ({"recall": {"siblings": 1}}, "Extra inputs"),
    ],
)
def test_refusals(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RereConfig.model_validate(values)


def test_a_node_counts_once_in_the_blend_of_both_advantages() -> None:
    """Two levels, so siblings count twice before the mean over codes halves them; half of each kind."""
    group = group_by_hand([-1.0, -2.0, -3.0], [0, 1, 4], target=0)
    rewards = torch.tensor([[1.0, 0.0, 0.0]])
    signal = _Signal(group, rewards, torch.ones(1), 1.0)
    config = PolicyGradientConfig(beta=0.0)
    own = advantages_of(config, rewards, group.valid)
    siblings = sibling_advantages(rewards, group.codes[:, :, 0], group.valid)
    torch.testing.assert_close(_advantages(config, signal, 0.5), 0.5 * own[..., None] + siblings)
    torch.testing.assert_close(_advantages(config, signal, 0.0), own)
