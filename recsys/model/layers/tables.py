"""Sparse inputs through TorchRec: one ``EmbeddingCollection`` holds every id table of the model.

Legend: B users, H history events, N looked-up ids, U distinct ids, D width.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True)
class ReservedRows:
    """Rows at the end of a table for ids that are not in the training data.

    Without them every unseen user is row 0, which training never touches. Here an unseen id is hashed
    (:func:`unseen_row_numbers`) to one of ``count`` rows, and training replaces known ids by these rows now and then, so
    that they mean "a user not seen before", and users that come back after the model was trained differ from each other.

    Hashing rather than TorchRec's managed collision: it has no state. The same id lands on the same row in every process,
    in training and in serving, without a remap table that would have to be sharded, saved and sent along; and as the
    vocabulary is rebuilt every night, there is nothing to evict. The cost is that two unseen ids may share a row.

    Attributes:
        count: Rows, at least 1.
        training_share: Share of the looked-up known ids that training replaces by a reserved row, in (0, 1).
    """

    count: int
    training_share: float = 0.02

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.training_share < 1:
            raise ValueError(
                f"reserved rows need count >= 1 and 0 < training_share < 1, got {self.count} and {self.training_share}; "
                "a feature without reserved rows is left out of the mapping"
            )


def unseen_row_numbers(raw_ids: Sequence[int | str], count: int) -> npt.NDArray[np.int64]:
    """Spread ids from outside over ``count`` reserved rows.

    The text of the id is hashed (blake2b, 8 bytes), so that 7 read as a number and ``"7"`` read from a CSV file agree, and
    so that neither the process nor Python's hash seed matters. Add the result to the vocabulary's size: the table row
    of an unseen user is ``num_users + 1 + number``, of an unseen author ``num_authors + number``.

    Example:
        >>> unseen_row_numbers(["ada", 7, "7"], 16).tolist()
        [5, 7, 7]
    """
    digests = (hashlib.blake2b(str(raw).encode(), digest_size=8).digest() for raw in raw_ids)
    return np.array([int.from_bytes(digest, "little") % count for digest in digests], dtype=np.int64)


class FeatureTables(nn.Module):
    """Look up any subset of the declared features in one call.

    All tables have width D, because the looked-up vectors of an event are summed. Row 0 of every table is "padding or
    not known"; it is an ordinary row, and whoever reads padded positions masks them.

    In one process ``collection`` is a plain ``EmbeddingCollection``. :mod:`recsys.training.distributed.sharding` may
    replace it by a sharded one; lookups of a training step then go through :meth:`one_lookup`.

    Args:
        num_rows: Rows per feature, row 0 included.
        width: D.
        init_std: Standard deviation of the normal initialisation. TorchRec's own default, uniform in
            ``±sqrt(1 / rows)``, shrinks with the catalogue.
        reserved: Features with rows for unseen ids; they are added to ``num_rows``.
    """

    def __init__(
        self,
        num_rows: Mapping[str, int],
        width: int,
        init_std: float,
        reserved: Mapping[str, ReservedRows] | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.features = tuple(num_rows)
        self.reserved = dict(reserved or {})
        unknown = sorted(set(self.reserved) - set(num_rows))
        if unknown:
            raise ValueError(
                f"reserved rows for {', '.join(unknown)}, which the model does not look up: {self.features}"
            )
        self.first_reserved = {name: num_rows[name] for name in self.reserved}
        self.configs = [
            EmbeddingConfig(
                name=f"table_{feature}",
                embedding_dim=width,
                num_embeddings=rows + (self.reserved[feature].count if feature in self.reserved else 0),
                feature_names=[feature],
                init_fn=partial(nn.init.normal_, std=init_std),
            )
            for feature, rows in num_rows.items()
        ]
        self.collection: nn.Module = EmbeddingCollection(tables=self.configs)
        self._step_rows: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None

    @property
    def is_sharded(self) -> bool:
        """Whether the rows are spread over several processes."""
        return not isinstance(self.collection, EmbeddingCollection)

    def forward(self, ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Look up ids of any shape.

        Args:
            ids: Feature -> int64 tensor; features left out are not looked up.

        Returns:
            Feature -> float32 tensor of the ids' shape with D appended.
        """
        if self.training and self.reserved:
            ids = {name: self._replace_some(name, values) for name, values in ids.items()}
        if self._step_rows is not None:
            return {name: self._from_step(name, values) for name, values in ids.items()}
        if self.is_sharded and torch.is_grad_enabled():
            raise RuntimeError(
                "sharded tables are updated inside backward, once per lookup: a step with gradients must fetch its rows "
                "through FeatureTables.one_lookup"
            )
        found = self._look_up({name: values.reshape(-1) for name, values in ids.items()})
        return {name: found[name].view(*ids[name].shape, self.width) for name in ids}

    @contextmanager
    def one_lookup(self, ids: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Serve all lookups inside the ``with`` block from a single one of the distinct ids.

        With sharded tables this is what travels between processes: every distinct row once, however often the step asks
        for it (TorchRec's own deduplication has no CPU kernel). It also makes the fused optimiser take one step
        per row with the whole gradient: it steps at every lookup's backward, and a step reads the item table twice, for
        the history and for the dense head.

        Args:
            ids: Feature -> all ids that will be asked for; reserved rows need not be named.
        """
        distinct = {}
        for name, values in ids.items():
            values = values.reshape(-1)
            if name in self.reserved:
                first = self.first_reserved[name]
                spare = torch.arange(first, first + self.reserved[name].count, device=values.device)
                values = torch.cat([values, spare])
            distinct[name] = values.unique()
        found = self._look_up(distinct)
        self._step_rows = {name: (rows, found[name]) for name, rows in distinct.items()}
        try:
            yield
        finally:
            self._step_rows = None

    def weight(self, feature: str) -> torch.Tensor:
        """The table of one feature, ``[rows, D]``.

        Raises:
            RuntimeError: The tables are sharded; no process holds a whole one.
        """
        if not isinstance(self.collection, EmbeddingCollection):
            raise RuntimeError("sharded tables have no whole weight; use recsys.training.distributed.sharding.gathered")
        weight = self.collection.embeddings[f"table_{feature}"].weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def _look_up(self, flat: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One call of the collection: feature -> ``[N]`` ids to feature -> ``[N, D]``."""
        device = next(iter(flat.values())).device
        # Every feature is one jagged row: TorchRec needs equal batch sizes per key, not equal lengths.
        values = [flat[name] if name in flat else _nothing(device) for name in self.features]
        counts = [len(ids) for ids in values]
        # A plain collection reads the counts on the host alone, so they stay there; from_lengths_sync would take them to
        # the device and wait for them to come back.
        jagged = KeyedJaggedTensor(
            keys=list(self.features),
            values=torch.cat(values),
            lengths=torch.tensor(counts, device=device) if self.is_sharded else torch.tensor(counts),
            stride=1,
            length_per_key=counts,
            offset_per_key=[0, *itertools.accumulate(counts)],
        )
        looked_up = self.collection(jagged)
        return {name: looked_up[name].values() for name in flat}

    def _from_step(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        assert self._step_rows is not None
        if name not in self._step_rows:
            raise RuntimeError(f"one_lookup was not given feature '{name}', which this step looks up")
        rows_U, vectors_UD = self._step_rows[name]
        position = torch.searchsorted(rows_U, ids).clamp(max=len(rows_U) - 1)
        torch._assert_async((rows_U[position] == ids).all(), f"one_lookup was not given every id of '{name}'")
        return F.embedding(position, vectors_UD)

    def _replace_some(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Replace a random share of the known ids by reserved rows; row 0 stays."""
        if name not in self.reserved:
            return ids
        reserved = self.reserved[name]
        chosen = (torch.rand(ids.shape, device=ids.device) < reserved.training_share) & (ids > 0)
        # any fixed spreading will do, as no known id is ever hashed in serving
        return torch.where(chosen, self.first_reserved[name] + ids % reserved.count, ids)


def _nothing(device: torch.device) -> torch.Tensor:
    return torch.empty(0, dtype=torch.int64, device=device)
