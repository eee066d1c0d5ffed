"""Simulated users and a policy of random weights, as a prepared data set and a bundle: what the batch job is timed on.

Speed and legality do not depend on what a policy has learned, so nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from recsys.data.item_catalogue import ItemCatalogue
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import save_policy
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.semantic_ids.versions import SemanticIds
from serving.export.export import BundleSources, export_bundle
from tests.toy.builders import dataset_spec, history_arrays, item_table, train_counts, write_dataset

DATA_DIGEST = "d" * 64
FIRST_ITEM_ID, FIRST_USER_ID = 1_000_000, 5_000_000
"""Outside ids are far from the indices, so that one taken for the other shows."""


@dataclass(frozen=True)
class WorldSize:
    """How large, and how expensive a user is.

    Attributes:
        max_events: Histories have 1 to this many events, every length as often.
        level_sizes: Codes per level; their product is at least ``items``.
        model: Shape of the policy.
        beam_width: Beams of the bundle's decode configuration.
        words: What the policy reads of sentences, for a ``model`` with ``words``.
    """

    users: int
    items: int
    categories: int
    max_events: int
    level_sizes: tuple[int, ...]
    model: dict[str, Any]
    beam_width: int
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class World:
    """Folders of a simulated data set."""

    prepared: Path
    bundle: Path
    size: WorldSize


def build_world(folder: Path, size: WorldSize, seed: int = 0) -> World:
    """Write data set and bundle; a few seconds for a million users."""
    rng = np.random.default_rng(seed)
    prepared = _write_prepared(folder / "prepared", size, rng)
    item_ids = prepared.items[Columns.ITEM_ID]
    semantic_ids = SemanticIds(
        codes=_distinct_codes(size, rng),
        level_sizes=size.level_sizes,
        item_ids=item_ids,
        codebooks=tuple(np.zeros((codes, 2), np.float32) for codes in size.level_sizes),
    )
    (folder / "ids").mkdir()
    semantic_ids.save(folder / "ids")
    torch.manual_seed(seed)
    spec = PolicySpec(
        model=ModelConfig.model_validate(size.model),
        dataset=prepared.spec,
        level_sizes=size.level_sizes,
        semantic_id_digest=semantic_ids.digest,
        words=size.words,
    )
    policy = GenerativeRecommender(spec, ItemCatalogue.from_items(prepared.items, semantic_ids.codes))
    with torch.no_grad():  # initial weights are tiny; larger ones make answers differ between users
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    save_policy(folder / "model", policy)
    digests = {"data": DATA_DIGEST, "train": "t" * 64}
    sources = BundleSources(folder / "prepared", folder / "ids", folder / "model", digests)
    export_bundle(sources, "simulated", DecodeConfig(beam_width=size.beam_width), folder / "bundle")
    return World(folder / "prepared", folder / "bundle", size)


def _write_prepared(folder: Path, size: WorldSize, rng: np.random.Generator) -> Dataset:
    lengths = rng.integers(1, size.max_events + 1, size.users)
    events = int(lengths.sum())
    popularity = 1.0 / np.arange(1, size.items + 1)  # Zipf: head items are in many histories
    item = np.searchsorted(np.cumsum(popularity) / popularity.sum(), rng.random(events)).astype(np.int32)
    history = history_arrays(np.minimum(item, size.items - 1), lengths, behaviour=np.ones(events, np.uint8))
    counts = {"num_authors": 2, "num_categories": size.categories + 1, "num_behaviours": 2}
    items = item_table(
        size.items,
        item_id=np.arange(size.items) + FIRST_ITEM_ID,
        title=[""] * size.items,
        author_index=np.ones(size.items, np.int32),
        category_index=1 + rng.integers(0, size.categories, size.items),
        train_count=train_counts(history, size.items),
    )
    user_ids = np.arange(size.users) + FIRST_USER_ID
    return write_dataset(folder, dataset_spec(size.users, size.items, **counts), history, items, user_ids=user_ids)


def _distinct_codes(size: WorldSize, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """A random path for every item, none twice."""
    paths = int(np.prod(size.level_sizes))
    picked = rng.choice(paths, size.items, replace=False)
    return np.stack(np.unravel_index(picked, size.level_sizes), axis=1).astype(np.int32)


def write_histories(path: Path, world: World) -> Path:
    """Write the users as one Parquet file in the form of :mod:`serving.inputs.history_frame`."""
    prepared = Dataset.open(world.prepared)
    offsets = prepared.history.offsets
    events = pl.DataFrame(
        {
            Columns.USER_ID: np.repeat(prepared.users[Columns.USER_ID].to_numpy(), np.diff(offsets)),
            Columns.ITEM_IDS: prepared.items[Columns.ITEM_ID].gather(prepared.history.item),
        }
    )
    events.group_by(Columns.USER_ID, maintain_order=True).agg(Columns.ITEM_IDS).write_parquet(path)
    return path


def write_rules(folder: Path, world: World, seed: int = 0) -> dict[str, Any]:
    """Write files with every kind of rule; returns the settings of :class:`~serving.config.RecommendConfig` for them.

    Four fifths of the items are available; of four tenants one may have half of the catalogue, two are denied a part, one
    has no list; users without tenant belong to the last; three items per category, one of category 1.
    """
    rng = np.random.default_rng(seed)
    items = np.arange(world.size.items) + FIRST_ITEM_ID
    users = np.arange(world.size.users) + FIRST_USER_ID
    available = pl.DataFrame({Columns.ITEM_ID: items[rng.random(len(items)) < 0.8]})
    tables = []
    for segment, rule, share in (("north", "allow", 0.5), ("south", "deny", 0.2), ("east", "deny", 0.05)):
        listed = items[rng.random(len(items)) < share]
        tables.append(pl.DataFrame({"segment": segment, Columns.ITEM_ID: listed, "rule": rule}))
    tables.append(pl.DataFrame({"segment": ["west"], Columns.ITEM_ID: [None], "rule": ["none"]}, tables[0].schema))
    names = np.array(["north", "south", "east", "west"])
    tenants = pl.DataFrame({Columns.USER_ID: users, "segment": names[rng.integers(0, 4, len(users))]})
    files = {
        "available": available,
        "segment_rules": pl.concat(tables),
        "segments": tenants.filter(pl.Series(rng.random(len(users)) < 0.95)),
    }
    settings: dict[str, Any] = {"default_segment": "west", "max_per_category": 3, "category_limits": {"1": 1}}
    for name, table in files.items():
        settings[name] = folder / f"{name}.parquet"
        table.write_parquet(settings[name])
    return settings
