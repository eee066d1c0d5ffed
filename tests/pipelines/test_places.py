"""Output and source folders are looked at before anything is done, and named whole."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from features.build import FeaturesConfig, prepare
from features.sources import TableSource
from features.splits import SplitConfig
from pipelines.config import RunConfig
from pipelines.places import check_output, check_places
from recsys.config import validate
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError, DataError


def config(**values: object) -> RunConfig:
    source = {"kind": "table", "path": values.pop("path", "data"), "timestamp_unit": "s"}
    return validate(RunConfig, {"source": source, **values}, "test")


def test_a_relative_source_names_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as refused:
        check_places(config())
    assert str(refused.value) == (
        f"source.path 'data' is '{tmp_path}/data', and there is no such folder; a relative path starts at the working "
        f"directory, '{tmp_path}'"
    )
    (tmp_path / "data").mkdir()
    check_places(config())
    check_places(config(path="/no/such/folder"))  # an absolute path speaks for itself: the source says what it misses


def test_folders_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in (
        ("file", "'.*/file' is a file, not a folder"),
        ("file/below/it", "'.*/file/below/it': '.*/file' is a file, not a folder"),
        ("gone", "a link to a place that is gone"),
        ("gone/below", "a link to a place that is gone"),
        ("loop", "a link to a place that is gone"),
    ):
        with pytest.raises(ArtifactError, match=words):
            check_output(tmp_path / name)


def test_a_path_without_room_below_is_refused(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["x" * 250] * 15)
    with pytest.raises(ConfigError, match=r"has a path of \d+ bytes; files below it need room, at most 3695 work"):
        check_output(deep)


@pytest.mark.parametrize("name", ["new", "new/below", "é #?%20", "link"])
def test_folders_that_can_be_made_pass(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    check_output(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["50%20off", "a#b", "a?b", "[1]", "{x}", "a*b", "two  blanks ", "é 🎬", "it's", "a=b", "a:b", "-x", "~", "a\\b"],
)
@pytest.mark.parametrize(("file", "pattern"), [("p [1].parquet", "p [1].parquet"), ("p-1.csv", "p-*.csv")])
def test_a_source_folder_of_any_name_is_prepared(tmp_path: Path, name: str, file: str, pattern: str) -> None:
    """Four rows of two users come through; brackets are letters in a name, and a star is a pattern beside them."""
    folder = tmp_path / name
    folder.mkdir()
    days = [1_650_000_000 + day * 86_400 for day in range(4)]
    rows = pl.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [1, 2, 3, 1], "timestamp": days})
    rows.write_parquet(folder / file) if file.endswith("parquet") else rows.write_csv(folder / file)
    source = TableSource(path=folder, interactions=pattern, timestamp_unit="s")
    assert source.fingerprint()
    report = prepare(source, FeaturesConfig(split=SplitConfig(kind="leave_last_out")), tmp_path / "out #?%20", seed=0)
    assert report["rows_in"] == 4
    assert Dataset.open(tmp_path / "out #?%20").spec.num_items == 3
