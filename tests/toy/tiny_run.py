"""A whole run small enough for a test: recipe and process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import yaml

RECIPE = """
name: tiny
seed: 5
threads: 1
source: {kind: simulated, users: 300, items: 150, events: 12000}
features: {task: next_item, split: {kind: leave_last_out}}
embed: {text: {model: null}, collaborative: {dim: 16}, fusion: {dim: 32}}
tokenize: {codebook_size: 16, num_levels: 3}
model: {preset: tiny, width: 32, max_history: 20}
train: {max_epochs: 4, batch_size: 64, validation_users: 100, checkpoint_every_s: 0.2}
decode: {beam_width: 50}
promote: {floor: none}
evaluate: {baselines: [popularity, markov]}
recommend: {k: 10, users_per_shard: 100}
"""


def write_small_log(folder: Path, **more: Any) -> Path:
    """Write six users with four events each as a file, and a recipe that reads it; return the recipe's path.

    Args:
        more: Further keys of the recipe.
    """
    rows = [(user, item, 1_700_000_000 + 60 * item) for user in range(6) for item in range(4)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "events.csv")
    values = {
        "source": {"kind": "table", "path": str(folder), "interactions": "events.csv", "timestamp_unit": "s"},
        "features": {"split": {"kind": "leave_last_out"}},
        "output_dir": str(folder / "out"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values | more))
    return folder / "recipe.yaml"


def write_recipe(folder: Path) -> Path:
    """Write the recipe."""
    path = folder / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def command(recipe: Path, output: Path, *overrides: str) -> list[str]:
    """The command line of a run."""
    return [
        sys.executable,
        "-m",
        "pipelines.cli.app",
        "run",
        "--config",
        str(recipe),
        f"output_dir={output}",
        *overrides,
    ]


def run(recipe: Path, output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(recipe, output, *overrides), capture_output=True, text=True, env=environment, check=False, timeout=600
    )
