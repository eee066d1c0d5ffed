"""Products whose rows know nothing of their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from recsys.model.layers.attention import attend, gated
from recsys.model.layers.moe import MixtureOfExperts
from recsys.model.layers.precision import Norm
from recsys.model.layers.rows import FEW, TILE, Linear, linear, product, whole_tiles

ROWS = 600


@pytest.fixture(params=[1, 2, 8])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_a_product_by_hand() -> None:
    """[1 2] [[3 5] [4 6]]^T = [1*3 + 2*5, 1*4 + 2*6] = [13, 16], and with a bias of 1 [14, 17]."""
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0], [4.0, 6.0]])
    with torch.no_grad():
        assert linear(x, weight).tolist() == [[13.0, 16.0]]
        assert linear(x, weight, torch.ones(2)).tolist() == [[14.0, 17.0]]
        assert product(x, weight.T).tolist() == [[13.0, 16.0]]
        assert linear(torch.empty(0, 3, 2), weight).shape == (0, 3, 2)


def test_gradients_are_those_of_a_linear_layer() -> None:
    layer, x = Linear(3, 2), torch.randn(5, 3)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(2, -1))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("width", [16, 37, 128])
@torch.no_grad()
def test_a_row_is_the_same_among_few_and_many(width: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(ROWS, width), torch.randn(3 * width, width)
    forms: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda rows: linear(rows, weight),
        lambda rows: product(rows, weight.T),
        lambda rows: gated(torch.cat([rows, rows], dim=1)),
        Norm(width),
    ]
    for form in forms:
        many = form(x)
        for count in (1, 2, 3, 5, 7, 10, 11, TILE, 27, 33, FEW - 1, FEW, FEW + 1, 255, 401):
            assert torch.equal(form(x[7 : 7 + count]), many[7 : 7 + count]), count


@pytest.mark.usefixtures("_threads")
@torch.no_grad()
def test_a_token_is_the_same_whatever_its_experts_have_to_do_beside_it() -> None:
    torch.manual_seed(0)
    moe, x = MixtureOfExperts(16, 5, 24, 2, init_std=0.3).eval(), torch.randn(ROWS, 16)
    many = moe(x)
    for rows in (slice(0, 1), slice(3, 10), slice(100, 333)):
        assert torch.equal(moe(x[rows]), many[rows])


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("queries", [1, 3, 17, 33])
@torch.no_grad()
def test_attention_of_few_queries_is_the_same_for_every_user_of_a_batch(queries: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(90, 2, queries, 16), torch.randn(90, 2, 21, 16), torch.randn(90, 2, 21, 16)
    mask = (torch.arange(21) < torch.arange(90)[:, None] % 20 + 1)[:, None, None]
    together = attend(q, k, v, mask)
    torch.testing.assert_close(together, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    for rows in (slice(0, 1), slice(44, 47), slice(10, 80)):
        assert torch.equal(attend(q[rows], k[rows], v[rows], mask[rows]), together[rows])


def test_what_is_filled_up_is_zero() -> None:
    filled = whole_tiles(torch.ones(TILE + 1, 2))
    assert filled.shape == (2 * TILE, 2)
    assert filled.sum() == 2 * (TILE + 1)
