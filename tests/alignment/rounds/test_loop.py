"""Who is who in a run: policy, start, snapshot, reference, the round kept last.

Decisions are scripted: keep, back off, keep, stop. So round 3 goes on from round 1 with smaller steps, round 4 from round 3,
and round 3 is the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recsys.alignment import ipa as ipa_module
from recsys.alignment import rere as rere_module
from recsys.alignment.align import align_policy
from recsys.alignment.config import (
    AlignConfig,
    GuardConfig,
    IpaConfig,
    OptimiserConfig,
    RereConfig,
    RolloutConfig,
    SupervisedConfig,
)
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.losses.config import PolicyGradientConfig, PreferenceLossConfig
from recsys.alignment.losses.preference_pairs import PreferencePairs
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rounds import loop as loop_module
from recsys.alignment.rounds.guard import GuardResult
from recsys.alignment.rounds.learner import Learner
from recsys.alignment.rounds.measurement import Measurement
from recsys.alignment.rounds.policy_evaluator import PolicyEvaluator
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import open_artifact
from recsys.data.batch import collate_histories
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from tests.toy.alignment import QUIET, EvenTaste, next_item_ring, ring_policy, weights_of
from tests.toy.dataset import ring_ids

DECISIONS = ("keep", "back_off", "keep", "stop")
STEADY = OptimiserConfig(learning_rate=3e-3, warmup_share=0.0, final_learning_rate_share=1.0)
GUARD = GuardConfig(
    ks=(1, 5),
    recall_at=5,
    num_generations=4,
    users=20,
    on_violation="back_off",
    back_off_learning_rate=0.5,
    back_off_weight=0.25,
    back_off_loss=3.0,
)
IPA = AlignConfig(
    method="ipa",
    ipa=IpaConfig(
        rounds=4,
        samples_per_round=64,
        batch_size=32,
        preference_share=1.0,
        rollouts=RolloutConfig(num_generations=6),
        loss=PreferenceLossConfig(loss_type="ipo", beta=0.1),
        supervised=SupervisedConfig(weight=0.1, dense_weight=0.0),
        optimiser=STEADY,
    ),
    guard=GUARD,
)
RERE = AlignConfig(
    method="rere",
    rere=RereConfig(
        rounds=4,
        steps_per_round=3,
        requests_per_step=16,
        reference_sync_every=None,
        rollouts=RolloutConfig(num_generations=6),
        loss=PolicyGradientConfig(beta=0.05),
        optimiser=STEADY,
    ),
    guard=GUARD,
)


@dataclass
class Run:
    """A finished run and what was seen on the way.

    Attributes:
        asked: Arguments of the guard, round by round.
        losses: Settings of the loss and its weight in every update.
    """

    folder: Path
    prepared: Dataset
    policy: GenerativeRecommender
    summary: dict[str, Any]
    asked: list[dict[str, Any]]
    losses: list[Any]

    def model(self, number: int) -> GenerativeRecommender:
        if number == 0:
            return ring_policy(self.prepared)
        return load_policy(self.folder / "rounds" / f"{number:02d}" / "model", ring_ids().digest).eval()

    def measured(self, number: int) -> Measurement:
        return Measurement.load(self.folder / "rounds" / f"{number:02d}")

    def facts(self, number: int) -> dict[str, Any]:
        return open_artifact(self.folder / "rounds" / f"{number:02d}").manifest.summary


def scripted(folder: Path, config: AlignConfig) -> Run:
    """Run with the decisions of the script."""
    prepared = next_item_ring(folder / "data")
    asked: list[dict[str, Any]] = []
    losses: list[Any] = []

    def check(start, now, users, guard, seed, kept, looks):
        asked.append({"start": start, "now": now, "users": users, "kept": kept, "looks": looks})
        decision = DECISIONS[len(asked) - 1]
        return GuardResult(() if decision == "keep" else ("scripted",), {}, decision)

    def seen(real):
        def call(loss, *args, **options):
            losses.append(loss)
            return real(loss, *args, **options)

        return call

    policy = ring_policy(prepared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "check_round", check)
        patch.setattr(ipa_module, "preference_loss", seen(ipa_module.preference_loss))
        patch.setattr(rere_module, "policy_gradient_loss", seen(rere_module.policy_gradient_loss))
        learned = {"reward_model": EvenTaste(), "held_out_reward_model": EvenTaste(-1.0)}
        inputs = AlignmentInputs(
            prepared, ring_ids(), policy, config, DecodeConfig(), 5, **(learned if config.method == "ipa" else {})
        )
        summary = align_policy(inputs, folder / "run", QUIET)
    return Run(folder / "run", prepared, policy, summary, asked, losses)


@pytest.fixture(scope="module")
def ipa_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scripted(tmp_path_factory.mktemp("ipa"), IPA)


@pytest.fixture(scope="module")
def rere_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scripted(tmp_path_factory.mktemp("rere"), RERE)


@pytest.fixture(params=["ipa_run", "rere_run"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.getfixturevalue(request.param)
    return found


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_kept_round_is_the_result(run: Run) -> None:
    assert (run.summary["kept_round"], run.summary["rounds"]) == (3, 4)
    assert run.summary["stopped"] == "round 4: scripted"
    result = weights_of(run.policy)
    assert equal(result, weights_of(load_policy(run.folder / "model", ring_ids().digest)))
    assert [equal(result, weights_of(run.model(number))) for number in range(5)] == [False, False, False, True, False]


def test_the_guard_is_asked_with_start_now_and_the_round_kept_last(run: Run) -> None:
    """Round 3 is held against round 1, because 2 was not kept; all four are looks of one run."""
    for number, kept in enumerate((0, 1, 1, 3), start=1):
        asked = run.asked[number - 1]
        assert asked["start"].values == run.measured(0).values
        assert asked["now"].values == run.measured(number).values
        assert asked["kept"].values == run.measured(kept).values
        assert asked["looks"] == 4
    assert len({str(run.measured(number).values) for number in range(5)}) == 5


def test_the_guard_is_told_whose_rows_they_are(run: Run) -> None:
    users = run.asked[0]["users"]
    assert len(users) == 20
    evaluator = evaluator_of(run)
    np.testing.assert_array_equal(users, evaluator.targets.user_index)


def evaluator_of(run: Run) -> PolicyEvaluator:
    learned = run.summary["method"] == "ipa"
    rewards = RewardSet({"learned": 1.0}, learned=EvenTaste()) if learned else RewardSet(RERE.rere.rewards)
    held_out = EvenTaste(-1.0) if learned else None
    return PolicyEvaluator(run.prepared, ring_ids(), run.model(0), GUARD, DecodeConfig(), rewards, held_out, seed=5)


@pytest.mark.parametrize("number", [2, 3])
def test_a_round_is_measured_with_its_own_policy_against_the_start(run: Run, number: int) -> None:
    evaluator = evaluator_of(run)
    found = evaluator.measure(run.model(number), run.measured(0), QUIET)
    assert found.values == pytest.approx(run.measured(number).values, abs=1e-5)
    assert found.values["kl_to_start"] > 1e-4


def test_a_back_off_reaches_rate_weight_and_loss(run: Run) -> None:
    """One back-off before rounds 3 and 4: half the rate, a quarter of the weight, three times the loss's own setting."""
    rates = [run.facts(number)["training"]["learning_rate"] for number in range(1, 5)]
    assert rates == pytest.approx([3e-3, 3e-3, 1.5e-3, 1.5e-3])
    assert [run.facts(number)["smaller_steps"]["weight"] for number in range(1, 5)] == [1.0, 1.0, 0.25, 0.25]
    beta = (IPA.ipa if run.summary["method"] == "ipa" else RERE.rere).loss.beta
    assert list(dict.fromkeys(loss.beta for loss in run.losses)) == pytest.approx([beta, 3 * beta])


