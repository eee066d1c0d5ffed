"""Who was made from whom, by every name that a thing has, and with gaps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from pipelines.history.inventory import read_inventory, write_cleaned
from pipelines.history.lineage import Lineage, lineage_of
from recsys.contracts.errors import ArtifactError, ConfigError
from tests.pipelines.history.conftest import STAGES, Shop, digest_of


def ask(shop: Shop, what: str | Path) -> Lineage:
    return lineage_of(str(what), read_inventory(shop.folder, "shop", shop.open), "shop")  # type: ignore[arg-type, return-value]


def kinds(found: Lineage, side: str) -> list[str]:
    """Kinds on one side, without repetition, in the order they are met."""
    report = found.to_json()
    end = "parent" if side == "made_from" else "child"
    return list(dict.fromkeys(report["nodes"][edge[end]]["kind"] for edge in report[side]))


def test_the_chain_by_hand(shop: Shop) -> None:
    """Version 2 from its bundle, and that from data, IDs and policy; its candidates are made of it."""
    shop.night(1)
    shop.night(2)
    shop.table["champion"] = "2"
    found = ask(shop, "@champion")
    assert found.asked == ("version:shop/2",)
    assert kinds(found, "made_from") == ["bundle", "prepared", "semantic_ids", "policy", "embeddings"]
    assert kinds(found, "made_into") == ["candidates"]
    assert {key[9:15] for key in found.to_json()["nodes"] if key.startswith("artifact:")} == {
        digest_of(kind, 2)[:6] for kind in ("prepared", "embeddings", "semantic_ids", "policy", "bundle", "candidates")
    }
    text = found.to_text().splitlines()
    assert text[0] == "version 2 of shop (challenger, champion)"
    assert text[text.index("made into") + 1].startswith(f"  candidates {digest_of('candidates', 2)[:16]}")
    assert (
        sum("prepared" in line for line in text) == sum("(above)" in line and "prepared" in line for line in text) + 1
    )


@pytest.mark.parametrize(
    "name",
    ["2", "02", "models:/shop/2", "models:/shop@challenger", "@challenger"],
)
def test_names_of_a_version(shop: Shop, name: str) -> None:
    shop.night(1)
    shop.night(2)
    assert ask(shop, name).asked == ("version:shop/2",)


def test_names_of_an_artefact(shop: Shop) -> None:
    """Its folder, a file in it, the first digits of its digest; a table of IDs by the digest of the IDs as well."""
    shop.night(1)
    made = shop.night(2)
    ids = made["semantic_ids"]
    key = f"artifact:{ids.digest}"
    names = [ids.path, ids.path / "data.bin", ids.digest, ids.digest[:6], ids.digest[:16].upper(), "60" * 32, "60" * 6]
    for name in names:
        assert ask(shop, name).asked == (key,), name
    below = {"policy", "bundle", "evaluation", "version", "candidates"}
    assert set(kinds(ask(shop, ids.path), "made_into")) == below


def test_from_data_to_candidates_and_back(shop: Shop) -> None:
    made = shop.night(1)
    down = ask(shop, made["prepared"].digest)
    assert kinds(down, "made_from") == []
    assert set(kinds(down, "made_into")) == {*STAGES, "version"} - {"prepared"}
    up = ask(shop, made["candidates"].path)
    assert kinds(up, "made_from") == ["version", "prepared", "bundle", "semantic_ids", "policy", "embeddings"]
    assert "nothing yet" in up.to_text()


def test_a_warm_night_names_what_it_grew_from(shop: Shop) -> None:
    shop.night(1)
    made = shop.night(2, warm=True)
    edges = ask(shop, made["policy"].path).to_json()["made_from"]
    base = f"artifact:{digest_of('policy', 1)}"
    assert {"child": f"artifact:{made['policy'].digest}", "role": "base:train", "parent": base} in edges


def test_candidates_written_elsewhere(shop: Shop, tmp_path: Path) -> None:
    """A job's folder, one of its shards, and a shard that was copied away: each names its model."""
    shop.night(1)
    labels = {
        "model_name": "shop",
        "model_version": "1",
        "semantic_id_digest": "5f" * 32,
        "run_id": "r",
        "scored_at": "t",
    }
    job = tmp_path / "out"
    job.mkdir()
    (job / "job.json").write_text(json.dumps({"asked": "x", **labels}))
    pl.DataFrame({"user_id": [1], **{name: [value] for name, value in labels.items()}}).write_parquet(
        job / "part-00000-of-00001.parquet"
    )
    shutil.copy(job / "part-00000-of-00001.parquet", tmp_path / "alone.parquet")
    for name in (job, job / "part-00000-of-00001.parquet", tmp_path / "alone.parquet"):
        found = ask(shop, name)
        assert found.to_json()["made_from"][0]["parent"] == "version:shop/1"
        assert "bundle" in kinds(found, "made_from")


