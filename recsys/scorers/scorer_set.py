"""All scorers of a catalogue: fitted together, summed into one matrix, saved beside the policy.

Reads a prepared data set and item vectors; produces scores ``[scorers, N, I]``, a weighted sum ``[N, I]`` that touches each
item of a history's neighbourhood once, or features ``[N, C, scorers]`` of given candidates. The policy's dense head is no
scorer: whoever calls puts its log-probabilities into ``out`` before :meth:`ScorerSet.add_fused`.

Files:
    scorers.json           names, scales, decays, sizes, notes, digest of the catalogue
    scorers.safetensors    the arrays of every scorer, ``<name>/<array>``

Legend: S scorers, N rows (histories), I items, C candidates of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import read_json, write_json
from recsys.data.histories import Histories
from recsys.scorers.config import ScorersConfig, Until
from recsys.scorers.events import FloatArray
from recsys.scorers.fitting import ScorerFitter
from recsys.scorers.item_pairs import ItemPairScorer
from recsys.scorers.item_scorer import ItemArray, ItemScorer, Scale, WeighedHistories
from recsys.scorers.popularity import PopularityScorer
from recsys.scorers.products import Term, add_in_one_pass, one_pass
from recsys.scorers.similarity import SimilarityScorer

logger = logging.getLogger(__name__)

_ARRAYS, _HEAD = "scorers.safetensors", "scorers.json"
_REMEDY: Final = "fit the scorers again for this catalogue (stage `rank`)"


class _ScorerHead(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    form: str
    scale: str
    amount: float
    history_decay: float | None


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    num_items: int
    catalogue: str
    scorers: tuple[_ScorerHead, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ScorerSet:
    """Fitted scorers of one catalogue.

    Attributes:
        scorers: In the order of the configuration's ``names``.
        num_items: I.
        catalogue: Digest of the catalogue, as given to :meth:`fit`.
        notes: Which scorers were left out, and why.
    """

    scorers: tuple[ItemScorer, ...]
    num_items: int
    catalogue: str
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the S scorers, in the order of every array's scorer axis."""
        return tuple(scorer.name for scorer in self.scorers)

    @classmethod
    def fit(
        cls,
        prepared: Dataset,
        config: ScorersConfig,
        vectors: Mapping[str, FloatArray],
        until: Until = "train",
        *,
        catalogue: str,
    ) -> ScorerSet:
        """Fit all named scorers; nothing is drawn.

        Args:
            vectors: Item vectors ``[I, D]``: ``fused`` and, if a text model is at hand, ``text``.
            until: Events up to the end of which split are counted; ``train`` wherever weights or a ranker are fitted on
                validation rows afterwards.
            catalogue: What identifies the catalogue, such as the digest of its semantic IDs; :meth:`load` compares it.

        Raises:
            DataError: There is no event to count, or vectors do not fit the catalogue.
        """
        fitter = ScorerFitter(prepared, config, vectors, until)
        scorers: list[ItemScorer] = []
        notes = []
        for name in config.names:
            found = fitter.fit(name)
            if isinstance(found, str):
                notes.append(f"{name} is left out: {found}")
                logger.info("scorers: %s", notes[-1])
            else:
                scorers.append(found)
        return cls(tuple(scorers), prepared.spec.num_items, catalogue, tuple(notes))

    def scores(self, histories: Histories) -> FloatArray:
        """Return scaled scores of all items, ``[S, N, I]`` float32; give blocks of histories that fit into memory."""
        rows = WeighedHistories(histories, self.num_items)
        result = np.zeros((len(self.scorers), len(histories), self.num_items), np.float32)
        for scorer, out in zip(self.scorers, result, strict=True):
            scorer.add_scaled(rows, 1.0, out)
        return result

    def add_fused(
        self, histories: Histories, weights: Mapping[str, float], out: FloatArray, products: Sequence[Term] = ()
    ) -> None:
        """Add the weighted sum of the scaled scores to ``out``, in place: no other matrix of this size is made.

        Args:
            weights: Weight of each scorer by name; those without one, or with 0, are not computed.
            out: float32 ``[N, I]``, C-contiguous.
            products: What else is added, where :func:`~recsys.scorers.products.one_pass` says that it is one pass with
                the scorers that are products.

        Raises:
            ConfigError: A weight is for a scorer that this set lacks.
        """
        self.check_names(weights)
        assert out.shape == (len(histories), self.num_items), "out does not fit"
        assert out.dtype == np.float32 and out.flags.c_contiguous, "out must be float32 in one piece"  # noqa: PT018
        rows = WeighedHistories(histories, self.num_items)
        used = [scorer for scorer in self.scorers if weights.get(scorer.name, 0.0)]
        sums_NI = torch.from_numpy(out)
        together = one_pass(sums_NI)
        assert together or not products, "products come in one pass, or before"
        joined = {
            scorer.name: scorer.product(rows, weights[scorer.name])
            for scorer in used
            if together and isinstance(scorer, SimilarityScorer)
        }
        if terms := [*products, *joined.values()]:
            add_in_one_pass(terms, sums_NI)
        for scorer in used:
            if scorer.name not in joined:
                scorer.add_scaled(rows, weights[scorer.name], out)

    def scores_at(self, histories: Histories, items: ItemArray) -> FloatArray:
        """Return scaled scores of given candidates, ``[N, C, S]`` float32, 0 where an item is -1.

        Args:
            items: ``[N, C]`` item_index; memory does not grow with the catalogue.
        """
        rows = WeighedHistories(histories, self.num_items)
        if not self.scorers:
            return np.zeros((*items.shape, 0), np.float32)
        result = np.stack([scorer.scaled_at(rows, items) for scorer in self.scorers], axis=2)
        result[items < 0] = 0.0
        return result

    def check_names(self, names: Sequence[str] | Mapping[str, float]) -> None:
        """Refuse names of scorers that the set lacks.

        Raises:
            ConfigError: As said.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            left_out = "".join(f"; {note}" for note in self.notes)
            raise ConfigError(f"there is no scorer '{unknown[0]}' here; those fitted: {list(self.names)}{left_out}")

    def save(self, folder: Path) -> None:
        """Write two files into ``folder``; no pickle."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{scorer.name}/{key}": np.ascontiguousarray(array)
            for scorer in self.scorers
            for key, array in scorer.arrays().items()
        }
        save_file(arrays, folder / _ARRAYS)
        heads = tuple(
            _ScorerHead(
                name=scorer.name,
                form=type(scorer).__name__,
                scale=scorer.scale.kind,
                amount=scorer.scale.amount,
                history_decay=getattr(scorer, "history_decay", None),
            )
            for scorer in self.scorers
        )
        head = _Head(num_items=self.num_items, catalogue=self.catalogue, scorers=heads, notes=self.notes)
        write_json(folder / _HEAD, head.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path, *, catalogue: str | None = None) -> ScorerSet:
        """Read what :meth:`save` wrote.

        Args:
            catalogue: Digest of the catalogue that the scores are for; ``None``: do not compare.

        Raises:
            ArtifactError: A file is missing or damaged, or the scorers are of another catalogue.
        """
        try:
            head = _Head.model_validate(read_json(folder / _HEAD))
            arrays = load_file(folder / _ARRAYS)
            scorers = tuple(_read_scorer(entry, arrays, head.num_items) for entry in head.scorers)
        except (ValidationError, SafetensorError, OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"item scorers in '{folder}' cannot be read: {error}; {_REMEDY}") from error
        if catalogue is not None and catalogue != head.catalogue:
            raise ArtifactError(
                f"item scorers in '{folder}' are of catalogue {head.catalogue[:16]} ({head.num_items} items), expected "
                f"{catalogue[:16]}; {_REMEDY}"
            )
        return cls(scorers, head.num_items, head.catalogue, head.notes)


