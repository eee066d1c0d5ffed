"""A few users with what they had, what came next and what the model answered: numbers one can look at.

Reads the prepared data and one ranking of a split; writes ``examples.json``, which the report shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import SPLIT_NAMES, Columns
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import write_json
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.rankings import ROWS_PER_BLOCK, rows_of

EXAMPLES_FILE: Final = "examples.json"
USERS_SHOWN: Final = 5
HISTORY_SHOWN: Final = 8
NEXT_SHOWN: Final = 8
ANSWERS_SHOWN: Final = 10


def write_examples(
    prepared: Dataset, ranked: RankedItems, split: int, out_dir: Path, seed: int, *, system: str, exclude_seen: bool
) -> dict[str, Any]:
    """Write ``examples.json`` into ``out_dir`` and return what it holds.

    Args:
        ranked: Ranking of the rows of ``prepared.targets(split)``, in that order.
        seed: Decides which users are shown.
        system: What the ranking is called.
        exclude_seen: Whether items of the history were left out of it.

    Raises:
        DataError: The ranking has another number of rows than the split.
    """
    targets = prepared.targets(split)
    if len(ranked) != len(targets):
        raise DataError(
            f"examples: the ranking of '{system}' has {len(ranked)} rows, the {SPLIT_NAMES[split]} split {len(targets)}; "
            "rank the rows of this split"
        )
    k = min(ANSWERS_SHOWN, ranked.items.shape[1])
    rows, adjusted = choose_rows(targets, hit_rows(ranked, targets, k), seed)
    items = {name: prepared.items[name].to_list() for name in (Columns.ITEM_ID, Columns.TITLE)}
    users = prepared.users[Columns.USER_ID]
    found = {
        "system": system,
        "exclude_seen": exclude_seen,
        "split": SPLIT_NAMES[split],
        "k": k,
        "seed": seed,
        "rows": len(targets),
        "adjusted": adjusted,
        "users": [_example(prepared, targets, ranked, row, k, items, users) for row in rows],
    }
    write_json(out_dir / EXAMPLES_FILE, found)
    return found


def hit_rows(ranked: RankedItems, targets: Targets, k: int) -> npt.NDArray[np.bool_]:
    """``[N]``: whether one of the first ``k`` items is a target of the row."""
    found = np.zeros(len(targets), bool)
    for start in range(0, len(targets), ROWS_PER_BLOCK):
        rows = slice(start, min(start + ROWS_PER_BLOCK, len(targets)))
        block, shown = targets.take(np.arange(rows.start, rows.stop)), rows_of(ranked, rows).items[:, :k]
        row_of_target = np.repeat(np.arange(len(block)), np.diff(block.item_offsets))
        is_hit = (shown[row_of_target] == block.items[:, None]).any(1)
        np.logical_or.at(found, start + row_of_target, is_hit)
    return found


def choose_rows(targets: Targets, hits: npt.NDArray[np.bool_], seed: int) -> tuple[list[int], bool]:
    """Draw rows of different users; one is exchanged where all would be hits, or all misses, and others exist.

    Args:
        hits: ``[N]`` from :func:`hit_rows`.

    Returns:
        Row numbers as drawn, and whether one was exchanged.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    users = targets.user_index[order]
    _, first = np.unique(users, return_index=True)
    drawn = order[np.sort(first)[:USERS_SHOWN]].tolist()  # one row per user, in the order of the draw
    if len({bool(hits[row]) for row in drawn}) == 2:
        return drawn, False
    others = order[hits[order] != hits[drawn[0]]]
    if len(drawn) < 2 or not len(others):
        return drawn, False
    user_of = [int(targets.user_index[row]) for row in drawn]
    user = int(targets.user_index[others[0]])
    drawn[user_of.index(user) if user in user_of else -1] = int(others[0])
    return drawn, True


def _example(
    prepared: Dataset,
    targets: Targets,
    ranked: RankedItems,
    row: int,
    k: int,
    items: dict[str, list[Any]],
    users: pl.Series,
) -> dict[str, Any]:
    start, end = int(targets.history_start[row]), int(targets.history_end[row])
    history = np.asarray(prepared.history.item[start:end]).tolist()
    come = targets.items[targets.item_offsets[row] : targets.item_offsets[row + 1]].tolist()
    answer = [int(item) for item in ranked.items[row, :k] if item >= 0]
    seen, wanted, answered = set(history), set(come), set(answer)

    def named(item: int) -> dict[str, Any]:
        return {name: items[name][item] for name in (Columns.ITEM_ID, Columns.TITLE)}

    return {
        Columns.USER_ID: users[int(targets.user_index[row])],
        "history_length": len(history),
        "history": [named(item) for item in history[-HISTORY_SHOWN:]],
        "next_length": len(come),
        "next": [{**named(item), "hit": item in answered, "seen": item in seen} for item in come[:NEXT_SHOWN]],
        "answer": [{**named(item), "hit": item in wanted, "seen": item in seen} for item in answer],
        "first_hit": next((place for place, item in enumerate(answer, 1) if item in wanted), None),
    }
