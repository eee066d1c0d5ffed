"""The vocabulary of a language model with tokens for marks and for every code of every level behind its own.

Legend: V tokens of text, K codes of a level, L levels, D width, N tokens.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import nn

from recsys.model.encoder import CodeEmbedding
from recsys.model.layers.precision import product_dtype, rounded_linear

START: Final = 0
"""Mark before every prompt, so that an empty history is an ordinary one."""
ANSWER: Final = 1
"""Mark before the codes of an item that is asked for."""
TITLE: Final = 2
"""Mark before a title that is asked for."""
BEHAVIOURS: Final = 3
"""Mark of behaviour 0; the others follow."""

NEAR: Final = 0.1
"""Share of the spread of a trained model's words that new tokens start with."""


class ExtendedVocabulary(nn.Module):
    """Embeddings and logits of text, marks and codes; a token is ``V + mark`` or ``V + marks + code``.

    New tokens start with the spread of the model's own; beside trained words see :meth:`start_near_words`. Where the
    model's embeddings are its head's weights, too, so are the new ones.

    Args:
        base: The language model.
        codes: Embeddings of the codes, which the item tower shares.
        num_marks: Marks.
        softmax: What a code's probability is a share of.
    """

    def __init__(
        self, base: Any, codes: CodeEmbedding, num_marks: int, softmax: Literal["level", "vocabulary"]
    ) -> None:
        super().__init__()
        self.text: nn.Embedding = base.get_input_embeddings()
        self.text_head: nn.Linear = base.get_output_embeddings()
        self.codes, self.softmax = codes, softmax
        width, std = self.text.weight.shape[1], float(self.text.weight.detach().std())
        nn.init.normal_(codes.weight, std=std)
        self.marks = nn.Parameter(torch.empty(num_marks, width).normal_(std=std))
        self.tied = self.text_head.weight is self.text.weight
        if not self.tied:
            rows = num_marks + len(codes.weight)
            self.head = nn.Parameter(torch.empty(rows, width).normal_(std=float(self.text_head.weight.detach().std())))

    @torch.no_grad()
    def start_near_words(self) -> None:
        """Move new tokens to the mean of a trained model's own, with a tenth of their spread.

        With the whole spread an untrained SmolLM2-135M gives an item of three codes 57 nats, where even odds are 15: it is
        sure of codes that mean nothing.

        Source: Hewitt, "Initializing new word embeddings for pretrained language models", 2021.
        """
        pairs = [(self.marks, self.text.weight), (self.codes.weight, self.text.weight)]
        if not self.tied:
            pairs.append((self.head, self.text_head.weight))
        for new, words in pairs:
            new.mul_(NEAR).add_(words.mean(0))

    @property
    def num_text(self) -> int:
        """V."""
        return self.text.weight.shape[0]

    @property
    def first_code(self) -> int:
        """Token of code 0 of the first level."""
        return self.num_text + len(self.marks)

    def mark(self, number: int) -> int:
        """Token of a mark."""
        return self.num_text + number

    def code_tokens(self, codes_NL: torch.Tensor) -> torch.Tensor:
        """Tokens of codes, ``[..., L]``."""
        return codes_NL + (self.codes.offset_L + self.first_code)

    def embed(self, tokens: torch.Tensor, *, text: bool) -> torch.Tensor:
        """Embed tokens of any shape.

        Args:
            text: There may be text among them.
        """
        added = F.embedding((tokens - self.num_text).clamp(min=0), self.added_embeddings())
        if not text:
            return added
        words = self.text(tokens.clamp(0, self.num_text - 1))
        return torch.where((tokens < self.num_text)[..., None], words, added)

    def added_embeddings(self) -> torch.Tensor:
        """Embeddings of marks and codes, in the order of their tokens."""
        return torch.cat([self.marks, self.codes.weight])

    def added_head(self) -> torch.Tensor:
        """Rows of the head for marks and codes."""
        return self.added_embeddings() if self.tied else self.head

    def level_rows(self, level: int) -> slice:
        """Where the codes of a level stand among marks and codes."""
        first = len(self.marks) + self.codes.offsets[level]
        return slice(first, first + self.codes.level_sizes[level])

    def code_logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Float32 logits of a level's codes, ``[..., K]``.

        With ``softmax: vocabulary`` there is one entry more, the log of the sum over everything else, so that a softmax over
        the result gives each code its share of the whole vocabulary.
        """
        rows = self.level_rows(level)
        if self.softmax == "level":
            return _logits(hidden, self.added_head()[rows])
        added = _logits(hidden, self.added_head())
        words = _logits(hidden, self.text_head.weight)
        rest = torch.cat([words, added[..., : rows.start], added[..., rows.stop :]], dim=-1)
        return torch.cat([added[..., rows], rest.logsumexp(-1, keepdim=True)], dim=-1)

    def token_losses(self, hidden_ND: torch.Tensor, token_N: torch.Tensor) -> torch.Tensor:
        """Float32 cross-entropy of any tokens over the whole vocabulary, ``[N]``."""
        logits = torch.cat([_logits(hidden_ND, self.text_head.weight), _logits(hidden_ND, self.added_head())], dim=-1)
        return F.cross_entropy(logits, token_N, reduction="none")


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rounded_linear(hidden, weight, weight.new_zeros(len(weight)), product_dtype(hidden.device))
