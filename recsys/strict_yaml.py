"""YAML in which every key of a mapping stands once.

PyYAML keeps the last of two equal keys without a word, so a line added at the end of a recipe would undo another one.
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


def load_yaml(text: str) -> Any:
    """Read YAML of plain values.

    Raises:
        yaml.YAMLError: The text is no YAML, or a mapping has a key twice.

    Example:
        >>> load_yaml("a: {x: 1}")
        {'a': {'x': 1}}
    """
    return yaml.load(text, Loader=_OnceLoader)  # a SafeLoader
