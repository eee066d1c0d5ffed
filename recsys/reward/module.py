"""Training of a reward model under Lightning: batches, loss, optimiser, and which epoch is kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch.optim.lr_scheduler import LambdaLR

from recsys.data.batch import HistoryBatch, collate_histories
from recsys.data.loader import BucketedLoader
from recsys.reward.checkpoint import save_reward_model
from recsys.reward.config import RewardTrainConfig
from recsys.reward.feedback.dataset import SessionFeedback
from recsys.reward.groups import UserGroups, group_losses, next_weights, sums_by_group
from recsys.reward.loss import reward_loss, tower_losses
from recsys.reward.model import RewardScores, SessionRewardModel
from recsys.training.best_so_far import BestSoFar
from recsys.training.config import TrainConfig
from recsys.training.finite_steps import FiniteModule
from recsys.training.schedule import adamw, warmup_cosine

logger = logging.getLogger(__name__)

MONITOR: Final = "valid/bce"
WORST: Final = "valid/bce_worst"
"""Of the group with the largest, where there are groups."""
_VALIDATION_BATCH: Final = 512


@dataclass(frozen=True)
class FeedbackBatch:
    """Histories, sessions and labels.

    Attributes:
        items_BNM: int64 ``[B, N, M]`` item_index, -1 padding; N = 1, or 2 where the second is the
            first with unexposed items.
        labels_BNT: float32 ``[B, N, T]``, NaN not known.
        group_B: int64 ``[B]`` group of each user; all 0 without groups.
    """

    history: HistoryBatch
    items_BNM: torch.Tensor
    labels_BNT: torch.Tensor
    group_B: torch.Tensor

    def __len__(self) -> int:
        return len(self.history)

    def to(self, device: torch.device | str, **_: Any) -> FeedbackBatch:
        """Move all tensors (the name Lightning calls)."""
        tensors = (tensor.to(device, non_blocking=True) for tensor in (self.items_BNM, self.labels_BNT, self.group_B))
        return FeedbackBatch(self.history.to(device), *tensors)

    def pin_memory(self) -> FeedbackBatch:
        """Copy to memory from which a GPU fetches without the host waiting."""
        tensors = (tensor.pin_memory() for tensor in (self.items_BNM, self.labels_BNT, self.group_B))
        return FeedbackBatch(self.history.pin_memory(), *tensors)


class FeedbackDataset:
    """Sessions as rows of the bucketed loader.

    Args:
        unexposed_seed: Put the same session with unexposed items beside each, drawn anew every epoch; ``None``: do not.
        groups: Of the users; ``None``: all are one.
    """

    def __init__(
        self,
        feedback: SessionFeedback,
        max_items: int,
        max_history: int,
        unexposed_seed: int | None = None,
        groups: UserGroups | None = None,
    ) -> None:
        self.feedback, self.max_items, self.max_history = feedback, max_items, max_history
        users = feedback.user_index
        self.group_N = np.zeros(len(users), np.int64) if groups is None else groups.of_user_U[users]
        self.unexposed_seed = unexposed_seed
        self._unexposed: tuple[int, SessionFeedback] | None = None

    def __len__(self) -> int:
        return len(self.feedback)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """History events per row: what decides its cost."""
        return np.minimum(self.feedback.histories.lengths, self.max_history)

    def unexposed(self, epoch: int) -> list[SessionFeedback]:
        """The sessions beside the real ones, in that epoch; a function of seed and epoch alone."""
        if self.unexposed_seed is None:
            return []
        if self._unexposed is None or self._unexposed[0] != epoch:
            self._unexposed = epoch, self.feedback.with_unexposed_items(self.unexposed_seed, epoch)
        return [self._unexposed[1]]

    def collate(self, rows: npt.NDArray[np.int64], epoch: int = 0) -> FeedbackBatch:
        """Build the batch of the given sessions."""
        parts = [source.take(rows) for source in (self.feedback, *self.unexposed(epoch))]
        items = np.stack([part.padded_items(self.max_items) for part in parts], axis=1).astype(np.int64)
        labels = np.stack([part.labels for part in parts], axis=1)
        history = collate_histories(parts[0].histories, self.max_history)
        tensors = (torch.from_numpy(part) for part in (items, labels, self.group_N[rows]))
        return FeedbackBatch(history, *tensors)


class FeedbackLoader(BucketedLoader):
    """The bucketed loader over sessions, which tells its rows the epoch."""

    def __init__(self, rows: FeedbackDataset, batch_size: int, seed: int) -> None:
        super().__init__(rows, batch_size, seed)  # type: ignore[arg-type]  # it asks for lengths and collate alone
        self.rows = rows

    def _make(self, rows: npt.NDArray[np.int64], epoch: int) -> FeedbackBatch:  # type: ignore[override]
        return self.rows.collate(rows, epoch)


class InOrderLoader:
    """Validation batches, always the same."""

    def __init__(self, rows: FeedbackDataset) -> None:
        order = np.argsort(rows.lengths, kind="stable")
        self.rows = rows
        self.batches = [order[i : i + _VALIDATION_BATCH] for i in range(0, len(order), _VALIDATION_BATCH)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return (self.rows.collate(batch) for batch in self.batches)


class RewardModule(FiniteModule):
    """Loss, optimiser and validation of a reward model; logs ``train/loss``, ``valid/bce`` and ``valid/bce_<tower>``."""

    config_key = "reward.train"
    weights_T: torch.Tensor
    group_weights_G: torch.Tensor

    def __init__(
        self, model: SessionRewardModel, config: RewardTrainConfig, total_steps: int, groups: UserGroups | None = None
    ) -> None:
        super().__init__()
        self.group_names = ("all",) if groups is None else groups.names
        # part of the state: a killed training goes on with the weights that its groups had; without groups there is none
        start = torch.full((len(self.group_names),), 1.0 / len(self.group_names))
        self.register_buffer("group_weights_G", start, persistent=groups is not None)
        self.model, self.config, self.total_steps = model, config, total_steps
        self.peak_rate = config.learning_rate
        self.register_buffer("weights_T", model.default_weights(), persistent=False)
        self._sums: list[torch.Tensor] = []
        self._counts: list[torch.Tensor] = []
        self._by_group: tuple[torch.Tensor, ...] | None = None

    def training_step(self, batch: FeedbackBatch, batch_idx: int) -> torch.Tensor:
        """Cross-entropy of all towers, on real sessions and on those with unexposed items."""
        scores = self.model.score(batch.history, batch.items_BNM)
        worst_group = self.config.worst_group
        if worst_group is None:
            loss = self._loss(scores, batch)
        else:
            losses_G = self._loss(scores, batch, len(self.group_names))
            self.group_weights_G = next_weights(self.group_weights_G, losses_G, worst_group.step_size)
            loss = (self.group_weights_G * losses_G).sum()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        self.finite.note_loss(loss)
        return loss

    def _loss(self, scores: RewardScores, batch: FeedbackBatch, num_groups: int | None = None) -> torch.Tensor:
        """Cross-entropy of all towers, of all sessions or ``[G]`` by groups; unexposed items count by their weight."""

        def part(number: int) -> torch.Tensor:
            labels = batch.labels_BNT[:, number : number + 1]
            if num_groups is None:
                return reward_loss(scores.candidates(number), labels, self.weights_T)
            return group_losses(scores.candidates(number), labels, self.weights_T, batch.group_B, num_groups)

        loss = part(0)
        return loss + self.config.unexposed_weight * part(1) if batch.items_BNM.shape[1] > 1 else loss

    def validation_step(self, batch: FeedbackBatch, batch_idx: int) -> None:
        """Collect sums of the cross-entropy, so that the mean over sessions does not depend on the batches."""
        logits = self.model.score(batch.history, batch.items_BNM).logits
        known = (~batch.labels_BNT.isnan()).sum((0, 1))
        self._sums.append(tower_losses(logits, batch.labels_BNT) * known)
        self._counts.append(known)
        if self.config.worst_group is not None:
            found = sums_by_group(logits, batch.labels_BNT, batch.group_B, len(self.group_names))
            self._by_group = found if self._by_group is None else tuple(map(torch.add, self._by_group, found))

    def on_validation_epoch_end(self) -> None:
        """Mean over validation sessions, per tower and summed."""
        per_tower = torch.stack(self._sums).sum(0) / torch.stack(self._counts).sum(0).clamp(min=1)
        self._sums, self._counts = [], []
        for name, value in zip(self.model.spec.names, per_tower, strict=True):
            self.log(f"valid/bce_{name}", value)
        self.log(MONITOR, per_tower.sum(), prog_bar=True)
        if self._by_group is not None:
            sums_GT, counts_GT = self._by_group
            self._by_group = None
            per_group = (sums_GT / counts_GT.clamp(min=1)).sum(1)
            for name, value in zip(self.group_names, per_group, strict=True):
                self.log(f"valid/bce_of_{name}", value)
            self.log(WORST, per_group.max())

    def _rate_factor(self, step: int) -> float:
        warmup = max(1, int(self.config.warmup_share * self.total_steps))
        return warmup_cosine(step, self.total_steps, warmup, self.config.final_learning_rate_share)

    def rate_at(self, step: int) -> float:
        """Learning rate of an optimiser step."""
        return self.config.learning_rate * self._rate_factor(step - 1)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine decay, as the policy's."""
        config = self.config
        groups = TrainConfig(
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            table_weight_decay=config.table_weight_decay,
        )
        optimizer = adamw(self.model, groups)
        schedule = LambdaLR(optimizer, lambda step: self._rate_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class BestRewardModel(BestSoFar):
    """Keep the model with the least validation cross-entropy, and stop after ``patience`` validations without a better.

    Args:
        monitor: Whose: of all sessions, or of the worst group.
    """

    def __init__(self, folder: Path, patience: int, monitor: str = MONITOR) -> None:
        super().__init__(folder, patience, worst=float("inf"))
        self.monitor = monitor

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on with a run that was at its end only to its end."""
        if trainer.global_step == self.validated_step and self.out_of_patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare, keep, decide."""
        assert isinstance(pl_module, RewardModule)
        value = float(trainer.callback_metrics[self.monitor])
        logger.info("epoch %d: validation cross-entropy %.4f, %.0f s", trainer.current_epoch + 1, value, self.seconds)
        better = value < self.best_value
        self.note(value, trainer, better=better)
        if better:
            save_reward_model(self.folder, pl_module.model)
        if self.out_of_patience:
            trainer.should_stop = True
