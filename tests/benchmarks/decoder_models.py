"""What the decoder, training and rollout benchmarks run on: the T5 of TIGER, our own model of its widths, random catalogues.

Width 128, 4 + 4 layers, 6 heads of 64, feed-forward 1024, four levels of 256 codes, random weights, 80 tokens in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from transformers import T5Config, T5ForConditionalGeneration

from recsys.data.batch import HistoryBatch
from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from tests.benchmarks.t5_policy import FIRST_CODE
from tests.toy.builders import dataset_spec

LEVELS, CODES, INPUT_ITEMS = 4, 256, 20
VOCAB_SIZE = FIRST_CODE + LEVELS * CODES
WIDTH, INNER, HIDDEN, LAYERS = 128, 384, 1024, 4


def random_catalogue(items: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Distinct random codes, ``[items, LEVELS]``."""
    rng = np.random.default_rng(seed)
    numbers = np.unique(rng.integers(0, CODES**LEVELS, int(items * 1.02) + 10))
    picked = np.sort(rng.permutation(numbers)[:items])
    return np.stack(np.unravel_index(picked, (CODES,) * LEVELS), axis=1)


def tiger_t5(seed: int = 0) -> T5ForConditionalGeneration:
    """T5 of the published sizes with random weights."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCAB_SIZE,
        d_model=WIDTH,
        d_kv=INNER // 6,
        d_ff=HIDDEN,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=6,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=True,
    )
    return T5ForConditionalGeneration(config).eval()


def useful_flops(users: int, width: int) -> float:
    """Multiply-adds times two that the search needs, whoever runs it."""
    tokens = INPUT_ITEMS * LEVELS
    layer_linear = 4 * WIDTH * INNER + 2 * WIDTH * HIDDEN
    encoder = LAYERS * tokens * (layer_linear + 2 * tokens * INNER)
    cross = LAYERS * tokens * 2 * WIDTH * INNER
    row = LAYERS * (layer_linear + 2 * WIDTH * INNER + 2 * tokens * INNER + 4 * INNER) + WIDTH * VOCAB_SIZE
    return 2.0 * users * (encoder + cross + row * (1 + (LEVELS - 1) * width))


def own_policy(items: int, dense: bool) -> GenerativeRecommender:
    """Our own model of T5's widths: the same number of layers, positions and feed-forward FLOPs per token."""
    hidden = 680  # HIDDEN * 2 / 3, because there are three matrices instead of two
    config = ModelConfig.model_validate(
        {
            "width": WIDTH,
            "num_heads": 8,
            "num_encoder_layers": LAYERS,
            "num_decoder_layers": LAYERS,
            "ffn_width": hidden,
            "num_experts": 1 if dense else 8,
            "experts_per_token": 1 if dense else 2,
            "expert_width": hidden if dense else hidden // 2,
            "max_history": INPUT_ITEMS * LEVELS,
            "features": ("codes",),
        }
    )
    spec = PolicySpec(
        model=config, dataset=dataset_spec(1, items), level_sizes=(CODES,) * LEVELS, semantic_id_digest="0" * 64
    )
    torch.manual_seed(0)
    codes = torch.from_numpy(np.pad(random_catalogue(items), ((1, 0), (0, 0))))
    nothing = torch.zeros(len(codes), dtype=torch.int64)
    catalogue = ItemCatalogue(codes, nothing, nothing)
    return GenerativeRecommender(spec, catalogue).eval()


def own_history(users: int, items: int) -> HistoryBatch:
    """As many history positions as T5 has input tokens."""
    length = INPUT_ITEMS * LEVELS
    zeros = torch.zeros(users, length, dtype=torch.int64)
    drawn = torch.from_numpy(np.random.default_rng(1).integers(1, items + 1, (users, length)))
    return HistoryBatch(torch.zeros(users, dtype=torch.int64), drawn, zeros, zeros, zeros, torch.full((users,), length))
