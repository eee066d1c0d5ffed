"""A policy, measured: figures by name, and those per validation row that the guard compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json, write_json

MEASURES_NAME: Final = "measured.json"
ROWS_NAME: Final = "rows.npz"
HR1: Final = "beam_hr@1"
REWARD: Final = "reward"
HELD_OUT_REWARD: Final = "held_out_reward"
KL_TO_START: Final = "kl_to_start"
COVERAGE_AT: Final = 10
COVERAGE: Final = f"coverage@{COVERAGE_AT}"
STEERED: Final = "_steered"
"""Ending of a figure that was measured under drawn objective weights."""


def recall_name(k: int, *, soft: bool = False) -> str:
    """Name of the recall at a cut-off, as it is or with a soft edge (:mod:`recsys.alignment.rounds.soft_recall`).

    Example:
        >>> recall_name(50), recall_name(50, soft=True)
        ('beam_recall@50', 'beam_soft_recall@50')
    """
    return f"beam_soft_recall@{k}" if soft else f"beam_recall@{k}"


Rows = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Measurement:
    """A policy, measured.

    Attributes:
        values: By name: ``beam_hr@K``, ``beam_recall@K``, ``beam_ndcg@K`` in path-probability order,
            ``beam_soft_recall@K`` (:mod:`recsys.alignment.rounds.soft_recall`), ``served_*`` in the dense head's order,
            ``coverage@10``, ``entropy_level_1`` … in nats, ``kl_to_start`` in nats per item over all items of a session and
            ``kl_to_start_item_1`` … at each place of it, ``reward`` and ``held_out_reward`` (see
            :class:`~recsys.alignment.rounds.policy_evaluator.PolicyEvaluator`), ``reward_best``, ``held_out_reward_best``,
            ``held_out_reward_<tower>``. A name with ``_steered`` is the same under drawn objective weights.
        rows: ``[N]`` per validation row, for what the guard compares; their mean is the value of that name.
    """

    values: dict[str, float]
    rows: Rows

    def save(self, folder: Path) -> None:
        """Write ``measured.json`` and ``rows.npz``."""
        np.savez(folder / ROWS_NAME, **self.rows)  # type: ignore[arg-type]
        write_json(folder / MEASURES_NAME, self.values)

    @classmethod
    def load(cls, folder: Path) -> Measurement:
        """Read what :meth:`save` wrote."""
        try:
            with np.load(folder / ROWS_NAME, allow_pickle=False) as archive:
                rows = {name: archive[name] for name in archive.files}
        except (OSError, ValueError) as error:
            raise ArtifactError(f"'{folder / ROWS_NAME}' cannot be read: {error}; run `align` again") from error
        return cls(read_json(folder / MEASURES_NAME), rows)

    def headline(self) -> str:
        """The few figures that go into a log line."""
        shown = [HR1, "beam_ndcg@10", *[n for n in self.values if n.startswith("beam_recall")][-1:]]
        shown += [KL_TO_START, REWARD, HELD_OUT_REWARD]
        return ", ".join(f"{name} {self.values[name]:.4f}" for name in shown if name in self.values)
