"""Going back: aliases, record, and the gate that does not undo it; and what `status` says about all that."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.engine.stop_signals import Stopped
from pipelines.release.gate.aliases import AliasMover
from pipelines.release.gate.audit import AuditLog
from pipelines.release.gate.keeper import GATE_AGAINST, GATE_VERDICT
from pipelines.release.rollback import roll_back
from pipelines.release.status import status_of, status_text
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import ArtifactStore
from serving.registry.mlflow_client import TrackingUnreachable
from serving.registry.model_registry import Version


class Registry:
    """Three versions in memory; 3 is champion, 2 was it before."""

    def __init__(self) -> None:
        self.table = {"champion": "3", "previous": "2", "anchor": "3"}
        self.tags: dict[str, dict[str, str]] = {number: {} for number in "123"}
        self.unusable: set[str] = set()

    def aliases(self, name: str) -> dict[str, str]:
        return dict(self.table)

    def point(self, name: str, alias: str, number: str) -> None:
        self.table[alias] = number

    def remove_alias(self, name: str, alias: str) -> None:
        del self.table[alias]

    def versions(self, name: str) -> list[Version]:
        return [Version(name, number, tags) for number, tags in self.tags.items()]

    def open_bundle(self, version: Version, store: ArtifactStore) -> None:
        if version.number in self.unusable:
            raise ArtifactError(f"the bundle of version {version.number} is damaged")

    def set_tags(self, version: Version, tags: dict[str, str]) -> None:
        self.tags[version.number] |= tags


def test_the_champion_before_comes_back(tmp_path: Path) -> None:
    registry = Registry()
    words = roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    assert words == "version 2 of 'shop' is champion again, in place of version 3"
    assert registry.table == {"champion": "2", "previous": "3", "anchor": "2"}
    assert registry.tags["3"][GATE_AGAINST] == "2"  # else the next run would promote it again
    assert [event["event"] for event in AuditLog(tmp_path).events("shop")] == ["rolled back"]
    roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    assert registry.table["champion"] == "3"


def test_any_version_and_a_better_anchor_that_stays(tmp_path: Path) -> None:
    registry = Registry()
    registry.table["anchor"] = "2"
    roll_back(registry, "shop", tmp_path, "1")  # type: ignore[arg-type]
    assert registry.table == {"champion": "1", "previous": "3", "anchor": "2"}
    assert roll_back(registry, "shop", tmp_path, "1") == "version 1 of 'shop' is champion already"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("pass", "is champion again, in place of version 3"),
        ("rolled back", "is champion again, in place of version 3"),
        ("refused", "is champion, in place of version 3, although the gate refused it"),
        (None, "is champion, in place of version 3"),
    ],
)
def test_again_is_said_of_former_champions_alone(tmp_path: Path, verdict: str | None, words: str) -> None:
    registry = Registry()
    registry.tags["1"] = {} if verdict is None else {GATE_VERDICT: verdict}
    assert roll_back(registry, "shop", tmp_path, "1") == f"version 1 of 'shop' {words}"  # type: ignore[arg-type]


def test_a_deleted_champion_is_put_back(tmp_path: Path) -> None:
    registry = Registry()
    registry.table = {}
    roll_back(registry, "shop", tmp_path, "3")  # type: ignore[arg-type]
    assert registry.table == {"champion": "3", "anchor": "3"}


class Stopping(Registry):
    """Somebody stops the command at one of its writes."""

    left: int | None = None

    def _count(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Stopped(15)

    def point(self, name: str, alias: str, number: str) -> None:
        self._count()
        super().point(name, alias, number)
        self._count()

    def set_tags(self, version: Version, tags: dict[str, str]) -> None:
        self._count()
        super().set_tags(version, tags)
        self._count()


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("by", ["rollback", "run"])
def test_stopped_anywhere_the_same_command_again_goes_back_once(tmp_path: Path, at: int, by: str) -> None:
    """Run again, as the message says, it went forward to the version that was left."""
    registry, calm = Stopping(), Registry()
    roll_back(calm, "shop", tmp_path / "calm")  # type: ignore[arg-type]
    registry.left = at
    with pytest.raises(Stopped):
        roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    registry.left = None
    if by == "run":  # the gate repairs before it looks
        AliasMover(registry, "shop", tmp_path).repair()
    if by == "rollback" or registry.table["champion"] == "3":
        words = roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
        assert words.startswith("version 2 of 'shop' is champion")
    assert (registry.table, registry.tags) == (calm.table, calm.tags)
    events = [line for line in AuditLog(tmp_path).events("shop") if line["event"] == "rolled back"]
    assert [(line["challenger"], line["champion"]) for line in events] == [("2", "3")]
    assert not list((tmp_path / "promotions").glob(".moving*"))


@pytest.mark.parametrize("step", ["append", "unlink"])
def test_killed_after_all_is_written_nothing_is_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    registry = Registry()
    with monkeypatch.context() as patched:

        def dies(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(*((AuditLog, "append", dies) if step == "append" else (Path, "unlink", dies)))
        with pytest.raises(KeyboardInterrupt):
            roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    assert "a rollback that was interrupted is finished" in roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    assert [line["event"] for line in AuditLog(tmp_path).events("shop")] == ["rolled back"]
    assert roll_back(registry, "shop", tmp_path, "1").startswith("version 1")  # type: ignore[arg-type]


def test_another_version_by_name_is_served_after_an_interrupted_rollback(tmp_path: Path) -> None:
    registry = Stopping()
    registry.left = 4  # both aliases stand
    with pytest.raises(Stopped):
        roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    registry.left = None
    assert roll_back(registry, "shop", tmp_path, "1").startswith("version 1")  # type: ignore[arg-type]
    assert [line["challenger"] for line in AuditLog(tmp_path).events("shop")] == ["2", "1"]


def test_a_record_that_was_changed_does_not_keep_anybody_from_going_back(tmp_path: Path) -> None:
    """An emergency; whoever reads the record next is told."""
    registry = Registry()
    log = AuditLog(tmp_path)
    for number in "12":
        log.append("promoted", "shop", "better", challenger=number)
    log.path.write_text(log.path.read_text().replace('"challenger":"1"', '"challenger":"7"'))
    assert roll_back(registry, "shop", tmp_path).startswith("version 2")  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="was changed by hand"):
        log.events("shop")


def test_where_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    registry = Registry()
    del registry.table["previous"]
    with pytest.raises(ArtifactError, match=r"name the version with --to: there are 1, 2, 3"):
        roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="'shop' has no version 9; there are 1, 2, 3"):
        roll_back(registry, "shop", tmp_path, "9")  # type: ignore[arg-type]
    assert registry.table["champion"] == "3"


def test_what_cannot_serve_does_not_become_champion(tmp_path: Path) -> None:
    registry = Registry()
    registry.unusable.add("2")
    with pytest.raises(ArtifactError, match="version 2 is damaged"):
        roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    assert registry.table == {"champion": "3", "previous": "2", "anchor": "3"}


def test_status_says_what_stands_where(tmp_path: Path) -> None:
    registry = Registry()
    roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    (tmp_path / "tracking" / "pending").mkdir(parents=True)
    (tmp_path / "tracking" / "pending" / "train-1.json").write_text("{}")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "x").write_bytes(b"0" * 1_500_000)
    (tmp_path / "mlartifacts").mkdir()
    (tmp_path / "mlartifacts" / "y").write_bytes(b"0" * 2_000_000)
    found = status_of(tmp_path, "shop", lambda: registry)  # type: ignore[arg-type, return-value]
    assert (found["champion"], found["versions"], found["pending"]) == ("2", 3, ["train-1.json"])
    assert found["champion_since"] == AuditLog(tmp_path).events()[-1]["at"]
    text = status_text(found)
    assert f"champion    version 2, since {found['champion_since']}" in text
    assert f"disk        3.5 MB in {tmp_path}, of which artefacts 1.5\n" in text + "\n"
    assert "warning" not in text


def test_a_champion_that_was_deleted_serves_no_more(tmp_path: Path) -> None:
    """The record knows who it was; where the registry answers, the record does not say who serves."""
    registry = Registry()
    roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    del registry.table["champion"]
    found = status_of(tmp_path, "shop", lambda: registry)  # type: ignore[arg-type, return-value]
    assert (found["champion"], found["lost_champion"], found["champion_since"]) == (None, "2", None)
    assert "champion    none: the alias, or its version, was deleted; it was version 2" in status_text(found)


def test_before_the_first_run_nothing_is_unknown(tmp_path: Path) -> None:
    """No database and no record: nothing was registered. A record without its database is another matter."""

    def none_there() -> Registry:
        raise ConfigError("there is no 'mlflow.db'")

    found = status_of(tmp_path, "shop", none_there)  # type: ignore[arg-type]
    assert (found["versions"], found["champion"], "registry_error" in found) == (0, None, False)
    text = status_text(found)
    assert "model       shop, no version is registered yet (`recsys run` registers the first)" in text
    assert "warning" not in text
    roll_back(Registry(), "shop", tmp_path)  # type: ignore[arg-type]
    text = status_text(status_of(tmp_path, "shop", none_there))  # type: ignore[arg-type]
    assert "model       shop, unknown versions" in text
    assert "warning     there is no 'mlflow.db'" in text


def test_without_a_version_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    registry = Registry()
    registry.tags, registry.table = {}, {}
    for to in (None, "1"):
        with pytest.raises(
            ArtifactError, match="no version of 'shop' is registered, so that there is none to go back to"
        ):
            roll_back(registry, "shop", tmp_path, to)  # type: ignore[arg-type]


def test_status_answers_without_a_registry(tmp_path: Path) -> None:
    """The record of the folder knows the champion; an interrupted move is told."""

    def nobody() -> Registry:
        raise TrackingUnreachable("MLflow does not answer")

    registry = Registry()
    roll_back(registry, "shop", tmp_path)  # type: ignore[arg-type]
    (tmp_path / "promotions" / ".moving-shop.json").write_text("{}")
    text = status_text(status_of(tmp_path, "shop", nobody))  # type: ignore[arg-type]
    assert "champion    version 2" in text
    assert "warning     MLflow does not answer" in text
    assert "was interrupted" in text
