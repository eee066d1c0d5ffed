"""YAML in which every key of a mapping stands once, and what only looks like a date or a number is text.

PyYAML keeps the last of two equal keys without a word, so a line added at the end of a recipe would undo another one; and
for ``2030-13-01`` it raises a ``ValueError`` that names neither file nor key, where whoever takes the value can.
"""

from __future__ import annotations

from typing import Any

import yaml


class _OnceLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                key, line = key_node.value, key_node.start_mark.line + 1
                if key in lines:
                    where = f"lines {lines[key]} and {line}" if lines[key] != line else f"line {line}"
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key}' stands twice in one mapping, in {where}; take one out"
                    )
                lines[key] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError:  # only of scalars: a mapping or list is built from objects that are text by then
            return node.value


def load_yaml(text: str) -> Any:
    """Read YAML of plain values.

    Raises:
        yaml.YAMLError: The text is no YAML, a mapping has a key twice, or a value holds itself.

    Example:
        >>> load_yaml("a: {x: 1}")
        {'a': {'x': 1}}
        >>> load_yaml("[2030-02-28, 2030-02-30]")
        [datetime.date(2030, 2, 28), '2030-02-30']
    """
    loaded = yaml.load(text, Loader=_OnceLoader)  # a SafeLoader
    if _holds_itself(loaded, set(), set()):
        raise yaml.constructor.ConstructorError(
            None, None, "a value holds itself, by an alias (*) of what it stands in"
        )
    return loaded


def _holds_itself(value: Any, begun: set[int], in_order: set[int]) -> bool:
    """Whether a mapping or list is in itself: it is met again before all that is in it has been looked at."""
    if not isinstance(value, dict | list) or id(value) in in_order:
        return False
    if id(value) in begun:
        return True
    begun.add(id(value))
    found = any(_holds_itself(part, begun, in_order) for part in (value.values() if isinstance(value, dict) else value))
    in_order.add(id(value))
    return found
