"""The base of every configuration: frozen, strict about unknown keys, with errors that name the key and the way out.

A complete run is one YAML recipe, or one that says ``extends: other.yaml`` and holds what differs; ``key=value`` overrides
reach nested keys (``train.max_epochs=5``). Each configuration class sits beside what it configures; only
``pipelines.config`` composes them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, model_validator

from recsys.contracts.errors import ConfigError
from recsys.paths import checked_path, read_override
from recsys.strict_yaml import load_yaml


class FrozenConfig(BaseModel):
    """Base class: immutable, and an unknown key is an error rather than a silent no-op."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Keys that had another name once: old name to new. An old one is refused with the new one in the message."""

    @model_validator(mode="before")
    @classmethod
    def _a_flag_is_no_number(cls, values: Any) -> Any:
        """Refuse true and false where a number is meant; they would be read as 1 and 0."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, bool) and name in cls.model_fields:
                leaves = _leaves(cls.model_fields[name].annotation)
                if leaves & {int, float} and bool not in leaves:
                    raise ValueError(f"{name} is {str(value).lower()}, expected a number")
        return values

    @model_validator(mode="before")
    @classmethod
    def _a_part_of_a_section_is_laid_over_its_default(cls, values: Any) -> Any:
        """Take what a section leaves out from its default *here*, which may be another than that of its own class."""
        if not isinstance(values, Mapping):
            return values
        filled = {
            name: _laid_over(field.default, values[name])
            for name, field in cls.model_fields.items()
            if field.annotation is type(field.default) and isinstance(values.get(name), Mapping)
        }
        return {**values, **filled} if filled else values


def _laid_over(default: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that ``default`` was made with, and over them those that are given, section by section.

    Example:
        >>> class Oven(FrozenConfig):
        ...     heat: float = 180.0
        ...     fan: bool = False
        >>> _laid_over(Oven(heat=160.0), {"fan": True})
        {'heat': 160.0, 'fan': True}
    """
    result: dict[str, Any] = {}
    if isinstance(default, FrozenConfig):
        result = {
            name: getattr(default, name) for name in type(default).model_fields if name in default.model_fields_set
        }
    for name, value in given.items():
        before = result.get(name)
        both = isinstance(before, FrozenConfig) and isinstance(value, Mapping)
        result[name] = _laid_over(before, value) if both else value
    return result


