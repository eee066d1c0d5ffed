"""Losses and schedule, by hand and against plain autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from recsys.training import losses
from recsys.training.losses import (
    MEMORY_ENTRIES,
    SoftmaxBlocks,
    dense_loss,
    distillation_loss,
    full_softmax_loss,
    next_token_loss,
    prefix_loss,
    sampled_dense_loss,
    teacher_code_probs,
)
from recsys.training.schedule import warmup_cosine


def test_next_token_loss_by_hand() -> None:
    """Two items of two codes with probabilities (1/2, 1/4) and (1, 1/2).

    Sums are ln 8 and ln 2, their mean is ln 4 = 1.3863; averaging over the two codes halves it.
    """
    losses = -torch.tensor([[0.5, 0.25], [1.0, 0.5]]).log()
    assert next_token_loss(losses, "sum").item() == pytest.approx(math.log(4))
    assert next_token_loss(losses, "mean").item() == pytest.approx(math.log(2))


BLOCKS = [SoftmaxBlocks(rows, items) for rows, items in ((1, 30), (17, 30), (5, 30), (17, 7), (5, 1))]


def softmax_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query, vectors = torch.randn(17, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    return query, vectors, torch.randint(0, 30, (17,))


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_blockwise_cross_entropy_equals_plain_autograd(blocks: SoftmaxBlocks) -> None:
    query, vectors, target = softmax_inputs()
    plain = F.cross_entropy(query @ vectors.T, target)
    ours = full_softmax_loss(query, vectors, target, blocks=blocks)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(
        torch.autograd.grad(3 * ours, [query, vectors]), torch.autograd.grad(3 * plain, [query, vectors]), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("blocks", [BLOCKS[2], BLOCKS[3]], ids=str)
def test_rounded_factors_leave_softmax_and_sums_in_float32(blocks: SoftmaxBlocks) -> None:
    """The loss is that of rounded factors to float32 rounding; gradients lose the 8 bits of their own factors."""
    query, vectors, target = softmax_inputs()
    rounded = [factor.detach().bfloat16().float().requires_grad_() for factor in (query, vectors)]
    plain = F.cross_entropy(rounded[0] @ rounded[1].T, target)
    ours = full_softmax_loss(query, vectors, target, blocks=blocks, factors=torch.bfloat16)
    torch.testing.assert_close(ours, plain)
    assert ours.item() != F.cross_entropy(query @ vectors.T, target).item()
    for a, b in zip(torch.autograd.grad(ours, [query, vectors]), torch.autograd.grad(plain, rounded), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 0.01 * b.abs().max()


def test_no_rows_cost_nothing_and_teach_nothing() -> None:
    query, vectors = torch.randn(0, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    loss = full_softmax_loss(query, vectors, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert query.grad is not None
    assert vectors.grad is not None
    assert not vectors.grad.any()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("num_items", [50, 12_101, 200_000, 800_000, 5_000_000, 50_000_000])
def test_blocks_keep_many_rows_and_stay_in_memory(device: str, num_items: int) -> None:
    """On a CPU it was 3 rows at 200,000 items and 1 at 800,000, and every block reads all vectors."""
    blocks = SoftmaxBlocks.of(4096, num_items, torch.device(device))
    assert blocks.rows >= 32
    assert blocks.rows * blocks.items <= MEMORY_ENTRIES[device]
    assert SoftmaxBlocks.of(1, num_items, torch.device(device)).items * 2 > min(num_items, MEMORY_ENTRIES[device])


def test_a_target_and_its_twin_among_the_negatives_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal vectors have equal logits, so the loss is ln 2 sharp, whatever the factors are rounded to."""
    torch.manual_seed(0)
    query, twin = torch.randn(1, 64), torch.randn(1, 64)
    none = torch.zeros(1, 1, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        assert sampled_dense_loss(query, twin, twin, none).item() == pytest.approx(math.log(2), abs=1e-6)
    monkeypatch.setattr(losses, "product_dtype", lambda device: torch.bfloat16)
    assert sampled_dense_loss(query, twin, twin, none).item() == pytest.approx(math.log(2), abs=1e-6)


def test_sampled_softmax_with_every_item_sampled_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    query, vectors = torch.randn(5, 4), torch.randn(10, 4)
    target = torch.randint(1, 10, (5,))
    everything = torch.arange(1, 10)
    sampled = sampled_dense_loss(query, vectors[target], vectors[1:], target[:, None] == everything)
    torch.testing.assert_close(sampled, dense_loss(query, vectors, target))


def test_a_target_drawn_as_a_negative_takes_no_probability() -> None:
    """Target with logit 1, negatives with logits 1 (the target itself) and 0: -ln(e / (e + 1)), not -ln(e / (2e + 1))."""
    vectors = torch.tensor([[1.0], [0.0]])
    loss = sampled_dense_loss(torch.ones(1, 1), vectors[:1], vectors, torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_prefix_loss_by_hand() -> None:
    """Codes cost 4 and 1 on average over two items, so prefixes cost 4 and 2.5 and weigh 4 : 2.5 without adaptivity.

    (16 + 6.25) / 6.5 = 3.4231. With adaptivity 1 they weigh 4 : 2.5 · exp(-1.5) = 4 : .5578, which gives 3.8164.
    """
    code_losses = torch.tensor([[5.0, 1.0], [3.0, 1.0]])
    assert prefix_loss(code_losses, 0.0).item() == pytest.approx(22.25 / 6.5)
    worst = 2.5 * math.exp(-1.5)
    assert prefix_loss(code_losses, 1.0).item() == pytest.approx((16 + 2.5 * worst) / (4 + worst))


def test_the_first_code_counts_most_and_weights_carry_no_gradient() -> None:
    """Equal losses of 2: prefixes weigh a third each; code 1 counts 1 + 1/2 + 1/3, code 2 1/2 + 1/3, code 3 1/3."""
    code_losses = torch.full((1, 3), 2.0, requires_grad=True)
    (grad,) = torch.autograd.grad(prefix_loss(code_losses, 5.0), [code_losses])
    assert grad[0].tolist() == pytest.approx([11 / 18, 5 / 18, 2 / 18])
    assert prefix_loss(torch.zeros(2, 3), 1.0).item() == 0.0
    uneven = torch.tensor([[4.0, 1.0]], requires_grad=True)  # weights 4/6.5 and 2.5/6.5
    (grad,) = torch.autograd.grad(prefix_loss(uneven, 0.0), [uneven])
    assert grad[0].tolist() == pytest.approx([5.25 / 6.5, 1.25 / 6.5])


def test_a_teacher_sums_items_by_code_by_hand() -> None:
    """Four items with probabilities 1/10, 2/10, 3/10, 4/10 and codes (0, 0), (0, 1), (1, 0), (1, 1).

    First codes: 3/10 and 7/10 for everyone. Second codes: for target (0, 1) 1/3 and 2/3, for target (1, 0) 3/7 and 4/7.
    """
    codes = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]])  # row 0 is padding
    vectors = torch.tensor([[9.0], [0.1], [0.2], [0.3], [0.4]]).log()
    first, second = teacher_code_probs(torch.ones(2, 1), vectors, codes, torch.tensor([2, 3]), (2, 2))
    torch.testing.assert_close(first, torch.tensor([[0.3, 0.7], [0.3, 0.7]]))
    torch.testing.assert_close(second, torch.tensor([[1 / 3, 2 / 3], [3 / 7, 4 / 7]]))


