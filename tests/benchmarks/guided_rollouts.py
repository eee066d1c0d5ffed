"""ReRe on roll-outs of a guided beam (``rollouts.guided``) against those of the plain beam, from the same policies.

For every seed a policy of the industrial recipe is trained unless its folder is there
(:func:`tests.benchmarks.alignment_rere.open_base`). From it, every variant has the same train targets in the same order, the
settings that were chosen for the plain beam, and the guard. First the roll-outs of the start are looked at: how many groups
hold their target, which is what ReRe learns from, and what a group costs. A finished (seed, variant) is kept.

Run: ``RECSYS_DATA=… python -m tests.benchmarks.guided_rollouts --runs runs``; 5 minutes for a policy and about as many for
its variants, on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from pipelines.cli.options import LogLevel, set_up_logging
from recsys.alignment.align import align_policy
from recsys.alignment.config import AlignConfig, GuardConfig, RolloutConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.rewards.functions import target_share
from recsys.alignment.rollouts.request_stream import RequestStream, seeded
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.report import REPORT_NAME
from recsys.contracts.columns import TEST
from recsys.contracts.manifest import read_json, write_json
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import row_metrics
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import SilentProgress, set_threads
from tests.benchmarks.alignment_rere import BEAM_WIDTH, KS, Base, open_base
from tests.benchmarks.alignment_rere_variants import CHOSEN, DATASETS, Variant, align_config
from tests.benchmarks.paired import write_table

DATASET: Final = "industrial"
VARIANTS: Final[Mapping[str, float | None]] = {
    "plain beam": None,
    "guided, 0.5": 0.5,
    "guided, 1": 1.0,
    "guided, 2": 2.0,
}
"""``rollouts.guidance`` of each variant; ``None``: not guided."""
SERVED: Final = 1.0
"""``decode.guidance`` of the guided lists that are measured."""
SHOWN: Final = ("hr@1", "ndcg@10", "hr@50")
LOOKED_AT: Final = 2048
"""Train requests whose groups are looked at before anything is learned."""
Values = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Outcome:
    """One (seed, variant): values per test row, and what happened."""

    values: Values
    facts: dict[str, Any]


def rollouts_of(guidance: float | None) -> dict[str, Any]:
    """Keys of ``rollouts`` that a variant sets."""
    return {} if guidance is None else {"guided": True, "guidance": guidance}


def variant_config(guidance: float | None) -> AlignConfig:
    """The variant's configuration of the `align` stage."""
    guard = GuardConfig(users=DATASETS[DATASET].guard_rows, ks=KS, recall_at=KS[-1])
    plain = align_config(Variant(), CHOSEN[DATASET], guard).model_dump(mode="json", exclude_unset=True)
    plain["rere"]["rollouts"] |= rollouts_of(guidance)
    return AlignConfig.model_validate(plain)


def measured(base: Base, policy: GenerativeRecommender) -> Values:
    """Metrics per test row, seen items kept as published, of the plain and of the guided beam."""
    targets = base.rows_to_measure(TEST)
    histories = Histories.from_targets(base.prepared.history, targets)
    found: Values = {}
    for name, guidance in (("plain", 0.0), ("guided", SERVED)):
        decode = DecodeConfig(beam_width=BEAM_WIDTH, guidance=guidance, rescore="none")
        ranked = Recommender(policy, base.semantic_ids, decode).recommend(histories, KS[-1], exclude_seen=False)
        metrics = row_metrics(ranked, targets, KS)
        found |= {f"{name}/{metric}": metrics[metric].astype(np.float32) for metric in SHOWN}
    return found


def looked_at(base: Base, guidance: float | None) -> dict[str, float]:
    """Share of the start's groups that hold their target, its mean place in them, and processor time per request."""
    policy = base.policy().eval()
    sampler = RolloutSampler(base.semantic_ids, RolloutConfig(num_generations=16, **rollouts_of(guidance)))
    stream = RequestStream(base.prepared, policy.spec.model.max_history, LOOKED_AT, base.seed)
    requests = stream.requests(stream.rows(0))
    blocks = [np.arange(start, min(start + 128, len(requests))) for start in range(0, len(requests), 128)]
    sampler.roll_out(policy, requests.take(blocks[0]), seeded(0, 0, 0))  # warm
    began = time.process_time()
    shares = [target_share(sampler.roll_out(policy, requests.take(block), seeded(0, 0, 0))) for block in blocks]
    seconds = time.process_time() - began
    hit_BG = torch.cat(shares) > 0
    place_B = hit_BG.float().argmax(1)[hit_BG.any(1)] + 1.0
    return {
        "groups": float(hit_BG.any(1).float().mean()),
        "place": float(place_B.mean()),
        "ms": 1e3 * seconds / len(requests),
    }


