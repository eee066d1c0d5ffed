"""The lazy decoder: equal to ordinary cross-attention where it should be, cheap where it says so, causal, trainable."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recsys.config import validate
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.data.batch import TrainingBatch
from recsys.data.samples import PrefixWindows, TargetRows
from recsys.model.config import ModelConfig
from recsys.model.encoder import CodeEmbedding
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.layers.attention import CrossAttention, KeysValues, project_memory
from recsys.model.preset_costs import shape_only
from recsys.model.summary import encoder_products, key_value_products, summarise, token_products
from recsys.model.variants.lazy_decoder import ContextProcessor, LazyCrossAttention, LazyDecoder
from recsys.training.fit import build_policy
from recsys.training.losses import dense_loss, next_token_loss
from tests.toy.builders import beauty_sized
from tests.toy.dataset import ring_ids, ring_prepared, toy_ids

SMALL = {
    "preset": "tiny_lazy",
    "width": 16,
    "num_heads": 4,
    "num_decoder_layers": 3,
    "num_dense_blocks": 1,
    "ffn_width": 32,
    "expert_width": 16,
    "max_history": 20,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "init_std": 0.3,
}


def config_of(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate({**SMALL, **changes})


def decoder_of(config: ModelConfig, level_sizes: tuple[int, ...] = (3, 4), session_length: int = 1) -> LazyDecoder:
    torch.manual_seed(5)
    return LazyDecoder(config, CodeEmbedding(level_sizes, config.width, 0.3), session_length).eval()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


def policy_for(prepared: Dataset, **changes: object) -> GenerativeRecommender:
    torch.manual_seed(3)
    return build_policy(prepared, ring_ids(), config_of(**changes), None)


class PerLayerProjection(nn.Module):
    """Ordinary cross-attention that projects the memory itself and ignores the keys and values it is handed."""

    def __init__(self, lazy: LazyCrossAttention, slice_of_context: torch.Tensor, memory_BSD: torch.Tensor) -> None:
        super().__init__()
        width = lazy.query.weight.shape[0]
        self.attention = CrossAttention(width, lazy.num_groups * lazy.group_heads)
        self.attention.query, self.attention.out = lazy.query, lazy.out
        self.attention.key_value.weight = nn.Parameter(slice_of_context)
        self.memory_BSD = memory_BSD

    def forward(self, x_NTD: torch.Tensor, _: KeysValues, mask: torch.Tensor) -> torch.Tensor:
        return self.attention(x_NTD, project_memory([self.attention], self.memory_BSD)[0], mask)


def test_it_contains_ordinary_cross_attention() -> None:
    """L_kv = layers, S_kv = 2, G_kv = heads, no norms: per-layer K/V projections that are slices of the context's."""
    config = config_of(kv_layers=3, kv_split=2, kv_groups=4)
    decoder = decoder_of(config, session_length=2)
    decoder.context.norms = nn.ModuleList(nn.Identity() for _ in range(6))
    memory, visible = torch.randn(5, 7, 16), torch.tensor([[0, 6], [1, 2], [6, 6], [3, 4], [5, 0]])
    codes = torch.stack([torch.randint(3, (5, 2, 2)), torch.randint(4, (5, 2, 2))], dim=-1)
    mask = torch.ones(5, 1, 1, 7, dtype=torch.bool)
    lazy = decoder(codes, decoder.keys_values(memory), visible)
    step = decoder.step(None, 0, decoder.keys_values(memory), mask, decoder.start())
    for layer, block in enumerate(decoder.layers()):
        rows = decoder.context.project.weight[layer * 32 : (layer + 1) * 32]
        block.cross_attention = PerLayerProjection(block.cross_attention, rows, memory)
    ordinary = decoder(codes, decoder.keys_values(memory), visible)
    assert ordinary.abs().max() > 0.1
    torch.testing.assert_close(lazy, ordinary, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        step, decoder.step(None, 0, decoder.keys_values(memory), mask, decoder.start()), atol=1e-5, rtol=1e-4
    )


def test_grouped_heads_equal_repeated_keys_and_values() -> None:
    """Four query heads over two groups: heads 0, 1 read group 0, heads 2, 3 read group 1."""
    config = config_of(kv_groups=2, kv_split=2)
    attention = LazyCrossAttention(config)
    [(keys, values)] = ContextProcessor(config)(torch.randn(3, 6, 16))
    assert keys.shape == (3, 2, 6, 4)
    repeated = LazyCrossAttention(config_of(kv_groups=4, kv_split=2))
    repeated.load_state_dict(attention.state_dict())
    x, mask = torch.randn(3, 5, 16), torch.arange(6) <= torch.tensor([0, 1, 2, 3, 5])[:, None]
    mask = mask.expand(3, 1, 5, 6)
    found = attention(x, (keys, values), mask)
    expected = repeated(x, (keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)), mask)
    torch.testing.assert_close(found, expected)


