"""Mixture of experts: against the dense oracle, hand-worked gates, balancing."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from recsys.model.layers.moe import MixtureOfExperts, dense_reference


def make(num_experts: int = 8, top_k: int = 2, **options: bool) -> MixtureOfExperts:
    torch.manual_seed(0)
    return MixtureOfExperts(16, num_experts, 24, top_k, init_std=0.3, **options)


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_sorted_segments_equal_running_every_expert(top_k: int) -> None:
    moe = make(top_k=top_k)
    x = torch.randn(50, 16, requires_grad=True)
    fast, slow = moe(x), dense_reference(moe, x)
    assert fast.abs().max() > 0.1
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    weights = torch.randn_like(fast)
    fast_grads = torch.autograd.grad((fast * weights).sum(), [x, moe.up_EDF, moe.down_EFD, moe.centroids_ED])
    slow_grads = torch.autograd.grad((slow * weights).sum(), [x, moe.up_EDF, moe.down_EFD, moe.centroids_ED])
    for a, b in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_gates_by_hand() -> None:
    """Scores (0, ln 2, ln 5) give softmax (1, 2, 5) / 8; the two best gate with 5/8 and 2/8, renormalised 5/7 and 2/7."""
    for renormalise, expected in ((False, [5 / 8, 2 / 8]), (True, [5 / 7, 2 / 7])):
        moe = MixtureOfExperts(1, 3, 2, 2, renormalise=renormalise)
        moe.centroids_ED.data = torch.tensor([[1.0], [2.0], [5.0]]).log()
        gates, experts = moe.route(torch.ones(1, 1))
        assert experts.tolist() == [[2, 1]]
        torch.testing.assert_close(gates, torch.tensor([expected]))


def test_no_token_is_dropped_when_all_want_one_expert() -> None:
    moe = make(top_k=1)
    x = torch.randn(1, 16).expand(40, 16)
    torch.testing.assert_close(moe(x), dense_reference(moe, x), atol=1e-5, rtol=1e-4)


def test_bias_selects_but_never_gates() -> None:
    moe = make()
    x = torch.randn(30, 16)
    scores = torch.softmax(x @ moe.centroids_ED.T, -1)
    moe.bias_E[3] = 10.0
    gates, experts = moe.route(x)
    assert (experts == 3).any(1).all()
    torch.testing.assert_close(gates, scores.gather(1, experts))


def test_balancing_moves_load_towards_uniform() -> None:
    moe = make().train()
    x = torch.randn(400, 16) + 1.0
    spread = []
    for _ in range(200):
        moe(x)
        moe.note_load()
        spread.append(moe.update_balance(0.01).std().item())
    assert spread[-1] < 0.3 * spread[0]
    assert moe.load_E.sum() == 0


def test_the_load_counts_every_pair_once_and_in_training_alone() -> None:
    """Scores prefer experts 2 and 1 for all 5 tokens, so the loads are 0, 5, 5 of 10; evaluation counts nothing."""
    moe = MixtureOfExperts(16, 3, 8, 2)
    moe.centroids_ED.data = torch.tensor([[1.0], [2.0], [5.0]]).log().expand(3, 16)
    moe.train()(torch.ones(5, 16))
    assert moe.last_load_E.tolist() == [0, 5, 5]
    moe.eval()(torch.ones(7, 16))
    assert moe.last_load_E.tolist() == [0, 5, 5]


def test_a_pass_that_checkpointing_repeats_counts_once() -> None:
    """Two batches of 5 and 3 tokens of one step: 0, 8, 8, though backward runs both forward passes a second time."""
    moe = MixtureOfExperts(16, 3, 8, 2).train()
    moe.centroids_ED.data = torch.tensor([[1.0], [2.0], [5.0]]).log().expand(3, 16)
    for tokens in (5, 3):
        x = torch.ones(tokens, 16, requires_grad=True)
        answer = checkpoint(moe, x, use_reentrant=False)
        moe.note_load()
        answer.sum().backward()
    assert moe.load_E.tolist() == [0, 8, 8]
    assert moe.update_balance(0.1).tolist() == [0, 0.5, 0.5]


def test_without_gradients_the_result_is_the_same_and_the_input_untouched() -> None:
    moe = make()
    x = torch.randn(50, 16)
    kept = x.clone()
    with_gradients = moe(x)
    with torch.no_grad():
        without = moe(x)
    torch.testing.assert_close(
        with_gradients, without, rtol=1e-5, atol=1e-6
    )  # short segments are summed in whole tiles
    assert torch.equal(x, kept)


def test_mixed_precision_reaches_the_experts_but_not_the_router() -> None:
    moe = make()
    x = torch.randn(50, 16)
    gates, experts = moe.route(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed_gates, mixed_experts = moe.route(x)
        mixed = moe(x)
    assert torch.equal(gates, mixed_gates)
    assert torch.equal(experts, mixed_experts)
    difference = (mixed - moe(x)).abs().max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize("top_k", [1, 2])
def test_where_counts_would_be_read_back_every_expert_runs_and_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    """As on a GPU in float32, where torch's grouped product waits for its counts and cannot be recorded in a graph."""
    moe = make(top_k=top_k).eval()
    x = torch.randn(50, 16, requires_grad=True)
    grouped = moe(x)
    monkeypatch.setattr(MixtureOfExperts, "_products_wait", lambda self, x_ND: True)
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", None)
    every = moe(x)
    torch.testing.assert_close(every, grouped, atol=1e-5, rtol=1e-4)
    parts = [x, moe.up_EDF, moe.down_EFD, moe.centroids_ED]
    weights = torch.randn_like(every)
    monkeypatch.undo()
    for a, b in zip(
        torch.autograd.grad((every * weights).sum(), parts),
        torch.autograd.grad((grouped * weights).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
