"""What an untrained layer makes of an input of unit variance, for every preset."""

import math
from typing import get_args

import pytest
import torch
from torch import nn

from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.config import PRESETS, ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.model.layers.attention import FeedForward
from recsys.model.layers.moe import MixtureOfExperts
from tests.toy.builders import dataset_spec

ROWS = 2000
SWIGLU_STD = math.sqrt(0.3557)
"""Of ``silu(g) * v``, g and v standard normal: sqrt(E[silu(g)^2]), by numerical integration."""


def narrow(preset: str) -> ModelConfig:
    """The preset with all widths divided alike, so that its ratios stay and it fits a test."""
    shape = PRESETS[preset]
    divisor = shape["width"] // (8 * shape["num_heads"])
    widths = {name: shape[name] // divisor for name in ("width", "ffn_width", "expert_width")}
    return ModelConfig.model_validate({"preset": preset, **widths, "max_history": 8})


def untrained(config: ModelConfig) -> GenerativeRecommender:
    torch.manual_seed(0)
    spec = PolicySpec(model=config, dataset=dataset_spec(5, 20), level_sizes=(16,) * 3, semantic_id_digest="0" * 64)
    return GenerativeRecommender(spec, ItemCatalogue.blank(20, 3))


def residual_scale(config: ModelConfig) -> float:
    return (2 * (config.num_encoder_layers + config.num_decoder_layers)) ** -0.5


def output_std(weight_FD: torch.Tensor) -> float:
    """Standard deviation over rows and channels of ``x W``, x standard normal."""
    return float((torch.randn(ROWS, weight_FD.shape[0]) @ weight_FD.detach()).std())


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_matrix_starts_by_fan_in(preset: str) -> None:
    """Unit variance in gives unit variance out, times ``(2 * blocks) ** -0.5`` where a residual branch ends."""
    config = narrow(preset)
    policy = untrained(config)
    checked = 0
    for name, layer in policy.named_modules():
        if isinstance(layer, nn.Linear):
            expected = residual_scale(config) if name.endswith((".out", ".down")) else 1.0
            assert output_std(layer.weight.T) == pytest.approx(expected, rel=0.12), name
            checked += 1
        elif isinstance(layer, MixtureOfExperts):
            for up_DF, down_FD in zip(layer.up_EDF, layer.down_EFD, strict=True):
                assert output_std(up_DF) == pytest.approx(1.0, rel=0.12), name
                assert output_std(down_FD) == pytest.approx(residual_scale(config), rel=0.12), name
                checked += 2
    assert checked >= 4 * config.num_decoder_layers


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_feed_forward_layer_gives_what_the_rule_says(preset: str) -> None:
    """SwiGLU of two standard normals has a standard deviation of .596; the rest is the residual scale."""
    config = narrow(preset)
    layers = [layer for layer in untrained(config).modules() if isinstance(layer, FeedForward)]
    for layer in layers:
        with torch.no_grad():
            out = layer(torch.randn(ROWS, config.width))
        assert float(out.std()) == pytest.approx(SWIGLU_STD * residual_scale(config), rel=0.15)
    assert layers


def test_presets_are_those_that_a_recipe_may_name() -> None:
    assert set(PRESETS) == set(get_args(ModelConfig.model_fields["preset"].annotation))
