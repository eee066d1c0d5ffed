"""Passwords and tokens of servers: what may be shown of a URI, and how they stay out of texts that leave the process.

A URI with a password is used as it is given, and never written: :func:`shown` is what people and files see of it. Libraries
put URIs and their parts into their own messages, so that what is logged or printed goes through :func:`masked`, which
knows every secret that was used.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

MASK: Final = "***"
_SECRET_VARIABLE: Final = re.compile(
    r"(?i)(^|_)(password|passwd|token|secret|secret_key|access_key|account_key|api_?key|connection_string)$"
)
"""Names of environment variables that hold a secret: of MLflow's servers, of the clouds that its files lie in, of hubs."""
_USER_INFO: Final = re.compile(r"(?<=//).*@", re.DOTALL)
_PARAMETER: Final = re.compile(
    r"(?i)([?&;](?:[\w-]*(?:password|passwd|pwd|token|secret|api_?key|access_?key|account_?key|credential|signature)[\w-]*"
    r"|sig|auth|key)=)([^&;#]*)"
)
_URI: Final = re.compile(r"(?i)[a-z][a-z0-9+.-]*://.*", re.DOTALL)
_SHORTEST_TOKEN: Final = 6
"""Characters of a variable's value that is taken for a secret; a shorter one is more likely a flag."""
_known: set[str] = set()


def shown(uri: str) -> str:
    """Return the URI without user name, password and tokens, for messages and files.

    Everything up to the last ``@`` goes, because a password may hold ``/`` and ``@``.

    Example:
        >>> shown("https://ann:se/c@ret@mlflow.local:5000/x?token=abc")
        'https://mlflow.local:5000/x?token=***'
        >>> shown("sqlite:////runs/ann@work/mlflow.db")
        'sqlite:////runs/ann@work/mlflow.db'
    """
    if uri.partition(":")[0].partition("+")[0] in ("sqlite", "file"):
        return uri
    return _PARAMETER.sub(rf"\g<1>{MASK}", _USER_INFO.sub("", uri))


def remember(uri: str | None, environment: Mapping[str, str] = os.environ) -> None:
    """Learn the secrets of a URI, as they are written and decoded, and those of the environment.

    Example:
        >>> remember("https://ann:se%40cret@host")
        >>> masked("401 for ann:se%40cret, which is se@cret")
        '401 for ***, which is ***'
    """
    found = [
        value for name, value in environment.items() if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_TOKEN
    ]
    if uri and shown(uri) != uri:
        info = _USER_INFO.search(uri)
        if info is not None:
            user_info = info.group()[:-1]
            found += [user_info, user_info.partition(":")[2]]
        found += [match.group(2) for match in _PARAMETER.finditer(uri)]
    for text in found:
        if len(text) >= 3:  # shorter ones would blot out ordinary words
            forms = {text, unquote(text), quote(text), quote(text, safe="")}
            _known.update(forms, *({repr(form)[1:-1], json.dumps(form)[1:-1]} for form in forms))


def remember_all(values: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Learn the secrets of every URI in texts, lists and mappings, before anything is said about them.

    A configuration that cannot be read is quoted in its message, whichever key the URI stands at.

    Example:
        >>> remember_all(["tracking.uri=https://eve:s3same-open@host", {"tracking": {"uri": 7}}])
        >>> masked("key 'tracking.url' is 'https://eve:s3same-open@host'")
        "key 'tracking.url' is 'https://***@host'"
    """
    if isinstance(values, str):
        uri = _URI.search(values)
        remember(uri.group() if uri is not None else None, environment)
    elif isinstance(values, Mapping):
        remember_all(list(values.values()), environment)
    elif isinstance(values, list | tuple):
        for child in values:
            remember_all(child, environment)


def masked(text: str) -> str:
    """Return a text without the secrets that are known, the longest first."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


class MaskingFormatter(logging.Formatter):
    """Formats as usual, traces included, and masks what comes out."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return masked(super().format(record))
