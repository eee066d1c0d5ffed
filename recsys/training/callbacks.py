"""What survives a kill: resume checkpoints, the best policy, and the curves, each replaced by rename."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import polars as pl
import torch

from recsys.data.batch import TrainingBatch
from recsys.data.loader import BucketedLoader
from recsys.model.checkpoint import save_policy
from recsys.model.summary import training_flops
from recsys.model.utilisation import wait_for
from recsys.training.best_so_far import BestSoFar
from recsys.training.distributed.sharding import gathered
from recsys.training.distributed.strategies import RANDOM_STATE
from recsys.training.module import PolicyModule

logger = logging.getLogger(__name__)

MONITOR = "valid/ndcg_at_10"


def _validation_figures(trainer: lightning.Trainer) -> list[tuple[str, torch.Tensor]]:
    """Both rankings' figures; the monitored copy of one of them is left out."""
    return [(k, v) for k, v in sorted(trainer.callback_metrics.items()) if k.startswith(("valid/beam", "valid/served"))]


class ResumeCheckpoint(lightning.Callback):
    """Save the whole training state every ``every_s`` seconds, after a batch or an epoch, and where a run stops.

    The file is written beside its place and renamed, so a kill leaves the old one or the new one. The random state is
    saved too and put back at the first batch, later than anything that draws from it while the trainer starts. So is the
    place in the data: the trainer restores that in the middle of an epoch alone.

    Args:
        loader: Of the training batches.
    """

    def __init__(self, path: Path, every_s: float, loader: BucketedLoader) -> None:
        self.path, self.every_s, self.loader = path, every_s, loader
        self._last = time.monotonic()
        self._rng_to_restore: torch.Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Random state and place in the data at the time of the checkpoint."""
        return {"rng": torch.get_rng_state(), "data": self.loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the random state for the first batch, and go to the place in the data."""
        self._rng_to_restore = state_dict["rng"]
        self.loader.load_state_dict(state_dict["data"])

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Put the random state back, once."""
        if self._rng_to_restore is not None:
            torch.set_rng_state(self._rng_to_restore)
            self._rng_to_restore = None

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Save when it is time, or when something said to stop.

        Not after the last batch, where validation and the end of the epoch are still to come, and not between the
        batches of one optimiser step, whose gradients are not saved.
        """
        if not trainer.is_last_batch and ends_a_step(trainer):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save when it is time, validation done; an epoch that was left in its middle is saved there, before validation."""
        if trainer.is_last_batch:
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: lightning.Trainer) -> None:
        due = trainer.should_stop or time.monotonic() - self._last >= self.every_s
        if any_process(trainer, due):  # saving takes all processes, and clocks differ
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Save now."""
        temporary = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        temporary.replace(self.path)
        self._last = time.monotonic()


