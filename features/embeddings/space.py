"""The vector space of a generation: all that was fitted when its founders were embedded, to give later items a place in it.

Files, the same in every night of a generation, byte for byte:
    space.safetensors   arrays of the collaborative, attribute and fusion spaces, and of the ridge regression from texts
    space.json          names of attributes, order and weights of the sources, the settings that the space was made with

and of one night:
    rows.parquet        item_id and founder_row (null: came later) of every row of the arrays
    absent.parquet, absent.safetensors   the same of founders that are not in the catalogue, and their vectors
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.embeddings.attributes import AttributeSpace
from features.embeddings.collaborative import CollaborativeSpace
from features.embeddings.fusion import FusionSpace
from features.embeddings.precomputed import TextRidge
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import digest_of, read_json, sha256_of_file, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

Arrays = Mapping[str, npt.NDArray[Any]]

_ARRAYS: Final = "space.safetensors"
_HEAD: Final = "space.json"
_ROWS: Final = "rows.parquet"
_ABSENT_ROWS: Final = "absent.parquet"
_ABSENT: Final = "absent.safetensors"
_FOUNDER_ROW: Final = "founder_row"
_AGAIN: Final = "run `embed` again"


@dataclass(frozen=True)
class EmbeddingSpace:
    """What was fitted on the founders; a source that they did not have is ``None``.

    Attributes:
        settings: Of the `embed` stage, as far as they decide where a vector lies.
        text_width: Width of text vectors, 0 where the founders had none.
        precomputed_width: Width of vectors from a file, 0 where there were none.
    """

    settings: dict[str, Any]
    fusion: FusionSpace
    collaborative: CollaborativeSpace | None = None
    attributes: AttributeSpace | None = None
    ridge: TextRidge | None = None
    text_width: int = 0
    precomputed_width: int = 0

    def save(self, folder: Path) -> None:
        """Write the files of the space."""
        from safetensors.numpy import save_file

        fusion = self.fusion
        parts: dict[str, npt.NDArray[Any] | None] = {f"fusion.mean.{name}": mean for name, mean in fusion.means.items()}
        parts |= {"fusion.centre": fusion.centre, "fusion.directions": fusion.directions}
        if self.collaborative is not None:
            parts |= {f"collaborative.{name}": array for name, array in vars(self.collaborative).items()}
        if self.attributes is not None:
            parts["attributes.weights"] = self.attributes.weights
            parts["attributes.directions"] = self.attributes.directions
        if self.ridge is not None:
            parts |= {f"ridge.{name}": array for name, array in vars(self.ridge).items()}
        arrays = {name: np.ascontiguousarray(array) for name, array in parts.items() if array is not None}
        save_file(arrays, folder / _ARRAYS)
        head = {
            "settings": self.settings,
            "sources": list(fusion.means),
            "weights": dict(fusion.weights),
            "attributes": None if self.attributes is None else list(self.attributes.names),
            "text_width": self.text_width,
            "precomputed_width": self.precomputed_width,
        }
        write_json(folder / _HEAD, head)

    @classmethod
    def load(cls, folder: Path) -> EmbeddingSpace:
        """Read the files of the space.

        Raises:
            ArtifactError: One is missing or damaged, as in results of releases that kept no space.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        head = read_json(folder / _HEAD)
        try:
            arrays = load_file(folder / _ARRAYS)
            names = head["attributes"]
            return cls(
                settings=head["settings"],
                fusion=FusionSpace(
                    {name: arrays[f"fusion.mean.{name}"] for name in head["sources"]},
                    {name: float(weight) for name, weight in head["weights"].items()},
                    arrays.get("fusion.centre"),
                    arrays.get("fusion.directions"),
                ),
                collaborative=_part(CollaborativeSpace, arrays, "collaborative"),
                attributes=None
                if names is None
                else AttributeSpace(tuple(names), arrays["attributes.weights"], arrays["attributes.directions"]),
                ridge=_part(TextRidge, arrays, "ridge"),
                text_width=int(head["text_width"]),
                precomputed_width=int(head["precomputed_width"]),
            )
        except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
            raise ArtifactError(f"the vector space in '{folder}' cannot be read: {error!r}; {_AGAIN}") from error


def _part(make: Callable[..., Any], arrays: Arrays, name: str) -> Any:
    found = {key.partition(".")[2]: array for key, array in arrays.items() if key.startswith(f"{name}.")}
    return make(**found) if found else None


def space_digest(folder: Path) -> str:
    """Return what says that two results of `embed` lie in the same space, and codebooks of one fit vectors of the other."""
    return digest_of([sha256_of_file(folder / _ARRAYS), sha256_of_file(folder / _HEAD)])


def copy_space(source: Path, target: Path) -> None:
    """Take over the files of the space."""
    for name in (_ARRAYS, _HEAD):
        shutil.copyfile(source / name, target / name)


@dataclass(frozen=True)
class KnownVectors:
    """Vectors that a generation has given, of the items of one night and of founders that are not among them.

    Attributes:
        item_ids: ``[R]``.
        founder_row: ``[R]`` row that a founder had in the fit, -1 for items that came later.
        arrays: Array name (``fused``, ``text`` …) -> ``[R, width]``.
    """

    item_ids: pl.Series
    founder_row: npt.NDArray[np.int64]
    arrays: Arrays

    def save(self, folder: Path, num_present: int) -> None:
        """Write the arrays of the first ``num_present`` rows, the items of the night, one file each, and the rest aside."""
        from safetensors.numpy import save_file

        row = pl.Series(self.founder_row)
        rows = pl.DataFrame({Columns.ITEM_ID: self.item_ids, _FOUNDER_ROW: row.set(row < 0, None)})
        rows[:num_present].write_parquet(folder / _ROWS)
        for name, array in self.arrays.items():
            np.save(folder / f"{name}.npy", array[:num_present])
        if len(rows) > num_present:
            rows[num_present:].write_parquet(folder / _ABSENT_ROWS)
            absent = {name: np.ascontiguousarray(array[num_present:]) for name, array in self.arrays.items()}
            save_file(absent, folder / _ABSENT)

    @classmethod
    def load(cls, folder: Path) -> KnownVectors:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: A file is missing or damaged, or they do not fit together.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            rows = pl.read_parquet(folder / _ROWS, glob=False)
            arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}
            counts = {len(array) for array in arrays.values()}
            if counts != {len(rows)}:
                raise ValueError(f"{_ROWS} has {len(rows)} rows, the arrays {sorted(counts)}")
            if (folder / _ABSENT_ROWS).exists():
                absent = load_file(folder / _ABSENT)
                arrays = {name: np.concatenate([array, absent[name]]) for name, array in arrays.items()}
                rows = pl.concat([rows, pl.read_parquet(folder / _ABSENT_ROWS, glob=False)])
            founder_row = rows[_FOUNDER_ROW].cast(pl.Int64).fill_null(-1).to_numpy()
        except (OSError, KeyError, ValueError, SafetensorError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"the vectors in '{folder}' cannot be read: {error}; {_AGAIN}") from error
        return cls(rows[Columns.ITEM_ID], founder_row, arrays)

    def rows_of(self, item_ids: pl.Series) -> npt.NDArray[np.int64]:
        """Return the row of each id, -1 where it has none."""
        places = pl.DataFrame({"id": self.item_ids}).with_row_index("row")
        found = pl.DataFrame({"id": item_ids}).join(places, on="id", how="left", maintain_order="left")
        return found["row"].cast(pl.Int64).fill_null(-1).to_numpy()
