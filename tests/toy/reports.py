"""Summaries and reports as the pages read them, small enough to work out by hand, and titles that try to break a page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recsys.alignment.rounds.loop import CURVE_SCHEMA
from recsys.alignment.rounds.report import CURVES_NAME, REPORT_NAME
from recsys.contracts.columns import TEST, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.config import BaselinesConfig
from recsys.evaluation.baselines.registry import build_baselines
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.examples import write_examples
from recsys.evaluation.rankings import SERVED
from recsys.reports.alignment import PAGE_NAME, write_alignment_page
from recsys.reports.evaluation import write_report
from recsys.reports.semantic_ids import IdCatalogue
from tests.toy.dataset import ring_ids, ring_prepared

HOSTILE_TITLES: tuple[str | None, ...] = (
    '<script>alert("x")</script>',
    "</style></section><img src=x onerror=alert(1)>",
    "\"quoted\" & 'single' &amp; &#60;",
    "שלום עולם — מתכון #1",
    "\u202eturned round and never turned back",
    "W" * 400,
    "a long title with many words " * 14,
    None,
    "",
    "  \x00\x07 ",
    "line\nbreak\ttab",
    "$x_1$ and \\frac{1}{2}",
)


def cell(mean: float | None, half: float = 0.01) -> dict[str, float | None]:
    """A mean with its interval."""
    if mean is None:
        return {"mean": None, "low": None, "high": None}
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary_of(
    means: dict[str, float | None],
    comparisons: dict[str, tuple[float, float, float]],
    reference: str | None = SERVED,
    filters: tuple[str, ...] = ("filtered",),
) -> dict[str, Any]:
    """An evaluation's summary with ``hr@10`` three times ``ndcg@10``.

    Args:
        means: ``ndcg@10`` per system.
        comparisons: Per system difference, low and high of reference minus system, in ``ndcg@10``.
    """
    systems = {
        name: {
            filter_name: {"ndcg@10": cell(mean), "hr@10": cell(None if mean is None else 3 * mean)}
            for filter_name in filters
        }
        for name, mean in means.items()
    }
    compared = {
        name: {
            filter_name: {"ndcg@10": {"difference": d, "low": low, "high": high, "p_value": 0.04}}
            for filter_name in filters
        }
        for name, (d, low, high) in comparisons.items()
    }
    return {
        "split": "test",
        "rows": 1000,
        "users": 1000,
        "reference": reference,
        "confidence": 0.95,
        "headline": ["hr@10", "ndcg@10"],
        "slices": {"all": 1000},
        "systems": systems,
        "comparisons": compared,
    }


def change(difference: float, low: float, high: float) -> dict[str, float]:
    """A paired change as the guard keeps it."""
    return {"difference": difference, "low": low, "high": high}


def alignment_report(
    changes: dict[str, dict[str, float]], *, kept: int = 1, broken: tuple[str, ...] = (), stopped: str = ""
) -> dict[str, Any]:
    """A start and one round."""
    measured = {"beam_hr@1": 0.1, "beam_ndcg@10": 0.2, "beam_recall@10": 0.3, "coverage@10": 0.4, "kl_to_start": 0.0}
    return {
        "method": "rere",
        "settings": {"rounds": 1, "loss": {"beta": 0.1}},
        "guard": {"recall_at": 10, "confidence": 0.95},
        "kept_round": kept,
        "stopped": stopped,
        "rounds": [
            {"round": 0, "digest": "0" * 64, "measured": measured},
            {
                "round": 1,
                "digest": "1" * 64,
                "measured": {**measured, "beam_hr@1": float("nan")},
                "training": {"gradient_norm": 2.5},
                "counts": {"groups": 64},
                "verdict": {"broken": list(broken), "changes": changes},
            },
        ],
    }


def hostile_ring(folder: Path, users: int = 60) -> Dataset:
    """The ring with :data:`HOSTILE_TITLES` as titles, and ids that are markup or have no place to break."""
    ring_prepared(folder, users=users)
    path = folder / "items.parquet"
    pl.read_parquet(path).with_columns(pl.Series(Columns.TITLE, HOSTILE_TITLES, pl.String)).write_parquet(path)
    names = [f"<u>&{user}" if user % 2 else f"{user}-" + "f" * 300 for user in range(users)]
    path = folder / "users.parquet"
    pl.read_parquet(path).with_columns(pl.Series(Columns.USER_ID, names)).write_parquet(path)
    return Dataset.open(folder)


def evaluation_of(prepared: Dataset, out_dir: Path, systems: Sequence[str], reference: str | None) -> None:
    """Evaluate baselines on the test rows and write example users of the last one."""
    histories = Histories.from_targets(prepared.history, prepared.targets(TEST))
    rankings: dict[str, dict[bool, RankedItems]] = {}
    for ranker in build_baselines(list(systems), BaselinesConfig()):
        ranker.fit(prepared, 0, "train")
        rankings[ranker.name] = {exclude: ranker.rank(histories, 10, exclude) for exclude in (True, False)}
    evaluate(prepared, rankings, EvaluateConfig(ks=(1, 5, 10), reference=reference, resamples=100), out_dir, seed=0)
    shown = systems[-1]
    write_examples(prepared, rankings[shown][False], TEST, out_dir, 0, system=shown, exclude_seen=False)


CURVES = pl.DataFrame(
    {
        "epoch": [0, 1, 0, 1, 0, 1],
        "name": ["train_loss", "train_loss", "sasrec/ndcg@10", "sasrec/ndcg@10", "gradient_norm", "gradient_norm"],
        "value": [3.0, 2.0, 0.1, 0.2, math.nan, 5.0],
    }
)

LINEAGE: dict[str, Any] = {
    "seed": 7,
    "prepare": {"digest": "abc123" * 10, "config": {"a_rather_long_name_of_a_setting.with_a_part": {"k": "v" * 300}}},
}


def write_ring_page(
    out_file: Path, evaluation_dir: Path, prepared: Dataset, curves: pl.DataFrame | None = CURVES
) -> str:
    """Write the evaluation's page with everything it can show, and return it."""
    write_report(
        out_file,
        title="Ring <& friends>",
        evaluation_dir=evaluation_dir,
        curves=curves,
        tokenizer_report={"levels": [{"utilisation": 1.0}, {"utilisation": 0.75}], "collisions": {"traffic": 0.125}},
        data_report={"users": 12345},
        lineage=LINEAGE,
        catalogue=IdCatalogue(ring_ids(), prepared.items),
    )
    return out_file.read_text(encoding="utf-8")


def write_alignment_toy(folder: Path, report: dict[str, Any], curves: bool = True) -> str:
    """Write an alignment's report, its curves and its page, and return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (step, name, value)
        for step, value in ((0, 0.1), (1, math.nan))
        for name in ("measured/beam_hr@1", "measured/beam_hr@10", "measured/reward", "training/gradient_norm")
    ]
    table = pl.DataFrame(rows if curves else [], schema=CURVE_SCHEMA, orient="row")
    table.write_parquet(folder / CURVES_NAME)
    (folder / REPORT_NAME).write_text(json.dumps(report))
    write_alignment_page(folder, "Alignment of <'ring'>", {"train": "a" * 64})
    return (folder / PAGE_NAME).read_text(encoding="utf-8")
