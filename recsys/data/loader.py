"""Length-bucketed batches whose order depends on seed and epoch alone, and whose position can be saved mid-epoch."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recsys.data.augmentation import Augmentation
from recsys.data.batch import TrainingBatch
from recsys.data.options import AugmentConfig, BatchBy
from recsys.data.prefetch import prefetched
from recsys.data.samples import Samples
from recsys.data.words import Sentences

BUCKET_BATCHES = 32


class BucketedLoader:
    """Iterate over training batches.

    Rows are shuffled, cut into buckets of :data:`BUCKET_BATCHES` batches, sorted by length inside a bucket, and the batches
    are shuffled again: little padding, and no order by length.

    Several processes share each batch: process ``rank`` of ``world`` takes every ``world``-th of its rows, which are sorted
    by length. The batches are the same for any number of processes, and so is the position that is saved: a run may be
    resumed on another number.

    Lightning saves :meth:`state_dict` with a checkpoint and restores it before it iterates again.

    Args:
        batch_size: Rows of a batch, over all processes.
        batch_by: ``rows`` cuts a bucket into batches of as many rows; ``targets`` into as many batches of nearly as many
            targets. Windows of long histories hold many times the targets of short ones, and sorted by length their batches
            do, too, while every batch is one step.
        augment: How histories are changed, anew in every epoch; ``None`` or all off: not at all.
        sentences: What rows say in words; ``None``: nothing.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        seed: int,
        *,
        batch_by: BatchBy = "rows",
        augment: AugmentConfig | None = None,
        sentences: Sentences | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes: expected a rank from 0 to {world - 1}")
        self.samples, self.batch_size, self.seed, self.batch_by = samples, batch_size, seed, batch_by
        self.augment = augment if augment is not None and augment.is_on else None
        self.sentences = sentences
        self.rank, self.world = rank, world
        self.epoch, self.position = 0, 0
        self._prefetch = 0
        self._device: torch.device | None = None
        self._made: Generator[TrainingBatch, None, None] | None = None

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
            batches += np.split(bucket, self._cuts(bucket))
        return [batches[i] for i in generator.permutation(len(batches))]

    def _cuts(self, bucket: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where a bucket's batches but the first begin."""
        by_rows = np.arange(self.batch_size, len(bucket), self.batch_size)
        if self.batch_by == "rows":
            return by_rows
        number = np.arange(1, len(by_rows) + 1)
        targets = np.cumsum(self.samples.targets_per_row[bucket])
        by_targets = np.searchsorted(targets, targets[-1] * number / (len(by_rows) + 1)) + 1
        # no batch is empty: each begins at least a row after the one before it, and leaves a row to each one behind it
        by_targets = number + np.maximum.accumulate(by_targets - number)
        return np.minimum(by_targets, len(bucket) - number[::-1])

    def __iter__(self) -> Iterator[TrainingBatch]:
        self.load_state_dict(self.state_dict())  # moves to the next epoch when all batches of this one were handed out
        makers = [partial(self._make, rows, self.epoch) for rows in self.batches(self.epoch)[self.position :]]
        with closing(prefetched(makers, self._prefetch, self._device)) as made:
            self._made = made
            for number, batch in enumerate(made, self.position + 1):
                self.position = number  # before the yield: a checkpoint made while the batch is out counts it as done
                yield batch
        self.epoch, self.position = self.epoch + 1, 0

    def _make(self, rows: npt.NDArray[np.int64], epoch: int) -> TrainingBatch:
        """Collate this process's rows of a batch, as wide as the whole batch.

        The width is kept because the experts' load counts padding too: the processes together must see the tokens that one
        process would. A batch with fewer rows than processes leaves some without any. They compute a row that asks for
        nothing, because all processes must take part in every exchange.
        """
        if self.augment is not None:
            # cropping may take the longest row its length, so all rows say how wide the batch is
            whole = self._collate(rows, epoch, Augmentation(self.augment, self.seed, epoch))
            return whole if self.world == 1 else _part(whole, torch.arange(self.rank, len(rows), self.world))
        if self.world == 1:
            return self._collate(rows, epoch)
        own = rows[self.rank :: self.world]
        longest = rows[np.argmax(self.samples.lengths[rows])]
        return _part(self._collate(np.append(own, longest), epoch), torch.arange(len(own)))

    def _collate(
        self, rows: npt.NDArray[np.int64], epoch: int, augmentation: Augmentation | None = None
    ) -> TrainingBatch:
        batch = self.samples.collate(rows, augmentation)
        return batch if self.sentences is None else self.sentences.added(batch, rows, epoch)

    def place(self, device: torch.device, prefetch: int | None = None) -> None:
        """Hand out batches that are on ``device`` already, if that is a GPU, and make them ahead.

        Args:
            prefetch: Batches that a thread makes ahead (:mod:`recsys.data.prefetch`). ``None``: 2 for a GPU; none for a
                CPU, whose cores training needs itself.
        """
        self._device = device
        self._prefetch = (2 if device.type == "cuda" else 0) if prefetch is None else prefetch

    def close(self) -> None:
        """End the thread of an iteration that was left in its middle, and wait for it."""
        if self._made is not None:
            self._made.close()

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches already handed out."""
        if self.position == len(self):  # the epoch is over, though nobody asked for the end yet
            return {"epoch": self.epoch + 1, "position": 0}
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]


def _part(wide: TrainingBatch, kept: torch.Tensor) -> TrainingBatch:
    """Some rows of a batch, as wide as it; where none is kept, its rows without a target."""
    if len(kept) == 0:
        kept = torch.arange(min(len(wide), 1))
        wide = replace(wide, target_BPM=torch.zeros_like(wide.target_BPM))
    return TrainingBatch(wide.history.take(kept), wide.target_BPM[kept], wide.visible_BP[kept])
