"""README's own-data section, typed as printed: a CSV file, the recipe, the commands, the Python snippet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from docs._build.blocks import ROOT, Block, blocks_of, commands

SMALL = [
    "embed.text.model=null",
    "embed.collaborative.dim=16",
    "tokenize.codebook_size=8",
    "model.width=32",
    "train.max_epochs=1",
    "evaluate.baselines=[popularity]",
    "promote.floor=none",
    "threads=1",
]
"""What a test adds to README's `recsys run`, so that it takes seconds."""


def execute(words: list[str], folder: Path) -> str:
    """Run a command in a folder; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def write_events(folder: Path) -> int:
    """The file that the tutorial makes; how many customers it has."""
    maker = next(block for block in blocks_of(ROOT / "docs/tutorial/own_data.md") if "write_csv" in block.text)
    execute([sys.executable, "-c", maker.text], folder)
    return pl.read_csv(folder / "events.csv")["customer"].n_unique()


def own_data() -> list[Block]:
    """README's blocks from the recipe on."""
    blocks = blocks_of(ROOT / "README.md")
    first = next(place for place, block in enumerate(blocks) if block.first_line == "# shop.yaml")
    return blocks[first:]


@pytest.mark.slow
def test_own_data_from_a_csv_file_to_candidates(tmp_path: Path) -> None:
    """Each block in README's order; at the end every customer has the 20 items of the default list, or all there are."""
    customers = write_events(tmp_path)
    printed = {}
    for block in own_data():
        if block.language == "yaml":
            (tmp_path / block.first_line.removeprefix("# ")).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            printed["python"] = execute([sys.executable, "-c", block.text], tmp_path)
        for words in commands(block) if block.language == "bash" else []:
            if words[0] == "recsys":
                small = SMALL if words[1] == "run" else []
                printed[words[1]] = execute([sys.executable, "-m", "pipelines.cli.app", *words[1:], *small], tmp_path)
    assert {"validate", "run", "python", "recommend"} <= set(printed)
    assert "generative (served)" in printed["run"]
    assert "item_id" in printed["python"]
    assert not (tmp_path / "mlflow.db").exists()  # MLflow leaves one where it is not told of another
    rows = pl.read_parquet(tmp_path / "candidates" / "part-*.parquet")
    assert rows["user_id"].n_unique() == customers
    assert rows.group_by("user_id").len()["len"].min() == 20