def test_the_rate_is_the_one_that_the_optimiser_uses(ipa_run: Run) -> None:
    """Adam's first step moves every weight by its rate."""
    for scale in (1.0, 0.25):
        policy = ring_policy(ipa_run.prepared)
        before = weights_of(policy)
        learner = Learner(policy, STEADY.model_copy(update={"gradient_clip": 0.0}), 10)
        learner.learning_rate_scale = scale
        learner.update(sum(p.sum() for p in policy.parameters()))
        for name, parameter in policy.named_parameters():
            torch.testing.assert_close(parameter.detach(), before[name] - scale * 3e-3, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("number", "snapshot"), [(1, 0), (2, 1), (3, 1), (4, 3)])
def test_the_snapshot_of_a_round_is_the_round_kept_last(ipa_run: Run, number: int, snapshot: int) -> None:
    """Its log-probabilities travel with the pairs; no other round's policy gives them."""
    pairs = PreferencePairs(**load_file(ipa_run.folder / "rounds" / f"{number:02d}" / "pairs.safetensors"))
    stream = RequestStream(ipa_run.prepared, 6, 32, seed=5)
    history = collate_histories(stream.samples.histories.take(pairs.row_Q.numpy()), 6)
    for candidate in range(5):
        with torch.no_grad():
            sessions = candidate_log_probs(ipa_run.model(candidate), history, pairs.candidates_QGM).sessions
        same = torch.allclose(sessions[:, 0], pairs.ref_chosen_Q, atol=1e-4)
        assert same == (candidate == snapshot)


