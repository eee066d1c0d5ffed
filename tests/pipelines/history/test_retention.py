"""What stays, what goes, and that a kill in between leaves nothing half."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from pipelines.history import inventory, retention
from pipelines.history.inventory import read_inventory
from pipelines.history.lineage import lineage_of
from pipelines.history.retention import Sweep, plan_sweep, sweep
from pipelines.nightly.journal import Journal, Night, StageOfNight
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, open_artifact, write_json
from tests.pipelines.history.conftest import HOUR, STAGES, Shop, digest_of


def planned(shop: Shop, keep: int) -> Sweep:
    return plan_sweep(shop.folder, read_inventory(shop.folder, "shop", shop.open), keep)  # type: ignore[arg-type, return-value]


def clean(shop: Shop, keep: int) -> Sweep:
    found = planned(shop, keep)
    sweep(shop.folder, found, shop.open)  # type: ignore[arg-type]
    return found


def nights(shop: Shop) -> dict[str, set[int]]:
    return {kind: shop.there(kind) for kind in STAGES}


def test_ten_nights_two_kept(shop: Shop) -> None:
    """Champion 4, previous 3, anchor 2, challenger 10; the newest two are 9 and 10: five nights and what they need.

    Evaluations of kept versions stay, because the gate compares with them; candidates of old nights go. Seven artefacts a
    night of 1000 bytes and a manifest.
    """
    for number in range(1, 11):
        shop.night(number)
    shop.table |= {"champion": "4", "previous": "3", "anchor": "2"}
    found = clean(shop, 2)
    kept = {2, 3, 4, 9, 10}
    assert nights(shop) == {kind: kept if kind != "candidates" else {9, 10} for kind in STAGES}
    assert found.kept == 5 * 6 + 2
    artefacts = [one for one in found.doomed if one.known is not None]
    assert len(artefacts) == 5 * 6 + 8
    assert found.bytes > 1000 * len(artefacts) + 5 * (500 + 100)
    assert {path.name for path in (shop.folder / "mlartifacts" / "models").iterdir()} == {f"m-{each}" for each in kept}
    assert {int(path.name, 16) for path in (shop.folder / "mlartifacts").iterdir() if path.name != "models"} == kept
    assert [version.number for version in shop.rows if "cleaned_at" in version.tags] == ["1", "5", "6", "7", "8"]
    for kind in STAGES:
        for path in (shop.folder / "artifacts" / kind).iterdir():
            open_artifact(path, kind)
    assert planned(shop, 2).doomed == ()


def test_a_warm_chain_does_not_keep_every_night(shop: Shop) -> None:
    """Each policy grew from the one before; kept are those that serve, and the lineage still names the others."""
    for number in range(1, 7):
        shop.night(number, warm=True)
    shop.table["champion"] = "5"
    clean(shop, 1)
    assert shop.there("policy") == {5, 6}
    text = lineage_of("@champion", read_inventory(shop.folder, "shop", shop.open), "shop").to_text()  # type: ignore[arg-type, return-value]
    for number in range(1, 5):
        assert f"policy {digest_of('policy', number)[:16]}, made 1970-01-01T0{number}:00:00+00:00, cleaned away" in text


def test_the_clock_was_set_back(shop: Shop) -> None:
    """The newest night looks older than all others by the clock; its version's number says that it is not."""
    for number in range(1, 6):
        shop.night(number)
    shop.table = {"champion": "4", "challenger": "4"}  # no alias speaks for it
    for kind in STAGES:
        os.utime(shop.store.path_of(kind, digest_of(kind, 5)) / "manifest.json", (1, 1))
    clean(shop, 1)
    assert 5 in shop.there("bundle") & shop.there("policy") & shop.there("prepared") & shop.there("evaluation")


def test_a_refused_night_without_a_version_is_kept_as_the_newest(shop: Shop) -> None:
    shop.night(1)
    shop.table["champion"] = "1"
    for number in (2, 3, 4):
        shop.night(number, register=False)
    clean(shop, 2)
    assert shop.there("policy") == {1, 3, 4}


def test_what_mlflow_waits_for_stays(shop: Shop) -> None:
    for number in (1, 2, 3):
        made = shop.night(number)
        if number == 1:
            pending = shop.folder / "tracking" / "pending"
            pending.mkdir(parents=True)
            path = made["evaluation"].path.relative_to(shop.folder).as_posix()
            write_json(pending / "evaluate-1.json", {"artifact": path})
            (pending / "torn-2.json").write_text("")
    clean(shop, 1)
    assert shop.there("evaluation") == {1, 3}
    assert shop.there("policy") == {1, 3}, "the evaluation was made from it"
    assert shop.there("bundle") == {3}


