"""The configuration reference says of every key what the code says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from docs._build import configuration
from docs._build.blocks import pages
from docs._build.model_docs import attribute_docs, in_words, keys_of, nested
from pipelines.config import RunConfig
from recsys.config import FrozenConfig


class Oven(FrozenConfig):
    """How hot.

    Attributes:
        heat: In degrees, and
            not in kelvin.
    """

    heat: float = Field(default=180.0, gt=0, le=300)
    fan: bool = False
    """Blows."""
    racks: tuple[int, ...] = (1, 2)


class Cake(FrozenConfig):
    """A cake. It is baked."""

    kind: Literal["sponge", "cheese"] = "sponge"
    eggs: int = Field(ge=2)
    oven: Oven = Oven(heat=160.0)


def test_a_page_says_type_limits_default_and_meaning() -> None:
    """The default of ``oven.heat`` is what a cake gets that leaves the section out: 160, not the oven's own 180."""
    keys = {key.path: key for key, _ in keys_of(Cake)}
    assert (keys["eggs"].kind, keys["eggs"].default) == ("whole number, at least 2", None)
    assert (keys["kind"].kind, keys["kind"].default) == ("`sponge`, `cheese`", "sponge")
    inside = {key.path: key for key, _ in keys_of(Oven, "oven", keys["oven"].section)}
    assert (inside["oven.heat"].kind, inside["oven.heat"].default) == ("number, above 0, at most 300", "160.0")
    assert inside["oven.heat"].meaning == "In degrees, and not in kelvin."
    assert (inside["oven.fan"].meaning, inside["oven.fan"].default) == ("Blows.", "false")
    assert (inside["oven.racks"].kind, inside["oven.racks"].default) == ("list of whole numbers", "[1, 2]")


def test_an_option_that_may_be_missing_says_so() -> None:
    assert in_words(int | None) == "whole number, or none"


def test_meanings_come_from_the_classes_above_too() -> None:
    class Tart(Oven):
        """A tart."""

    assert attribute_docs(Tart)["heat"] == "In degrees, and not in kelvin."


def test_every_key_of_a_run_has_its_place() -> None:
    """Each key of the resolved configuration of a run is found, by its whole path, as an anchor of a page."""
    text = "\n".join(configuration.pages().values())
    config = RunConfig.model_validate({"source": {"kind": "simulated"}})

    def paths(section: FrozenConfig, prefix: str) -> list[str]:
        found = []
        for name in type(section).model_fields:
            value, path = getattr(section, name), f"{prefix}{name}"
            found += paths(value, f"{path}.") if isinstance(value, FrozenConfig) else [path]
        return found

    keys = paths(config, "")
    assert len(keys) > 200
    missing = [key for key in keys if f'id="{key}"' not in text and f"`{key}`" not in text]
    assert missing == []


def test_a_section_that_is_given_in_part_keeps_the_defaults_shown() -> None:
    """Whoever writes down nothing but the name of a section, at any depth, gets what who leaves it out gets."""
    source = {"kind": "simulated"}
    config = RunConfig.model_validate({"source": source})

    def places(section: FrozenConfig, above: tuple[str, ...]) -> list[tuple[str, ...]]:
        values = ((getattr(section, name), (*above, name)) for name in type(section).model_fields if name != "source")
        return [
            place for value, path in values if isinstance(value, FrozenConfig) for place in (path, *places(value, path))
        ]

    found = places(config, ())
    assert ("align", "ipa", "rollouts") in found
    for path in found:
        named: dict[str, object] = {}
        for key in reversed(path):
            named = {key: named}
        assert RunConfig.model_validate({"source": source, **named}) == config, ".".join(path)


def test_the_defaults_shown_are_those_of_a_run() -> None:
    page = configuration.pages()["reference/configuration/align.md"]
    config = RunConfig.model_validate({"source": {"kind": "simulated"}})
    assert config.align.ipa.rollouts.num_generations == 128
    _, _, after = page.partition('<dt id="align.ipa.rollouts.num_generations"')
    assert "default `128`" in after.partition("</dd>")[0]


def test_no_anchor_stands_twice_on_a_page() -> None:
    for page in configuration.pages().values():
        anchors = [part.partition('"')[0] for part in page.split('<dt id="')[1:]]
        assert len(anchors) == len(set(anchors))


def test_every_key_has_a_meaning() -> None:
    """Whoever adds a key says what it means, in the class's ``Attributes`` or below the field."""

    def silent(config_class: type[FrozenConfig], prefix: str) -> list[str]:
        found = []
        for key, children in keys_of(config_class, prefix):
            if not children and not key.meaning:
                found.append(key.path)
            for child in children:
                found += silent(child, key.path)
        return found

    assert silent(RunConfig, "") == []
    assert silent(Cake, "") == ["kind", "eggs", "oven.racks"]


def classes_below(config_class: type[FrozenConfig], seen: set[type[FrozenConfig]]) -> Iterator[type[FrozenConfig]]:
    """Yield a class and those of all its sections, each once."""
    if config_class not in seen:
        seen.add(config_class)
        yield config_class
        for field in config_class.model_fields.values():
            for child in nested(field.annotation):
                yield from classes_below(child, seen)


@cache
def takers(key: str) -> list[TypeAdapter[Any]]:
    """What a key of this name may be, wherever it stands."""
    fields = [found.model_fields[key] for found in classes_below(RunConfig, set()) if key in found.model_fields]
    return [
        TypeAdapter(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
        for field in fields
    ]


def unfit(text: str) -> list[str]:
    """Parts of recipes between single backticks, ``key: value``, of which no section has the key or takes the value."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = []
    for part, key, value in re.findall(r"`((?:[a-z_0-9]+\.)*([a-z_]+): ([^`\n]+))`", prose):
        for taker in takers(key):
            try:
                taker.validate_python(yaml.safe_load(value))
                break
            except ValidationError:
                continue
        else:
            found.append(part)
    return found


OF_OTHERS = {
    "extends: shop.yaml": "a key of the recipe itself",
    "in: [buy, cart]": "`one_of`, as recipes write it",
    'k: "5"': "wrong",
}


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_parts_of_recipes_in_the_text_fit(path: Any) -> None:
    assert [part for part in unfit(path.read_text(encoding="utf-8")) if part not in OF_OTHERS] == []


def test_a_part_that_fits_nowhere_is_noticed() -> None:
    assert unfit("`on_violation: back_of`, `rounds: 3`, `round: 3`, `weight: -1`, `mode: raw`") == [
        "on_violation: back_of",
        "round: 3",
    ]
