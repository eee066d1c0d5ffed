"""Options that all verbs share: what is said on standard error, and how much of it."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from typing import Final

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


class LogLevel(StrEnum):
    """Least severe message that is shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


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