def test_context_by_hand() -> None:
    """Width 2, one head, S_kv = 1: with the identity projection keys are RMSNorm(3, 4) = (3, 4) / sqrt(12.5), values too."""
    config = config_of(width=2, num_heads=1, kv_groups=1, num_experts=1, experts_per_token=1)
    context = ContextProcessor(config)
    with torch.no_grad():
        context.project.weight.copy_(torch.eye(2))
    [(keys, values)] = context(torch.tensor([[[3.0, 4.0]]]))
    assert keys is values
    torch.testing.assert_close(keys[0, 0, 0], torch.tensor([3.0, 4.0]) / 12.5**0.5)


def test_neighbouring_blocks_share_keys_and_values() -> None:
    """floor(l * L_kv / layers) for 5 layers and L_kv = 2: 0, 0, 0 (4 / 5), 1 (6 / 5), 1."""
    assert decoder_of(config_of(num_decoder_layers=5, kv_layers=2)).kv_layer == (0, 0, 0, 1, 1)
    assert decoder_of(config_of(num_decoder_layers=4, kv_layers=4)).kv_layer == (0, 1, 2, 3)


def linear_flops(module: nn.Module, *arguments: object) -> tuple[int, int]:
    """FLOPs of linear layers and of batched products (attention) in one call; the counter does not know the fused kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*arguments)
    counts = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    return counts.get("aten.mm", 0) + counts.get("aten.addmm", 0), counts.get("aten.bmm", 0)


def test_matmul_flops_do_not_grow_with_the_context() -> None:
    """Only attention scores do: ten times the context, the same linear layers, ten times the attention to it."""
    decoder = decoder_of(config_of(num_experts=1, experts_per_token=1))
    codes = torch.zeros(2, 1, 1, 2, dtype=torch.int64)
    linear, attention = {}, {}
    for context in (5, 50):
        keys_values = decoder.keys_values(torch.randn(2, context, 16))
        visible = torch.full((2, 1), context - 1)
        linear[context], attention[context] = linear_flops(decoder, codes, keys_values, visible)
    assert linear[5] == linear[50] > 0
    assert attention[50] == 10 * attention[5] > 0


@pytest.mark.parametrize("decoder", ["lazy", "standard"])
@pytest.mark.parametrize("encoder", ["plain", "pathways"])
def test_counted_flops_are_those_that_run(prepared: Dataset, encoder: str, decoder: str) -> None:
    """The formulas of the summary against torch's counter, one user, six levels, 11 events."""
    changes: dict[str, object] = {"num_encoder_layers": 2, "num_experts": 1, "experts_per_token": 1}
    if decoder == "standard":
        changes |= {"decoder": "standard", "kv_groups": None, "num_dense_blocks": 0}
    if encoder == "pathways":
        changes |= {"encoder": "pathways", "encoder_attention": "bidirectional", "positive_events": 6}
        changes |= {"short_events": 4, "lifelong_queries": 3}
    ids = toy_ids(np.stack(np.unravel_index(np.arange(12), (2,) * 6), 1), (2,) * 6)
    config = config_of(**changes)
    policy = build_policy(prepared, ids, config, None)
    batch = TargetRows.from_dataset(prepared, 20).collate(np.array([0]))
    history = type(batch.history)(
        user_B=batch.history.user_B,
        lengths_B=torch.tensor([11]),
        **{f"{name}_BH": torch.ones(1, 11, dtype=torch.int64) for name in ("item", "behaviour", "gap", "watch")},
    )
    memory = policy.encoder(history)
    assert 2 * encoder_products(config, 11) == sum(linear_flops(policy.encoder, history))
    with FlopCounterMode(display=False) as counter:
        keys_values = policy.decoder.keys_values(memory)
    assert 2 * key_value_products(config, memory.shape[1]) == counter.get_total_flops()
    held = {id(tensor): tensor.nbytes for pair in keys_values for tensor in pair}
    assert summarise(policy, history=11).key_value_bytes_per_user == sum(held.values())
    visible = torch.tensor([[memory.shape[1] - 1]])
    codes = torch.zeros(1, 1, 1, 6, dtype=torch.int64)
    found = sum(linear_flops(policy.decoder, codes, keys_values, visible))
    assert found == 2 * 6 * token_products(config, memory.shape[1], 6)


def test_every_level_has_its_own_norm_and_head() -> None:
    decoder = decoder_of(config_of())
    keys_values = decoder.keys_values(torch.randn(1, 3, 16))
    arguments = torch.zeros(1, 1, 1, 2, dtype=torch.int64), keys_values, torch.tensor([[2]])
    before = decoder(*arguments)
    with torch.no_grad():
        decoder.norms[1].weight.mul_(2)
        decoder.head_KD[:3].zero_()
    after = decoder(*arguments)
    torch.testing.assert_close(after[..., 0, :], before[..., 0, :])
    torch.testing.assert_close(after[..., 1, :], 2 * before[..., 1, :])
    assert decoder.code_logits(after[..., 0, :], 0).abs().max() == 0
    assert decoder.code_logits(after[..., 1, :], 1).shape[-1] == 4
    assert decoder.code_logits(after[..., 1, :], 1).abs().max() > 0


