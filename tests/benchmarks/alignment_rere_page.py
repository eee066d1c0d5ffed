"""The page of the ReRe experiment: everything that :mod:`tests.benchmarks.alignment_rere` has finished, as tables.

Differences are paired: the same rows under the variant and under the policy it started from, seed by seed. Intervals are
bootstrap intervals over users, who are drawn with their rows under all seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json
from recsys.metrics.bootstrap import estimate_means, estimate_over_seeds
from tests.benchmarks.paired import RESULTS, machine

START: Final = "next-token policy"
RERE: Final = "rule+ranking"
"""ReRe with both of its rewards."""
METRICS: Final = ("hr@1", "hr@5", "hr@10", "hr@20", "hr@50", "ndcg@10")
RESAMPLES: Final = 1000
CONFIDENCE: Final = 0.95
BOOTSTRAP_SEED: Final = 0


@dataclass(frozen=True)
class Finished:
    """One (data set, seed, variant) that is done."""

    path: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What was measured beside the rows."""
        loaded: dict[str, Any] = read_json(self.path)
        return loaded

    @cached_property
    def rows(self) -> dict[str, npt.NDArray[np.float64]]:
        """Values per test row, and ``users``."""
        try:
            with np.load(self.path.with_suffix(".npz"), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"'{self.path.with_suffix('.npz')}' cannot be read: {error}; delete both files"
            ) from error

    @property
    def name(self) -> str:
        """Variant."""
        return str(self.facts["variant"])

    @property
    def seed(self) -> int:
        """Seed of policy and roll-outs."""
        return int(self.facts["seed"])


@dataclass(frozen=True)
class Difference:
    """Mean of a metric before, and its paired change."""

    before: float
    change: float
    low: float
    high: float

    def __str__(self) -> str:
        """``+4.2 % [+1.0, +7.3]``, relative to the mean before."""
        change, low, high = (100 * value / self.before for value in (self.change, self.low, self.high))
        return f"{change:+.1f} % [{low:+.1f}, {high:+.1f}]"


OVER_SEEDS: Final = "over seeds, t interval"
Results = Mapping[str, Mapping[int, Finished]]
"""By variant, then by seed."""


def read_results(folder: Path, known: Collection[str]) -> Results:
    """Everything finished below the folder of a data set.

    Raises:
        ArtifactError: A result of a variant that is not ``known``.
    """
    found: dict[str, dict[int, Finished]] = {}
    for path in sorted(folder.glob("seed_*/*.json")):
        finished = Finished(path)
        if finished.name not in known:
            raise ArtifactError(f"'{path}' is of the variant '{finished.name}', which no longer exists; delete it")
        found.setdefault(finished.name, {})[finished.seed] = finished
    return found


