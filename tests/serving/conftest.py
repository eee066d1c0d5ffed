"""A toy catalogue of twelve items and five users, untrained policies on it, and their bundles.

``bundle`` answers with single items. ``steered_bundle`` generates sessions of two, takes three objective weights, has rows
for unseen users, and brings a reward model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recsys.contracts.contents import MANIFEST_NAME, describe_files
from recsys.contracts.dataset import Dataset
from recsys.contracts.event_features import NUM_GAP_BUCKETS, NUM_WATCH_BUCKETS
from recsys.contracts.manifest import Manifest, read_json, write_json
from recsys.data.item_catalogue import ItemCatalogue
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import save_policy
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.reward.checkpoint import save_reward_model
from recsys.reward.config import CombinationConfig, RewardModelConfig, RewardSignal
from recsys.reward.model import RewardSpec, SessionRewardModel
from recsys.semantic_ids.versions import SemanticIds
from serving.export.export import BundleSources, export_bundle
from tests.toy.builders import dataset_spec, history_lists, item_table, train_counts, write_dataset

NUM_ITEMS = 12
LEVEL_SIZES = (3, 4)
HISTORIES = [[0, 1, 2], [3, 4], [5], [6, 7, 8, 9], []]
"""item_index per user_index; the fifth user has no event."""


TOWERS = ("like", "watch_time", "diversity")
"""What the steered policy was aligned with; the first two are the reward model's own."""


def write_prepared(folder: Path, item_ids: list[int], histories: list[list[int]], session_length: int = 1) -> Dataset:
    num_items = len(item_ids)
    arrays = history_lists(histories)
    spec = dataset_spec(
        len(histories),
        num_items,
        num_authors=2,
        num_categories=1 + NUM_ITEMS // 4,
        num_behaviours=3,
        num_gap_buckets=NUM_GAP_BUCKETS,
        num_watch_buckets=NUM_WATCH_BUCKETS,
        session_length=session_length,
        signals=("like",),
        has_timestamps=True,
    )
    items = item_table(
        num_items,
        item_id=item_ids,
        title=[f"item {item}" for item in item_ids],
        author_index=np.ones(num_items, np.int32),
        category_index=1 + np.arange(num_items) // 4 % 3,
        train_count=train_counts(arrays, num_items),
    )
    return write_dataset(folder, spec, replace(arrays, behaviour=np.ones(len(arrays.item), np.uint8)), items)


def write_model(
    folder: Path,
    prepared: Dataset,
    semantic_ids: SemanticIds,
    features: tuple[str, ...],
    objectives: tuple[str, ...] = (),
    unseen_user_rows: int = 0,
) -> None:
    torch.manual_seed(3)
    widths = {"width": 16, "num_heads": 2, "ffn_width": 16, "expert_width": 16}
    inputs = {"features": features, "num_objectives": len(objectives), "unseen_user_rows": unseen_user_rows}
    model = ModelConfig.model_validate(widths | inputs)
    spec = PolicySpec(
        model=model,
        dataset=prepared.spec,
        level_sizes=semantic_ids.level_sizes,
        semantic_id_digest=semantic_ids.digest,
        objectives=objectives,
    )
    policy = GenerativeRecommender(spec, ItemCatalogue.from_items(prepared.items, semantic_ids.codes))
    with torch.no_grad():  # the initial weights are tiny; larger ones make answers differ between users
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    save_policy(folder, policy)


def write_reward_model(
    folder: Path,
    prepared: Dataset,
    semantic_ids: SemanticIds,
    towers: tuple[str, ...] = TOWERS[:2],
    max_items: int = 2,
    seed: int = 5,
) -> None:
    """An untrained reward model with weights large enough to have opinions."""
    torch.manual_seed(seed)
    widths = {"width": 16, "num_heads": 2, "ffn_width": 16, "tower_width": 8}
    spec = RewardSpec(
        model=RewardModelConfig.model_validate({**widths, "item_embeddings": False}),
        dataset=prepared.spec,
        level_sizes=semantic_ids.level_sizes,
        semantic_id_digest=semantic_ids.digest,
        signals=tuple(RewardSignal(name=name, column=name, kind="any") for name in towers),
        base_rates=(0.5,) * len(towers),
        max_items=max_items,
        embedding_width=0,
        combination=CombinationConfig(),
    )
    rates = torch.zeros(prepared.spec.num_items + 1, len(towers))
    model = SessionRewardModel(spec, ItemCatalogue.from_items(prepared.items, semantic_ids.codes), None, rates)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    save_reward_model(folder, model)


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


@pytest.fixture(scope="session")
def steered_sources(tmp_path_factory: pytest.TempPathFactory, item_ids: list[int]) -> BundleSources:
    root = tmp_path_factory.mktemp("steered")
    prepared = write_prepared(root / "prepared", item_ids, HISTORIES, session_length=2)
    (root / "ids").mkdir()
    semantic_ids = write_semantic_ids(root / "ids", item_ids)
    write_model(root / "model", prepared, semantic_ids, ("item", "codes", "behaviour", "user"), TOWERS, 4)
    write_reward_model(root / "reward", prepared, semantic_ids)
    digests = {"data": "d" * 64, "train": "t" * 64, "align": "a" * 64, "reward": "r" * 64}
    return BundleSources(root / "prepared", root / "ids", root / "model", digests, root / "reward")


@pytest.fixture(scope="session")
def steered_bundle(tmp_path_factory: pytest.TempPathFactory, steered_sources: BundleSources) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "steered"
    export_bundle(steered_sources, "steered", DecodeConfig(beam_width=24), folder)
    return folder


def sealed(folder: Path) -> Path:
    """Write the manifest of a changed bundle anew, as somebody would who wants the change to pass."""
    manifest = Manifest.model_validate(read_json(folder / MANIFEST_NAME))
    changed = manifest.model_copy(update={"files": describe_files(folder)})
    write_json(folder / MANIFEST_NAME, changed.model_dump(mode="json"))
    return folder


def frame_of(item_ids: list[int]) -> pl.DataFrame:
    """The toy histories as a caller would write them."""
    return pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in range(len(HISTORIES))],
            "item_ids": [[item_ids[item] for item in history] for history in HISTORIES],
            "behaviours": [[1] * len(history) for history in HISTORIES],
        },
        schema_overrides={"item_ids": pl.List(pl.Int64), "behaviours": pl.List(pl.Int64)},
    )