def losses(policy: GenerativeRecommender, batch: TrainingBatch) -> tuple[torch.Tensor, int]:
    """Next-token plus dense loss, summed over targets."""
    hidden, query = policy(batch)
    asked = batch.target_BPM > 0
    log_probs = policy.code_log_probs(hidden[asked], batch.target_BPM[asked])
    dense = dense_loss(query[asked[..., 0]], policy.item_vectors(), batch.target_BPM[asked])
    return (next_token_loss(-log_probs, "mean") + dense) * int(asked.sum()), int(asked.sum())


@pytest.mark.parametrize("encoder_layers", [0, 1])
def test_all_prefix_training_equals_one_pair_per_target(prepared: Dataset, encoder_layers: int) -> None:
    """Without an encoder too: a context position then knows one event only, and the decoder's mask does the rest."""
    policy = policy_for(prepared, num_encoder_layers=encoder_layers, num_shared_experts=1)
    windows, pairs = PrefixWindows.from_dataset(prepared, 20), TargetRows.from_dataset(prepared, 20)
    rows = np.arange(20)
    together, count = losses(policy, windows.collate(rows))
    grads = torch.autograd.grad(together, list(policy.parameters()), allow_unused=True)
    users = np.flatnonzero(np.isin(pairs.targets.user_index, windows.user_index[rows]))
    apart, expanded = losses(policy, pairs.collate(users))
    expanded_grads = torch.autograd.grad(apart, list(policy.parameters()), allow_unused=True)
    assert count == expanded > 60
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-3)
    for a, b in zip(grads, expanded_grads, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)


def test_a_prediction_sees_no_later_code_and_no_later_item(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path, task="session", session_length=3)
    policy = policy_for(prepared)
    batch = TargetRows.from_dataset(prepared, 6).collate(np.arange(5))
    before, _ = policy(batch)
    targets = batch.target_BPM.clone()
    targets[..., 1] = 1 + targets[..., 1] % 12
    after, _ = policy(TrainingBatch(batch.history, targets, batch.visible_BP))
    torch.testing.assert_close(before[:, :, 0], after[:, :, 0])
    torch.testing.assert_close(before[:, :, 1, 0], after[:, :, 1, 0])
    assert (before[:, :, 2] - after[:, :, 2]).abs().max() > 1e-3


def test_published_sizes() -> None:
    """1B: 18 layers * 18 * 1792^2 = 1.04 G in blocks. MoE: 4.07 G in blocks, 0.50 G active (arXiv 2508.20900).

    MoE by hand, D = 1408: attention 6 D^2 and 12 D^2 of a dense layer, 54 experts of 3 D^2, router 53 D:
    14 * 6 D^2 + 2 * 12 D^2 + 12 * (162 D^2 + 53 D) = 4.07 G; active 14 * 6 D^2 + 2 * 12 D^2 + 12 * 4 * 3 D^2 = 0.50 G.
    """
    policy = shape_only(ModelConfig(preset="v2_1b"), beauty_sized(), codebook_size=8192)
    assert sum(p.numel() for p in policy.decoder.blocks.parameters()) == pytest.approx(18 * 18 * 1792**2, rel=1e-3)
    # Table 2 counts 18.89 GFLOPs per sample; the dense head and the context map are ours
    assert summarise(policy).train_mflops_per_target == pytest.approx(18_890, rel=0.06)
    mixture = {"width": 1408, "num_heads": 11, "num_decoder_layers": 14, "ffn_width": 5632, "num_dense_blocks": 2}
    mixture |= {"num_experts": 53, "experts_per_token": 3, "num_shared_experts": 1, "expert_width": 1408}
    config = ModelConfig.model_validate({"preset": "v2_1b", **mixture})
    policy = shape_only(config, beauty_sized(), codebook_size=8192)
    blocks = sum(p.numel() for p in policy.decoder.blocks.parameters())
    sizes = summarise(policy)
    assert blocks == pytest.approx(4.07e9, rel=0.005)
    assert blocks - (sizes.total - sizes.tables - sizes.active) == pytest.approx(0.50e9, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_groups": 3}, "kv_groups 3 must divide num_heads 4"),
        ({"kv_layers": 4}, "kv_layers 4 exceeds num_decoder_layers 3"),
        ({"num_dense_blocks": 4}, "num_dense_blocks 4 exceeds num_decoder_layers 3"),
        ({"kv_split": 3}, "kv_split"),
        ({"decoder": "standard"}, "belongs to decoder: lazy and this model has decoder: standard"),
    ],
)
def test_refusals(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(ModelConfig, {**SMALL, **changes}, "recipe.yaml")
