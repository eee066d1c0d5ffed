"""Hooks of mkdocs: add the generated pages, draw the diagrams into the pages, check the finished site."""

from __future__ import annotations

import logging
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # mkdocs started as a script has its own folder there instead
    sys.path.insert(0, str(ROOT))

from docs._build import api, command_line, configuration, repository_pages, results, site_check  # noqa: E402

_LOG = logging.getLogger("mkdocs.recsys")
_DIAGRAM = re.compile(r"^<!-- diagram: (?P<name>[\w-]+) -->$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the generated pages into the navigation."""
    config.nav = _filled(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated; nothing of it is written into the source tree."""
    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    for path, picture in results.pictures().items():
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put diagrams, the demo's table and the guard's rules where a page asks for them."""
    markdown = markdown.replace("<!-- demo table -->", repository_pages.demo_table())
    if "<!-- guard rules -->" in markdown:
        from recsys.alignment.rounds import rules  # torch and all: only for the page that asks

        markdown = markdown.replace("<!-- guard rules -->", rules.table())
    return _DIAGRAM.sub(lambda match: drawing(match["name"]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Link the names in docstrings."""
    return api.with_links(html)


def on_post_build(config: MkDocsConfig) -> None:
    """Fail a strict build when a page would fetch something from another host."""
    for problem in site_check.check(Path(config.site_dir)):
        _LOG.warning("fetched from elsewhere: %s", problem)


@cache
def generated() -> dict[str, str]:
    """Return all generated pages, path to Markdown."""
    found: dict[str, str] = {}
    for generator in (configuration, command_line, results, api, repository_pages):
        found |= generator.pages()
    return found


def _filled(entry: Any) -> Any:
    """Replace every "generated: FOLDER" by the list of the pages that were made in this folder."""
    if isinstance(entry, list):
        return [_filled(child) for child in entry]
    if isinstance(entry, dict):
        return {title: _filled(child) for title, child in entry.items()}
    folder = entry.removeprefix("generated: ")
    return entry if folder == entry else [path for path in generated() if path.startswith(f"{folder}/")]


def drawing(name: str) -> str:
    """Return a diagram as inline SVG, so that it takes the colours of the page."""
    svg = (ROOT / "docs" / "diagrams" / f"{name}.svg").read_text(encoding="utf-8")
    svg = re.sub(r"\n\s*", "", svg)
    return f'<figure class="diagram">{svg}</figure>'
