"""Rankings of all baselines for the rows of a split: settings chosen, fitted, ranked, and the best two summed.

Reads a prepared data set; produces the rankings, ``curves.parquet``, ``tuning.json`` (everything that was tried) and
``systems.json`` (what was ranked, and what a reader of the table has to know). Every ranking is kept on disk as soon as it
is there, so a killed stage goes on where it was. A baseline that the data do not allow leaves with a note: nobody should
lose a trained policy to a baseline.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import polars as pl

from recsys.config import FrozenConfig
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import read_json, write_json
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import FittedRanker, Ranker
from recsys.evaluation.baselines.config import BaselineName, left_out
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.rankings import CURVES_FILE, SERVED, histories_in_blocks, ranking_folder, write_rankings
from recsys.evaluation.tuning.fusion import choose_fusion, fusion_name
from recsys.evaluation.tuning.search import describe, fit_with, tune
from recsys.evaluation.tuning.validation_rows import ValidationRows
from recsys.runtime import Progress
from recsys.scorers.config import Until

logger = logging.getLogger(__name__)

SYSTEMS_FILE: Final = "systems.json"
TUNING_FILE: Final = "tuning.json"
FUSION: Final = "fusion"
_CURVES_SCHEMA: Final = {"epoch": pl.Int64, "name": pl.String, "value": pl.Float64}


def rank_with_baselines(
    prepared: Dataset, config: EvaluateConfig, out_dir: Path, seed: int, progress: Progress
) -> dict[str, Any]:
    """Tune, fit and rank each baseline; those whose rankings are on disk are not fitted again.

    Returns:
        Summary: number of systems and rows, notes, and the minutes that each baseline took to tune and fit.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    valid = ValidationRows.of(prepared, config.tuning.rows, seed, config.filters[0]) if config.tuning.enabled else None
    work = _Work(prepared, config, out_dir, seed, valid if valid is not None and len(valid) else None)
    work.notes = list(_notes(config, valid))
    allowed = left_out(config.baselines, config.baseline_settings, prepared.spec.num_items)
    for name in progress.track(config.baselines, "baselines", len(config.baselines)):
        if name in allowed:
            work.leave(name, allowed[name])
            continue
        try:
            work.rank(name)
        except DataError as error:
            work.leave(name, f"{name} is left out: {error}")
    work.fuse()
    curves = [pl.read_parquet(path, glob=False) for path in sorted(out_dir.glob(".curves-*.parquet"))]
    (pl.concat(curves) if curves else pl.DataFrame(schema=_CURVES_SCHEMA)).write_parquet(out_dir / CURVES_FILE)
    write_json(out_dir / TUNING_FILE, work.records)
    told = [describe(record) for record in work.records.values()]
    kept = {"systems": work.systems, "filters": list(config.filters), "left_out": work.absent, "tuning": told}
    write_json(out_dir / SYSTEMS_FILE, {**kept, "notes": work.notes})
    return {
        "baselines": len(work.systems),
        "rows": len(prepared.targets(config.split_code)),
        "count_until": config.count_until,
        "left_out": sorted(work.absent),
        "minutes": {name: record["minutes"] for name, record in work.records.items()},
    }


def _notes(config: EvaluateConfig, valid: ValidationRows | None) -> list[str]:
    if valid is None:
        return []
    if not len(valid):
        return ["the validation split has no rows, so baselines have their configured settings and none are summed"]
    if config.split == "valid":
        return ["the settings of baselines were chosen on rows of the split that is evaluated"]
    return []


