"""A shop of a few days for nightly runs: a file of events per day, new items and users now and then, and a tiny model."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.config import RunConfig

FIRST = date(2026, 11, 1)
USERS, ITEMS, PER_DAY = 60, 30, 240


def day_of(number: int) -> date:
    """Date of a day by its number, from 1."""
    return FIRST + timedelta(days=number - 1)


def events_of(number: int) -> pl.DataFrame:
    """Users walk along a ring of items, a step or two at a time; every day brings two items and two users."""
    rng = np.random.default_rng(number)
    items, users = ITEMS + 2 * number, USERS + 2 * number
    user = np.sort(rng.integers(users, size=PER_DAY))
    second = np.sort(rng.integers(86_400, size=PER_DAY))
    start = rng.integers(items, size=users)
    place = np.concatenate([np.arange(count) for count in np.bincount(user, minlength=users)])
    item = (start[user] + place + (rng.random(PER_DAY) < 0.1)) % items
    begin = int((day_of(number) - date(1970, 1, 1)).total_seconds())
    order = np.argsort(user, kind="stable")
    at = begin + second[np.argsort(np.argsort(rng.random(PER_DAY)))]
    frame = pl.DataFrame({"user": [f"u{u}" for u in user], "item": [f"i{i}" for i in item], "at": at})
    return frame[order].sort("at")


def write_day(folder: Path, number: int, events: pl.DataFrame | None = None) -> Path:
    """Write the file of a day."""
    path = folder / f"day={day_of(number)}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    (events_of(number) if events is None else events).write_parquet(path)
    return path


def write_days(folder: Path, *numbers: int) -> Path:
    """Write the files of some days."""
    for number in numbers:
        write_day(folder, number)
    return folder


def values_of(log: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A recipe as plain values; a section that is given is merged into the one here."""
    values: dict[str, Any] = {
        "name": "shop",
        "seed": 5,
        "threads": 1,
        "output_dir": str(output),
        "source": {
            "kind": "table",
            "path": str(log),
            "interactions": "day=*.parquet",
            "timestamp_unit": "s",
            "columns": {"user_id": "user", "item_id": "item", "timestamp": "at"},
        },
        "features": {"k_core": {"user": 2, "item": 1}, "split": {"kind": "leave_last_out"}},
        "embed": {"text": {"model": None}, "collaborative": {"dim": 8}, "fusion": {"dim": 16}},
        "tokenize": {"codebook_size": 8, "num_levels": 3},
        "model": {"preset": "tiny", "width": 16, "max_history": 10},
        "train": {"max_epochs": 2, "batch_size": 64, "validation_users": 50},
        "decode": {"beam_width": 20},
        "evaluate": {"baselines": ["popularity"], "ks": [5, 10]},
        "promote": {
            "floor": "none",
            "margin": 1.0,
            "budget": 1.0,
            "slice_margin": 1.0,
            "max_coverage_loss": None,
            "probe_rows": 0,
            "max_shortfall_rise": 1.0,
        },
        "rank": {"method": "none"},
        "recommend": {"k": 5},
        "nights": {"epochs": 1},
    }
    for section, changed in changes.items():
        values[section] = {**values.get(section, {}), **changed} if isinstance(changed, dict) else changed
    return values


def config_of(log: Path, output: Path, **changes: Any) -> RunConfig:
    """The same as a configuration."""
    return RunConfig.model_validate(values_of(log, output, **changes))
