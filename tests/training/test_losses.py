"""Losses and schedule, by hand and against plain autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from recsys.training import losses
from recsys.training.losses import dense_loss, next_token_loss, sampled_dense_loss
from recsys.training.schedule import warmup_cosine


def test_next_token_loss_by_hand() -> None:
    """Two items of two codes with probabilities (1/2, 1/4) and (1, 1/2).

    Sums are ln 8 and ln 2, their mean is ln 4 = 1.3863; averaging over the two codes halves it.
    """
    losses = -torch.tensor([[0.5, 0.25], [1.0, 0.5]]).log()
    assert next_token_loss(losses, "sum").item() == pytest.approx(math.log(4))
    assert next_token_loss(losses, "mean").item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("block_entries", [1, 100, 1 << 20])
def test_blockwise_cross_entropy_equals_plain_autograd(monkeypatch: pytest.MonkeyPatch, block_entries: int) -> None:
    monkeypatch.setattr(losses, "CROSS_ENTROPY_BLOCK_ENTRIES", block_entries)
    torch.manual_seed(0)
    query, vectors = torch.randn(17, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    target = torch.randint(1, 31, (17,))
    plain = F.cross_entropy(query @ vectors[1:].T, target - 1)
    ours = dense_loss(query, vectors, target)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(
        torch.autograd.grad(3 * ours, [query, vectors]), torch.autograd.grad(3 * plain, [query, vectors]), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_sampled_softmax_with_every_item_sampled_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    query, vectors = torch.randn(5, 4), torch.randn(10, 4)
    target = torch.randint(1, 10, (5,))
    everything = torch.arange(1, 10)
    sampled = sampled_dense_loss(query, vectors[target], vectors[1:], target[:, None] == everything)
    torch.testing.assert_close(sampled, dense_loss(query, vectors, target))


def test_schedule_by_hand() -> None:
    """Two warm-up steps, then half a cosine over eight: at its middle 0.2 + 0.8 / 2 = 0.6."""
    values = [warmup_cosine(step, 10, 2, 0.2) for step in range(11)]
    assert values[0] == 0.5
    assert values[1] == values[2] == 1.0
    assert values[6] == pytest.approx(0.6)
    assert values[10] == pytest.approx(0.2)
    assert values[2:] == sorted(values[2:], reverse=True)
