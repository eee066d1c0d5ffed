"""A version of semantic IDs for people: what it is, how used up its generation is, and its rows as a plain table."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from recsys.contracts.columns import Columns
from recsys.semantic_ids.config import RefitConfig
from recsys.semantic_ids.diagnostics import level_statistics
from recsys.semantic_ids.generations.growth import refit_reasons
from recsys.semantic_ids.versions import SemanticIds

IN_CATALOGUE = "in_catalogue"


def table_summary(ids: SemanticIds, figures: dict[str, float | None], limits: RefitConfig) -> dict[str, Any]:
    """Describe a version.

    Args:
        figures: Of its report; empty where there is none, as in a bundle.
        limits: What the figures are held against.
    """
    births = np.bincount(ids.register.born, minlength=ids.version + 1)
    return {
        "digest": ids.digest,
        "generation": ids.generation,
        "version": ids.version,
        "schema": ids.schema,
        "level_sizes": list(ids.level_sizes),
        "items": ids.num_items,
        "founders": int((ids.born == 0).sum()),
        "later": int((ids.born > 0).sum()),
        "reserved": len(ids.reserved),
        "named_after": ids.aligned_to[0] if ids.aligned_to else None,
        "versions": [
            {"version": version, "digest": digest, "items": items, "new": int(births[version])}
            for version, (digest, items) in enumerate(
                [*((ancestor.digest, ancestor.num_items) for ancestor in ids.ancestors), (ids.digest, ids.num_items)]
            )
        ],
        "levels": [
            {"level": level + 1, **level_statistics(ids.codes[:, level], size)}
            for level, size in enumerate(ids.level_sizes)
        ],
        "figures": figures,
        "refit": refit_reasons(figures, limits),
    }


def summary_text(found: dict[str, Any]) -> str:
    """Write a summary for people."""
    sizes = " x ".join(str(size) for size in found["level_sizes"])
    after = f", named after {found['named_after'][:16]}" if found["named_after"] else ""
    lines = [
        f"{found['digest'][:16]}  generation {found['generation'][:8]} version {found['version']}{after}",
        f"{found['items']} items: {found['founders']} founders, {found['later']} came later; {found['reserved']} left and "
        f"keep their ID; {sizes} codes",
        "",
        f"{'level':7}{'codes used':>12}{'perplexity':>12}{'largest':>9}",
    ]
    lines += [
        f"{level['level']:<7}{level['utilisation']:>12.1%}{level['perplexity']:>12.1f}{level['cluster_sizes']['largest']:>9}"
        for level in found["levels"]
    ]
    if found["figures"]:
        lines.append("")
        lines += [
            f"{name:22}{'-' if value is None else f'{value:.4g}':>10}" for name, value in found["figures"].items()
        ]
    lines += ["", "version  items    new  digest"]
    lines += [
        f"{entry['version']:>7}{entry['items']:>7}{entry['new']:>7}  {entry['digest'][:16]}"
        for entry in found["versions"]
    ]
    lines += ["", *(f"a new generation is due: {reason}" for reason in found["refit"])]
    if not found["refit"]:
        lines.append(
            "no limit of tokenize.refit is reached"
            if found["figures"]
            else "no report beside it says how used up the generation is"
        )
    return "\n".join(lines)


def export_frame(ids: SemanticIds, *, with_reserved: bool) -> pl.DataFrame:
    """Return one row per item: id, ID as text, one column per level, birth, whether it is in the catalogue.

    Example:
        >>> ids = SemanticIds(np.array([[12, 7]], np.int32), (16, 16), pl.Series(["x"]), ())
        >>> export_frame(ids, with_reserved=True).row(0)
        ('x', '<a_12><b_7>', 12, 7, 0, True)
    """
    items = ids.register if with_reserved else ids.register.take(np.arange(ids.num_items))
    return pl.DataFrame(
        {
            Columns.ITEM_ID: items.item_ids,
            Columns.SID: pl.Series(items.sids(), dtype=pl.String),
            **{f"code_{level + 1}": items.codes[:, level] for level in range(ids.num_levels)},
            Columns.BORN: items.born,
            IN_CATALOGUE: np.arange(len(items)) < ids.num_items,
        }
    )
