"""The order in which alignment reads the training samples.

It is a function of seed and step alone, so that any step can be found again after a kill.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from recsys.alignment.rollouts.sampler import Requests
from recsys.contracts.dataset import Dataset
from recsys.data.batch import TrainingBatch
from recsys.data.loader import BucketedLoader
from recsys.data.samples import TargetRows


class RequestStream:
    """Batches of (history, target) pairs of the train split, epoch after epoch.

    Args:
        max_history: Of the policy.
        kept: Numbers of the samples that are read, ascending; ``None``: all.
    """

    def __init__(
        self,
        prepared: Dataset,
        max_history: int,
        batch_size: int,
        seed: int,
        kept: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.prepared = prepared
        samples = TargetRows.from_dataset(prepared, max_history)
        self.samples = samples if kept is None else samples.only(kept)
        self._loader = BucketedLoader(self.samples, batch_size, seed)
        self._epoch, self._batches = -1, list[npt.NDArray[np.int64]]()

    def __len__(self) -> int:
        """Samples of one epoch."""
        return len(self.samples)

    def steps_for(self, num_samples: int | None) -> int:
        """Steps that meet at least so many samples; ``None`` is one epoch."""
        if num_samples is None:
            return len(self._loader)
        return -(-num_samples // self._loader.batch_size)

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Sample numbers of the batch of one step, counted from 0 over all epochs."""
        epoch, place = divmod(step, len(self._loader))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._loader.batches(epoch)
        return self._batches[place]

    def collate(self, rows: npt.NDArray[np.int64]) -> TrainingBatch:
        """Batch for the next-token loss, one prediction point per sample."""
        return self.samples.collate(rows)

    def requests(self, rows: npt.NDArray[np.int64]) -> Requests:
        """The samples as requests to roll out."""
        return Requests.from_targets(self.prepared, self.samples.targets.take(rows))


def seeded(*parts: int) -> torch.Generator:
    """Return a generator on the CPU whose seed is made of several numbers, for draws that belong to one place of a run."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))
