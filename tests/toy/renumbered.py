"""One log under two numberings: what is matched by id gives the same answers, what is matched by number does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recsys.contracts.dataset import Dataset
from recsys.semantic_ids.versions import SemanticIds
from tests.toy.builders import dataset_spec, history_lists, item_table, write_dataset
from tests.toy.dataset import toy_ids

CATALOGUE = ("apple", "bread", "cheese", "dates", "eggs", "figs")
CODES = {name: [place // 3, place % 3] for place, name in enumerate((*CATALOGUE, "grapes"))}
AUTHORS = {
    "apple": "farm",
    "bread": "mill",
    "cheese": "farm",
    "dates": "import",
    "eggs": "farm",
    "figs": "import",
    "grapes": "new",
}
KINDS = {
    "apple": "fruit",
    "bread": "grain",
    "cheese": "milk",
    "dates": "fruit",
    "eggs": "milk",
    "figs": "fruit",
    "grapes": "fruit",
}
BASKETS = {
    "ada": "apple bread cheese eggs",
    "bob": "figs dates apple figs",
    "cleo": "eggs bread figs cheese",
    "dan": "bread",
}


@dataclass(frozen=True)
class Numbered:
    """A data set and semantic IDs in one numbering."""

    data: Dataset
    ids: SemanticIds


def numbered(
    folder: Path, items: Sequence[str], users: Sequence[str], authors: Sequence[str], kinds: Sequence[str]
) -> Numbered:
    """Number everything in the order given; authors and kinds from 1."""
    place = {name: number for number, name in enumerate(items)}
    history = history_lists(
        [[place[item] for item in BASKETS.get(user, "bread").split()] for user in users],
        timestamp=np.arange(sum(len(BASKETS.get(user, "bread").split()) for user in users), dtype=np.int64)
        * 86_400_000_000,
    )
    table = item_table(
        len(items),
        item_id=list(items),
        author_index=[1 + authors.index(AUTHORS[item]) for item in items],
        author_id=[AUTHORS[item] for item in items],
        category_index=[1 + kinds.index(KINDS[item]) for item in items],
        categories=[["food", KINDS[item]] for item in items],
    )
    spec = dataset_spec(
        len(users), len(items), num_authors=len(authors) + 1, num_categories=len(kinds) + 1, has_timestamps=True
    )
    ids = toy_ids(np.array([CODES[item] for item in items]), (3, 3))
    named = SemanticIds(ids.codes, ids.level_sizes, pl.Series("item_id", list(items)), ids.codebooks)
    return Numbered(write_dataset(folder, spec, history, table, user_ids=list(users)), named)
