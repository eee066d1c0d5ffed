"""The site builds without a warning, offline, and the generators refuse what they cannot show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs._build import api, command_line, hooks, results
from docs._build.site_check import check, loads_from_elsewhere

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    """What `make docs` does, in another folder; the pages that people open first are there."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert built.returncode == 0, built.stdout + built.stderr
    assert check(site) == []
    for page in ("index", "results/index", "reference/command-line", "reference/configuration/train", "decisions"):
        assert (site / f"{page}.html").is_file(), page
    start = (site / "index.html").read_text(encoding="utf-8")
    assert '<figure class="diagram"><svg' in start
    assert "generative (served)" in start
    assert "FrozenConfig" in (site / "reference/api/recsys.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ('<script src="https://cdn.org/x.js"></script>', ["<script> https://cdn.org/x.js"]),
        ('<link rel="stylesheet" href="//fonts.org/a.css">', ["<link> //fonts.org/a.css"]),
        ('<img src="http://a.org/b.png">', ["<img> http://a.org/b.png"]),
        ('<a href="https://arxiv.org">paper</a><img src="own.png"><link rel="canonical" href="https://a.org">', []),
    ],
)
def test_what_a_browser_would_fetch_is_noticed(markup: str, expected: list[str]) -> None:
    assert loads_from_elsewhere(markup) == expected


def test_a_style_sheet_that_imports_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("@import url('https://fonts.org/f.css');", encoding="utf-8")
    assert len(check(tmp_path)) == 1


def test_every_verb_has_its_help() -> None:
    text = command_line.pages()[command_line.PAGE]
    for verb in ("run", "demo", "prepare", "align", "recommend", "doctor", "simulate"):
        assert f"## recsys {verb}\n" in text
    assert "--tracking-uri" in text


def test_every_result_file_has_a_page_with_finding_and_command() -> None:
    pages = results.pages()
    for name in (*results.QUALITY, *results.SPEED):
        heading, finding, command = results.head(results.text_of(name))
        assert heading
        assert finding.endswith(".")
        assert command
    assert "](../speed/" not in pages["speed/index.md"]
    with pytest.raises(RuntimeError, match="finding in bold"):
        results.head("# A page\n\n| a table | first |\n")


def test_links_between_result_pages_lead_to_pages() -> None:
    assert (
        results.linked("[a](all_prefixes.md) [b](int8.md)", "speed") == "[a](../results/all_prefixes.md) [b](int8.md)"
    )


def test_every_folder_of_the_packages_is_in_the_reference() -> None:
    pages = api.pages()
    for folder in ("recsys.decoding", "features", "serving.answers", "pipelines.engine"):
        assert f"reference/api/{folder}.md" in pages
    assert "::: recsys.decoding.beam_search" in pages["reference/api/recsys.decoding.md"]


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "diagrams").glob("*.svg")), ids=lambda path: path.stem)
def test_a_diagram_is_shown_and_says_what_it_shows(path: Path) -> None:
    """Each is asked for by a page; words for those who cannot see it; drawn in the colours of the page."""
    drawing = hooks.drawing(path.stem)
    assert "<title>" in drawing
    assert "<desc>" in drawing
    assert "--md-default-fg-color" in drawing
    assert 'viewBox="0 0 440 ' in drawing
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")]
    assert any(f"<!-- diagram: {path.stem} -->" in page for page in pages)
