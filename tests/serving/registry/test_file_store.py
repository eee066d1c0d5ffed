"""The tracking database of a run: found under every name, and telling the truth after its folder was moved or copied."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import SQLAlchemyError

from pipelines.release.tracking import Tracker, TrackingConfig
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import Artifact, ArtifactStore
from serving.registry.file_store import check_there, database_of, engine_uri, local_path, reroot, sqlite_uri
from serving.registry.masking import shown
from serving.registry.mlflow_client import TrackingUnreachable, connect, tracking_uri, translated_errors
from serving.registry.model_registry import Registry, Version

NAMES = [
    "plain",
    "50%20off",
    "100%",
    "a%sb",
    "a#b",
    "a?b",
    "a?x=1&y=2",
    "two  blanks ",
    "é à ø",
    "🎬",
    "it's",
    'q"q',
    "a=b",
    "a:b",
    "-x",
    "[x]*",
    "{x}",
    "a;b&c+d@e",
    "back\\slash",
    "~",
    "$HOME",
    "x" * 240,
    "two\nlines",
]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once: the migrations take seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    connect(sqlite_uri(path))
    return path


@pytest.fixture(autouse=True)
def no_uri_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def publish(folder: Path, letter: str = "a") -> Artifact:
    store = ArtifactStore(folder / "artifacts")
    with store.work_folder("prepared", letter * 64) as work:
        (work / "report.json").write_text("{}")
        return store.publish(
            work, kind="prepared", digest=letter * 64, code_version="1", seed=7, parents={}, config={}, summary={}
        )


def record(folder: Path, letter: str = "a") -> Tracker:
    """Log one stage of a run in ``folder`` into the database there."""
    tracker = Tracker(folder, TrackingConfig(), "toy", {"git_sha": "abc"}, "name: toy\n")
    tracker.note("prepare", publish(folder, letter), 1.0)
    assert tracker.flush()
    tracker.close()
    return tracker


def run_in(folder: Path, empty_database: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(empty_database, folder / "mlflow.db")
    record(folder)
    return folder


def files_below(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def logged_files(folder: Path) -> list[list[str]]:
    """Names of what the runs of the database hold, as MLflow lists and downloads them."""
    client = connect(tracking_uri(None, folder))
    found = []
    for run in client.search_runs(["1"]):
        names = sorted(entry.path for entry in client.list_artifacts(run.info.run_id))
        assert all(Path(client.download_artifacts(run.info.run_id, name)).is_file() for name in names)
        found.append(names)
    return sorted(found)


@pytest.mark.parametrize("name", NAMES)
def test_an_output_folder_of_any_name_holds_its_database_and_artefacts(
    tmp_path: Path, empty_database: Path, name: str
) -> None:
    """One run, one parent run: their files are in the folder, and nothing appears beside it."""
    folder = run_in(tmp_path / name, empty_database)
    assert logged_files(folder) == [["config.yaml"], ["manifest.json", "report.json"]]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(list((folder / "mlartifacts").glob("*/artifacts/manifest.json"))) == 1
    uri = tracking_uri(None, folder)
    assert database_of(uri) == folder / "mlflow.db" == database_of(engine_uri(uri))
    assert database_of(f"sqlite:///{folder}/mlflow.db") == folder / "mlflow.db"  # as people write it
    assert shown(uri) == uri


@pytest.mark.parametrize("uri", ["sqlite:///", "sqlite://runs/demo/mlflow.db", "sqlite:runs/mlflow.db", "sqlite://"])
def test_a_uri_that_names_no_file_is_refused(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="names no file; write sqlite:/// and the path"):
        connect(uri)
    assert not list(tmp_path.iterdir())


def test_codes_in_a_uri_are_decoded_unless_only_the_written_name_exists(tmp_path: Path) -> None:
    (tmp_path / "a%20b").mkdir()
    assert database_of(f"sqlite:///{tmp_path}/a%20b/mlflow.db") == tmp_path / "a%20b" / "mlflow.db"
    (tmp_path / "a b").mkdir()
    assert database_of(f"sqlite:///{tmp_path}/a%20b/mlflow.db") == tmp_path / "a b" / "mlflow.db"
    assert database_of(f"sqlite:///{tmp_path}/a%20b/mlflow.db?timeout=3") == tmp_path / "a b" / "mlflow.db"
    assert (
        engine_uri(f"sqlite:///{tmp_path}/a%20b/mlflow.db?timeout=3") == f"sqlite:///{tmp_path}/a b/mlflow.db?timeout=3"
    )


def test_home_and_relative_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert database_of("sqlite:///~/runs/mlflow.db") == database_of("sqlite:///runs/mlflow.db")
    assert database_of("https://mlflow.local") is None is database_of("sqlite:///:memory:")


def test_a_moved_run_goes_on_where_it_is(tmp_path: Path, empty_database: Path) -> None:
    old = run_in(tmp_path / "old", empty_database)
    new = tmp_path / "disk 2" / "new%20place"
    new.parent.mkdir()
    old.rename(new)
    assert logged_files(new) == [["config.yaml"], ["manifest.json", "report.json"]]
    record(new)  # known already: the record of the stage does not depend on the place
    assert len(logged_files(new)) == 2
    record(new, "b")
    assert len(logged_files(new)) == 4
    assert not old.exists()
    assert str(old) not in "".join(recorded_places(new / "mlflow.db"))


def test_a_copied_run_leaves_the_original_alone(tmp_path: Path, empty_database: Path) -> None:
    """P13: what the copy logs lies in the copy, and the original's files are those it had."""
    original = run_in(tmp_path / "original", empty_database)
    before = files_below(original)
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    record(copy, "b")
    assert files_below(original) == before
    assert len(list((copy / "mlartifacts").glob("*/artifacts/manifest.json"))) == 2
    assert len(logged_files(copy)) == 4
    assert len(logged_files(original)) == 2


