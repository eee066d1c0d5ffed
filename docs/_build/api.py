"""The API reference: one page per folder of the packages, whose modules mkdocstrings reads without importing them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "recsys": "contracts, semantic IDs, data, model, decoding, training, reward model, alignment, evaluation, reports",
    "features": "from raw logs to histories and item embeddings",
    "serving": "the bundle, what a request may ask, answers, the batch job, the registry",
    "pipelines": "recipes, stages, the runner, release, simulation, command line",
}
_ROLE = re.compile(r":(?:class|func|mod|meth|data|attr|exc|obj):<code>(?P<name>[^<]+)</code>")


def pages() -> dict[str, str]:
    """Return page path to Markdown: an index, and a page for each folder that holds modules with a docstring."""
    found, lines = {}, ["# API", "", "Every public name, from its signature and docstring.", ""]
    for package, about in PACKAGES.items():
        lines += [f"## {package}", "", f"{about[0].upper()}{about[1:]}.", "", "| package | |", "|---|---|"]
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            modules = modules_of(folder)
            if not modules:
                continue
            name = ".".join(folder.relative_to(ROOT).parts)
            found[f"reference/api/{name}.md"] = page(name, modules)
            lines.append(f"| [`{name}`]({name}.md) | {', '.join(f'`{m}`' for m in modules)} |")
        lines.append("")
    return {"reference/api/index.md": "\n".join(lines), **found}


def modules_of(folder: Path) -> list[str]:
    """Return the modules of a folder, without its ``__init__`` and what begins with an underscore."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def page(name: str, modules: list[str]) -> str:
    """Return the page of one folder."""
    blocks = [f"## {name}.{module}\n\n::: {name}.{module}\n" for module in modules]
    return "\n".join([f"# {name}\n", *blocks])


def with_links(content: str) -> str:
    """Turn Sphinx roles, which Markdown does not know, into links where the site has the name.

    Example:
        >>> with_links("see :class:<code>~recsys.config.FrozenConfig</code>")
        'see <autoref optional identifier="recsys.config.FrozenConfig"><code>FrozenConfig</code></autoref>'
    """

    def link(match: re.Match[str]) -> str:
        full = match["name"].lstrip("~")
        shown = full.rpartition(".")[2] if match["name"].startswith("~") else full
        return f'<autoref optional identifier="{full}"><code>{shown}</code></autoref>'

    return _ROLE.sub(link, content)
