"""The lists of a policy with a second stage, and which source found their hits.

Reads histories of a split and a :class:`~recsys.decoding.second_stage.recommender.RankedRecommender`; writes one ranking per
list, kept on disk as those of :mod:`recsys.evaluation.rank`, and ``sources.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.manifest import write_json
from recsys.data.histories import Histories
from recsys.decoding.second_stage.recommender import Order, RankedRecommender
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.rankings import (
    BEAM,
    DENSE,
    FILTER_NAMES,
    GUIDED,
    ROWS_PER_BLOCK,
    SERVED,
    Rankings,
    histories_in_blocks,
    ranking_folder,
    read_ranking,
    read_sources,
    rows_of,
    write_rankings,
)
from recsys.runtime import Progress

SOURCES_FILE: Final = "sources.json"
SYSTEMS: Final[dict[str, Order]] = {SERVED: "served", GUIDED: "guided", DENSE: "dense", BEAM: "beam"}


def rank_with_second_stage(
    prepared: Dataset, recommender: RankedRecommender, config: EvaluateConfig, out_dir: Path, progress: Progress
) -> Rankings:
    """Encode once per filter and rank four times: served, guided search, dense head, and the policy alone."""
    targets = prepared.targets(config.split_code)
    histories = Histories.from_targets(prepared.history, targets)
    rankings: Rankings = {system: {} for system in SYSTEMS}
    found: dict[str, Any] = {}
    for exclude in config.filters:
        paths = {system: ranking_folder(out_dir / ".rankings", system, exclude) for system in SYSTEMS}
        missing = [system for system, path in paths.items() if not path.exists()]
        if missing:
            asked = [SYSTEMS[system] for system in missing]
            answers = (
                recommender.orders(block, config.ks[-1], asked, exclude_seen=exclude, progress=progress)
                for block in histories_in_blocks(histories)
            )
            write_rankings([paths[system] for system in missing], answers, len(histories))
        for system, path in paths.items():
            rankings[system][exclude] = read_ranking(path)
        k = 10 if 10 in config.ks else config.ks[-1]
        sources = recommender.second_stage.sources
        found[FILTER_NAMES[exclude]] = hits_by_source(paths[SERVED], targets, sources, k)
    write_json(out_dir / SOURCES_FILE, found)
    return rankings


def hits_by_source(path: Path, targets: Targets, sources: Sequence[str], k: int) -> dict[str, Any]:
    """Count, for the hits of a served list, which sources had brought them.

    Args:
        path: Folder of the ranking.
        targets: Of its rows.
        sources: Names, in the order of the bits.
        k: Places that count.

    Returns:
        ``k``, ``rows``, ``hits`` (items of the first ``k`` places that are targets), and by source ``found`` and ``alone``:
        hits that it brought, and hits that no other source brought. Without sources on disk only ``k``, ``rows`` and 0 hits.
    """
    ranked, bits = read_ranking(path), read_sources(path)
    by_source = {name: {"found": 0, "alone": 0} for name in sources}
    hits = 0
    for start in range(0, len(targets) if bits is not None else 0, ROWS_PER_BLOCK):
        rows = slice(start, min(start + ROWS_PER_BLOCK, len(targets)))
        block, shown = targets.take(np.arange(rows.start, rows.stop)), rows_of(ranked, rows).items[:, :k]
        row_of_target = np.repeat(np.arange(len(block)), np.diff(block.item_offsets))
        is_hit = np.zeros(shown.shape, bool)
        np.logical_or.at(is_hit, row_of_target, shown[row_of_target] == block.items[:, None])
        assert bits is not None
        of_hits = np.array(bits[rows, :k])[is_hit]
        hits += len(of_hits)
        for place, name in enumerate(sources):
            by_source[name]["found"] += int((of_hits >> place & 1).sum())
            by_source[name]["alone"] += int((of_hits == 1 << place).sum())
    return {"k": k, "rows": len(targets), "hits": hits, "sources": by_source}
