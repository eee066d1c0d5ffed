"""Trained modules on disk: ``model.safetensors`` beside a JSON specification, nothing that could run code."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
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


def save_module(
    folder: Path, module: nn.Module, spec: BaseModel, spec_name: str, elsewhere: Collection[str] | None = None
) -> None:
    """Write weights and specification; the specification last, so that a folder with one is complete.

    Args:
        elsewhere: As of :func:`unique_state`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = unique_state(module, elsewhere)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
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


def moving_state(module: nn.Module, like: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """State without the weights that take no gradient, which a language model beside its adapters has.

    Args:
        like: Whose weights say what takes a gradient; ``None``: the module's own. A frozen copy has none that does.

    Example:
        >>> pair = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> _ = pair[0].requires_grad_(False)
        >>> list(moving_state(pair))
        ['1.weight']
    """
    fixed = _fixed(like if like is not None else module)
    return {name: tensor for name, tensor in module.state_dict().items() if name not in fixed}


def load_moving_state(module: nn.Module, state: Mapping[str, torch.Tensor], like: nn.Module | None = None) -> None:
    """Put back what :func:`moving_state` took; the other weights stay as they are.

    Raises:
        ArtifactError: Other weights move here than in the state.
    """
    wrong = sorted(moving_state(module, like).keys() ^ state.keys())
    if wrong:
        raise ArtifactError(
            f"a training state does not fit the model: {', '.join(wrong[:5])} in one of them alone; delete it and run again"
        )
    module.load_state_dict(state, strict=False)


def _fixed(module: nn.Module) -> set[str]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {name for name, weight in parameters if not weight.requires_grad}


def unique_state(module: nn.Module, elsewhere: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    """State without the second and third names of what several modules share: tables, codes, item tower.

    Args:
        elsewhere: Names that are left out; ``None``: what the module calls ``stored_elsewhere``, the frozen weights of a
            language model that is named instead.
    """
    seen: set[int] = set()
    unique = {}
    elsewhere = getattr(module, "stored_elsewhere", frozenset()) if elsewhere is None else elsewhere
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            if name not in elsewhere:
                unique[name] = tensor.data
    return unique
