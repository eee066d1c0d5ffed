"""The log that the month's nights find: a file per day, a table of items that grows, and what breaks them.

Reads the simulator's growing world; produces ``events/<DATE>.parquet`` and ``items.parquet`` in the folder of a source, and
the recipe that reads them.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Self

import polars as pl
import yaml

from features.sources.simulated.days import DaysConfig, GrowingWorld


@dataclass(frozen=True)
class Size:
    """How large a month is.

    Attributes:
        nights: Nights that are run.
        before: Days of log that the first night finds.
        world: Of the simulator; its ``days`` are those of the whole log.
        epochs: Passes over the training rows of a night that starts from nothing.
        compare_every: So many nights lie between two retrains from nothing.
        recipe: What else the recipe says, over :func:`recipe`.
    """

    nights: int = 30
    before: int = 20
    world: DaysConfig = field(default_factory=lambda: DaysConfig(users=1500, items=400, topics=6, visits=0.4))
    epochs: int = 20
    compare_every: int = 5
    recipe: dict[str, Any] = field(default_factory=dict)
    world_seed: ClassVar[int] = 29
    """Of the month that is reported; what a warm night does was chosen in the world of seed 17."""

    @classmethod
    def of_seed(cls, seed: int, nights: int) -> Self:
        """A month in the world of a seed."""
        size = cls(nights=nights)
        return replace(size, world=replace(size.world, seed=seed))


def recipe(size: Size, log: Path, output_dir: Path) -> dict[str, Any]:
    """What every night of the month is run with."""
    values: dict[str, Any] = {
        "name": "month",
        "output_dir": str(output_dir),
        "threads": 1,
        "source": {
            "kind": "table",
            "path": str(log),
            "interactions": "events/*.parquet",
            "items": "items.parquet",
            "timestamp_unit": "us",
            "columns": {"session_id": "session_id", "watch_time": "watch_time_ms", "duration": "duration_ms"},
            "signals": [{"name": name, "column": name} for name in ("long_view", "like", "follow", "share")],
            "positive": ["long_view", "like"],
            "item_columns": {
                "title": [{"column": "title"}],
                "text": [{"column": "text"}],
                "categories": [{"column": "categories"}],
                "author": [{"column": "author_id"}],
            },
        },
        "features": {"split": {"kind": "global_temporal", "valid_share": 0.06, "test_share": 0.06}},
        "embed": {"text": {"model": None}},
        "tokenize": {"codebook_size": 32, "num_levels": 3},
        "model": {
            "preset": "tiny",
            "width": 32,
            "num_heads": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "ffn_width": 64,
            "num_experts": 2,
            "expert_width": 64,
            "max_history": 40,
        },
        "train": {"max_epochs": size.epochs, "batch_size": 32, "validation_users": 150, "patience": size.epochs},
        "decode": {"beam_width": 20},
        "rank": {"method": "none"},
        "evaluate": {"baselines": ["popularity"], "ks": [10]},
        # so few rows cannot rule out a loss of 3 % (docs/guides/nightly.md)
        "promote": {"margin": 0.15, "budget": 0.25, "floor": "popularity", "slice_margin": 0.2},
        "recommend": {"k": 10},
        # two passes over what is new, three tenths of the rest: little more than one over all, and better
        "nights": {
            "epochs": 2,
            "rows": "recent",
            "recent_days": 3,
            "sample": 0.3,
            "learning_rate_share": 1.0,
            "full_every": None,
            "keep_nights": 7,
        },
    }
    return values | size.recipe


@dataclass
class Log:
    """The folder that days are written into.

    Attributes:
        folder: Of the source.
        world: Simulated up to the last day that was written.
    """

    folder: Path
    world: GrowingWorld

    @classmethod
    def begin(cls, folder: Path, size: Size) -> Log:
        """Write the days before the first night."""
        log = cls(folder, GrowingWorld(size.world))
        for _ in range(size.before):
            log.next_day()
        return log

    def next_day(self) -> date:
        """Simulate a day and write it down, each file by rename."""
        frame = self.world.next_day()
        self._write(frame, self.path_of(self.world.date))
        self._write(self.world.catalogue(), self.folder / "items.parquet")
        return self.world.date

    def path_of(self, day: date) -> Path:
        """File of a day."""
        return self.folder / "events" / f"{day}.parquet"

    def damage(self, day: date) -> pl.DataFrame:
        """Write a day as an export that has become text, and return what it was."""
        good = pl.read_parquet(self.path_of(day))
        self._write(good.with_columns(pl.format("u{}", "user_id").alias("user_id")), self.path_of(day))
        return good

    def mend(self, day: date, good: pl.DataFrame) -> None:
        """Write a day once more as it should have been."""
        self._write(good, self.path_of(day))

    def copy_to(self, folder: Path) -> Path:
        """Copy the log as it is now, for a run that takes longer than a night."""
        return Path(shutil.copytree(self.folder, folder))

    def world_now(self) -> GrowingWorld:
        """A copy of the world as it is now, to be asked later."""
        return copy.deepcopy(self.world)

    def _write(self, frame: pl.DataFrame, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        frame.write_parquet(temporary)
        temporary.replace(path)


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    """Write a recipe and return its path."""
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path
