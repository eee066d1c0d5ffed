"""What the policy is trained on: the artefacts of the stages before, opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.engine.stage import Inputs
from recsys.device import resolve_device

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from recsys.training.inputs import TrainingInputs


def training_inputs(config: RunConfig, inputs: Inputs) -> TrainingInputs:
    """Open the results of `prepare`, `embed` and `tokenize`."""
    import numpy as np

    from recsys.contracts.dataset import Dataset
    from recsys.semantic_ids.versions import SemanticIds
    from recsys.training.inputs import TrainingInputs

    return TrainingInputs(
        dataset=Dataset.open(inputs["prepare"].path),
        semantic_ids=SemanticIds.load(inputs["tokenize"].path),
        model=config.model,
        train=config.train,
        decode=config.decode,
        seed=config.seed,
        item_embeddings=np.load(inputs["embed"].path / "fused.npy", mmap_mode="r"),
        device=resolve_device(config.device),
    )
