"""How nights follow one another."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from recsys.config import FrozenConfig

WARM_KEYS: Final = (
    "epochs",
    "minutes",
    "learning_rate_share",
    "warmup_share",
    "rows",
    "recent_days",
    "sample",
)
"""Keys that a policy depends on when it goes on from an earlier one."""


class NightsConfig(FrozenConfig):
    """What a night (`recsys run --as-of DATE`) starts from, what it may cost, and what happens to missed ones.

    Attributes:
        warm_start: Start from the champion: new items get IDs of the generation there is, and the policy goes on from the
            champion's weights. Without it every night is a full one, from nothing.
        epochs: Passes over the training rows of a warm night; early stopping is that of ``train``.
        minutes: Training time of a warm night, instead of ``epochs`` where it is reached first. A night with it can be taken
            up after a kill like any other; how many steps it makes depends on the machine, so that another machine gets
            another policy under the same digest.
        learning_rate_share: Peak of a warm night's learning rates, as a share of those of ``train``.
        warmup_share: Share of a warm night's steps in which the rate rises.
        rows: Training rows of a warm night: ``all``, or ``recent``: those that ask for events of the last ``recent_days``
            days, and ``sample`` of the older ones.
        recent_days: Days before the end of the night's day that count as recent.
        sample: Share of the older rows that ``recent`` keeps, drawn anew every night.
        full_every: A full night, with new item vectors, a new generation of IDs and all epochs of ``train``, after so many
            nights; ``None``: only where something asks for it.
        full_start: What the policy of such a night starts from: the ``champion``, because the new codes are named after the
            old ones, or ``nothing``.
        full_wait: Nights after a full one before a used-up generation (``tokenize.refit``) may ask for the next; the
            schedule, and what does not fit at all, do not wait.
        append: Read only the files that came since the last night, where that gives the same data.
        on_empty_day: A day without a usable event: ``fail`` ends with exit code 3, because its file is likely late, and the
            next night catches up; ``skip`` writes that down, changes nothing, and ends with 0.
        max_catch_up: Missed nights that are caught up, the newest ones; the nights before them are skipped, and their events
            are seen by those that run.
        keep_nights: Nights whose artefacts are kept.
        clean: Delete after every call what `recsys clean` would; where that cannot be done, the night stands and a warning
            says why.
    """

    warm_start: bool = True
    epochs: int = Field(default=2, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    learning_rate_share: float = Field(default=0.5, gt=0, le=1)
    warmup_share: float = Field(default=0.02, ge=0, le=1)
    rows: Literal["all", "recent"] = "all"
    recent_days: int = Field(default=7, ge=1)
    sample: float = Field(default=0.2, ge=0, le=1)
    full_every: int | None = Field(default=28, ge=1)
    full_start: Literal["champion", "nothing"] = "champion"
    full_wait: int = Field(default=7, ge=0)
    append: bool = True
    on_empty_day: Literal["fail", "skip"] = "fail"
    max_catch_up: int = Field(default=3, ge=0)
    keep_nights: int = Field(default=14, ge=1)
    clean: bool = False
