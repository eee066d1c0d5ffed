"""Vectors for another night's catalogue in the space of a generation: founders keep theirs, other items are projected.

Reads a prepared data set and an earlier result of `embed`; produces the files of `embed` for the items of tonight. A founder
has, bit for bit, the vector that the generation gave it, also when it returns after years. An item that came later is placed
anew every night by the frozen projections, so that it moves from what its text and attributes say to what its neighbours in
histories say; its semantic ID, given once, does not follow.

Legend: I items of tonight, n items that are projected, F founders.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.embeddings.collaborative import cooccurrence
from features.embeddings.config import EmbedConfig
from features.embeddings.factorise import FloatArray
from features.embeddings.precomputed import precomputed_embedding
from features.embeddings.space import EmbeddingSpace, KnownVectors, copy_space
from features.embeddings.text import is_left_out, text_embedding
from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import CannotGrow, DataError
from recsys.runtime import Progress

if TYPE_CHECKING:  # torch is imported when a text is encoded, not when a configuration is read
    import torch

Rows = npt.NDArray[np.int64]

_FREE: frozenset[str] = frozenset(
    {"batch_size", "optional", "path", "ids", "id_column", "vector_column", "max_missing_share"}
)
"""Settings of a source that do not decide where a vector lies."""


def settings_of(config: EmbedConfig) -> dict[str, Any]:
    """Return the settings that decide where a vector lies, flat: ``text.model``, ``fusion.dim`` and so on."""
    found: dict[str, Any] = {}
    for name, section in config.model_dump(mode="json").items():
        values = section if isinstance(section, dict) else {"": section}
        found |= {f"{name}.{key}".rstrip("."): value for key, value in values.items() if key not in _FREE}
    return found


class Growth:
    """One night's catalogue in the space of a generation.

    Raises:
        CannotGrow: The settings are others than those that the space was made with.
        ArtifactError: The base is damaged.
    """

    def __init__(self, prepared: Dataset, config: EmbedConfig, base: Path) -> None:
        self.base, self.config, self.prepared = base, config, prepared
        self.space, self.known = EmbeddingSpace.load(base), KnownVectors.load(base)
        now = settings_of(config)
        changed = [key for key in {**self.space.settings, **now} if self.space.settings.get(key) != now.get(key)]
        if changed:
            key = changed[0]
            raise CannotGrow(
                f"embed: {', '.join(f'embed.{name}' for name in changed)} changed ({self.space.settings.get(key)!r} -> "
                f"{now.get(key)!r}), so that new vectors would lie in another space than those of '{base}'; set it back, or "
                "start a new generation"
            )
        ids = prepared.items[Columns.ITEM_ID]
        if ids.dtype.is_integer() != self.known.item_ids.dtype.is_integer():
            raise CannotGrow(
                f"embed: item ids are {ids.dtype}, those of '{base}' {self.known.item_ids.dtype}; keep the type of the ids, "
                "or start a new generation"
            )
        if ids.dtype != self.known.item_ids.dtype:  # of another width, by which no item is another
            ids, wider = ids.cast(pl.Int64), self.known.item_ids.cast(pl.Int64)
            self.known = replace(self.known, item_ids=wider)
        self.ids = ids
        self.row_in_base = self.known.rows_of(self.ids)
        known = self.row_in_base >= 0
        self.founder_row = np.full(len(ids), -1, np.int64)
        self.founder_row[known] = self.known.founder_row[self.row_in_base[known]]
        self.founders, self.others = np.flatnonzero(self.founder_row >= 0), np.flatnonzero(self.founder_row < 0)

    @property
    def is_new(self) -> npt.NDArray[np.bool_]:
        """``[I]``, items that the base did not have."""
        return self.row_in_base < 0

    @property
    def absent(self) -> Rows:
        """Rows in the base of founders that are not in the catalogue."""
        here = np.zeros(len(self.known.item_ids), bool)
        here[self.row_in_base[self.row_in_base >= 0]] = True
        return np.flatnonzero(~here & (self.known.founder_row >= 0))

    def write(self, out_dir: Path, progress: Progress, device: torch.device | None) -> dict[str, FloatArray]:
        """Write the files, and return the arrays ``[I, width]`` by name."""
        projected = self._projected(progress, device)
        arrays = {name: self._merged(name, projected[name]) for name in self.known.arrays}
        copy_space(self.base, out_dir)
        absent = self.absent
        KnownVectors(
            pl.concat([self.ids, self.known.item_ids.gather(absent)]),
            np.concatenate([self.founder_row, self.known.founder_row[absent]]),
            {name: np.concatenate([array, self.known.arrays[name][absent]]) for name, array in arrays.items()},
        ).save(out_dir, len(self.ids))
        return arrays

    def _merged(self, name: str, projected: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Founders' rows from the base, the others' as given."""
        old = self.known.arrays[name]
        merged = np.empty((len(self.ids), *old.shape[1:]), old.dtype)
        merged[self.founders] = old[self.row_in_base[self.founders]]
        merged[self.others] = projected
        return merged

    def _projected(self, progress: Progress, device: torch.device | None) -> dict[str, npt.NDArray[Any]]:
        """Arrays ``[n, width]`` of all that are not founders."""
        space, items = self.space, self.prepared.items[self.others]
        found: dict[str, npt.NDArray[Any]] = {}
        if space.text_width:
            found["text"] = self._texts(items, progress, device)
        if space.collaborative is not None and self.config.collaborative is not None:
            found["collaborative"] = space.collaborative.fold_in(self._counts(), self.config.collaborative.shift)
        if space.attributes is not None:
            found["attributes"] = space.attributes.project(items)
        if self.config.precomputed is not None:
            found |= self._precomputed(found.get("text"))
        found["fused"] = space.fusion.fuse(found)
        return found

    def _counts(self) -> Any:
        """Co-occurrences ``[n, F]`` of tonight's train events with founders, those that are absent without any."""
        from scipy import sparse

        config, space = self.config.collaborative, self.space.collaborative
        assert config is not None
        assert space is not None
        counts = cooccurrence(self.prepared.history, len(self.ids), config.window, config.gap_decay)
        places = self.founder_row[self.founders]
        shape = (len(self.founders), len(space.context_share))
        to_founder = sparse.csr_matrix((np.ones(len(places)), (np.arange(len(places)), places)), shape=shape)
        return sparse.csr_matrix(counts[self.others][:, self.founders] @ to_founder)

    def _texts(self, items: pl.DataFrame, progress: Progress, device: torch.device | None) -> FloatArray:
        """Vectors that the base has, and those of texts that it has not seen."""
        rows = self.row_in_base[self.others]
        vectors = np.zeros((len(rows), self.space.text_width), np.float32)
        vectors[rows >= 0] = self.known.arrays["text"][rows[rows >= 0]]
        unseen = np.flatnonzero(~vectors.any(axis=1))
        if is_left_out(self.config.text):
            raise CannotGrow(
                f"embed: the founders have text vectors of '{self.config.text.model}', which is not on this machine; "
                "install it (recsys-gen[text]), or start a new generation"
            )
        texts = texts_of(items[unseen])
        if any((text or "").strip() for text in texts):
            vectors[unseen] = text_embedding(texts, self.config.text, progress, device)
        return vectors

    def _precomputed(self, text: FloatArray | None) -> dict[str, npt.NDArray[Any]]:
        config = self.config.precomputed
        assert config is not None
        vectors, _ = precomputed_embedding(self.prepared.items[Columns.ITEM_ID], config)
        if self.space.precomputed_width not in (0, vectors.shape[1]):
            raise DataError(
                f"embed.precomputed '{config.path}' holds vectors of {vectors.shape[1]} numbers, those of "
                f"this generation have {self.space.precomputed_width}; give vectors of the same kind, or start a new "
                "generation"
            )
        has = np.asarray(vectors.any(axis=1))[self.others]
        vectors = vectors[self.others]
        if self.space.ridge is not None and text is not None:
            vectors = self.space.ridge.fill(vectors, has, text)
        return {"precomputed": vectors, "precomputed_given": has}


def texts_of(items: pl.DataFrame) -> list[str | None]:
    """The item's text, or its title where there is no longer text."""
    return items.select(pl.coalesce(Columns.TEXT, Columns.TITLE)).to_series().to_list()
