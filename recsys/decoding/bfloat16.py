"""A policy for decoding in bfloat16: the weights of its matrix products are converted once, and not at every use.

Autocast converts a float32 weight whenever it is used, and remembers nothing under inference mode. The copy made here shares
tables, code embeddings and dense head with the policy, in float32; norms, router, the sums of all products and the softmax
over codes are float32, too.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.layers.moe import MixtureOfExperts


def bfloat16_policy(policy: GenerativeRecommender) -> GenerativeRecommender:
    """Return a copy whose encoder and decoder hold bfloat16 weights; use it inside autocast, for decoding only.

    Raises:
        ConfigError: The experts have sizes that bfloat16 products of a GPU do not take.
    """
    policy.spec.model.check_bfloat16("decode.precision")
    shared = (policy.tables, policy.codes, policy.item_tower, policy.dense_query)
    result = copy.deepcopy(policy, {id(part): part for part in shared})
    for part in (result.encoder, result.decoder):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                module.weight = _converted(module.weight)
            elif isinstance(module, MixtureOfExperts):
                module.up_EDF, module.down_EFD = _converted(module.up_EDF), _converted(module.down_EFD)
    result.decoder.hold_heads(torch.bfloat16)
    return result


def _converted(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
