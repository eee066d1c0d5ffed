"""Batches made ahead: the same in the same order, errors where they belong, and no thread that outlives its loop."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.data.loader import BucketedLoader
from recsys.data.options import AugmentConfig
from recsys.data.prefetch import prefetched, tensors_of
from recsys.data.samples import PrefixWindows
from tests.toy.dataset import ring_prepared


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 2, 100])
def test_results_come_in_order(depth: int) -> None:
    assert list(prefetched([lambda n=n: n for n in range(9)], depth)) == list(range(9))


def test_the_worker_is_ahead_of_the_loop_by_depth_and_not_more() -> None:
    """Two wait in the queue and one is in the worker's hands while result 0 is out."""
    made: list[int] = []
    results = prefetched([lambda n=n: made.append(n) or n for n in range(20)], depth=2)
    assert next(results) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    results.close()


@pytest.mark.parametrize("error", [ValueError("row 7"), KeyboardInterrupt()])
def test_an_error_comes_where_its_result_would_have(error: BaseException) -> None:
    def fail() -> int:
        raise error

    results = prefetched([lambda: 0, lambda: 1, fail, lambda: 3], depth=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(type(error)) as told:
        next(results)
    assert told.value is error


def loader(folder: Path, prefetch: int) -> BucketedLoader:
    samples = PrefixWindows.from_dataset(ring_prepared(folder), 5)
    made = BucketedLoader(samples, 8, seed=3, augment=AugmentConfig(crop_share=0.5, mask_share=0.3))
    made.place(torch.device("cpu"), prefetch)
    return made


def test_a_loader_that_is_left_and_resumed_hands_out_what_the_plain_one_does(tmp_path: Path) -> None:
    """Three epochs with augmentation, which differs by epoch; the second loader stops in its middle and another goes on."""
    plain = loader(tmp_path / "a", 0)
    expected = [batch for _ in range(3) for batch in plain]
    ahead = loader(tmp_path / "b", 3)
    seen = list(ahead)
    for batch in ahead:
        seen.append(batch)
        if len(seen) == len(ahead) + 4:
            break
    assert ahead.state_dict() == {"epoch": 1, "position": 4}
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    again = loader(tmp_path / "c", 2)
    again.load_state_dict(ahead.state_dict())
    seen += [batch for _ in range(2) for batch in again]
    assert len(seen) == len(expected)
    for ours, theirs in zip(seen, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(ours), tensors_of(theirs), strict=True))
    epochs = [np.sort(batch.target_BPM.flatten().numpy()) for batch in (expected[0], expected[len(plain)])]
    assert len(epochs[0]) != len(epochs[1]) or (epochs[0] != epochs[1]).any()


def test_all_tensors_of_a_batch_are_found(tmp_path: Path) -> None:
    batch = PrefixWindows.from_dataset(ring_prepared(tmp_path), 5).collate(np.arange(4))
    found = list(tensors_of(batch))
    assert any(tensor is batch.asked.point_N for tensor in found)
    assert any(tensor is batch.history.item_BH for tensor in found)
