"""A griffe extension: the heading ``Example:`` opens a block of code, as ``Examples:`` does."""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Extension, Object, ObjectNode

_HEADING = re.compile(r"^([ \t]*)Example:[ \t]*$", re.MULTILINE)


class ExampleSections(Extension):
    """Rename the heading in every docstring, before the docstring is parsed."""

    def on_instance(self, *, node: ast.AST | ObjectNode, obj: Object, **_: Any) -> None:  # noqa: ARG002
        """See griffe: called for every module, class, function and attribute that was read."""
        if obj.docstring is not None:
            obj.docstring.value = as_examples(obj.docstring.value)


def as_examples(docstring: str) -> str:
    r"""Return the docstring with the heading that griffe knows.

    Example:
        >>> as_examples("Add.\n\nExample:\n    >>> 1 + 1\n    2")
        'Add.\n\nExamples:\n    >>> 1 + 1\n    2'
    """
    return _HEADING.sub(r"\1Examples:", docstring)
