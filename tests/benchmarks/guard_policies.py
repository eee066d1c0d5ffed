"""A trained policy and what three stretches of ReRe make of it: targets and lists of validation rows.

The guard's simulation (:mod:`tests.benchmarks.guard`) reads them. The updates are those of
:mod:`tests.benchmarks.alignment_rere`: 128 requests, KL beta .001.

Run: ``python -m tests.benchmarks.guard_policies --run runs/industrial --out runs/guard/industrial.npz``; two minutes on a
free core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from recsys.alignment.config import RereConfig
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.sampler import Requests
from recsys.contracts.columns import VALID
from recsys.data.batch import collate_histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import SilentProgress, set_threads
from tests.benchmarks.alignment_rere import Base
from tests.benchmarks.alignment_speed import Run
from tests.benchmarks.guard_rows import DEPTH, Listed

MEASURED: Final = 5000
BEYOND: Final = 10_000
"""Place of a target that is not in the list."""
STRETCHES: Final = ((1e-4, 33), (1e-4, 100), (3e-5, 60))
"""Learning rate and updates."""


@torch.no_grad()
def listed(policy: GenerativeRecommender, base: Base, requests: Requests) -> Listed:
    """Lists of the beam and the targets' log-probabilities."""
    policy.eval()
    recommender = Recommender(policy, base.semantic_ids, DecodeConfig(beam_width=DEPTH))
    beam, _ = recommender.both_orders(requests.histories, DEPTH, exclude_seen=False, progress=SilentProgress())
    target = requests.targets_NM[:, :1]
    log_prob = np.empty(len(target))
    for rows in requests.blocks(512, policy.spec.model.max_history):
        history = collate_histories(requests.histories.take(rows), policy.spec.model.max_history)
        log_prob[rows] = candidate_log_probs(policy, history, target[rows][:, None]).sessions[:, 0].numpy()
    hit = beam.items == target.numpy()
    inside = np.where(hit.any(1), hit.argmax(1), BEYOND)
    return Listed(log_prob, beam.scores.astype(np.float64), inside)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder with one trained policy of single items")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    set_threads(1)
    base = Base(arguments.run, "", 0)
    targets = base.prepared.targets(VALID)
    some = np.random.default_rng(0).permutation(len(targets))[:MEASURED]
    requests = Requests.from_targets(base.prepared, targets.take(np.sort(some)))
    found = [listed(base.policy(), base, requests)]
    for rate, steps in STRETCHES:
        config = {"requests_per_step": 128, "reference_sync_every": None, "optimiser": {"learning_rate": rate}}
        run = Run(arguments.run, RereConfig.model_validate(config), 300)
        for _ in range(steps):
            run.step()
        found.append(listed(run.policy, base, requests))
        print(f"{steps} updates with {rate:g}: recall@50 {(found[-1].inside < DEPTH).mean():.4f}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    parts = {name: np.stack([getattr(one, name) for one in found]) for name in ("log_prob", "scores", "inside")}
    np.savez_compressed(arguments.out, **parts)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
