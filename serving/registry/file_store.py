"""MLflow in a SQLite file: which file a URI means, and what a moved or copied file says about its artefacts.

MLflow writes absolute places of artefacts into its database. Where the folder of a run is moved or copied as a whole, the
database lies beside the artefacts (``mlflow.db`` and ``mlartifacts/``), but names the old place: it is told the new one
when it is opened (:func:`reroot`). So a moved run goes on, and nothing is read from, or written into, the place it
was copied from.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from recsys.contracts.errors import ArtifactError, ConfigError

DATABASE_NAME: Final = "mlflow.db"
ARTIFACTS_NAME: Final = "mlartifacts"

_PREFIX: Final = "sqlite:///"
_OPTIONS: Final = re.compile(r"\?\w+=[^/?]*$")
_CODED: Final = re.compile(r"%[0-9A-Fa-f]{2}|\?")
_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow that hold absolute places of artefacts."""


def is_sqlite(uri: str) -> bool:
    """Whether the URI names a SQLite database.

    Example:
        >>> is_sqlite("sqlite:///runs/demo/mlflow.db"), is_sqlite("https://mlflow.local")
        (True, False)
    """
    return uri.partition(":")[0].partition("+")[0] == "sqlite"


def sqlite_uri(database: Path) -> str:
    """Return the URI of a database file, whatever its name.

    SQLAlchemy decodes ``%xx`` and cuts at a ``?``, so that these are written as codes. MLflow makes the folder that the
    undecoded text names, so that the slashes below it are written as codes too: the folder is then one that is there.

    Example:
        >>> sqlite_uri(Path("/runs/100% é #1/mlflow.db"))
        'sqlite:////runs/100% é #1/mlflow.db'
        >>> sqlite_uri(Path("/runs/50%20off/why?/mlflow.db"))
        'sqlite:////runs/50%2520off%2Fwhy%3F%2Fmlflow.db'
    """
    parts = database.absolute().parts
    first = next((place for place, part in enumerate(parts) if _CODED.search(part)), len(parts) - 1)
    head, tail = Path(*parts[:first]), "/".join(parts[first:])
    if _CODED.search(tail):
        tail = "".join(f"%{ord(letter):02X}" if letter in "%?/" else letter for letter in tail)
    return f"{_PREFIX}{head / tail}"


def database_of(uri: str) -> Path | None:
    """Return the database file that a URI means, absolute; ``None`` where it is no SQLite file.

    A name is decoded as URIs are (``%20`` is a blank), and read as it is written where only that exists.

    Example:
        >>> database_of("sqlite:////runs/100%/mlflow.db?timeout=5").as_posix()
        '/runs/100%/mlflow.db'

    Raises:
        ConfigError: The URI names no file.
    """
    if not is_sqlite(uri):
        return None
    rest = uri.partition(":")[2].removeprefix("///")
    if not uri.partition(":")[2].startswith("///") or not rest:
        raise ConfigError(
            f"tracking URI '{uri}' names no file; write sqlite:/// and the path, for example "
            "sqlite:///runs/demo/mlflow.db, or sqlite:////data/mlflow.db for an absolute one"
        )
    if rest.startswith((":memory:", "file:")):
        return None
    written = _OPTIONS.sub("", rest)
    decoded, literal = (Path(text).expanduser().absolute() for text in (unquote(written), written))
    for path in (decoded, literal):
        if path.exists():
            return path
    return literal if literal.parent.exists() and not decoded.parent.exists() else decoded


def engine_uri(uri: str) -> str:
    """Return the URI as SQLAlchemy has to be given it; options behind a ``?`` are kept.

    Example:
        >>> engine_uri("sqlite:////runs/all%3F/mlflow.db?timeout=5")
        'sqlite:////runs/all%3F%2Fmlflow.db?timeout=5'
    """
    database = database_of(uri)
    if database is None:
        return uri
    options = _OPTIONS.search(uri)
    return sqlite_uri(database) + (options.group() if options and not str(database).endswith(options.group()) else "")


def own_artifacts(database: Path) -> Path:
    """Folder of the artefacts beside a database."""
    return database.parent / ARTIFACTS_NAME