def test_a_gap_of_rewards_is_asked_for(ipa_run: Run) -> None:
    """Rewards are 0 and 1: a gap of .5 gives pairs whose rewards differ by 1, one of 1.5 none at all."""
    for gap, pairs in ((0.5, True), (1.5, False)):
        # all twelve items, so that every group holds both
        config = IPA.ipa.model_copy(update={"min_reward_gap": gap, "rollouts": RolloutConfig(num_generations=12)})
        learner = Learner(ring_policy(ipa_run.prepared), config.optimiser, 10)
        stream = RequestStream(ipa_run.prepared, 6, 32, seed=5)
        method = ipa_module.IterativePreferenceAlignment(
            config,
            learner,
            stream,
            rere_module.RolloutSampler(ring_ids(), config.rollouts),
            RewardSet(config.rewards, learned=EvenTaste()),
            0,
        )
        rows = stream.rows(0)
        made = method.make_pairs(stream.requests(rows), np.arange(len(rows)), rows, torch.Generator(), QUIET)
        assert len(made) == (len(rows) if pairs else 0)
        assert (made.reward_gap_Q == 1).all()


def test_the_reference_of_rere_stays_the_start_from_round_to_round(rere_run: Run) -> None:
    """Nothing moves it here; a reference that begins anew would be round 1's policy in round 3."""
    state = torch.load(rere_run.folder / "rounds" / "03" / ".state.pt", weights_only=True)
    assert equal(state["method"]["reference"], weights_of(rere_run.model(0)))
    assert equal(state["learner"]["policy"], weights_of(rere_run.model(3)))
    kl = [rere_run.facts(number)["training"]["kl"] for number in (1, 3)]
    assert 0 < kl[0] < kl[1]  # measured from the start, not from the policy itself or from the round before


def test_a_round_of_rere_begins_with_the_reference_it_is_handed(rere_run: Run) -> None:
    start, other = rere_run.model(0), rere_run.model(1)
    method = rere_module.RankingRewardLearning(
        RERE.rere,
        Learner(other, STEADY, 10),
        RequestStream(rere_run.prepared, 6, 16, seed=0),
        rere_module.RolloutSampler(ring_ids(), RERE.rere.rollouts),
        RewardSet(RERE.rere.rewards),
        0,
    )
    method.begin({"reference": start.state_dict()})
    assert method.reference is not None
    assert equal(weights_of(method.reference), weights_of(start))
    method.begin(None)
    assert equal(weights_of(method.reference), weights_of(other))
