"""Rankings of policy and baselines for the same rows, then the comparison.

Used by the stages `baselines` and `evaluate`; every ranking is kept on disk as soon as it is there, so that a killed stage
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import read_json, write_json
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.evaluation.baselines.registry import build_baselines
from recsys.evaluation.by_id import IdArray
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.rankings import (
    BEAM,
    CURVES_FILE,
    ROWS_PER_BLOCK,
    SERVED,
    Rankings,
    ranking_folder,
    read_ranking,
    read_rankings,
    write_rankings,
)
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import Progress
from recsys.semantic_ids.versions import SemanticIds

SYSTEMS_FILE: Final = "systems.json"
_CURVES_SCHEMA: Final = {"epoch": pl.Int64, "name": pl.String, "value": pl.Float64}


def rank_with_baselines(
    prepared: Dataset, config: EvaluateConfig, out_dir: Path, seed: int, progress: Progress
) -> dict[str, Any]:
    """Fit each baseline and keep its rankings; baselines whose rankings are on disk are not fitted again."""
    histories = Histories.from_targets(prepared.history, prepared.targets(config.split_code))
    for name in progress.track(config.baselines, "baselines", len(config.baselines)):
        paths = {exclude: ranking_folder(out_dir, name, exclude) for exclude in config.filters}
        if all(path.exists() for path in paths.values()):
            continue
        (ranker,) = build_baselines([name], config.baseline_settings)
        ranker.fit(prepared, seed, config.count_until)
        _write_curves(out_dir / f".curves-{name}.parquet", name, getattr(ranker, "curves", []))
        for exclude, path in paths.items():
            if not path.exists():
                blocks = (ranker.rank(block, config.ks[-1], exclude) for block in _blocks(histories))
                write_rankings([path], blocks, len(histories))
    curves = [pl.read_parquet(path, glob=False) for path in sorted(out_dir.glob(".curves-*.parquet"))]
    (pl.concat(curves) if curves else pl.DataFrame(schema=_CURVES_SCHEMA)).write_parquet(out_dir / CURVES_FILE)
    write_json(out_dir / SYSTEMS_FILE, {"systems": list(config.baselines), "filters": list(config.filters)})
    return {"baselines": len(config.baselines), "rows": len(histories), "count_until": config.count_until}


def rank_with_policy(
    prepared: Dataset,
    policy: GenerativeRecommender,
    semantic_ids: SemanticIds,
    decode: DecodeConfig,
    config: EvaluateConfig,
    out_dir: Path,
    progress: Progress,
    names: tuple[str, str] = (BEAM, SERVED),
) -> Rankings:
    """Decode once per filter and rank twice: in pure beam order, and re-scored by the dense head.

    Args:
        names: What the two rankings are called.
    """
    histories = Histories.from_targets(prepared.history, prepared.targets(config.split_code))
    recommender = Recommender(policy, semantic_ids, decode)

    beam_name, served_name = names
    rankings: Rankings = {served_name: {}, beam_name: {}}
    for exclude in config.filters:
        paths = {system: ranking_folder(out_dir / ".rankings", system, exclude) for system in names}
        if not all(path.exists() for path in paths.values()):
            answers = (
                recommender.both_orders(block, config.ks[-1], exclude_seen=exclude, progress=progress)
                for block in _blocks(histories)
            )
            as_served = int(decode.rescore == "dense")  # of the two orders: by path probability, and by the dense head
            orders = {beam_name: 0, served_name: as_served}
            missing = [system for system, path in paths.items() if not path.exists()]
            chosen = ([answer[orders[system]] for system in missing] for answer in answers)
            write_rankings([paths[system] for system in missing], chosen, len(histories))
        for system, path in paths.items():
            rankings[system][exclude] = read_ranking(path)
    return rankings


def _blocks(histories: Histories) -> Iterator[Histories]:
    """The histories in blocks whose rankings fit into memory; all of them at once where they are few."""
    if len(histories) <= ROWS_PER_BLOCK:
        yield histories
        return
    for start in range(0, len(histories), ROWS_PER_BLOCK):
        yield histories.take(np.arange(start, min(start + ROWS_PER_BLOCK, len(histories))))


def compare_systems(
    prepared: Dataset,
    generative: Rankings,
    baselines_dir: Path,
    config: EvaluateConfig,
    out_dir: Path,
    seed: int,
    ids: IdArray | None = None,
) -> dict[str, Any]:
    """Put all systems into one table; without another reference, all are compared with the served list.

    Args:
        ids: ``[I]`` number of each item's semantic ID, where ``config.by_id`` asks for figures by ID.
    """
    kept = read_json(baselines_dir / SYSTEMS_FILE)
    rankings = {**generative, **read_rankings(baselines_dir, kept["systems"], kept["filters"])}
    with_reference = config.model_copy(update={"reference": config.reference or SERVED})
    return evaluate(prepared, rankings, with_reference, out_dir, seed, ids=ids)


def _write_curves(path: Path, name: str, points: list[Any]) -> None:
    rows = [(int(point.epoch), f"{name}/{point.name}", float(point.value)) for point in points]
    if rows:
        temporary = path.with_suffix(".part")
        pl.DataFrame(rows, schema=_CURVES_SCHEMA, orient="row").write_parquet(temporary)
        temporary.replace(path)
