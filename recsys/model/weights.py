"""Trained modules on disk: ``model.safetensors`` beside a JSON specification, nothing that could run code."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Final, Protocol, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json, write_json

WEIGHTS_NAME: Final = "model.safetensors"


class _Spec(Protocol):
    @property
    def semantic_id_digest(self) -> str: ...


SpecT = TypeVar("SpecT", bound=BaseModel)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def save_module(folder: Path, module: nn.Module, spec: BaseModel, spec_name: str) -> None:
    """Write weights and specification; the specification last, so that a folder with one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in unique_state(module).items()}
    temporary = folder / f".{WEIGHTS_NAME}.tmp"
    save_file(tensors, temporary)
    temporary.replace(folder / WEIGHTS_NAME)
    write_json(folder / spec_name, spec.model_dump(mode="json"))


def read_module(
    folder: Path, spec_type: type[SpecT], spec_name: str, *, what: str, remedy: str
) -> tuple[SpecT, dict[str, torch.Tensor]]:
    """Read what :func:`save_module` wrote.

    Args:
        what, remedy: For the message: what the folder holds, and the way out.

    Raises:
        ArtifactError: Files are missing or damaged.
    """
    try:
        return spec_type.model_validate(read_json(folder / spec_name)), load_file(folder / WEIGHTS_NAME)
    except (ValidationError, SafetensorError, OSError) as error:
        raise ArtifactError(f"{what} in '{folder}' cannot be read: {error}; {remedy}") from error


def check_semantic_ids(
    spec: _Spec, expected: str | None, folder: Path, *, what: str, remedy: str, allow_grown: Collection[str] = ()
) -> None:
    """Compare the semantic IDs that a module was trained with to those it will be used with; ``None``: do not.

    Args:
        allow_grown: Digests of earlier versions that are accepted as well.

    Raises:
        ArtifactError: They differ, and the module's codes would mean other items.
    """
    if expected is not None and spec.semantic_id_digest not in (expected, *allow_grown):
        raise ArtifactError(
            f"{what} in '{folder}' was trained with semantic IDs {spec.semantic_id_digest[:16]}, "
            f"given are {expected[:16]}; its codes would mean other items: {remedy}"
        )


def load_weights(module: nn.Module, tensors: dict[str, torch.Tensor], folder: Path, *, remedy: str) -> None:
    """Copy saved tensors into a module.

    Raises:
        ArtifactError: Names or shapes differ from the module's.
    """
    own = unique_state(module)
    wrong = sorted(set(own) ^ set(tensors)) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise ArtifactError(f"weights in '{folder}' do not fit the specification: {', '.join(wrong[:5])}; {remedy}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def frozen_copy(module: ModuleT) -> ModuleT:
    """A copy in evaluation mode that takes no gradient and stays as it is.

    Weights that take none in ``module``, such as a language model's beside its adapters, are shared: nothing moves them.
    """
    shared = {id(weight): weight for weight in module.parameters() if not weight.requires_grad}
    return copy.deepcopy(module, shared).eval().requires_grad_(False)


def unique_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """State without the second and third names of what several modules share: tables, codes, item tower.

    What the module calls ``stored_elsewhere`` is left out: the frozen weights of a language model that is named instead.
    """
    seen: set[int] = set()
    unique = {}
    elsewhere: frozenset[str] = getattr(module, "stored_elsewhere", frozenset())
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            if name not in elsewhere:
                unique[name] = tensor.data
    return unique