def _read_scorer(head: _ScorerHead, arrays: Mapping[str, Any], num_items: int) -> ItemScorer:
    """Put one scorer together again.

    Raises:
        KeyError: An array is missing.
        ValueError: Arrays do not fit each other or the catalogue.
    """
    if head.scale not in ("log", "linear"):
        raise ValueError(f"{head.name}: scale is {head.scale!r}, expected log or linear")
    scale = Scale(head.scale, head.amount)  # type: ignore[arg-type]
    if head.form == PopularityScorer.__name__:
        shares = arrays[f"{head.name}/shares"]
        if shares.shape != (num_items,):
            raise ValueError(f"{head.name}: {shares.shape} shares, expected {num_items}")
        return PopularityScorer(head.name, scale, shares)
    if head.history_decay is None:
        raise ValueError(f"{head.name}: history_decay is missing")
    if head.form == SimilarityScorer.__name__:
        vectors = arrays[f"{head.name}/vectors"]
        if vectors.ndim != 2 or len(vectors) != num_items:
            raise ValueError(f"{head.name}: vectors have shape {vectors.shape}, expected {num_items} rows")
        return SimilarityScorer(head.name, scale, vectors, head.history_decay)
    if head.form == ItemPairScorer.__name__:
        parts = tuple(arrays[f"{head.name}/{key}"] for key in ("data", "indices", "indptr"))
        matrix = sparse.csr_array(parts, shape=(num_items, num_items))
        matrix.check_format(full_check=True)
        return ItemPairScorer(head.name, scale, matrix, head.history_decay)
    raise ValueError(f"{head.name}: unknown form {head.form!r}")
