"""The nightly run: `recsys run --as-of DATE`.

Reads the journal, decides which days to run and what each starts from, and lets :class:`~pipelines.workflow.Workflow` work;
produces the journal, step by step, so that a night that is killed anywhere is taken up where it was. The caller holds the
lock of the output folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from pipelines.engine.runner import Outcome
from pipelines.engine.stop_signals import Stopped
from pipelines.nightly.catch_up import days_to_run
from pipelines.nightly.footing import Footing, config_of_night, footing_of, with_day
from pipelines.nightly.journal import FINISHED, Journal, Night, StageOfNight, describe
from pipelines.nightly.start import Start, champion_of, start_of
from pipelines.release.gate.audit import AuditLog
from pipelines.stages import PREPARE
from pipelines.workflow import RunReport, Workflow
from recsys.contracts.errors import CannotGrow, ConfigError, DataError, GateRefused, RecsysError
from recsys.contracts.manifest import ArtifactStore, read_json
from serving.registry.masking import masked

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.release.gate.keeper import GateDecision
    from recsys.runtime import Progress

logger = logging.getLogger("recsys.pipelines")

UNEXPECTED = 1
"""Exit code of a fault of ours."""

Around = Callable[[date, Workflow], AbstractContextManager[None]]
"""What is entered around a night's work."""


@dataclass(frozen=True)
class NightReport:
    """How a call ended.

    Attributes:
        night: Of the day asked for, as it stands in the journal.
        report: What the run did; ``None`` where the day was done before, or had no events.
        ran: Days that were run, skipped ones not counted.
    """

    night: Night
    report: RunReport | None
    ran: tuple[date, ...]


def plan_nights(config: RunConfig, asked: date) -> tuple[list[str], Footing]:
    """Say which nights a call would run, and what the first of them starts from; writes nothing.

    Returns:
        Lines for people, and what the first night stands on.

    Raises:
        ConfigError: As :func:`run_nights` does.
    """
    from serving.registry.mlflow_client import tracking_uri
    from serving.registry.model_registry import Registry

    journal = Journal(config.output_dir, config.registered_name)
    nights = journal.nights()
    days = days_to_run(asked, nights, config.nights.max_catch_up)
    lines = [f"night {day}  skip  missed too long ago (nights.max_catch_up)" for day in days.skipped]
    if not days.run:
        done = journal.of(asked)
        assert done is not None
        return [f"night {describe(done)}"], footing_of(with_day(config, asked))
    first, store = days.run[0], ArtifactStore(config.output_dir / "artifacts")
    uri = tracking_uri(config.tracking.uri, config.output_dir)
    timeout = config.tracking.timeout_s
    earlier = [night for night in nights if night.day < first]
    try:
        registry = Registry(uri, config.output_dir / "registry", timeout, create=False)
        champion = champion_of(lambda: registry, config, earlier, store)
    except ConfigError:  # there is no database yet, and a plan makes none
        champion = None
    start = start_of(config, earlier, store, champion)
    lines.append(f"night {first}  {start.kind}  {start.why}")
    lines += [f"night {day}  run   after it" for day in days.run[1:]]
    return lines, Footing(config_of_night(config, first, start.kind, start.bases), start.bases)


class _EmptyDay(Exception):
    """The day has no usable event, and the configuration says that such a night does nothing."""


def run_nights(
    config: RunConfig,
    asked: date,
    progress: Progress,
    around: Around = lambda day, workflow: nullcontext(),
) -> NightReport:
    """Run the nights up to a day, in order, each once; the first that fails ends the call.

    Args:
        asked: The last day whose events are seen, UTC.
        around: Entered around each night's work.

    Raises:
        ConfigError: A later day is finished, or ``features.as_of`` says another day.
        RecsysError: As :meth:`~pipelines.workflow.Workflow.run` does; the journal has it.
    """
    if config.features.as_of not in (None, asked):
        raise ConfigError(f"features.as_of is {config.features.as_of} and --as-of {asked}; leave features.as_of out")
    journal = Journal(config.output_dir, config.registered_name)
    days = days_to_run(asked, journal.nights(), config.nights.max_catch_up)
    report = None
    for day in days.run:
        if day >= _today():
            logger.warning(
                "%s is not over by this machine's clock: events that come later are seen by the next night", day
            )
        skipped = days.skipped if day == days.run[0] else ()
        report = _OneNight(config, day, journal, progress, asked, skipped).run(around)
    night = journal.of(asked)
    assert night is not None
    return NightReport(night, report, days.run)


