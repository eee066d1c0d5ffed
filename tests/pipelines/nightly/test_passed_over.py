"""Days that are passed over: only when a later day is done, and none that is still to come."""

from __future__ import annotations

import os
import socket
from datetime import date

import pytest

from pipelines.nightly.journal import Journal, Night, night_status, status_lines
from recsys.contracts.errors import ArtifactError, DataError
from serving.registry.masking import remember
from tests.toy.fake_nights import World
from tests.toy.nights import day_of


def of_day(world: World, number: int) -> Night:
    found = Journal(world.output, "shop").of(day_of(number))
    assert found is not None
    return found


class Killed(BaseException):
    """As SIGKILL: nobody answers it."""


def test_a_date_that_was_a_slip_passes_over_no_day(world: World) -> None:
    """December for November: nothing is there of it, it fails, and the days in between run when they come."""
    world.night(1)
    world.empty = {day_of(number) for number in range(28, 32)}
    with pytest.raises(DataError, match="no usable event is of 2026-11-28"):
        world.night(31)
    assert [(night.day, night.state) for night in world.journal()] == [
        (day_of(1), "registered"),
        (day_of(28), "failed"),
    ]
    assert world.night(2).ran == (day_of(2),)


def test_a_day_to_come_is_never_skipped_for_want_of_events(world: World) -> None:
    """Nor would the days before it ever run again."""
    world.night(1)
    world.empty = {day_of(number) for number in range(2, 40)}
    skips = world.config(on_empty_day="skip", max_catch_up=0)
    with pytest.raises(DataError, match="2026-12-01 is not over by this machine's clock: check the date, or the clock"):
        world.night(31, skips)
    assert [night.state for night in world.journal()] == ["registered", "failed"]
    assert world.night(30, skips).night.state == "skipped"
    assert [night.state for night in world.journal()] == ["registered"] + ["skipped"] * 29 + ["failed"]


@pytest.mark.parametrize("write", range(6))
def test_killed_while_days_are_passed_over_the_next_call_ends_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    world.night(1)
    real, calls = Journal.write, iter(range(100))

    def writing(self: Journal, night: Night) -> None:
        if night.state == "skipped" and next(calls) == write:
            raise Killed
        real(self, night)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", writing)
        try:
            world.night(9, world.config(max_catch_up=1))
        except Killed:
            assert of_day(world, 8).state == "running"
    world.night(9, world.config(max_catch_up=1))
    assert [night.state for night in world.journal()] == ["registered"] + ["skipped"] * 6 + ["registered"] * 2


def test_a_first_night_that_never_ended_is_passed_over_by_a_later_one(world: World) -> None:
    """It cannot run any more, so that nobody is told to wait for it."""
    world.empty = {day_of(1)}
    with pytest.raises(DataError):
        world.night(1)
    assert world.night(3).ran == (day_of(3),)
    first = of_day(world, 1)
    assert (first.state, first.exit_code, first.attempts) == ("skipped", 0, 1)
    assert first.reason.startswith("never ended (failed: no usable event is of 2026-11-01")
    assert first.reason.endswith("and 2026-11-03 was run after it")
    assert night_status(Journal(world.output, "shop"))["unfinished_nights"] == []


def test_an_entry_that_was_left_unfinished_behind_others_is_passed_over_too(world: World) -> None:
    """As journals of earlier versions have them."""
    journal = Journal(world.output, "shop")
    journal.write(Night(model="shop", day=day_of(1), state="running", attempts=1))
    journal.write(Night(model="shop", day=day_of(2), state="registered"))
    world.night(3)
    assert [night.state for night in world.journal()] == ["skipped", "registered", "registered"]
    assert of_day(world, 1).reason == "never ended (running: killed), and 2026-11-03 was run after it"


def test_no_secret_stands_in_the_journal(world: World) -> None:
    """A library puts the URI into its own error."""
    remember("https://ann:jo0rnal-pw@host", {})

    def fails(day: date, step: str) -> None:
        raise (ArtifactError if day == day_of(1) else RuntimeError)("no answer of https://ann:jo0rnal-pw@host")

    world.failing = fails
    for number, error in ((1, ArtifactError), (2, RuntimeError)):
        with pytest.raises(error):
            world.night(number)
        assert "no answer of https://***@host" in of_day(world, number).reason


def test_the_status_tells_a_night_at_work_from_one_that_was_killed(world: World) -> None:
    """The lock's text names a process of this machine; a dead one has left it, and holds nothing."""
    journal = Journal(world.output, "shop")
    said: list[dict[str, object]] = []

    def looks(day: date, step: str) -> None:
        if step == "train":
            said.append(night_status(journal))

    world.failing = looks
    world.night(1)
    assert str(said[0]["at_work"]).startswith(f"process {os.getpid()} on {socket.gethostname()}, since ")
    assert said[0]["unfinished_nights"] == []
    assert [line.split()[:2] for line in status_lines(said[0])] == [["at", "work"], ["night", "2026-11-01"]]
    assert night_status(journal)["at_work"] is None
    journal.write(Night(model="shop", day=day_of(2), state="running", attempts=1))
    for left in (f'{{"pid": {2**22 + 1}, "host": "{socket.gethostname()}", "started": "x"}}', '{"pid": 1}', "torn"):
        (world.output / ".lock").write_text(left)
        found = night_status(journal)
        assert (found["at_work"], found["unfinished_nights"]) == (None, ["2026-11-02"])
    (world.output / ".lock").write_text('{"pid": 7, "host": "elsewhere", "started": "2026-11-02T01:00:00Z"}')
    assert night_status(journal)["at_work"] == "process 7 on elsewhere, since 2026-11-02T01:00:00Z"


def test_a_night_whose_champion_lost_its_alias_does_not_begin(world: World) -> None:
    """It trained from nothing, all epochs, until the gate refused to decide."""
    world.night(1)
    made = sorted(world.output.glob("artifacts/*/*"))
    world.champion = None
    with pytest.raises(ArtifactError, match=r"the alias was deleted, .* put it back with `recsys rollback --to 1`"):
        world.night(2)
    assert (of_day(world, 2).state, of_day(world, 2).exit_code) == ("failed", 4)
    assert sorted(world.output.glob("artifacts/*/*")) == made
    world.champion = "1"
    assert (world.night(2).night.kind, len(world.versions)) == ("warm", 2)
