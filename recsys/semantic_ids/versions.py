"""A version of the semantic IDs: the table item -> codes that checkpoints, bundles and candidates refer to by digest.

Files of a version:
    semantic_ids.parquet    item_index, item_id, codes, sid ("<a_12><b_7><c_3>"): for people and for joins
    codes.npy               int32 [I, L]: for the model, memory-mappable
    codebooks.safetensors   level_0, level_1, ... float32 [K, D]: give new items their IDs
    semantic_ids.json       digest, level sizes, hash of the codebooks, and the smaller tables this one grew from

Versions are append-only: new items get IDs from the frozen codebooks at the end of the table, old ones never move. The
digest covers codes, level sizes and item ids; a table that has grown has another digest, and lists the earlier ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import read_json, write_json
from recsys.contracts.table_checks import read_table
from recsys.semantic_ids.collisions import CodeTree, group_numbers
from recsys.semantic_ids.quantizer import CodeArray, FloatArray, check_embeddings, encode_nearest

_TABLE, _CODES, _BOOKS, _HEAD = "semantic_ids.parquet", "codes.npy", "codebooks.safetensors", "semantic_ids.json"


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """Items and their codes; row number = item_index.

    Attributes:
        codes: ``[I, L]`` int32, local to their level.
        level_sizes: Codes per level.
        item_ids: The ids as the source gives them, integers or strings.
        codebooks: ``[K, D]`` centroids of the first levels; an extra level (running number) has none.
        ancestors: ``(number of items, digest)`` of the tables this one grew from, oldest first.
    """

    codes: CodeArray
    level_sizes: tuple[int, ...]
    item_ids: pl.Series
    codebooks: tuple[FloatArray, ...]
    ancestors: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape != (len(self.item_ids), len(self.level_sizes)):
            raise ValueError(
                f"codes have shape {self.codes.shape}, expected [{len(self.item_ids)} items, {len(self.level_sizes)} levels]"
            )
        if len(self.codes) and ((self.codes < 0) | (self.codes >= np.array(self.level_sizes))).any():
            raise ValueError(f"a code lies outside of level sizes {self.level_sizes}")

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.codes)

    @property
    def num_levels(self) -> int:
        """L, with an extra level if there is one."""
        return len(self.level_sizes)

    @cached_property
    def digest(self) -> str:
        """Sha256 over codes, level sizes and item ids."""
        return _digest(self.codes, self.level_sizes, self.item_ids)

    @cached_property
    def is_unique(self) -> bool:
        """Whether no two items share their codes."""
        return len(np.unique(group_numbers(self.codes, self.level_sizes))) == self.num_items

    def check_same(self, digest: str, *, allow_grown: bool = False) -> None:
        """Refuse to go on with something that was made with other semantic IDs.

        Args:
            digest: The digest that a checkpoint, bundle or candidate table carries.
            allow_grown: Accept the digest of a table that this one grew from, whose items all kept their IDs.

        Raises:
            ArtifactError: The digests differ.
        """
        if digest == self.digest or (allow_grown and digest in {ancestor for _, ancestor in self.ancestors}):
            return
        raise ArtifactError(
            f"checkpoint was trained with other semantic IDs: it carries digest {digest[:16]}, the semantic IDs given have "
            f"{self.digest[:16]} ({self.num_items} items, level sizes {self.level_sizes}); "
            "give the `tokenize` artefact that the checkpoint was trained with, or train again"
        )

    def sids(self) -> list[str]:
        """Return the codes as text, one letter per level.

        Example:
            >>> SemanticIds(np.array([[12, 7]], np.int32), (16, 16), pl.Series(["x"]), ()).sids()
            ['<a_12><b_7>']
        """
        form = "".join(f"<{chr(ord('a') + level)}_{{}}>" for level in range(self.num_levels))
        return [form.format(*row) for row in self.codes.tolist()]

    def append(self, new_item_ids: Sequence[int | str] | pl.Series, new_embeddings: FloatArray) -> SemanticIds:
        """Return the next version: each new item gets the nearest free ID, old items keep theirs.

        Items are served in the given order. Where the table holds equal IDs (``unique=none``), new items simply get the
        nearest codes.

        Args:
            new_item_ids: Ids that the table does not hold, of the same type.
            new_embeddings: ``[n, D]``, made by the same embedding as the codebooks.

        Raises:
            DataError: An id is known already or given twice, the embeddings do not fit, or all IDs are taken.
        """
        ids = _as_ids(new_item_ids, self.item_ids.dtype)
        if not len(ids):
            return self
        self._check_new(ids, new_embeddings)
        if not self.is_unique:
            codes = encode_nearest(new_embeddings, self.codebooks)
        else:
            tree = CodeTree(self.codes, self.level_sizes, self.codebooks)
            codes = np.empty((len(ids), self.num_levels), np.int32)
            for row, embedding in enumerate(new_embeddings):
                code = tree.nearest_free(embedding)
                tree.add(code)
                codes[row] = code
        return SemanticIds(
            codes=np.concatenate([self.codes, codes]),
            level_sizes=self.level_sizes,
            item_ids=pl.concat([self.item_ids, ids]),
            codebooks=self.codebooks,
            ancestors=(*self.ancestors, (self.num_items, self.digest)),
        )

    def _check_new(self, ids: pl.Series, embeddings: FloatArray) -> None:
        check_embeddings(embeddings, "append to semantic IDs")
        width = self.codebooks[0].shape[1]
        if embeddings.shape != (len(ids), width):
            raise DataError(
                f"append to semantic IDs: embeddings have shape {embeddings.shape}, expected [{len(ids)}, {width}]; "
                "make them with the `embed` settings that the codebooks were fitted with"
            )
        known = ids.filter(ids.is_in(self.item_ids.implode()) | ids.is_duplicated())
        if len(known):
            raise DataError(
                f"append to semantic IDs: item_id {known[0]!r} has an ID already or is given twice ({len(known)} such "
                "rows); a published ID never moves: append only items that are new"
            )

    def save(self, folder: Path) -> None:
        """Write the four files of a version into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(
            {
                Columns.ITEM_INDEX: pl.Series(np.arange(self.num_items, dtype=np.int32)),
                Columns.ITEM_ID: self.item_ids,
                Columns.CODES: pl.Series(self.codes).arr.to_list(),
                Columns.SID: self.sids(),
            }
        ).write_parquet(folder / _TABLE)
        np.save(folder / _CODES, np.ascontiguousarray(self.codes, dtype=np.int32))
        save_file(_level_names(self.codebooks), folder / _BOOKS)
        head = {
            "digest": self.digest,
            "num_items": self.num_items,
            "num_levels": self.num_levels,
            "level_sizes": list(self.level_sizes),
            "unique": self.is_unique,
            "codebooks_digest": _books_digest(self.codebooks),
            "ancestors": [{"num_items": count, "digest": digest} for count, digest in self.ancestors],
        }
        write_json(folder / _HEAD, head)

    @classmethod
    def load(cls, folder: Path) -> SemanticIds:
        """Open a version and verify it against its digests.

        Raises:
            ArtifactError: A file is missing or unreadable, files do not belong together, or a digest does not match.
        """
        from recsys.contracts.tables import SemanticIdsTable

        head = read_json(folder / _HEAD)
        table = read_table(folder / _TABLE, SemanticIdsTable, "run `tokenize` again")
        try:
            codes = np.load(folder / _CODES, allow_pickle=False)
            books = load_file(folder / _BOOKS)
            ancestors = tuple((int(entry["num_items"]), str(entry["digest"])) for entry in head["ancestors"])
            found = cls(
                codes=codes,
                level_sizes=tuple(int(size) for size in head["level_sizes"]),
                item_ids=table[Columns.ITEM_ID],
                codebooks=tuple(books[f"level_{level}"] for level in range(len(books))),
                ancestors=ancestors,
            )
            table_codes = table[Columns.CODES].list.to_array(found.num_levels).to_numpy()
            expected = str(head["digest"]), str(head["codebooks_digest"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"semantic IDs in '{folder}' cannot be read: {error}; run `tokenize` again") from error
        found._verify(folder, table_codes, *expected)
        return found

    def _verify(self, folder: Path, table_codes: CodeArray, digest: str, books_digest: str) -> None:
        problems = []
        if self.digest != digest:
            problems.append(f"digest is {self.digest[:16]}, {_HEAD} says {digest[:16]}")
        if not np.array_equal(table_codes, self.codes):
            problems.append(f"{_TABLE} and {_CODES} hold different codes")
        if _books_digest(self.codebooks) != books_digest:
            problems.append(f"{_BOOKS} is not the one the codes were made with")
        for count, ancestor in self.ancestors:
            if _digest(self.codes[:count], self.level_sizes, self.item_ids[:count]) != ancestor:
                problems.append(f"the first {count} items are not those of ancestor {ancestor[:16]}")
        if problems:
            raise ArtifactError(f"semantic IDs in '{folder}' are damaged: {'; '.join(problems)}; run `tokenize` again")


def _as_ids(item_ids: Sequence[int | str] | pl.Series, dtype: pl.DataType) -> pl.Series:
    given = item_ids if isinstance(item_ids, pl.Series) else pl.Series(values=list(item_ids))
    same_kind = given.dtype.is_integer() == dtype.is_integer() or not len(given)
    if same_kind and not given.null_count():
        try:
            return given.cast(dtype)
        except pl.exceptions.InvalidOperationError:
            same_kind = False
    raise DataError(
        f"append to semantic IDs: the new item ids are {given.dtype} with {given.null_count()} nulls, those of the table "
        f"{dtype}; give ids without nulls that fit this type"
    )


def _digest(codes: CodeArray, level_sizes: Sequence[int], item_ids: pl.Series) -> str:
    found = hashlib.sha256()
    found.update(json.dumps([list(codes.shape), list(level_sizes)]).encode())
    found.update(np.ascontiguousarray(codes, dtype="<i4").tobytes())
    # 7 and "7" are different items, and a table of one must not pass for a table of the other
    found.update(json.dumps(item_ids.to_list(), ensure_ascii=False).encode())
    return found.hexdigest()


def _books_digest(codebooks: Sequence[FloatArray]) -> str:
    found = hashlib.sha256()
    for book in codebooks:
        found.update(json.dumps(list(book.shape)).encode())
        found.update(np.ascontiguousarray(book, dtype="<f4").tobytes())
    return found.hexdigest()


def _level_names(codebooks: Sequence[FloatArray]) -> dict[str, Any]:
    return {f"level_{level}": np.ascontiguousarray(book) for level, book in enumerate(codebooks)}
