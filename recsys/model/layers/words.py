"""Where a request's sentence enters the policy: one vector beside the history, nothing where nothing is said.

The vector is added to every memory position, as objective weights are (:mod:`recsys.model.layers.steering` says why there),
and to the state that the dense head's query comes from. It starts at zero, and is exactly zero without a word: a request
that says nothing gets the answer that it would get alone, whatever the others of its batch say.

Legend: B users, T words, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from recsys.contracts.errors import ConfigError
from recsys.data.batch import HistoryBatch
from recsys.model.layers.rows import Linear


class WordsInput(nn.Module):
    """A sentence as a vector: its words' mean behind two layers without offsets.

    Args:
        num_words: Of the vocabulary.
        width: D.
    """

    def __init__(self, num_words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words + 1, width)  # row 0 is no word, and is never read
        self.up = Linear(width, width, bias=False)
        self.projection = Linear(width, width, bias=False)
        self.reset()

    def reset(self) -> None:
        """Say nothing yet."""
        nn.init.zeros_(self.projection.weight)

    def forward(self, words_BT: torch.Tensor) -> torch.Tensor:
        """Return ``[B, D]``; 0 for rows without a word.

        Example:
            >>> said = WordsInput(num_words=2, width=1)
            >>> for weight, value in ((said.embedding.weight, [[9.0], [1.0], [3.0]]), (said.up.weight, [[1.0]])):
            ...     weight.data = torch.tensor(value)
            >>> said.projection.weight.data = torch.tensor([[2.0]])
            >>> [round(row, 2) for row in said(torch.tensor([[1, 2], [1, 0], [0, 0]])).flatten().tolist()]
            [3.52, 1.46, 0.0]
        """
        real_BT = (words_BT > 0).unsqueeze(-1)
        total_BD = (self.embedding(words_BT) * real_BT).sum(1)
        mean_BD = total_BD / real_BT.sum(1).clamp(min=1)
        said: torch.Tensor = self.projection(F.silu(self.up(mean_BD)))
        return said


def said(history: HistoryBatch, words: WordsInput | None) -> torch.Tensor | None:
    """What the requests say, ``[B, D]``; ``None`` where the batch has no words.

    Raises:
        ConfigError: The model reads none.
    """
    if history.words_BT is None:
        return None
    if words is None:
        raise ConfigError("requests carry words, and the model reads none; train with model.words, or leave them out")
    vector: torch.Tensor = words(history.words_BT)
    return vector
