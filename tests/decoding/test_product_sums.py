"""The kernel that scores leaves from vectors and sums them below nodes, against plain sums."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from recsys import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not compiled")

WIDTH = 7
LEAVES = 700  # several stretches of leaves that are scored together, the last one short


@pytest.fixture
def threads() -> Iterator[None]:
    """Threads as they were afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made(users: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, vectors, and ranges of 1 to 250 leaves."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.tensor([0, 1, 2, 5, 95, 96, 97, 192, 193, 200, 450, 460, 699, LEAVES])
    return (
        torch.randn(users, WIDTH, generator=generator),
        torch.randn(LEAVES, WIDTH, generator=generator),
        first,
    )


def log_sums(found: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    sums_BV, best_BV = found
    return sums_BV.log() + best_BV


def plain(score_BI: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """The same by torch, in float64."""
    parts = score_BI.double().split(first.diff().tolist(), dim=1)
    return torch.stack([part.logsumexp(1) for part in parts], 1)


def test_by_hand() -> None:
    """Scores log 1, log 2, log 5 of one channel, the first two below one node: sums 3 of best 2, and 5 of best 5."""
    vectors = torch.tensor([[1.0], [2.0], [5.0]]).log()
    sums, best = native.product_sums(torch.ones(1, 1), vectors, torch.tensor([0, 2, 3]))
    torch.testing.assert_close(best.exp(), torch.tensor([[2.0, 5.0]]))
    torch.testing.assert_close(sums, torch.tensor([[1.5, 1.0]]))


@pytest.mark.parametrize("users", [1, 16, 17, 33, 64, 70, 130])
def test_equals_plain_sums(users: int) -> None:
    query, vectors, first = made(users)
    found = log_sums(native.product_sums(query, vectors, first))
    torch.testing.assert_close(found, plain(query @ vectors.T, first).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("segments", [None, 3])
@pytest.mark.parametrize("users", [1, 20, 70])
def test_forbidden_leaves_count_nothing(users: int, segments: int | None) -> None:
    """To a segment and to one user, a range that is closed whole among them."""
    query, vectors, first = made(users)
    generator = torch.Generator().manual_seed(1)
    alive = torch.rand(segments or 1, LEAVES, generator=generator) < 0.7
    segment = None if segments is None else torch.randint(0, segments, (users,), generator=generator)
    is_closed = torch.rand(users, LEAVES, generator=generator) < 0.02
    is_closed[-1, 97:192] = True
    leaf, user = is_closed.T.nonzero(as_tuple=True)
    score = query @ vectors.T
    allowed = alive[torch.zeros(users, dtype=torch.int64) if segment is None else segment] & ~is_closed
    expected = plain(score.masked_fill(~allowed, -torch.inf), first).float()
    sums, best = native.product_sums(
        query, vectors, first, alive_SI=alive, segment_B=segment, closed=(leaf.contiguous(), user.contiguous())
    )
    torch.testing.assert_close(log_sums((sums, best)), expected, atol=1e-5, rtol=1e-5)
    assert sums[-1, 6] == 0
    assert torch.isfinite(best).all()


def test_a_user_has_the_same_bits_in_any_company_and_on_any_threads(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "WORTH_THREADS", 1)
    torch.set_num_threads(1)
    query, vectors, first = made(70)
    together = native.product_sums(query, vectors, first)
    torch.set_num_threads(3)
    for one, other in zip(together, native.product_sums(query, vectors, first), strict=True):
        assert torch.equal(one, other)
    for begin, end in ((0, 1), (5, 22), (10, 50), (3, 70)):
        for one, other in zip(together, native.product_sums(query[begin:end], vectors, first), strict=True):
            assert torch.equal(one[begin:end], other)


def test_scores_far_apart_and_no_numbers() -> None:
    """What is 100 below the best counts 0; a user whose query is no number gets none, and nobody else."""
    vectors = torch.tensor([[0.0], [-100.0], [-200.0]])
    query = torch.tensor([[1.0], [torch.nan], [-1.0]])
    sums, best = native.product_sums(query, vectors, torch.tensor([0, 3]))
    assert (sums[0, 0], best[0, 0]) == (1.0, 0.0)
    assert (sums[2, 0], best[2, 0]) == (1.0, 200.0)
    assert torch.isnan(sums[1, 0])


def test_ranges_of_other_leaves_are_refused() -> None:
    query, vectors, first = made(2)
    with pytest.raises(AssertionError, match="ranges are not of these leaves"):
        native.product_sums(query, vectors[:-1], first)


WRONG: dict[str, dict[str, object]] = {
    "an empty range": {"first": [0, 3, 3, 10]},
    "an empty range at the end": {"first": [0, 10, 10]},
    "ranges in another order": {"first": [0, 8, 2, 10]},
    "no ranges": {"first": []},
    "ranges of other leaves": {"first": [0, 9]},
    "a segment that there is not": {"segment": [0, 1, 2]},
    "a segment below 0": {"segment": [0, -1, 0]},
    "segments of other users": {"segment": [0]},
    "more leaves than users": {"closed": ([1, 2, 3], [0])},
    "closed leaves in another order": {"closed": ([1, 9, 5], [0, 1, 2])},
    "a closed leaf below 0": {"closed": ([-5, 1], [0, 1])},
    "a closed leaf that there is not": {"closed": ([1, 10], [0, 1])},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_what_the_kernel_would_read_beyond_is_refused(wrong: dict[str, object]) -> None:
    """It reads and writes plain memory: a leaf out of order is written in front of the scores."""
    given = {"first": [0, 3, 10], "segment": [0, 1, 1], "closed": ([1, 5, 9], [2, 0, 0])}
    asked = given | wrong
    closed = tuple(torch.tensor(part, dtype=torch.int64) for part in asked["closed"])  # type: ignore[attr-defined]

    def call(first: object) -> tuple[torch.Tensor, torch.Tensor]:
        return native.product_sums(
            torch.zeros(3, WIDTH),
            torch.zeros(10, WIDTH),
            torch.tensor(first, dtype=torch.int64),
            alive_SI=torch.ones(2, 10, dtype=torch.bool),
            segment_B=torch.tensor(asked["segment"], dtype=torch.int64),
            closed=closed,  # type: ignore[arg-type]
        )

    with pytest.raises(AssertionError):
        call(asked["first"])


@pytest.mark.parametrize("users", [0, 1, 3])
def test_nobody_and_users_that_are_not_asked_for(users: int) -> None:
    """Pairs of users that are not in the batch are passed over; 3 and 7 leaves of score 0 each."""
    sums, best = native.product_sums(
        torch.zeros(users, WIDTH),
        torch.zeros(10, WIDTH),
        torch.tensor([0, 3, 10]),
        closed=(torch.tensor([1, 5]), torch.tensor([-1, 99])),
    )
    assert sums.tolist() == [[3.0, 7.0]] * users
    assert best.tolist() == [[0.0, 0.0]] * users
