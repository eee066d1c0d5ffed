"""Length-bucketed batches whose order depends on seed and epoch alone, and whose position can be saved mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.data.batch import TrainingBatch
from recsys.data.samples import Samples

BUCKET_BATCHES = 32


class BucketedLoader:
    """Iterate over training batches.

    Rows are shuffled, cut into buckets of :data:`BUCKET_BATCHES` batches, sorted by length inside a bucket, and the batches
    are shuffled again: little padding, and no order by length.

    Lightning saves :meth:`state_dict` with a checkpoint and restores it before it iterates again.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Row numbers of every batch of an epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.samples))
        lengths = self.samples.lengths
        batches: list[npt.NDArray[np.int64]] = []
        step = self.batch_size * BUCKET_BATCHES
        for start in range(0, len(order), step):
            bucket = order[start : start + step]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches += [bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def __iter__(self) -> Iterator[TrainingBatch]:
        self.load_state_dict(self.state_dict())  # moves to the next epoch when all batches of this one were handed out
        batches = self.batches(self.epoch)
        for number in range(self.position, len(batches)):
            self.position = number + 1  # before the yield: a checkpoint made while the batch is out counts it as done
            yield self.samples.collate(batches[number])
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches already handed out."""
        if self.position == len(self):  # the epoch is over, though nobody asked for the end yet
            return {"epoch": self.epoch + 1, "position": 0}
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]
