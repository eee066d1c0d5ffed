"""Each day once, in order, from the champion; killed anywhere a night ends as if nothing had been. On a fake workflow."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.lock import run_lock
from pipelines.engine.stop_signals import Stopped
from pipelines.nightly import night as nightly
from pipelines.nightly.catch_up import days_to_run
from pipelines.nightly.journal import Journal, Night, night_status, status_lines
from pipelines.stages import EMBED, TOKENIZE, TRAIN
from recsys.contracts.errors import ArtifactError, CannotGrow, ConfigError, DataError, GateRefused, RunLocked
from tests.toy.fake_nights import PATH, World
from tests.toy.nights import day_of

GROWING = (EMBED, TOKENIZE, TRAIN)


def of_day(world: World, number: int) -> Night:
    found = Journal(world.output, "shop").of(day_of(number))
    assert found is not None
    return found


def test_the_first_night_is_full_the_next_is_warm_and_each_runs_once(world: World) -> None:
    first = world.night(1).night
    assert (first.state, first.kind, first.version, first.exit_code) == ("registered", "full", "1", 0)
    assert first.why == "there is no champion to start from"
    second = world.night(2).night
    assert (second.kind, second.version, second.champion, second.attempts) == ("warm", "2", "1", 1)
    assert second.bases == {stage.name: first.stages[stage.name].digest for stage in GROWING}
    assert second.verdict is not None
    assert (second.verdict["promoted"], second.verdict["against"]) == (True, "1")
    again = world.night(2)
    assert (again.ran, again.report, again.night) == ((), None, second)
    Journal(world.output, "shop").path_of(day_of(1)).unlink()
    with pytest.raises(ConfigError, match="night of 2026-11-01 comes before"):
        world.night(1)


def test_missed_days_are_caught_up_in_order_and_too_old_ones_are_written_down(world: World) -> None:
    """After day 1 come day 4 with both days before it, then day 9 with two of the four before it."""
    world.night(1)
    assert world.night(4).ran == (day_of(2), day_of(3), day_of(4))
    assert world.night(9, world.config(max_catch_up=2)).ran == (day_of(7), day_of(8), day_of(9))
    states = [night.state for night in world.journal()]
    assert states == ["registered"] * 4 + ["skipped"] * 2 + ["registered"] * 3
    assert of_day(world, 5).reason.startswith("missed; 2026-11-09 was run with at most 2 nights before it")
    assert [night.champion for night in world.journal() if night.kind] == [None, "1", "2", "3", "4", "5", "6"]


def test_a_caught_up_night_that_fails_ends_the_call_and_the_next_call_begins_there(world: World) -> None:
    world.night(1)

    def fails(day: date, step: str) -> None:
        if (day, step) == (day_of(3), "train"):
            raise DataError("bad rows")

    world.failing = fails
    with pytest.raises(DataError):
        world.night(4)
    assert [(night.state, night.exit_code) for night in world.journal()] == [("registered", 0)] * 2 + [("failed", 3)]
    assert of_day(world, 3).reason == "bad rows"
    world.failing = lambda day, step: None
    assert world.night(4).ran == (day_of(3), day_of(4))
    assert of_day(world, 3).attempts == 2


def test_a_day_without_events_fails_or_is_skipped_where_that_is_said(world: World) -> None:
    world.night(1)
    world.empty = {day_of(2)}
    with pytest.raises(DataError, match=r"no usable event is of 2026-11-02.*nights.on_empty_day=skip"):
        world.night(2)
    failed = of_day(world, 2)
    assert (failed.state, failed.exit_code, failed.version, list(failed.stages)) == ("failed", 3, None, ["prepare"])
    skipped = world.night(2, world.config(on_empty_day="skip"))
    assert (skipped.night.state, skipped.night.exit_code, skipped.report) == ("skipped", 0, None)
    assert (world.champion, len(world.versions)) == ("1", 1)
    world.night(3)
    assert of_day(world, 3).champion == "1"


class Killed(BaseException):
    """As SIGKILL: nobody answers it."""


def end_of(world: World) -> Any:
    """What is left: the journal but for times and attempts, the registry, the artefacts."""
    times = {"started_at", "ended_at", "seconds", "attempts", "stages"}
    journal = [night.model_dump(exclude=times) for night in world.journal()]
    stages = [{name: stage.digest for name, stage in night.stages.items()} for night in world.journal()]
    files = sorted(path.relative_to(world.output).as_posix() for path in world.output.glob("artifacts/*/[!.]*"))
    return journal, stages, world.versions, world.champion, files


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_step_a_night_ends_as_an_undisturbed_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool, after: bool
) -> None:
    """Killed before each step of the work, then before each write of the journal, or after each."""
    world.refused = {day_of(2)} if refused else set()
    calm = replace(world, output=tmp_path / "calm", versions=[], decided=set())
    with monkeypatch.context() as patched:
        patched.setattr(nightly, "Workflow", calm.workflow)
        calm.night(1)
        calm.night(2)
    world.night(1)
    kills = 0
    for step in () if after else (*(stage.name for stage in PATH), "register", "decide", "recommend"):

        def kill(day: date, now: str, step: str = step) -> None:
            if now == step:
                raise Killed

        world.failing = kill
        with pytest.raises(Killed):
            world.night(2)
        assert of_day(world, 2).state == "running"
    world.failing = lambda day, step: None
    write = Journal.write
    for place in range(100):
        calls = iter(range(100))

        def writing(self: Journal, night: Night, place: int = place, calls: Any = calls) -> None:
            now = next(calls) == place
            if after or not now:
                write(self, night)
            if now:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "write", writing)
            try:
                world.night(2)
                break
            except Killed:
                kills += 1
    assert kills >= 11
    assert end_of(world) == end_of(calm)
    verdict = {"promoted": not refused, "reason": "by the test", "against": "1", "numbers": {"share": 0.25}}
    assert of_day(world, 2).verdict == verdict


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (Stopped(15), "stopped", 143),
        (Stopped(2), "stopped", 130),
        (ArtifactError("the server is gone"), "failed", 4),
        (RuntimeError("a fault"), "failed", 1),
    ],
)
def test_how_it_ended_stands_in_the_journal(world: World, error: BaseException, state: str, code: int) -> None:
    world.night(1)

    def fails(day: date, step: str) -> None:
        if step == "train":
            raise error

    world.failing = fails
    with pytest.raises(type(error)):
        world.night(2)
    night = of_day(world, 2)
    assert (night.state, night.exit_code, night.kind) == (state, code, "warm")
    assert str(error) in night.reason
    world.failing = lambda day, step: None
    assert (world.night(2).night.attempts, of_day(world, 2).bases) == (2, night.bases)


def test_a_refusal_that_fails_the_run_is_a_finished_night(world: World) -> None:
    """Exit code 5 for the day that was asked for; of a day that is caught up the journal tells, and the next one follows."""
    world.night(1)
    world.refused, world.fails_run = {day_of(2), day_of(4)}, True
    with pytest.raises(GateRefused):
        world.night(2)
    assert (of_day(world, 2).state, of_day(world, 2).exit_code) == ("refused", 5)
    assert world.night(2).ran == ()
    assert world.night(5).ran == (day_of(3), day_of(4), day_of(5))
    assert [night.state for night in world.journal()] == [
        "registered",
        "refused",
        "registered",
        "refused",
        "registered",
    ]


def test_after_a_refused_night_weights_come_from_the_champion_and_ids_from_the_newest_table(world: World) -> None:
    """A refused version may be served later, so no ID that it gave goes to another item."""
    first = world.night(1).night
    world.refused = {day_of(2)}
    second = world.night(2).night
    third = world.night(3).night
    assert (second.state, third.champion) == ("refused", "1")
    assert third.bases["train"] == first.stages["train"].digest
    assert third.bases["tokenize"] == second.stages["tokenize"].digest
    assert third.bases["embed"] == second.stages["embed"].digest


def test_after_a_rollback_the_next_night_starts_from_the_version_that_serves(world: World) -> None:
    first, second = world.night(1).night, world.night(2).night
    world.champion = "1"
    third = world.night(3).night
    assert (third.champion, third.bases["train"]) == ("1", first.stages["train"].digest)
    assert third.bases["tokenize"] == second.stages["tokenize"].digest


def test_a_rollback_while_a_night_is_half_done_gives_it_another_start(world: World) -> None:
    world.night(1)
    world.night(2)

    def stops(day: date, step: str) -> None:
        if step == "recommend":
            raise Stopped(15)

    world.failing = stops
    with pytest.raises(Stopped):
        world.night(3)
    assert (of_day(world, 3).version, world.champion) == ("3", "3")
    world.failing = lambda day, step: None
    world.champion = "1"
    third = world.night(3).night
    assert (third.champion, third.version, third.bases["train"]) == ("1", "4", of_day(world, 1).stages["train"].digest)


def test_a_generation_that_was_only_refused_is_left_behind(world: World) -> None:
    """Night 2 is full by the schedule and refused: night 3 goes on with the generation of night 1."""
    first = world.night(1).night
    world.refused = {day_of(2)}
    second = world.night(2, world.config(full_every=1)).night
    assert (second.kind, second.why) == ("full", "1 nights since the last full one (nights.full_every)")
    assert second.bases == {name: first.stages[name].digest for name in ("tokenize", "train")}
    third = world.night(3).night
    assert (third.kind, third.bases["tokenize"]) == ("warm", first.stages["tokenize"].digest)


def test_full_nights_come_by_the_schedule(world: World) -> None:
    for number in range(1, 8):
        world.night(number, world.config(full_every=3))
    assert [night.kind for night in world.journal()] == ["full", "warm", "warm", "full", "warm", "warm", "full"]


def test_a_full_night_that_the_ids_ask_for_waits_its_turn(world: World) -> None:
    """Night 2 says that its level is full; with a wait of 3 nights since night 1 the full one is night 4."""
    settings = world.config(full_wait=3, full_every=None)
    world.fill = dict.fromkeys([day_of(2), day_of(3)], 0.75)
    for number in range(1, 6):
        world.night(number, settings)
    assert [night.kind for night in world.journal()] == ["full", "warm", "warm", "full", "warm"]
    assert of_day(world, 4).why == "fill is 0.75, tokenize.refit.max_fill allows 0.5: IDs run out"
    assert list(of_day(world, 4).bases) == ["tokenize", "train"]
    assert list(of_day(world, 5).bases) == ["embed", "tokenize", "train"]


@pytest.mark.parametrize(
    ("section", "changed", "why"),
    [
        ("model", {"width": 32}, "model.width 64 -> 32: what 'train' made before does not fit any more"),
        ("tokenize", {"codebook_size": 17}, "tokenize.codebook_size 256 -> 17: what 'tokenize' made before"),
        ("embed", {"collaborative": {"dim": 9}}, "embed.collaborative.dim"),
        ("train", {"learning_rate": 1.0}, None),
        ("nights", {"warm_start": False}, "nights.warm_start is off"),
    ],
)
def test_what_does_not_fit_any_more_makes_a_full_night(
    world: World, section: str, changed: dict[str, Any], why: str | None
) -> None:
    world.night(1)
    values = world.config().model_dump(mode="json", exclude_unset=True) | {section: changed}
    night = world.night(2, type(world.config()).model_validate(values)).night
    assert (night.kind, night.why.startswith(why or "from version 1")) == ("full" if why else "warm", True), night.why


def test_a_base_that_turns_out_not_to_fit_makes_the_night_full(world: World) -> None:
    world.night(1)
    grown = []

    def refuses(day: date, step: str) -> None:
        if step == "tokenize" and not grown:
            grown.append(day)
            raise CannotGrow("all IDs of the generation are taken")

    world.failing = refuses
    night = world.night(2).night
    assert (night.kind, night.why, night.state, night.bases) == (
        "full",
        "all IDs of the generation are taken",
        "registered",
        {},
    )


def test_artefacts_that_are_gone_make_the_night_full(world: World) -> None:
    import shutil

    first = world.night(1).night
    shutil.rmtree(world.output / "artifacts" / "policy")
    night = world.night(2).night
    assert first.version is not None
    assert (night.kind, night.why) == ("full", "the result of 'train' behind version 1 is not in this folder")


def test_a_second_run_is_sent_away_and_another_model_is_refused(world: World) -> None:
    world.night(1)
    with run_lock(world.output), pytest.raises(RunLocked):
        world.night(2)
    assert [night.day for night in world.journal()] == [day_of(1)]
    with pytest.raises(ConfigError, match="are those of 'shop', not of 'other'"):
        world.night(2, world.config().model_copy(update={"name": "other"}))


@pytest.mark.parametrize(("days", "runs"), [(366, True), (367, False)])
def test_a_day_of_another_year_is_taken_for_a_slip(days: int, runs: bool) -> None:
    """Else 2062 for 2026 would skip thirteen thousand nights, and every later one would come too early."""
    done = [Night(model="shop", day=date(2026, 11, 1), state="registered")]
    asked = done[0].day + timedelta(days=days)
    if runs:
        assert days_to_run(asked, done, 2).run == tuple(asked - timedelta(days=back) for back in (2, 1, 0))
    else:
        with pytest.raises(ConfigError, match="367 days after the last finished one, 2026-11-01, expected at most 366"):
            days_to_run(asked, done, 2)


def test_the_clock_decides_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set back by ten years between two nights, the second follows the first all the same."""
    world.night(1)
    monkeypatch.setattr(nightly, "_now", lambda: "2016-11-02T01:00:00+00:00")
    second = world.night(2).night
    assert (second.champion, second.started_at[:4], second.state) == ("1", "2016", "registered")
    assert world.night(2).ran == ()


