"""How lines on standard error look: text for people, or one JSON object per line for machines (``--log-format json``).

The option belongs to every verb that logs, and stands beside its ``--log-level``. A usage error is told before options are
read, so that :func:`choose` looks at the arguments themselves.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from recsys.contracts.errors import ConfigError
from recsys.runtime import PlainProgress, Progress, ProgressMode, make_progress
from serving.registry.masking import MaskingFormatter, masked

OPTION: Final = "--log-format"
_CLI: Final = "recsys.cli"


class LogFormat(StrEnum):
    """Form of the lines on standard error."""

    TEXT = "text"
    JSON = "json"


_chosen: LogFormat = LogFormat.TEXT


def choose(arguments: Sequence[str]) -> None:
    """Take the format that the arguments ask for; a value that is none is the option's to refuse."""
    asked = LogFormat.TEXT
    for place, word in enumerate(arguments):
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        value = following if word == OPTION else word.removeprefix(f"{OPTION}=") if "=" in word else ""
        if value in set(LogFormat):
            asked = LogFormat(value)
    use(asked)


def use(asked: LogFormat) -> LogFormat:
    """Take this format from now on."""
    global _chosen
    _chosen = asked
    return asked


def is_json() -> bool:
    """Whether machines read along."""
    return _chosen is LogFormat.JSON


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; no secret, and no line break, whatever the message holds."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": masked(record.getMessage()),
        }
        if record.exc_info:
            values["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(values)


def formatter() -> logging.Formatter:
    """What formats log lines now."""
    if is_json():
        return JsonFormatter()
    return MaskingFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")


def quiet_libraries() -> None:
    """Keep libraries from writing lines of their own; what they log comes through our handler."""
    if is_json():
        logging.captureWarnings(True)
        os.environ["MLFLOW_CONFIGURE_LOGGING"] = "false"  # it would add a handler of its own


def say(text: str, error: BaseException | None = None) -> None:
    """Tell the end of a command on standard error.

    Args:
        error: Whose traceback belongs to it; in text it is part of the message already.
    """
    if not is_json():
        print(masked(text), file=sys.stderr)
        return
    trace: Any = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord(_CLI, logging.ERROR, "", 0, text, None, trace)
    print(JsonFormatter().format(record), file=sys.stderr)


def progress_of(mode: ProgressMode) -> Progress:
    """What shows progress in this mode; bars are no JSON.

    Raises:
        ConfigError: Bars are asked for among lines of JSON.
    """
    if is_json() and mode is ProgressMode.ON:
        raise ConfigError(f"--progress on draws bars, and {OPTION} json wants objects; leave one of them out")
    if is_json() and mode is ProgressMode.AUTO:
        return PlainProgress()
    return make_progress(mode)
