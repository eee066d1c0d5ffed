"""The same policy as an ordinary transformers model: new tokens in its vocabulary, adapters merged into its weights."""

from __future__ import annotations

from typing import Any

import torch

from recsys.data.batch import HistoryBatch
from recsys.language_model.base import from_spec
from recsys.language_model.language_policy import LanguagePolicy
from recsys.language_model.vocabulary import ANSWER
from recsys.model.generative_recommender import LanguageSpec


@torch.no_grad()
def transformers_model(policy: LanguagePolicy) -> Any:
    """Return a model of transformers in evaluation mode, whose token ``t`` is the policy's token ``t``.

    Its scores of codes are the policy's with ``softmax: vocabulary``.
    """
    vocabulary, spec = policy.vocabulary, policy.spec.language
    assert spec is not None
    size = vocabulary.first_code + len(vocabulary.codes.weight)
    # the head is written out, so that rounding of tied weights is no matter
    config = {**spec.config, "vocab_size": size, "tie_word_embeddings": vocabulary.tied}
    model: Any = from_spec(LanguageSpec(config=config))
    layers = dict(policy.base.model.named_modules())
    for name, weight in model.model.named_parameters():
        module, _, kind = name.rpartition(".")
        if name != "embed_tokens.weight":
            layer = layers[module]
            adapted = hasattr(layer, "base_layer")
            source = getattr(layer.base_layer if adapted else layer, kind)
            weight.copy_(source + layer.get_delta_weight("default") if adapted and kind == "weight" else source)
    model.model.embed_tokens.weight.copy_(torch.cat([vocabulary.text.weight, vocabulary.added_embeddings()]))
    if not vocabulary.tied:
        model.lm_head.weight.copy_(torch.cat([vocabulary.text_head.weight, vocabulary.added_head()]))
    return model.eval()


def padded_prompts(policy: LanguagePolicy, history: HistoryBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with the mark of an answer, padded at the left as ``generate`` wants them: tokens and mask, ``[B, S]``."""
    prompts = policy._prompts(history)
    length_B = prompts.lengths(history.lengths_B[:, None])[:, 0]
    longest = int(length_B.max())
    tokens = torch.zeros(len(length_B), longest + 1, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(length_B.tolist()):
        tokens[row, longest - length : longest] = prompts.token_BS[row, :length]
        mask[row, longest - length :] = 1
    tokens[:, -1] = policy.vocabulary.mark(ANSWER)
    return tokens, mask
