"""The nights of the month, one after the other: what happens to each, the commands that are called, what is found after.

Everything is done by the command line, as a scheduler would; what is measured (lists, disk, IDs) is read from the files.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

from recsys.contracts.manifest import read_json
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks.month import lists
from tests.benchmarks.month.commands import Ended, all_of, knows, recsys
from tests.benchmarks.month.lists import Worth
from tests.benchmarks.month.world import Log, Size, recipe, write_recipe

Event = Literal["", "missed", "broken", "SIGTERM", "rollback", "outage"]
MONTH: Final[dict[int, Event]] = {8: "missed", 12: "broken", 16: "SIGTERM", 20: "rollback", 24: "outage"}
"""What happens on which night."""
CLEAN_EVERY: Final = 5
"""`recsys clean` is called every so many nights."""
SHORT: Final[dict[int, Event]] = {2: "missed", 3: "broken", 4: "SIGTERM"}
TRAINS: Final = "training: "
"""How the log begins that training has begun."""
NOBODY: Final = ("tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=0.2")
"""A tracking server that does not answer."""


@dataclass
class NightFound:
    """One night and what was found after it.

    Attributes:
        number: From 1.
        day: The day that was run.
        event: What happened to it.
        commands: In order; empty for a missed night.
        journal: Its entry, read when all nights were over, so that a night that was caught up has one too.
        champion: Version that serves after the night.
        before_rollback: Version that served before somebody went back.
        disk: Bytes in the output folder.
        log_bytes: Bytes in the log.
        worths: Utility per user, by arm.
        ndcg: NDCG@10 of the night's own model on its test rows.
    """

    number: int
    day: date
    event: Event = ""
    commands: list[Ended] = field(default_factory=list)
    journal: dict[str, Any] = field(default_factory=dict)
    champion: str | None = None
    before_rollback: str | None = None
    disk: int = 0
    log_bytes: int = 0
    worths: dict[str, Worth] = field(default_factory=dict)
    ndcg: float | None = None

    @property
    def runs(self) -> list[Ended]:
        """Calls of `recsys run`."""
        return all_of(self.commands, "run")


@dataclass(frozen=True)
class FromNothing:
    """A retrain of one night from nothing, in a folder of its own."""

    ended: Ended
    worth: Worth
    ndcg: float | None


@dataclass
class Month:
    """Nights that were run.

    Attributes:
        output_dir: Of the nights.
        nights: In order.
        from_nothing: Retrains, by number of the night.
        moved: Items whose ID changed inside a generation, by night.
        items: Items that have an ID after each night.
        generations: Of the semantic IDs after each night.
        cleans: The folder was cleaned now and then.
    """

    output_dir: Path
    nights: list[NightFound] = field(default_factory=list)
    from_nothing: dict[int, FromNothing] = field(default_factory=dict)
    moved: dict[int, int] = field(default_factory=dict)
    items: dict[int, int] = field(default_factory=dict)
    generations: dict[int, str] = field(default_factory=dict)
    cleans: bool = False


def run_month(folder: Path, size: Size, events: dict[int, Event], minutes: float = float("inf")) -> Month:
    """Run the nights.

    Args:
        folder: Empty; everything lies below it.
        events: What happens on which night.
        minutes: No night is begun after so many.
    """
    started = time.monotonic()
    log = Log.begin(folder / "log", size)
    values = recipe(size, log.folder, folder / "run")
    written = write_recipe(folder / "month.yaml", values)
    month = Month(folder / "run", cleans=knows("clean"))
    frozen = folder / "frozen"
    known: dict[str, dict[int, tuple[int, ...]]] = {}
    later: dict[int, Future[FromNothing]] = {}
    with ThreadPoolExecutor(1) as beside:
        for number in range(1, size.nights + 1):
            if time.monotonic() - started > 60 * minutes:
                break
            day = log.next_day()
            night = NightFound(number, day, events.get(number, ""))
            month.nights.append(night)
            if night.event == "missed":
                print(f"night {number:2} {day}: nobody calls", flush=True)
                continue
            if size.compare_every and number % size.compare_every == 0:
                later[number] = beside.submit(
                    _from_nothing, folder / f"cold-{number}", size, log, day, _copy(folder, log, number)
                )
            _call(night, log, written, month)
            _look(month, night, log, frozen, known, compare=number in later)
            print(_line(night), flush=True)
        for number, result in later.items():
            month.from_nothing[number] = result.result()
    for night in month.nights:
        path = month.output_dir / "nights" / f"{night.day}.json"
        night.journal = read_json(path) if path.exists() else {}
    return month


def _copy(folder: Path, log: Log, number: int) -> tuple[Path, Any]:
    """The log and the world as they are tonight, for a retrain that may take longer than the night."""
    return log.copy_to(folder / f"cold-{number}" / "log"), log.world_now()


def _call(night: NightFound, log: Log, written: Path, month: Month) -> None:
    """What the scheduler calls, and what goes wrong meanwhile."""
    output_dir = month.output_dir
    config = ("--config", str(written))
    run = ("run", *config, "--as-of", str(night.day), "--progress", "off", "--log-format", "json")
    if night.event == "broken":
        good = log.damage(night.day)
        night.commands.append(recsys(*run))
        log.mend(night.day, good)
    if night.event == "SIGTERM":
        night.commands.append(recsys(*run, stop_at=TRAINS))
    if night.event == "outage":
        night.commands.append(recsys(*run, *NOBODY))
    night.commands.append(recsys(*run))
    if night.event == "rollback":
        night.before_rollback = _latest(output_dir).get("champion")
        night.commands += [
            recsys("rollback", *config),
            recsys("recommend", *config),
            recsys("status", *config, "--json"),
        ]
    if month.cleans and night.number % CLEAN_EVERY == 0:
        night.commands.append(recsys("clean", *config))
    night.champion = _latest(output_dir).get("champion")


def _look(
    month: Month,
    night: NightFound,
    log: Log,
    frozen: Path,
    known: dict[str, dict[int, tuple[int, ...]]],
    *,
    compare: bool,
) -> None:
    """Measure what a night has left.

    Args:
        compare: Its own version is held against a retrain, so that its lists are wanted, whatever the gate said.
    """
    night.disk, night.log_bytes = _bytes(month.output_dir), _bytes(log.folder)
    summary = _summary(month.output_dir, night.runs[-1])
    places = {stage["stage"]: Path(stage["path"]) for stage in summary.get("stages", [])}
    if not {"prepare", "tokenize", "export"} <= places.keys():
        return
    night.ndcg = _ndcg(summary)
    _compare_ids(month, night.number, places["tokenize"], known)
    if not frozen.exists():
        shutil.copytree(places["export"], frozen)
    served = Path(_latest(month.output_dir, "candidates")["candidates"]["path"])
    night.worths = {
        "served": lists.worth(log.world, lists.candidates(served)),
        "frozen": lists.worth(log.world, lists.answers(frozen, places["prepare"])),
    }
    if compare or night.number == 1:
        night.worths["own"] = lists.worth(log.world, lists.answers(places["export"], places["prepare"]))
    night.worths["attainable"] = lists.attainable(log.world, night.worths["served"].users)


def _summary(output_dir: Path, run: Ended) -> dict[str, Any]:
    """The summary of the last `recsys run`, whatever was called after it."""
    day = run.arguments[run.arguments.index("--as-of") + 1]
    path = output_dir / "summaries" / f"{day}.json"
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    return found


def _latest(output_dir: Path, of: str = "champion") -> dict[str, Any]:
    """The newest summary that tells of something: a command tells of what it came to."""
    found = [read_json(path) for path in (output_dir / "summaries").glob("*.json") if path.name != "latest.json"]
    telling: list[dict[str, Any]] = [one for one in found if one.get(of)]
    return max(telling, key=lambda one: str(one["ended_at"]), default={})


def _ndcg(summary: dict[str, Any]) -> float | None:
    return next((one["value"] for one in summary.get("figures", []) if one["metric"] == "ndcg@10"), None)


def _compare_ids(month: Month, number: int, folder: Path, known: dict[str, dict[int, tuple[int, ...]]]) -> None:
    """Hold tonight's IDs against all that were published in their generation."""
    ids = SemanticIds.load(folder)
    published = known.setdefault(ids.generation, {})
    tonight = dict(zip(ids.item_ids.to_list(), map(tuple, ids.codes.tolist()), strict=True))
    month.moved[number] = sum(published.get(item, codes) != codes for item, codes in tonight.items())
    taken = {codes: item for item, codes in published.items()}
    month.moved[number] += sum(taken.get(codes, item) != item for item, codes in tonight.items())
    published.update(tonight)
    month.items[number], month.generations[number] = len(tonight), ids.generation


def _from_nothing(folder: Path, size: Size, log: Log, day: date, copied: tuple[Path, Any]) -> FromNothing:
    """Train on the same log without any earlier result, and measure what that recommends."""
    source, world = copied
    written = write_recipe(folder / "cold.yaml", recipe(size, source, folder / "run"))
    ended = recsys(
        "run", "--config", str(written), f"features.as_of={day}", "--progress", "off", "--log-format", "json"
    )
    if ended.code:
        raise RuntimeError(f"the retrain of {day} ended with {ended.code}: {ended.said[-1:]}")
    summary = read_json(folder / "run" / "summaries" / "latest.json")
    found = FromNothing(
        ended, lists.worth(world, lists.candidates(Path(summary["candidates"]["path"]))), _ndcg(summary)
    )
    shutil.rmtree(folder)
    return found


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _line(night: NightFound) -> str:
    codes = ", ".join(f"{ended.arguments[0]} {ended.code}" for ended in night.commands)
    worths = ", ".join(f"{name} {one.mean:.3f}" for name, one in night.worths.items())
    cpu = sum(ended.cpu for ended in night.runs)
    return (
        f"night {night.number:2} {night.day} {night.event:8} [{codes}] {cpu:.1f} s, champion {night.champion}; {worths}"
    )