@pytest.mark.parametrize(("state", "kept"), [("stopped", {1, 6}), ("failed", {1, 6}), ("registered", {6})])
def test_a_night_that_is_to_go_on_keeps_what_it_grows_from(shop: Shop, state: str, kept: set[int]) -> None:
    """It was begun on night 1's policy, which nobody else needs; once it is finished, it needs it no more."""
    made = shop.night(1)
    for number in range(2, 7):
        shop.night(number)
    journal = Journal(shop.folder, "shop")
    begun = Night(model="shop", day=date(2026, 11, 5), state=state, bases={"train": made["policy"].digest})
    journal.write(begun)
    journal.write(Night(model="shop", day=date(2026, 11, 6), state="refused"))
    clean(shop, 1)
    assert shop.there("policy") == kept
    assert shop.there("prepared") == kept, "what a policy was made from stays with it"


def test_the_last_night_keeps_what_verbs_go_on_from(shop: Shop) -> None:
    made = shop.night(1)
    for number in range(2, 5):
        shop.night(number)
    stage = StageOfNight(kind="embeddings", digest=made["embeddings"].digest, seconds=1.0)
    Journal(shop.folder, "shop").write(
        Night(model="shop", day=date(2026, 11, 5), state="registered", stages={"embed": stage})
    )
    clean(shop, 1)
    assert shop.there("embeddings") == {1, 4}
    assert shop.there("policy") == {4}


def test_a_damaged_journal_stops_the_cleaning(shop: Shop) -> None:
    shop.night(1)
    (shop.folder / "nights").mkdir()
    (shop.folder / "nights" / "2026-11-05.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is no night of the journal"):
        planned(shop, 1)


def test_work_that_may_go_on_stays(shop: Shop) -> None:
    """A killed stage's folder is older than the newest result of its kind, or it is tonight's."""
    shop.night(1)
    old, tonight, first = (
        shop.folder / "artifacts" / name for name in ("policy/.work-old", "policy/.work-tonight", "ranker/.work-first")
    )
    for path, hour in ((old, 0.5), (tonight, 2), (first, 0.5)):
        path.mkdir(parents=True)
        (path / "state").write_bytes(b"s" * 10)
        os.utime(path / "state", (hour * HOUR, hour * HOUR))
        os.utime(path, (hour * HOUR, hour * HOUR))
    found = clean(shop, 1)
    assert [(one.what, one.path) for one in found.doomed] == [("unfinished work", old)]
    assert (tonight.exists(), first.exists(), old.exists()) == (True, True, False)


def test_links_are_left_alone(shop: Shop, tmp_path: Path) -> None:
    """Neither an artefact that is a link nor a kind's folder that is one is followed, and links inside do not lead out."""
    for number in range(1, 5):
        shop.night(number)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    moved = tmp_path / "moved"
    first = shop.store.path_of("policy", digest_of("policy", 1))
    shutil.move(first, moved)
    first.symlink_to(moved)
    shutil.move(shop.folder / "artifacts" / "evaluation", tmp_path / "kind")
    (shop.folder / "artifacts" / "evaluation").symlink_to(tmp_path / "kind")
    (shop.store.path_of("policy", digest_of("policy", 2)) / "link").symlink_to(outside)
    found = clean(shop, 1)
    assert (moved / "data.bin").exists()
    assert len(list((tmp_path / "kind").iterdir())) == 4
    assert (outside / "precious").read_text() == "x"
    assert shop.there("policy") == {1, 4}
    assert sum("is a link, or behind one" in words for words in found.left_alone) == 4


