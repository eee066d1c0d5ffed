"""The HTML report: one file, well formed, nothing loaded from elsewhere, every figure readable."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, DataError
from recsys.data.histories import Histories
from recsys.evaluation.baselines.config import BaselinesConfig
from recsys.evaluation.baselines.registry import build_baselines
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from recsys.reports.evaluation import write_report
from recsys.reports.html import facts
from tests.toy.dataset import ring_prepared

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Balance(HTMLParser):
    """Counts open elements, and notes attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def evaluation_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared: Dataset = ring_prepared(tmp_path_factory.mktemp("ring"))
    histories = Histories.from_targets(prepared.history, prepared.targets(TEST))
    rankings = {}
    for ranker in build_baselines(["popularity", "repeat_last", "markov"], BaselinesConfig()):
        ranker.fit(prepared, 0, "train")
        rankings[ranker.name] = {exclude: ranker.rank(histories, 10, exclude) for exclude in (True, False)}
    out_dir = tmp_path_factory.mktemp("evaluation")
    evaluate(prepared, rankings, EvaluateConfig(ks=(1, 5, 10), reference="markov", resamples=100), out_dir, seed=0)
    return out_dir


CURVES = pl.DataFrame(
    {
        "epoch": [0, 1, 0, 1],
        "name": ["train_loss", "train_loss", "sasrec/ndcg@10", "sasrec/ndcg@10"],
        "value": [3.0, 2.0, 0.1, 0.2],
    }
)


def write(out_file: Path, evaluation_dir: Path, curves: pl.DataFrame | None = CURVES) -> str:
    write_report(
        out_file,
        title="Ring <& friends>",
        evaluation_dir=evaluation_dir,
        curves=curves,
        tokenizer_report={"levels": [{"utilisation": 1.0}, {"utilisation": 0.75}], "collisions": {"traffic": 0.125}},
        data_report={"users": 12345},
        lineage={"seed": 7, "prepare": {"digest": "abc123"}},
    )
    return out_file.read_text(encoding="utf-8")


def test_page_is_whole_and_loads_nothing(evaluation_dir: Path, tmp_path: Path) -> None:
    html = write(tmp_path / "deep" / "report.html", evaluation_dir)
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert all(target.startswith("#") for target in parser.loads), parser.loads
    assert "<script" not in html
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    text = " ".join(parser.text)
    for expected in (
        "Ring <& friends>",
        "markov",
        "12,345",
        "abc123",
        "levels.utilisation",
        "0.75",
        "collisions.traffic",
    ):
        assert expected in text, expected


def test_figures_are_readable_svg_in_the_colour_of_the_page(evaluation_dir: Path, tmp_path: Path) -> None:
    """Six figures: forest, two of metrics by k, slices, curves in one figure, so 5 in all."""
    html = write(tmp_path / "report.html", evaluation_dir)
    figures = re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.attrib["viewBox"]
        assert root.attrib["aria-label"]
        assert "currentColor" in figure
        assert "#010203" not in figure
        assert len(list(root.iter())) > 20
    assert "popularity" in figures[0]


def test_same_input_same_bytes(evaluation_dir: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "a.html", evaluation_dir) == write(tmp_path / "b.html", evaluation_dir)


def test_sections_without_material_are_left_out(evaluation_dir: Path, tmp_path: Path) -> None:
    html = write(tmp_path / "report.html", evaluation_dir, curves=None)
    assert 'id="curves"' not in html
    assert 'id="results"' in html


def test_facts_keep_histograms_out_of_the_level_table() -> None:
    assert "<td>1, 2, 3, 4, 5, 6, 7, 8, 9</td>" in facts({"histogram": list(range(1, 10))})
    assert "per level" not in facts({"histogram": list(range(1, 10))})


def test_refusals(evaluation_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        write(tmp_path / "report.html", tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected 'name', 'value', and 'step' or 'epoch'"):
        write(tmp_path / "report.html", evaluation_dir, curves=CURVES.rename({"value": "loss"}))