def test_a_copy_without_the_artefacts_writes_new_ones_into_itself(tmp_path: Path, empty_database: Path) -> None:
    original = run_in(tmp_path / "original", empty_database)
    before = files_below(original)
    copy = tmp_path / "copy"
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("mlartifacts"))
    record(copy, "b")
    assert files_below(original) == before
    assert len(list((copy / "mlartifacts").glob("*/artifacts/manifest.json"))) == 1


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may write into a database that lies in a folder called `archive`."""
    real = sqlite3.connect

    def connect_(database: Any, *arguments: Any, **options: Any) -> sqlite3.Connection:
        if isinstance(database, Path) and database.parent.name == "archive":
            return real(f"{Path(database).as_uri()}?mode=ro", *arguments, uri=True, **options)
        return real(database, *arguments, **options)

    monkeypatch.setattr("serving.registry.file_store.sqlite3.connect", connect_)


def test_a_moved_run_that_cannot_be_written_answers_who_only_asks(
    tmp_path: Path, empty_database: Path, read_only: None
) -> None:
    """From a copy; the folder stays as it is, and who wants to write is refused."""
    old, new = run_in(tmp_path / "old", empty_database), tmp_path / "archive"
    old.rename(new)
    before, uri = files_below(new), tracking_uri(None, new)
    client = connect(uri, create=False)
    runs = client.search_runs(["1"])
    assert all(run.info.artifact_uri.startswith(f"{(new / 'mlartifacts').as_uri()}/") for run in runs)
    names = [sorted(entry.path for entry in client.list_artifacts(run.info.run_id)) for run in runs]
    assert sorted(names) == [["config.yaml"], ["manifest.json", "report.json"]]
    assert files_below(new) == before
    assert not old.exists()
    with pytest.raises(ArtifactError, match="make it writable, or copy the run folder"):
        connect(uri)


def test_a_registry_that_is_only_asked_writes_nothing(tmp_path: Path, empty_database: Path) -> None:
    """A write into a copy would be lost without a word."""
    folder = run_in(tmp_path / "run", empty_database)
    registry = Registry(tracking_uri(None, folder), folder / "registry", create=False)
    with pytest.raises(AssertionError, match="opened to be asked only"):
        registry.point("toy", "champion", "1")
    with pytest.raises(AssertionError, match="opened to be asked only"):
        registry.remove_alias("toy", "champion")
    with pytest.raises(AssertionError, match="opened to be asked only"):
        registry.set_tags(Version("toy", "1", {}), {"a": "b"})


def test_another_run_that_takes_the_old_place_is_no_matter(tmp_path: Path, empty_database: Path) -> None:
    old = run_in(tmp_path / "runs", empty_database)
    moved = old.rename(tmp_path / "moved")
    other = run_in(tmp_path / "other", empty_database).rename(tmp_path / "runs")
    before = files_below(other)
    record(moved, "b")
    assert len(logged_files(moved)) == 4
    assert files_below(other) == before


def test_runs_that_share_a_database_keep_their_places(tmp_path: Path, empty_database: Path) -> None:
    """Folder b logs into a's database: opening it from a must not send b's runs to a."""
    a = run_in(tmp_path / "a", empty_database)
    b = Tracker(tmp_path / "b", TrackingConfig(uri=f"sqlite:///{a}/mlflow.db"), "other", {}, "name: other\n")
    b.note("prepare", publish(tmp_path / "b", "c"), 1.0)
    assert b.flush()
    assert reroot(a / "mlflow.db") == []
    assert (tmp_path / "b" / "mlartifacts").as_uri() in recorded_places(a / "mlflow.db")


def test_a_shared_database_names_the_folder_that_is_gone(
    tmp_path: Path, empty_database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The database stays, the run's folder goes: MLflow would make the old folder again."""
    shared = tmp_path / "shared" / "mlflow.db"
    shared.parent.mkdir()
    shutil.copy(empty_database, shared)
    run = tmp_path / "run"
    config = TrackingConfig(uri=f"sqlite:///{shared}")
    first = Tracker(run, config, "toy", {}, "name: toy\n")
    first.note("prepare", publish(run), 1.0)
    assert first.flush()
    moved = run.rename(tmp_path / "moved")
    second = Tracker(moved, config, "toy", {}, "name: toy\n")
    second.note("prepare", publish(moved, "b"), 1.0)
    with pytest.raises(ArtifactError, match=f"points to '{run}', which is gone; move that folder back"):
        second.flush()
    assert not run.exists()


