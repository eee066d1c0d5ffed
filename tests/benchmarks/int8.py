"""Int8 decoding against float32 on a trained policy: speed, how many of the answers stay, and what it does to the metrics.

Run: ``python -m tests.benchmarks.int8 --run runs/beauty [--users 2000]`` after ``recsys train`` with that output folder.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import row_metrics
from recsys.model.checkpoint import load_policy
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks import findings
from tests.benchmarks.paired import alternate, write_table

KS = (10, 50)


def newest(run: Path, kind: str) -> Path:
    """The latest artefact of a kind."""
    return max((run / "artifacts" / kind).iterdir(), key=lambda folder: folder.stat().st_mtime)


def main() -> None:
    """Decode the same test users in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--beam", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepared = Dataset.open(newest(arguments.run, "prepared"))
    ids = SemanticIds.load(newest(arguments.run, "semantic_ids"))
    policy = load_policy(newest(arguments.run, "policy") / "model", ids.digest)
    targets = prepared.targets(TEST)
    targets = targets.take(np.random.default_rng(0).permutation(len(targets))[: arguments.users])
    histories = Histories.from_targets(prepared.history, targets)
    config = DecodeConfig(beam_width=arguments.beam, rescore="none")
    recommenders = {
        "float32": Recommender(policy, ids, config),
        "int8": Recommender(policy, ids, config.model_copy(update={"precision": "int8"})),
    }
    timings = alternate(
        {name: partial(one.recommend, histories, max(KS)) for name, one in recommenders.items()}, rounds=3
    )
    ranked = {name: one.recommend(histories, max(KS)) for name, one in recommenders.items()}
    rows = []
    for name, answer in ranked.items():
        metrics = row_metrics(answer, targets, list(KS))
        kept = [
            np.mean(
                [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(answer.items, ranked["float32"].items, strict=True)]
            )
            for k in KS
        ]
        rows.append(
            [
                name,
                f"{len(histories) / timings[name].best:.0f}",
                timings[name].faster_than(timings["float32"]),
                *(f"{share:.4f}" for share in kept),
                *(f"{metrics[metric].mean():.4f}" for metric in ("hr@10", "ndcg@10", "hr@50")),
            ]
        )
    header = ["precision", "users/s", "vs float32", "recall@10 of float32's", "recall@50", "HR@10", "NDCG@10", "HR@50"]
    notes = [f"{len(histories)} test users, beam {arguments.beam}, seen items filtered, beam order"]
    print(write_table("int8", "Int8 decoding", findings.of_int8(rows), header, rows, notes))


if __name__ == "__main__":
    main()
