"""Mixed precision: the network may compute in bfloat16, log-probabilities are float32 all the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.datamodule import PolicyData
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.model.config import ModelConfig
from recsys.model.layers.precision import Norm, float32_linear, rounded_linear
from recsys.training.fit import build_policy
from recsys.training.losses import dense_loss
from tests.toy.dataset import ring_ids, ring_prepared


def test_a_float32_product_inside_autocast_keeps_what_bfloat16_loses() -> None:
    """1 + 2^-9 has more bits than bfloat16: its double is 2.00390625 in float32 and 2 or 2.015625 in bfloat16."""
    x, weight = torch.tensor([[1 + 2.0**-9]]), torch.tensor([[2.0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert float32_linear(x, weight).item() == 2.00390625
        assert torch.nn.functional.linear(x, weight).item() != 2.00390625


def test_rounded_factors_are_summed_in_float32_and_teach_as_the_exact_ones_do() -> None:
    """Result: that of the rounded factors in float32. Gradients: within the rounding of their own factors."""
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3, 64), (40, 64), (40,)))
    ours = rounded_linear(x, weight, bias, torch.bfloat16)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, float32_linear(x.bfloat16(), weight.bfloat16(), bias))
    assert not torch.equal(ours, float32_linear(x, weight, bias))
    assert torch.equal(rounded_linear(x, weight, bias, torch.float32), float32_linear(x, weight, bias))
    loss = torch.randn_like(ours)
    rounded = torch.autograd.grad((ours * loss).sum(), [x, weight, bias])
    exact = torch.autograd.grad((float32_linear(x, weight, bias) * loss).sum(), [x, weight, bias])
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 0.02 * b.abs().max()


def test_a_norm_keeps_the_type_and_float32s_epsilon() -> None:
    """(.03, -.04) has the mean square .00125: with bfloat16's epsilon, .0078, it would be divided by .095 and not .0354."""
    norm, small = Norm(2), torch.tensor([0.03, -0.04])
    expected = torch.tensor([0.8485, -1.1314])
    torch.testing.assert_close(norm(small), expected, atol=1e-3, rtol=0)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            low = norm(small.bfloat16())
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), expected, atol=0.01, rtol=0)
    assert torch.equal(norm(small), torch.nn.RMSNorm(2)(small))


@pytest.mark.parametrize("preset", ["tiny", "tiny_lazy", "tiny_pathways"])
def test_a_network_in_bfloat16_gives_float32_log_probabilities(tmp_path: Path, preset: str) -> None:
    prepared = ring_prepared(tmp_path)
    torch.manual_seed(0)
    policy = build_policy(prepared, ring_ids(), ModelConfig.model_validate({"preset": preset}), None).eval()
    history = collate_histories(Histories.from_targets(prepared.history, prepared.all_users()), 50)

    batch = TrainingBatch(history, torch.ones(len(history), 1, 1, dtype=torch.long), history.lengths_B[:, None])

    def log_probabilities() -> tuple[torch.Tensor, torch.Tensor]:
        first_codes = policy.next_codes(policy.start(history), None)
        assert first_codes is not None
        return first_codes, policy.log_prob(batch)

    with torch.no_grad():
        exact = log_probabilities()
        with torch.autocast("cpu", torch.bfloat16):
            mixed = log_probabilities()
    for plain, low in zip(exact, mixed, strict=True):
        assert low.dtype == torch.float32
        assert 0 < (low - plain).abs().max() < 0.2
    torch.testing.assert_close(mixed[0].exp().sum(-1), torch.ones(len(history), 1), atol=1e-5, rtol=0)
    hidden = torch.randn(5, policy.spec.model.width)
    outside = policy.decoder.code_logits(hidden, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(policy.decoder.code_logits(hidden, 0), outside)
        with torch.no_grad():
            assert policy.start(history).dense_query_BD.dtype == torch.float32  # item vectors are, too


@pytest.mark.parametrize("rescore", ["dense", "none"])
@pytest.mark.parametrize("preset", ["tiny", "tiny_lazy", "tiny_pathways"])
def test_a_whole_search_runs_in_bfloat16(tmp_path: Path, preset: str, rescore: str) -> None:
    """On a CPU the recommender refuses it, for it is slower there; what a GPU would compute is checked all the same."""
    prepared, ids = ring_prepared(tmp_path), ring_ids()
    torch.manual_seed(0)
    policy = build_policy(prepared, ids, ModelConfig.model_validate({"preset": preset}), None).eval()
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=12, rescore=rescore))
    exact = recommender.recommend(histories, 12, exclude_seen=False)
    recommender.config = recommender.config.model_copy(update={"precision": "bfloat16"})
    mixed = recommender.recommend(histories, 12, exclude_seen=False)
    assert mixed.scores.dtype == np.float32
    assert (np.sort(mixed.items) == np.sort(exact.items)).all()  # the beam holds the whole catalogue
    difference = np.abs(np.sort(mixed.scores) - np.sort(exact.scores)).max()
    assert difference < 0.2
    assert difference > 0 or (preset == "tiny_lazy" and rescore == "dense")  # no encoder: its query is exact


@pytest.mark.parametrize("preset", ["tiny", "tiny_lazy", "tiny_pathways"])
def test_a_training_step_in_bfloat16_points_the_same_way(tmp_path: Path, preset: str) -> None:
    prepared, ids = ring_prepared(tmp_path), ring_ids()
    torch.manual_seed(0)
    policy = build_policy(prepared, ids, ModelConfig.model_validate({"preset": preset}), None).eval()
    data = PolicyData(prepared, form="pairs", max_history=6, batch_size=8, validation_users=5, seed=1)
    batch = data.loader.samples.collate(data.loader.batches(0)[0])

    def loss_and_gradient(enabled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden, query = policy(batch)
            loss = policy.code_losses(hidden, batch.target_BPM).mean()
            loss = loss + dense_loss(query.flatten(0, 1), policy.item_vectors(), batch.target_BPM[..., 0].flatten())
        loss.backward()
        return loss, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    exact, gradient = loss_and_gradient(enabled=False)
    mixed, mixed_gradient = loss_and_gradient(enabled=True)
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - exact).abs() < 0.01 * exact
    assert torch.cosine_similarity(gradient, mixed_gradient, dim=0) > 0.999
