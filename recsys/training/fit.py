"""Train a policy from a prepared data set and semantic IDs; resumable after a kill at any instant.

Reads prepared data, semantic IDs, item embeddings; writes ``model/`` (safetensors and JSON), ``curves.parquet`` and
``training_report.json`` into the work folder. Everything needed only while training lies in ``.scratch``.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.contracts.manifest import read_json, write_json
from recsys.data.datamodule import PolicyData
from recsys.data.item_catalogue import ItemCatalogue
from recsys.data.samples import TrainingForm
from recsys.data.words import WordList
from recsys.decoding.config import DecodeConfig
from recsys.device import trainer_devices
from recsys.model.checkpoint import load_policy, save_policy
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.model.summary import summarise
from recsys.model.utilisation import Precision, describe
from recsys.runtime import Progress, RichProgress, seed_everything
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.acceleration import compile_blocks, float32_products
from recsys.training.averaging import WeightAverage
from recsys.training.callbacks import (
    ArithmeticDone,
    BestPolicy,
    Curves,
    ResumeFolder,
    ValidateLastEpoch,
    seed_of_process,
)
from recsys.training.config import TrainConfig
from recsys.training.distributed.processes import World, start_workers
from recsys.training.distributed.strategies import OneProcessStrategy, TorchRecStrategy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from recsys.training.warm.start import start_warm

logger = logging.getLogger(__name__)


def build_policy(
    prepared: Dataset,
    semantic_ids: SemanticIds,
    model: ModelConfig,
    item_embeddings: npt.NDArray[np.float32] | None,
) -> GenerativeRecommender:
    """Create an untrained policy for this catalogue; draws from torch's global generator.

    Args:
        item_embeddings: ``[items, any]``; if given, the item table starts from their leading directions. A language model
            starts with its own.
    """
    if model.backbone == "llm":
        from recsys.language_model.build import language_policy

        return language_policy(prepared, semantic_ids, model)
    spec = PolicySpec(
        model=model,
        dataset=prepared.spec,
        level_sizes=semantic_ids.level_sizes,
        semantic_id_digest=semantic_ids.digest,
        words=() if model.words is None else WordList.of(prepared.items, model.words).words,
    )
    policy = GenerativeRecommender(spec, ItemCatalogue.from_items(prepared.items, semantic_ids.codes))
    if item_embeddings is not None and "item" in model.features:
        start = leading_directions(item_embeddings, model.width) * model.init_std
        with torch.no_grad():
            policy.tables.weight("item")[1:] = torch.from_numpy(start)
    return policy


def leading_directions(embeddings: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """Project embeddings to their ``width`` leading principal directions, scaled to unit variance over all entries.

    Fewer dimensions than ``width`` leave the rest at zero.
    """
    centred = embeddings - embeddings.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    projected = centred @ vectors[:, ::-1][:, :width]
    result = np.zeros((len(embeddings), width), np.float32)
    result[:, : projected.shape[1]] = projected / max(float(projected.std()), 1e-12)
    return result


def check_beside(model: ModelConfig, train: TrainConfig, decode: DecodeConfig, processes: int) -> None:
    """Refuse what the backbone cannot do.

    Args:
        processes: That train together.

    Raises:
        ConfigError: Names the key.
    """
    model.check_beside(
        decode_precision=decode.precision,
        compiles=train.compile != "none",
        spreads=processes > 1 or train.sharding != "none",
        smooths=train.label_smoothing > 0,
        distils=train.distillation_weight > 0,
    )


def training_form(prepared: Dataset, model: ModelConfig) -> TrainingForm:
    """All-prefix training where it is exact: next item and a causal encoder."""
    causal = model.encoder_attention == "causal"
    return "all_prefixes" if causal and prepared.spec.task == "next_item" else "pairs"


def train_policy(
    inputs: TrainingInputs, work_dir: Path, progress: Progress, watchers: Sequence[lightning.Callback] = ()
) -> dict[str, Any]:
    """Train, keep the best policy by validation NDCG@10 from real beam search, and report.

    With ``train.processes`` above 1 this process starts workers, waits, and reads what the first of them wrote. Under
    torchrun every process calls this function with the same arguments (:mod:`recsys.training.distributed.launch` does);
    the first one writes, all return the report.

    Args:
        watchers: Callbacks that look on, for measurements; not sent to the workers that this process starts.

    Returns:
        Summary: best epoch and metrics, parameter and FLOP counts, seconds, expert load.

    Raises:
        DataError: The train or validation split is empty.
        ConfigError: An option cannot be honoured with these processes or this device.
    """
    world, config = World.from_environment(), inputs.train
    if world.size > 1 and config.processes not in (1, world.local_size):
        raise ConfigError(
            f"train.processes={config.processes} under torchrun with {world.local_size} processes on this machine; "
            "leave train.processes at 1 there"
        )
    if config.batch_size < world.size:
        raise ConfigError(
            f"train.batch_size={config.batch_size} is shared by {world.size} processes, so some would never have a "
            "row; raise it or start fewer processes"
        )
    if world.size == 1 and config.processes > 1:
        start_workers(train_policy, (inputs, work_dir, progress), config.processes)
        report = read_json(work_dir / "training_report.json")
        return report | {"seconds": round(report["seconds"], 1)}
    return _train(inputs, work_dir, progress, world, watchers)


def _train(
    inputs: TrainingInputs, work_dir: Path, progress: Progress, world: World, watchers: Sequence[lightning.Callback]
) -> dict[str, Any]:
    """Train in this process, which is one of ``world``."""
    config, seed = inputs.train, inputs.seed
    check_beside(inputs.model, config, inputs.decode, world.size)
    scratch = work_dir / ".scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    seed_everything(seed)
    embeddings = inputs.item_embeddings if config.init_items_from_embeddings else None
    policy = build_policy(inputs.dataset, inputs.semantic_ids, inputs.model, embeddings)
    warm = None if inputs.start is None else start_warm(policy, inputs.dataset, inputs.semantic_ids, inputs.start)
    if warm is not None:
        rows = ", ".join(f"{name} {table['mapped']} + {table['new']} new" for name, table in warm["tables"].items())
        logger.info("warm start from %s: rows of the tables: %s", warm["from"], rows)
    data = _training_data(inputs, world)
    sizes = summarise(policy)
    samples = data.loader.samples
    steps_per_epoch = -(-data.steps_per_epoch // config.accumulate_batches)
    name = inputs.model.preset if inputs.model.language_model is None else policy.spec.model.backbone
    logger.info("model %s: %s", name, sizes)
    logger.info("training: %d rows, %d targets, %d steps per epoch", len(samples), samples.num_targets, steps_per_epoch)
    if world.size > 1:
        logger.info("%d processes, tables: %s sharding", world.size, config.sharding.replace("_", "-"))
        # every process built the same policy; dropout and negatives are to differ
        torch.manual_seed(seed_of_process(seed, 0, world.rank))

    total_steps = config.max_epochs * steps_per_epoch
    if config.compile == "blocks":
        compile_blocks(policy, config.precision)
    module = PolicyModule(policy, config, inputs.decode, inputs.semantic_ids, total_steps=total_steps)
    best = BestPolicy(scratch / "best", config.patience, config.max_minutes)
    curves = Curves()
    resume = ResumeFolder(scratch / "resume", config.checkpoint_every_s, data.loader, seed)
    averages = [WeightAverage(config.average_decay)] if config.average_decay else []
    # averages are kept by `best` before the policy has its weights back, and saved by `resume` when they are up to date
    done = ArithmeticDone()
    callbacks = [done, curves, best, *averages, resume, ValidateLastEpoch(), *watchers]
    trainer = _trainer(config, inputs.device, callbacks, progress, world)
    inputs.decode.check_device(inputs.device.type)  # every validation decodes
    checkpoint = resume.latest()
    if checkpoint is not None:
        logger.info("going on from the checkpoint at %s", checkpoint.name.replace("-", " "))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process writes checkpoints
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            with float32_products(trainer.strategy.root_device, tf32=config.tf32):
                trainer.fit(
                    module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True
                )
        finally:
            data.loader.close()

    report = {
        "best_epoch": best.best_epoch,
        "valid": _best_validation(curves, best.best_value),
        "parameters": sizes.total,
        "table_parameters": sizes.tables,
        "active_parameters": sizes.active,
        "train_mflops_per_target": sizes.train_mflops_per_target,
        "decode_mflops_per_user": sizes.decode_mflops_per_user,
        "targets_per_epoch": samples.num_targets,
        "steps": trainer.global_step,
    } | ({} if warm is None else {"warm_start": warm})
    if world.is_first and done.targets and done.seconds > 0:
        precision: Precision = "bfloat16" if "bf16" in config.precision else "float32"
        speed = describe(done.targets, "targets", done.flops, done.seconds, inputs.device, precision)
        logger.info("training: %s", speed)
    if world.is_first:
        save_policy(work_dir / "model", load_policy(best.folder, inputs.semantic_ids.digest))
        curves.table().write_parquet(work_dir / "curves.parquet")
        write_json(work_dir / "training_report.json", report | {"seconds": best.seconds})
    trainer.strategy.barrier("the model is written")
    return report | {"seconds": round(best.seconds, 1)}


def _training_data(inputs: TrainingInputs, world: World) -> PolicyData:
    """This process's share of the training rows, and the validation rows."""
    return PolicyData(
        inputs.dataset,
        form=training_form(inputs.dataset, inputs.model),
        max_history=inputs.model.max_history,
        batch_size=inputs.train.batch_size,
        batch_by=inputs.train.batch_by,
        augment=inputs.train.augment,
        words=inputs.model.words,
        validation_users=inputs.train.validation_users,
        seed=inputs.seed,
        rank=world.rank,
        world=world.size,
        prefetch=inputs.train.prefetch_batches,
        recent=inputs.recent,
    )


