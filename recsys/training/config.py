"""How a policy is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from recsys.config import FrozenConfig
from recsys.data.options import AugmentConfig, BatchBy

Sharding = Literal["none", "row_wise", "table_wise", "column_wise"]
TableOptimizer = Literal["adamw", "rowwise_adagrad", "adagrad"]


class TrainConfig(FrozenConfig):
    """Optimisation, early stopping, resuming, processes.

    ``batch_size`` counts the rows of one batch over all processes, so that their number changes no result but by rounding
    and random draws (dropout, sampled negatives), which differ from process to process.

    Attributes:
        max_epochs: Passes over the training rows, at most.
        batch_size: Rows per batch, over all processes.
        learning_rate: Peak, after the warm-up.
        final_learning_rate_share: Share of the peak that the cosine ends at.
        warmup_share: Share of all steps in which the rate rises.
        weight_decay: Of everything but tables.
        table_weight_decay: Of the tables of ids and codes.
        label_smoothing: Probability that is spread over the other codes.
        dense_weight: Of the dense head's loss; 0 switches it off.
        validation_users: Users that validation answers.
        precision: As Lightning has it; the run's ``precision`` decides where it is not set.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"accelerator": "device, at the top of the recipe"}

    max_epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=128, ge=1)
    batch_by: BatchBy = "rows"
    """``targets`` cuts an epoch into as many batches of nearly as many targets each. In all-prefix training a batch of long
    histories otherwise holds several times the targets of a batch of short ones, and both are one step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    final_learning_rate_share: float = Field(default=0.05, ge=0, le=1)
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    table_weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient of all parameters that AdamW trains. Tables under Adagrad neither count nor are scaled,
    in one process or many: sharded ones are updated before a norm is known, and an Adagrad step hardly depends on the
    gradient's size."""
    accumulate_batches: int = Field(default=1, ge=1)
    """Batches per optimiser step. Each weighs the same, whatever its number of targets."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    loss_reduction: Literal["sum", "mean"] = "sum"
    """Over the L codes of an item: OneRec v1 sums (arXiv 2508.20900, section 2.3.1), V2 averages."""
    dense_weight: float = Field(default=1.0, ge=0)
    dense_targets_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the targets (all items of a session) that the dense head's full softmax sees; it is the largest matmul of a
    small model."""
    dense_sampled_items: int | None = Field(default=None, ge=1)
    """Score this many sampled items instead of the whole catalogue, for large catalogues."""
    prefix_weight: float = Field(default=0.0, ge=0)
    """Of the loss on prefixes, which weighs the first codes more, where the beam loses most targets
    (:func:`~recsys.training.losses.prefix_loss`); 0 switches it off."""
    prefix_adaptivity: float = Field(default=0.0, ge=0)
    """How much the prefix loss leans to the prefixes that are learned worst; 0: as their losses are."""
    distillation_weight: float = Field(default=0.0, ge=0)
    """Of the loss that teaches the decoder the dense head's distribution over codes
    (:func:`~recsys.training.losses.teacher_code_probs`); 0 switches it off."""
    distillation_share: float = Field(default=0.25, gt=0, le=1)
    """Share of the targets that the distillation loss sees; each costs a pass over the catalogue per level."""
    average_decay: float = Field(default=0.0, ge=0, lt=1)
    """Of the moving average of the weights that is validated and kept (:mod:`recsys.training.averaging`), for example 0.995:
    about the last 200 steps; 0 keeps the last weights themselves."""
    augment: AugmentConfig = AugmentConfig()
    """Cropping, reordering and masking of training histories."""
    init_items_from_embeddings: bool = True
    """Start the item table from the leading directions of the item embeddings."""
    validate_every_epochs: int = Field(default=1, ge=1)
    """The last epoch is always validated."""
    validation_users: int = Field(default=2000, ge=1)
    monitor: Literal["served", "beam"] = "served"
    """Which ranking's valid/ndcg_at_10 picks the checkpoint: after re-scoring, or pure beam order."""
    patience: int = Field(default=5, ge=1)
    """Validations without improvement before training stops."""
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    """Seconds between mid-epoch checkpoints; what a kill can cost."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Stop at the first optimiser step after this much training time, earlier processes included; what was trained is
    validated, and the state is kept as at a kill."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Float16 is not offered: its loss must be scaled, which steps that clip inside the optimiser do not undo."""
    tf32: bool = True
    """Round the inputs of float32 matrix products on a GPU to 10 bits of mantissa, for several times the speed."""
    compile: Literal["none", "blocks"] = "none"
    """``blocks`` compiles the blocks of encoder and decoder while they train; the first steps wait for it, a minute or more.
    Worth it on a GPU; on a CPU it needs a C++ compiler."""
    prefetch_batches: int | None = Field(default=None, ge=0)
    """Batches that a thread makes ahead. ``None``: 2 on a GPU; none on a CPU, whose cores training needs itself."""
    processes: int = Field(default=1, ge=1)
    """Processes on this machine, one per GPU; under torchrun its world size counts and this stays 1."""
    sharding: Sharding = "none"
    """How several processes hold the id tables: ``none`` keeps a copy in each, the others spread every table's rows, whole
    tables, or every table's columns. One process holds plain tables whatever is asked here, and trains the same."""
    table_optimizer: TableOptimizer = "adamw"
    """``rowwise_adagrad`` keeps one number per row, ``adagrad`` one per entry; AdamW keeps two per entry and touches every
    row at every step."""
    table_learning_rate: float | None = Field(default=None, gt=0)
    """Of the id tables; default ``learning_rate``. Adagrad's steps shrink as training goes on."""

    @property
    def effective_table_learning_rate(self) -> float:
        """Peak learning rate of the id tables."""
        return self.learning_rate if self.table_learning_rate is None else self.table_learning_rate

    def warm(self, epochs: int, minutes: float | None, learning_rate_share: float, warmup_share: float) -> TrainConfig:
        """Return the settings of training that goes on from an earlier policy: a budget, lower peaks, its own warm-up.

        Args:
            epochs: Passes over the rows, at most.
            minutes: Training time, at most; ``None``: that of these settings.
            learning_rate_share: Of the peaks of these settings.
            warmup_share: Share of all steps in which the rate rises.
        """
        tables = self.table_learning_rate
        changes = {
            "max_epochs": epochs,
            "max_minutes": self.max_minutes if minutes is None else minutes,
            "learning_rate": self.learning_rate * learning_rate_share,
            "table_learning_rate": None if tables is None else tables * learning_rate_share,
            "warmup_share": warmup_share,
        }
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _check_tables(self) -> TrainConfig:
        if self.table_optimizer != "adamw" and self.table_weight_decay > 0:
            raise ValueError(
                f"table_weight_decay {self.table_weight_decay} with table_optimizer '{self.table_optimizer}': Adagrad "
                "touches only the rows of the batch, the rest would not decay; set table_weight_decay to 0 or "
                "table_optimizer to adamw"
            )
        if self.sharding == "none":
            return self
        if self.table_optimizer == "adamw":
            raise ValueError(
                f"sharding '{self.sharding}' with table_optimizer 'adamw': sharded tables are updated inside the backward "
                "pass, which on CPUs exists for Adagrad only; set table_optimizer to rowwise_adagrad or adagrad"
            )
        if self.sharding == "column_wise" and self.table_optimizer == "rowwise_adagrad":
            raise ValueError(
                "sharding 'column_wise' with table_optimizer 'rowwise_adagrad': every process would see a part of the row "
                "and keep another step size than one process does; set table_optimizer to adagrad or sharding to row_wise"
            )
        if self.accumulate_batches > 1:
            raise ValueError(
                f"accumulate_batches {self.accumulate_batches} with sharding '{self.sharding}': sharded tables are updated "
                "at every batch and would run ahead of the rest; set accumulate_batches to 1 or sharding to none"
            )
        return self

    @model_validator(mode="after")
    def _check_additions(self) -> TrainConfig:
        if self.average_decay and self.sharding != "none":
            raise ValueError(
                f"average_decay {self.average_decay} with sharding '{self.sharding}': no process holds whole tables to "
                "average; set sharding to none or average_decay to 0"
            )
        if self.distillation_weight and self.dense_weight == 0:
            raise ValueError(
                f"distillation_weight {self.distillation_weight} with dense_weight 0: an untrained dense head would teach "
                "the decoder; set dense_weight above 0 or distillation_weight to 0"
            )
        if self.distillation_weight and self.dense_sampled_items is not None:
            raise ValueError(
                f"distillation_weight {self.distillation_weight} with dense_sampled_items {self.dense_sampled_items}: the "
                "teacher scores the whole catalogue, which sampling is to spare; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _check_processes(self) -> TrainConfig:
        if self.batch_size < self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} is less than processes {self.processes}: some would have no row"
            )
        return self
