"""Reward models trained for the mean and for the worst group of users, on KuaiRand's degrees of activity.

The source of ``kuairand_ipa.yaml``, with the users' degree of activity carried into ``users.parquet`` (the small degrees
joined into one). Per seed both reward models are
trained once by the mean loss and once per step size by ``reward.train.worst_group``; each is asked about the test sessions
of users that have trained no part of it. Finished (seed, way) are files, so a run can be stopped and started again.

Run: ``python -m tests.benchmarks.worst_group [--seeds 17 18 19]``; five minutes of one processor per seed and way.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.cli.options import LogLevel, set_up_logging
from pipelines.config import load_run_config
from pipelines.engine.lock import run_lock
from pipelines.workflow import Workflow
from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.contracts.manifest import read_json, write_json
from recsys.metrics.bootstrap import estimate_over_seeds, resample_means
from recsys.metrics.classification import auc, cross_entropy
from recsys.reward.checkpoint import load_reward_model
from recsys.reward.feedback.dataset import session_feedback
from recsys.reward.groups import UserGroups
from recsys.reward.scoring import score_sessions
from recsys.reward.training import HELD_OUT, REWARD, split_users
from recsys.runtime import SilentProgress, set_threads
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks import findings
from tests.benchmarks.alignment_rere import RECIPES
from tests.benchmarks.alignment_rere_page import table
from tests.benchmarks.paired import RESULTS, machine

COLUMN: Final = "activity"
DEGREES: Final = ("full_active", "high_active", "middle_active")
"""Degrees that have sessions enough to be told apart; all others are ``other``."""
MEAN: Final = "mean"
WAYS: Final[Mapping[str, float | None]] = {MEAN: None, "worst group, step .01": 0.01}
"""Step size of the weights of the groups."""
PAGE: Final = RESULTS / "worst_group.md"
RESAMPLES: Final = 1000

Values = dict[str, npt.NDArray[np.float64]]


def make_source(out: Path) -> Path:
    """The data set's files, and users with their group."""
    data = os.environ.get("RECSYS_DATA")
    if data is None:
        raise ConfigError("RECSYS_DATA is not set; it names the folder that holds kuairand_pure")
    folder, original = out / "source", Path(data) / "kuairand_pure"
    folder.mkdir(parents=True, exist_ok=True)
    degree = pl.col("user_active_degree")
    users = pl.read_parquet(original / "users.parquet", columns=["user_id", "user_active_degree"])
    named = pl.when(degree.is_in(DEGREES)).then(degree).otherwise(pl.lit("other")).alias(COLUMN)
    users.select("user_id", named).write_parquet(folder / "users.parquet")
    for name in ("interactions.parquet", "items.parquet", "train_history.parquet"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(original / name)
    return folder


def run(out: Path, seed: int, step_size: float | None) -> Values:
    """Train both reward models and ask them about the test sessions of users new to them.

    Returns:
        Per session and model: ``user``, ``group``, ``bce`` summed over the towers, and ``p_<tower>``, ``y_<tower>``.
    """
    overrides = [f"source.path={make_source(out)}", "source.users=users.parquet", f"source.user_columns=[{COLUMN}]"]
    overrides += [f"output_dir={out / f'seed_{seed}'}", f"seed={seed}", "threads=1", "tracking.uri=null"]
    if step_size is not None:
        overrides.append(f"reward.train.worst_group={{column: {COLUMN}, step_size: {step_size}}}")
    config = load_run_config(RECIPES / "kuairand_ipa.yaml", overrides)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    with run_lock(config.output_dir):
        workflow = Workflow(config, SilentProgress())
        prepared, _, tokenized, rewarded = [
            workflow.run_verb(verb).artifact.path for verb in ("prepare", "embed", "tokenize", "reward")
        ]
    dataset, ids = Dataset.open(prepared), SemanticIds.load(tokenized)
    reward_config = config.reward
    feedback = session_feedback(dataset, reward_config.feedback)
    test, groups = feedback.of(TEST), split_users(dataset.spec.num_users, reward_config, seed)
    of_user = UserGroups.of(dataset, COLUMN).of_user_U
    parts: list[Values] = []
    for name in (REWARD, HELD_OUT):
        model = load_reward_model(rewarded / name, ids.digest, "cpu")
        new = test.take(np.flatnonzero(~groups[name][test.user_index]))
        scored = score_sessions(model, new.histories, new.padded_items(model.spec.max_items)[:, None])
        predicted = scored.probabilities[:, 0].astype(np.float64)
        part: Values = {"user": new.user_index.astype(np.float64), "group": of_user[new.user_index].astype(np.float64)}
        part["bce"] = np.zeros(len(new))
        for tower, signal in enumerate(new.signals):
            labels = new.labels[:, tower].astype(np.float64)
            known = ~np.isnan(labels)
            part["bce"][known] += cross_entropy(predicted[known, tower], labels[known])
            part[f"p_{signal.name}"], part[f"y_{signal.name}"] = predicted[:, tower], labels
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def aucs(values: Values, rows: npt.NDArray[np.bool_]) -> float:
    """Mean over the towers of the AUC among some sessions; towers with one kind of label there are left out."""
    found = []
    for name in (key.removeprefix("p_") for key in values if key.startswith("p_")):
        known = rows & ~np.isnan(values[f"y_{name}"])
        found.append(auc(values[f"p_{name}"][known], values[f"y_{name}"][known] >= 0.5))
    return float(np.nanmean(found))


def compare(before: Sequence[Values], after: Sequence[Values], group: int | None) -> tuple[str, str, str]:
    """Loss of one group (``None``: of all) under the mean loss, its change over users, and its change over seeds."""
    rows = [np.ones(len(one["user"]), bool) if group is None else one["group"] == group for one in before]
    gaps = [new["bce"][mask] - old["bce"][mask] for old, new, mask in zip(before, after, rows, strict=True)]
    losses = [old["bce"][mask] for old, mask in zip(before, rows, strict=True)]
    whose = np.concatenate([old["user"][mask] for old, mask in zip(before, rows, strict=True)]).astype(np.int64)
    both = np.stack([np.concatenate(gaps), np.concatenate(losses)], axis=1)
    drawn = resample_means(both, np.ones((len(both), 1), bool), whose, resamples=RESAMPLES, seed=0)
    share = 100 * drawn.samples[:, 0, 0] / drawn.samples[:, 0, 1]
    mean = 100 * drawn.mean[0, 0] / drawn.mean[0, 1]
    low, high = np.quantile(share, [0.025, 0.975])
    per_seed = [100 * gap.mean() / loss.mean() for gap, loss in zip(gaps, losses, strict=True)]
    seeds = ""
    if len(per_seed) > 1:
        over = estimate_over_seeds(per_seed)
        seeds = f"{over.mean:+.2f} % [{over.low:+.2f}, {over.high:+.2f}]"
    return f"{drawn.mean[0, 1]:.4f}", f"{mean:+.2f} % [{low:+.2f}, {high:+.2f}]", seeds


def page(out: Path, seeds: Sequence[int]) -> str:
    """Write the page from what is finished."""
    facts: dict[str, Any] = read_json(out / "groups.json")
    names: list[str] = facts["names"]
    rows: list[list[str]] = []
    for way in (name for name in WAYS if name != MEAN):
        there = [seed for seed in seeds if result(out, seed, way).exists() and result(out, seed, MEAN).exists()]
        if not there:
            continue
        before, after = ([load(result(out, seed, name)) for seed in there] for name in (MEAN, way))
        for number, group in enumerate([*names, None]):
            mask = [one["group"] == number if group else np.ones(len(one["group"]), bool) for one in before]
            sessions = int(np.mean([rows_of.sum() for rows_of in mask]))
            first = [np.mean([aucs(one, m) for one, m in zip(values, mask, strict=True)]) for values in (before, after)]
            found = compare(before, after, number if group else None)
            said = [f"{sessions:,}", *found, f"{first[0]:.4f}", f"{first[1]:.4f}", str(len(there))]
            rows.append([way, group or "all users", *said])
    head = ["trained by", "group", "test sessions", "loss by the mean", "change, over users", "change, over seeds"]
    lines = table([*head, "AUC by the mean", "AUC", "seeds"], rows)
    notes = [
        "KuaiRand-Pure, degree of activity, small degrees joined as `other`; both reward models of every seed, each on "
        "sessions of users that trained no part of it",
        "loss: binary cross-entropy in nats, summed over the towers (watch time, long view, like, follow, comment); a "
        "change below 0 is better; first interval: 95 % paired bootstrap over users, who are drawn with their rows under "
        "all seeds and models; second: t interval over seeds; AUC: mean over the towers",
        "`reward.train.worst_group` with this column; the rest as in `kuairand_ipa.yaml`",
    ]
    text = "\n".join(
        [
            "# Reward models for the worst group",
            "",
            f"**{findings.of_worst_group(rows)}**",
            "",
            f"`python -m tests.benchmarks.worst_group --seeds {' '.join(map(str, seeds))}`",
            "",
            machine(),
            "",
            *(f"- {note}" for note in notes),
            "",
            *lines,
        ]
    )
    PAGE.write_text(text, encoding="utf-8")
    return text


def result(out: Path, seed: int, way: str) -> Path:
    """File of a finished (seed, way)."""
    return out / f"seed_{seed}" / f"{way.replace(' ', '_')}.npz"


def load(path: Path) -> Values:
    """Read what :func:`run` found."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/worst_group"), help="results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from what exists")
    arguments = parser.parse_args(argv)
    set_up_logging(LogLevel.INFO)
    set_threads(1)
    out = arguments.out.resolve()
    for seed in () if arguments.page else arguments.seeds:
        for way in arguments.ways:
            if not result(out, seed, way).exists():
                found: dict[str, Any] = dict(run(out, seed, WAYS[way]))
                np.savez_compressed(result(out, seed, way), **found)
    if not arguments.page:
        write_json(out / "groups.json", {"names": sorted([*DEGREES, "other"])})
    print(page(out, arguments.seeds))


if __name__ == "__main__":
    main()