def compare(after: Mapping[int, Finished], before: Mapping[int, Finished], names: Sequence[str]) -> list[Difference]:
    """Paired differences of metrics over the seeds that both have.

    Raises:
        ArtifactError: The two evaluated other rows.
    """
    seeds = sorted(set(after) & set(before))
    users, differences, starts = [], [], []
    for seed in seeds:
        one, other = after[seed].rows, before[seed].rows
        if not np.array_equal(one["users"], other["users"]):
            raise ArtifactError(f"'{after[seed].path}' and '{before[seed].path}' evaluated other rows; delete both")
        users.append(one["users"])
        starts.append(np.stack([other[name] for name in names], axis=1).astype(np.float64))
        differences.append(np.stack([one[name] for name in names], axis=1) - starts[-1])
    estimates = estimate_means(
        np.concatenate(differences),
        np.concatenate(users),
        resamples=RESAMPLES,
        seed=BOOTSTRAP_SEED,
        confidence=CONFIDENCE,
    )
    start = np.concatenate(starts).mean(0)
    return [Difference(float(s), one.mean, one.low, one.high) for s, one in zip(start, estimates, strict=True)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def changes_table(results: Results, prefix: str, metrics: Sequence[str] = METRICS) -> list[str]:
    """Change of every variant against its own start."""
    names = [prefix + metric for metric in metrics]
    start = results[START]
    means = [np.mean([one.facts["mean"][name] for one in start.values()]) for name in names]
    rows = [[START, str(len(start)), *(f"{mean:.4f}" for mean in means)]]
    for variant, by_seed in results.items():
        if variant != START:
            shared = len(set(by_seed) & set(start))
            rows.append([variant, str(shared), *map(str, compare(by_seed, start, names))])
    return table(["variant", "seeds", *metrics], rows)


def seeds_table(results: Results, name: str) -> list[str]:
    """Change of one metric seed by seed, and what the seeds say together: the intervals over users do not contain it."""
    start = results[START]
    return seed_by_seed({variant: by_seed for variant, by_seed in results.items() if variant != START}, start, name)


def seed_by_seed(results: Results, before: Mapping[int, Finished], name: str) -> list[str]:
    """One row per variant: its change in every seed, and the t interval over seeds."""
    seeds = sorted(before)
    rows = []
    for variant, by_seed in results.items():
        found = {
            seed: compare({seed: by_seed[seed]}, {seed: before[seed]}, [name])[0] for seed in seeds if seed in by_seed
        }
        changes = [100 * one.change / one.before for one in found.values()]
        together = over_seeds(changes) if len(changes) > 1 else ""
        rows.append([variant, *(str(found.get(seed, "")) for seed in seeds), together])
    return table(["variant", *(f"seed {seed}" for seed in seeds), OVER_SEEDS], rows)


def over_seeds(changes: Sequence[float]) -> str:
    """``+6.1 % [-10.5, +22.7]``: mean over seeds of relative changes in per cent, with its t interval."""
    found = estimate_over_seeds(changes)
    return f"{found.mean:+.1f} % [{found.low:+.1f}, {found.high:+.1f}]"


def duels_table(results: Results, prefix: str, duels: Sequence[tuple[str, str]]) -> list[str]:
    """One variant against another on the same rows."""
    names = [prefix + metric for metric in METRICS]
    rows = [
        [f"{one} against {other}", *map(str, compare(results[one], results[other], names))]
        for one, other in duels
        if one in results and other in results and set(results[one]) & set(results[other])
    ]
    return table(["pair", *METRICS], rows)


def training_table(results: Results) -> list[str]:
    """What happened during alignment: means over seeds, of the rounds that were run."""
    header = [
        "variant",
        "groups without signal",
        "gradient norm",
        "KL to the start",
        "entropy of 3 codes",
        "coverage@10",
    ]
    header += ["rounds kept", "stopped by the guard", "minutes"]
    rows = []
    for variant, by_seed in results.items():
        if variant == START:
            continue
        facts = [one.facts for one in by_seed.values()]
        kept = [f["rounds"][f["kept_round"]]["measured"] for f in facts]
        before = [f["rounds"][0]["measured"] for f in facts]
        norms = [r["training"]["gradient_norm"] for f in facts for r in f["rounds"][1:]]
        rows.append(
            [
                variant,
                f"{100 * _mean(zero_signal(f) for f in facts):.1f} %",
                f"{_mean(norms):.2f}",
                f"{_mean(m['kl_to_start'] for m in kept):.3f}",
                f"{_mean(map(entropy, before)):.2f} → {_mean(map(entropy, kept)):.2f}",
                f"{_mean(m['coverage@10'] for m in before):.3f} → {_mean(m['coverage@10'] for m in kept):.3f}",
                ", ".join(str(f["kept_round"]) for f in facts),
                str(sum(bool(f["stopped"]) for f in facts)),
                f"{_mean(f['align_seconds'] for f in facts) / 60:.1f}",
            ]
        )
    return table(header, rows)


def zero_signal(facts: Mapping[str, Any]) -> float:
    """Share of groups whose rewards were all equal, over all rounds that were run."""
    rounds = facts["rounds"][1:]
    if "pairs" in rounds[0]:
        return float(sum(r["skipped_indistinguishable"] for r in rounds) / sum(r["requests"] for r in rounds))
    counts = [r["counts"] for r in rounds]
    return float(sum(c.get("groups_without_signal", 0) for c in counts) / sum(c["groups"] for c in counts))


def entropy(measured: Mapping[str, float]) -> float:
    """Sum of the levels' entropies in nats."""
    return sum(value for name, value in measured.items() if name.startswith("entropy_level"))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def tuning_table(folder: Path, known: Collection[str]) -> list[str]:
    """Candidates for the settings, on validation rows of one seed."""
    results = read_results(folder, known)
    if START not in results:
        return []
    lines = changes_table(results, "beam/unfiltered/")
    return [*lines, *changes_table(results, "served/filtered/", ("hr@10", "ndcg@10"))]


def dataset_page(folder: Path, known: Collection[str], duels: Sequence[tuple[str, str]]) -> list[str]:
    """All tables of one data set."""
    results = read_results(folder, known)
    if START not in results:
        return [f"## {folder.name}", "", "Not run.", ""]
    some = next(iter(results[START].values())).facts
    lines = [f"## {some['dataset']}", "", f"{some['rows']:,} test rows per seed, the same for all.", ""]
    for filtered, text in (("unfiltered", "with seen items"), ("filtered", "seen items filtered")):
        lines += [f"### Beam order, {text}", "", *changes_table(results, f"beam/{filtered}/")]
    lines += ["### Served (dense) order, seen items filtered", ""]
    lines += changes_table(results, "served/filtered/")
    lines += ["### NDCG@10 of the beam order seed by seed, with seen items", ""]
    lines += seeds_table(results, "beam/unfiltered/ndcg@10")
    if duel_lines := duels_table(results, "beam/unfiltered/", duels)[2:-1]:
        lines += ["### Variants against each other, beam order, with seen items", ""]
        lines += [*duels_table(results, "beam/unfiltered/", duels)[:2], *duel_lines, ""]
    return [*lines, "### Training", "", *training_table(results)]


def finding(out: Path, datasets: Sequence[str], known: Collection[str]) -> str:
    """What the page leads with: the change of the beam order's NDCG@10 by ReRe, data set by data set."""
    said = []
    for dataset in datasets:
        results = read_results(out / dataset, known)
        if {START, RERE} <= set(results):
            (change,) = compare(results[RERE], results[START], ["beam/unfiltered/ndcg@10"])
            said.append(f"{dataset} {change}")
    return f"ReRe changes NDCG@10 of the beam order: {'; '.join(said)}." if said else "Not run."


def write_page(
    out: Path,
    title: str,
    datasets: Sequence[str],
    known: Collection[str],
    duels: Sequence[tuple[str, str]],
    notes: str,
) -> str:
    """Write ``results/alignment_rere.md`` from everything below ``out`` and return its text."""
    commands = [f"`python -m tests.benchmarks.alignment_rere --dataset {name}`" for name in datasets]
    lines = [f"# {title}", "", f"**{finding(out, datasets, known)}**", ""]
    lines += [", ".join(commands) + "; `--tune` before, for the settings", "", machine(), ""]
    lines += [notes]
    for dataset in datasets:
        lines += dataset_page(out / dataset, known, duels)
    for dataset in datasets:
        if tuned := tuning_table(out / "tune" / dataset, known):
            lines += [f"## Choice of the settings: {dataset}, validation rows of seed 1", ""]
            lines += ["Beam order with seen items, then served order with seen items filtered.", "", *tuned]
    text = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "alignment_rere.md").write_text(text, encoding="utf-8")
    return text
