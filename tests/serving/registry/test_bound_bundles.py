"""A version serves the bundle that was registered as it, whatever lies in the caches, the store or the model's own folder.

Two versions of one model, registered for real; every way to slip in something else, and every loader of versions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import ArtifactStore, open_artifact
from recsys.decoding.config import DecodeConfig
from serving.answers.scorer import Scorer
from serving.batch.job import open_bundle as open_model
from serving.bundle.layout import open_bundle
from serving.export.export import BundleSources, export_bundle
from serving.registry.aliases import BUNDLE_TAG, CONTENT_TAG
from serving.registry.file_store import sqlite_uri
from serving.registry.mlflow_client import connect
from serving.registry.model_registry import Registry, Version, _logged_model
from serving.registry.requirements import installed_flavour, requirements
from tests.serving.conftest import sealed

DIGESTS = {1: "1" * 64, 2: "2" * 64}


class Shop:
    """A registry with versions 1 and 2 of 'toy', and the store that their bundles were published in."""

    def __init__(self, root: Path, sources: BundleSources) -> None:
        self.uri = sqlite_uri(root / "mlflow.db")
        self.store = ArtifactStore(root / "artifacts")
        client = connect(self.uri)
        experiment = client.create_experiment("toy", artifact_location=(root / "mlartifacts").as_uri())
        registry = Registry(self.uri, root / "cache")
        for number, digest in DIGESTS.items():
            with self.store.work_folder("bundle", digest) as work:
                export_bundle(sources, "toy", DecodeConfig(beam_width=11 + number), work)
                bundle = self.store.publish(
                    work, kind="bundle", digest=digest, code_version="1", seed=1, parents={}, config={}, summary={}
                )
            run_id = client.create_run(experiment).info.run_id
            registry.register(bundle.path, run_id, {BUNDLE_TAG: digest})

    def registry(self, cache: Path) -> Registry:
        return Registry(self.uri, cache)

    def version(self, number: int) -> Version:
        return self.registry(Path("unused")).resolve(f"models:/toy/{number}")

    def logged(self, number: int) -> Path:
        """Folder of the bundle inside the model that MLflow holds."""
        client = connect(self.uri)
        place = client.get_model_version_download_uri("toy", str(number))
        (found,) = Path(mlflow.artifacts.download_artifacts(place)).glob("artifacts/*/bundle.json")
        return found.parent


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, sources: BundleSources) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"), sources)


def test_the_model_brings_what_its_requirements_name(shop: Shop) -> None:
    """A relative path of ``requirements.txt`` is that of a file in the model's folder; the other list lies beside it."""
    model = shop.logged(1).parents[1]
    lines = (model / "requirements.txt").read_text().splitlines()
    assert lines == requirements(installed_flavour())
    assert all((model / line).is_file() for line in lines if line.startswith("./"))
    assert {path.name for path in (model / "code").glob("requirements-*.txt")} == {
        "requirements-cpu.txt",
        "requirements-gpu.txt",
    }


def beam(folder: Path) -> int:
    return int(json.loads((folder / "decode.json").read_text())["beam_width"])


def test_the_tags_say_what_was_registered(shop: Shop) -> None:
    for number, digest in DIGESTS.items():
        version = shop.version(number)
        published = open_artifact(shop.store.path_of("bundle", digest))
        assert version.tags[CONTENT_TAG] == published.manifest.content_digest
    assert shop.version(1).tags[CONTENT_TAG] != shop.version(2).tags[CONTENT_TAG]


def test_a_version_names_the_folder_of_its_files_and_no_other(shop: Shop) -> None:
    """What is deleted with a version is found by MLflow's own name of the model, which leads nowhere else."""
    for version in shop.registry(Path("unused")).versions("toy"):
        assert version.model_id is not None
        assert shop.logged(int(version.number)).is_relative_to(
            shop.store.root.parent / "mlartifacts" / "models" / version.model_id
        )
    assert [_logged_model(source) for source in ("models:/../../x", "models:/m-..", "file:///x", None)] == [None] * 4


def test_each_version_has_its_own(shop: Shop, tmp_path: Path) -> None:
    """From the registry twice (the second time from the cache), from the store, and as the batch job opens it."""
    registry = shop.registry(tmp_path)
    for number in DIGESTS:
        version = shop.version(number)
        assert beam(registry.open_bundle(version).path) == 11 + number
        assert beam(registry.open_bundle(version).path) == 11 + number
        assert registry.open_bundle(version, shop.store).path == shop.store.path_of("bundle", DIGESTS[number])
        path, pinned = open_model(f"models:/toy/{number}", tmp_path / "job", shop.uri)
        assert (beam(path), pinned) == (11 + number, f"models:/toy/{number}")


def replace_folder(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def flip_weights(folder: Path) -> None:
    weights = folder / "model" / "model.safetensors"
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)


def swapped(folder: Path, other: Path) -> None:
    replace_folder(folder, other)


def flipped(folder: Path, other: Path) -> None:
    flip_weights(folder)


def flipped_without_manifest(folder: Path, other: Path) -> None:
    flip_weights(folder)
    (folder / "manifest.json").unlink()