def _leaves(annotation: Any) -> set[Any]:
    """The plain types of which an annotation is a union; what a container holds is none of them.

    Example:
        >>> _leaves(int | None) == {int, type(None)}, _leaves(tuple[int, ...]) == {tuple[int, ...]}
        (True, True)
    """
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_leaves, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _leaves(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return {type(choice) for choice in get_args(annotation)}
    return {annotation}


ConfigType = TypeVar("ConfigType", bound=FrozenConfig)

EXTENDS: Final = "extends"
"""Key of a recipe that names the recipe it goes on from; the path is relative to the file that holds the key."""


@dataclass(frozen=True)
class Recipe:
    """A recipe with everything it extends.

    Attributes:
        path: The file that was asked for.
        values: The keys of all files, merged; without ``extends``.
        files: Of the same shape as ``values``; every value that is no mapping is replaced by the file it stands in.
    """

    path: Path
    values: dict[str, Any]
    files: dict[str, Any]

    def file_of(self, location: Sequence[str]) -> Path:
        """Return the file that a key stands in; the recipe's own for a key that stands in none, as after an override."""
        node: Any = self.files
        for part in location:  # parts that are no key: tags of unions, places in lists
            if isinstance(node, dict):
                node = node.get(part, node)
        while isinstance(node, dict) and len(node) == 1:
            node = next(iter(node.values()))
        return node if isinstance(node, Path) else self.path


def read_recipe(path: Path) -> Recipe:
    """Read a recipe and the recipes it extends: mappings are merged key by key, anything else is replaced.

    Raises:
        ConfigError: A file cannot be read, ``extends`` is no path, or the files extend each other in a circle.
    """
    return _read_chain(path, ())


def _read_chain(path: Path, above: tuple[Path, ...]) -> Recipe:
    chain = (*above, path)
    if path.resolve() in {other.resolve() for other in above}:
        raise ConfigError(
            f"config '{above[0]}' extends itself: {' -> '.join(map(str, chain))}; remove one of these `{EXTENDS}` keys"
        )
    if above and not path.is_file():
        what = "that is a folder: name the recipe in it" if path.is_dir() else "there is no such file"
        raise ConfigError(
            f"config '{above[-1]}' extends '{path}', and {what}; the path after `{EXTENDS}` is relative "
            f"to the recipe that holds it, '{above[-1].absolute().parent}'"
        )
    values = read_yaml(path)
    if EXTENDS not in values:
        return Recipe(path, values, _files(values, path))
    base = values.pop(EXTENDS)
    if not isinstance(base, str) or not base.strip():
        raise ConfigError(
            f"config '{path}': `{EXTENDS}` is {base!r}, expected the path of one recipe, such as base.yaml"
        )
    try:
        below_path = path.parent / checked_path(base)
    except ValueError as error:
        raise ConfigError(f"config '{path}': `{EXTENDS}` is {base!r}: {error}") from error
    below = _read_chain(below_path, chain)
    return Recipe(path, merge(below.values, values), merge(below.files, _files(values, path)))


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``change`` laid over it: mappings key by key, everything else, lists too, as a whole.

    Example:
        >>> merge({"a": {"x": 1, "y": [1, 2]}, "b": 2}, {"a": {"y": [3]}, "c": 4})
        {'a': {'x': 1, 'y': [3]}, 'b': 2, 'c': 4}
    """
    result: dict[str, Any] = _copy(base)
    for key, value in change.items():
        before = result.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[key] = merge(before, value) if both else _copy(value)  # type: ignore[arg-type]
    return result


def _files(values: Any, path: Path) -> Any:
    if isinstance(values, dict):
        return {key: _files(child, path) for key, child in values.items()}
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: The file is missing, is no YAML, or holds something other than a mapping.
    """
    try:
        loaded = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"config '{path}' cannot be read: {why}; give an existing YAML file of UTF-8 text"
            + ("" if path.is_absolute() else f", as seen from '{Path.cwd()}'")
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config '{path}' is not valid YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"config '{path}' holds a {type(loaded).__name__}, expected a mapping of keys to values")
    return loaded


def apply_overrides(
    values: dict[str, Any], overrides: Sequence[str], config_class: type[FrozenConfig] | None = None
) -> dict[str, Any]:
    """Return ``values`` with ``key.sub=value`` overrides applied; values are parsed as YAML scalars or lists.

    Args:
        config_class: What the values are for; a key that is text or a path there takes its value as typed
            (:func:`~recsys.paths.read_override`).

    Example:
        >>> apply_overrides({"train": {"max_epochs": 1}}, ["train.max_epochs=5", "seed=7"])
        {'train': {'max_epochs': 5}, 'seed': 7}

    Raises:
        ConfigError: An override has no ``=``, or walks through a value that is no mapping.
    """
    result = _copy(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override '{override}' has no '='; expected key=value, for example train.max_epochs=5")
        *parents, leaf = key.split(".")
        classes = _classes_at(config_class, parents) if config_class is not None else []
        fields = [current.model_fields[leaf].annotation for current in classes if leaf in current.model_fields]
        try:
            value = read_override(text, fields)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"override '{override}': the value is not valid YAML: {error}; put quotes around what is text"
            ) from error
        node = result
        for depth, parent in enumerate(parents):
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                where = ".".join(parents[: depth + 1])
                raise ConfigError(
                    f"override '{override}': '{where}' is {child!r}, not a mapping that could hold '{leaf}'"
                )
            node = child
        node[leaf] = value
    return result


def an_instant(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Read the value of a key that takes an instant, and say in words what one looks like; for ``mode="wrap"``.

    Raises:
        ValueError: It is no instant.
    """
    try:
        return handler(value)
    except ValidationError as error:
        raise ValueError(
            "expected a date such as 2030-01-31, or an instant such as 2030-01-31T12:00:00+01:00 (UTC without an offset)"
        ) from error


def validate(
    config_class: type[ConfigType], values: dict[str, Any], where: str, recipe: Recipe | None = None
) -> ConfigType:
    """Build a configuration, turning validation errors into one readable :class:`ConfigError`.

    Args:
        where: Name of the file or call that the values came from, for the message.
        recipe: What the values were read from; the message names the file of a key that another file holds.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(config_class, error, where, recipe)) from error


