"""The LightningModule that trains a policy by next-token prediction, with the dense head beside it.

Usable without our command line::

    module = PolicyModule(policy, TrainConfig(), DecodeConfig(), semantic_ids, total_steps=len(loader) * epochs)
    lightning.Trainer(max_epochs=epochs).fit(module, datamodule=PolicyData(...))

Legend: B users, P prediction points, M items per session, N supervised targets, D width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from recsys.data.batch import TrainingBatch
from recsys.data.datamodule import ValidationRows
from recsys.decoding.config import DecodeConfig
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import row_metrics
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.config import TrainConfig
from recsys.training.distributed.processes import means_over_processes, sums_over_processes
from recsys.training.distributed.sharding import gathered, set_learning_rate, step_ids
from recsys.training.finite_steps import FiniteModule
from recsys.training.losses import (
    dense_loss,
    distillation_loss,
    next_token_loss,
    prefix_loss,
    sampled_dense_loss,
    teacher_code_probs,
)
from recsys.training.schedule import adamw, warmup_cosine

VALIDATION_K = 10
RANKINGS = ("beam", "served")
METRICS = ("ndcg", "hr")


@dataclass(frozen=True)
class _Term:
    """A part of the loss: its mean over ``count`` targets of this process, and its weight."""

    mean: torch.Tensor
    count: int
    weight: float = 1.0


class PolicyModule(FiniteModule):
    """Loss, optimiser and validation of a policy.

    Logs ``train/loss`` and its parts (``train/next_token``, ``train/dense`` and those that are switched on). From a real
    constrained beam search on the validation rows come ``valid/ndcg_at_10`` and ``valid/hr_at_10`` of the monitored ranking
    (``TrainConfig.monitor``), and both rankings' figures under ``valid/beam_…`` and ``valid/served_…``.
    """

    config_key = "train"

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
        self.peak_rate = config.learning_rate

    def on_train_batch_start(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Let sharded tables, which no optimiser object steps, follow the schedule."""
        if self.policy.tables.is_sharded:
            rate = self.config.effective_table_learning_rate * self._rate_factor(self.trainer.global_step)
            set_learning_rate(self.policy.tables, rate)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> torch.Tensor:
        """Sum of the next-token loss and the weighted others, each a mean over the targets of all processes.

        1. where tables are sharded, fetch all rows of the step at once, for which the negatives must be drawn first;
        2. compute this process's losses;
        3. weight them by its share of the targets.
        """
        negatives_S = self._draw_negatives() if self.policy.tables.is_sharded else None
        with self._lookups(batch, negatives_S):
            terms = self._losses(batch, negatives_S)
        if terms["next_token"].count:  # a row that only keeps this process in step is no load on the experts
            for layer in self.policy.moe_layers():
                layer.note_load()
        means = means_over_processes([term.mean for term in terms.values()], [term.count for term in terms.values()])
        loss, loss_log = (torch.zeros_like(part) for part in means[0])
        for (name, term), (mean, mean_log) in zip(terms.items(), means, strict=True):
            loss, loss_log = loss + term.weight * mean, loss_log + term.weight * mean_log
            # a figure in the progress bar is read at every step, for which a GPU would be waited for
            self.log(f"train/{name}", mean_log, prog_bar=name == "next_token" and self.device.type == "cpu")
        self.log("train/loss", loss_log)
        self.finite.note_loss(loss_log)
        return loss

    def _losses(self, batch: TrainingBatch, negatives_S: torch.Tensor | None) -> dict[str, _Term]:
        """The loss's parts as means over this process's targets."""
        config = self.config
        hidden, query_BPD = self.policy(batch)
        asked, target_BPM = batch.asked, batch.target_BPM
        code_losses = self.policy.code_losses(asked.items(hidden), asked.items(target_BPM), config.label_smoothing)
        count = len(code_losses)
        # without targets a mean would be NaN; an empty sum is a zero that still reaches every parameter
        next_token = next_token_loss(code_losses, config.loss_reduction) if count else code_losses.sum()
        terms = {"next_token": _Term(next_token, count)}
        if config.prefix_weight > 0:
            prefix = prefix_loss(code_losses, config.prefix_adaptivity) if count else code_losses.sum()
            terms["prefix"] = _Term(prefix, count, config.prefix_weight)
        if config.dense_weight > 0:
            query_ND, target_N = asked.points_of_items(query_BPD), asked.items(target_BPM)
            dense, num_dense = self._dense(query_ND, target_N, negatives_S)
            terms["dense"] = _Term(dense, num_dense, config.dense_weight)
        if config.distillation_weight > 0:
            first = (asked.first_items(values) for values in (hidden[:, :, 0], query_BPD, target_BPM[..., 0]))
            distilled, num_distilled = self._distilled(*first)
            terms["distillation"] = _Term(distilled, num_distilled, config.distillation_weight)
        for name, loss in self.policy.auxiliary_losses(batch).items():
            terms[name] = _Term(loss.mean, loss.count, loss.weight)
        return terms

    def _distilled(
        self, hidden_NLD: torch.Tensor, query_ND: torch.Tensor, target_N: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        """Distillation loss of first items, on a random share of them, and how many."""
        if len(target_N) == 0:
            return hidden_NLD.sum(), 0
        kept = _random_share(len(target_N), self.config.distillation_share, target_N.device)
        hidden_NLD, query_ND, target_N = hidden_NLD[kept], query_ND[kept], target_N[kept]
        codes_IL = self.policy.item_tower.codes_IL
        sizes = self.policy.spec.level_sizes
        with torch.no_grad():
            teacher = teacher_code_probs(query_ND, self.policy.item_vectors(), codes_IL, target_N, sizes)
        logits = [self.policy.decoder.code_logits(hidden_NLD[:, level], level) for level in range(len(sizes))]
        return distillation_loss(logits, teacher), len(target_N)

    def _dense(
        self, query_ND: torch.Tensor, target_N: torch.Tensor, negatives_S: torch.Tensor | None
    ) -> tuple[torch.Tensor, int]:
        """Dense loss of the items that are asked for, on a random share of them, and how many those are."""
        if len(target_N) == 0:
            return query_ND.sum(), 0
        if self.config.dense_targets_share < 1:
            kept = _random_share(len(target_N), self.config.dense_targets_share, target_N.device)
            query_ND, target_N = query_ND[kept], target_N[kept]
        if not self._samples_negatives:
            return dense_loss(query_ND, self.policy.item_vectors(), target_N), len(target_N)
        if negatives_S is None:
            negatives_S = self._draw_negatives()
        assert negatives_S is not None
        tower = self.policy.item_tower
        loss = sampled_dense_loss(query_ND, tower(target_N), tower(negatives_S), target_N[:, None] == negatives_S)
        return loss, len(target_N)

    @property
    def _samples_negatives(self) -> bool:
        sampled = self.config.dense_sampled_items
        return sampled is not None and sampled < self.policy.spec.dataset.num_items

    def _draw_negatives(self) -> torch.Tensor | None:
        """Item rows for the sampled softmax; ``None`` where the whole catalogue is scored."""
        if not self._samples_negatives or self.config.dense_weight == 0:
            return None
        count = self.config.dense_sampled_items
        assert count is not None
        num_items = self.policy.spec.dataset.num_items
        return torch.randint(1, num_items + 1, (count,), device=self.policy.codes.weight.device)

    def _lookups(self, batch: TrainingBatch, negatives_S: torch.Tensor | None) -> AbstractContextManager[None]:
        """How tables are read in a step: once for all rows where they are sharded, as asked where they are plain."""
        tables = self.policy.tables
        if not tables.is_sharded or not tables.features:
            return nullcontext()
        if self.config.dense_weight == 0:
            dense_rows = batch.target_BPM.new_empty(0)
        elif negatives_S is None:
            dense_rows = torch.arange(self.policy.spec.dataset.num_items + 1, device=batch.target_BPM.device)
        else:
            dense_rows = torch.cat([batch.target_BPM.flatten(), negatives_S])
        return tables.one_lookup(step_ids(self.policy, batch, dense_rows))

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, then move the balancing biases of the experts by the load of all batches of the step."""
        super().optimizer_step(*arguments, **options)
        for layer in self.policy.moe_layers():
            layer.update_balance(self.policy.spec.model.balance_rate)

    def validation_step(self, rows: ValidationRows, batch_idx: int) -> None:
        """Decode the validation users, each process its own, and measure both rankings."""
        figures = {f"{name}_{metric}": 0.0 for name in RANKINGS for metric in METRICS}
        with gathered(self.policy.tables, self.device):
            if len(rows) > 0:  # fewer rows than processes leave some without
                recommender = Recommender(self.policy, self.semantic_ids, self.decode, self._prefix_index)
                for name, ranked in zip(RANKINGS, recommender.both_orders(rows.histories, VALIDATION_K), strict=True):
                    metrics = row_metrics(ranked, rows.targets, [VALIDATION_K])
                    for metric in METRICS:
                        figures[f"{name}_{metric}"] = float(metrics[f"{metric}@{VALIDATION_K}"].sum())
        *sums, count = sums_over_processes([*figures.values(), float(len(rows))], self.device)
        for figure, total in zip(figures, sums, strict=True):
            name, metric = figure.split("_")
            self.log(f"valid/{figure}_at_{VALIDATION_K}", total / count, batch_size=int(count))
            if name == self.config.monitor:
                self.log(f"valid/{metric}_at_{VALIDATION_K}", total / count, prog_bar=True, batch_size=int(count))

    @cached_property
    def _prefix_index(self) -> PrefixIndex:
        """What does not change between validations; the rest of a recommender is made of weights."""
        return PrefixIndex.build(self.semantic_ids.codes, self.semantic_ids.level_sizes)

    def _rate_factor(self, step: int) -> float:
        """Factor on all learning rates at an optimiser step."""
        warmup = max(1, int(self.config.warmup_share * self.total_steps))
        return warmup_cosine(step, self.total_steps, warmup, self.config.final_learning_rate_share)

    def rate_at(self, step: int) -> float:
        """Learning rate of everything but tables."""
        return self.config.learning_rate * self._rate_factor(step - 1)

    def configure_optimizers(self) -> Any:
        """AdamW (and Adagrad for tables, if so configured) with warm-up and cosine decay, stepped every optimiser step."""
        optimizer = adamw(self.policy, self.config)
        schedule = LambdaLR(optimizer, lambda step: self._rate_factor(step))  # a function has no state to save
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _random_share(count: int, share: float, device: torch.device) -> torch.Tensor:
    """Numbers of a random share of ``count`` rows, at least one: as many as the share says, for a GPU to know beforehand."""
    return torch.rand(count, device=device).topk(max(1, round(share * count))).indices