def test_the_plan_says_what_would_run_and_makes_nothing(world: World) -> None:
    """Before the first night there is not even a database."""
    lines, footing = nightly.plan_nights(world.config(), day_of(1))
    assert lines == ["night 2026-11-01  full  there is no champion to start from"]
    assert (footing.day, footing.bases, list(world.output.parent.iterdir())) == (day_of(1), {}, [])
    world.night(1)
    assert nightly.plan_nights(world.config(), day_of(1))[0] == ["night 2026-11-01 registered, version 1: by the test"]
    lines, _ = nightly.plan_nights(world.config(max_catch_up=1), day_of(4))
    assert [line.split()[2] for line in lines] == ["skip", "full", "run"]  # the registry of this test is no database


def test_the_status_names_the_last_night_and_what_is_to_be_taken_up(world: World) -> None:
    journal = Journal(world.output, "shop")
    assert status_lines(night_status(journal)) == []
    world.night(1)
    assert status_lines(night_status(journal)) == ["night       2026-11-01 registered, version 1: by the test"]

    def stops(day: date, step: str) -> None:
        if step == "train":
            raise Stopped(15)

    world.failing = stops
    with pytest.raises(Stopped):
        world.night(2)
    found = night_status(journal)
    assert found["unfinished_nights"] == ["2026-11-02"]
    assert status_lines(found)[0].startswith("night       2026-11-02 stopped: stopped by SIGTERM")
    assert status_lines(found)[1] == "unfinished  2026-11-02: the next `recsys run --as-of` takes them up"


def test_a_damaged_journal_is_named(world: World) -> None:
    world.night(1)
    path = Journal(world.output, "shop").path_of(day_of(1))
    path.write_text("{}")
    with pytest.raises(ArtifactError, match=r"nights/2026-11-01.json' is no night of the journal"):
        world.night(2)
    (said,) = status_lines(night_status(Journal(world.output, "shop")))  # who only asks sees the rest
    assert said.startswith("night       unknown: ")
    assert "is no night of the journal" in said
