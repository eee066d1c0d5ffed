"""Curves of training and alignment as panels, each with a word on what to look for.

Reads tables with the columns ``name``, ``value``, and ``step`` or ``epoch``; produces HTML.
"""

from __future__ import annotations

import re
from typing import Final

import polars as pl

from recsys.contracts.errors import DataError
from recsys.metrics.names import display_name
from recsys.reports.figures import line_panel
from recsys.reports.html import grid

POINTS: Final = 200
"""More points than this along a curve are averaged in bins of equal width."""

WORDS: Final = (
    (
        r"loss$",
        "Should fall quickly, then flatten. A rise, or a jump that does not heal, asks for a lower learning rate.",
    ),
    (
        r"next_token$",
        "Mean negative log-probability of the right code: should fall and flatten. Falling on while the validation metrics "
        "stand still, it is memorising.",
    ),
    (r"dense$", "Loss of the dense head, which orders the beam's items: should fall along with the next-token loss."),
    (
        r"^(beam_|served_)?(hr|ndcg|recall)@",
        "Measured on validation users after every epoch: should rise and level off; the best epoch is kept. Still rising at "
        "the end: train longer. Falling: it has begun to overfit.",
    ),
    (r"gradient_norm$", "Should stay within one order of magnitude; spikes come before a run that breaks."),
    (r"learning_rate$", "Warm-up, then the schedule as configured; lower where the guard made a round back off."),
    (
        r"clip_share$",
        "Share of probability ratios that were clipped: a few per cent are usual, many more mean steps too long.",
    ),
    (r"ratio_max$", "Largest probability ratio of new to old policy: near 1 is calm."),
    (
        r"^kl$",
        "Distance from the start of alignment: should grow slowly. A fast rise without more held-out reward is drift.",
    ),
    (
        r"distinct_share$",
        "Share of different answers within a group: where it falls, the policy says the same again and again.",
    ),
    (r"^reward", "What is trained on: should rise. Believe it only as far as the held-out reward rises with it."),
    (r"supervised$", "Next-token loss kept beside the reward: should not rise much."),
    (r"preference$", "Preference loss: starts near log 2 = 0.69 for DPO and should fall."),
    (r"margin$", "How much more the policy prefers the chosen answer than the start does: should rise."),
    (r"accuracy$", "Share of pairs whose chosen answer the policy prefers: from about one half upwards."),
    (
        r"chosen_log_ratio$",
        "Log-probability of chosen answers against the start: where it falls, liked answers get rarer, too.",
    ),
    (
        r"rejected_log_ratio$",
        "Log-probability of rejected answers against the start: should fall below the chosen ones'.",
    ),
)
"""Pattern of a quantity's name, and what to look for."""


def words_for(quantity: str) -> str:
    """Return what to look for in the curve of a quantity; empty where nothing general can be said.

    Example:
        >>> words_for("gradient_norm")
        'Should stay within one order of magnitude; spikes come before a run that breaks.'
    """
    return next((words for pattern, words in WORDS if re.search(pattern, quantity)), "")


def training_panels(curves: pl.DataFrame) -> str:
    """Draw curves, one panel per quantity.

    Args:
        curves: ``name``, ``value``, and ``step`` or ``epoch``; names such as ``sasrec/train_loss`` share the panel of
            ``train_loss`` with other systems' lines, and ``valid/beam_ndcg_at_10`` that of ``valid/served_ndcg_at_10``.

    Raises:
        DataError: A column is missing.
    """
    missing = [name for name in ("name", "value") if name not in curves.columns]
    if missing or not {"step", "epoch"} & set(curves.columns):
        raise DataError(f"curves have columns {curves.columns}, expected 'name', 'value', and 'step' or 'epoch'")
    axis = "step" if "step" in curves.columns else "epoch"
    names = [name for name in curves["name"].unique(maintain_order=True).to_list() if name not in _COPIES]
    by_quantity: dict[str, dict[str, pl.DataFrame]] = {}
    for name in names:
        line = binned(curves.filter(pl.col("name") == name).select(axis, "value"), axis)
        by_quantity.setdefault(_quantity(name), {})[display_name(name)] = line
    return grid([line_panel(name, words_for(name), lines, axis) for name, lines in by_quantity.items()])


_COPIES: Final = {"valid/hr_at_10", "valid/ndcg_at_10"}
"""The figures of the ranking that chooses the best epoch, logged once more under a name of their own."""


def _quantity(name: str) -> str:
    last = display_name(name).split("/")[-1]
    return re.sub(r"^(beam|served)_", "", last)


def binned(line: pl.DataFrame, axis: str) -> pl.DataFrame:
    """Average a long curve in at most about :data:`POINTS` bins; a short one is left as it is.

    Example:
        >>> long = pl.DataFrame({"step": range(1000), "value": [1.0, 3.0] * 500})
        >>> binned(long, "step").head(2).rows()
        [(2.0, 1.8), (7.0, 2.2)]
    """
    line = line.drop_nulls().filter(pl.col("value").is_finite()).sort(axis)
    if len(line) <= POINTS:
        return line
    width = -(-len(line) // POINTS)
    bins = pl.int_range(pl.len()) // width
    return line.group_by(bins.alias("bin"), maintain_order=True).agg(pl.col(axis, "value").mean()).drop("bin")
