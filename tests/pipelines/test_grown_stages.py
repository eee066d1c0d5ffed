"""Nights through the stages: prepared data, vectors and semantic IDs, each from those of the night before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.config import RunConfig, load_run_config
from pipelines.engine.runner import Runner
from pipelines.stages import EMBED, PREPARE, TOKENIZE
from recsys.contracts.errors import CannotGrow
from recsys.contracts.manifest import Artifact, ArtifactStore
from recsys.runtime import PlainProgress
from recsys.semantic_ids.generations.comparison import compare
from recsys.semantic_ids.versions import SemanticIds

ITEMS = 40
GROUPS = 4


def write_night(folder: Path, items: list[int], seed: int) -> Path:
    """Users walk inside one of four groups of items; an item's category is its group. Later items sort before the others."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rows = []
    for user in range(60):
        own = [item for item in items if item % GROUPS == user % GROUPS]
        for step, place in enumerate(rng.permutation(len(own))[:6]):
            rows.append(
                {"user_id": user, "item_id": f"i{99 - own[place]}", "timestamp": 1_700_000_000 + 1000 * user + step}
            )
    pl.DataFrame(rows).write_parquet(folder / "interactions.parquet")
    names = [f"i{99 - item}" for item in items]
    frame = pl.DataFrame({"item_id": names, "group": [f"g{item % GROUPS}" for item in items]})
    frame.write_parquet(folder / "items.parquet")
    return folder


@dataclass
class Nights:
    root: Path

    def config(self, folder: Path, **tokenize: Any) -> RunConfig:
        return RunConfig.model_validate(
            {
                "output_dir": str(self.root / "run"),
                "source": {
                    "kind": "table",
                    "path": str(folder),
                    "items": "items.parquet",
                    "timestamp_unit": "s",
                    "item_columns": {"categories": [{"column": "group"}]},
                },
                "features": {"items": {"keep_items_without_events": True}},
                "embed": {"text": {"model": None}, "collaborative": {"dim": 6}, "fusion": {"dim": 8}},
                "tokenize": {"codebook_size": 4, **tokenize},
            }
        )

    def run(self, config: RunConfig, bases: dict[str, Artifact] | None = None) -> dict[str, Artifact]:
        store = ArtifactStore(self.root / "run" / "artifacts")
        runner = Runner(config, config.seed, store, PlainProgress(), bases=bases or {})
        runner.run_all((PREPARE, EMBED, TOKENIZE))
        return {name: outcome.artifact for name, outcome in runner.outcomes.items()}


def bases_of(night: dict[str, Artifact]) -> dict[str, Artifact]:
    return {name: night[name] for name in ("embed", "tokenize")}


def ids_of(night: dict[str, Artifact]) -> SemanticIds:
    return SemanticIds.load(night["tokenize"].path)


def test_three_nights_and_a_new_generation(tmp_path: Path) -> None:
    """30 items; then 4 leave and 6 come; then all are back. No ID moves, rows do; the next generation is named after it."""
    nights = Nights(tmp_path)
    first = nights.run(nights.config(write_night(tmp_path / "1", list(range(30)), 1)))
    second = nights.run(nights.config(write_night(tmp_path / "2", list(range(4, 36)), 2)), bases_of(first))
    third_config = nights.config(write_night(tmp_path / "3", list(range(ITEMS)), 3))
    third = nights.run(third_config, bases_of(second))
    assert second["tokenize"].manifest.parents["base:tokenize"] == first["tokenize"].digest
    assert {night["embed"].manifest.summary["space"] for night in (first, second, third)} == {
        first["embed"].manifest.summary["space"]
    }
    tables = [ids_of(night) for night in (first, second, third)]
    for old, new in ((0, 1), (1, 2), (0, 2)):
        found = compare(tables[old], tables[new])
        assert (found["same_generation"], found["items"]["moved"]) == (True, 0)
        tables[new].check_same(tables[old].digest, allow_grown=True)
    published = dict(zip(tables[0].item_ids, tables[0].sids(), strict=True))
    final = dict(zip(tables[2].item_ids, tables[2].sids(), strict=True))
    assert {item: final[item] for item in published} == published
    assert tables[2].item_ids.to_list()[:30] != tables[0].item_ids.to_list()
    assert len(set(final.values())) == ITEMS
    summary = third["tokenize"].manifest.summary
    assert (summary["version"], summary["growth"]["returned"], summary["growth"]["new"]) == (2, 4, 4)
    again = nights.run(third_config, bases_of(second))
    assert again["tokenize"].path == third["tokenize"].path

    anew = nights.config(tmp_path / "3", generation="new")
    fourth = nights.run(anew, {"tokenize": third["tokenize"]})
    assert fourth["embed"].digest == nights.run(anew)["embed"].digest  # an ordinary fit
    named = ids_of(fourth)
    assert named.generation != tables[2].generation
    assert set(named.aligned_to) == {table.digest for table in tables}
    plain = ids_of(nights.run(anew))
    kept = [compare(tables[2], table)["levels"][0]["up_to"]["traffic"] for table in (named, plain)]
    assert kept[0] > kept[1]