@pytest.mark.parametrize("rows", [1, 17])
def test_the_teachers_path_is_the_dense_heads_probability(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Multiplied along the path, the teacher's codes give the softmax over items back: the codes are unique."""
    monkeypatch.setattr(SoftmaxBlocks, "of", lambda count, num_items, device: SoftmaxBlocks(rows, num_items))
    torch.manual_seed(0)
    codes = torch.cat([torch.zeros(1, 3, dtype=torch.int64), torch.cartesian_prod(*(torch.arange(4),) * 3)])
    query, vectors, target = torch.randn(17, 8), torch.randn(len(codes), 8), torch.randint(1, len(codes), (17,))
    teacher = teacher_code_probs(query, vectors, codes, target, (4, 4, 4))
    for level in teacher:
        torch.testing.assert_close(level.sum(1), torch.ones(17))
    path = torch.stack([level.gather(1, codes[target][:, [i]]) for i, level in enumerate(teacher)]).prod(0)[:, 0]
    items = (query @ vectors[1:].T).softmax(1).gather(1, target[:, None] - 1)[:, 0]
    torch.testing.assert_close(path, items)


def test_a_teacher_that_is_sure_of_other_items_still_says_something_below_the_target() -> None:
    codes = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 1]])
    vectors = torch.tensor([[0.0], [1000.0], [0.0], [0.0]])
    first, second = teacher_code_probs(torch.ones(1, 1), vectors, codes, torch.tensor([2]), (2, 2))
    torch.testing.assert_close(first, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(second, torch.tensor([[0.5, 0.5]]))


def test_distillation_is_least_where_the_decoder_agrees() -> None:
    """Cross-entropy against (1/4, 3/4): ln 2 for even logits; at agreement the teacher's entropy, and no gradient."""
    teacher = [torch.tensor([[0.25, 0.75]])]
    assert distillation_loss([torch.zeros(1, 2)], teacher).item() == pytest.approx(math.log(2))
    assert distillation_loss([torch.zeros(1, 2)] * 3, teacher * 3).item() == pytest.approx(3 * math.log(2))
    agreed = torch.tensor([[0.25, 0.75]]).log().requires_grad_()
    loss = distillation_loss([agreed], teacher)
    assert loss.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    (grad,) = torch.autograd.grad(loss, [agreed])
    assert grad.abs().max().item() < 1e-6


def test_schedule_by_hand() -> None:
    """Two warm-up steps, then half a cosine over eight: at its middle 0.2 + 0.8 / 2 = 0.6."""
    values = [warmup_cosine(step, 10, 2, 0.2) for step in range(11)]
    assert values[0] == 0.5
    assert values[1] == values[2] == 1.0
    assert values[6] == pytest.approx(0.6)
    assert values[10] == pytest.approx(0.2)
    assert values[2:] == sorted(values[2:], reverse=True)
