"""What the sources of public data sets share: defaults that a recipe overrides key by key, and files found by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, model_validator

from features.reading import natural_key
from features.reading.files import is_ignored
from features.sources.base import RawTables
from features.sources.mapped import MappedSource
from recsys.config import merge
from recsys.contracts.errors import DataError
from recsys.paths import ConfigPath


class FormatSource(MappedSource):
    """A data set whose layout is known: the column map, units and signals have defaults.

    What a recipe gives is laid over the defaults, mappings key by key, lists as a whole.

    Attributes:
        path: The folder of the files.
    """

    path: ConfigPath

    @classmethod
    @abstractmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that the layout decides.

        Args:
            given: What the recipe gives, not yet checked.
        """

    @model_validator(mode="before")
    @classmethod
    def _lay_over_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        plain = {
            key: value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
            for key, value in given.items()
        }
        return merge(cls.defaults(plain), plain)

    @property
    @abstractmethod
    def facts(self) -> dict[str, object]:
        """What was found in the folder, for the data report."""

    def read(self, seed: int) -> RawTables:
        """Read all tables; see :meth:`features.sources.base.Source.read`."""
        raw = super().read(seed)
        raw.notes.update(self.facts)
        return raw


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder in natural order, hidden and unfinished ones aside.

    Raises:
        DataError: The folder does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder; set source.path to the folder of the data set's files")
    found = [path for path in folder.iterdir() if path.is_file() and not is_ignored(path.name)]
    return sorted(found, key=lambda path: natural_key(path.name))


def there(folder: Path) -> str:
    """Phrase what is in a folder."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir() if path.name[0] != ".")
    more = f" and {len(names) - 20} others" if len(names) > 20 else ""
    return f"there are: {', '.join(names[:20]) or 'no files'}{more}"


def refuse_two_of_one(folder: Path, files: Iterable[tuple[str, Path]], way_out: str) -> None:
    """Refuse files that hold the same events: packed and unpacked, all and 5-core.

    Args:
        folder: For the message.
        files: What a file is of, and the file.
        way_out: What to do about it.

    Raises:
        DataError: Names two files of the same.
    """
    seen: dict[str, Path] = {}
    for subject, path in files:
        if subject in seen:
            raise DataError(
                f"'{folder}' holds '{seen[subject].name}' and '{path.name}', which are both of {subject}: their events "
                f"would count twice; {way_out}"
            )
        seen[subject] = path
