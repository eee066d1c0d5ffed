"""A prepared data set small enough to check by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset, DatasetSpec, HistoryArrays


def history_of(train, later=None):
    """Histories from lists of items per user: the train part, then what comes after it."""
    later = later or [[] for _ in train]
    lengths = [len(head) + len(tail) for head, tail in zip(train, later, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    item = np.array([i for head, tail in zip(train, later, strict=True) for i in (*head, *tail)], np.int32)
    zeros = np.zeros(len(item), np.uint8)
    train_end = offsets[:-1] + np.array([len(head) for head in train])
    return HistoryArrays(item, zeros, zeros, zeros, np.full(len(item), -1, np.int64), offsets, train_end, offsets[1:])


def items_of(texts=None, categories=None, authors=None, num_items=6):
    """An item table; what is not given is not known."""
    return pl.DataFrame(
        {
            Columns.ITEM_INDEX: pl.Series(range(num_items), dtype=pl.Int32),
            Columns.ITEM_ID: pl.Series([f"i{number}" for number in range(num_items)]),
            Columns.TITLE: pl.Series([None] * num_items, dtype=pl.String),
            Columns.TEXT: pl.Series(texts or [None] * num_items, dtype=pl.String),
            Columns.CATEGORIES: pl.Series(categories or [None] * num_items, dtype=pl.List(pl.String)),
            Columns.AUTHOR_INDEX: pl.Series(authors or [0] * num_items, dtype=pl.Int32),
        }
    )


def prepared_of(folder: Path, history: HistoryArrays, items: pl.DataFrame) -> Dataset:
    """Wrap both as the `prepare` stage would have left them."""
    folder.mkdir(parents=True, exist_ok=True)
    items.write_parquet(folder / "items.parquet")
    spec = DatasetSpec(
        num_users=len(history.train_end),
        num_items=len(items),
        num_authors=3,
        num_categories=1,
        num_behaviours=2,
        num_gap_buckets=32,
        num_watch_buckets=12,
        task="next_item",
        session_length=1,
        signals=(),
        has_timestamps=False,
    )
    return Dataset(folder, spec, history)


@pytest.fixture
def make_history():
    return history_of


@pytest.fixture
def make_items():
    return items_of


@pytest.fixture
def make_prepared():
    return prepared_of


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A BERT of width 8 with random weights, saved as transformers saves models."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny_bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "shoe", "pan"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder
