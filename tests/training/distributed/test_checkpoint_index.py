"""The index of a sharded checkpoint: read as it is, and never run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from recsys.contracts.errors import ArtifactError
from recsys.training.distributed.checkpoint import load_policy_state
from recsys.training.distributed.checkpoint_index import CheckpointReader

TENSORS = {
    "policy/a": torch.arange(6.0).reshape(2, 3),
    "policy/b": torch.tensor([True, False]),
    "optimizer/a/step": torch.tensor(3.0),
    "policy/c": torch.ones(2, dtype=torch.bfloat16),
    "policy/d": torch.arange(3, dtype=torch.uint8),
}


class _Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dcp.save(dict(TENSORS), storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    return tmp_path


def test_a_sound_checkpoint_comes_back(folder: Path) -> None:
    found = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    dcp.load(found, storage_reader=CheckpointReader(folder), no_dist=True)
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
    ours, theirs = CheckpointReader(folder).read_metadata(), dcp.FileSystemReader(folder).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


@pytest.mark.parametrize(
    "planted",
    [
        lambda marker: _Calls(os.system, f"touch {marker}"),
        lambda marker: _Calls(eval, f"open({str(marker)!r}, 'w').close()"),
        lambda marker: _Calls(Path.touch, marker),
        lambda marker: _Calls(torch.save, torch.ones(1), str(marker)),
        lambda marker: _Calls(torch.Size, _Calls(os.mkdir, str(marker))),  # inside of something that is known
    ],
)
def test_a_planted_index_runs_nothing(folder: Path, tmp_path: Path, planted: Any) -> None:
    marker = tmp_path / "ran"
    (folder / ".metadata").write_bytes(pickle.dumps(planted(marker)))
    with pytest.raises(ArtifactError, match=r"cannot be read: it names '.*', which no index of a checkpoint holds"):
        load_policy_state(folder, policy=torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../elsewhere.distcp", "/etc/passwd", "inner/part.distcp"])
def test_a_data_file_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    index = dcp.FileSystemReader(folder).read_metadata()
    for place in index.storage_data.values():
        place.relative_path = name
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(pickle.UnpicklingError, match="expected a plain file in its folder"):
        CheckpointReader(folder).read_metadata()


def test_what_is_no_index_is_refused(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps({"policy/a": 1}))
    with pytest.raises(pickle.UnpicklingError, match="it holds a dict"):
        CheckpointReader(folder).read_metadata()