class ResumeFolder(ResumeCheckpoint):
    """The same for :class:`~recsys.training.distributed.strategies.FolderCheckpoints`, on any number of processes.

    Every checkpoint is a folder ``step-00000120`` of its own; the newest complete one counts, and older ones are removed.
    The random state is each process's own. On another number of processes there is none to go back to: each then
    seeds itself from seed, step and rank, and goes on from the same place in the data.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, path: Path, every_s: float, loader: BucketedLoader, seed: int) -> None:
        super().__init__(path, every_s, loader)
        self.seed = seed

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return max(self.path.glob("step-*"), default=None)

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, the same in every process; see :meth:`on_save_checkpoint` for the rest."""
        return {"data": self.loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the place in the data; see :meth:`on_load_checkpoint` for the rest."""
        self.loader.load_state_dict(state_dict["data"])

    def on_save_checkpoint(self, trainer: lightning.Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Add this process's random state."""
        device = trainer.strategy.root_device
        state = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(device)
        checkpoint[RANDOM_STATE] = state

    def on_load_checkpoint(self, trainer: lightning.Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the random state for the first batch."""
        self._states = checkpoint.get(RANDOM_STATE)
        self._restored = True

    _restored = False
    _states: dict[str, torch.Tensor] | None = None

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Put the random state back, once."""
        if not self._restored:
            return
        self._restored = False
        if self._states is None:
            torch.manual_seed(seed_of_process(self.seed, trainer.global_step, trainer.global_rank))
            logger.info("resumed on another number of processes: random draws differ from here on")
            return
        torch.set_rng_state(self._states["cpu"])
        if "cuda" in self._states:
            torch.cuda.set_rng_state(self._states["cuda"], trainer.strategy.root_device)

    def save(self, trainer: lightning.Trainer) -> None:
        """Save now."""
        temporary = self.path / "writing"
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            folder = self.path / f"step-{trainer.global_step:08d}"
            older = [other for other in self.path.glob("step-*") if other != folder]
            if folder.exists():
                shutil.rmtree(temporary)  # a run that had stopped there trained no further
            else:
                temporary.rename(folder)
            for other in older:
                shutil.rmtree(other)
        self._last = time.monotonic()


def seed_of_process(seed: int, step: int, rank: int) -> int:
    """Seed of one process from one step on; no two are alike."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def ends_a_step(trainer: lightning.Trainer) -> bool:
    """Whether the batch just done completed an optimiser step."""
    return bool(trainer.is_last_batch) or (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


CLOCK_EVERY = 10
"""Optimiser steps between two looks at the clock where processes must wait for each other, and for their GPUs, to agree."""


def any_process(trainer: lightning.Trainer, decision: bool) -> bool:
    """Whether a decision that depends on a clock was made in one of the processes; all must ask at the same place.

    On several GPUs only every :data:`CLOCK_EVERY`-th step is asked, the others say no.
    """
    waits = trainer.world_size > 1 and trainer.strategy.root_device.type != "cpu"
    if waits and trainer.global_step % CLOCK_EVERY and not trainer.is_last_batch:
        return False
    return trainer.strategy.reduce_boolean_decision(decision, all=False)


class BestPolicy(BestSoFar):
    """Keep the policy with the best validation metric, and stop after ``patience`` validations without a better one.

    It stops after ``max_minutes``, too, within an optimiser step: what was trained is validated, and the state is saved by
    :class:`ResumeCheckpoint`, which is to stand behind it.
    """

    def __init__(self, folder: Path, patience: int, max_minutes: float | None) -> None:
        super().__init__(folder, patience, worst=-1.0)
        self.max_minutes = max_minutes

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare, keep, decide."""
        assert isinstance(pl_module, PolicyModule)
        value = float(trainer.callback_metrics[MONITOR])
        logger.info(
            "epoch %d, step %d: %s, %.0f s of training",
            trainer.current_epoch + 1,
            trainer.global_step,
            ", ".join(f"{k.removeprefix('valid/')} {float(v):.4f}" for k, v in _validation_figures(trainer)),
            self.seconds,
        )
        better = value > self.best_value
        self.note(value, trainer, better=better)
        if better:
            with gathered(pl_module.policy.tables, pl_module.device):
                if trainer.is_global_zero:
                    save_policy(self.folder, pl_module.policy)
        self._stop_if(trainer, self.out_of_patience or self._out_of_time)

    @property
    def _out_of_time(self) -> bool:
        return self.max_minutes is not None and self.seconds > 60 * self.max_minutes

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on with a run that was at its end, and validated, only to its end."""
        if trainer.global_step == self.validated_step:
            self._stop_if(trainer, self.out_of_patience or self._out_of_time)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Look at the clock."""
        if self.max_minutes is not None and ends_a_step(trainer):
            self._stop_if(trainer, self._out_of_time)

    def _stop_if(self, trainer: lightning.Trainer, decision: bool) -> None:
        if any_process(trainer, decision):
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1  # whatever was trained since the last validation is measured


class ValidateLastEpoch(lightning.Callback):
    """Validate after the last epoch, whatever ``validate_every_epochs`` says: an epoch that nothing measures is never kept.

    The trainer looks up its interval at the end of every epoch. A run that goes on inside its last epoch does not begin it
    again, hence two hooks.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Where the run goes on in its last epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Where the last epoch begins."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class Curves(lightning.Callback):
    """Collect training and validation figures; they travel with the checkpoint, so a resumed run has one curve."""

    def __init__(self, every_steps: int = 20) -> None:
        self.every_steps = every_steps
        self._points: list[tuple[int, float, str, float]] = []
        self._unread: list[tuple[int, float, str, torch.Tensor]] = []

    @property
    def points(self) -> list[tuple[int, float, str, float]]:
        """Step, epoch, name, value; the values are read here, so that a point makes nobody wait for a GPU."""
        self._points += [(step, epoch, name, float(value)) for step, epoch, name, value in self._unread]
        self._unread = []
        return self._points

    def state_dict(self) -> dict[str, Any]:
        """All points so far."""
        return {"points": list(self.points)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the curve."""
        self._points, self._unread = [tuple(point) for point in state_dict["points"]], []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Take a point every few steps."""
        if trainer.global_step % self.every_steps == 0 and ends_a_step(trainer):
            self._take(trainer, "train/")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the validation figures."""
        self._take(trainer, "valid/")

    def _take(self, trainer: lightning.Trainer, prefix: str) -> None:
        epoch = trainer.global_step * trainer.accumulate_grad_batches / max(1, trainer.num_training_batches)
        for name, value in trainer.callback_metrics.items():
            if name.startswith(prefix):
                self._unread.append((trainer.global_step, float(epoch), name, value.detach()))

    def table(self) -> pl.DataFrame:
        """Columns step, epoch, name, value."""
        schema = {"step": pl.Int64, "epoch": pl.Float64, "name": pl.String, "value": pl.Float64}
        return pl.DataFrame(self.points, schema=schema, orient="row")


class ArithmeticDone(lightning.Callback):
    """Count useful FLOPs and what they took: the seconds of training alone, validation and checkpoints of it left out.

    Attributes:
        targets, flops, seconds: Of all epochs so far, of this process; they travel with the checkpoint.
    """

    def __init__(self) -> None:
        self.targets, self.flops, self.seconds = 0, 0.0, 0.0
        self._since: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The sums, up to now."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return {"targets": self.targets, "flops": self.flops, "seconds": self.seconds + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A run that goes on inside an epoch does not begin it again."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: TrainingBatch,
        batch_idx: int,
    ) -> None:
        """Count a batch."""
        assert isinstance(pl_module, PolicyModule)
        config, num_items = pl_module.config, pl_module.policy.spec.dataset.num_items
        sampled = config.dense_sampled_items
        scored = num_items if sampled is None or sampled >= num_items else sampled + 1
        dense = round(len(batch.asked.item_N) * config.dense_targets_share) if config.dense_weight > 0 else 0
        self.targets += len(batch.asked.item_N)
        self.flops += training_flops(pl_module.policy, batch.asked.counts, dense, scored)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the clock."""
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the clock, where validation has not stopped it before."""
        if self._since is not None:
            wait_for(pl_module.device)
            self.seconds += time.monotonic() - self._since
            self._since = None
