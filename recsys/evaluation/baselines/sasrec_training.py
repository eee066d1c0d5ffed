"""Train and apply SASRec: batches, the LightningModule, early stopping, and the baseline around them.

Reads a prepared data set; produces a fitted :class:`SASRec` and its curves. The best epoch is chosen by ndcg@10 on rows
of the validation split, with seen items excluded, never on the test split.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import lightning
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Dataset, OffsetArray, Targets
from recsys.contracts.errors import DataError
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import DenseRanker, fitted, rank_in_blocks
from recsys.evaluation.baselines.config import SASRecConfig, Scale
from recsys.evaluation.baselines.sasrec import SASRecNetwork
from recsys.metrics.names import tracked_name
from recsys.metrics.ranking import row_metrics
from recsys.scorers.config import Until
from recsys.scorers.events import FloatArray, ragged_rows

logger = logging.getLogger(__name__)
LongArray = npt.NDArray[np.int64]

MONITORED = tracked_name("ndcg@10")


def padded_items(item: npt.NDArray[np.int32], start: OffsetArray, end: OffsetArray, max_len: int) -> LongArray:
    """Lay out the last events of ranges ``[start, end)`` as rows, latest last.

    Returns:
        ``[rows, min(longest, max_len)]`` item_index + 1; 0 is padding, and stands for unknown items (-1) as well.

    Example:
        >>> padded_items(np.array([4, 5, 6], np.int32), np.array([0, 2]), np.array([2, 3]), max_len=5).tolist()
        [[5, 6], [0, 7]]
    """
    start = np.maximum(start, end - max_len)
    width = max(1, int((end - start).max(initial=1)))
    rows = np.zeros((len(start), width), np.int64)
    row, flat = ragged_rows(start, end)
    rows[row, width - (end[row] - flat)] = np.asarray(item)[flat].astype(np.int64) + 1
    return rows


class SequenceBatches(IterableDataset[tuple[Tensor, Tensor]]):
    """One pass over all users' sequences per epoch, in batches of similar length.

    A user's sequence is cut into chunks of at most ``max_len`` transitions, counted from the end, so every event that
    has a successor is supervised once per epoch, but for what cropping leaves out. Sorting pools of 50 batches by length
    saves most of the padding and leaves enough chance in the order.

    Cropping takes a random part of a sequence, which shows its end under other lengths of context; reordering shuffles a
    random window of it. Both are drawn anew every epoch (Xie et al. 2022, "Contrastive Learning for Sequential
    Recommendation", for the two; without its contrastive loss).
    """

    def __init__(self, prepared: Dataset, until: Until, config: SASRecConfig, seed: int) -> None:
        history = prepared.history
        end = np.asarray(history.train_end if until == "train" else history.valid_end).astype(np.int64)
        first = np.asarray(history.offsets[:-1]).astype(np.int64)
        chunks = -(-np.maximum(end - 1 - first, 0) // config.max_len)
        row, number = ragged_rows(np.zeros_like(chunks), chunks)
        self.last = end[row] - number * config.max_len  # row after the last target of the chunk
        self.first = np.maximum(first[row], self.last - 1 - config.max_len)
        if not len(row):
            raise DataError(
                f"sasrec: no user has two events before the end of the {until} split; nothing can be learned"
            )
        self.item = history.item
        self.config, self.batch_size, self.max_len, self.seed = config, config.batch_size, config.max_len, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self.last) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(items [B, T], next items [B, T])`` as :meth:`SASRecNetwork.loss` takes them."""
        generator = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        order = generator.permutation(len(self.last))
        first_of, last_of = self._cropped(generator)
        item = self._reordered(first_of, last_of, generator)
        pool = 50 * self.batch_size
        pools = [order[begin : begin + pool] for begin in range(0, len(order), pool)]
        sorted_pools = [rows[np.argsort(last_of[rows] - first_of[rows], kind="stable")] for rows in pools]
        batches = [
            rows[begin : begin + self.batch_size]
            for rows in sorted_pools
            for begin in range(0, len(rows), self.batch_size)
        ]
        for number in generator.permutation(len(batches)):
            first, last = first_of[batches[number]], last_of[batches[number]]
            items = padded_items(item, first, last - 1, self.max_len)
            following = padded_items(item, first + 1, last, self.max_len) - 1
            yield torch.from_numpy(items), torch.from_numpy(following)

    def _cropped(self, generator: np.random.Generator) -> tuple[OffsetArray, OffsetArray]:
        """Draw this epoch's part of every sequence: all of it, or at least ``crop_least`` of it and two events."""
        if not self.config.crop:
            return self.first, self.last
        length = self.last - self.first
        share = generator.uniform(self.config.crop_least, 1.0, len(length))
        share[generator.random(len(length)) >= self.config.crop] = 1.0
        kept = np.minimum(length, np.maximum(2, np.ceil(share * length).astype(np.int64)))
        first = self.first + (generator.random(len(length)) * (length - kept + 1)).astype(np.int64)
        return first, first + kept

    def _reordered(
        self, first: OffsetArray, last: OffsetArray, generator: np.random.Generator
    ) -> npt.NDArray[np.int32]:
        """Shuffle a window of ``reorder_window`` of the events in a share of ``reorder`` of the sequences."""
        if not self.config.reorder:
            return self.item
        item = np.array(self.item)
        for row in np.flatnonzero(generator.random(len(first)) < self.config.reorder):
            window = int(np.ceil(self.config.reorder_window * (last[row] - first[row])))
            begin = int(first[row] + generator.integers(last[row] - first[row] - window + 1))
            generator.shuffle(item[begin : begin + window])
        return item


class SASRecModule(lightning.LightningModule):
    """Training of a :class:`SASRecNetwork`; logs ``train_loss`` per epoch."""

    def __init__(self, network: SASRecNetwork, config: SASRecConfig, num_steps: int) -> None:
        super().__init__()
        self.network, self.config, self.num_steps = network, config, num_steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Cross-entropy of the next items."""
        loss = self.network.loss(*batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """AdamW with linear warm-up and cosine; matrices decay, embeddings, norms and biases do not."""
        config, warmup = self.config, max(1, round(self.config.warmup_share * self.num_steps))
        named = list(self.network.named_parameters())
        decayed = [p for name, p in named if p.ndim == 2 and "embedding" not in name]
        plain = [p for name, p in named if p.ndim != 2 or "embedding" in name]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), foreach=True)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, self.num_steps - warmup))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class CurvePoint:
    """One number of one epoch."""

    epoch: int
    name: str
    value: float


class _KeepBest(Callback):
    """Evaluate validation rows after each epoch, keep the best weights in memory, record the curves."""

    def __init__(self, histories: Histories, targets: Targets) -> None:
        self.histories, self.targets = histories, targets
        self.curves: list[CurvePoint] = []
        self.best_value = -1.0
        self.best_weights: dict[str, Tensor] = {}
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, SASRecModule)
        ranked = rank_with_network(pl_module.network, self.histories, 10, exclude_seen=True)
        value = float(row_metrics(ranked, self.targets, [10])["ndcg@10"].mean())
        pl_module.log(MONITORED, value)
        loss = float(trainer.callback_metrics["train_loss"])
        epoch = trainer.current_epoch
        self.curves += [CurvePoint(epoch, "train_loss", loss), CurvePoint(epoch, "ndcg@10", value)]
        if value > self.best_value:
            self.best_value = value
            self.best_weights = {name: t.detach().clone() for name, t in pl_module.network.state_dict().items()}
        seconds = time.monotonic() - self.started
        logger.info("sasrec: epoch %d, loss %.4f, valid ndcg@10 %.4f, %.0f s", epoch, loss, value, seconds)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banner and its advice on worker processes; our own lines tell the progress."""
    banner = logging.getLogger("lightning.pytorch")
    level = banner.level
    banner.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for advice in (".*does not have many workers.*", ".*has `__len__` defined.*", ".*LeafSpec.*"):
                warnings.filterwarnings("ignore", message=advice)
            yield
    finally:
        banner.setLevel(level)


def train_sasrec(
    prepared: Dataset, config: SASRecConfig, seed: int, until: Until
) -> tuple[SASRecNetwork, list[CurvePoint]]:
    """Train on the CPU, so that the table does not depend on an accelerator.

    Same data, configuration, seed and number of threads give the same weights.

    With ``until="valid"`` the validation rows are training data, so they cannot choose an epoch: training runs for
    ``max_epochs`` and the last weights are kept.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = SequenceBatches(prepared, until, config, seed)
        network = SASRecNetwork(prepared.spec.num_items, config)
        module = SASRecModule(network, config, config.max_epochs * len(batches))
        targets = prepared.targets(VALID)
        sample = np.random.default_rng(seed).permutation(len(targets))[: config.valid_rows]
        targets = targets.take(np.sort(sample))
        callbacks: list[Callback] = []
        keeper = _KeepBest(Histories.from_targets(prepared.history, targets), targets)
        if until == "train":
            if not len(targets):
                raise DataError(
                    "sasrec: the validation split has no rows, so no epoch can be chosen; make one in `prepare`"
                )
            callbacks = [keeper, EarlyStopping(MONITORED, patience=config.patience, mode="max")]
        if config.max_minutes is not None:
            callbacks.append(Timer(duration=timedelta(minutes=config.max_minutes), interval="epoch", verbose=False))
        with _quiet_lightning():
            trainer = lightning.Trainer(
                max_epochs=config.max_epochs,
                accelerator="cpu",
                devices=1,
                logger=False,
                callbacks=callbacks,
                gradient_clip_val=1.0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, DataLoader(batches, batch_size=None))
    if keeper.best_weights:
        network.load_state_dict(keeper.best_weights)
    return network.eval(), keeper.curves


@torch.inference_mode()
def rank_with_network(network: SASRecNetwork, histories: Histories, k: int, exclude_seen: bool) -> RankedItems:
    """Rank by the scores after the last event; an empty history is encoded as one padding event."""
    was_training = network.training
    network.eval()

    ranked = rank_in_blocks(lambda rows: scores_of(network, rows), histories, network.num_items, k, exclude_seen)
    network.train(was_training)
    return ranked


@torch.inference_mode()
def scores_of(network: SASRecNetwork, histories: Histories) -> FloatArray:
    """Logits of all items after the last event, ``[n, I]``."""
    items = torch.from_numpy(padded_items(histories.item, histories.start, histories.end, network.max_len))
    return network.scores(network(items)[:, -1]).numpy()


class SASRec(DenseRanker):
    """The baseline: ``fit`` trains, ``rank`` scores the catalogue."""

    name: ClassVar[str] = "sasrec"
    scale: ClassVar[Scale] = "logits"

    def __init__(self, config: SASRecConfig | None = None) -> None:
        self.config = config or SASRecConfig()
        self.curves: list[CurvePoint] = []
        self._network: SASRecNetwork | None = None

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Train and keep the weights of the best epoch; see :func:`train_sasrec`."""
        self._network, self.curves = train_sasrec(prepared, self.config, seed, until)

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return fitted(self._network, self.name).num_items

    def scores(self, histories: Histories) -> FloatArray:
        """Score by the trained network."""
        return scores_of(fitted(self._network, self.name), histories)
