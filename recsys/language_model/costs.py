"""Matrix products of a language policy, in multiply-adds, as :mod:`recsys.model.summary` counts those of the other.

Legend: H history events, S tokens of a prompt, T tokens of an answer, W beams, L levels, N users or rows, G points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from recsys.data.batch import BatchCounts
from recsys.model.summary import Counts, PolicySummary, dense_products


@dataclass(frozen=True)
class LanguageCosts:
    """What the counts depend on.

    Attributes:
        linear: Weights of the linear layers that every token meets.
        attention: Multiply-adds per pair of a query and a key, all layers.
        key_values: Numbers per token that decoding holds, all layers.
        heads: Per level, multiply-adds of one token's logits.
        header, event: Tokens before a history, and of an event.
        width: Of hidden states.
        backward: Products of the backward pass per product of the forward pass.
    """

    linear: int
    attention: int
    key_values: int
    heads: tuple[int, ...]
    header: int
    event: int
    width: int
    backward: int

    @classmethod
    def of(cls, policy: Any) -> LanguageCosts:
        """Count what a :class:`~recsys.language_model.language_policy.LanguagePolicy` is made of."""
        vocabulary, encoder, config = policy.vocabulary, policy.encoder, policy.base.config
        layers = policy.base.model.layers
        attention = layers[0].self_attn
        width, levels = policy.spec.model.width, policy.num_levels
        everything = vocabulary.num_text + len(vocabulary.marks) + len(vocabulary.codes.weight)
        header = encoder.longest(0, levels, 0)
        return cls(
            linear=sum(part.weight.numel() for part in layers.modules() if isinstance(part, nn.Linear)),
            attention=2 * len(layers) * config.num_attention_heads * attention.head_dim,
            key_values=2 * len(layers) * config.num_key_value_heads * attention.head_dim,
            heads=tuple(
                width * (size if vocabulary.softmax == "level" else everything) for size in policy.spec.level_sizes
            ),
            header=header,
            event=encoder.longest(1, levels, policy.title_IT.shape[1]) - header,
            width=width,
            backward=1 if policy.settings.tune == "lora" else 2,
        )

    def prompt_tokens(self, events: Counts | int) -> Counts:
        """S, titles at their longest."""
        return np.asarray(self.header + events * self.event)

    def tokens(self, count: Counts | int, keys: Counts | int) -> Counts:
        """Multiply-adds of so many tokens, each of which looks at so many keys."""
        return np.asarray(count * (self.linear + self.attention * keys))

    def answer(self, prompt: Counts | int, items: Counts | int, levels: int) -> Counts:
        """Multiply-adds of the answer to one request, forward, its logits included."""
        size = items * (levels + 1) - 1
        return np.asarray(self.tokens(size, prompt + size) + items * sum(self.heads))

    def beams(self, prompt: Counts | int, widths: Sequence[int]) -> Counts:
        """Multiply-adds of a search for one item."""
        total = np.zeros_like(np.asarray(prompt))
        for level, (width, head) in enumerate(zip(widths, self.heads, strict=True)):
            total = total + width * (self.tokens(1, prompt + level + 1) + head)
        return total

    def training_flops(self, counts: BatchCounts, dense_targets: int, scored_items: int) -> float:
        """As :func:`recsys.model.summary.training_flops`; a frozen weight has no gradient of its own."""
        levels = len(self.heads)
        prompt_N = self.prompt_tokens(counts.events_N)
        products = self.tokens(prompt_N, prompt_N).sum()
        products += self.answer(prompt_N[counts.row_G], counts.items_G, levels).sum()
        dense = 6.0 * dense_targets * dense_products(self.width, scored_items)
        return 2.0 * (1 + self.backward) * float(products) + dense

    def decoding_flops(self, events_N: Counts, widths: Sequence[int]) -> float:
        """As :func:`recsys.model.summary.decoding_flops`."""
        prompt_N = self.prompt_tokens(events_N)
        return 2.0 * float((self.tokens(prompt_N, prompt_N) + self.beams(prompt_N, widths)).sum())

    def summary(self, policy: Any, events: int, beam_width: int) -> PolicySummary:
        """As :func:`recsys.model.summary.summarise`."""
        total = sum(parameter.numel() for parameter in policy.parameters())
        tables = sum(parameter.numel() for parameter in policy.tables.parameters())
        words = policy.vocabulary.text.weight.numel() + policy.codes.weight.numel()
        prompt, session, levels = self.prompt_tokens(events), policy.spec.dataset.session_length, len(self.heads)
        read = self.tokens(prompt, prompt)
        # one pass supervises every event and the first: reading the prompt is shared by as many targets
        per_target = read / (1 + events) + self.answer(prompt, session, levels) / session
        dense = 6.0 * dense_products(self.width, policy.spec.dataset.num_items)
        widths = [1, *[beam_width] * (levels - 1)]
        return PolicySummary(
            total=total,
            tables=tables,
            active=total - tables - words,
            train_mflops_per_target=float((2 * (1 + self.backward) * per_target + dense) / 1e6),
            encode_mflops_per_user=float(2 * read / 1e6),
            decoder_mflops_per_user=float(2 * self.beams(prompt, widths) / 1e6),
            key_value_bytes_per_user=int(prompt) * self.key_values * 4,
        )
