"""How candidates are generated and ordered."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from recsys.config import FrozenConfig
from recsys.contracts.errors import ConfigError
from recsys.device import DecodePrecision


class DecodeConfig(FrozenConfig):
    """Beam search and second stage.

    Attributes:
        beam_width: W, beams per user.
        rescore: ``dense``: the dense head orders the beam's items; ``none``: path probabilities do. Where `rank` has fitted
            a second stage, that orders the answer, and this decides nothing.
        exclude_seen: Leave out what the user's history holds.
    """

    beam_width: int = Field(default=64, ge=1)
    rescore: Literal["dense", "none"] = "dense"
    generative_weight: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Score of the items in the order of the dense head = dense score + generative_weight * beam log-probability."""
    guidance: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Weight of the dense head's scores in the search itself (:mod:`recsys.decoding.guide`); 0: the policy alone.
    A second stage guides by all its scorers, as ``rank.guidance`` says."""
    exclude_seen: bool = True
    rows_per_batch: int = Field(default=3200, ge=1)
    """Users times beams decoded together; bounds memory whatever the number of users."""
    precision: DecodePrecision = "float32"
    """Of the matrix products; scores are float32 sums in every case. ``bfloat16`` needs a GPU, ``int8`` a CPU."""
    cuda_graph: bool = False
    """Record the search once per batch shape and replay it; GPU only, next items only."""
    diversity_groups: int = Field(default=1, ge=1)
    """Sessions only: this many different first items, each with an equal share of the beams."""
    later_item_width: int | None = Field(default=None, ge=1)
    """Sessions only: beams from the second item on; ``None`` keeps ``beam_width``."""

    @model_validator(mode="after")
    def _graphs_are_not_guided(self) -> Self:
        if self.guidance and self.cuda_graph:
            raise ValueError("guidance and cuda_graph cannot go together: set decode.cuda_graph: false, or guidance: 0")
        return self

    @model_validator(mode="after")
    def _groups_have_equal_shares(self) -> Self:
        later = self.beam_width if self.later_item_width is None else self.later_item_width
        for name, beams in (("beam_width", self.beam_width), ("later_item_width", later)):
            if beams % self.diversity_groups:
                raise ValueError(
                    f"diversity_groups is {self.diversity_groups}, and {name} of {beams} has no equal share for each; "
                    "set it to a divisor"
                )
        return self

    def check_device(self, device: str) -> None:
        """Refuse what cannot be had where the policy is; known before anything is trained for it.

        Args:
            device: Its type, ``cpu`` or ``cuda``.

        Raises:
            ConfigError: The precision or the graph does not fit the device.
        """
        if self.precision == "bfloat16" and device != "cuda":
            raise ConfigError(
                f"decode.precision is bfloat16, which needs a GPU; the policy is on '{device}': use float32 or int8"
            )
        if self.precision == "int8" and device != "cpu":
            raise ConfigError(f"decode.precision is int8, which needs a CPU; the policy is on '{device}': use bfloat16")
        if self.cuda_graph and device != "cuda":
            raise ConfigError(
                f"decode.cuda_graph needs a GPU, the policy is on '{device}'; set decode.cuda_graph=false"
            )

    def session_widths(self, width: int, num_items: int) -> list[int]:
        """Beams while each of a session's items is generated; the last item needs ``width`` of them for the answer."""
        later = self.later_item_width or width
        return [width, *[later] * (num_items - 2), width] if num_items > 1 else [width]
