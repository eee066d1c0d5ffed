"""What the sections run on: catalogues with random codes, policies of the presets, histories, a data set of Beauty's size.

Legend: B users, H history events, K codes of a level, L levels, I items.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys.contracts.columns import TEST, VALID, Columns
from recsys.contracts.dataset import Dataset, HistoryArrays
from recsys.data.batch import HistoryBatch
from recsys.data.histories import Histories
from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.semantic_ids.versions import SemanticIds
from tests.toy.builders import dataset_spec, history_arrays, item_table, train_counts, write_dataset

LEVELS: Final = 3
SIDE: Final = 50
"""Authors and categories of a random catalogue."""
KNOWN_USERS: Final = 1000
BEAUTY_USERS, BEAUTY_ITEMS, BEAUTY_EVENTS = 22_363, 12_101, 198_502
SMOKE_MODEL: Final[dict[str, Any]] = {
    "width": 32,
    "num_heads": 4,
    "ffn_width": 32,
    "num_experts": 4,
    "expert_width": 32,
    "max_history": 12,
}
"""What stands in for any preset on a CPU: the same parts, a thousandth of the width."""

Codes = npt.NDArray[np.int64]


def random_codes(items: int, codebook: int, seed: int = 0) -> Codes:
    """Distinct random codes, ``[I, L]``."""
    rng = np.random.default_rng(seed)
    possible = codebook**LEVELS
    if possible < 4e7:
        flat = rng.choice(possible, items, replace=False)
    else:
        flat = rng.permutation(np.unique(rng.integers(0, possible, int(items * 1.02) + 10)))[:items]
    return np.stack(np.unravel_index(flat, (codebook,) * LEVELS), axis=1).astype(np.int64)


def model_config(preset: str, *, smoke: bool, **changes: Any) -> ModelConfig:
    """A preset, or in the smoke form its parts at a thousandth of the width."""
    chosen: dict[str, Any] = {"preset": preset}
    if smoke:
        chosen |= {**SMOKE_MODEL, "num_encoder_layers": 1, "num_decoder_layers": 2}
        if preset.endswith("lazy"):
            chosen |= {"num_encoder_layers": 0, "num_dense_blocks": 1, "kv_groups": 2}
    return ModelConfig.model_validate(chosen | changes)


def build_policy(
    config: ModelConfig, codes: Codes, codebook: int, *, session: int = 1, digest: str = "0" * 64, seed: int = 0
) -> GenerativeRecommender:
    """A policy with random weights over a random catalogue, on the CPU."""
    items = len(codes)
    counts = {"num_authors": SIDE, "num_categories": SIDE, "num_behaviours": 4}
    buckets = {"num_gap_buckets": 8, "num_watch_buckets": 8, "has_timestamps": True}
    dataset = dataset_spec(KNOWN_USERS, items, session_length=session, **counts, **buckets)
    spec = PolicySpec(model=config, dataset=dataset, level_sizes=(codebook,) * LEVELS, semantic_id_digest=digest)
    side = np.random.default_rng(1).integers(0, SIDE, (2, items + 1))
    side[:, 0] = 0
    author, category = (torch.from_numpy(column) for column in side)
    torch.manual_seed(seed)
    return GenerativeRecommender(
        spec, ItemCatalogue(torch.from_numpy(np.pad(codes, ((1, 0), (0, 0)))), author, category)
    )


def policy_on(
    device: torch.device, config: ModelConfig, codes: Codes, codebook: int, *, session: int = 1, digest: str = "0" * 64
) -> GenerativeRecommender:
    """The same on a device, and drawn there: a CPU takes half a minute for a billion random numbers."""
    try:
        with torch.device(device):
            policy = build_policy(config, codes, codebook, session=session, digest=digest)
    except (RuntimeError, TypeError) as error:
        print(f"drawn on the CPU, because on {device}: {error}", flush=True)
        policy = build_policy(config, codes, codebook, session=session, digest=digest)
    return policy.to(device)


def histories(users: int, events: int, items: int, lengths: torch.Tensor | None = None, seed: int = 0) -> HistoryBatch:
    """Random histories, all ``events`` long unless lengths are given."""
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.full((users,), events) if lengths is None else lengths
    exists = torch.arange(events) < lengths_B[:, None]

    def drawn(rows: int) -> torch.Tensor:
        return torch.where(exists, torch.randint(1, rows, (users, events), generator=generator), 0)

    user = torch.randint(1, KNOWN_USERS, (users,), generator=generator)
    return HistoryBatch(user, drawn(items + 1), drawn(4), drawn(8), drawn(8), lengths_B)


def semantic_ids(codes: Codes, codebook: int) -> SemanticIds:
    """Semantic IDs with given codes and no codebooks."""
    item_ids = pl.Series(Columns.ITEM_ID, [f"i{item}" for item in range(len(codes))])
    return SemanticIds(codes.astype(np.int32), (codebook,) * LEVELS, item_ids, ())


def beauty_path() -> Path | None:
    """The real interactions, where they are."""
    folder = os.environ.get("RECSYS_DATA")
    path = Path(folder) / "amazon14_beauty" / "interactions.parquet" if folder else None
    return path if path is not None and path.exists() else None


def beauty_history(*, smoke: bool) -> tuple[HistoryArrays, int, str]:
    """Histories of Amazon Beauty 2014: ``(arrays, items, where they are from)``.

    Without the data, users of the same number with lengths of the same mean and shape (at least 5, geometric) walk between
    neighbouring items, so that there is something to learn.
    """
    path = None if smoke else beauty_path()
    if path is not None:
        table = pl.read_parquet(path).sort("user_id", "position")
        item = table["item_id"].to_numpy().astype(np.int64) - 1
        lengths = np.bincount(table["user_id"].to_numpy())
        lengths = lengths[lengths > 0]
        items, source = int(item.max()) + 1, "Amazon Beauty 2014"
    else:
        users, items = (60, 200) if smoke else (BEAUTY_USERS, BEAUTY_ITEMS)
        rng = np.random.default_rng(0)
        lengths = 5 + rng.geometric(1 / (BEAUTY_EVENTS / BEAUTY_USERS - 4), users) - 1
        start = np.repeat(rng.integers(0, items, users), lengths)
        steps = rng.integers(1, 4, int(lengths.sum())).cumsum()
        first = np.repeat(np.cumsum(lengths) - lengths, lengths)
        item = (start + steps - steps[first]) % items
        source = "random histories of Beauty's number and lengths" if not smoke else "random histories"
    return history_arrays(item, lengths, held_out=2), items, source


def beauty_dataset(folder: Path, *, smoke: bool) -> tuple[Dataset, SemanticIds, str]:
    """A prepared data set of Beauty, leave-last-out, and random semantic IDs for it."""
    history, items, source = beauty_history(smoke=smoke)
    users, codebook = len(history.train_end), 8 if smoke else 256
    spec = dataset_spec(users, items, num_behaviours=2, num_gap_buckets=32, num_watch_buckets=12)
    last = {VALID: history.valid_end - 1, TEST: np.asarray(history.offsets[1:]) - 1}
    targets = pl.concat(
        pl.DataFrame(
            {
                Columns.USER_INDEX: np.arange(users, dtype=np.int32),
                Columns.HISTORY_START: history.offsets[:-1],
                Columns.HISTORY_END: end,
                Columns.TARGETS: history.item[end][:, None].tolist(),
                Columns.SPLIT: np.full(users, split, np.int8),
            },
            schema_overrides={Columns.TARGETS: pl.List(pl.Int32)},
        )
        for split, end in last.items()
    )
    table = item_table(items, train_count=train_counts(history, items))
    dataset = write_dataset(folder, spec, history, table, targets=targets, checked=False)
    return dataset, semantic_ids(random_codes(items, codebook), codebook), source


def beauty_rows(dataset: Dataset, split: int = TEST) -> Histories:
    """The histories that a split asks about."""
    return Histories.from_targets(dataset.history, dataset.targets(split))