def test_a_gone_place_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"the registry points to '/no/such run', which is gone") as refused:
        check_there("file:///no/such%20run/mlartifacts/models/m-1/artifacts", "the registry")
    assert refused.value.exit_code == 4
    for elsewhere in (None, "s3://bucket/mlartifacts/1", "mlflow-artifacts:/1/2", "file:///no/such/thing"):
        check_there(elsewhere, "the registry")
    assert local_path("mlflow-artifacts:/1/2") is None


def test_a_damaged_database_is_an_error_of_the_artefact(tmp_path: Path) -> None:
    (tmp_path / "mlartifacts").mkdir()
    (tmp_path / "mlflow.db").write_text("no database")
    with pytest.raises(ArtifactError, match=r"mlflow\.db"):
        reroot(tmp_path / "mlflow.db")


def recorded_places(database: Path) -> list[str]:
    with sqlite3.connect(database) as store:
        rows = [
            store.execute(f"SELECT artifact_{end} FROM {name}")
            for name, end in (("experiments", "location"), ("runs", "uri"))
        ]
        return [str(place) for cursor in rows for (place,) in cursor]


@pytest.mark.parametrize("hint", ["", "(raised as a result of Query-invoked autoflush; consider this and that)\n"])
def test_a_full_disk_is_no_damaged_database(tmp_path: Path, hint: str) -> None:
    """Nobody is told to move the database away, which is whole; the cause is told, and not the hint before it."""
    wrong = f"{hint}(sqlite3.OperationalError) database or disk is full\n[SQL: UPDATE runs]"
    with pytest.raises(TrackingUnreachable) as error, translated_errors(sqlite_uri(tmp_path / "mlflow.db")):
        raise SQLAlchemyError(wrong)
    said = str(error.value)
    assert (
        "cannot be used: (sqlite3.OperationalError) database or disk is full; the artefacts of the run are kept" in said
    )
    assert said.endswith("Free space, for example with `recsys clean`, and run again")
    assert "move" not in said
