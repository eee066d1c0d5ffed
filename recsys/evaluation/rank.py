"""Rankings of policy and baselines for the same rows, then the comparison.

Used by the stages `baselines` and `evaluate`; every ranking is kept on disk as soon as it is there, so that a killed stage
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
    GUIDED,
    SERVED,
    UNALIGNED_BEAM,
    UNALIGNED_GUIDED,
    UNALIGNED_SERVED,
    Rankings,
    histories_in_blocks,
    ranking_folder,
    read_ranking,
    read_rankings,
    write_rankings,
)
from recsys.runtime import Progress


@dataclass(frozen=True)
class PolicyNames:
    """What the rankings of a policy are called: those of the search by itself and guided, and what is served."""

    beam: str
    guided: str
    served: str


ANSWERING: Final = PolicyNames(BEAM, GUIDED, SERVED)
BEFORE_ALIGNMENT: Final = PolicyNames(UNALIGNED_BEAM, UNALIGNED_GUIDED, UNALIGNED_SERVED)


def rank_with_policy(
    prepared: Dataset,
    recommender: Recommender,
    plain: Callable[[], Recommender],
    config: EvaluateConfig,
    out_dir: Path,
    progress: Progress,
    names: PolicyNames = ANSWERING,
) -> Rankings:
    """Decode once per filter and rank twice: in the order of the search, and as it is served.

    A search that the dense head guides (``decode.guidance``) is called so, and the beam alone is searched beside it.

    Args:
        plain: Makes the same recommender without guidance; not called where nothing guides.
    """
    as_served = int(
        recommender.config.rescore == "dense"
    )  # of the two orders: that of the search, and the dense head's
    asked = (prepared, config, out_dir, progress)
    if not recommender.config.guidance:
        return _rank_with_search(recommender, {names.beam: 0, names.served: as_served}, *asked)
    guided = _rank_with_search(recommender, {names.guided: 0, names.served: as_served}, *asked)
    return guided | _rank_with_search(plain(), {names.beam: 0}, *asked)


def _rank_with_search(
    recommender: Recommender,
    orders: Mapping[str, int],
    prepared: Dataset,
    config: EvaluateConfig,
    out_dir: Path,
    progress: Progress,
) -> Rankings:
    """Search once per filter and keep one ranking per name; a number is a place in ``both_orders``."""
    histories = Histories.from_targets(prepared.history, prepared.targets(config.split_code))
    rankings: Rankings = {system: {} for system in orders}
    for exclude in config.filters:
        paths = {system: ranking_folder(out_dir / ".rankings", system, exclude) for system in orders}
        missing = [system for system, path in paths.items() if not path.exists()]
        if missing:
            answers = (
                recommender.both_orders(block, config.ks[-1], exclude_seen=exclude, progress=progress)
                for block in histories_in_blocks(histories)
            )
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
