"""Four nights of the simulated month, by the driver that runs all thirty; and its arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.sources.simulated.catalogue import FIRST_ITEM_ID
from features.sources.simulated.days import DaysConfig, GrowingWorld
from features.sources.simulated.visits import FIRST_USER_ID
from tests.benchmarks.month.checks import checks
from tests.benchmarks.month.lists import Worth, paired, worth
from tests.benchmarks.month.nights import SHORT, run_month
from tests.benchmarks.month.page import command, write_page
from tests.benchmarks.month.world import Log, Size

SMALL = DaysConfig(users=150, items=120, topics=3, days=10, visits=0.5)
WORLD = DaysConfig(users=300, items=200, topics=5, days=12, visits=0.5)
UNASKED = {"promote": {"margin": 0.15, "budget": 0.25, "floor": "none"}}
"""Some fifty rows decide little; whether the nights are run as they should is the question here."""


@pytest.mark.slow
def test_a_missed_night_broken_data_and_a_stop(tmp_path: Path) -> None:
    """Everything that the page asks of a month holds of these nights; a page is written whose checks are all there."""
    size = Size(nights=4, before=8, world=WORLD, epochs=2, compare_every=0, recipe=UNASKED)
    month = run_month(tmp_path / "month", size, SHORT)
    found = checks(month)
    assert not [f"{check.question}: {check.found}" for check in found if not check.passed]
    assert [night.event for night in month.nights] == ["", "missed", "broken", "SIGTERM"]
    assert [[ended.code for ended in night.runs] for night in month.nights] == [[0], [], [3, 0], [143, 0]]
    assert len({night.journal["day"] for night in month.nights}) == 4
    assert month.items[4] > month.items[1]  # items came, and none lost its ID
    assert {"served", "frozen", "attainable"} <= month.nights[-1].worths.keys()
    text = write_page(month, size, found, 1.0, tmp_path)
    assert f"{len(found)} of {len(found)} hold." in text
    assert str(tmp_path) not in text
    assert (tmp_path / "month.svg").stat().st_size > 0


def test_the_page_says_what_runs_its_month_again() -> None:
    assert command(Size.of_seed(Size.world_seed, 30)) == "python -m tests.benchmarks.month"
    assert command(Size.of_seed(31, 4)) == "python -m tests.benchmarks.month --nights 4 --seed 31"


def test_a_list_is_worth_what_the_world_says() -> None:
    """Two users; one has two items in the other order than they stand in the table, the other a single one."""
    world = GrowingWorld(SMALL)
    world.next_day()
    rows = {"user_id": [1, 1, 0], "item_id": [5, 3, 7], "rank": [2, 1, 1]}
    table = pl.DataFrame(rows).with_columns(pl.col("user_id") + FIRST_USER_ID, pl.col("item_id") + FIRST_ITEM_ID)
    found = worth(world, table)
    assert found.users.tolist() == [FIRST_USER_ID, FIRST_USER_ID + 1]
    shown = np.array([[7, -1], [3, 5]])
    assert found.values == pytest.approx(world.true_utility(np.array([0, 1]), shown))


def test_arms_are_compared_by_user() -> None:
    """Night 1: users 1 and 2 in both arms, 2 + 4 against 1 + 3; night 2: user 2 alone, 6 against 4. (12 - 8) / 8 = +50 %."""
    nights = [
        (Worth(np.array([1, 2, 3]), np.array([2.0, 4.0, 99.0])), Worth(np.array([1, 2]), np.array([1.0, 3.0]))),
        (Worth(np.array([2]), np.array([6.0])), Worth(np.array([2, 9]), np.array([4.0, 99.0]))),
    ]
    share, low, high = paired(nights)
    assert share == pytest.approx(0.5)
    # a resample has user 1 twice (4 against 2), user 2 twice (20 against 14), or both
    assert (low, high) == (pytest.approx(20 / 14 - 1), pytest.approx(1.0))


def test_a_damaged_day_is_text_and_can_be_mended(tmp_path: Path) -> None:
    log = Log.begin(tmp_path, Size(before=2, world=SMALL))
    day = log.next_day()
    good = log.damage(day)
    broken = pl.read_parquet(log.path_of(day))
    assert broken["user_id"].dtype == pl.String
    assert broken["user_id"].str.starts_with("u").all()
    log.mend(day, good)
    assert pl.read_parquet(log.path_of(day)).equals(good)
    assert good["user_id"].dtype == pl.Int64
    assert len(list((tmp_path / "events").iterdir())) == 3
