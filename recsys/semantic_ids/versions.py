"""A version of the semantic IDs: the table item -> codes that checkpoints, bundles and candidates refer to by digest.

Files of a version:
    semantic_ids.parquet    item_index, item_id, codes, sid ("<a_12><b_7><c_3>"), born, train_count: for people and for joins
    reserved.parquet        item_id, codes, sid, born: items that have left the catalogue and keep their ID
    codes.npy               int32 [I, L]: for the model, memory-mappable
    codebooks.safetensors   level_0, level_1, ... float32 [K, D]: give new items their IDs
    semantic_ids.json       schema, digests, level sizes, hash of the codebooks, and the earlier versions of the generation

Versions of a generation only grow: a night's new items get IDs from the frozen codebooks, an item that leaves keeps its ID
reserved and has it again when it returns, and no ID ever moves or goes to another item. Item rows are numbered anew every
night, so the digest covers item ids, codes and level sizes in the order of item ids (:mod:`recsys.semantic_ids.identity`).

Schema 1, written before tables could grow, had no births and no reserved items, and its digest followed the rows. It is
read, keeps its digest and serves; only growing from it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import read_json, write_json
from recsys.contracts.table_checks import read_table
from recsys.semantic_ids.identity import Ancestor, books_digest, rows_digest, table_digest
from recsys.semantic_ids.quantizer import CodeArray, FloatArray, check_embeddings
from recsys.semantic_ids.register import Births, Counts, Register, as_ids

SCHEMA: Final = 2
_TABLE, _CODES, _BOOKS, _HEAD = "semantic_ids.parquet", "codes.npy", "codebooks.safetensors", "semantic_ids.json"
_RESERVED: Final = "reserved.parquet"
_AGAIN: Final = "run `tokenize` again"


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """Items and their codes; row number = item_index.

    Attributes:
        codes: ``[I, L]`` int32, local to their level.
        level_sizes: Codes per level.
        item_ids: The ids as the source gives them, integers or strings.
        codebooks: ``[K, D]`` centroids of the first levels; an extra level (running number) has none.
        ancestors: Earlier versions of the generation, oldest first; empty for founders.
        births: ``[I]`` version that gave each item its ID, 0 for founders; ``None`` where all are founders.
        left: Items that have left the catalogue; ``None`` for none.
        traffic: ``[I]`` train events per item when the table was made; ``None`` where that is not known.
        aligned_to: Digests of the versions of the generation before, whose codes those of this one were named after.
        schema: Of the files it was read from.
    """

    codes: CodeArray
    level_sizes: tuple[int, ...]
    item_ids: pl.Series
    codebooks: tuple[FloatArray, ...]
    ancestors: tuple[Ancestor, ...] = ()
    births: Births | None = None
    left: Register | None = None
    traffic: Counts | None = None
    aligned_to: tuple[str, ...] = ()
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape != (len(self.item_ids), len(self.level_sizes)):
            raise ValueError(
                f"codes have shape {self.codes.shape}, expected [{len(self.item_ids)} items, {len(self.level_sizes)} levels]"
            )
        codes, born = self.register.codes, self.register.born
        if len(codes) and ((codes < 0) | (codes >= np.array(self.level_sizes))).any():
            raise ValueError(f"a code lies outside of level sizes {self.level_sizes}")
        if len(born) and not 0 <= born.min() <= born.max() <= self.version:
            raise ValueError(f"an item was born in version {born.max()} or {born.min()}, expected 0 to {self.version}")

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.codes)

    @property
    def num_levels(self) -> int:
        """L, with an extra level if there is one."""
        return len(self.level_sizes)

    @property
    def version(self) -> int:
        """Number of this version in its generation, 0 for the founders."""
        return len(self.ancestors)

    @cached_property
    def born(self) -> Births:
        """``[I]`` version that gave each item its ID."""
        return np.zeros(self.num_items, np.int32) if self.births is None else self.births

    @cached_property
    def reserved(self) -> Register:
        """Items that have left the catalogue; their IDs go to nobody else."""
        return Register(self.item_ids, self.codes, self.born).take(np.arange(0)) if self.left is None else self.left

    @cached_property
    def digest(self) -> str:
        """Sha256 over level sizes, item ids and codes, whatever the order of the rows."""
        make = table_digest if self.schema == SCHEMA else rows_digest
        return make(self.codes, self.level_sizes, self.item_ids)

    @property
    def generation(self) -> str:
        """Digest of the founders' register; versions of one generation have the same."""
        return self._chain[0]

    @cached_property
    def is_unique(self) -> bool:
        """Whether no two items, reserved ones included, share their codes."""
        return self.register.is_unique

    @cached_property
    def register(self) -> Register:
        """All items that ever got an ID in this generation: those of the catalogue in its order, then the reserved ones."""
        return Register(self.item_ids, self.codes, self.born).with_more(self.reserved)

    @cached_property
    def _chain(self) -> list[str]:
        return self.register.chain(self.level_sizes, self.version)

    def check_same(self, digest: str, *, allow_grown: bool = False) -> None:
        """Refuse to go on with something that was made with other semantic IDs.

        Args:
            digest: The digest that a checkpoint, bundle or candidate table carries.
            allow_grown: Accept the digest of a version that this one grew from. Its codes mean the same items here, but its
                rows are numbered as they were then: map what is kept per item by item id before it is used.

        Raises:
            ArtifactError: The digests differ.
        """
        if digest == self.digest or (allow_grown and digest in self.earlier_digests):
            return
        grown = "; the table has grown since, map the checkpoint to it first" if digest in self.earlier_digests else ""
        raise ArtifactError(
            f"checkpoint was trained with other semantic IDs: it carries digest {digest[:16]}, the semantic IDs given have "
            f"{self.digest[:16]} ({self.num_items} items, level sizes {self.level_sizes}){grown}; "
            "give the `tokenize` artefact that the checkpoint was trained with, or train again"
        )

    @property
    def earlier_digests(self) -> frozenset[str]:
        """Digests of the versions of this generation that came before."""
        return frozenset(ancestor.digest for ancestor in self.ancestors)

    @property
    def warm_digests(self) -> frozenset[str]:
        """Digests of tables whose policies are a start for a policy of this one.

        Those of earlier versions, whose codes mean the same items, and those of the generation that codes are named after.
        """
        return self.earlier_digests | frozenset(self.aligned_to)

    def check_rows(self, codes: npt.NDArray[np.integer]) -> None:
        """Refuse a catalogue ``[I, L]`` whose rows are not these: digests agree on items and codes, not on their order.

        Raises:
            ArtifactError: The rows differ.
        """
        if codes.shape != self.codes.shape or not np.array_equal(codes, self.codes):
            raise ArtifactError(
                f"the checkpoint's catalogue of shape {codes.shape} numbers its items otherwise than these semantic IDs "
                f"({self.num_items} items): their rows are those of another prepared data set; give the `tokenize` artefact "
                "that the checkpoint was trained with"
            )

    def sids(self) -> list[str]:
        """Return the codes as text, one letter per level.

        Example:
            >>> SemanticIds(np.array([[12, 7]], np.int32), (16, 16), pl.Series(["x"]), ()).sids()
            ['<a_12><b_7>']
        """
        return Register(self.item_ids, self.codes, self.born).sids()

    def grown(
        self, item_ids: Sequence[int | str] | pl.Series, embeddings: FloatArray, traffic: Counts | None = None
    ) -> SemanticIds:
        """Return the version for another catalogue: known items keep their IDs, each new one gets the nearest free ID.

        Who left stays reserved, and who returns has the old ID again. New items are served by falling traffic, then by id,
        so the order of the rows decides nothing. Where the table holds equal IDs (``unique=none``), new items simply get the
        nearest codes. A catalogue of the same items is the same version, in its order.

        Args:
            item_ids: ``[N]`` ids of the whole catalogue, of the type of those in the table, each once.
            embeddings: ``[N, D]`` in the space of the codebooks; rows of known items are not read.
            traffic: ``[N]`` train events per item, kept with the table; ``None`` for none.

        Raises:
            ArtifactError: The table is of schema 1.
            DataError: Ids repeat or are of another type, the embeddings do not fit, or all IDs are taken.
        """
        if self.schema != SCHEMA:
            raise ArtifactError(
                f"semantic IDs of schema {self.schema} cannot grow: they do not say when an item got its ID, and their "
                f"digest follows the order of rows; {_AGAIN} without a base, which starts a new generation"
            )
        ids = as_ids(item_ids, self.item_ids.dtype)
        counts = np.zeros(len(ids), np.int64) if traffic is None else np.asarray(traffic, np.int64)
        self._check_catalogue(ids, embeddings, counts)
        rows, old = self.register.rows_of(ids), self.register
        known, new = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        codes = np.empty((len(ids), self.num_levels), np.int32)
        born = np.full(len(ids), self.version + 1, np.int32)
        codes[known], born[known] = old.codes[rows[known]], old.born[rows[known]]
        vectors = np.asarray(embeddings[new], np.float32)
        codes[new] = old.nearest_free(ids.gather(new), vectors, counts[new], self.level_sizes, self.codebooks)
        left = np.setdiff1d(np.arange(len(old)), rows[known])
        same = not len(new) and np.array_equal(left, np.arange(self.num_items, len(old)))
        here = Ancestor(self.digest, self.num_items, self._chain[-1])
        return replace(
            self,
            codes=codes,
            item_ids=ids,
            births=born,
            left=old.take(left),
            traffic=None if traffic is None else counts,
            ancestors=self.ancestors if same else (*self.ancestors, here),
        )

    def _check_catalogue(self, ids: pl.Series, embeddings: FloatArray, traffic: Counts) -> None:
        check_embeddings(embeddings, "grow semantic IDs")
        width = self.codebooks[0].shape[1]
        if embeddings.shape != (len(ids), width) or traffic.shape != (len(ids),):
            raise DataError(
                f"grow semantic IDs: embeddings have shape {embeddings.shape}, expected [{len(ids)}, {width}], and traffic "
                f"{traffic.shape}; make them with the `embed` settings that the codebooks were fitted with"
            )

    def save(self, folder: Path) -> None:
        """Write the files of a version into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        table = pl.DataFrame({Columns.ITEM_INDEX: np.arange(self.num_items, dtype=np.int32)})
        table = table.hstack(_as_table(Register(self.item_ids, self.codes, self.born)))
        if self.traffic is not None:
            table = table.with_columns(pl.Series(Columns.TRAIN_COUNT, self.traffic))
        table.write_parquet(folder / _TABLE)
        _as_table(self.reserved).write_parquet(folder / _RESERVED)
        np.save(folder / _CODES, np.ascontiguousarray(self.codes, dtype=np.int32))
        save_file(_level_names(self.codebooks), folder / _BOOKS)
        head = {
            "schema_version": self.schema,
            "digest": self.digest,
            "version": self.version,
            "generation": self.generation,
            "register": self._chain[-1],
            "num_items": self.num_items,
            "num_reserved": len(self.reserved.codes),
            "num_levels": self.num_levels,
            "level_sizes": list(self.level_sizes),
            "unique": self.is_unique,
            "codebooks_digest": books_digest(self.codebooks),
            "ancestors": [vars(ancestor) for ancestor in self.ancestors],
            "aligned_to": list(self.aligned_to),
        }
        write_json(folder / _HEAD, head)

    @classmethod
    def load(cls, folder: Path) -> SemanticIds:
        """Open a version and verify it against its digests.

        Raises:
            ArtifactError: A file is missing or unreadable, files do not belong together, a digest does not match, or a newer
                release wrote them.
        """
        from recsys.contracts.tables import ReservedIdsTable, SemanticIdsTable

        head = read_json(folder / _HEAD)
        schema = head.get("schema_version", 1) if isinstance(head, dict) else 1
        if schema not in (1, SCHEMA):
            raise ArtifactError(
                f"semantic IDs in '{folder}' have schema {schema!r}, this code reads 1 and {SCHEMA}; use the release that "
                f"wrote them, or {_AGAIN}"
            )
        table = read_table(folder / _TABLE, SemanticIdsTable, _AGAIN)
        reserved = read_table(folder / _RESERVED, ReservedIdsTable, _AGAIN) if schema == SCHEMA else None
        try:
            books = load_file(folder / _BOOKS)
            sizes = tuple(int(size) for size in head["level_sizes"])
            found = cls(
                codes=np.load(folder / _CODES, allow_pickle=False),
                level_sizes=sizes,
                item_ids=table[Columns.ITEM_ID],
                codebooks=tuple(books[f"level_{level}"] for level in range(len(books))),
                ancestors=tuple(Ancestor(**entry) for entry in head["ancestors"]),
                births=None if reserved is None else table[Columns.BORN].to_numpy(),
                left=None if reserved is None else _from_table(reserved, len(sizes)),
                traffic=table[Columns.TRAIN_COUNT].to_numpy() if Columns.TRAIN_COUNT in table.columns else None,
                aligned_to=tuple(str(digest) for digest in head.get("aligned_to", ())),
                schema=schema,
            )
            found._verify(folder, table[Columns.CODES].list.to_array(found.num_levels).to_numpy(), head)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"semantic IDs in '{folder}' cannot be read: {error}; {_AGAIN}") from error
        return found

    def _verify(self, folder: Path, table_codes: CodeArray, head: dict[str, Any]) -> None:
        problems = []
        if self.digest != head["digest"]:
            problems.append(f"digest is {self.digest[:16]}, {_HEAD} says {str(head['digest'])[:16]}")
        if not np.array_equal(table_codes, self.codes):
            problems.append(f"{_TABLE} and {_CODES} hold different codes")
        if books_digest(self.codebooks) != head["codebooks_digest"]:
            problems.append(f"{_BOOKS} is not the one the codes were made with")
        registers = [*(ancestor.register for ancestor in self.ancestors)]
        registers += [head["register"]] if self.schema == SCHEMA else []
        for version, (expected, register) in enumerate(zip(registers, self._chain, strict=False)):
            if register != expected:
                problems.append(f"the items born up to version {version} are not those that it had: an ID has moved")
                break
        if problems:
            raise ArtifactError(f"semantic IDs in '{folder}' are damaged: {'; '.join(problems)}; {_AGAIN}")


def _as_table(items: Register) -> pl.DataFrame:
    return pl.DataFrame(
        {
            Columns.ITEM_ID: items.item_ids,
            Columns.CODES: pl.Series(items.codes, dtype=pl.Array(pl.Int32, items.codes.shape[1])).arr.to_list(),
            Columns.SID: pl.Series(items.sids(), dtype=pl.String),
            Columns.BORN: items.born,
        }
    )


def _from_table(table: pl.DataFrame, num_levels: int) -> Register:
    codes = table[Columns.CODES].list.to_array(num_levels).to_numpy()
    return Register(table[Columns.ITEM_ID], codes.reshape(-1, num_levels), table[Columns.BORN].to_numpy())


def _level_names(codebooks: Sequence[FloatArray]) -> dict[str, Any]:
    return {f"level_{level}": np.ascontiguousarray(book) for level, book in enumerate(codebooks)}