def test_a_table_does_not_grow_on_vectors_of_another_space(tmp_path: Path) -> None:
    """The bases name tokenize alone, so that `embed` is fitted anew."""
    nights = Nights(tmp_path)
    first = nights.run(nights.config(write_night(tmp_path / "1", list(range(30)), 1)))
    with pytest.raises(CannotGrow, match="let `embed` grow from the same generation, or start a new one"):
        nights.run(nights.config(write_night(tmp_path / "2", list(range(36)), 2)), {"tokenize": first["tokenize"]})


def test_limits_and_the_word_for_a_new_generation_enter_no_digest_without_a_base(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    folder = write_night(tmp_path / "1", list(range(30)), 1)
    first = nights.run(nights.config(folder))["tokenize"]
    other = nights.run(nights.config(folder, generation="new", keep_within=0.3, refit={"max_fill": 0.1}))["tokenize"]
    assert first.digest == other.digest


@pytest.mark.data
def test_cold_items_of_a_shop_land_among_their_category(tmp_path: Path) -> None:
    """Amazon Scientific without the events of a tenth of its items: placed by attributes alone, they share the first code
    with founders of their category ten times as often as in any other order; founders do so among themselves fifteen times.
    """
    source = Path(os.environ["RECSYS_DATA"]) / "amazon18_scientific"
    events = pl.read_parquet(source / "interactions.parquet")
    known = events["item_id"].unique().sort()
    cold = known.gather(np.random.default_rng(0).permutation(len(known))[: len(known) // 10])
    folder = tmp_path / "shop"
    folder.mkdir()
    events.filter(~pl.col("item_id").is_in(cold.implode())).write_parquet(folder / "interactions.parquet")
    (folder / "items.parquet").symlink_to(source / "items.parquet")
    recipe = Path(__file__).parents[2] / "pipelines" / "recipes" / "scientific.yaml"
    lines = [f"source.path={folder}", f"output_dir={tmp_path / 'run'}", "embed.text.model=null"]
    nights = Nights(tmp_path)
    first = nights.run(load_run_config(recipe, lines))
    keep = "features.items.keep_items_without_events=true"
    night = nights.run(load_run_config(recipe, [*lines, keep]), bases_of(first))
    ids, items = ids_of(night), pl.read_parquet(night["prepare"].path / "items.parquet")
    category, new = items["categories"].list.last().to_numpy(), ids.born > 0
    assert new.sum() == len(cold)

    def share(codes: np.ndarray[Any, Any]) -> float:
        """Mean share of founders of the same category that have the item's first code."""
        found = []
        for name, code in zip(category[new], codes, strict=True):
            same = ids.codes[~new & (category == name), 0]
            if len(same) >= 2:
                found.append((same == code).mean())
        return float(np.mean(found))

    rng = np.random.default_rng(1)
    placed = share(ids.codes[new, 0])
    by_chance = np.mean([share(rng.permutation(ids.codes[new, 0])) for _ in range(5)])
    assert placed > 5 * by_chance
    assert placed > 0.05
    assert night["tokenize"].manifest.summary["figures"]["drift"] < 1.0
