"""Training state in a folder that any number of processes can read, whatever the sharding.

Written by ``torch.distributed.checkpoint``: every process writes its part, and a reader takes what it needs. Tensors
have the names that they have in an unsharded policy::

    policy/<name>                    parameters and buffers
    optimizer/<name>/<state>         AdamW's moments; a table's accumulated squares as "sum"

so a checkpoint of row-wise tables on two processes is read by column-wise ones on four, or by a plain policy on one.
These folders are private to a running training; what leaves it is ``model/``, safetensors and JSON. Their index is a pickle,
and is read by :class:`~recsys.training.distributed.checkpoint_index.CheckpointReader`, which runs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from recsys.contracts.errors import ArtifactError
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.training.distributed.checkpoint_index import CheckpointReader
from recsys.training.distributed.sharding import table_tensors

COLLECTION = "tables.collection."


def save_training_state(folder: Path, policy: GenerativeRecommender, optimizer: torch.optim.Optimizer) -> None:
    """Write policy and optimiser; every process must call it."""
    tensors = _policy_tensors(policy)
    for name, parameter in policy.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if key != "step" or not _is_adagrad(optimizer.state[parameter]):
                tensors[f"optimizer/{name}/{key}"] = value
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder), no_dist=not _distributed())


def load_policy_state(folder: Path, policy: GenerativeRecommender) -> None:
    """Read parameters and buffers into a policy, plain or sharded.

    Raises:
        ArtifactError: The folder holds no such state, or that of another policy.
    """
    saved = _index(folder)
    tensors = {name: value for name, value in _policy_tensors(policy).items() if name.startswith("policy/")}
    _read(folder, saved, tensors)


def load_optimizer_state(folder: Path, policy: GenerativeRecommender, optimizer: torch.optim.Optimizer) -> None:
    """Read the optimiser's state, the fused state of sharded tables included.

    Raises:
        ArtifactError: The folder holds no such state, or that of another optimiser.
    """
    saved = _index(folder)
    tensors = {name: value for name, value in _policy_tensors(policy).items() if name.startswith("optimizer/")}
    names = {parameter: name for name, parameter in policy.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = _empty_state(saved, names[parameter], parameter)
            if _is_adagrad(state) != ("table_rule" in group) and state:
                raise ArtifactError(
                    f"checkpoint '{folder}' trained '{names[parameter]}' with another optimiser than the configuration's; "
                    "train with the old train.table_optimizer, or remove the folder to begin anew"
                )
            tensors |= {f"optimizer/{names[parameter]}/{key}": value for key, value in state.items()}
            if _is_adagrad(state):
                state["step"] = torch.zeros(())
            if state:
                optimizer.state[parameter] = state
    _read(folder, saved, tensors)


def _policy_tensors(policy: GenerativeRecommender) -> dict[str, Any]:
    """Unique tensors of the policy, and of the fused optimiser where tables are sharded."""
    tensors: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in policy.state_dict(keep_vars=True).items():
        # tables, codes and tower are shared by several modules: the first name is kept
        if id(tensor) in seen or (policy.tables.is_sharded and COLLECTION in name):
            continue
        seen.add(id(tensor))
        tensors[f"policy/{name}"] = tensor.detach()
    if policy.tables.is_sharded:
        for name, shards in table_tensors(policy.tables).items():
            kind = "optimizer" if name.endswith("/sum") else "policy"
            tensors[f"{kind}/{COLLECTION}{name}"] = shards
    return tensors


def _empty_state(saved: Metadata, name: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Room for what was saved of a parameter's optimiser state; the step count stays where AdamW wants it."""
    state = {}
    prefix = f"optimizer/{name}/"
    for key, entry in saved.state_dict_metadata.items():
        if key.startswith(prefix):
            assert isinstance(entry, TensorStorageMetadata)
            state[key.removeprefix(prefix)] = torch.empty(
                entry.size, dtype=entry.properties.dtype, device=parameter.device
            )
    return state


def _is_adagrad(state: dict[str, torch.Tensor]) -> bool:
    return "sum" in state


def _index(folder: Path) -> Metadata:
    try:
        return CheckpointReader(folder).read_metadata()
    except Exception as error:  # a damaged pickle may raise anything
        raise ArtifactError(f"checkpoint '{folder}' cannot be read: {error}; remove it to begin anew") from error


def _read(folder: Path, saved: Metadata, tensors: dict[str, Any]) -> None:
    """Fill ``tensors`` in place.

    Raises:
        ArtifactError: A name is missing or has another shape.
    """
    for name, tensor in tensors.items():
        entry = saved.state_dict_metadata.get(name)
        found = None if entry is None else tuple(entry.size)  # type: ignore[union-attr]
        if found != tuple(tensor.size()):
            raise ArtifactError(
                f"checkpoint '{folder}': '{name}' has shape {found}, expected {tuple(tensor.size())}; it belongs to another "
                "model or optimiser: remove it to begin anew"
            )
    dcp.load(tensors, storage_reader=CheckpointReader(folder), no_dist=not _distributed())


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
