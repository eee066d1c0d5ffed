"""The LightningModule that trains a policy by next-token prediction, with the dense head beside it.

Usable without our command line::

    module = PolicyModule(policy, TrainConfig(), DecodeConfig(), semantic_ids, total_steps=len(loader) * epochs)
    lightning.Trainer(max_epochs=epochs).fit(module, datamodule=PolicyData(...))

Legend: B users, P prediction points, M items per session, N supervised targets, D width.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch.optim.lr_scheduler import LambdaLR

from recsys.data.batch import TrainingBatch
from recsys.data.datamodule import ValidationRows
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics import row_metrics
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.semantic_ids.generation import SemanticIds
from recsys.training.config import TrainConfig
from recsys.training.losses import dense_loss, next_token_loss, sampled_dense_loss
from recsys.training.schedule import adamw, warmup_cosine

VALIDATION_K = 10


class PolicyModule(lightning.LightningModule):
    """Loss, optimiser and validation of a policy.

    Logs ``train/loss``, ``train/next_token``, ``train/dense`` and, from a real constrained beam search on the validation
    rows, ``valid/ndcg_at_10`` and ``valid/hr_at_10`` of the monitored ranking (``TrainConfig.monitor``) and both rankings'
    figures under ``valid/beam_…`` and ``valid/served_…``.
    """

    def __init__(
        self,
        policy: GenerativeRecommender,
        config: TrainConfig,
        decode: DecodeConfig,
        semantic_ids: SemanticIds,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.policy, self.config, self.decode = policy, config, decode
        self.semantic_ids, self.total_steps = semantic_ids, total_steps

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> torch.Tensor:
        """Sum of next-token loss and weighted dense loss."""
        hidden, query_BPD = self.policy(batch)
        asked_BPM = batch.target_BPM > 0
        code_losses = self.policy.code_losses(
            hidden[asked_BPM], batch.target_BPM[asked_BPM], self.config.label_smoothing
        )
        next_token = next_token_loss(code_losses, self.config.loss_reduction)
        loss = next_token
        if self.config.dense_weight > 0:
            dense = self._dense(query_BPD, batch.target_BPM)
            loss = loss + self.config.dense_weight * dense
            self.log("train/dense", dense.detach())
        self.log("train/next_token", next_token.detach(), prog_bar=True)
        self.log("train/loss", loss.detach())
        return loss

    def _dense(self, query_BPD: torch.Tensor, target_BPM: torch.Tensor) -> torch.Tensor:
        """Dense loss of the first item of each point's target, on a random share of the points."""
        asked_BP = target_BPM[..., 0] > 0
        query_ND, target_N = query_BPD[asked_BP], target_BPM[..., 0][asked_BP]
        if self.config.dense_targets_share < 1:
            keep = torch.rand(len(target_N), device=target_N.device) < self.config.dense_targets_share
            keep[0] = True
            query_ND, target_N = query_ND[keep], target_N[keep]
        sampled = self.config.dense_sampled_items
        if sampled is None or sampled >= self.policy.spec.vocabulary.num_items:
            return dense_loss(query_ND, self.policy.item_vectors(), target_N)
        negatives_S = torch.randint(1, self.policy.spec.vocabulary.num_items + 1, (sampled,), device=target_N.device)
        tower = self.policy.item_tower
        return sampled_dense_loss(query_ND, tower(target_N), tower(negatives_S), target_N[:, None] == negatives_S)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the balancing biases of the experts; before the step, so that a checkpoint after it holds both."""
        for layer in self.policy.moe_layers():
            layer.update_balance(self.policy.spec.model.balance_rate)

    def validation_step(self, rows: ValidationRows, batch_idx: int) -> None:
        """Decode the validation users and judge both rankings."""
        recommender = Recommender(self.policy, self.semantic_ids, self.decode)
        beam, served = recommender.both_orders(rows.histories, VALIDATION_K)
        for name, ranked in (("beam", beam), ("served", served)):
            metrics = row_metrics(ranked, rows.targets, [VALIDATION_K])
            for metric in ("ndcg", "hr"):
                value = float(metrics[f"{metric}@{VALIDATION_K}"].mean())
                self.log(f"valid/{name}_{metric}_at_{VALIDATION_K}", value, batch_size=len(rows))
                if name == self.config.monitor:
                    self.log(f"valid/{metric}_at_{VALIDATION_K}", value, prog_bar=True, batch_size=len(rows))

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine decay, stepped every batch."""
        optimizer = adamw(self.policy, self.config)
        warmup = max(1, int(self.config.warmup_share * self.total_steps))
        schedule = LambdaLR(
            optimizer,
            lambda step: warmup_cosine(step, self.total_steps, warmup, self.config.final_learning_rate_share),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
