"""A log small enough to see, as files: three topics of numbered videos, every user watches their topic in order.

User n likes topic ``n mod 3`` and starts at video ``n div 3 mod 8``; user 7 starts at bike 2 and has five events, the
others have watched all eight videos of their topic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

TOPICS = ("cake", "bike", "moon")
VIDEOS, USERS, EVENTS = 8, 192, 5
USER = "user 7"
WATCHED = ["bike 2", "bike 3", "bike 4", "bike 5", "bike 6"]
NEXT = "bike 7"
NOON = 1_704_110_400  # 2024-01-01 12:00 UTC, in seconds
MINUTE = 60


def write_raw(folder: Path) -> Path:
    """Write the log in no order at all, with one row of user 7 twice, and the catalogue."""
    folder.mkdir()
    rows = [
        (
            f"user {user}",
            f"{TOPICS[user % 3]} {(user // 3 + step) % VIDEOS}",
            NOON + 10 * MINUTE * step,
            30.0,
            40.0,
            True,
        )
        for user in range(USERS)
        for step in range(EVENTS if user == 7 else VIDEOS)
    ]
    rows.append((USER, WATCHED[1], NOON + 10 * MINUTE, 30.0, 40.0, True))
    schema = ["user_id", "item_id", "timestamp", "watched_s", "length_s", "finished"]
    log = pl.DataFrame(rows, schema=schema, orient="row").sample(fraction=1.0, shuffle=True, seed=1)
    log.write_parquet(folder / "interactions.parquet")
    names = [f"{topic} {number}" for topic in TOPICS for number in range(VIDEOS)]
    catalogue = {
        "item_id": names,
        "title": [f"A video about {name}" for name in names],
        "topic": [n[:4] for n in names],
    }
    pl.DataFrame(catalogue).write_parquet(folder / "items.parquet")
    return folder


def recipe(raw: Path, output: Path) -> dict[str, Any]:
    """Everything of a real run, only small: three codes on each of three levels, a policy of width 32."""
    return {
        "name": "user7",
        "seed": 7,
        "output_dir": str(output),
        "source": {
            "kind": "table",
            "path": str(raw),
            "items": "items.parquet",
            "timestamp_unit": "s",
            "watch_unit": "s",
            "columns": {"watch_time": "watched_s", "duration": "length_s"},
            "signals": [{"name": "finished", "column": "finished"}],
            "positive": ["finished"],
            "item_columns": {"title": ["title"], "categories": ["topic"]},
        },
        "features": {"split": {"kind": "leave_last_out"}},
        "embed": {"text": {"model": None}, "collaborative": {"dim": 8}},
        "tokenize": {"codebook_size": 3, "num_levels": 3},
        "model": {"width": 32, "num_heads": 2, "ffn_width": 32, "expert_width": 32, "max_history": 8},
        "train": {"max_epochs": 40, "batch_size": 32, "learning_rate": 5e-3, "validate_every_epochs": 10},
        "decode": {"beam_width": 24},
        "evaluate": {"baselines": ["popularity", "markov"], "ks": [1, 5], "filter_seen": "filtered"},
        "recommend": {"k": 3},
    }
