"""Train a reward model and, on other users, a second one that is only a check.

The two share no user, label, scale of labels, item rate or frozen embedding: what is wrong on one side leaves the other to
the bit as it was. They share what both are about: the items' semantic IDs and metadata, and which signals have a tower.

Reads prepared data, semantic IDs, item embeddings; writes into the work folder
    reward/, held_out/             model.safetensors, reward_model.json, training.json, curves.parquet
    reward_metrics.parquet       AUC, cross-entropy and calibration on the test split, beside two baselines
    reward_calibration.parquet   reliability tables
    reward_report.json           the summary
Both models see train sessions of their own users; their validation sessions decide when to stop, and calibrate. The test
split is only evaluated. What is needed while training lies in ``.scratch``: a killed stage goes on from there.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import lightning
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recsys.contracts.columns import TRAIN, VALID
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.contracts.manifest import read_json, write_json
from recsys.data.item_catalogue import ItemCatalogue
from recsys.device import Placement, trainer_devices
from recsys.reward.calibration import calibrate
from recsys.reward.checkpoint import SPEC_NAME, load_reward_model, save_reward_model
from recsys.reward.combining.combination import check_tower_names
from recsys.reward.config import RewardConfig, RewardModelConfig, RewardTrainConfig
from recsys.reward.evaluate import evaluate_reward_models
from recsys.reward.feedback.dataset import SessionFeedback, session_feedback
from recsys.reward.feedback.labels import FloatArray, relative_rates
from recsys.reward.groups import UserGroups
from recsys.reward.model import RewardSpec, SessionRewardModel
from recsys.reward.module import (
    MONITOR,
    WORST,
    BestRewardModel,
    FeedbackDataset,
    FeedbackLoader,
    InOrderLoader,
    RewardModule,
)
from recsys.reward.scoring import fit_average_reactions, score_sessions
from recsys.runtime import Progress, RichProgress, seed_everything
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.callbacks import Curves, ResumeCheckpoint

logger = logging.getLogger(__name__)

REWARD: Final = "reward"
HELD_OUT: Final = "held_out"
RATE_SMOOTHING: Final = 20.0
"""Exposures of the average item mixed into each item's rates."""


