"""The 4-pathway encoder: what each pathway reads, its layout, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.config import validate
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.data.samples import PrefixWindows, TargetRows
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.preset_costs import shape_only
from recsys.model.summary import memory_positions
from recsys.model.variants.pathways import HistoryCompression, PathwayEncoder, engaged_events, recent_events
from recsys.training.fit import build_policy, training_form
from tests.toy.builders import beauty_sized
from tests.toy.dataset import ring_ids, ring_prepared

SMALL = {
    "preset": "tiny_pathways",
    "width": 16,
    "num_heads": 2,
    "ffn_width": 32,
    "expert_width": 16,
    "max_history": 12,
    "short_events": 2,
    "positive_events": 3,
    "lifelong_queries": 4,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "init_std": 0.3,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


def policy_for(prepared: Dataset, **changes: object) -> GenerativeRecommender:
    torch.manual_seed(3)
    return build_policy(prepared, ring_ids(), ModelConfig.model_validate({**SMALL, **changes}), None).eval()


def encoder_of(policy: GenerativeRecommender) -> PathwayEncoder:
    assert isinstance(policy.encoder, PathwayEncoder)
    return policy.encoder


def history_of(lengths: list[int], width: int, **columns: list[list[int]]) -> HistoryBatch:
    """Items 1, 2, 3 … oldest first; behaviour, gap and watch 1 where not given."""
    length_B = torch.tensor(lengths)
    place = torch.arange(width)
    real = place < length_B[:, None]
    item = torch.where(real, 1 + place % 12, 0)
    ones = torch.where(real, 1, 0)
    given = {f"{name}_BH": torch.tensor(values) for name, values in columns.items()}
    fields = {"item_BH": item, "behaviour_BH": ones, "gap_BH": ones, "watch_BH": ones, **given}
    return HistoryBatch(user_B=torch.ones(len(lengths), dtype=torch.int64), lengths_B=length_B, **fields)


def test_the_most_engaged_events_by_hand() -> None:
    """User 0: signals of codes (2, 1, 4, 2, 3) are (1, 0, 2, 1, 1); the three best are event 2 (two signals), event 4 (one
    signal, watch 9) and event 0 or 3 (one signal, watch 5 both): the later one. In order of time: 2, 3, 4.
    User 1 has two events, so one place stays empty; code 0 is "not known" and counts as no signal.
    """
    batch = history_of(
        [5, 2],
        5,
        behaviour=[[2, 1, 4, 2, 3], [0, 1, 0, 0, 0]],
        watch=[[5, 11, 1, 5, 9], [7, 3, 0, 0, 0]],
    )
    assert engaged_events(batch, 3).tolist() == [[2, 3, 4], [-1, 0, 1]]
    assert engaged_events(batch, 1).tolist() == [[2], [0]]


def test_recent_events_by_hand() -> None:
    assert recent_events(torch.tensor([5, 1, 0]), 2).tolist() == [[3, 4], [-1, 0], [-1, -1]]


def test_compression_by_hand() -> None:
    """Equal attention weights: the query becomes itself plus the mean of the normalised real rows.

    RMSNorm of (1, 1) is (1, 1), of (2, -2) it is (1, -1), their mean (1, 0); the padded (9, 9) is not looked at.
    Query (0.5, 0.5) + (1, 0) = (1.5, 0.5).
    """
    config = ModelConfig.model_validate(
        {
            **SMALL,
            "width": 2,
            "num_heads": 1,
            "num_experts": 1,
            "experts_per_token": 1,
            "lifelong_queries": 1,
            "lifelong_layers": 1,
        }
    )
    compression = HistoryCompression(config)
    block = compression.blocks[0]
    with torch.no_grad():
        compression.queries_QD.fill_(0.5)
        block.attention.query.weight.zero_()
        block.attention.key_value.weight.copy_(torch.cat([torch.zeros(2, 2), torch.eye(2)]))
        block.attention.out.weight.copy_(torch.eye(2))
        block.ffn.down.weight.zero_()
    history = torch.tensor([[[1.0, 1.0], [2.0, -2.0], [9.0, 9.0]]])
    found = compression(history, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(found, torch.tensor([[[1.5, 0.5]]]))


def test_layout_by_hand(prepared: Dataset) -> None:
    """N_q = 4, L_p = 3, L_s = 2. Last real positions: 4 + 0 + 0 (the user), 4 + 1 + 1, 4 + 3 + 2 (short-term events)."""
    encoder = encoder_of(policy_for(prepared))
    batch = history_of([0, 1, 5], 5)
    memory, real = encoder.lay_out(batch)
    assert memory.shape == (3, 10, 16)
    assert memory.shape[1] == memory_positions(encoder.config, 5)
    last = encoder.last_position(batch)
    assert last.tolist() == [4, 6, 9]
    assert real.tolist() == (torch.arange(10) <= last[:, None]).tolist()


def test_every_pathway_reads_its_own_events(prepared: Dataset) -> None:
    """Before the encoder's blocks mix them: six events, of which 0 and 3 have a signal and 4, 5 are the latest.

    Short-term = events 4, 5; positive = 0, 3 and the latest of the rest, 5; a change of event 1 reaches the queries only.
    """
    encoder = encoder_of(policy_for(prepared))
    behaviour = [[2, 1, 1, 2, 1, 1]]
    before, _ = encoder.lay_out(history_of([6], 6, behaviour=behaviour))
    changed = {}
    for event in range(6):
        items = [[1, 2, 3, 4, 5, 6]]
        items[0][event] = 9
        after, _ = encoder.lay_out(history_of([6], 6, behaviour=behaviour, item=items))
        changed[event] = ((before - after).abs().amax(-1) > 1e-6)[0].nonzero().flatten().tolist()
    queries, user = [0, 1, 2, 3], 7
    assert changed[0] == [*queries, 4]
    assert changed[1] == changed[2] == queries
    assert changed[3] == [*queries, 5]
    assert changed[4] == [*queries, 8]
    assert changed[5] == [*queries, 6, 9]
    assert user not in {place for places in changed.values() for place in places}


def test_padding_and_company_change_nothing(prepared: Dataset) -> None:
    policy = policy_for(prepared)
    together = history_of([0, 1, 4, 9], 9)
    garbage = torch.where(torch.arange(9) < together.lengths_B[:, None], together.item_BH, 7)
    dirty = HistoryBatch(**{**together.__dict__, "item_BH": garbage, "watch_BH": torch.full((4, 9), 3)})
    same = HistoryBatch(**{**together.__dict__, "watch_BH": torch.full((4, 9), 3)})
    for row, length in enumerate((0, 1, 4, 9)):
        alone = history_of([length], max(length, 1))
        states = policy.start(together), policy.start(alone)
        torch.testing.assert_close(states[0].dense_query_BD[row], states[1].dense_query_BD[0], atol=1e-5, rtol=1e-4)
        logits = [policy.next_codes(state, None) for state in states]
        torch.testing.assert_close(logits[0][row], logits[1][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(policy.start(dirty).dense_query_BD, policy.start(same).dense_query_BD)


def test_the_dense_query_follows_the_latest_event(prepared: Dataset) -> None:
    """It reads the last real position; with no blocks that is the short-term pathway of the latest event alone."""
    policy = policy_for(prepared, num_encoder_layers=0)
    one = policy.start(history_of([4], 4)).dense_query_BD
    older = policy.start(history_of([4], 4, item=[[8, 8, 8, 4]])).dense_query_BD
    latest = policy.start(history_of([4], 4, item=[[1, 2, 3, 8]])).dense_query_BD
    torch.testing.assert_close(one, older)
    assert (one - latest).abs().max() > 1e-3


def test_all_prefix_training_is_refused(prepared: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"has seen the whole history.*encoder_attention: bidirectional"):
        validate(ModelConfig, {"preset": "tiny_pathways", "encoder_attention": "causal"}, "recipe.yaml")
    policy = policy_for(prepared)
    assert training_form(prepared, policy.spec.model) == "pairs"
    with pytest.raises(ConfigError, match=r"from the first 0 of \d+ events \(row 0, point 0 .*form='pairs'"):
        policy(PrefixWindows.from_dataset(prepared, 6).collate(np.arange(3)))
    with pytest.raises(ConfigError, match=r"short_events is 7, but belongs to encoder: pathways"):
        validate(ModelConfig, {"short_events": 7}, "recipe.yaml")


def test_several_points_that_see_everything_are_served(prepared: Dataset) -> None:
    """A roll-out group asks for many items of one history in one pass."""
    policy = policy_for(prepared)
    row = TargetRows.from_dataset(prepared, 12).collate(np.array([20]))
    items = torch.tensor([[[1], [5], [12]]])
    together = policy.log_prob(TrainingBatch(row.history, items, row.visible_BP.expand(1, 3)))
    apart = [policy.log_prob(TrainingBatch(row.history, items[:, [g]], row.visible_BP)) for g in range(3)]
    torch.testing.assert_close(together, torch.cat(apart, dim=1), atol=1e-5, rtol=1e-4)


def test_published_shape() -> None:
    """405 = 1 + 20 + 256 + 128 positions (arXiv 2506.13695, section 2.2.1); 0.935 B parameters (Table 1).

    Ours, without the id tables, are 964 M: SwiGLU instead of two-matrix layers adds (4 + 2) * 2048 * 1024 = 12.6 M, the code
    embeddings and the rest are not specified there.
    """
    config = ModelConfig(preset="tr_0.9b")
    assert memory_positions(config, 2000) == 405
    policy = shape_only(config, beauty_sized(), codebook_size=8192)
    untabled = sum(p.numel() for p in policy.parameters()) - sum(p.numel() for p in policy.tables.parameters())
    assert untabled == pytest.approx(0.935e9, rel=0.04)


def test_a_saved_policy_comes_back(prepared: Dataset, tmp_path: Path) -> None:
    from recsys.model.checkpoint import load_policy, save_policy

    policy = policy_for(prepared)
    save_policy(tmp_path, policy)
    batch = TargetRows.from_dataset(prepared, 12).collate(np.arange(9))
    assert torch.equal(policy.log_prob(batch), load_policy(tmp_path).log_prob(batch))
