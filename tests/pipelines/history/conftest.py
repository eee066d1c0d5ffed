"""Nights of a shop as they lie on the disk, a few bytes each, and a registry in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from recsys.contracts.errors import RecsysError
from recsys.contracts.manifest import Artifact, ArtifactStore, write_json
from serving.registry.model_registry import Version

STAGES = {
    "prepared": (),
    "embeddings": ("prepare",),
    "semantic_ids": ("prepare", "embed"),
    "policy": ("prepare", "tokenize"),
    "evaluation": ("prepare", "train"),
    "bundle": ("prepare", "tokenize", "train"),
    "candidates": ("prepare", "export"),
}
KIND_OF = {
    "prepare": "prepared",
    "embed": "embeddings",
    "tokenize": "semantic_ids",
    "train": "policy",
    "export": "bundle",
}
HOUR = 3600


def digest_of(kind: str, night: int) -> str:
    """64 hex digits that a reader can take apart: the place of the kind, the night."""
    return f"{list(STAGES).index(kind)}{night:05x}" + "a" * 58


class Shop:
    """An output folder with a registry.

    Attributes:
        down: The registry does not answer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(folder / "artifacts")
        self.rows: list[Version] = []
        self.table: dict[str, str] = {}
        self.down = False

    def night(self, number: int, *, warm: bool = False, register: bool = True) -> dict[str, Artifact]:
        """Publish every kind once, an hour after the night before; register the bundle."""
        made: dict[str, Artifact] = {}
        for kind, names in STAGES.items():
            parents = {name: made[KIND_OF[name]].digest for name in names}
            if warm and kind == "policy":
                parents["base:train"] = digest_of("policy", number - 1)
            made[kind] = self.publish(kind, digest_of(kind, number), parents, number)
        if register:
            self.register(number, made)
        return made

    def publish(self, kind: str, digest: str, parents: dict[str, str], number: int) -> Artifact:
        summary: dict[str, Any] = {"semantic_id_digest": f"{0x5E + number:02x}" * 32} if kind == "semantic_ids" else {}
        summary |= {"registered_name": "shop"} if kind == "bundle" else {}
        config = {"recommend": {"model": f"models:/shop/{number}"}} if kind == "candidates" else {}
        with self.store.work_folder(kind, digest) as work:
            (work / "data.bin").write_bytes(b"x" * 1000)
            made = self.store.publish(
                work,
                kind=kind,
                digest=digest,
                code_version="1",
                seed=1,
                parents=parents,
                config=config,
                summary=summary,
            )
        os.utime(made.path / "manifest.json", (number * HOUR, number * HOUR))
        return made

    def register(self, number: int, made: dict[str, Artifact]) -> None:
        tags = {"bundle_digest": made["bundle"].digest, "evaluation_digest": made["evaluation"].digest}
        self.rows.append(Version("shop", str(number), tags, f"m-{number}"))
        self.table["challenger"] = str(number)
        (self.folder / "mlartifacts" / "models" / f"m-{number}").mkdir(parents=True)
        (self.folder / "mlartifacts" / "models" / f"m-{number}" / "MLmodel").write_bytes(b"m" * 500)
        run = self.folder / "mlartifacts" / f"{number:032x}"
        run.mkdir()
        (run / "report.html").write_bytes(b"r" * 100)
        record = self.folder / "tracking" / "logged" / "own" / f"export-{made['bundle'].digest[:16]}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {"run_id": run.name})

    def there(self, kind: str) -> set[int]:
        """Nights whose artefact of a kind is there."""
        return {int(path.name[1:6], 16) for path in (self.folder / "artifacts" / kind).glob("[!.]*")}

    # what a registry does
    def open(self) -> Shop:
        if self.down:
            raise RecsysError("MLflow does not answer")
        return self

    def versions(self, name: str) -> list[Version]:
        return list(self.rows) if name == "shop" else []

    def aliases(self, name: str) -> dict[str, str]:
        return dict(self.table) if name == "shop" else {}

    def set_tags(self, version: Version, tags: dict[str, str]) -> None:
        version.tags.update(tags)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "runs")
