"""A reproduction pack: which recipe, which bytes, which seeds, what is expected, and what others published.

Reads ``packs/*.yaml``; produces frozen :class:`Pack` objects, whose published rows have been checked for contradictions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, model_validator

from pipelines.reproduction.arithmetic import impossible_cells
from recsys.config import FrozenConfig, read_recipe, validate
from recsys.contracts.errors import ConfigError

PACKS: Final = Path(__file__).parent / "packs"
RECIPES: Final = Path(__file__).resolve().parents[1] / "recipes"

Filter = Literal["filtered", "kept", "unknown"]
"""Whether items of the history were left out of the lists, and whether that is known."""


class DataFiles(FrozenConfig):
    """The files a pack was made for.

    Attributes:
        folder: Their folder below ``$RECSYS_DATA``.
        sha256: Hash of every file that the recipe reads.
    """

    folder: str
    sha256: dict[str, str] = Field(min_length=1)


class PublishedRow(FrozenConfig):
    """A row of a published table, as it was printed.

    Attributes:
        method: As the table calls it.
        source: Paper or repository.
        values: ``{metric@k: value}``, the names being ours: a recall of rows with one target is a hit rate.
        seen: Whether items of the history were filtered.
        by: Whether a hit is an item, or a semantic ID that several items may share.
        note: What a reader has to know to compare.
        doubtful: Metrics that contradict the others of the row, and are shown in brackets.
    """

    method: str
    source: str
    values: dict[str, float] = Field(min_length=1)
    seen: Filter = "unknown"
    by: Literal["item", "id"] = "item"
    note: str = ""
    doubtful: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_be(self) -> PublishedRow:
        sound = {name: value for name, value in self.values.items() if name not in self.doubtful}
        wrong = impossible_cells(sound)
        if wrong:
            raise ValueError(
                f"row '{self.method}' contradicts itself: {'; '.join(wrong)}; correct the figure, or name it in `doubtful` "
                "if it was printed so"
            )
        return self


class Expected(FrozenConfig):
    """Where a figure of ours has to lie, as the mean over the pack's seeds.

    Attributes:
        system: Row of the evaluation's table.
        metric: Such as ``ndcg@10`` or ``ndcg_by_id@10``.
        seen: With the items of the history filtered, or kept.
        low, high: Bounds.
    """

    system: str
    metric: str
    seen: Literal["filtered", "kept"]
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Expected:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Pack(FrozenConfig):
    """One reproduction.

    Attributes:
        title: Heading of its table.
        recipe: File in ``pipelines/recipes`` that is run.
        overrides: ``key=value`` on top of the recipe.
        data: The files it was made for.
        seeds: Of the runs.
        metrics: Columns of the table.
        seen: Whether our figures are those with seen items filtered or kept; both where both are shown.
        protocol: What is comparable and what is not, a sentence each.
        expected: Bounds of our figures.
        published: Rows of others.
    """

    title: str
    recipe: str
    overrides: tuple[str, ...] = ()
    data: DataFiles
    seeds: tuple[int, ...] = Field(min_length=1)
    metrics: tuple[str, ...] = Field(min_length=1)
    seen: tuple[Literal["filtered", "kept"], ...] = ("filtered", "kept")
    protocol: tuple[str, ...] = ()
    expected: tuple[Expected, ...] = ()
    published: tuple[PublishedRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _bounds_are_shown(self) -> Pack:
        for bound in self.expected:
            if bound.metric not in self.metrics or bound.seen not in self.seen:
                raise ValueError(
                    f"expected {bound.system} {bound.metric} ({bound.seen}) is no figure of the table; name "
                    "it in metrics and seen"
                )
        return self

    @property
    def recipe_path(self) -> Path:
        """The recipe's file."""
        return RECIPES / self.recipe


def pack_names() -> list[str]:
    """Return the names of all packs."""
    return sorted(path.stem for path in PACKS.glob("*.yaml"))


def read_pack(name: str) -> Pack:
    """Read one pack.

    Raises:
        ConfigError: There is none of this name, or its file is wrong.

    Example:
        >>> read_pack("tiger_beauty").recipe
        'beauty.yaml'
    """
    path = PACKS / f"{name}.yaml"
    if name not in pack_names():
        raise ConfigError(
            f"there is no reproduction pack '{name}'; there are {', '.join(pack_names())} "
            "(`recsys reproduce` without a name says what each is)"
        )
    recipe = read_recipe(path)
    return validate(Pack, recipe.values, str(path), recipe)
