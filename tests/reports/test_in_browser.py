"""The pages in a real browser, at the width of a telephone and of a screen: no error, no request, nothing runs over."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from recsys.reports.data.page import data_page
from tests.toy.data_report import FACTS, LEAK, NONE, REPORT
from tests.toy.reports import (
    alignment_report,
    change,
    evaluation_of,
    hostile_ring,
    write_alignment_toy,
    write_ring_page,
)

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = (390, 1280)
SMALLEST_LETTER = 11.0
"""In pixels as shown."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium, or .ci/run does it"),
]

OVER_THE_EDGE = """() => [...document.querySelectorAll('body *')].filter(element => {
    if (element.closest('.scroll') || element.closest('svg') || !element.checkVisibility()) return false;
    return element.getBoundingClientRect().right > window.innerWidth + 1;
}).map(element => element.outerHTML.slice(0, 120))"""
SMALL_TEXT = """least => [...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return [...svg.querySelectorAll('text')].filter(
        text => parseFloat(getComputedStyle(text).fontSize) * scale < least).map(text => text.textContent);
})"""
OUTSIDE_ITS_FIGURE = """() => [...document.querySelectorAll('svg[role=img] text')].filter(text => {
    const box = text.getBoundingClientRect(), figure = text.closest('svg').getBoundingClientRect();
    return box.left < figure.left - 1 || box.right > figure.right + 1 || box.top < figure.top - 1
        || box.bottom > figure.bottom + 1;
}).map(text => text.textContent)"""
BROKEN_KEYS = """() => [...document.querySelectorAll('dt code, th code')].filter(code => {
    const line = parseFloat(getComputedStyle(code).fontSize) * 2;
    const words = code.innerHTML.split('<wbr>').length;
    return code.checkVisibility() && code.getBoundingClientRect().height > line * words;
}).map(code => code.textContent)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: it comes with the extra `dev`")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"), executable_path=CHROMIUM, args=ARGUMENTS, headless=True
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An evaluation with everything, the least one there can be, and two alignments; all with hostile texts."""
    folder = tmp_path_factory.mktemp("pages")
    ring = hostile_ring(folder / "ring")
    evaluation_of(ring, folder / "evaluation", ["popularity", "repeat_last", "item_knn", "ease", "markov"], "markov")
    write_ring_page(folder / "report.html", folder / "evaluation", ring)
    one = hostile_ring(folder / "one", users=1)
    evaluation_of(one, folder / "least", ["popularity"], None)
    write_ring_page(folder / "least.html", folder / "least", one, curves=None)
    changes = {"held_out_reward": change(0.1, 0.05, 0.2), "beam_hr@1": change(-0.1, -0.2, 0.1)}
    broken = ("beam_recall@10 fell by 0.1000 [-0.2000, -0.0500] while beam_hr@1 rose by 0.1000",)
    write_alignment_toy(folder / "aligned", alignment_report(changes, broken=broken))
    write_alignment_toy(folder / "kept", alignment_report({}, kept=0), curves=False)
    changed = {"kind": "users", "words": "other users " * 20, "stops": True, "accepted": False}
    changes_of_data = {"before": "the champion", "changes": [changed]}
    findings = [{**LEAK, "severity": "severe", "words": "many words " * 40}, {**LEAK, "split": "valid"}]
    page = data_page(REPORT, FACTS, {**NONE, "findings": findings}, changes_of_data)
    (folder / "data.html").write_text(page)
    return {
        "data": folder / "data.html",
        "evaluation": folder / "report.html",
        "least evaluation": folder / "least.html",
        "alignment": folder / "aligned" / "alignment.html",
        "start kept": folder / "kept" / "alignment.html",
    }


def opened(browser: BrowserContext, path: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """Open a page with all its folded parts, and note what goes wrong and what it asks for."""
    troubles: list[str] = []
    tab = browser.new_page()
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    tab.on("console", lambda message: troubles.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: troubles.append(f"script: {error}"))
    tab.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on(
        "request", lambda request: troubles.append(f"request: {request.url}") if request.url != path.as_uri() else None
    )
    tab.goto(path.as_uri())
    tab.evaluate("() => document.querySelectorAll('details').forEach(element => element.open = true)")
    return tab, troubles


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["evaluation", "least evaluation", "alignment", "start kept", "data"])
def test_page(browser: BrowserContext, pages: dict[str, Path], name: str, width: int) -> None:
    tab, troubles = opened(browser, pages[name], width, "dark" if name == "alignment" else "light")
    try:
        assert tab.evaluate("window.innerWidth") == width
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(OVER_THE_EDGE) == []
        assert tab.evaluate(SMALL_TEXT, SMALLEST_LETTER) == []
        assert tab.evaluate(OUTSIDE_ITS_FIGURE) == []
        assert tab.evaluate(BROKEN_KEYS) == []
        assert tab.locator(".conclusion .sentence").bounding_box()["y"] < 300
        assert troubles == []
    finally:
        tab.close()


@pytest.mark.parametrize("name", ["evaluation", "alignment", "data"])
def test_print(browser: BrowserContext, pages: dict[str, Path], name: str) -> None:
    """On A4, 794 pixels wide with margins of 1 cm, it is dark on light whatever the reader's setting, and nothing is cut."""
    tab, troubles = opened(browser, pages[name], 718, "dark")
    tab.emulate_media(media="print", color_scheme="dark")
    try:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 718
        wide = "() => [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1).length"
        assert tab.evaluate(wide) == 0
        colours = (
            "() => ['color', 'backgroundColor'].map(n => getComputedStyle(document.querySelector('.conclusion'))[n])"
        )
        ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in tab.evaluate(colours))
        assert ink < 150
        assert paper > 650
        assert troubles == []
    finally:
        tab.close()


def test_the_check_finds_what_it_looks_for(browser: BrowserContext, tmp_path: Path) -> None:
    """A page with one fault of each kind: error, request, overflow, small letters, a key broken letter by letter."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<!DOCTYPE html><body style='margin:0'><div style='width:600px'>wide</div><script>nonsense()</script>"
        "<img src='missing.png'><svg role='img' viewBox='0 0 600 50' width='300'><text y='40' font-size='12'>small</text>"
        "<text x='590' y='40' font-size='12'>outside</text></svg>"
        "<dl><dt style='width:5px;overflow-wrap:anywhere'><code>broken</code></dt></dl>"
    )
    tab, troubles = opened(browser, path, 390, "light")
    tab.wait_for_load_state()
    assert tab.evaluate("document.documentElement.scrollWidth") > 390
    assert any("wide" in element for element in tab.evaluate(OVER_THE_EDGE))
    assert tab.evaluate(SMALL_TEXT, SMALLEST_LETTER) == ["small", "outside"]
    assert tab.evaluate(OUTSIDE_ITS_FIGURE) == ["outside"]
    assert tab.evaluate(BROKEN_KEYS) == ["broken"]
    assert any(trouble.startswith("script: ") for trouble in troubles)
    assert any(trouble.endswith("missing.png") for trouble in troubles)
    tab.close()
