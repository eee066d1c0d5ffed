"""What the verbs share: options, what is said on standard error, the configuration, the lock, the plan."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pipelines.cli.log_format import formatter, progress_of, quiet_libraries
from pipelines.cli.verb_group import current_call
from recsys.contracts.errors import ConfigError
from recsys.runtime import ProgressMode

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.nightly.night import NightReport
    from pipelines.workflow import Workflow

_DAY: Final = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})", re.ASCII)
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


ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="YAML recipe, for example pipelines/recipes/beauty.yaml.", metavar="FILE")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example train.max_epochs=5 seed=7.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved config and what would run, and why; do nothing.")
]
AppendOption = Annotated[
    bool,
    typer.Option(
        "--append", help="Where only files of events were added since the last prepare: read only those. Same result."
    ),
]


def parse_day(text: str) -> date:
    """Read a day as it is typed.

    Example:
        >>> parse_day("2026-11-05")
        datetime.date(2026, 11, 5)

    Raises:
        typer.BadParameter: It is no day, or none of the calendar.
    """
    wanted = "expected year-month-day, for example 2026-11-05"
    numbers = _DAY.fullmatch(text)
    if numbers is None:
        raise typer.BadParameter(f"'{text}' is no day; {wanted}")
    try:
        return date(*map(int, numbers.groups()))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no day of the calendar; {wanted}") from None


AsOfOption = Annotated[
    date | None,
    typer.Option(
        "--as-of",
        parser=parse_day,
        metavar="DATE",
        help="A nightly run: see the events up to the end of this day (UTC), once; go on from the champion; catch up "
        "missed days in order.",
    ),
]
ProgressOption = Annotated[ProgressMode, typer.Option("--progress", help="auto: bars on a terminal, else plain lines.")]
LogOption = Annotated[LogLevel, typer.Option("--log-level", help="How much is said on standard error.")]


def set_up_logging(level: LogLevel) -> None:
    """Send our log to standard error; libraries only speak from warnings on."""
    quiet_libraries()
    logging.basicConfig(
        stream=sys.stderr,
        force=True,
        level=logging.WARNING,
    )
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter())
    for name in ("recsys", "features", "pipelines", "serving"):
        logging.getLogger(name).setLevel(level.upper())
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.DEBUG if level is LogLevel.DEBUG else logging.ERROR)


def load(path: Path, overrides: list[str] | None) -> RunConfig:
    """Read a recipe with its overrides, and look whether its places can be what they are to be."""
    from pipelines.config import load_run_config
    from pipelines.places import check_places

    config = load_run_config(path, overrides or [])
    check_places(config)
    return config


def locked(config: RunConfig, mode: ProgressMode, work: Callable[[Workflow], Any]) -> Any:
    """Do work while holding the lock of the output folder, and leave a summary of it there."""
    from pipelines.engine.kept_hashes import kept_hashes
    from pipelines.engine.lock import run_lock
    from pipelines.run_summary.files import summarised
    from pipelines.workflow import Workflow

    progress = progress_of(mode)
    with run_lock(config.output_dir), kept_hashes(config.output_dir, trust=config.trust_file_times):
        workflow = Workflow(config, progress)
        with summarised(workflow, current_call()):
            return work(workflow)


def run_night(config: RunConfig, mode: ProgressMode, day: date) -> NightReport:
    """Run a night, and those missed before it, while holding the lock; each leaves a summary."""
    from pipelines.engine.kept_hashes import kept_hashes
    from pipelines.engine.lock import run_lock
    from pipelines.history.cleaning import clean_after_night
    from pipelines.nightly.night import run_nights
    from pipelines.run_summary.files import summarised
    from pipelines.run_summary.record import Call

    progress, call = progress_of(mode), current_call()
    with run_lock(config.output_dir), kept_hashes(config.output_dir, trust=config.trust_file_times):
        report = run_nights(
            config, day, progress, lambda day, workflow: summarised(workflow, Call(call.command, call.arguments, day))
        )
        if config.nights.clean and report.ran:
            clean_after_night(config)
        return report


def refuse_folder_of_nights(config: RunConfig) -> None:
    """Refuse a run of everything where nights go on from one another.

    Raises:
        ConfigError: The folder has nights.
    """
    from pipelines.nightly.journal import Journal

    last = Journal(config.output_dir, config.registered_name).last_finished()
    if last is not None:
        raise ConfigError(
            f"'{config.output_dir}' is a folder of nights, the last one of {last.day}; say which day this run is for with "
            "--as-of DATE, or choose another output_dir"
        )


def print_plan(config: RunConfig, verb: str | None = None, day: date | None = None) -> None:
    """Print the resolved configuration, and what would run and why; of a night, which nights and from what."""
    from pipelines.config import to_yaml
    from pipelines.nightly.night import plan_nights
    from pipelines.workflow import describe_plan

    print(to_yaml(config))
    lines, footing = ([], None) if day is None else plan_nights(config, day)
    for line in lines:
        print(line)
    for row in describe_plan(config, verb, footing):
        print(f"{row['stage']:10} {row['action']:5} {row['digest']}  {row['why']}")
