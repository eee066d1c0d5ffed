"""Tonight's data against what the champion was made from: every difference at once, in words.

Reads two :class:`~features.audit.contract.DataContract`; produces :class:`Change` objects. A type of id that flips, a signal
that moves to another bit or a catalogue that was replaced gives a model that answers fluently and wrongly, so such a change
stops the run before anything is trained. Who means it says so in ``changes.accept``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import Field

from features.audit.contract import DataContract, Sample
from features.audit.sketch import shared_share
from recsys.config import FrozenConfig

ChangeKind = Literal[
    "user_id_type",
    "item_id_type",
    "task",
    "signals",
    "signal_gone",
    "signal_rates",
    "sessions",
    "timestamps",
    "times",
    "watch_unit",
    "users",
    "items",
    "categories",
    "authors",
    "volume",
]

RATE_FACTOR: Final = 5.0
"""A signal whose odds change by more than this from one night to the next is named, as a warning."""

UNIT_FACTOR: Final = 50.0
"""Between seconds and milliseconds, or seconds and minutes, lie 1000 and 60; medians of real nights lie nearer."""

MICROSECONDS_A_DAY: Final = 86_400_000_000


class ChangesConfig(FrozenConfig):
    """What may differ from the data that the champion was made from, or the last accepted data of this output folder.

    Attributes:
        accept: Kinds of change that are meant: ``user_id_type``, ``item_id_type``, ``task``, ``signals`` (names or order),
            ``signal_gone`` (false everywhere now), ``sessions`` (how they are cut), ``timestamps`` (lost or new), ``times``
            (the log lies in another time), ``watch_unit``, ``users``, ``items``, ``categories``, ``authors`` (too few are
            known), ``volume``, ``signal_rates``. Take a kind out again once the change is made.
        least_known_users: Share of the users, of the smaller of both nights, that the other one has too.
        least_known_items: The same for items.
        least_known_categories: The same for categories, and for authors.
        least_volume: Events of tonight as a share of the events before.
        on_small_volume: ``warn`` or ``stop`` below that.
    """

    accept: tuple[ChangeKind, ...] = ()
    least_known_users: float = Field(0.5, ge=0.0, le=1.0)
    least_known_items: float = Field(0.5, ge=0.0, le=1.0)
    least_known_categories: float = Field(0.5, ge=0.0, le=1.0)
    least_volume: float = Field(0.2, ge=0.0, le=1.0)
    on_small_volume: Literal["warn", "stop"] = "warn"


@dataclass(frozen=True)
class Change:
    """One difference between two nights.

    Attributes:
        kind: What ``changes.accept`` calls it.
        words: What was, and what is.
        stops: It ends the run unless it is accepted.
    """

    kind: ChangeKind
    words: str
    stops: bool = True


def compare(before: DataContract, now: DataContract, config: ChangesConfig) -> list[Change]:
    """Return every difference that matters, those that stop a run first."""
    found: list[Change] = []
    for rule in _RULES:
        found += rule(before, now, config)
    return sorted(found, key=lambda change: not change.stops)


def refusals(changes: Sequence[Change], config: ChangesConfig) -> list[Change]:
    """Return the changes that stop the run: those that stop, less those that were accepted."""
    return [change for change in changes if change.stops and change.kind not in config.accept]


def _id_types(before: DataContract, now: DataContract, config: ChangesConfig) -> Iterator[Change]:
    types: tuple[tuple[str, ChangeKind, str, str, Sample, Sample], ...] = (
        ("user", "user_id_type", before.user_id_type, now.user_id_type, before.users, now.users),
        ("item", "item_id_type", before.item_id_type, now.item_id_type, before.items, now.items),
    )
    for name, kind, was, is_now, old, new in types:
        if was != is_now:
            yield Change(
                kind,
                f"{name} ids were {_a(was)} and are {_a(is_now)} now (their form was {_shapes(old)} and is {_shapes(new)}); "
                f"whoever asks the model with {_a(was)} gets no answer",
            )


def _task(before: DataContract, now: DataContract, config: ChangesConfig) -> Iterator[Change]:
    was, is_now = (before.task, before.session_length), (now.task, now.session_length)
    if was != is_now:
        yield Change("task", f"the task was {was[0]} of {was[1]} and is {is_now[0]} of {is_now[1]}")


def _signals(before: DataContract, now: DataContract, config: ChangesConfig) -> Iterator[Change]:
    if before.signals != now.signals:
        gone = [name for name in before.signals if name not in now.signals]
        new = [name for name in now.signals if name not in before.signals]
        said = f"the signals were {_list(before.signals)} and are {_list(now.signals)}"
        if gone or new:
            said += f" ({_list(gone)} gone, {_list(new)} new{': renamed?' if gone and new else ''})"
        else:
            said += ": the same in another order"
        yield Change("signals", f"{said}; a behaviour code in somebody's history now means something else")
    for name in now.signals:
        was, is_now = before.signal_rates.get(name), now.signal_rates.get(name)
        if was and not is_now:
            how = "is not known in any row" if is_now is None else "is false in every row"
            yield Change("signal_gone", f"signal '{name}' was given in {_percent(was)} of the events and {how} now")
        elif was and is_now and _odds_factor(was, is_now) > RATE_FACTOR:
            said = f"signal '{name}' was given in {_percent(was)} of the events and is in {_percent(is_now)} now"
            yield Change("signal_rates", said, stops=False)
    if _odds_factor(before.positive_share, now.positive_share) > RATE_FACTOR:
        said = f"{_percent(before.positive_share)} of the events were positive, {_percent(now.positive_share)} are now"
        yield Change("signal_rates", said, stops=False)


def _sessions(before: DataContract, now: DataContract, config: ChangesConfig) -> Iterator[Change]:
    if before.sessions_by and now.sessions_by and before.sessions_by != now.sessions_by:
        yield Change("sessions", f"sessions were cut by '{before.sessions_by}' and are by '{now.sessions_by}'")


def _times(before: DataContract, now: DataContract, config: ChangesConfig) -> Iterator[Change]:
    if before.has_timestamps != now.has_timestamps:
        was, is_now = ("had times", "have none") if before.has_timestamps else ("had no times", "have some")
        yield Change("timestamps", f"events {was} and {is_now} now")
        return
    if before.first_time is None or before.last_time is None or now.first_time is None or now.last_time is None:
        return
    window = f"events went from {_date(before.first_time)} to {_date(before.last_time)} and go from "
    window += f"{_date(now.first_time)} to {_date(now.last_time)} now"
    far = max(365 * MICROSECONDS_A_DAY, 10 * (before.last_time - before.first_time))
    if now.last_time < before.first_time:
        yield Change("times", f"{window}, all before the first one of then: an old export, or another unit or zone?")
    elif now.first_time > before.last_time + far:
        yield Change("times", f"{window}, long after the last one of then: another unit?")
    elif now.last_time < before.last_time:
        yield Change("times", f"{window}: the log ends earlier than the one before", stops=False)


def _watch_unit(before: DataContract, now: DataContract, config: ChangesConfig) -> Iterator[Change]:
    for name, was, is_now in (
        ("watch time", before.watch_time_ms, now.watch_time_ms),
        ("duration", before.duration_ms, now.duration_ms),
    ):
        if was and is_now and not 1 / UNIT_FACTOR < is_now / was < UNIT_FACTOR:
            yield Change("watch_unit", f"the median {name} was {was:,.0f} ms and is {is_now:,.0f} ms: another unit?")


def _known(before: DataContract, now: DataContract, config: ChangesConfig) -> Iterator[Change]:
    vocabularies: tuple[tuple[ChangeKind, Sample, Sample, str], ...] = (
        ("users", before.users, now.users, "least_known_users"),
        ("items", before.items, now.items, "least_known_items"),
        ("categories", before.categories, now.categories, "least_known_categories"),
        ("authors", before.authors, now.authors, "least_known_categories"),
    )
    for kind, old, new, key in vocabularies:
        limit = getattr(config, key)
        if old.count and not new.count:
            yield Change(kind, f"there were {old.count:,} {kind} and there are none now")
            continue
        share = shared_share(old.sketch, new.sketch)
        if share < limit:
            said = (
                f"of {old.count:,} {kind} then and {new.count:,} now only {_percent(share)} of the smaller number are "
            )
            said += f"in both, asked for are {_percent(limit)} (changes.{key}); "
            said += f"their form was {_shapes(old)} and is {_shapes(new)}"
            yield Change(kind, said)


def _volume(before: DataContract, now: DataContract, config: ChangesConfig) -> Iterator[Change]:
    if now.events < config.least_volume * before.events:
        share = _percent(now.events / before.events)
        said = f"there were {before.events:,} events and there are {now.events:,}, {share} of "
        said += f"them (changes.least_volume is {_percent(config.least_volume)})"
        yield Change("volume", said, stops=config.on_small_volume == "stop")


_RULES: Final[tuple[Callable[[DataContract, DataContract, ChangesConfig], Iterator[Change]], ...]] = (
    _id_types,
    _task,
    _signals,
    _sessions,
    _times,
    _watch_unit,
    _known,
    _volume,
)


def _odds_factor(was: float, is_now: float) -> float:
    """How many times the odds grew or fell; 1.0 where one of them is 0 or 1, which other rules name."""
    if not (0.0 < was < 1.0 and 0.0 < is_now < 1.0):
        return 1.0
    ratio = (was / (1 - was)) / (is_now / (1 - is_now))
    return max(ratio, 1 / ratio)


def _a(kind: str) -> str:
    return {"integer": "integers", "text": "text"}[kind]


def _shapes(sample: Sample) -> str:
    if not sample.shapes:
        return "nothing"
    return ", ".join(f"'{shape}' ({_percent(share)})" for shape, share in list(sample.shapes.items())[:2])


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(names) + "]"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.3%}"


def _date(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
