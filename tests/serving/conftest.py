"""A toy catalogue of twelve items and five users, an untrained policy on it, and its bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recsys.contracts.event_features import NUM_GAP_BUCKETS, NUM_WATCH_BUCKETS
from recsys.contracts.prepared import HistoryArrays, PreparedData, Vocabulary, write_history_arrays, write_vocabulary
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import catalogue_of, save_policy
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.semantic_ids.generation import SemanticIds
from serving.export import BundleSources, export_bundle

NUM_ITEMS = 12
LEVEL_SIZES = (3, 4)
HISTORIES = [[0, 1, 2], [3, 4], [5], [6, 7, 8, 9], []]
"""item_index per user_index; the fifth user has no event."""


def write_prepared(folder: Path, item_ids: list[int], histories: list[list[int]]) -> PreparedData:
    folder.mkdir(parents=True)
    num_items, num_users = len(item_ids), len(histories)
    flat = [item for history in histories for item in history]
    offsets = np.cumsum([0, *map(len, histories)])
    events = len(flat)
    arrays = HistoryArrays(
        item=np.array(flat, np.int32),
        behaviour=np.ones(events, np.uint8),
        gap=np.zeros(events, np.uint8),
        watch=np.zeros(events, np.uint8),
        timestamp=np.full(events, -1, np.int64),
        offsets=offsets,
        train_end=offsets[1:],
        valid_end=offsets[1:],
    )
    write_history_arrays(folder / "history", arrays)
    vocabulary = Vocabulary(
        num_users=num_users,
        num_items=num_items,
        num_authors=2,
        num_categories=1 + NUM_ITEMS // 4,
        num_behaviours=3,
        num_gap_buckets=NUM_GAP_BUCKETS,
        num_watch_buckets=NUM_WATCH_BUCKETS,
        task="next_item",
        session_length=1,
        signals=("like",),
        has_timestamps=True,
    )
    write_vocabulary(folder, vocabulary)
    pl.DataFrame(
        {
            "item_index": np.arange(num_items, dtype=np.int32),
            "item_id": item_ids,
            "title": [f"item {item}" for item in item_ids],
            "author_index": np.ones(num_items, np.int32),
            "category_index": (1 + np.arange(num_items) // 4 % 3).astype(np.int32),
        }
    ).write_parquet(folder / "items.parquet")
    users = pl.DataFrame(
        {"user_index": np.arange(num_users, dtype=np.int32), "user_id": [f"u{u}" for u in range(num_users)]}
    )
    users.write_parquet(folder / "users.parquet")
    return PreparedData.open(folder)


def write_model(folder: Path, prepared: PreparedData, semantic_ids: SemanticIds, features: tuple[str, ...]) -> None:
    torch.manual_seed(3)
    model = ModelConfig.model_validate(
        {"width": 16, "num_heads": 2, "ffn_width": 16, "expert_width": 16, "features": features}
    )
    spec = PolicySpec(
        model=model,
        vocabulary=prepared.vocabulary,
        level_sizes=semantic_ids.level_sizes,
        semantic_id_digest=semantic_ids.digest,
    )
    policy = GenerativeRecommender(spec, catalogue_of(prepared.items, semantic_ids.codes))
    with torch.no_grad():  # the initial weights are tiny; larger ones make answers differ between users
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    save_policy(folder, policy)


def write_semantic_ids(folder: Path, item_ids: list[int], order: list[int] | None = None) -> SemanticIds:
    places = np.array(order if order is not None else range(len(item_ids)))
    codes = np.stack([places // LEVEL_SIZES[1], places % LEVEL_SIZES[1]], axis=1).astype(np.int32)
    books = tuple(np.zeros((size, 2), np.float32) for size in LEVEL_SIZES)
    ids = SemanticIds(codes=codes, level_sizes=LEVEL_SIZES, item_ids=pl.Series(item_ids), codebooks=books)
    ids.save(folder)
    return ids


@pytest.fixture(scope="session")
def item_ids() -> list[int]:
    return [100 + 7 * index for index in range(NUM_ITEMS)]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory, item_ids: list[int]) -> BundleSources:
    root = tmp_path_factory.mktemp("toy")
    prepared = write_prepared(root / "prepared", item_ids, HISTORIES)
    (root / "ids").mkdir()
    semantic_ids = write_semantic_ids(root / "ids", item_ids)
    write_model(root / "model", prepared, semantic_ids, ("item", "codes", "behaviour", "gap", "watch", "user"))
    return BundleSources(root / "prepared", root / "ids", root / "model", {"data": "d" * 64, "train": "t" * 64})


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, sources: BundleSources) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "toy"
    export_bundle(sources, "toy", DecodeConfig(beam_width=12), folder)
    return folder
