"""The same ids give the same sample every night, and two samples say how much two sets share."""

import polars as pl
import pytest

from features.audit.sketch import SIZE, IdSketch, shared_share, sketch, text_hashes


def test_the_hash_is_what_it_was() -> None:
    """Computed again one byte at a time, and one value written down: last night's file holds last night's hashes."""
    texts = ["u1", "7", "é", "", "user_0042"]
    assert text_hashes(pl.Series(texts)).tolist() == [slow_hash(text) for text in texts]
    assert slow_hash("u1") == 3185811209735839086
    assert text_hashes(pl.Series([], dtype=pl.String)).tolist() == []


def slow_hash(text: str) -> int:
    data = text.encode()
    total = sum((byte + 1) * (slow_mix(place) | 1) for place, byte in enumerate(data)) + len(data)
    return slow_mix(total % 2**64)


def slow_mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    z = (value * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_no_two_ids_share_a_hash_by_their_form() -> None:
    """Permuted letters, appended zeros, ids inside ids: 20,000 different ids, 20,000 hashes."""
    ids = [f"{a}{b}" for a in ("", "ab", "ba", "0", "00") for b in range(4000)]
    distinct = sorted(set(ids))
    assert len(set(text_hashes(pl.Series(distinct)).tolist())) == len(distinct)


@pytest.mark.parametrize(
    ("before", "now", "share"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 2, 3, 4], ["1", "2", "x", "y"], 0.5),  # 7 and "7" are the same id
        ([1, 2, 3, 4], [1, 2], 1.0),  # of the smaller set
        ([1, 2], [1, 2, 3, 4], 1.0),
        ([1, 2], ["01", "02"], 0.0),
        ([], [1, 2], 1.0),
    ],
)
def test_small_sets_are_compared_exactly(before: list, now: list, share: float) -> None:
    assert shared_share(sketch(pl.Series(before)), sketch(pl.Series(now))) == pytest.approx(share)


@pytest.mark.parametrize(("shared", "others"), [(0, 30_000), (6_000, 24_000), (15_000, 15_000), (30_000, 0), (300, 0)])
def test_large_sets_are_estimated(shared: int, others: int) -> None:
    """30,000 ids then; now some of them and others: within 6 points, of the smaller set."""
    before = sketch(pl.Series([f"u{k}" for k in range(30_000)]))
    now = sketch(pl.Series([f"u{k}" for k in range(shared)] + [f"n{k}" for k in range(others)]))
    assert before.count == 30_000
    assert len(before.hashes) == SIZE
    assert shared_share(before, now) == pytest.approx(shared / (shared + others), abs=0.06)


def test_truncated_samples_are_compared_up_to_the_lower_end() -> None:
    """What lies beyond the largest hash of a sample is not known to be absent; the hash at the end is known."""
    left = IdSketch(5, (1, 3, 5), {})
    assert shared_share(left, IdSketch(4, (1, 2, 9), {})) == 1 / 2  # 1 3 5 against 1 2
    assert shared_share(left, IdSketch(9, (1, 2, 5, 9), {})) == 2 / 3  # 1 3 5 against 1 2 5
    assert shared_share(IdSketch(3, (1, 3, 7), {}), IdSketch(3, (1, 7, 8), {})) == 2 / 3  # whole sets


def test_what_is_not_known_is_no_id() -> None:
    assert sketch(pl.Series(["a", None, "b"])) == sketch(pl.Series(["b", "a"]))