class _OneNight:
    """One day's run, with its entry in the journal.

    Args:
        asked: The last day of the call.
        skipped: Days before it that are written down as skipped when this one is finished, and not before: a date that
            was a slip of the pen has no events, fails, and must not have passed over the days that are still to come.
    """

    def __init__(
        self, config: RunConfig, day: date, journal: Journal, progress: Progress, asked: date, skipped: Sequence[date]
    ) -> None:
        self._asked, self._skipped = asked, skipped
        self.config, self.day, self.journal, self.progress = with_day(config, day), day, journal, progress
        self.store = ArtifactStore(config.output_dir / "artifacts")
        self.earlier = [night for night in journal.nights() if night.day < day]
        known = _begun(journal, day)
        self.night = known.model_copy(
            update={
                "state": "running",
                "reason": "",
                "exit_code": None,
                "ended_at": None,
                "attempts": known.attempts + 1,
            }
        )
        self._spent = {stage.digest: stage.seconds for stage in known.stages.values()}
        self._before, self._started = known.seconds, time.monotonic()

    def run(self, around: Around) -> RunReport | None:
        """Run it and write down how it ended.

        A refusal that fails the run ends the call; earlier nights that are caught up are followed by the next.
        """
        self._note()
        try:
            report = self._work(around)
        except Stopped as stopped:
            self._end("stopped", str(stopped), stopped.exit_code)
            raise
        except GateRefused as refused:
            self._end("refused", self._reason(str(refused)), refused.exit_code)
            if self.day == self._asked:
                raise
            return None
        except RecsysError as error:
            self._end("failed", masked(str(error)), error.exit_code)
            raise
        except Exception as error:
            self._end("failed", masked(f"{type(error).__name__}: {error}"), UNEXPECTED)
            raise
        if report is None:
            self._end("skipped", self.night.reason, 0)
            return None
        promoted = report.decision.promoted
        self._end("registered" if promoted else "refused", self._reason(report.decision.reason), 0)
        return report

    def _work(self, around: Around) -> RunReport | None:
        start = self._start()
        try:
            return self._run_from(start, around)
        except CannotGrow as reason:
            if not start.bases:
                raise
            logger.warning(
                "the night of %s cannot grow from version %s, and begins anew: %s", self.day, start.champion, reason
            )
            return self._run_from(Start("full", str(reason), champion=start.champion), around)

    def _start(self) -> Start:
        """What the night starts from: as decided when it first began, unless somebody has moved the champion since."""
        opened = Workflow(self.config, self.progress, Footing(self.config))
        champion = champion_of(opened.registry, self.config, self.earlier, self.store)
        night = self.night
        if night.kind is not None and (champion is None or champion.number in (night.champion, night.version)):
            return Start(night.kind, night.why, night.bases, night.champion)
        return start_of(self.config, self.earlier, self.store, champion)

    def _run_from(self, start: Start, around: Around) -> RunReport | None:
        """Work; ``None`` for a day without events that is to be skipped."""
        night, bases = self.night, dict(start.bases)
        version = (
            night.version if (night.kind, night.bases) == (start.kind, bases) else None
        )  # another start, another one
        changes = {"kind": start.kind, "why": start.why, "bases": bases, "champion": start.champion}
        config = config_of_night(self.config, self.day, start.kind, bases)
        self._note(**changes, version=version, stages={}, verdict=None)
        logger.info("night of %s: %s (%s)", self.day, start.kind, start.why)
        workflow = Workflow(config, self.progress, Footing(config, start.bases))
        workflow.noted = lambda: self._after_a_step(workflow)
        with around(self.day, workflow):
            try:
                return workflow.run(append=self.config.nights.append)
            except _EmptyDay as empty:
                self._note(reason=str(empty))
                return None

    def _after_a_step(self, workflow: Workflow) -> None:
        outcomes, decision = workflow.runner.outcomes, workflow.decision
        for name, outcome in outcomes.items():
            self._add(name, outcome)
        self._note(
            version=workflow.version.number if workflow.version is not None else self.night.version,
            verdict=None if decision is None else self._verdict(decision),
        )
        if list(outcomes) == [PREPARE.name]:
            self._check_day(outcomes[PREPARE.name])

    def _verdict(self, decision: GateDecision) -> dict[str, Any]:
        """What the gate said when it decided; of a night that was killed after that, as the record of decisions has it."""
        found: dict[str, Any] = asdict(decision)
        if not decision.moved:
            log = AuditLog(self.config.output_dir)
            for event in log.events(self.journal.model):
                if (
                    event["event"] in ("promoted", "refused")
                    and event["challenger"] == decision.challenger
                    and event["record"]
                ):
                    found = read_json(log.folder / event["record"])
        return {
            "promoted": bool(found["promoted"]),
            "reason": str(found["reason"]),
            "against": found["champion"],
            "numbers": dict(found["numbers"]),
        }

    def _add(self, name: str, outcome: Outcome) -> None:
        """Write down what a stage has given; seconds are those of the attempt in which it ran."""
        artifact = outcome.artifact
        seconds = round(outcome.seconds, 3) if outcome.ran else self._spent.get(artifact.digest, 0.0)
        kept = StageOfNight(kind=artifact.manifest.kind, digest=artifact.digest, seconds=seconds)
        self.night = self.night.model_copy(update={"stages": {**self.night.stages, name: kept}})

    def _check_day(self, prepared: Outcome) -> None:
        """Stop where the day itself has no event: its file is late, or nobody came.

        Raises:
            DataError: The configuration does not say that this is fine.
        """
        last = prepared.artifact.manifest.summary.get("last_event")
        if last is not None and date.fromisoformat(str(last)[:10]) >= self.day:
            return
        words = f"no usable event is of {self.day}; the last one is of {str(last)[:19]} UTC"
        if self.day >= _today():
            raise DataError(
                f"{words}, and {self.day} is not over by this machine's clock: check the date, or the clock, or run "
                f"`--as-of {self.day}` again when the day is over"
            )
        if self.config.nights.on_empty_day == "skip":
            logger.warning("night of %s: %s; nothing to learn (nights.on_empty_day)", self.day, words)
            raise _EmptyDay(words)
        raise DataError(
            f"{words}: the day's file is missing, empty or unusable; bring it and run `--as-of {self.day}` again (the next "
            "night catches up too), or say with nights.on_empty_day=skip that such days happen"
        )

    def _reason(self, otherwise: str) -> str:
        return otherwise if self.night.verdict is None else str(self.night.verdict["reason"])

    def _end(self, state: str, reason: str, exit_code: int) -> None:
        if state in FINISHED:
            self._skip_earlier()
        seconds = self._before + time.monotonic() - self._started
        self._note(state=state, reason=reason, exit_code=exit_code, ended_at=_now(), seconds=round(seconds, 3))
        logger.info("night of %s", describe(self.night))

    def _skip_earlier(self) -> None:
        """Write down the days that are passed over; an entry that never ended says how it stood."""
        limit = self.config.nights.max_catch_up
        for day in self._skipped:
            known = _begun(self.journal, day)
            words = f"missed; {self._asked} was run with at most {limit} nights before it (nights.max_catch_up)"
            if known.attempts:
                words = f"never ended ({known.state}: {known.reason or 'killed'}), and {self._asked} was run after it"
            changes = {"state": "skipped", "reason": words, "exit_code": 0, "ended_at": _now()}
            self.journal.write(known.model_copy(update=changes))
        if self._skipped:
            logger.warning(
                "%d nights are skipped, %s to %s: their events are seen by the nights that run",
                len(self._skipped),
                self._skipped[0],
                self._skipped[-1],
            )

    def _note(self, **changes: Any) -> None:
        self.night = self.night.model_copy(update=changes)
        self.journal.write(self.night)


def _begun(journal: Journal, day: date) -> Night:
    """The entry of a night, new where it never began."""
    return journal.of(day) or Night(model=journal.model, day=day, state="running", started_at=_now())


def _today() -> date:
    return datetime.now(UTC).date()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
