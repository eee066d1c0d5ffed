"""Options that all verbs share: log level and progress."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from typing import Final

from recsys.runtime import PlainProgress, Progress, RichProgress, default_progress

_LOUD: Final = (
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "mlflow",
    "alembic",
    "urllib3",
    "git",
    "matplotlib",
    "torchrec",
    "torch.fx",
)


class ProgressMode(StrEnum):
    """How long loops show where they are."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LogLevel(StrEnum):
    """Least severe message that is shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def make_progress(mode: ProgressMode) -> Progress:
    """Return bars, plain lines, or (``off``) a progress that never speaks."""
    if mode is ProgressMode.ON:
        return RichProgress()
    if mode is ProgressMode.OFF:
        return PlainProgress(every_s=float("inf"))
    return default_progress()


def set_up_logging(level: LogLevel) -> None:
    """Send our log to standard error; libraries only speak from warnings on."""
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
        level=logging.WARNING,
    )
    for name in ("recsys", "features", "pipelines", "serving"):
        logging.getLogger(name).setLevel(level.upper())
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.DEBUG if level is LogLevel.DEBUG else logging.ERROR)
