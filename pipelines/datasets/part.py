"""A file that is not whole yet, and which version of the file on the server its bytes are of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Part:
    """The incomplete file; beside it ``NAME.part.json`` says what is known of the whole.

    Attributes:
        path: ``NAME.part``.
        url: Address of the whole.
        validator: What names the version on the server; ``None``: not known, so that the bytes cannot be gone on with.
        total: Bytes of the whole; ``None``: not known.
        state: ``NAME.part.json``.
    """

    path: Path
    url: str
    validator: str | None = None
    total: int | None = None
    state: Path = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def recall(self) -> None:
        """Take up what an earlier process left; bytes of another address or of an unnamed version are thrown away."""
        try:
            known = json.loads(self.state.read_text(encoding="utf-8"))
            usable = known["url"] == self.url and isinstance(known["validator"], str)
        except (OSError, ValueError, KeyError, TypeError):
            usable = False
        if usable:
            self.validator, self.total = known["validator"], known.get("total")
        else:
            self.discard()

    def remember(self, validator: str | None, total: int | None) -> None:
        """Write down of which version the bytes are that come next."""
        self.validator, self.total = validator, total
        self.state.write_text(json.dumps({"url": self.url, "validator": validator, "total": total}), encoding="utf-8")

    def discard(self) -> None:
        """Throw all of it away."""
        self.path.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)
        self.validator = self.total = None
