"""Which days a call has to run: the day asked for, and those before it that were missed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from pipelines.nightly.journal import Night
from recsys.contracts.errors import ConfigError

LONGEST_GAP: Final = 366
"""Days after the last finished night within which a folder goes on; more is taken for a slip of the pen."""


@dataclass(frozen=True)
class Days:
    """What to do with the days up to the one asked for, each in order.

    Attributes:
        skipped: Missed too long ago, or begun and never ended: written down and left, as soon as a later day is done.
        run: To be run; empty where the day asked for is done.
    """

    skipped: tuple[date, ...] = ()
    run: tuple[date, ...] = ()


def days_to_run(asked: date, nights: list[Night], max_catch_up: int) -> Days:
    """Decide on the days.

    Nothing before the first finished night is caught up: until then there is nothing that a missed night could have changed.
    One that was begun there and did not end is skipped, since it never runs again.

    Args:
        asked: The last day.
        nights: The journal, in the order of days.
        max_catch_up: So many missed days run before the one asked for, the newest ones.

    Raises:
        ConfigError: A later day is finished already, or the last finished one is more than a year before.

    Example:
        >>> done = [Night(model="shop", day=date(2026, 11, 1), state="registered")]
        >>> days = days_to_run(date(2026, 11, 5), done, 2)
        >>> [[day.day for day in some] for some in (days.skipped, days.run)]
        [[2], [3, 4, 5]]
    """
    finished = [night for night in nights if night.finished]
    if any(night.day == asked for night in finished):
        return Days()
    if not finished:
        return Days(tuple(night.day for night in nights if night.day < asked), (asked,))
    last = finished[-1]
    if asked < last.day:
        raise ConfigError(
            f"the night of {asked} comes before the last finished one, {last.day}, whose data hold that day already; run a "
            f"later day, or give another output_dir to look back (`features.as_of={asked}` prepares that day there); if "
            f"{last.day} was a slip of the pen, move its file out of the folder of nights"
        )
    if (asked - last.day).days > LONGEST_GAP:
        raise ConfigError(
            f"the night of {asked} comes {(asked - last.day).days} days after the last finished one, {last.day}, expected "
            f"at most {LONGEST_GAP}: check the year; to begin anew after so long, give another output_dir"
        )
    missed = [last.day + timedelta(days=number) for number in range(1, (asked - last.day).days)]
    cut = max(0, len(missed) - max_catch_up)
    never = [night.day for night in nights if night.day < last.day and not night.finished]
    return Days((*never, *missed[:cut]), (*missed[cut:], asked))
