"""What the sources of public data sets share: defaults that a recipe overrides key by key, and files found by name.

Names of files are compared without regard to upper and lower case, since mirrors and Windows write them as they like.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, model_validator

from features.reading import natural_key
from features.reading.files import PACKED, is_ignored, printable
from features.sources.base import RawTables, merge_facts
from features.sources.mapped import MappedSource, TableKind
from recsys.config import merge
from recsys.contracts.errors import DataError
from recsys.paths import ConfigPath

REMEDY: Final = "write the file as its publisher does, or read it as source.kind: table"


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
        facts = [raw.notes, self.facts]
        if not self.path.is_file():
            facts.append(_not_read(list(self._files())))
        raw.notes.update(merge_facts(facts))
        return raw

    def _absent(self, kind: TableKind) -> Mapping[str, object]:
        """Tell of metadata that are not there: their columns are defaults, which nobody asked for by name."""
        if kind != "items":
            return super()._absent(kind)
        return {"warnings": [f"{self._expected(kind)} is not there: items have no title, text, categories or author"]}


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder in natural order, hidden and unfinished ones aside.

    Raises:
        DataError: The folder does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder; set source.path to the folder of the data set's files")
    found = [path for path in folder.iterdir() if path.is_file() and not is_ignored(path.name)]
    return sorted(found, key=lambda path: natural_key(path.name))


def named(folder: Path, name: str) -> list[Path]:
    """Return the files of this name, in lower case, plain or packed with gzip."""
    return [path for path in files_in(folder) if path.name.lower().removesuffix(".gz") == name]


def _not_read(files: list[Path]) -> dict[str, object]:
    """Name what lies beside the files of a data set and is not read."""
    folders = dict.fromkeys(path.parent for path in files)
    others = [printable(path.name) for folder in folders for path in files_in(folder) if path not in files]
    return {"ignored_files": sorted(others)} if others else {}


def refuse_packed(folder: Path, belongs: Callable[[str], bool]) -> None:
    """Refuse a file of the set that is packed in a way that is not read: its rows would be missing.

    Args:
        folder: Where the files are.
        belongs: Whether a file of this name would be read.

    Raises:
        DataError: Names it.
    """
    names = {path.name.lower() for path in files_in(folder)}
    for path in files_in(folder):
        ending = next((ending for ending in PACKED if path.name.lower().endswith(ending)), "")
        bare = path.name[: -len(ending)] if ending else ""
        if bare and belongs(bare) and not names & {bare.lower(), f"{bare.lower()}.gz"}:
            raise DataError(
                f"'{path}' belongs to the data set and is packed in a way that is not read; unpack it, use gzip, or move "
                "it away if it is not meant"
            )


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
        other = seen.setdefault(subject.lower(), path)
        if other != path:
            raise DataError(
                f"'{folder}' holds '{other.name}' and '{path.name}', which are both of {subject}: their events "
                f"would count twice; {way_out}"
            )
