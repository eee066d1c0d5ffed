"""Pages that are files of the repository: decisions and changelog, with links that hold on the site."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SITE = {"DECISIONS.md": "decisions.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
_LINK = re.compile(r"\]\((?P<target>[A-Za-z_./]+\.md)\)")


def pages() -> dict[str, str]:
    """Return page path to Markdown."""
    return {
        page: _LINK.sub(lambda match: f"]({_SITE.get(match['target'], match['target'])})", _read(name))
        for name, page in _SITE.items()
        if name != "README.md"
    }


def demo_table() -> str:
    """Return the demo's table as README shows it, with its fences.

    Raises:
        RuntimeError: README has lost its markers.
    """
    match = re.search(r"<!-- demo table -->\n(.*?)\n<!-- end demo table -->", _read("README.md"), re.DOTALL)
    if match is None:
        raise RuntimeError(
            "README.md needs the table of the demo between '<!-- demo table -->' and '<!-- end demo table -->'"
        )
    return match[1]


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
