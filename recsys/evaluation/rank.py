"""Rankings of policy and baselines for the same rows, then the comparison.

Used by the stages `baselines` and `evaluate`; every ranking is kept on disk as soon as it is there, so that a killed stage
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import read_json
from recsys.data.histories import Histories
from recsys.decoding.recommender import Recommender
from recsys.evaluation.baseline_rankings import SYSTEMS_FILE, table_notes
from recsys.evaluation.by_id import IdArray
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.rankings import (
    BEAM,
    SERVED,
    Rankings,
    histories_in_blocks,
    ranking_folder,
    read_ranking,
    read_rankings,
    write_rankings,
)
from recsys.runtime import Progress


def rank_with_policy(
    prepared: Dataset,
    recommender: Recommender,
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
    beam_name, served_name = names
    rankings: Rankings = {served_name: {}, beam_name: {}}
    for exclude in config.filters:
        paths = {system: ranking_folder(out_dir / ".rankings", system, exclude) for system in names}
        if not all(path.exists() for path in paths.values()):
            answers = (
                recommender.both_orders(block, config.ks[-1], exclude_seen=exclude, progress=progress)
                for block in histories_in_blocks(histories)
            )
            as_served = int(
                recommender.config.rescore == "dense"
            )  # of the two orders: by path probability, and by the dense head
            orders = {beam_name: 0, served_name: as_served}
            missing = [system for system, path in paths.items() if not path.exists()]
            chosen = ([answer[orders[system]] for system in missing] for answer in answers)
            write_rankings([paths[system] for system in missing], chosen, len(histories))
        for system, path in paths.items():
            rankings[system][exclude] = read_ranking(path)
    return rankings


def compare_systems(
    prepared: Dataset,
    generative: Rankings,
    baselines_dir: Path,
    config: EvaluateConfig,
    out_dir: Path,
    seed: int,
    ids: IdArray | None = None,
    vectors: npt.NDArray[np.floating] | None = None,
    policy_seconds: float | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Put all systems into one table; without another reference, all are compared with the served list.

    Args:
        ids: ``[I]`` number of each item's semantic ID, where ``config.by_id`` asks for figures by ID.
        vectors: ``[I, D]`` item vectors, which diversity is measured by.
        policy_seconds: Training time of the policy, told beside what the baselines took.
        notes: What else a reader of the table has to know.
    """
    kept = read_json(baselines_dir / SYSTEMS_FILE)
    rankings = {**generative, **read_rankings(baselines_dir, kept["systems"], kept["filters"])}
    reference, said = table_notes(kept, config.reference or SERVED, policy_seconds)
    with_reference = config.model_copy(update={"reference": reference})
    return evaluate(prepared, rankings, with_reference, out_dir, seed, ids=ids, vectors=vectors, notes=[*said, *notes])
