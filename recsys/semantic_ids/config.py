"""How item embeddings become semantic IDs, and how large a codebook a catalogue can fill."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from recsys.config import FrozenConfig
from recsys.contracts.errors import DataError

ITEMS_PER_CODE: Final = 8
CODES_PER_ITEM: Final = 100


class RefitConfig(FrozenConfig):
    """When a generation is used up, and codebooks are to be fitted anew; ``None`` for no limit.

    The figures are in the report of `tokenize` (:mod:`recsys.semantic_ids.generations.growth`); they decide nothing about a
    version, and enter no digest.

    Attributes:
        max_fill: Share of all IDs that are taken.
        max_first_code_fill: The same below the first code that is used most.
        max_drift: Mean squared error of the codes of later items, over that of the founders at the fit. On Amazon Scientific
            (10 % later items) it is 1.2 where they came with events, and 2.1 where they got their ID cold and their events
            since: that much is the price of recommending an item in its first night.
        max_later_traffic_share: Share of train events on items that came after the fit.
    """

    max_fill: float | None = Field(default=0.5, gt=0.0, le=1.0)
    max_first_code_fill: float | None = Field(default=0.9, gt=0.0, le=1.0)
    max_drift: float | None = Field(default=2.5, gt=0.0)
    max_later_traffic_share: float | None = Field(default=0.3, gt=0.0, le=1.0)


class TokenizeConfig(FrozenConfig):
    """Settings of the `tokenize` stage.

    Attributes:
        method: ``balanced_residual_kmeans`` is OneRec v1 (arXiv 2502.18965, Alg. 1), ``residual_kmeans`` the plain kind of
            the OneRec Technical Report (arXiv 2506.13695, section 2.1).
        num_levels: Codes per item before a possible extra level.
        codebook_size: K, codes per level.
        assign: How the catalogue gets its codes once the centroids are known. ``nearest`` is the papers' argmin;
            ``balanced`` fills every code equally. Items added later are always given the nearest code.
        balancing: How the balanced kind forms its clusters while fitting. ``sequential`` is Alg. 1 as published;
            ``capacity_aware`` serves all clusters at once, in ascending order of distance.
        init: First centroids; Alg. 1 says ``random``.
        max_iterations: Upper bound of passes per level.
        tolerance: A level is finished when the relative improvement of its squared error falls below this.
        sample_size: Items that the codebooks are fitted on; a larger catalogue is sampled without replacement.
        unique: How items with equal codes are told apart, see :mod:`recsys.semantic_ids.collisions`.
        generation: Where the stage starts from an earlier version: ``keep`` gives new items IDs from its codebooks, ``new``
            fits codebooks anew and names their codes after it. Of no meaning without one.
        keep_within: In a new generation an item keeps its old code where the squared distance is at most this share larger
            than to the nearest one, and it has kept the codes before. Without effect on ``assign: balanced``.
        refit: When a generation is used up.
    """

    method: Literal["balanced_residual_kmeans", "residual_kmeans"] = "balanced_residual_kmeans"
    num_levels: int = Field(default=3, ge=1, le=8)
    codebook_size: int = Field(default=256, ge=2, le=65_536)
    assign: Literal["nearest", "balanced"] = "nearest"
    balancing: Literal["sequential", "capacity_aware"] = "sequential"
    init: Literal["kmeans++", "random"] = "kmeans++"
    max_iterations: int = Field(default=25, ge=1)
    tolerance: float = Field(default=1e-4, ge=0.0)
    sample_size: int = Field(default=65_536, ge=2)
    unique: Literal["reassign", "extra_level", "none"] = "reassign"
    generation: Literal["keep", "new"] = "keep"
    keep_within: float = Field(default=0.1, ge=0.0)
    refit: RefitConfig = RefitConfig()

    @model_validator(mode="after")
    def _refuse_what_cannot_be_honoured(self) -> Self:
        if self.method == "residual_kmeans" and (self.assign, self.balancing) != ("nearest", "sequential"):
            raise ValueError(
                f"assign={self.assign}, balancing={self.balancing} have no meaning for method=residual_kmeans; "
                "leave both out, or set method=balanced_residual_kmeans"
            )
        if self.sample_size < self.codebook_size:
            raise ValueError(
                f"sample_size={self.sample_size} is smaller than codebook_size={self.codebook_size}, so no codebook "
                f"can be fitted; set sample_size to at least {self.codebook_size * ITEMS_PER_CODE}"
            )
        return self


def advised_codebook_size(num_items: int) -> int:
    """Return the largest power of two that leaves at least :data:`ITEMS_PER_CODE` items per code of the first level.

    Example:
        >>> advised_codebook_size(12_101)
        1024
        >>> advised_codebook_size(5)
        2
    """
    return int(max(2, 1 << max(1, num_items // ITEMS_PER_CODE).bit_length() - 1))


def _large_enough(size: int, num_items: int, levels: int) -> int:
    """Return ``size``, doubled until there are as many IDs as items; a tiny catalogue would not get distinct ones."""
    while size**levels < num_items:
        size = min(2 * size, num_items)
    return size


def check_codebook_size(num_items: int, config: TokenizeConfig) -> list[str]:
    """Refuse a codebook that the catalogue cannot fill, and advise where it is merely unwise.

    Returns:
        Advice, one sentence each; empty when ``|V| / K >= 8`` and ``K**L >= 100 |V|``.

    Raises:
        DataError: Fewer items than codes per level, or fewer IDs than items.
    """
    size, levels = config.codebook_size, config.num_levels
    advice = advised_codebook_size(num_items)
    if num_items < 2:
        raise DataError(
            f"tokenize: the catalogue has {num_items} item; semantic IDs tell items apart, and a model that chooses needs "
            "at least 2: check the source, its positive signals and features.k_core"
        )
    if num_items < size:
        raise DataError(
            f"tokenize: the catalogue has {num_items} items, fewer than codebook_size={size} codes per level; "
            f"set tokenize.codebook_size to at most {num_items} (advised here: {_large_enough(advice, num_items, levels)})"
        )
    if config.unique == "reassign" and size**levels < num_items:
        raise DataError(
            f"tokenize: {num_items} items cannot get distinct IDs out of {size}**{levels} = {size**levels}; "
            "raise tokenize.num_levels or tokenize.codebook_size, or set tokenize.unique=extra_level"
        )
    warnings = []
    if num_items < ITEMS_PER_CODE * size:
        warnings.append(
            f"{num_items / size:.1f} items per code of level 1, advised are at least {ITEMS_PER_CODE}: "
            f"codes will be learned from few examples; tokenize.codebook_size={advice} would keep the advice"
        )
    if size**levels < CODES_PER_ITEM * num_items:
        warnings.append(
            f"{size}**{levels} = {size**levels} IDs for {num_items} items, advised are at least {CODES_PER_ITEM} per item: "
            "expect many collisions; raise tokenize.num_levels or tokenize.codebook_size"
        )
    return warnings