def test_candidates_of_an_unregistered_bundle_name_the_policy(shop: Shop, tmp_path: Path) -> None:
    made = shop.night(1)
    (tmp_path / "job.json").write_text(
        json.dumps({"model_name": "shop", "model_version": f"unregistered-{made['policy'].digest[:12]}"})
    )
    assert kinds(ask(shop, tmp_path), "made_from")[0] == "policy"


def test_what_was_cleaned_or_never_here_is_told(shop: Shop) -> None:
    """The embeddings were cleaned and left their line; the data are gone without a trace. Nothing fails."""
    made = shop.night(1)
    inventory = read_inventory(shop.folder, "shop", shop.open)  # type: ignore[arg-type, return-value]
    write_cleaned(shop.folder, [inventory.artefacts[made["embeddings"].digest]])
    for kind in ("embeddings", "prepared"):
        shutil.rmtree(made[kind].path)
    found = ask(shop, "models:/shop/1")
    states = {node["kind"]: node["state"] for node in found.to_json()["nodes"].values()}
    assert (states["embeddings"], states["bundle"]) == ("cleaned", "there")
    assert states["prepare"] == "missing"
    text = found.to_text()
    assert "cleaned away 2" in text
    assert "not here: cleaned away or never made in this folder" in text
    assert ask(shop, made["embeddings"].digest[:12]).asked == (f"artifact:{made['embeddings'].digest}",)


def test_a_torn_line_of_the_record_is_passed_over(shop: Shop) -> None:
    made = shop.night(1)
    inventory = read_inventory(shop.folder, "shop", shop.open)  # type: ignore[arg-type, return-value]
    known = [inventory.artefacts[made[kind].digest] for kind in ("bundle", "policy")]
    write_cleaned(shop.folder, known[:1])
    path = shop.folder / "cleaned.jsonl"
    path.write_text(path.read_text() + '{"kind": "pol')
    write_cleaned(shop.folder, known[1:])
    assert [len(line) > 20 for line in path.read_text().splitlines()] == [True, False, True]
    shutil.rmtree(shop.folder / "artifacts")
    found = read_inventory(shop.folder, "shop", shop.open)  # type: ignore[arg-type, return-value]
    assert {one.kind for one in found.artefacts.values()} == {"bundle", "policy"}


def test_without_a_registry_artefacts_can_be_told(shop: Shop) -> None:
    made = shop.night(1)
    shop.down = True
    found = ask(shop, made["bundle"].path)
    assert kinds(found, "made_into") == ["candidates"]
    assert found.to_text().endswith("note: versions are not known: MLflow does not answer")
    for version in ("@champion", "1"):  # nothing is said of what is or is not registered
        with pytest.raises(ArtifactError, match=r"whether 'models:/shop\S+ was registered .* not known: MLflow"):
            ask(shop, version)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("models:/shop/9", ArtifactError, "there are: version 1 of shop"),
        ("9", ArtifactError, "'models:/shop/9' is not registered .* there are: version 1 of shop"),
        ("", ConfigError, "is no file or folder"),
        ("@nobody", ArtifactError, "not registered from this output folder"),
        ("models:/shop", ConfigError, "neither models:/name@alias"),
        ("abc", ConfigError, "no digest of at least 6 digits"),
        ("not/there", ConfigError, "is no file or folder"),
        ("dddddddd", ConfigError, "has a digest that begins with"),
    ],
)
def test_words_that_name_nothing(shop: Shop, what: str, error: type[Exception], message: str) -> None:
    shop.night(1)
    with pytest.raises(error, match=message):
        ask(shop, what)


def test_digits_of_several(shop: Shop) -> None:
    shop.night(1)
    shop.publish("bundle", digest_of("bundle", 1)[:10] + "b" * 54, {}, 1)
    with pytest.raises(ConfigError, match=r"is the beginning of several digests: bundle .*; give more digits"):
        ask(shop, digest_of("bundle", 1)[:8])


def test_files_of_nobody(shop: Shop, tmp_path: Path) -> None:
    shop.night(1)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "y.parquet")
    (tmp_path / "z.txt").write_text("")
    for name, message in (
        ("x.parquet", "no shard of"),
        ("y.parquet", "no shard of"),
        ("z.txt", "belongs to no artefact"),
    ):
        with pytest.raises(ArtifactError, match=message):
            ask(shop, tmp_path / name)
