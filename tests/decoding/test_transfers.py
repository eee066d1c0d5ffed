"""Batches prepared ahead are the same batches, in order, with the errors of their own turn."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from recsys.data.histories import Histories
from recsys.decoding import recommender as recommender_module
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.transfers import Fetch, prepared_ahead
from tests.decoding.test_beam_search import random_policy
from tests.toy.dataset import ring_prepared, toy_ids

CPU = torch.device("cpu")
CODES = np.stack([np.arange(20) // 5, np.arange(20) % 5], 1)


@pytest.mark.parametrize("ahead", [True, False, None])
def test_every_item_comes_once_and_in_order(ahead: bool | None) -> None:
    assert list(prepared_ahead(list(range(20)), lambda n: n * n, CPU, ahead=ahead)) == [n * n for n in range(20)]
    assert not list(prepared_ahead([], lambda n: n, CPU, ahead=ahead))


def test_the_next_item_is_prepared_while_the_caller_works_with_this_one() -> None:
    """The caller holds item 0 until item 1 has been prepared, which without a second thread would never be."""
    done = [threading.Event(), threading.Event()]

    def prepare(item: int) -> int:
        done[item].set()
        return item

    for item in prepared_ahead([0, 1], prepare, CPU, ahead=True):
        assert item == 1 or done[1].wait(20)


def test_an_error_is_raised_in_its_own_turn() -> None:
    def prepare(item: int) -> int:
        if item == 2:
            raise ValueError("item 2 is bad")
        return item

    coming = prepared_ahead([0, 1, 2, 3], prepare, CPU, ahead=True)
    assert [next(coming), next(coming)] == [0, 1]
    with pytest.raises(ValueError, match="item 2 is bad"):
        next(coming)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_a_caller_who_stops_leaves_no_thread_behind() -> None:
    coming = prepared_ahead([0, 1, 2, 3], lambda item: item, CPU, ahead=True)
    assert next(coming) == 0
    coming.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_fetched_tensors_are_the_tensors() -> None:
    first, second = torch.arange(6).view(2, 3), torch.tensor([0.5])
    arrays = Fetch(first, second).arrays()
    assert [array.tolist() for array in arrays] == [first.tolist(), second.tolist()]


def test_answers_do_not_depend_on_when_a_batch_was_prepared(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    prepared = ring_prepared(tmp_path, users=10, items=20)
    ids = toy_ids(CODES, (4, 5))
    recommender = Recommender(random_policy(prepared, ids), ids, DecodeConfig(beam_width=6, rows_per_batch=12))
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    expected = recommender.both_orders(histories, 4)

    def ahead(items, prepare, device):  # type: ignore[no-untyped-def]
        return prepared_ahead(items, prepare, device, ahead=True)

    monkeypatch.setattr(recommender_module, "prepared_ahead", ahead)
    for found, before in zip(recommender.both_orders(histories, 4), expected, strict=True):
        assert np.array_equal(found.items, before.items)
        assert np.array_equal(found.scores, before.scores)
