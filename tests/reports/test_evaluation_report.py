"""The HTML reports: one file, well formed, nothing loaded from elsewhere, every figure readable, every text escaped."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, DataError
from recsys.evaluation.evaluate import METRICS_FILE, SUMMARY_FILE
from recsys.reports.html import facts, item_title
from tests.toy.reports import (
    CURVES,
    HOSTILE_TITLES,
    alignment_report,
    change,
    evaluation_of,
    hostile_ring,
    write_alignment_toy,
    write_ring_page,
)

VOID = {"meta", "br", "img", "link", "input", "hr", "wbr"}


class Balance(HTMLParser):
    """Counts open elements, and notes attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on")]


def checked(html: str) -> str:
    """Parse a page, hold it against what every page keeps, and return its text."""
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert all(target.startswith("#") for target in parser.loads), parser.loads
    assert not parser.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert len(parser.ids) == len(set(parser.ids))
    assert {target[1:] for target in parser.loads} <= set(parser.ids)
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    return "".join(parser.text)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return hostile_ring(tmp_path_factory.mktemp("ring"))


@pytest.fixture(scope="module")
def evaluation_dir(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("evaluation")
    evaluation_of(ring, out_dir, ["popularity", "repeat_last", "markov"], "markov")
    return out_dir


def test_page_is_whole_and_loads_nothing(ring: Dataset, evaluation_dir: Path, tmp_path: Path) -> None:
    text = checked(write_ring_page(tmp_path / "deep" / "report.html", evaluation_dir, ring))
    for expected in (
        "Ring <& friends>",
        "The reference system, markov, is better than the best baseline",
        "12,345",
        "abc123",
        "levels.utilisation",
        "0.75",
        "collisions.traffic",
        "Should fall quickly, then flatten.",
        "3 of 3",  # codes in use at the first level of the ring's IDs
        "hit at place",
    ):
        assert expected in text, expected


def test_titles_are_text_whatever_they_hold(ring: Dataset, evaluation_dir: Path, tmp_path: Path) -> None:
    html = write_ring_page(tmp_path / "report.html", evaluation_dir, ring)
    text = checked(html)
    shown = [title for title in HOSTILE_TITLES if title and title in text]
    assert '<script>alert("x")</script>' in shown
    assert "</style></section><img src=x onerror=alert(1)>" in shown
    assert "W" * 400 not in text
    assert "W" * 110 + "…" in text
    assert "\x00" not in html
    assert re.search(r"<code>i(7|8|9)</code>", html)  # without a title the item_id stands in


def test_a_title_is_isolated_and_cut() -> None:
    assert item_title("שלום", 1) == "<bdi>שלום</bdi>"
    assert item_title("a\x00b", 1) == "<bdi>a b</bdi>"
    assert item_title(None, "<7>") == "<code>&lt;7&gt;</code>"
    assert item_title('"' * 111, 1) == f'<bdi title="{"&quot;" * 111}">{"&quot;" * 110}…</bdi>'


def test_figures_are_readable_svg_in_the_colour_of_the_page(
    ring: Dataset, evaluation_dir: Path, tmp_path: Path
) -> None:
    """Two panels of paired differences, four metrics with and without seen items, slices, three curves, tree, two levels."""
    html = write_ring_page(tmp_path / "report.html", evaluation_dir, ring)
    figures = re.findall(r'<svg role="img".*?</svg>', html, flags=re.DOTALL)
    slices = sum(rows > 0 for rows in json.loads((evaluation_dir / SUMMARY_FILE).read_text())["slices"].values())
    assert len(figures) == 2 + 2 * 4 + slices + 3 + 1 + 2
    for figure in figures:
        root = ElementTree.fromstring(figure)
        width = float(root.attrib["viewBox"].split()[2])
        assert width == pytest.approx(324, abs=1)
        assert root.attrib["aria-label"]
        assert "currentColor" in figure
        assert "#01020" not in figure
        sizes = [float(size) for size in re.findall(r'font(?:-size)?[:=]\s*"?(\d+)', figure)]
        assert min(sizes) >= 11
    assert "popularity" in figures[0]


def test_same_input_same_bytes(ring: Dataset, evaluation_dir: Path, tmp_path: Path) -> None:
    pages = [write_ring_page(tmp_path / name, evaluation_dir, ring) for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_sections_without_material_are_left_out(ring: Dataset, evaluation_dir: Path, tmp_path: Path) -> None:
    html = write_ring_page(tmp_path / "report.html", evaluation_dir, ring, curves=None)
    assert 'id="curves"' not in html
    assert 'id="results"' in html


def test_one_system_one_user_no_reference(tmp_path: Path) -> None:
    ring = hostile_ring(tmp_path / "ring", users=1)
    evaluation_of(ring, tmp_path / "evaluation", ["popularity"], None)
    text = checked(write_ring_page(tmp_path / "report.html", tmp_path / "evaluation", ring, curves=None))
    assert "nothing was compared; popularity has the highest ndcg@10" in text
    assert "1 of 1 rows of the test split" in text
    assert "Paired differences" not in text


def test_numbers_that_were_not_measured_are_dashes(ring: Dataset, evaluation_dir: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "evaluation"
    out_dir.mkdir()
    for path in evaluation_dir.iterdir():
        (out_dir / path.name).write_bytes(path.read_bytes())
    summary = json.loads((out_dir / SUMMARY_FILE).read_text())
    for by_metric in summary["systems"]["popularity"].values():
        by_metric["ndcg@10"] = {"mean": None, "low": None, "high": None}
    (out_dir / SUMMARY_FILE).write_text(json.dumps(summary))
    unknown = pl.when((pl.col("system") != "popularity") | ~pl.col("metric").str.starts_with("ndcg"))
    metrics = pl.read_parquet(out_dir / METRICS_FILE)
    metrics.with_columns(unknown.then(pl.col("mean", "low", "high"))).write_parquet(out_dir / METRICS_FILE)
    html = write_ring_page(tmp_path / "report.html", out_dir, ring)
    text = checked(html)
    assert "popularity · not measured" in text
    assert "nan" not in text.lower()
    row = re.search(r"<tr><td>popularity</td>.*?</tr>", html)
    assert row is not None
    assert row[0].count(">–</td>") == 2


def test_facts_keep_histograms_out_of_the_level_table() -> None:
    assert "<dd>1, 2, 3, 4, 5, 6, 7, 8, 9</dd>" in facts({"histogram": list(range(1, 10))})
    assert "per level" not in facts({"histogram": list(range(1, 10))})


def test_alignment_page(tmp_path: Path) -> None:
    hostile = 'reward <b>"fell"</b>'
    report = alignment_report({"beam_hr@1": change(0.1, 0.05, 0.2)}, broken=(hostile,))
    text = checked(write_alignment_toy(tmp_path / "aligned", report))
    assert "The aligned policy (round 1 of 1) is better than the start" in text
    assert text.count(hostile) == 2  # in the conclusion and in the table
    assert "Alignment of <'ring'>" in text
    assert "alignment tax" not in text  # a panel without lines is left out, and its words with it
    kept = alignment_report({}, kept=0)
    assert "Alignment changed nothing" in checked(write_alignment_toy(tmp_path / "kept", kept, curves=False))


def test_refusals(ring: Dataset, evaluation_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        write_ring_page(tmp_path / "report.html", tmp_path / "nowhere", ring)
    with pytest.raises(DataError, match="expected 'name', 'value', and 'step' or 'epoch'"):
        write_ring_page(tmp_path / "report.html", evaluation_dir, ring, curves=CURVES.rename({"value": "loss"}))
