"""Scores of a whole catalogue by products: one pass of the kernel, blocks without it, and a scorer set on both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys import native
from recsys.scorers import products
from recsys.scorers.config import ScorersConfig
from recsys.scorers.products import catalogue_scores
from recsys.scorers.scorer_set import ScorerSet
from tests.scorers.test_scorer_set import histories_of, prepared_of

needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not compiled")


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("users", [1, 3, 60])
def test_a_large_catalogue_is_scored_some_items_at_a_time(
    users: int, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "LARGE_CATALOGUE", 0)
    monkeypatch.setattr(products, "ITEMS_TOGETHER", 4)
    if not kernels:
        monkeypatch.setattr(native, "available", lambda: False)
    query, vectors = normal(0, users, 6), normal(1, 11, 6)
    with torch.no_grad():
        torch.testing.assert_close(catalogue_scores(query, vectors), query @ vectors.T)


@needs_kernels
@pytest.mark.parametrize("users", [1, 17, 40, 130])
def test_several_products_are_added_in_one_pass(users: int) -> None:
    """Of 300 items, more than are scored together, with widths of their own; what stood there stays in the sum."""
    terms = [(normal(n, users, width), normal(9 + n, 300, width)) for n, width in enumerate((5, 1, 8))]
    out = normal(20, users, 300)
    expected = out.double() + sum(query.double() @ vectors.double().T for query, vectors in terms)
    native.add_products(terms, out)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)


@needs_kernels
def test_by_hand() -> None:
    """1 and 2 there; 2 * 3 and 2 * 4 added, and 1 * 10 and 1 * 20."""
    out = torch.tensor([[1.0, 2.0]])
    first = (torch.tensor([[2.0]]), torch.tensor([[3.0], [4.0]]))
    native.add_products([first, (torch.tensor([[1.0]]), torch.tensor([[10.0], [20.0]]))], out)
    assert out.tolist() == [[17.0, 30.0]]


@needs_kernels
def test_a_user_has_the_same_bits_in_any_company_and_on_any_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "WORTH_THREADS", 1)
    terms = [(normal(0, 70, 7), normal(1, 500, 7)), (normal(2, 70, 3), normal(3, 500, 3))]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = torch.zeros(70, 500)
        native.add_products(terms, together)
        torch.set_num_threads(3)
        for begin, end in ((0, 70), (0, 1), (5, 22), (10, 50)):
            part = torch.zeros(end - begin, 500)
            native.add_products([(query[begin:end], vectors) for query, vectors in terms], part)
            assert torch.equal(part, together[begin:end])
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_matrices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AssertionError):
        native.add_products([(normal(0, 2, 3), normal(1, 5, 4))], torch.zeros(2, 5))
    with pytest.raises(AssertionError):
        native.add_products([(normal(0, 2, 3), normal(1, 5, 3))], torch.zeros(2, 6))


@needs_kernels
def test_a_scorer_set_adds_its_products_with_those_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass or one by one, beside scorers that are no products; a weight of 0 leaves a product out."""
    vectors = {
        name: np.random.default_rng(n).normal(size=(10, 4)).astype(np.float32)
        for n, name in enumerate(("fused", "text"))
    }
    config = ScorersConfig(names=("transitions", "similar", "similar_text", "popularity"))
    scorers = ScorerSet.fit(prepared_of([[0, 1, 2, 9], [0, 1, 3]], 10), config, vectors, catalogue="ten")
    histories = histories_of([[0, 1], [2], []])
    weights = {"transitions": 2.0, "similar": 0.5, "similar_text": -1.5, "popularity": 0.25}
    query, items = normal(0, 3, 6), normal(1, 10, 6)
    for left_out in (None, "similar"):
        used = {name: 0.0 if name == left_out else weight for name, weight in weights.items()}
        apart = (query @ items.T).numpy().copy()
        scorers.add_fused(histories, used, apart)
        with monkeypatch.context() as patch:
            patch.setattr(products, "LARGE_CATALOGUE", 0)
            together = np.zeros((3, 10), np.float32)
            scorers.add_fused(histories, used, together, [(query, items)])
        np.testing.assert_allclose(together, apart, atol=1e-5)
    with pytest.raises(AssertionError, match="come in one pass, or before"):
        scorers.add_fused(histories, weights, np.zeros((3, 10), np.float32), [(query, items)])


@pytest.mark.parametrize("items", [3, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("learnt", [None, "query", "vectors"])
def test_scores_of_every_size_have_type_and_gradient_of_what_they_are_made_of(
    items: int, dtype: torch.dtype, learnt: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel knows float32 alone and no gradients: beyond its size both were refused or lost."""
    monkeypatch.setattr(products, "LARGE_CATALOGUE", 4)
    query, vectors = normal(0, 2, 6).to(dtype), normal(1, items, 6).to(dtype)
    {"query": query, "vectors": vectors, None: torch.zeros(1)}[learnt].requires_grad_()
    found = catalogue_scores(query, vectors)
    assert found.dtype == dtype
    assert found.requires_grad == (learnt is not None)
    torch.testing.assert_close(found.double(), query.double() @ vectors.double().T, atol=0.05, rtol=0.02)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("which", ["query", "vectors", "out"])
def test_the_kernel_takes_float32_alone(dtype: torch.dtype, which: str) -> None:
    """Whole numbers of 32 bits have the size of a float32 and are none."""
    given = {"query": torch.ones(2, 3), "vectors": torch.ones(5, 3), "out": torch.zeros(2, 5)}
    given[which] = given[which].to(dtype)
    with pytest.raises(AssertionError, match="expected float32"):
        native.add_products([(given["query"], given["vectors"])], given["out"])
