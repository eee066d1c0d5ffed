"""The configuration reference: one page per section of a recipe, walked from the pydantic models."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator

from docs._build.model_docs import Key, keys_of
from pipelines.config import RunConfig
from recsys.config import FrozenConfig

FOLDER = "reference/configuration"
_SPHINX_ROLE = ":class:", ":func:", ":mod:", ":meth:", ":data:"


def pages(root: type[FrozenConfig] = RunConfig) -> dict[str, str]:
    """Return page path to Markdown: an index with the keys of the root, and a page for each section."""
    lines = [
        "# Configuration",
        "",
        "Every key of a recipe, read from the classes that validate it. A key that is not listed is refused. On the command line",
        "a key is set with its whole path: `recsys run --config shop.yaml train.max_epochs=5`.",
        "",
        "A default in `code` is as YAML writes it. `null` means not set. A section that is given in part keeps the other defaults",
        "that are shown here. Presets (`model.preset`) fill in what a recipe leaves out.",
        "",
        "## Keys of the recipe itself",
        "",
    ]
    sections, plain, found = [], [], {}
    for key, children in keys_of(root):
        if not children:
            plain.append(key)
            continue
        found[f"{FOLDER}/{key.path}.md"] = section(key, children)
        first = " / ".join(summary(child) for child in children[:1])
        sections.append(f"| [`{key.path}`]({key.path}.md) | {first} |")
    lines += [definitions(plain), "", "## Sections", "", "| section | what it configures |", "|---|---|", *sections, ""]
    return {f"{FOLDER}/index.md": "\n".join(lines), **found}


def section(key: Key, classes: list[type[FrozenConfig]]) -> str:
    """Return the page of one section; where a section has several forms (``source``), each has a heading."""
    path = key.path
    lines = [f"# `{path}`", ""]
    for config_class in classes:
        if len(classes) > 1:
            lines += [f"## {path}, `kind: {kind_of(config_class)}`", ""]
        lines += [*blocks(config_class, path, 2 + (len(classes) > 1), key.section)]
    return _unique_anchors("\n".join(lines))


def _unique_anchors(text: str) -> str:
    """Number the anchors of keys that several forms of a section share."""
    seen: Counter[str] = Counter()

    def numbered(match: re.Match[str]) -> str:
        seen[match[1]] += 1
        return match[0] if seen[match[1]] == 1 else f'<dt id="{match[1]}-{seen[match[1]]}"'

    return re.sub(r'<dt id="([^"]+)"', numbered, text)


def blocks(config_class: type[FrozenConfig], path: str, depth: int, defaults: FrozenConfig | None) -> Iterator[str]:
    """Yield what a class says of itself, its plain keys, and then each section below it under a heading."""
    text = introduction(config_class)
    yield from (text, "")
    plain, below = [], []
    for key, children in keys_of(config_class, path, defaults if isinstance(defaults, config_class) else None):
        (below if children else plain).append((key, children))
    if plain:
        yield from (definitions([key for key, _ in plain]), "")
    for key, children in below:
        for child in children:
            yield from (f"{'#' * min(depth, 6)} `{key.path}`" + optional(key), "")
            yield from blocks(child, key.path, depth + 1, key.section)


def optional(key: Key) -> str:
    """Mark a section that is off unless it is given."""
    return " (not set by default)" if key.default == "null" else ""


def introduction(config_class: type[FrozenConfig]) -> str:
    """Return the docstring of a class up to its list of attributes."""
    text = (config_class.__doc__ or "").partition("Attributes:\n")[0].partition("Example:\n")[0]
    return without_roles(" ".join(text.split()))


def summary(config_class: type[FrozenConfig]) -> str:
    """Return the first sentence of a class's docstring."""
    first = introduction(config_class).split(". ")[0].rstrip(".")
    return f"{first}." if first else ""


def without_roles(text: str) -> str:
    """Turn Sphinx roles into plain code.

    Example:
        >>> without_roles("see :func:`~recsys.config.validate`")
        'see `validate`'
    """
    for role in _SPHINX_ROLE:
        while role in text:
            before, _, rest = text.partition(role + "`")
            name, _, after = rest.partition("`")
            name = name.rpartition(".")[2] if name.startswith("~") else name
            text = f"{before}`{name}`{after}"
    return text.replace("``", "`")


def definitions(keys: list[Key]) -> str:
    """Return keys as a definition list, which reads as well on a telephone as a table would not."""
    rows = [row for key in keys for row in definition(key)]
    return "\n".join(['<dl class="keys" markdown>', *rows, "</dl>"])


def definition(key: Key) -> list[str]:
    """Return one entry: path, type and default, then the meaning."""
    default = "required" if key.default is None else f"default `{key.default}`"
    anchor = html.escape(key.path)
    facts = f"{key.kind} · {default}"
    return [
        f'<dt id="{anchor}" markdown>`{key.path}`</dt>',
        f'<dd markdown><span class="facts" markdown>{facts}</span> {without_roles(key.meaning)}</dd>',
    ]


def kind_of(config_class: type[FrozenConfig]) -> str:
    """Return the value of the discriminating key ``kind``."""
    return str(config_class.model_fields["kind"].default)
