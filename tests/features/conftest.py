"""A prepared data set small enough to check by eye."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.dataset import Dataset, HistoryArrays
from tests.toy.builders import dataset_spec, history_lists, item_table, write_dataset


def history_of(train, later=None):
    """Histories from lists of items per user: the train part, then what comes after it."""
    later = later or [[] for _ in train]
    history = history_lists([[*head, *tail] for head, tail in zip(train, later, strict=True)])
    return replace(history, train_end=history.offsets[:-1] + np.array([len(head) for head in train]))


def items_of(texts=None, categories=None, authors=None, num_items=6):
    """An item table; what is not given is not known."""
    return item_table(num_items, text=texts, categories=categories, author_index=authors)


def prepared_of(folder: Path, history: HistoryArrays, items: pl.DataFrame) -> Dataset:
    """Wrap both as the `prepare` stage would have left them."""
    buckets = {"num_gap_buckets": 32, "num_watch_buckets": 12}
    spec = dataset_spec(len(history.train_end), len(items), num_authors=3, num_behaviours=2, **buckets)
    return write_dataset(folder, spec, history, items)


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
