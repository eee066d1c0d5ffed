"""Read what a configuration class says about its keys: docstrings, types, defaults, limits.

The meaning of a key is its line in the ``Attributes`` section of the class, or the string that follows the field.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from recsys.config import FrozenConfig

_ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*): ?(?P<text>.*)$")
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "string",
    Path: "path",
    type(None): "none",
    Any: "anything",
}


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        path: Where it stands, for example ``train.max_epochs``.
        kind: Its type, its allowed values and its limits, in words.
        default: As YAML would write it; ``None``: the key must be given.
        meaning: Markdown, empty where the class says nothing.
        section: What a recipe gets that leaves a section out; ``None`` for plain keys.
    """

    path: str
    kind: str
    default: str | None
    meaning: str
    section: FrozenConfig | None = None


def attribute_docs(config_class: type) -> dict[str, str]:
    """Return field name to meaning, of the class and of the classes it inherits from.

    Example:
        >>> class Cake(FrozenConfig):
        ...     '''A cake.
        ...
        ...     Attributes:
        ...         eggs: How many,
        ...             at least two.
        ...     '''
        ...     eggs: int = 2
        >>> attribute_docs(Cake)
        {'eggs': 'How many, at least two.'}
    """
    found: dict[str, str] = {}
    for current in reversed(config_class.__mro__):
        if current in FrozenConfig.__mro__:
            continue
        found |= _section(inspect.cleandoc(current.__doc__ or ""))
        found |= dict(_strings_after_fields(current))
    return found


def _section(docstring: str) -> dict[str, str]:
    """Entries of ``Attributes:``; a line that is indented deeper goes on with the entry above it."""
    _, found, rest = docstring.partition("Attributes:\n")
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines() if found else []:
        if line and not line.startswith("    "):
            break
        match = _ENTRY.match(line)
        if match:
            names = match["names"].split(", ")
            entries |= dict.fromkeys(names, match["text"])
        elif line.strip():
            entries |= {name: f"{entries[name]} {line.strip()}" for name in names}
    return entries


def _strings_after_fields(config_class: type) -> Iterator[tuple[str, str]]:
    try:
        source = textwrap.dedent(inspect.getsource(config_class))
    except OSError:  # a class made in a shell or a doctest has no source
        return
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        is_field = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if is_field and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield field.target.id, " ".join(inspect.cleandoc(str(after.value.value)).split())


def keys_of(
    config_class: type[FrozenConfig], prefix: str = "", defaults: FrozenConfig | None = None
) -> Iterator[tuple[Key, list[type[FrozenConfig]]]]:
    """Yield the keys of one class in order, each with the configuration classes that stand below it.

    Args:
        prefix: Path of the section that the class configures.
        defaults: The section as it is when a recipe leaves it out, where that is not the class's own defaults.
    """
    meanings = attribute_docs(config_class)
    for name, field in config_class.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        children = nested(field.annotation)
        kind = "section" if children else in_words(field.annotation, field.metadata)
        value = getattr(defaults, name) if defaults is not None else field.get_default(call_default_factory=True)
        default = None if value is PydanticUndefined else value
        text = None if value is PydanticUndefined else "" if isinstance(value, FrozenConfig) else yaml_text(value)
        section = default if isinstance(default, FrozenConfig) else None
        yield Key(path, kind, text, meanings.get(name, ""), section), children


def nested(annotation: Any) -> list[type[FrozenConfig]]:
    """Return the configuration classes inside an annotation, in order, each once."""
    if isinstance(annotation, type) and issubclass(annotation, FrozenConfig):
        return [annotation]
    found = [child for part in get_args(annotation) if not isinstance(part, str) for child in nested(part)]
    return list(dict.fromkeys(found))


def has_key(path: str, config_class: type[FrozenConfig]) -> bool:
    """Say whether a dotted path leads to a key; below a key that takes any mapping every name is one.

    Example:
        >>> class Cake(FrozenConfig):
        ...     eggs: int = 2
        ...     tiers: dict[str, int] = {}
        >>> [has_key(path, Cake) for path in ("eggs", "tiers.lower", "egg", "eggs.shell")]
        [True, True, False, False]
    """
    name, dot, rest = path.partition(".")
    field = config_class.model_fields.get(name)
    if field is None:
        return False
    below = nested(field.annotation)
    free = not below and any(get_origin(part) in (dict, Mapping) for part in (field.annotation, *get_args(field.annotation)))
    return not dot or free or any(has_key(rest, child) for child in below)


def in_words(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """Say what values an annotation admits.

    Example:
        >>> in_words(Literal["a", "b"]), in_words(list[int]), in_words(int | None)
        ('`a`, `b`', 'list of whole numbers', 'whole number, or none')
    """
    limits = "".join(_limit(item) for item in metadata)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(parts[0], parts[1:]) + limits
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        words = [in_words(part) + ("" if part is type(None) else limits) for part in parts]
        return ", or ".join(words)
    if origin in (list, tuple, set, frozenset):
        return f"list of {_plural(in_words(next(part for part in parts if part is not Ellipsis)))}{limits}"
    if origin is dict:
        return f"mapping of {_plural(in_words(parts[0]))} to {_plural(in_words(parts[1]))}{limits}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation))) + limits


def _plural(words: str) -> str:
    """Put the first noun of a type into the plural: ``number, at least 0`` becomes ``numbers, at least 0``."""
    noun, comma, rest = words.partition(",")
    return f"{noun}s{comma}{rest}" if noun in (_WORDS[int], _WORDS[float], _WORDS[str], _WORDS[Path]) else words


def _limit(item: Any) -> str:
    words = [f", {word} {getattr(item, name):g}" for name, word in _LIMITS.items() if hasattr(item, name)]
    if getattr(item, "min_length", None) is not None:
        words.append(f", at least {item.min_length} of them")
    if getattr(item, "pattern", None):
        words.append(f", matching `{item.pattern}`")
    if isinstance(item, FieldInfo):
        words += [_limit(inner) for inner in item.metadata]
    return "".join(words)


def yaml_text(value: Any) -> str:
    """Return a value on one line of YAML.

    Example:
        >>> yaml_text(None), yaml_text((1, 5)), yaml_text({"rule": 1.0}), yaml_text(True)
        ('null', '[1, 5]', '{rule: 1.0}', 'true')
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml_text(key)}: {yaml_text(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(yaml_text(child) for child in value) + "]"
    if isinstance(value, FrozenConfig):
        return yaml_text(value.model_dump(exclude_defaults=True))
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
