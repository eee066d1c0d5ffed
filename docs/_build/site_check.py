"""Check of the built site: nothing is fetched from elsewhere when a page is opened."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "link": "href",
    "image": "href",
    "use": "href",
}
"""Tags whose attribute makes a browser fetch something by itself."""
_HARMLESS_RELATIONS = {"canonical", "next", "prev", "alternate"}
_STYLE = re.compile(r"(?:@import\s+|url\(\s*)['\"]?(?:https?:)?//")


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and set((values.get("rel") or "").split()) <= _HARMLESS_RELATIONS:
            return
        address = values.get(_LOADS.get(tag, "")) or ""
        if re.match(r"(https?:)?//", address):
            self.found.append(f"<{tag}> {address}")


def loads_from_elsewhere(markup: str) -> list[str]:
    """Return what a browser would fetch from another host.

    Example:
        >>> loads_from_elsewhere('<a href="https://a.org">fine</a> <script src="https://b.org/x.js"></script>')
        ['<script> https://b.org/x.js']
    """
    parser = _Loads()
    parser.feed(markup)
    return parser.found


def check(site: Path) -> list[str]:
    """Return one line per page or style sheet that fetches from another host."""
    found = []
    for path in sorted(site.rglob("*.html")):
        found += [
            f"{path.relative_to(site)}: {load}" for load in loads_from_elsewhere(path.read_text(encoding="utf-8"))
        ]
    for path in sorted(site.rglob("*.css")):
        found += [f"{path.relative_to(site)}: {hit}" for hit in _STYLE.findall(path.read_text(encoding="utf-8"))]
    return found


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    print("\n".join(problems) or "site: nothing is fetched from elsewhere")
    sys.exit(1 if problems else 0)
