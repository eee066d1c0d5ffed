"""The k-core against its definition: take away what has too few, one user or item at a time, while there is such a one."""

from __future__ import annotations

import numpy as np
import pytest

from features.log.k_core import KCoreConfig, k_core_mask


def by_definition(users: list[int], items: list[int], positive: list[bool], limits: KCoreConfig) -> list[bool]:
    rows = list(zip(users, items, positive, strict=True))
    gone: set[tuple[str, int]] = set()
    while True:
        left = [(u, i) for u, i, p in rows if p and ("u", u) not in gone and ("i", i) not in gone]
        thin = [("u", u) for u in users if sum(one == u for one, _ in left) < limits.user and ("u", u) not in gone]
        thin += [("i", i) for i in items if sum(one == i for _, one in left) < limits.item and ("i", i) not in gone]
        if not thin:
            return [("u", u) not in gone and ("i", i) not in gone for u, i, _ in rows]
        gone.add(thin[0])


@pytest.mark.parametrize("seed", range(40))
def test_against_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 50))
    users = np.sort(rng.integers(0, 7, count)).astype(np.int32)
    items = rng.integers(0, 7, count).astype(np.int32)
    positive = rng.random(count) < (0.6 if seed % 2 else 1.0)
    limits = KCoreConfig(user=seed % 5, item=1 + seed % 4)
    mask = k_core_mask(users, items, positive, limits)
    assert mask is not None
    assert mask.tolist() == by_definition(users.tolist(), items.tolist(), positive.tolist(), limits)