def _trainer(
    config: TrainConfig,
    device: torch.device,
    callbacks: list[lightning.Callback],
    progress: Progress,
    world: World,
) -> lightning.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return lightning.Trainer(
            max_epochs=config.max_epochs,
            strategy=OneProcessStrategy() if world.size == 1 else TorchRecStrategy(config),
            **trainer_devices(device, world.local_size),
            num_nodes=world.num_machines,
            use_distributed_sampler=False,
            precision=config.precision,
            gradient_clip_val=config.gradient_clip or None,
            accumulate_grad_batches=config.accumulate_batches,
            check_val_every_n_epoch=config.validate_every_epochs,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=world.is_first and isinstance(progress, RichProgress) and sys.stderr.isatty(),
            callbacks=callbacks,
        )
    except (ValueError, lightning.fabric.utilities.exceptions.MisconfigurationException) as error:
        raise ConfigError(
            f"device {device}, train.precision={config.precision!r}, {world.local_size} processes on this machine: {error}"
        ) from error


def _best_validation(curves: Curves, best_value: float) -> dict[str, float]:
    """All validation figures of the epoch that was kept."""
    steps = [s for s, _, name, value in curves.points if name == "valid/ndcg_at_10" and value == best_value]
    return {
        name.removeprefix("valid/"): value
        for s, _, name, value in curves.points
        if s == steps[0] and name.startswith("valid/")
    }
