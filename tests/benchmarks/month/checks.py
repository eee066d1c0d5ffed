"""What has to hold of a month, each as a question with an answer in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from pipelines.engine.lock import run_lock
from recsys.contracts.errors import RunLocked
from tests.benchmarks.month.commands import Ended, all_of
from tests.benchmarks.month.lists import paired
from tests.benchmarks.month.nights import Month, NightFound

FINISHED: Final = ("registered", "refused")
CHEAP: Final = 0.25
"""What a warm night may cost of one from nothing."""


@dataclass(frozen=True)
class Check:
    """A question, whether it was answered yes, and what was found."""

    question: str
    passed: bool
    found: str


def checks(month: Month) -> list[Check]:
    """Ask everything that can be asked of this month."""
    found = [
        _every_night_ends(month),
        *(check for night in month.nights for check in _event(month, night)),
        _ids(month),
        _journal(month),
        _no_lock(month),
    ]
    if month.cleans and len(month.nights) > 2 * KEPT:
        found.append(_disk(month))
    if month.from_nothing:
        found += [_cost(month), _quality(month)]
    return found


KEPT: Final = 7


def _every_night_ends(month: Month) -> Check:
    wrong = [
        f"night {night.number}: {night.journal.get('state', 'not in the journal')}, exit codes "
        f"{[ended.code for ended in night.runs]}"
        for night in month.nights
        if night.journal.get("state") not in FINISHED
        or not night.journal.get("reason")
        or (night.runs and night.runs[-1].code != 0)
    ]
    states = [str(night.journal.get("state")) for night in month.nights]
    counted = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    return Check(
        "every night ends registered or refused, with a reason and exit code 0", not wrong, "; ".join(wrong) or counted
    )


def _event(month: Month, night: NightFound) -> Iterator[Check]:
    codes = [ended.code for ended in night.runs]
    where = f"night {night.number}: "
    if night.event == "missed":
        after = next((one for one in month.nights if one.number > night.number and one.runs), None)
        state = night.journal.get("state")
        by = f"caught up by the run of night {after.number}" if after else "no later run"
        yield Check(f"{where}a missed night is caught up", state in FINISHED, f"{state}, {by}")
    if night.event == "broken":
        words = _words(month, night.runs[0])
        yield Check(f"{where}broken data end with 3, mended ones with 0", codes == [3, 0], f"{codes}: {words}")
    if night.event == "SIGTERM":
        words = _words(month, night.runs[0])
        yield Check(f"{where}SIGTERM in training ends with 143 and is taken up", codes == [143, 0], f"{codes}: {words}")
    if night.event == "outage":
        words = _words(month, night.runs[0])
        yield Check(
            f"{where}an MLflow that is away ends with 4, or waits", codes in ([4, 0], [0, 0]), f"{codes}: {words}"
        )
    if night.event == "rollback":
        yield from _rollback(month, night)


def _rollback(month: Month, night: NightFound) -> Iterator[Check]:
    (done,) = all_of(night.commands, "rollback")
    wrote = all_of(night.commands, "recommend")[0].code
    said = json.loads(all_of(night.commands, "status")[0].printed)["champion"]
    went = (done.code, wrote) == (0, 0) and said == night.champion != night.before_rollback
    words = f"exit codes {done.code} and {wrote}; `status` says version {said} after {night.before_rollback}"
    yield Check(f"night {night.number}: rollback changes what serves", went, words)
    after = [one.champion for one in month.nights if one.number > night.number]
    back = night.before_rollback in after
    yield Check(
        f"night {night.number}: the version that was left does not come back",
        not back,
        f"version {night.before_rollback} left for {night.champion}; later champions {sorted(set(map(str, after)), key=int)}"
        if after
        else "no later night",
    )


def _ids(month: Month) -> Check:
    moved, generations = sum(month.moved.values()), len(set(month.generations.values()))
    first, last = min(month.items), max(month.items)
    words = f"{moved} moved; {month.items[first]} items after night {first}, {month.items[last]} after night {last}"
    return Check("no published ID moves inside a generation", moved == 0, f"{words}, {generations} generation(s)")


def _journal(month: Month) -> Check:
    first, last = month.nights[0].day, month.nights[-1].day
    found = sorted(path.stem for path in (month.output_dir / "nights").glob("[0-9]*.json"))
    days = [day for day in found if day <= str(last)]
    expected = [str(first + timedelta(days=number)) for number in range(len(month.nights))]
    return Check("the journal has every night once", days == expected, f"{len(days)} of {len(expected)}")


def _no_lock(month: Month) -> Check:
    try:
        with run_lock(month.output_dir):
            return Check("no lock is left", True, "the next run gets it")
    except RunLocked as held:
        return Check("no lock is left", False, str(held))


def _disk(month: Month) -> Check:
    """Once retention drops a night for each that comes, the folder may only grow as its log does."""
    sizes = {night.number: night.disk for night in month.nights if night.disk}
    settled = [size for number, size in sizes.items() if KEPT < number <= 2 * KEPT]
    logs = {night.number: night.log_bytes for night in month.nights}
    last = max(sizes)
    allowed = 1.1 * max(settled) * logs[last] / logs[2 * KEPT]
    words = f"{max(settled) / 1e6:.0f} MB after two weeks, {sizes[last] / 1e6:.0f} MB after night {last}, the log meanwhile "
    return Check("disk is bounded", sizes[last] <= allowed, words + f"{logs[last] / logs[2 * KEPT]:.2f} times as long")


def costs(month: Month) -> tuple[float, float]:
    """Processor seconds of undisturbed warm nights and of retrains, means over the same nights."""
    pairs = [
        (night.runs[0].cpu, month.from_nothing[night.number].ended.cpu)
        for night in month.nights
        if night.number in month.from_nothing and len(night.runs) == 1
    ]
    return sum(warm for warm, _ in pairs) / len(pairs), sum(cold for _, cold in pairs) / len(pairs)


def _cost(month: Month) -> Check:
    warm, cold = costs(month)
    words = f"{warm:.1f} against {cold:.1f} processor seconds: {warm / cold:.2f}"
    return Check("a warm night costs at most a quarter of one from nothing", warm <= CHEAP * cold, words)


def quality(month: Month, arm: str) -> tuple[float, float, float]:
    """Utility of an arm of the nights against retrains of the same nights: share, and its interval."""
    nights = {night.number: night for night in month.nights}
    pairs = [(nights[number].worths[arm], one.worth) for number, one in month.from_nothing.items()]
    return paired(pairs)


def _quality(month: Month) -> Check:
    share, low, high = quality(month, "own")
    words = f"{share:+.1%} [{low:+.1%}, {high:+.1%}] true utility, paired by user over {len(month.from_nothing)} nights"
    return Check("warm nights recommend as well as retrains or better", high >= 0, words)


def _words(month: Month, ended: Ended) -> str:
    """The last message, without the place where the month was run."""
    words = " ".join(ended.said[-1].split()) if ended.said else "nothing said"
    return words.replace(str(month.output_dir.parent.absolute()) + "/", "")[:140]
