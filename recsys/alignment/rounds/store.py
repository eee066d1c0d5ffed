"""What survives a kill: finished rounds as artefacts, an unfinished one as a checkpoint, each replaced by rename.

A round is a folder ``rounds/NN`` with a manifest that names its parents: the round it started from and whatever the run
itself started from. It appears by rename when everything in it is written. ``.state.pt`` beside the model holds what the
next round goes on with (optimiser, reference); it is scratch and is gone when the stage is published. The round at work
lies in ``.scratch/NN``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import recsys
from recsys.contracts.contents import MANIFEST_NAME, describe_files, sync
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Manifest, digest_of, open_artifact, write_json

ROUND_KIND: Final = "alignment_round"
STATE_NAME: Final = ".state.pt"
MODEL_NAME: Final = "model"


@dataclass(frozen=True)
class Round:
    """A finished round.

    Attributes:
        number: 0 is the start, before any update.
    """

    number: int
    path: Path
    manifest: Manifest

    @property
    def summary(self) -> dict[str, Any]:
        """What the round measured, and the guard's result."""
        return self.manifest.summary

    @property
    def digest(self) -> str:
        """Digest of its inputs."""
        return self.manifest.digest


class RoundStore:
    """The rounds of one run.

    Args:
        folder: Work folder of the run.
        parents: Digests of what the run itself reads: data, policy, reward model.
        config: Resolved configuration, as plain values.
    """

    def __init__(self, folder: Path, parents: Mapping[str, str], config: Mapping[str, Any], seed: int) -> None:
        self.folder, self.parents, self.config, self.seed = folder, dict(parents), dict(config), seed

    def path_of(self, number: int) -> Path:
        """Folder of a finished round."""
        return self.folder / "rounds" / f"{number:02d}"

    def scratch(self, number: int) -> Path:
        """Folder of a round at work; created when missing."""
        path = self.folder / ".scratch" / f"{number:02d}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def work_folder(self, number: int) -> Path:
        """A fresh folder to assemble a finished round in; what a kill left there is thrown away."""
        path = self.folder / "rounds" / f".work-{number:02d}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def find(self, number: int, parent: Round | None) -> Round | None:
        """Open a finished round, or return ``None``.

        Args:
            parent: The round it must have started from.

        Raises:
            ArtifactError: The folder holds a round of another configuration, seed or parent.
        """
        path = self.path_of(number)
        if not (path / MANIFEST_NAME).exists():
            return None
        manifest = open_artifact(path, ROUND_KIND).manifest
        if manifest.digest != self._digest(number, parent):
            raise ArtifactError(
                f"'{path}' belongs to an alignment with other settings or parents; delete '{self.folder}' and run again"
            )
        return Round(number, path, manifest)

    def publish(self, number: int, parent: Round | None, work: Path, summary: Mapping[str, Any]) -> Round:
        """Write the manifest into ``work`` and rename it into place; scratch of the round goes."""
        manifest = Manifest(
            kind=ROUND_KIND,
            digest=self._digest(number, parent),
            code_version=recsys.__version__,
            seed=self.seed,
            parents=self._parents(parent),
            config=self.config,
            summary=dict(summary),
            files=describe_files(work),
        )
        write_json(work / MANIFEST_NAME, manifest.model_dump(mode="json"))
        sync(work)
        final = self.path_of(number)
        shutil.rmtree(final, ignore_errors=True)  # without a manifest: a leftover
        work.rename(final)
        shutil.rmtree(self.scratch(number), ignore_errors=True)
        return Round(number, final, manifest)

    def _parents(self, parent: Round | None) -> dict[str, str]:
        return {**self.parents, **({} if parent is None else {"round": parent.digest})}

    def _digest(self, number: int, parent: Round | None) -> str:
        return digest_of(
            {
                "kind": ROUND_KIND,
                "number": number,
                "config": self.config,
                "seed": self.seed,
                "parents": self._parents(parent),
            }
        )


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state by rename, so that a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name.lstrip('.')}.tmp")
    torch.save(dict(state), temporary)
    temporary.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a training state, or return ``None`` when there is none; tensors and plain values only, no code."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise ArtifactError(f"training state '{path}' cannot be read: {error}; delete it and run again") from error
    return state


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors as safetensors, by rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)


def load_tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """Read named tensors, or return ``None`` when there are none."""
    if not path.exists():
        return None
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"'{path}' cannot be read: {error}; delete it and run again") from error
