"""What training reads, as one thing: built by a stage, by torchrun's command or by a test, and passed on whole."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.dataset import Dataset
from recsys.data.samples import RecentRows
from recsys.decoding.config import DecodeConfig
from recsys.model.config import ModelConfig
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.config import TrainConfig
from recsys.training.warm.start import WarmStart


@dataclass(frozen=True)
class TrainingInputs:
    """Everything that fixes the result of :func:`recsys.training.fit.train_policy`.

    Sent to another process, the dataset and a memory-mapped table of embeddings travel as their paths and are opened there:
    pickling a memory map would send its content, once for every process.

    Attributes:
        item_embeddings: ``[items, any]`` of the `embed` stage; ``None``: the item table starts at random.
        start: An earlier policy to go on from; ``None``: from nothing.
        recent: Which training rows to leave out; ``None``: none.
        seed: Of initialisation, order of the rows and dropout.
        device: Where it trains; several processes take a GPU each where this is one.
    """

    dataset: Dataset
    semantic_ids: SemanticIds
    model: ModelConfig
    train: TrainConfig
    decode: DecodeConfig
    seed: int
    item_embeddings: npt.NDArray[np.float32] | None = None
    start: WarmStart | None = None
    recent: RecentRows | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        state["dataset"] = self.dataset.path
        if isinstance(self.item_embeddings, np.memmap):
            state["item_embeddings"] = Path(str(self.item_embeddings.filename))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        embeddings = state["item_embeddings"]
        if isinstance(embeddings, Path):
            embeddings = np.load(embeddings, mmap_mode="r", allow_pickle=False)
        opened = state | {"dataset": Dataset.open(state["dataset"]), "item_embeddings": embeddings}
        for name, value in opened.items():
            object.__setattr__(self, name, value)  # frozen
