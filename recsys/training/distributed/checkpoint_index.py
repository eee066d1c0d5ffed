"""The index of a sharded checkpoint, read without running what is in it.

``torch.distributed.checkpoint`` pickles its index (``.metadata``) and reads it back with ``pickle.load``, which calls
whatever a file names: a planted one would run code at the next start. The reader here knows the few classes that an index
consists of and refuses every other name, and every data file outside the folder.
"""

from __future__ import annotations

import pickle
from pathlib import PurePath
from typing import Any, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

_METADATA: Final = "torch.distributed.checkpoint.metadata"
_ALLOWED: Final = {
    *(
        (_METADATA, name)
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
}


class _IndexUnpickler(pickle.Unpickler):
    """Finds the classes of an index, and number types; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names '{module}.{name}', which no index of a checkpoint holds")
        return super().find_class(module, name)


class CheckpointReader(dcp.FileSystemReader):
    """Reads checkpoints whose index may have been tampered with."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index.

        Raises:
            pickle.UnpicklingError: It is damaged, names something that an index does not hold, or a file that is not in the
                folder.
        """
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as stream:
            found = _IndexUnpickler(stream).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, expected an index of tensors")
        for place in (found.storage_data or {}).values():
            name = str(place.relative_path)
            if PurePath(name).name != name or getattr(place, "transform_descriptors", None):
                raise pickle.UnpicklingError(f"it names the data file '{name}', expected a plain file in its folder")
        if found.storage_meta is None:
            found.storage_meta = StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found
