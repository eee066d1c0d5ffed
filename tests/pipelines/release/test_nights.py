"""A night whose data differ from the champion's stops before anything is trained, says why, and can be let through."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import yaml

from features.audit.changes import ChangesConfig
from features.audit.contract import parse_contract
from pipelines.cli.app import main
from pipelines.release.nights import Earlier, NightCheck, champion_data
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import Artifact, ArtifactStore, open_artifact
from serving.registry.mlflow_client import TrackingUnreachable
from serving.registry.model_registry import Version

DAY = 86_400
START = 1_650_000_000


def log_of(first_user: int = 0) -> pl.DataFrame:
    """Eight users with five events each."""
    events = [
        (first_user + user, (user + step) % 9, START + step * DAY + user) for user in range(8) for step in range(5)
    ]
    return pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a recipe and its raw log."""
    (tmp_path / "in").mkdir()
    log_of().write_parquet(tmp_path / "in" / "interactions.parquet")
    recipe = {
        "name": "shop",
        "output_dir": str(tmp_path / "out"),
        "source": {"kind": "table", "path": str(tmp_path / "in"), "timestamp_unit": "s"},
        "features": {"split": {"kind": "leave_last_out"}},
    }
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def recsys(shop: Path, verb: str, *overrides: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--config", str(shop / "shop.yaml"), *overrides])
    return int(ended.value.code or 0)


def with_text_ids(shop: Path) -> None:
    log = log_of().with_columns(pl.col("user_id").cast(pl.String))
    pl.concat([log, pl.DataFrame({"user_id": ["total"], "item_id": [40], "timestamp": [START]})]).write_parquet(
        shop / "in" / "interactions.parquet"
    )


def test_a_flip_of_the_id_type_stops_every_verb_with_3_until_it_is_accepted(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recsys(shop, "prepare") == 0
    with_text_ids(shop)
    capsys.readouterr()
    assert recsys(shop, "prepare") == 3
    said = capsys.readouterr().err
    assert "user_id_type: user ids were integers and are text now" in said
    assert "the first user_id that is no integer is 'total' in 'interactions.parquet', row 40 (from 0)" in said
    assert "changes.accept=[user_id_type]" in said
    assert "export.registered_name" in said
    assert recsys(shop, "prepare") == 3  # the artefact is there, and still refused
    assert recsys(shop, "embed", "embed.text.model=null") == 3
    assert not list((shop / "out" / "artifacts").glob("embeddings/*"))
    assert recsys(shop, "prepare", "changes.accept=[user_id_type]") == 0
    assert recsys(shop, "prepare") == 0  # what was accepted is what counts from now on


@pytest.mark.parametrize(
    ("first", "second", "types", "words"),
    [
        # night 2 is the export with a summary line at its end, and the recipe no longer says that ids are integers
        ("", "total,4,1650000000\n", {"user_id": "text"}, "no integer is 'total' in 'log.csv', line 42"),
        ("", "007,4,1650000000\n", {"user_id": "text"}, "no integer is '007' in 'log.csv', line 42"),
        ("", "1.5,4,1650000000\n", {"user_id": "text"}, "no integer is '1.5' in 'log.csv', line 42"),
        ("", "", {"user_id": "text"}, "every user_id reads as an integer"),
        ("", "2,x9,1650000000\n", {"user_id": "integer", "item_id": "text"}, "item_id that is no integer is 'x9'"),
    ],
)
def test_the_line_that_made_ids_text_is_named(
    shop: Path, first: str, second: str, types: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of().write_csv()
    (shop / "in" / "log.csv").write_text(log + first)
    base = ["source.interactions=log.csv", "source.types={user_id: integer, item_id: integer}"]
    assert recsys(shop, "prepare", *base) == 0
    (shop / "in" / "log.csv").write_text(log + second)
    given = ", ".join(f"{name}: {kind}" for name, kind in ({"item_id": "integer"} | types).items())
    capsys.readouterr()
    assert recsys(shop, "prepare", base[0], f"source.types={{{given}}}") == 3
    assert words in capsys.readouterr().err


def test_a_summary_line_in_a_text_file_is_one_refused_row(shop: Path) -> None:
    """The ids of a text file are text on both nights; the line has no time, and the night goes on."""
    log = log_of().write_csv()
    (shop / "in" / "log.csv").write_text(log)
    assert recsys(shop, "prepare", "source.interactions=log.csv") == 0
    (shop / "in" / "log.csv").write_text(log + "total,40,\n")
    assert recsys(shop, "prepare", "source.interactions=log.csv") == 0
    reasons = {
        reason
        for path in (shop / "out" / "artifacts" / "prepared").glob("[!.]*/quarantine.parquet")
        for reason in pl.read_parquet(path)["reason"]
    }
    assert len(reasons) == 1


def test_another_registered_name_begins_anew(shop: Path) -> None:
    assert recsys(shop, "prepare") == 0
    with_text_ids(shop)
    assert recsys(shop, "prepare", "export.registered_name=shop_text") == 0
    assert recsys(shop, "prepare") == 3


def test_accepting_does_not_prepare_again(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recsys(shop, "prepare") == 0
    assert recsys(shop, "prepare", "changes.accept=[users]") == 0
    assert "nothing to do, up to date" in capsys.readouterr().out


def test_a_refused_night_is_not_what_the_next_one_is_compared_with(shop: Path) -> None:
    assert recsys(shop, "prepare") == 0
    log_of(first_user=100).write_parquet(shop / "in" / "interactions.parquet")
    assert recsys(shop, "prepare") == 3
    log_of(first_user=104).write_parquet(shop / "in" / "interactions.parquet")
    assert recsys(shop, "prepare") == 3
    log_of(first_user=2).write_parquet(shop / "in" / "interactions.parquet")
    assert recsys(shop, "prepare") == 0


def prepared_artifact(shop: Path) -> Artifact:
    (folder,) = (shop / "out" / "artifacts" / "prepared").glob("[!.]*")
    return open_artifact(folder)


def champion_of(artifact: Artifact, **changes: Any) -> Earlier:
    values = json.loads((artifact.path / "data_contract.json").read_text())
    return Earlier(
        parse_contract({**values, **changes}, artifact.path), "those of the champion, models:/shop/3", "other"
    )


def test_the_champion_counts_before_the_folder(shop: Path) -> None:
    """The folder accepted these data, but the champion was made from ids that were text."""
    assert recsys(shop, "prepare") == 0
    artifact = prepared_artifact(shop)
    check = NightCheck(shop / "out", "shop", ChangesConfig())
    assert check.check(artifact) == []
    with pytest.raises(DataError, match=r"(?s)models:/shop/3 in 1 way.*item ids were text") as refused:
        check.check(artifact, champion_of(artifact, item_id_type="text"))
    assert refused.value.exit_code == 3
    written = json.loads(check.changes_file.read_text())
    assert [(change["kind"], change["accepted"]) for change in written["changes"]] == [("item_id_type", False)]


def test_the_same_data_again_keep_their_comparison(shop: Path) -> None:
    assert recsys(shop, "prepare") == 0
    log_of(first_user=2).write_parquet(shop / "in" / "interactions.parquet")
    assert recsys(shop, "prepare") == 0
    changes = NightCheck(shop / "out", "shop", ChangesConfig()).changes_file
    before = changes.read_bytes()
    assert recsys(shop, "prepare") == 0
    assert changes.read_bytes() == before
    assert json.loads(before)["before_digest"] != json.loads(before)["digest"]


def test_the_message_says_where(shop: Path) -> None:
    assert recsys(shop, "prepare") == 0
    artifact = prepared_artifact(shop)
    check = NightCheck(
        shop / "out", "shop", ChangesConfig(), where=lambda change: f"file a.csv, line 9 ({change.kind})"
    )
    with pytest.raises(DataError, match=r"file a\.csv, line 9 \(task\)"):
        check.check(artifact, champion_of(artifact, task="session"))


def test_an_acceptance_without_a_change_is_named(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recsys(shop, "prepare") == 0
    artifact = prepared_artifact(shop)
    NightCheck(shop / "out", "shop", ChangesConfig(accept=("users",))).check(artifact, champion_of(artifact))
    assert "changes.accept lists users, which did not change" in capsys.readouterr().err


class FakeRegistry:
    """A registry that knows one champion, and where its bundle lies."""

    def __init__(self, bundle: Path, champion: Version | None) -> None:
        self.bundle, self.champion = bundle, champion

    def by_alias(self, name: str, alias: str) -> Version | None:
        assert (name, alias) == ("shop", "champion")
        return self.champion

    def open_bundle(self, version: Version, store: ArtifactStore) -> SimpleNamespace:
        return SimpleNamespace(path=self.bundle)


def test_the_champions_data_come_from_its_bundle(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recsys(shop, "prepare") == 0
    artifact = prepared_artifact(shop)
    store = ArtifactStore(shop / "elsewhere")
    version = Version("shop", "3", {"bundle_digest": "ab", "data_digest": artifact.digest})
    found = champion_data(lambda: FakeRegistry(artifact.path, version), store, "shop")  # type: ignore[arg-type, return-value]
    assert found is not None
    assert (found.name, found.data_digest) == ("those of the champion, models:/shop/3", artifact.digest)
    assert champion_data(lambda: FakeRegistry(artifact.path, None), store, "shop") is None  # type: ignore[arg-type, return-value]
    assert champion_data(lambda: FakeRegistry(shop, version), store, "shop") is None  # type: ignore[arg-type, return-value]
    assert "exported without a data contract" in capsys.readouterr().err


def test_a_registry_that_does_not_answer_leaves_the_folders_own_data(
    shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def dead() -> Any:
        raise TrackingUnreachable("http://127.0.0.1:9 does not answer")

    assert champion_data(dead, ArtifactStore(shop), "shop") is None
    assert "compared with the last accepted ones" in caplog.text
