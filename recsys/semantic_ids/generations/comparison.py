"""Compare two versions of semantic IDs: how many items, and how much traffic, have another ID."""

from __future__ import annotations

from typing import Any

import numpy as np

from recsys.contracts.errors import DataError
from recsys.semantic_ids.versions import SemanticIds

_EXAMPLES = 5


def compare(old: SemanticIds, new: SemanticIds) -> dict[str, Any]:
    """Say what became of the items of ``old`` in ``new``.

    Traffic is that of the newer table, or of the older where the newer knows none; ``None`` where neither does.

    Returns:
        ``items``: numbers ``in_both``, ``kept`` and ``moved`` (the whole ID), ``new``, ``gone``; ``traffic``: the same as
        shares of the traffic on items in both; ``levels``: per level the shares of items and traffic whose codes up to that
        level are the same, and at that level alone; ``examples`` of items that moved, those with the most traffic first.

    Raises:
        DataError: Ids of one are integers, those of the other text.
    """
    if old.item_ids.dtype.is_integer() != new.item_ids.dtype.is_integer():
        raise DataError(
            f"the item ids are {old.item_ids.dtype} in one table and {new.item_ids.dtype} in the other: these are tables of "
            "other catalogues"
        )
    rows = old.register.rows_of(new.item_ids.cast(old.item_ids.dtype, strict=False))
    here = np.flatnonzero((rows >= 0) & (rows < old.num_items))
    before, after = old.codes[rows[here]], new.codes[here]
    weight = new.traffic[here] if new.traffic is not None else None
    if weight is None and old.traffic is not None:
        weight = old.traffic[rows[here]]
    depth = min(old.num_levels, new.num_levels)
    same = before[:, :depth] == after[:, :depth]
    same_up_to = np.logical_and.accumulate(same, axis=1)
    kept = same_up_to[:, -1] & (old.num_levels == new.num_levels)

    def share(flags: np.ndarray[Any, Any]) -> dict[str, float | None]:
        total = 0 if weight is None else int(weight.sum())
        return {
            "items": float(flags.mean()) if len(flags) else None,
            "traffic": float(weight[flags].sum() / total) if weight is not None and total else None,
        }

    moved = np.flatnonzero(~kept)
    if weight is not None:
        moved = moved[np.argsort(-weight[moved], kind="stable")]
    texts = old.sids(), new.sids()
    return {
        "old": _head(old),
        "new": _head(new),
        "same_generation": old.generation == new.generation,
        "named_after": old.digest in new.aligned_to,
        "items": {
            "in_both": len(here),
            "kept": int(kept.sum()),
            "moved": int((~kept).sum()),
            "new": new.num_items - len(here),
            "gone": old.num_items - len(here),
        },
        "kept": share(kept),
        "levels": [
            {"level": level + 1, "up_to": share(same_up_to[:, level]), "alone": share(same[:, level])}
            for level in range(depth)
        ],
        "examples": [
            {
                "item_id": new.item_ids[int(here[row])],
                "old": texts[0][int(rows[here[row]])],
                "new": texts[1][int(here[row])],
            }
            for row in moved[:_EXAMPLES]
        ],
    }


def comparison_text(found: dict[str, Any]) -> str:
    """Write a comparison for people."""
    items = found["items"]
    relation = (
        "the same generation: no published ID may move"
        if found["same_generation"]
        else "another generation, its codes named after the old one"
        if found["named_after"]
        else "another generation"
    )
    lines = [
        *(f"{side}  {_title(found[side])}" for side in ("old", "new")),
        relation,
        f"{items['in_both']} items in both: {items['kept']} keep their ID, {items['moved']} moved; {items['new']} new, "
        f"{items['gone']} gone",
        "",
        f"{'codes that agree':18}{'items':>9}{'traffic':>9}",
        *(_row(f"up to level {level['level']}", level["up_to"]) for level in found["levels"]),
        *(_row(f"at level {level['level']}", level["alone"]) for level in found["levels"][1:]),
        _row("the whole ID", found["kept"]),
    ]
    if found["examples"]:
        lines += ["", "moved, for example"]
        lines += [f"  {entry['item_id']}  {entry['old']} -> {entry['new']}" for entry in found["examples"]]
    return "\n".join(lines)


def _head(ids: SemanticIds) -> dict[str, Any]:
    return {
        "digest": ids.digest,
        "generation": ids.generation,
        "version": ids.version,
        "num_items": ids.num_items,
        "level_sizes": list(ids.level_sizes),
    }


def _title(head: dict[str, Any]) -> str:
    sizes = " x ".join(str(size) for size in head["level_sizes"])
    name = f"{head['digest'][:16]}  generation {head['generation'][:8]} version {head['version']}"
    return f"{name}, {head['num_items']} items, {sizes}"


def _row(name: str, share: dict[str, float | None]) -> str:
    cells = ("-" if value is None else f"{value:.1%}" for value in (share["items"], share["traffic"]))
    return f"{name:18}" + "".join(f"{cell:>9}" for cell in cells)
