r"""Train from the command line without the pipeline: what torchrun starts in every process.

One machine needs none of this: ``recsys train --config my.yaml train.processes=2`` starts its processes itself. Over
several machines, with the prepared data and the work folder on storage that all of them see::

    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_endpoint head:29400 -m recsys.training.distributed.launch \
        --prepared DIR --semantic-ids DIR --item-embeddings DIR/fused.npy \
        --recipe my.yaml --work-dir DIR train.sharding=row_wise train.table_optimizer=rowwise_adagrad

The recipe is a run's recipe; its sections ``model``, ``train``, ``decode`` and its ``seed`` are read. Writes ``model/``,
``curves.parquet`` and ``training_report.json``; started again after a kill, on as many processes or others, it goes on from
the last checkpoint. Exit codes are those of :mod:`recsys.contracts.errors`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import model_validator

from recsys.config import FrozenConfig, apply_overrides, read_recipe, validate
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, RecsysError
from recsys.decoding.config import DecodeConfig
from recsys.device import AUTO, DeviceName, RunPrecision, fill_precisions, resolve_device
from recsys.model.config import ModelConfig
from recsys.runtime import make_progress, set_threads
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.config import TrainConfig
from recsys.training.distributed.processes import World, log_to_stderr
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs


class TrainingRecipe(FrozenConfig):
    """The parts of a run's recipe that training reads."""

    seed: int
    threads: int | None = None
    device: DeviceName = AUTO
    precision: RunPrecision = "float32"
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()

    @model_validator(mode="before")
    @classmethod
    def _sections_follow_precision(cls, values: Any) -> Any:
        return fill_precisions(values, cls)


def read_training_recipe(path: Path, overrides: Sequence[str]) -> TrainingRecipe:
    """Read the sections of a recipe that training needs; the others are the pipeline's business."""
    values = apply_overrides(read_recipe(path).values, overrides, TrainingRecipe)
    own = {key: value for key, value in values.items() if key in TrainingRecipe.model_fields}
    return validate(TrainingRecipe, {"model": {}} | own, str(path))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; every process of a torchrun group calls this with the same arguments."""
    parser = argparse.ArgumentParser(prog="python -m recsys.training.distributed.launch", description="Train a policy.")
    parser.add_argument("--prepared", type=Path, required=True, help="folder written by `prepare`")
    parser.add_argument("--semantic-ids", type=Path, required=True, help="folder written by `tokenize`")
    parser.add_argument("--item-embeddings", type=Path, help="fused.npy, written by `embed`")
    parser.add_argument("--recipe", type=Path, required=True, help="YAML with the sections model, train, decode")
    parser.add_argument("--work-dir", type=Path, required=True, help="where checkpoints and the model go")
    parser.add_argument("overrides", nargs="*", help="key=value, for example train.max_epochs=5")
    given = parser.parse_args(arguments)
    first = World.from_environment().is_first
    log_to_stderr()
    logging.getLogger("recsys").setLevel(logging.INFO if first else logging.WARNING)
    try:
        recipe = read_training_recipe(given.recipe, given.overrides)
        if recipe.threads is not None:
            set_threads(recipe.threads)
        inputs = TrainingInputs(
            dataset=Dataset.open(given.prepared),
            semantic_ids=SemanticIds.load(given.semantic_ids),
            model=recipe.model,
            train=recipe.train,
            decode=recipe.decode,
            seed=recipe.seed,
            item_embeddings=_embeddings(given.item_embeddings),
            device=resolve_device(recipe.device),
        )
        report = train_policy(inputs, given.work_dir, make_progress())
    except RecsysError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if first:
        print(json.dumps(report, indent=2))
    return 0


def _embeddings(path: Path | None) -> np.memmap | None:
    if path is None:
        return None
    try:
        loaded: np.memmap = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"item embeddings '{path}' cannot be read: {error}; run `embed` again") from error
    return loaded


if __name__ == "__main__":
    sys.exit(main())