def reroot(database: Path, here: Path | None = None) -> list[Path]:
    """Tell a database that was moved or copied with its artefacts where they lie now.

    A place is changed where the folder ``mlartifacts`` beside the database holds the runs or models that it belongs to:
    their names are drawn at random, so that these are the moved or copied ones. Places of other run folders that share
    the database stay as they are.

    Args:
        here: Folder of the artefacts; by default the one beside the database.

    Returns:
        The places that were replaced.

    Raises:
        ArtifactError: The database cannot be read or written.
    """
    here = here or own_artifacts(database)
    if not database.exists() or not here.is_dir():
        return []
    moved: list[Path] = []
    with _open(database, "its artefacts were moved, and it cannot be told so") as store:
        elsewhere = {old: folder for old in sorted(_roots(store)) if (folder := _elsewhere(old, here)) is not None}
        if not elsewhere:
            return []
        held = {path.name for path in here.iterdir()} | {path.name for path in (here / "models").glob("*")}
        for old, folder in elsewhere.items():
            if held & _names_below(store, old):
                _replace(store, old, here.as_uri())
                moved.append(folder)
    return moved


def rerooted_copy(database: Path, folder: Path) -> Path:
    """Copy a database that was moved and cannot be written, and tell the copy where the artefacts lie; for who only asks.

    Raises:
        sqlite3.Error: The database cannot be read.
    """
    copy = folder / database.name
    with (
        contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)) as store,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        store.backup(target)
    reroot(copy, own_artifacts(database))
    return copy


def move_experiment(database: Path, experiment: str) -> None:
    """Let new runs of an experiment, by its id, write beside the database; its earlier runs stay where they are."""
    with _open(database, "its experiment is of another folder, and it cannot be told so") as store:
        place = own_artifacts(database).as_uri()
        store.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (place, experiment))


def local_path(location: str | None) -> Path | None:
    """Return the folder behind an artefact location, or ``None`` where it is none of this machine.

    Example:
        >>> local_path("file:///runs/50%2520off/mlartifacts").as_posix(), local_path("s3://bucket/x")
        ('/runs/50%20off/mlartifacts', None)
    """
    if not location:
        return None
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(location.removeprefix("file://")))
    return Path(location) if not parts.scheme and location.startswith("/") else None


def check_there(location: str | None, what: str) -> None:
    """Refuse a place that is gone: MLflow would make it again, or find nothing in it.

    Args:
        location: Artefact location that MLflow recorded; ``None`` or a place of a server is not looked at.
        what: What it belongs to, for the message.

    Raises:
        ArtifactError: The folder is gone.
    """
    folder = local_path(location)
    while folder is not None and folder.name != ARTIFACTS_NAME:
        folder = folder.parent if folder != folder.parent else None
    if folder is not None and not folder.parent.is_dir():
        raise ArtifactError(
            f"{what} points to '{folder.parent}', which is gone; move that folder back, or move '{ARTIFACTS_NAME}' with its "
            f"'{DATABASE_NAME}': beside each other they are found wherever they lie"
        )


def _roots(store: sqlite3.Connection) -> set[str]:
    """Every recorded place up to ``mlartifacts``."""
    found = set()
    for table, column in _PLACES:
        for (location,) in store.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"):
            head, name, _ = str(location).rpartition(f"/{ARTIFACTS_NAME}/")
            if name or str(location).endswith(f"/{ARTIFACTS_NAME}"):
                found.add(f"{head}/{ARTIFACTS_NAME}" if name else str(location))
    return found


def _names_below(store: sqlite3.Connection, root: str) -> set[str]:
    """Ids of the runs and models whose artefacts lie below a place."""
    found = set()
    for table, column, name in (
        ("runs", "artifact_uri", "run_uuid"),
        ("logged_models", "artifact_location", "model_id"),
    ):
        rows = store.execute(f"SELECT {name}, {column} FROM {table}")
        found |= {str(key) for key, location in rows if str(location).startswith(f"{root}/")}
    return found


def _replace(store: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in _PLACES:
        store.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )
    before, after = (
        f"{root.rpartition('/')[0]}/artifacts/" for root in (old, new)
    )  # data sets are artefacts of stages
    store.execute("UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?)", (before, after))


def _elsewhere(location: str, here: Path) -> Path | None:
    """The folder of a recorded place, unless it is ``here`` or none of this machine."""
    folder = local_path(location)
    if folder is None or folder == here:
        return None
    with contextlib.suppress(OSError):
        if folder.exists() and folder.samefile(here):
            return None
    return folder


@contextmanager
def _open(database: Path, trouble: str) -> Iterator[sqlite3.Connection]:
    try:
        store = sqlite3.connect(database, timeout=30)
        try:
            with store:
                yield store
        finally:
            store.close()
    except sqlite3.Error as error:
        raise ArtifactError(
            f"'{database}': {trouble} ({error}); make it writable, or copy the run folder to a place where it is"
        ) from error