@dataclass
class _Work:
    """What is known while the baselines are ranked, one after the other.

    Attributes:
        valid: ``None`` where nothing is tuned.
        fitted: The best two so far, fitted on train events: what the fusion is chosen with.
    """

    prepared: Dataset
    config: EvaluateConfig
    out_dir: Path
    seed: int
    valid: ValidationRows | None
    systems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    fitted: dict[str, Ranker] = field(default_factory=dict)

    def leave(self, name: str, note: str) -> None:
        """Go on without a baseline."""
        logger.warning("%s", note)
        self.absent[name] = note
        self.notes.append(note)

    def rank(self, name: BaselineName) -> None:
        """Choose the settings of one baseline, fit it, rank, unless all that lies on disk."""
        record = self.out_dir / f".tuning-{name}.json"
        if self.valid is not None and record.exists():
            self.records[name] = read_json(record)
        if not self._ranked(name) or (self.valid is not None and name not in self.records):
            ranker = self._tuned(name, record)
            _write_curves(self.out_dir / f".curves-{name}.parquet", name, getattr(ranker, "curves", []))
            self._write(name, ranker)
        self.systems.append(name)

    def _tuned(self, name: BaselineName, record: Path) -> Ranker:
        """Return the baseline with the best settings, fitted on the events that the table's rule allows."""
        settings = self.config.baseline_settings
        if self.valid is None:
            return self._fit(name, getattr(settings, name))
        if name in self.records:  # killed between the search and the last ranking
            return self._fit(name, self._settings(name))
        ranker, found = tune(name, self.prepared, settings, self.config.tuning, self.valid, self.seed)
        write_json(record, found)
        self.records[name] = found
        self.fitted[name] = ranker
        for worse in self._by_value()[2:]:
            self.fitted.pop(worse, None)
        return ranker if self.config.count_until == "train" else self._fit(name, self._settings(name))

    def fuse(self) -> None:
        """Sum the best two baselines and rank by the sum."""
        if self.valid is None or not self.config.tuning.fusion or len(self.records) < 2:
            return
        one, two = self._by_value()[:2]
        name, record = fusion_name(one, two), self.out_dir / f".tuning-{FUSION}.json"
        if not (self._ranked(name) and record.exists()):
            first, second = (
                self.fitted.get(part) or self._fit(part, self._settings(part), until="train") for part in (one, two)
            )
            fusion, found = choose_fusion(first, second, self.config.tuning.fusion_weights, self.valid)
            if self.config.count_until != "train":
                first, second = (self._fit(part, self._settings(part)) for part in (one, two))
                fusion = replace(fusion, first=first, second=second)
            self._write(name, fusion)
            write_json(record, found)
        self.records[name] = read_json(record)
        self.systems.append(name)

    def _by_value(self) -> list[str]:
        """Tuned baselines, best first; of equals, the one that was named first."""
        return sorted(self.records, key=lambda name: -self.records[name]["value"])

    def _settings(self, name: str) -> FrozenConfig:
        configured: FrozenConfig = getattr(self.config.baseline_settings, name)
        return type(configured).model_validate(self.records[name]["settings"])

    def _fit(self, name: str, settings: FrozenConfig, until: Until | None = None) -> Ranker:
        until = until or self.config.count_until
        return fit_with(name, settings, self.prepared, self.config.baseline_settings, self.seed, until)

    def _paths(self, name: str) -> dict[bool, Path]:
        return {exclude: ranking_folder(self.out_dir, name, exclude) for exclude in self.config.filters}

    def _ranked(self, name: str) -> bool:
        return all(path.exists() for path in self._paths(name).values())

    def _write(self, name: str, ranker: FittedRanker) -> None:
        """Write the rankings that are not on disk yet."""
        targets = self.prepared.targets(self.config.split_code)
        histories = Histories.from_targets(self.prepared.history, targets)
        for exclude, path in self._paths(name).items():
            if not path.exists():
                blocks = histories_in_blocks(histories)
                ranked = (ranker.rank(block, self.config.ks[-1], exclude) for block in blocks)
                write_rankings([path], ranked, len(histories))


def table_notes(kept: Mapping[str, Any], reference: str, policy_seconds: float | None) -> tuple[str, list[str]]:
    """Say what a reader of the table has to know: who is absent, how settings were chosen, what everything took.

    Args:
        kept: What ``systems.json`` holds.
        reference: The system that all are compared with.
        policy_seconds: Training time of the policy, ``None`` where it is not known.

    Returns:
        The reference, which is the served list where the one asked for was left out, and the notes.
    """
    notes = list(kept["notes"])
    if reference in kept["left_out"]:
        notes.append(f"compared with {SERVED}, because {reference} is left out")
        reference = SERVED
    tuned = list(kept["tuning"])
    if tuned and policy_seconds is not None:
        tuned.append(f"policy: one setting, {policy_seconds / 60:.1f} minutes of training")
    return reference, [*notes, *tuned]


def _write_curves(path: Path, name: str, points: list[Any]) -> None:
    rows = [(int(point.epoch), f"{name}/{point.name}", float(point.value)) for point in points]
    if rows:
        temporary = path.with_suffix(".part")
        pl.DataFrame(rows, schema=_CURVES_SCHEMA, orient="row").write_parquet(temporary)
        temporary.replace(path)
