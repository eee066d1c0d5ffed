"""The best validation so far, what it takes to stop, and the clock: all of it survives a kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning


class BestSoFar(lightning.Callback):
    """Count validations without a better one; the state travels with the checkpoint.

    Attributes:
        folder: Where the best model is kept.
        patience: Validations without a better one before training stops.
        seconds_before: Training time of earlier processes.
        validated_step: Optimiser step of the last validation.
    """

    def __init__(self, folder: Path, patience: int, worst: float) -> None:
        self.folder, self.patience = folder, patience
        self.best_value, self.best_epoch, self.validations_since = worst, -1, 0
        self.validated_step = -1
        self.seconds_before, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time, earlier processes included."""
        return self.seconds_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """What the decision to stop rests on."""
        return {
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "validations_since": self.validations_since,
            "validated_step": self.validated_step,
            "seconds_before": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def note(self, value: float, trainer: lightning.Trainer, *, better: bool) -> None:
        """Take one validation."""
        self.validated_step = trainer.global_step
        if better:
            self.best_value, self.best_epoch, self.validations_since = value, trainer.current_epoch, 0
        else:
            self.validations_since += 1

    @property
    def out_of_patience(self) -> bool:
        """Whether there have been too many validations without a better one."""
        return self.validations_since >= self.patience