def load_config(config_class: type[ConfigType], path: Path, overrides: Sequence[str] = ()) -> ConfigType:
    """Read a YAML recipe with what it extends, apply overrides, validate."""
    recipe = read_recipe(path)
    return validate(config_class, apply_overrides(recipe.values, overrides, config_class), str(path), recipe)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return value


def _explain(config_class: type[FrozenConfig], error: ValidationError, where: str, recipe: Recipe | None) -> str:
    lines = []
    for problem in error.errors():
        location = tuple(str(part) for part in problem["loc"])
        key = ".".join(_without_tags(config_class, location))
        file = recipe.file_of(location) if recipe is not None else None
        stands = f" in '{file}'" if recipe is not None and file != recipe.path else ""
        if problem["type"] == "extra_forbidden":
            classes = _classes_at(config_class, location[:-1])
            known = {name for current in classes for name in current.model_fields}
            renamed = [new for current in classes for old, new in current.renamed_keys.items() if old == location[-1]]
            close = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys here: {', '.join(sorted(known)) or 'none'}"
            hint = f"it is called '{renamed[0]}' now" if renamed else hint
            lines.append(f"unknown key '{key}' (value {problem['input']!r}){stands}; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"key '{key}' is missing; {_wanted(_classes_at(config_class, location[:-1]), location[-1])}")
        elif problem["type"] == "value_error" and isinstance(problem["input"], dict):  # keys that do not fit each other
            inside = ".".join(_inside(config_class, location))
            named = f"key '{inside}'{stands}: " if inside else ""
            lines.append(named + _sentence(problem["msg"]))
        else:
            lines.append(f"key '{key}' is {problem['input']!r}{stands}: {_sentence(problem['msg'])}")
    return f"config {where}: " + "\n  ".join(lines)


def _sentence(message: str) -> str:
    """Leave out what says which Python class refused."""
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _classes_at(config_class: type[FrozenConfig], location: Sequence[str]) -> list[type[FrozenConfig]]:
    """Configurations that may stand at ``location``; unions (as in ``source``) contribute all their members."""
    classes: list[type[FrozenConfig]] = [config_class]
    for part in location:
        found: list[type[FrozenConfig]] = []
        for current in classes:
            field = current.model_fields.get(part)
            if field is not None:
                found.extend(_model_classes(field.annotation))
        if not found:  # a discriminator tag of a union is a location part, but no field
            continue
        classes = found
    return classes


def _without_tags(config_class: type[FrozenConfig], location: Sequence[str]) -> list[str]:
    """Leave out what is no key of the file: the tag of the member of a union, as ``table`` in ``source.table.path``."""
    keys: list[str] = []
    for place, part in enumerate(location):
        before, last = location[:place], place == len(location) - 1
        union = place > 0 and len(_classes_at(config_class, before)) > 1
        known = any(part in current.model_fields for current in _classes_at(config_class, before))
        if last or known or not union:
            keys.append(part)
    return keys


def _inside(config_class: type[FrozenConfig], location: Sequence[str]) -> list[str]:
    """Keys that lead to a mapping; a member of a union is one whose tag is no key."""
    known = any(
        location[-1:] == (name,)
        for current in _classes_at(config_class, location[:-1])
        for name in current.model_fields
    )
    return _without_tags(config_class, location if known or not location else location[:-1])


def _wanted(classes: Sequence[type[FrozenConfig]], key: str) -> str:
    """Say what a missing key takes."""
    for current in classes:
        field = current.model_fields.get(key)
        choices = get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
        if choices:
            return f"it has no default: give one of {', '.join(map(str, choices))}, for example {key}: {choices[0]}"
    return "it has no default"


def _model_classes(annotation: Any) -> list[type[FrozenConfig]]:
    if isinstance(annotation, type) and issubclass(annotation, FrozenConfig):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _model_classes(part)]
