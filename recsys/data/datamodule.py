"""The Lightning data module: training batches and the rows that validation decodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import lightning
import numpy as np

from recsys.contracts.columns import SPLIT_NAMES, VALID
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import DataError
from recsys.data.batch import TrainingBatch
from recsys.data.histories import Histories
from recsys.data.loader import BucketedLoader
from recsys.data.options import AugmentConfig, BatchBy, WordsConfig
from recsys.data.samples import PrefixWindows, RecentRows, Samples, TargetRows, TrainingForm
from recsys.data.words import Sentences


@dataclass(frozen=True)
class ValidationRows:
    """Histories and what followed them; decoded in one go."""

    histories: Histories
    targets: Targets

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, rank: int, world: int) -> ValidationRows:
        """Every ``world``-th row from ``rank`` on; all rows of one process are the rows of the parts of several."""
        rows = np.arange(rank, len(self), world)
        return ValidationRows(self.histories.take(rows), self.targets.take(rows))


class _OneBatch:
    """A loader of a single batch."""

    def __init__(self, rows: ValidationRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[ValidationRows]:
        yield self.rows


class PolicyData(lightning.LightningDataModule):
    """Training and validation rows of a prepared data set.

    Args:
        form: ``all_prefixes`` supervises every train event of a user in one pass (needs a causal encoder and the
            next-item task); ``pairs`` feeds one (history, target) pair per row.
        batch_size: Rows of a training batch, over all processes.
        batch_by: Cut batches of equal rows, or of equal targets (:class:`~recsys.data.loader.BucketedLoader`).
        augment: How the histories of training rows are changed; validation rows never are.
        words: What training rows say in words; validation rows say nothing. ``None``: nothing.
        validation_users: Rows of the validation split to decode, drawn once from ``seed``.
        recent: Which training rows stay; ``None``: all.
        prefetch: As :meth:`~recsys.data.loader.BucketedLoader.place` has it.
        rank, world: This process among those that train together; they share every batch and the validation rows.

    Raises:
        DataError: The validation split is empty.
    """

    def __init__(
        self,
        prepared: Dataset,
        *,
        form: TrainingForm,
        max_history: int,
        batch_size: int,
        validation_users: int,
        seed: int,
        batch_by: BatchBy = "rows",
        augment: AugmentConfig | None = None,
        words: WordsConfig | None = None,
        rank: int = 0,
        world: int = 1,
        prefetch: int | None = None,
        recent: RecentRows | None = None,
    ) -> None:
        super().__init__()
        samples: Samples = (PrefixWindows if form == "all_prefixes" else TargetRows).from_dataset(prepared, max_history)
        if recent is not None:
            samples = samples.only(recent.rows(samples.last_instant, seed))
        sentences = None if words is None else Sentences(prepared.items, words, len(samples), seed)
        self.loader = BucketedLoader(
            samples, batch_size, seed, batch_by=batch_by, augment=augment, sentences=sentences, rank=rank, world=world
        )
        self.prefetch = prefetch
        rows = validation_rows(prepared, validation_users, seed)
        self.validation = rows if world == 1 else rows.part(rank, world)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        return len(self.loader)

    def train_dataloader(self) -> BucketedLoader:
        """The bucketed loader; its position is saved with every checkpoint. It copies batches to the trainer's GPU."""
        if self.trainer is not None:
            self.loader.place(self.trainer.strategy.root_device, self.prefetch)
        return self.loader

    def val_dataloader(self) -> _OneBatch:
        """This process's validation rows as one batch; decoding splits them as its memory bound says."""
        return _OneBatch(self.validation)

    def transfer_batch_to_device(self, batch: object, device: object, dataloader_idx: int) -> object:
        """Move training batches; validation rows stay NumPy until they are decoded."""
        return batch.to(device) if isinstance(batch, TrainingBatch) else batch  # type: ignore[arg-type]


def validation_rows(prepared: Dataset, count: int, seed: int) -> ValidationRows:
    """Draw validation rows, in row order."""
    targets = prepared.targets(VALID)
    if len(targets) == 0:
        raise DataError(f"split '{SPLIT_NAMES[VALID]}' holds no target; training needs it to choose a checkpoint")
    if len(targets) > count:
        rows = np.random.default_rng([seed, 1]).choice(len(targets), count, replace=False)
        targets = targets.take(np.sort(rows))
    return ValidationRows(Histories.from_targets(prepared.history, targets), targets)
