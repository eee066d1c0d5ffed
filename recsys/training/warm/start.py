"""Start a policy from an earlier one: matrices as they are, tables row by row by id, words by what they are.

Reads the earlier policy and the data set it was trained on; changes the weights of a freshly built policy in place. New rows
keep what they were built with; the optimiser starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, CannotGrow
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.layers.tables import FeatureTables
from recsys.model.weights import unique_state
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.schedule import is_id_table
from recsys.training.warm.vocabularies import NEW, RowMap, row_maps

_CATALOGUE = (".codes_IL", ".side_I", "title_IT")
"""Ends of the names of what a policy knows of each item of its own catalogue."""


@dataclass(frozen=True)
class WarmStart:
    """Where the earlier policy is.

    Attributes:
        policy: Folder of the policy.
        dataset: The prepared data set that it was trained on: its vocabularies.
        name: What to call it in the report.
    """

    policy: Path
    dataset: Path
    name: str


def start_warm(
    policy: GenerativeRecommender, prepared: Dataset, semantic_ids: SemanticIds, start: WarmStart
) -> dict[str, Any]:
    """Copy what an earlier policy learned into one that was just built.

    Args:
        policy: Built for ``prepared`` and ``semantic_ids``.

    Returns:
        ``from``, ``parameters`` that were copied, and per table, and of the words of requests, how many rows were ``mapped``
        and how many are ``new``.

    Raises:
        CannotGrow: It has another form, codes that mean other items, or began from another language model.
    """
    remedy = "train from nothing (nights.warm_start=false), or set back what was changed"
    try:
        earlier = load_policy(start.policy, semantic_ids.digest, allow_grown=semantic_ids.warm_digests)
    except ArtifactError as error:
        raise CannotGrow(f"a warm start: {error}") from error
    if earlier.spec.level_sizes != policy.spec.level_sizes:
        raise CannotGrow(
            f"a warm start: the policy in '{start.policy}' has levels of {earlier.spec.level_sizes} codes, the semantic IDs "
            f"{policy.spec.level_sizes}; {remedy}"
        )
    bases = [None if spec.language is None else spec.language.digest for spec in (earlier.spec, policy.spec)]
    if bases[0] != bases[1]:
        raise CannotGrow(
            f"a warm start: the policy in '{start.policy}' began from a language model of weights {str(bases[0])[:16]}, and "
            f"this one begins from {str(bases[1])[:16]}; {remedy}"
        )
    own, other = _without_catalogue(unique_state(policy)), _without_catalogue(unique_state(earlier))
    differing = sorted(own.keys() ^ other.keys())
    named = policy.named_rows()
    differing += [
        name for name in own if name in other and not _fits(own[name], other[name], name in named or is_id_table(name))
    ]
    if differing:
        name = differing[0]
        shapes = [tuple(state[name].shape) if name in state else "none" for state in (other, own)]
        raise CannotGrow(
            f"a warm start: {len(differing)} weights of the policy in '{start.policy}' have another form, the first is "
            f"'{name}' with {shapes[0]} there and {shapes[1]} here; {remedy}"
        )
    tables, copied = {}, 0
    with torch.no_grad():
        for name, tensor in own.items():
            if name in named:
                kept = _copy_named(tensor, other[name], named[name], earlier.named_rows()[name])
                copied += kept * tensor.shape[1]
            elif not is_id_table(name):
                tensor.copy_(other[name])
                copied += tensor.numel()
        if policy.spec.words:
            new_words = len(set(policy.spec.words) - set(earlier.spec.words))
            tables["words"] = {"mapped": len(policy.spec.words) - new_words, "new": new_words}
        for feature, rows in row_maps(prepared, Dataset.open(start.dataset), policy.tables.features).items():
            tables[feature] = _copy_rows(policy.tables, earlier.tables, feature, rows)
            copied += tables[feature]["mapped"] * policy.tables.width
    return {"from": start.name, "parameters": copied, "tables": tables}


def _copy_rows(tables: FeatureTables, earlier: FeatureTables, feature: str, rows: RowMap) -> dict[str, int]:
    """Copy the rows of one table, those for unseen ids as well where both have as many."""
    known = np.flatnonzero(rows != NEW)
    new, old = tables.weight(feature), earlier.weight(feature)
    new[torch.from_numpy(known)] = old[torch.from_numpy(rows[known])]
    reserved = tables.reserved.get(feature)
    if reserved is not None and earlier.reserved.get(feature) == reserved:
        new[-reserved.count :] = old[-reserved.count :]
    return {"mapped": len(known), "new": len(rows) - len(known)}


def _copy_named(
    new: torch.Tensor, old: torch.Tensor, rows: list[tuple[str, ...]], earlier: list[tuple[str, ...]]
) -> int:
    """Copy the rows that stand for the same, and return how many those are."""
    place = {meaning: row for row, meaning in enumerate(earlier)}
    pairs = [(row, place[meaning]) for row, meaning in enumerate(rows) if meaning in place]
    to, source = torch.tensor(pairs).T
    new[to] = old[source]
    return len(pairs)


def _fits(own: torch.Tensor, other: torch.Tensor, by_row: bool) -> bool:
    return own.shape[1:] == other.shape[1:] if by_row else own.shape == other.shape


def _without_catalogue(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith(_CATALOGUE)}