def flipped_and_sealed_again(folder: Path, other: Path) -> None:
    flip_weights(folder)
    sealed(folder)


def swapped_under_the_first_digest(folder: Path, other: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    replace_folder(folder, other)
    theirs = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**theirs, "digest": manifest["digest"]}))


def files_of_nothing(folder: Path, other: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": []}))


def reward_model_slipped_in(folder: Path, other: Path) -> None:
    (folder / "reward_model").mkdir()
    (folder / "reward_model" / "x").write_text("x")


HARMS = [
    (swapped, "holds another bundle than"),
    (flipped, "has changed since it was published"),
    (flipped_without_manifest, r"holds no manifest\.json"),
    (flipped_and_sealed_again, "holds another bundle than"),
    (swapped_under_the_first_digest, "holds another bundle than"),
    (files_of_nothing, "is not listed in the manifest"),
    (reward_model_slipped_in, "is not listed in the manifest"),
]
Harm = Callable[[Path, Path], None]


@pytest.mark.parametrize(("harm", "message"), HARMS)
def test_a_cached_copy_that_is_another_is_refused(shop: Shop, tmp_path: Path, harm: Harm, message: str) -> None:
    registry = shop.registry(tmp_path)
    mine, other = (registry.open_bundle(shop.version(number)).path for number in (1, 2))
    harm(mine, other)
    with pytest.raises(ArtifactError, match=message):
        registry.open_bundle(shop.version(1))


@pytest.mark.parametrize(("harm", "message"), HARMS)
def test_a_registered_model_whose_bundle_is_another_does_not_load(
    shop: Shop, tmp_path: Path, harm: Harm, message: str
) -> None:
    """``mlflow.pyfunc.load_model`` of a copy of version 1's model, whose bundle was exchanged."""
    model = tmp_path / "model"
    shutil.copytree(shop.logged(1).parents[1], model)
    (inner,) = model.glob("artifacts/*")
    harm(inner, shop.logged(2))
    with pytest.raises(ArtifactError, match=message.replace("than", "than the model that it came with")):
        mlflow.pyfunc.load_model(str(model), model_config={"device": "cpu"})


def test_what_the_registry_holds_is_checked_too(shop: Shop, tmp_path: Path) -> None:
    """Somebody exchanged the files on the server: a fresh download is refused, whatever its own manifest says."""
    held = shop.logged(1)
    shutil.copytree(held, tmp_path / "kept")
    try:
        flipped_and_sealed_again(held, held)
        with pytest.raises(ArtifactError, match="holds another bundle than models:/toy/1 at 'sqlite:"):
            shop.registry(tmp_path / "cache").open_bundle(shop.version(1))
    finally:
        replace_folder(held, tmp_path / "kept")


def test_made_anew_with_another_outcome_the_registered_one_serves(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The store holds the same inputs' second result, not equal to the last bit: version 1 is the first."""
    store = ArtifactStore(tmp_path / "store")
    shutil.copytree(shop.store.path_of("bundle", DIGESTS[1]), store.path_of("bundle", DIGESTS[1]))
    flip_weights(store.path_of("bundle", DIGESTS[1]))
    sealed(store.path_of("bundle", DIGESTS[1]))
    found = shop.registry(tmp_path / "cache").open_bundle(shop.version(1), store)
    assert found.path.parent == tmp_path / "cache"
    assert "was made anew since models:/toy/1 was registered" in caplog.text


def test_a_version_without_the_tag_says_so(shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Registered by an older version: the digest of its inputs still has to fit."""
    version = shop.version(1)
    old = Version("toy", "1", {BUNDLE_TAG: version.tags[BUNDLE_TAG]})
    registry = shop.registry(tmp_path)
    mine, other = registry.open_bundle(old).path, registry.open_bundle(shop.version(2)).path
    assert "cannot be checked; export and register it anew" in caplog.text
    swapped(mine, other)
    with pytest.raises(ArtifactError, match=r"holds the bundle 2222222222222222, and models:/toy/1 is the bundle 1111"):
        registry.open_bundle(old)


class Planted:
    """An object that touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["codes.npy", "prefix_index"])
def test_a_planted_pickle_does_not_run(bundle: Path, tmp_path: Path, name: str) -> None:
    """In the place of an array, and sealed again, so that only the reader of arrays stands in between."""
    folder, marker = tmp_path / "bundle", tmp_path / "it ran"
    shutil.copytree(bundle, folder)
    arrays = [folder / name] if name.endswith(".npy") else sorted((folder / name).glob("*.npy"))
    assert arrays
    for path in arrays:
        np.save(path, np.array([Planted(marker)], dtype=object), allow_pickle=True)
    np.load(arrays[0], allow_pickle=True)
    assert marker.exists(), "the plant works where somebody lets it"
    marker.unlink()
    with pytest.raises(ArtifactError, match=r"cannot be (read|opened)"):
        Scorer.open(sealed(folder))
    assert not marker.exists()


def test_a_folder_alone_is_no_bundle_without_its_manifest(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    open_bundle(folder)
    flip_weights(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="was never finished"):
        Scorer.open(folder)