def outcome(base: Base, name: str, out: Path) -> Outcome:
    """Run one variant (``start``: none), or read what was found before."""
    folder = out / f"seed_{base.seed}" / "".join(c if c.isalnum() else "_" for c in name)
    rows, facts_path = folder / "rows.npz", folder / "facts.json"
    if not facts_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        policy, facts = base.policy(), dict[str, Any]()
        if name in VARIANTS:
            facts = looked_at(base, VARIANTS[name])
            inputs = AlignmentInputs(
                base.prepared,
                base.semantic_ids,
                policy,
                variant_config(VARIANTS[name]),
                DecodeConfig(beam_width=BEAM_WIDTH),
                base.seed,
            )
            began = time.process_time()
            align_policy(inputs, folder / "work", SilentProgress())
            report = read_json(folder / "work" / REPORT_NAME)
            facts |= {"minutes": (time.process_time() - began) / 60, "kept": report["kept_round"]}
        values = measured(base, policy)
        np.savez_compressed(rows, **values)  # type: ignore[arg-type]
        write_json(facts_path, facts)
    with np.load(rows) as held:
        return Outcome({key: held[key] for key in held.files}, read_json(facts_path))


def change(starts: list[Outcome], others: list[Outcome], users: npt.NDArray[np.int64], metric: str) -> str:
    """Relative change of a mean over seeds, with its 95 % paired bootstrap interval over users, and each seed's own."""
    before = np.stack([start.values[metric] for start in starts])
    after = np.stack([other.values[metric] for other in others])
    seeds = ", ".join(f"{a.mean() / b.mean() - 1:+.1%}" for a, b in zip(after, before, strict=True))
    _, user = np.unique(users, return_inverse=True)
    sums = [np.bincount(user, part.mean(0)) for part in (before, after)]
    draws = np.random.default_rng(0).integers(0, len(sums[0]), (2000, len(sums[0])))
    low, high = np.quantile(sums[1][draws].sum(1) / sums[0][draws].sum(1) - 1, [0.025, 0.975])
    return f"{after.mean() / before.mean() - 1:+.1%} [{low:+.1%}, {high:+.1%}] ({seeds})"


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds industrial_SEED, one folder per policy")
    parser.add_argument("--out", type=Path, default=Path("runs/guided_rollouts"), help="results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    set_up_logging(LogLevel.INFO)
    set_threads(1)
    bases = [open_base(arguments.runs, DATASET, seed) for seed in arguments.seeds]
    starts = [outcome(base, "start", arguments.out) for base in bases]
    users = bases[0].rows_to_measure(TEST).user_index.astype(np.int64)
    metrics = [f"{order}/{metric}" for order in ("plain", "guided") for metric in SHOWN]
    rows = [["start", "", "", "", "", *[f"{np.mean([s.values[name].mean() for s in starts]):.4f}" for name in metrics]]]
    changes: dict[str, str] = {}
    for name in VARIANTS:
        found = [outcome(base, name, arguments.out) for base in bases]
        mean = {key: np.mean([each.facts[key] for each in found]) for key in ("groups", "place", "ms", "minutes")}
        kept = ", ".join(str(each.facts["kept"]) for each in found)
        cells = [change(starts, found, users, metric) for metric in metrics]
        changes[name] = cells[metrics.index("plain/ndcg@10")].split(" (")[0]
        looks = [f"{mean['groups']:.1%}", f"{mean['place']:.1f}", f"{mean['ms']:.2f}", f"{mean['minutes']:.1f}; {kept}"]
        rows.append([name, *looks, *cells])
    told = ", ".join(f"{name} {value}" for name, value in changes.items())
    header = "roll-outs of | groups with target | its mean place | ms per group | minutes of ReRe; round kept"
    notes = [
        "MiniOneRec's Industrial rows (train file rebuilt), the recipe's policy, settings chosen for the plain beam: "
        f"{CHOSEN[DATASET]}",
        f"groups of 16; first columns: {LOOKED_AT:,} train requests, the start's groups; ms: processor time of a roll-out, "
        "128 requests at once, and no request dropped early; minutes: with the guard, and on the plain beam with early "
        "dropping, which a guided one does not have",
        f"{len(users):,} test rows, beams of {BEAM_WIDTH}, seen items kept; the guided beam has decode.guidance {SERVED:g}. "
        "Start: means over seeds. Others: change of the mean, 95 % paired bootstrap over users, and each seed's",
        "the dense head that guides is the policy's own and has no loss of its own here",
    ]
    print(
        write_table(
            "guided_rollouts",
            "ReRe on guided roll-outs",
            f"NDCG@10 of the plain beam after ReRe on Industrial, {len(bases)} seeds, by what made the groups: {told}.",
            [*header.split(" | "), *[name.replace("/", " beam, ") for name in metrics]],
            rows,
            notes,
        )
    )


if __name__ == "__main__":
    main()
