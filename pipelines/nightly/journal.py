"""The journal of nights: ``<output_dir>/nights/<DATE>.json``, one file per day, each written by rename.

A night that is registered, refused or skipped is finished and runs no more. One that is running without anybody holding the
folder's lock was killed; like a failed or a stopped one it is taken up where it was. Order is that of the dates, never of
a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.engine.lock import holder_of
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import explain_write_errors, read_json, write_json

FOLDER: Final = "nights"
State = Literal["running", "registered", "refused", "skipped", "failed", "stopped"]
FINISHED: Final = ("registered", "refused", "skipped")
"""States of nights that do not run again."""


class StageOfNight(BaseModel):
    """What a night has of one stage: its artefact, and the seconds that it took over all attempts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    digest: str
    seconds: float


class Night(BaseModel):
    """One day's run.

    Attributes:
        model: Registered name.
        day: The last day whose events are seen, UTC.
        state: How it ended, or ``running``.
        reason: Why, one sentence.
        exit_code: What the command ended with; ``None`` while it runs.
        kind: ``warm``: the champion's generation and weights, ``full``: a new generation; ``None``: not decided yet.
        why: Why it is of this kind.
        bases: Digest of the artefact that each stage grows from, by stage name.
        champion: Version that was champion when the night began.
        version: Version that the night made.
        verdict: What the gate said: ``promoted``, ``reason``, ``against`` and the numbers.
        stages: By stage name.
        started_at, ended_at: UTC, of the first attempt and the last; for people.
        attempts: How often it was begun.
        seconds: Of all attempts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    day: date
    state: State
    reason: str = ""
    exit_code: int | None = None
    kind: Literal["warm", "full"] | None = None
    why: str = ""
    bases: dict[str, str] = {}
    champion: str | None = None
    version: str | None = None
    verdict: dict[str, Any] | None = None
    stages: dict[str, StageOfNight] = {}
    started_at: str = ""
    ended_at: str | None = None
    attempts: int = 0
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether it runs no more."""
        return self.state in FINISHED

    @property
    def has_result(self) -> bool:
        """Whether it made a version that was decided on."""
        return self.state in ("registered", "refused")


@dataclass(frozen=True)
class Journal:
    """The nights of one registered model in one output folder.

    Attributes:
        output_dir: Of the runs.
        model: Registered name; nights of another one in the same folder are refused.
    """

    output_dir: Path
    model: str

    def path_of(self, day: date) -> Path:
        """File of a night."""
        return self.output_dir / FOLDER / f"{day.isoformat()}.json"

    def nights(self) -> list[Night]:
        """Return all nights, in the order of their days.

        Raises:
            ArtifactError: A file is damaged.
            ConfigError: They are those of another model.
        """
        return [self._read(path) for path in sorted((self.output_dir / FOLDER).glob("[0-9]*.json"))]

    def of(self, day: date) -> Night | None:
        """Return one night; ``None`` where it never began."""
        path = self.path_of(day)
        return self._read(path) if path.exists() else None

    def write(self, night: Night) -> None:
        """Write a night in place of what was known of it."""
        path = self.path_of(night.day)
        with explain_write_errors(self.output_dir):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, night.model_dump(mode="json"))

    def last_finished(self) -> Night | None:
        """The finished night of the latest day."""
        return next((night for night in reversed(self.nights()) if night.finished), None)

    def last_result(self) -> Night | None:
        """The latest night that made a version: what single verbs go on from."""
        return next((night for night in reversed(self.nights()) if night.has_result), None)

    def _read(self, path: Path) -> Night:
        try:
            night = Night.model_validate(read_json(path))
        except ValidationError as error:
            raise ArtifactError(
                f"'{path}' is no night of the journal ({error.errors()[0]['msg']}); restore it, or move it away: the night "
                "then counts as not begun"
            ) from error
        if path.stem != night.day.isoformat():
            raise ArtifactError(
                f"'{path}' is about {night.day}: it was renamed; give it its name back, or move it away"
            )
        if night.model != self.model:
            raise ConfigError(
                f"the nights in '{self.output_dir / FOLDER}' are those of '{night.model}', not of '{self.model}'; choose "
                "another output_dir for another model"
            )
        return night


def night_status(journal: Journal) -> dict[str, Any]:
    """Return ``last_night``, the one of the latest day, and ``unfinished_nights``, the days that the next run takes up.

    ``at_work`` says which process holds the folder, ``None`` for nobody; the night that it is at is not unfinished.

    A damaged journal is said in ``nights_problem``, and the rest of a status can still be shown.
    """
    problem = None
    try:
        nights = journal.nights()
    except ArtifactError as error:
        nights, problem = [], str(error)
    at_work = holder_of(journal.output_dir)
    ended = FINISHED if at_work is None else (*FINISHED, "running")
    return {
        "at_work": at_work,
        "last_night": nights[-1].model_dump(mode="json") if nights else None,
        "unfinished_nights": [night.day.isoformat() for night in nights if night.state not in ended],
        "nights_problem": problem,
    }


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """The same for people; nothing where no night was run and nobody is at work."""
    lines = [] if status["at_work"] is None else [f"at work     {status['at_work']}"]
    if status["nights_problem"] is not None:
        return [*lines, f"night       unknown: {status['nights_problem']}"]
    if status["last_night"] is None:
        return lines
    lines += [f"night       {describe(Night.model_validate(status['last_night']))}"]
    if status["unfinished_nights"]:
        lines.append(
            f"unfinished  {', '.join(status['unfinished_nights'])}: the next `recsys run --as-of` takes them up"
        )
    return lines


def describe(night: Night) -> str:
    """Say in one line how a night stands.

    Example:
        >>> describe(Night(model="shop", day=date(2026, 11, 5), state="stopped", reason="stopped by SIGTERM"))
        '2026-11-05 stopped: stopped by SIGTERM'
    """
    version = f", version {night.version}" if night.version else ""
    return f"{night.day} {night.state}{version}: {night.reason}".rstrip(": ")
