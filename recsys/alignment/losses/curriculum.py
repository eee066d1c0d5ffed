"""Curriculum over preference pairs: which pairs count at which point of training, from easy to hard. Pure maths.

Legend: B pairs (rows).

Source: Curry-DPO (arXiv 2403.07230) trains on pairs in order of falling score gap. It does so in separate passes; here the
share of admitted pairs grows with progress, so that any number of steps will do.
"""

from __future__ import annotations

from typing import Literal

import torch

from recsys.alignment.losses.preference import PreferenceLogProbs
from recsys.contracts.errors import ConfigError, DataError


def pair_gap(pairs: PreferenceLogProbs, by: Literal["reward", "reference"]) -> torch.Tensor:
    """Measure how easy each row is: its chosen session against its strongest negative. Large means easy.

    Args:
        by: ``reward``: the gap of rewards; ``reference``: the gap of reference log-probabilities, which is large where the
            reference agrees with the preference already.

    Returns:
        ``[B]``; negative where the reference prefers a rejected session.
    """
    values = {
        "reward": (pairs.chosen_reward, pairs.rejected_reward),
        "reference": (pairs.ref_chosen, pairs.ref_rejected),
    }
    chosen, rejected = values[by]
    if chosen is None or rejected is None:
        raise ConfigError(
            f"curriculum by '{by}' needs the {by} of chosen and rejected sessions; these pairs carry none"
        )
    return chosen - rejected.masked_fill(~pairs.present, -torch.inf).amax(1)


def curriculum_weights(
    gap_B: torch.Tensor, progress: float, *, start_share: float = 0.3, softness: float = 0.0
) -> torch.Tensor:
    """Weigh pairs so that the easiest ``start_share`` count at the start and all of them at the end.

    Pairs are placed by rank, not by gap, so that the scale of the reward does not matter; equal gaps share a place. Give
    the pairs of a whole round, not of a batch: a batch has its own easy half.

    Args:
        gap_B: From :func:`pair_gap`; large is easy.
        progress: Share of training done, in [0, 1].
        softness: Width of the ramp between admitted and not, as a share of all pairs; 0 cuts sharply.

    Returns:
        ``[B]`` in [0, 1]; all 1 at progress 1.

    Raises:
        ConfigError: A share outside [0, 1], or a start of nothing.

    Example:
        Half way, 0.5 + 0.5 * 0.5 = 0.75 of the four pairs are admitted, the easiest three.

        >>> curriculum_weights(torch.tensor([0.1, 0.9, 0.5, 0.7]), 0.5, start_share=0.5).tolist()
        [0.0, 1.0, 1.0, 1.0]
    """
    if not (0 <= progress <= 1 and 0 < start_share <= 1 and 0 <= softness <= 1):
        raise ConfigError(
            f"curriculum: progress {progress}, start_share {start_share}, softness {softness}; expected shares in [0, 1], "
            "and start_share above 0"
        )
    if gap_B.isnan().any():
        raise DataError("curriculum: the gap of a pair is NaN; expected numbers, see pair_gap")
    admitted = start_share + (1 - start_share) * progress
    # place in [0, 1): share of the pairs that are strictly easier
    ordered = (-gap_B).contiguous().sort().values
    place_B = torch.searchsorted(ordered, (-gap_B).contiguous()) / max(len(gap_B), 1)
    if softness == 0:
        return (place_B < admitted).to(gap_B.dtype)
    return ((admitted * (1 + softness) - place_B) / softness).clamp(0, 1).to(gap_B.dtype)
