"""Sparse inputs through TorchRec: one ``EmbeddingCollection`` holds every id table of the model.

Legend: B users, H history events, N looked-up ids, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class FeatureTables(nn.Module):
    """Look up any subset of the declared features in one call.

    All tables have width D, because the looked-up vectors of an event are summed. Row 0 of every table is "padding or
    not known"; it is an ordinary row, and whoever reads padded positions masks them.

    Args:
        num_rows: Rows per feature, row 0 included.
        width: D.
        init_std: Standard deviation of the normal initialisation. TorchRec's own default, uniform in
            ``±sqrt(1 / rows)``, shrinks with the catalogue.
    """

    def __init__(self, num_rows: Mapping[str, int], width: int, init_std: float) -> None:
        super().__init__()
        self.width = width
        self.features = tuple(num_rows)
        self.collection = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=f"table_{feature}",
                    embedding_dim=width,
                    num_embeddings=rows,
                    feature_names=[feature],
                    init_fn=partial(nn.init.normal_, std=init_std),
                )
                for feature, rows in num_rows.items()
            ]
        )

    def forward(self, ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Look up ids of any shape.

        Args:
            ids: Feature -> int64 tensor; features left out are not looked up.

        Returns:
            Feature -> float32 tensor of the ids' shape with D appended.
        """
        device = next(iter(ids.values())).device
        # Every feature is one jagged row: TorchRec needs equal batch sizes per key, not equal lengths.
        flat = [ids[name].reshape(-1) if name in ids else _nothing(device) for name in self.features]
        jagged = KeyedJaggedTensor.from_lengths_sync(
            keys=list(self.features),
            values=torch.cat(flat),
            lengths=torch.tensor([len(values) for values in flat], device=device),
        )
        looked_up = self.collection(jagged)
        return {name: looked_up[name].values().view(*ids[name].shape, self.width) for name in ids}

    def weight(self, feature: str) -> torch.Tensor:
        """The table of one feature, ``[rows, D]`` (unsharded modules only)."""
        return self.collection.embeddings[f"table_{feature}"].weight


def _nothing(device: torch.device) -> torch.Tensor:
    return torch.empty(0, dtype=torch.int64, device=device)
