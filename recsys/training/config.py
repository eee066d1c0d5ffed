"""How a policy is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config import FrozenConfig


class TrainConfig(FrozenConfig):
    """Optimisation, early stopping, resuming."""

    max_epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    final_learning_rate_share: float = Field(default=0.05, ge=0, le=1)
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    table_weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    loss_reduction: Literal["sum", "mean"] = "sum"
    """Over the L codes of an item: OneRec v1 sums (arXiv 2508.20900, section 2.3.1), V2 averages."""
    dense_weight: float = Field(default=1.0, ge=0)
    dense_targets_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the targets that the dense head's full softmax sees; it is the largest matmul of a small model."""
    dense_sampled_items: int | None = Field(default=None, ge=1)
    """Score this many sampled items instead of the whole catalogue, for large catalogues."""
    init_items_from_embeddings: bool = True
    """Start the item table from the leading directions of the item embeddings."""
    validate_every_epochs: int = Field(default=1, ge=1)
    validation_users: int = Field(default=2000, ge=1)
    monitor: Literal["served", "beam"] = "served"
    """Which ranking's valid/ndcg_at_10 picks the checkpoint: after re-scoring, or pure beam order."""
    patience: int = Field(default=5, ge=1)
    """Validations without improvement before training stops."""
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    """Seconds between mid-epoch checkpoints; what a kill can cost."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Refuse to start another epoch after this much training time."""
    accelerator: str = "auto"
    precision: str = "32-true"
