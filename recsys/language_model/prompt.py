"""Histories as tokens: a mark, the instruction, then every event with its codes, its title and its behaviour.

Prompts lie at the left and grow at the right, so the first ``v`` events of a history are a prefix of its prompt: one pass
serves every prefix.

Legend: B users, H events, S tokens, E tokens of an event, L levels, T tokens of a title, I item rows, V = H + 1 prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from recsys.contracts.errors import ConfigError
from recsys.data.batch import HistoryBatch
from recsys.language_model.vocabulary import BEHAVIOURS, START, ExtendedVocabulary

NO_TOKEN = -1


@dataclass(frozen=True)
class Prompts:
    """Prompts of B users.

    Attributes:
        token_BS: int64, anything behind a prompt's end.
        length_BV: int64 tokens of the prompt of the first ``v`` events.
    """

    token_BS: torch.Tensor
    length_BV: torch.Tensor

    def lengths(self, events_BP: torch.Tensor) -> torch.Tensor:
        """Tokens of the prompts of the first so many events."""
        return self.length_BV.gather(1, events_BP)


class PromptWriter(nn.Module):
    """Writes prompts.

    Args:
        vocabulary: Of the tokens.
        instruction: Tokens behind the start mark.
        behaviours: Whether every event ends with its behaviour.
        titles: Whether it carries the item's title.
        first_word: Mark of the first word that a request may say; ``None``: none may.
        longest_sentence: Words of a sentence.
    """

    header_N: torch.Tensor

    def __init__(
        self,
        vocabulary: ExtendedVocabulary,
        instruction: Sequence[int],
        *,
        behaviours: bool,
        titles: bool,
        first_word: int | None = None,
        longest_sentence: int = 0,
    ) -> None:
        super().__init__()
        self.vocabulary, self.behaviours, self.titles = vocabulary, behaviours, titles
        self.first_word, self.longest_sentence = first_word, longest_sentence
        header = torch.tensor([vocabulary.mark(START), *instruction])
        self.register_buffer("header_N", header, persistent=False)

    @property
    def has_text(self) -> bool:
        """Whether a prompt may hold text."""
        return self.titles or len(self.header_N) > 1

    def longest(self, events: int, num_levels: int, title_tokens: int) -> int:
        """Tokens of the longest prompt of so many events."""
        event = num_levels + int(self.behaviours) + (title_tokens if self.titles else 0)
        return len(self.header_N) + self.longest_sentence + events * event

    def forward(self, history: HistoryBatch, codes_IL: torch.Tensor, title_IT: torch.Tensor | None) -> Prompts:
        """Write the histories down.

        An event whose item is not known, such as one that training masks, has the start mark in the place of its codes: row
        0 has codes of its own in no catalogue, and zeros are those of an item.

        Args:
            codes_IL: Codes of every item row.
            title_IT: Tokens of every item row's title, :data:`NO_TOKEN` behind its end; ``None``: histories have none.
        """
        item_BH = history.item_BH
        codes_BHL = self.vocabulary.code_tokens(codes_IL[item_BH])
        parts = [torch.where((item_BH > 0)[..., None], codes_BHL, self.vocabulary.mark(START))]
        if title_IT is not None:
            parts.append(title_IT[item_BH])
        if self.behaviours:
            parts.append((history.behaviour_BH + self.vocabulary.mark(BEHAVIOURS))[..., None])
        said_BN = self.said(history)
        ragged = title_IT is not None or said_BN is not None
        return self.of_events(torch.cat(parts, dim=-1), ragged=ragged, said_BN=said_BN)

    def said(self, history: HistoryBatch) -> torch.Tensor | None:
        """Tokens of what the requests say, :data:`NO_TOKEN` where they say nothing.

        Raises:
            ConfigError: The model reads no words.
        """
        if history.words_BT is None:
            return None
        if self.first_word is None:
            raise ConfigError(
                "requests carry words, and the model reads none; train with model.words, or leave them out"
            )
        first = self.vocabulary.mark(self.first_word)
        return torch.where(history.words_BT > 0, history.words_BT - 1 + first, NO_TOKEN)

    def of_events(
        self, event_BHE: torch.Tensor, *, ragged: bool, instructed: bool = True, said_BN: torch.Tensor | None = None
    ) -> Prompts:
        """Put events one behind the other.

        Args:
            event_BHE: Tokens of every event.
            ragged: Some are :data:`NO_TOKEN` and are to be left out.
            instructed: Begin with the instruction, and not with the start mark alone.
            said_BN: Tokens between that and the events, :data:`NO_TOKEN` where there is none; only where ``ragged``.
        """
        users, events, tokens = event_BHE.shape
        header_BN = self.header_N[: None if instructed else 1].expand(users, -1)
        flat, number = event_BHE.flatten(1), torch.arange(events + 1, device=event_BHE.device)
        if not ragged:
            length_BV = (header_BN.shape[1] + number * tokens).expand(users, -1)
            return Prompts(torch.cat([header_BN, flat], dim=1), length_BV)
        real = flat != NO_TOKEN
        per_event = real.unflatten(1, (events, tokens)).sum(-1)
        length_BV = nn.functional.pad(per_event.cumsum(1), (1, 0)) + header_BN.shape[1]
        if said_BN is not None:
            flat, says = torch.cat([said_BN, flat], dim=1), said_BN != NO_TOKEN
            real = torch.cat([says, real], dim=1)
            length_BV = length_BV + says.sum(1, keepdim=True)
        order = (~real).to(torch.uint8).argsort(dim=1, stable=True)  # what is real moves to the left, in its order
        longest = flat.shape[1] if _is_recorded(flat) else int(length_BV[:, -1].max()) - header_BN.shape[1]
        return Prompts(torch.cat([header_BN, flat.gather(1, order[:, :longest])], dim=1), length_BV)


def _is_recorded(tensor: torch.Tensor) -> bool:
    """Whether this runs into a CUDA graph, which nothing may be read back from: prompts keep the width they may have."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def text_tokens(texts: Sequence[str | None], tokenizer: Any | None, limit: int, num_text: int) -> list[list[int]]:
    """Tokens of texts, at most ``limit`` each; without a tokenizer their UTF-8 bytes.

    Raises:
        ConfigError: The vocabulary has no 256 tokens for bytes, or lacks a token of the tokenizer.

    Example:
        >>> text_tokens(["Ada", None], None, 2, 256)
        [[65, 100], []]
    """
    if tokenizer is None:
        if num_text < 256:
            raise ConfigError(
                f"model.language_model: a model without a tokenizer reads text as bytes, and its vocabulary of {num_text} "
                "has no room for 256 of them; raise language_model.shape.vocab_size, or leave text out"
            )
        return [list((text or "").encode()[:limit]) for text in texts]
    found = [tokenizer(text, add_special_tokens=False)["input_ids"][:limit] if text else [] for text in texts]
    highest = max((token for tokens in found for token in tokens), default=0)
    if highest >= num_text:
        raise ConfigError(
            f"model.language_model: the tokenizer has a token {highest}, and the model's vocabulary {num_text}; they do not "
            "belong together, or the model was not resized for tokens that were added"
        )
    return found
