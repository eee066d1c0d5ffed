"""Small language policies on the ring of items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.dataset import Dataset
from recsys.data.batch import HistoryBatch, collate_histories
from recsys.data.histories import Histories
from recsys.language_model.build import language_policy
from recsys.language_model.language_policy import LanguagePolicy
from recsys.language_model.transformers_form import padded_prompts, transformers_model
from recsys.model.config import ModelConfig
from recsys.semantic_ids.versions import SemanticIds
from tests.toy.dataset import ring_prepared, toy_ids

FloatArray = npt.NDArray[np.float32]

SHAPE: Final[dict[str, Any]] = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}
"""16 channels, two layers, two query heads per key head; text is bytes."""


def ring_world(folder: Path, users: int = 12, **options: Any) -> Dataset:
    """Users who walk round 20 items."""
    return ring_prepared(folder / "ring", users=users, items=20, **options)


def ring_ids_of_three_levels() -> SemanticIds:
    """20 items on 3 x 4 x 3 codes, unevenly."""
    places = np.arange(20)
    return toy_ids(np.stack([places // 7, places % 7 // 2, places % 2 + places % 7 // 6], 1), (3, 4, 3))


def uneven_histories(dataset: Dataset) -> Histories:
    """All users' histories, cut to 0, 1, 2, … events, so that prompts of a batch end in different places."""
    histories = Histories.from_targets(dataset.history, dataset.all_users())
    length = np.minimum(np.arange(len(histories)) % 7, histories.lengths)
    return replace(histories, end=histories.start + length)


def language_model_config(
    *,
    shape: dict[str, Any] | None = None,
    source: str | None = None,
    model: dict[str, Any] | None = None,
    **settings: Any,
) -> ModelConfig:
    """Of a small model, in which every weight counts: spread .5, no dropout.

    Args:
        shape: Changes of :data:`SHAPE`.
        model: Changes of ``model``.
        settings: Of ``model.language_model``.
    """
    base = {"source": source} if source is not None else {"shape": {**SHAPE, **(shape or {})}}
    values = {"max_history": 6, "dropout": 0.0, "embedding_dropout": 0.0, "init_std": 0.5, **(model or {})}
    return ModelConfig.model_validate({"backbone": "llm", "language_model": {**base, **settings}, **values})


def language_policy_for(dataset: Dataset, seed: int = 2, **options: Any) -> LanguagePolicy:
    """In evaluation mode; options of :func:`language_model_config`."""
    torch.manual_seed(seed)
    return language_policy(dataset, ring_ids_of_three_levels(), language_model_config(**options)).eval()


class ConstrainedGenerate:
    """transformers' beam search with ``prefix_allowed_tokens_fn`` over a policy's weights and catalogue."""

    def __init__(self, policy: LanguagePolicy) -> None:
        self.policy, self.model = policy, transformers_model(policy)
        self.offsets = [policy.vocabulary.first_code + offset for offset in policy.codes.offsets]
        self.allowed: dict[tuple[int, ...], set[int]] = {}
        for codes in policy.item_tower.codes_IL[1:].tolist():
            path = tuple(code + offset for code, offset in zip(codes, self.offsets, strict=True))
            for level, token in enumerate(path):
                self.allowed.setdefault(path[:level], set()).add(token)

    def __call__(self, history: HistoryBatch, width: int) -> tuple[list[list[tuple[int, ...]]], FloatArray]:
        """Semantic IDs and scores, best first."""
        tokens, mask = padded_prompts(self.policy, history)
        start = tokens.shape[1]
        answer = self.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=self.policy.num_levels,
            length_penalty=0.0,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            prefix_allowed_tokens_fn=lambda _, sequence: sorted(self.allowed[tuple(sequence[start:].tolist())]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = answer.sequences[:, start:].view(len(history), width, -1) - torch.tensor(self.offsets)
        scores = answer.sequences_scores.view(len(history), width).numpy()
        return [[tuple(path) for path in row] for row in found.tolist()], scores


def generated(
    policy: LanguagePolicy, histories: Histories, width: int
) -> tuple[list[list[tuple[int, ...]]], FloatArray]:
    """The same for histories."""
    return ConstrainedGenerate(policy)(collate_histories(histories, policy.spec.model.max_history), width)
