"""The page of reproductions: renewing one section leaves the others as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.reproduction.pack import pack_names, read_pack
from pipelines.reproduction.page import write_page
from pipelines.reproduction.run import RESULT_FILE


def put(folder: Path, name: str, mean: float) -> None:
    """A result of a pack, as `recsys reproduce` leaves it."""
    pack = read_pack(name)
    figures: list[dict[str, Any]] = [
        {"system": "generative (served)", "metric": metric, "seen": seen, "mean": mean, "low": mean, "high": mean}
        | {"seed_margin": None}
        for metric in pack.metrics
        for seen in pack.seen
    ]
    result = {"title": pack.title, "rows": 5, "users": 5, "recipe": "a.yaml", "overrides": [], "seeds": [17]}
    result |= {
        "figures": figures,
        "expected": [],
        "data": {"a.parquet": "f" * 64},
        "compared": True,
        "data_differs": [],
    }
    (folder / name).mkdir(parents=True)
    (folder / name / RESULT_FILE).write_text(json.dumps(result))


def sections(page: Path) -> dict[str, str]:
    return {part.partition("\n")[0]: part.rstrip() for part in page.read_text().split("\n## ")[1:]}


@pytest.mark.parametrize("name", ["tiger_beauty", "minionerec_industrial", "hstu_movielens1m"])
def test_the_sections_of_other_packs_stay(tmp_path: Path, name: str) -> None:
    page, title = tmp_path / "page.md", read_pack(name).title
    for other in pack_names():
        if other != "tiger_toys":  # which is never run
            put(tmp_path / "all", other, 0.1111)
    write_page(page, tmp_path / "all")
    before, head = sections(page), page.read_text().splitlines()[2]
    put(tmp_path / "one", name, 0.2222)
    write_page(page, tmp_path / "one")
    after = sections(page)
    assert list(after) == list(before)
    assert [other for other in after if after[other] != before[other]] == [title]
    assert ".2222" in after[title]
    assert "has not been run for this page" in after[read_pack("tiger_toys").title]
    now = page.read_text().splitlines()[2]
    assert now == head.replace(f"{title}: served {metric(name)} .1111", f"{title}: served {metric(name)} .2222") != head
    write_page(page, tmp_path / "one")
    assert sections(page) == after


def metric(name: str) -> str:
    return next(m for m in reversed(read_pack(name).metrics) if m.startswith("ndcg") and "_by_id@" not in m)


def test_a_first_page_has_published_rows_alone(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    write_page(tmp_path / "new" / "page.md", tmp_path / "none")
    found = sections(tmp_path / "new" / "page.md")
    assert len(found) == len(pack_names())
    assert all("has not been run for this page" in text for text in found.values())
    page = tmp_path / "new" / "page.md"
    page.write_text(page.read_text().replace("| TIGER |", "| TIGRE |"))  # a misprint, mended in the pack since
    put(tmp_path / "one", "tiger_toys", 0.3333)
    write_page(page, tmp_path / "one")
    assert "TIGRE" not in page.read_text()
    assert ".3333" in sections(tmp_path / "new" / "page.md")[read_pack("tiger_toys").title]