def test_killed_at_every_step_nothing_is_half(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of every deletion: what is still called an artefact is whole, and the next call finishes."""
    for number in range(1, 4):
        shop.night(number)
    real, calls, stop_at = shutil.rmtree, 0, 0

    def half(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            next(iter(sorted(Path(path).iterdir()))).unlink()
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(retention.shutil, "rmtree", half)
    total = len(planned(shop, 1).doomed)
    assert total > 10
    for number in range(1, total + 1):
        calls, stop_at = 0, number
        with contextlib.suppress(KeyboardInterrupt):
            clean(shop, 1)
        for path in (shop.folder / "artifacts").glob("[!.]*/[!.]*"):
            open_artifact(path)
        known = read_inventory(shop.folder, "shop", shop.open).artefacts  # type: ignore[arg-type, return-value]
        assert len(known) == 3 * len(STAGES), "what is gone has left its line"
    clean(shop, 1)
    assert not list(shop.folder.rglob(".trash-*"))
    assert shop.there("bundle") == {3}


def test_without_a_registry_nothing_goes(shop: Shop) -> None:
    for number in range(1, 4):
        shop.night(number)
    shop.down = True
    with pytest.raises(ArtifactError, match=r"not known which versions have an alias: MLflow does not answer"):
        planned(shop, 1)


def test_a_folder_that_cannot_be_written(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 4):
        shop.night(number)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match=r"cannot write below '.*runs'.*make it writable"):
        clean(shop, 1)
    assert nights(shop) == {kind: {1, 2, 3} for kind in STAGES}


def test_files_of_versions_that_a_server_keeps_are_told(shop: Shop) -> None:
    for number in range(1, 4):
        shop.night(number)
    shutil.rmtree(shop.folder / "mlartifacts")
    found = planned(shop, 1)
    assert found.left_alone == ("files of 2 old versions, which MLflow keeps elsewhere: its server deletes them",)


def test_the_words(shop: Shop) -> None:
    for number in range(1, 4):
        shop.night(number)
    found = planned(shop, 2)
    text = found.to_text(done=False).splitlines()
    assert text[-1] == f"would delete {len(found.doomed)} folders, {found.bytes / 1e6:,.1f} MB; 14 artefacts are kept"
    assert any(line.split()[:2] == ["policy", "1"] for line in text)
    assert found.to_json()["bytes"] == found.bytes == sum(row["bytes"] for row in found.to_json()["delete"])
    assert found.to_text(done=True).splitlines()[-1].startswith("deleted ")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_plan_beside_a_run_passes_over_what_vanishes(shop: Shop, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """`clean --dry-run`, `status` and `lineage` hold no lock while a run renames and deletes. A damaged one is named."""
    shop.night(1)
    shop.night(2)
    going = shop.folder / "artifacts" / "candidates" / digest_of("candidates", 1)[:16]
    (shop.folder / "artifacts" / "policy" / digest_of("policy", 1)[:16] / "manifest.json").write_text("{}")
    (shop.folder / "artifacts" / "policy" / ".work-1").mkdir()
    real, walk = inventory.open_artifact, os.walk

    def opened(path: Path, **options: bool) -> Artifact:
        if path == going and when == "before":
            shutil.rmtree(path)
        found = real(path, **options)
        if path == going:
            shutil.rmtree(path)
        return found

    def walked(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        if Path(folder).name == ".work-1":
            shutil.rmtree(folder)
        return walk(folder)

    monkeypatch.setattr(inventory, "open_artifact", opened)
    monkeypatch.setattr(os, "walk", walked)
    found = planned(shop, 1)
    assert not [one for one in found.doomed if one.what in ("candidates", "unfinished work")]
    assert len(found.left_alone) == 1
    assert digest_of("policy", 1)[:16] in found.left_alone[0]


def test_a_full_disk_can_be_cleaned(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No byte can be written until one of the results that go has made room; each of them has its line all the same."""
    for number in range(1, 4):
        shop.night(number)
    going = {one.known.digest for one in planned(shop, 1).doomed if one.known is not None}
    all_there = sum(1 for _ in (shop.folder / "artifacts").glob("*/*/data.bin"))
    real = os.write

    def full(handle: int, content: bytes) -> int:
        if sum(1 for _ in (shop.folder / "artifacts").glob("*/*/data.bin")) == all_there:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, content)

    monkeypatch.setattr(os, "write", full)
    clean(shop, 1)
    found = read_inventory(shop.folder, "shop", shop.open)  # type: ignore[arg-type, return-value]
    assert {known.digest for known in found.artefacts.values() if known.path is None} == going
    assert planned(shop, 1).doomed == ()
    assert "goes first, to make room for the record" in caplog.text


def test_killed_while_room_is_made_the_result_can_still_be_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest goes last: it is in the next plan. A folder that cannot be written at all loses nothing."""
    for number in range(1, 4):
        shop.night(number)
    before = planned(shop, 1)

    def refuses(number: int) -> None:
        def write(handle: int, content: bytes) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "write", write)
        with pytest.raises(ArtifactError) as error:
            clean(shop, 1)
        assert str(error.value).count("below") == 1

    refuses(errno.EROFS)
    assert planned(shop, 1) == before
    refuses(errno.ENOSPC)
    assert [one.path for one in planned(shop, 1).doomed] == [one.path for one in before.doomed]
    assert sum(not (one.path / "data.bin").exists() for one in before.doomed if one.known is not None) == 1