@dataclass(frozen=True)
class RewardInputs:
    """Everything that fixes the result of :func:`train_reward_models`.

    Attributes:
        config: Both models' shapes, their users, the rewards' meaning.
        item_embeddings: ``[items, any]`` of the `embed` stage; read by models with ``item_embeddings``.
        device: Where both train and are evaluated.
    """

    dataset: Dataset
    semantic_ids: SemanticIds
    config: RewardConfig
    seed: int
    item_embeddings: npt.NDArray[np.floating] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def split_users(num_users: int, config: RewardConfig, seed: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Draw who trains the reward model and who the held-out reward model, ``[U]`` each; nobody trains both."""
    order = np.random.default_rng([seed, 11]).permutation(num_users)
    first = round(config.reward_share * num_users)
    second = first + round(config.held_out_share * num_users)
    groups = {}
    for name, users in ((REWARD, order[:first]), (HELD_OUT, order[first:second])):
        groups[name] = np.zeros(num_users, bool)
        groups[name][users] = True
    return groups


def split_raters(users: npt.NDArray[np.bool_], config: RewardConfig, seed: int) -> npt.NDArray[np.bool_]:
    """Draw those of a model's users whose feedback gives its item rates, ``[U]``; the others train it.

    Rates that a session is part of would tell its label, and rates of the other model's users would tie the two together.
    """
    own = np.flatnonzero(users)
    drawn = np.random.default_rng([seed, 14]).permutation(own)[: round(config.rate_share * len(own))]
    raters = np.zeros(len(users), bool)
    raters[drawn] = True
    return raters


def build_reward_model(
    inputs: RewardInputs, own: SessionFeedback, others: SessionFeedback, model: RewardModelConfig
) -> SessionRewardModel:
    """Create an untrained reward model for this catalogue; draws from torch's global generator.

    Args:
        own: Sessions of the users it will be trained on. Names the towers; base rates come from its train sessions.
        others: Sessions of users that do not train it; how much feedback an item gets is taken from their train sessions,
            because rates that a session is part of would tell its label.
        model: Shape; of the two in ``inputs.config`` the one that is wanted.

    Raises:
        ConfigError: Embeddings are wanted and not given, or ``combination.weights`` names no tower.
        ArtifactError: The embeddings are not of this catalogue.
    """
    config = inputs.config
    check_tower_names(list(config.combination.weights), own.names, "reward.combination.weights")
    dataset, semantic_ids, item_embeddings = inputs.dataset, inputs.semantic_ids, inputs.item_embeddings
    catalogue = ItemCatalogue.from_items(dataset.items, semantic_ids.codes)
    padded = None
    if model.item_embeddings:
        if item_embeddings is None:
            raise ConfigError(
                "reward.model.item_embeddings is true, but no item embeddings were given; set it to false"
            )
        if len(item_embeddings) != dataset.spec.num_items:
            raise ArtifactError(
                f"{len(item_embeddings)} item embeddings for {dataset.spec.num_items} items; run `embed` again"
            )
        padded = torch.from_numpy(np.pad(unit_rows(item_embeddings), ((1, 0), (0, 0))))
    shown = others.of(TRAIN)
    num_items = dataset.spec.num_items
    rates = relative_rates(shown.signals, shown.items, shown.event_values, num_items, RATE_SMOOTHING)
    spec = RewardSpec(
        model=model,
        dataset=dataset.spec,
        level_sizes=semantic_ids.level_sizes,
        semantic_id_digest=semantic_ids.digest,
        signals=own.signals,
        base_rates=base_rates(own.of(TRAIN).labels),
        max_items=config.feedback.max_items or dataset.spec.session_length,
        embedding_width=0 if padded is None else padded.shape[1],
        combination=config.combination,
    )
    return SessionRewardModel(spec, catalogue, padded, torch.from_numpy(np.pad(rates, ((1, 0), (0, 0)))))


def base_rates(labels_NT: FloatArray) -> tuple[float, ...]:
    """Mean known label of each tower; sums of float32 would stop growing at 2^24 sessions, and err long before.

    Example:
        >>> base_rates(np.array([[1.0, 0.25], [0.0, np.nan]], np.float32))
        (0.5, 0.25)
    """
    rates_T: npt.NDArray[np.float64] = np.asarray(np.nanmean(labels_NT, axis=0, dtype=np.float64))
    return tuple(rates_T.tolist())


def unit_rows(embeddings: npt.NDArray[np.floating]) -> FloatArray:
    """Scale every row to length 1, zero rows excepted: sources of embeddings differ in scale, directions do not."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.where(length > 0, length, 1.0)).astype(np.float32)


def train_reward_models(inputs: RewardInputs, out_dir: Path, progress: Progress) -> dict[str, Any]:
    """Train the reward model and the held-out one, evaluate both on the test split; a finished model survives a kill.

    Returns:
        Summary: towers, sessions, best epochs, AUCs per tower on users that a model has not seen, agreement.

    Raises:
        DataError: No usable feedback, or a group of users without train or validation sessions.
        ConfigError: ``combination.weights`` names no tower, or the device cannot do the precision.
    """
    config, seed, semantic_ids = inputs.config, inputs.seed, inputs.semantic_ids
    feedback = session_feedback(inputs.dataset, config.feedback)
    groups = split_users(inputs.dataset.spec.num_users, config, seed)
    worst_group = config.train.worst_group
    groups_of_users = None if worst_group is None else UserGroups.of(inputs.dataset, worst_group.column)
    models, reports = {}, {}
    for number, (name, shape) in enumerate(((REWARD, config.model), (HELD_OUT, config.held_out_model))):
        folder = out_dir / name
        if not (folder / "training.json").exists():
            seed_everything(seed + number)  # the held-out reward model starts elsewhere as well
            raters = split_raters(groups[name], config, seed + number)
            own = feedback.of_users(groups[name] & ~raters).on_own_scale(config.feedback)
            _check_labels(own, name)
            model = build_reward_model(inputs, own, feedback.of_users(raters), shape)
            job = _Job(name, Placement(inputs.device, config.precision), config.train, groups_of_users, out_dir)
            _fit(model, own, job, seed=seed + number, progress=progress)
        models[name] = load_reward_model(folder, semantic_ids.digest, inputs.device)
        reports[name] = read_json(folder / "training.json")
    report = evaluate_reward_models(
        models, feedback, groups, resamples=config.resamples, bins=config.calibration_bins, seed=seed
    )
    report.metrics.write_parquet(out_dir / "reward_metrics.parquet")
    report.calibration.write_parquet(out_dir / "reward_calibration.parquet")
    summary = {
        "towers": list(feedback.names),
        "left_out": list(feedback.left_out),
        "sessions": len(feedback),
        "users": {name: int(users.sum()) for name, users in groups.items()},
        **{f"{name}_training": {k: v for k, v in reports[name].items() if k != "seconds"} for name in models},
        **report.summary(),
    }
    write_json(out_dir / "reward_report.json", summary)
    return summary | {"seconds": round(sum(reports[name]["seconds"] for name in models), 1)}


def _check_labels(feedback: SessionFeedback, name: str) -> None:
    for code, split in ((TRAIN, "train"), (VALID, "validation")):
        part = feedback.of(code)
        if not len(part) or np.isnan(part.labels).all():
            raise DataError(
                f"reward model: the users of '{name}' have no {split} session with a label; check the split dates, or "
                f"raise reward.{name}_share"
            )


@dataclass(frozen=True)
class _Job:
    """One of the two trainings."""

    name: str
    placement: Placement
    config: RewardTrainConfig
    groups: UserGroups | None
    out_dir: Path


def _fit(model: SessionRewardModel, feedback: SessionFeedback, job: _Job, *, seed: int, progress: Progress) -> None:
    """Train one model, calibrate it and publish it; ``training.json`` is written last."""
    name, placement, config, groups, out_dir = job.name, job.placement, job.config, job.groups, job.out_dir
    train, valid = feedback.of(TRAIN), feedback.of(VALID)
    scratch = out_dir / ".scratch" / name
    scratch.mkdir(parents=True, exist_ok=True)
    shape = (model.spec.max_items, model.spec.model.max_history)
    rows = FeedbackDataset(train, *shape, seed if config.unexposed_weight > 0 else None, groups)
    loader = FeedbackLoader(rows, config.batch_size, seed)
    module = RewardModule(model, config, total_steps=config.max_epochs * len(loader), groups=groups)
    best = BestRewardModel(scratch / "best", config.patience, MONITOR if groups is None else WORST)
    curves = Curves()
    resume = ResumeCheckpoint(scratch / "resume.ckpt", config.checkpoint_every_s, loader)
    parameters = sum(p.numel() for p in model.parameters())
    logger.info("%s: %d train sessions, %d parameters, towers %s", name, len(rows), parameters, model.spec.names)
    trainer = _trainer(config, placement, [curves, best, resume], progress)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning)
        trainer.fit(
            module,
            loader,
            InOrderLoader(FeedbackDataset(valid, *shape, groups=groups)),
            ckpt_path=str(resume.path) if resume.path.exists() else None,
            weights_only=True,
        )
    if not (best.folder / SPEC_NAME).exists():
        raise DataError(
            f"reward model: '{name}' never had a finite validation cross-entropy; lower reward.train.learning_rate"
        )
    folder = out_dir / name
    chosen = load_reward_model(best.folder, model.spec.semantic_id_digest, placement.device)
    calibrate(chosen, valid)
    fit_combination(chosen, train)
    save_reward_model(folder, chosen)
    curves.table().write_parquet(folder / "curves.parquet")
    facts: dict[str, Any] = {
        "train_sessions": len(train),
        "valid_sessions": len(valid),
        "parameters": parameters,
        "best_epoch": best.best_epoch,
        "valid_bce" if groups is None else "valid_bce_of_the_worst_group": best.best_value,
        "seconds": best.seconds,
    }
    if groups is not None:
        weights = [round(float(weight), 4) for weight in module.group_weights_G]
        facts["group_weights"] = dict(zip(groups.names, weights, strict=True))
    write_json(folder / "training.json", facts)


def fit_combination(model: SessionRewardModel, train: SessionFeedback) -> None:
    """Fit what the combination of the towers needs to know of train sessions, in place.

    Args:
        train: Sessions of the users that the model was trained on.
    """
    if model.spec.combination.transform != "identity":
        scored = score_sessions(model, train.histories, train.padded_items(model.spec.max_items)[:, None])
        model.fit_transform(torch.from_numpy(scored.logits[:, 0]))
    if model.spec.combination.personal is not None:
        fit_average_reactions(model, train.histories)


def _trainer(
    config: RewardTrainConfig, placement: Placement, callbacks: list[lightning.Callback], progress: Progress
) -> lightning.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return lightning.Trainer(
            max_epochs=config.max_epochs,
            **trainer_devices(placement.device),
            precision=placement.precision,  # type: ignore[arg-type]
            gradient_clip_val=config.gradient_clip or None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=isinstance(progress, RichProgress) and sys.stderr.isatty(),
            callbacks=callbacks,
        )
    except (ValueError, MisconfigurationException) as error:
        raise ConfigError(f"device {placement.device}, reward.precision={placement.precision!r}: {error}") from error
