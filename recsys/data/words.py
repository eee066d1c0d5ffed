"""What a request says in words: a small vocabulary, sentences as its numbers, and sentences made up for training.

Training has no sentences of users, so it makes them from what users did next: a template is filled with a category or the
author of one of the items that a row asks for, and a share of the sentences is left out, so that the policy needs none. A
row that says something asks only for what it names: the other items were no answers to that request, and taught it to pass
over the sentence.

Source: Mender (arXiv 2412.08604) conditions a generative recommender on preferences in words; there a language model writes
them from reviews and a text encoder reads them.

Legend: N rows, T words of a sentence, V values, F templates, B rows of a batch, P prediction points, M items of a session,
C = P M items that a row asks for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError, DataError
from recsys.data.batch import TrainingBatch
from recsys.data.options import WordsConfig

WordArray = npt.NDArray[np.int32]

COMMON: Final = 0.5
"""A value that more than this share of the items have says nothing about any."""

_COLUMNS: Final = {"category": Columns.CATEGORIES, "author": Columns.AUTHOR_ID}


def split_words(text: str) -> list[str]:
    """Words of a text, in lower case, without what stands between them, however its letters are composed (NFC).

    Example:
        >>> split_words("Something in Tapes, Adhesives & Sealants")
        ['something', 'in', 'tapes', 'adhesives', 'sealants']
        >>> split_words("cafe\N{COMBINING ACUTE ACCENT}") == ["café"]
        True
    """
    return re.findall(r"\w+", unicodedata.normalize("NFC", text.lower()))


def filled(template: str, value: str) -> str:
    """A sentence that names a value, which stands alone there.

    Example:
        >>> split_words(filled("{value}s", "Tape"))
        ['tape', 's']
    """
    return template.replace("{value}", f" {value} ")


@dataclass(frozen=True)
class WordList:
    """The words that a policy knows, number 1 first; 0 is none.

    Attributes:
        longest: T.
    """

    words: tuple[str, ...]
    longest: int

    def encode(self, sentences: Sequence[str | None]) -> WordArray:
        """Numbers of the known words of every sentence, ``[N, T]``, 0 behind them; unknown words are passed over.

        Example:
            >>> WordList(("tapes", "in"), longest=3).encode(["Something in tapes", None]).tolist()
            [[2, 1, 0], [0, 0, 0]]
        """
        number = {word: place for place, word in enumerate(self.words, start=1)}
        found = np.zeros((len(sentences), self.longest), np.int32)
        for row, sentence in enumerate(sentences):
            known = [number[word] for word in split_words(sentence or "") if word in number][: self.longest]
            found[row, : len(known)] = known
        return found

    @classmethod
    def of(cls, items: pl.DataFrame, config: WordsConfig) -> WordList:
        """Words of all templates and values, in the order of the alphabet.

        Raises:
            DataError: No item has such a value.
            ConfigError: A template's own words leave no room for it.
        """
        for template in config.templates:
            before = len(split_words(template.partition("{value}")[0]))
            if before >= config.longest:
                raise ConfigError(
                    f"model.words: template '{template}' has {before} words before its value, and of a sentence "
                    f"{config.longest} are read; raise model.words.longest, or shorten the template"
                )
        values = {value for row in item_values(items, config) for value in row}
        texts: Iterable[str] = (*(filled(template, "") for template in config.templates), *values)
        return cls(tuple(sorted({word for text in texts for word in split_words(text)})), config.longest)


def item_values(items: pl.DataFrame, config: WordsConfig) -> list[list[str]]:
    """What a sentence can say of every item.

    Args:
        items: Of a prepared data set, row number = item_index.

    Raises:
        DataError: No item has any of the fields, or only values that nearly all items have.
    """
    found: list[list[str]] = [[] for _ in range(len(items))]
    for field in config.fields:
        for own, value in zip(found, items[_COLUMNS[field]].to_list(), strict=True):
            given = value if isinstance(value, list) else [value]
            own += [str(one) for one in given if one is not None and split_words(str(one))]
    counted = pl.Series([value for row in found for value in set(row)], dtype=pl.String).value_counts()
    common = set(counted.filter(pl.col("count") > COMMON * len(items)).to_series(0).to_list())
    found = [[value for value in row if value not in common] for row in found]
    if not any(found):
        raise DataError(
            f"model.words: no item of this data set has a value of {', '.join(config.fields)} that says anything; name "
            "source.item_columns.categories or author, or leave model.words out"
        )
    return found


class Sentences:
    """Puts made-up sentences into training batches; what a row gets depends on seed, epoch and row alone.

    Args:
        num_rows: N, of one epoch.
    """

    def __init__(self, items: pl.DataFrame, config: WordsConfig, num_rows: int, seed: int) -> None:
        self.config, self.num_rows, self.seed = config, num_rows, seed
        words = WordList.of(items, config)
        values = item_values(items, config)
        names = sorted({value for row in values for value in row})
        number = {name: place for place, name in enumerate(names)}
        # all sentences, value by value
        self._sentence_VFT = words.encode(
            [filled(template, name) for name in names for template in config.templates]
        ).reshape(len(names), len(config.templates), config.longest)
        self._count_I = np.array([0, *map(len, values)])  # by item row; row 0 is padding
        self._first_I = np.concatenate([[0], np.cumsum(self._count_I)[:-1]])
        self._value = np.array([number[value] for row in values for value in row], np.int64)
        self._epoch, self._draws = -1, np.zeros((0, 4))

    def added(self, batch: TrainingBatch, rows: npt.NDArray[np.int64], epoch: int) -> TrainingBatch:
        """The same batch, some of whose rows say what one of their items is, and ask for such items alone.

        A session is asked for whole where one of its items has the value.

        Args:
            rows: ``[B]`` row numbers.
        """
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch, 3])
            self._epoch, self._draws = epoch, generator.random((self.num_rows, 4))
        absent, item, value, template = self._draws[rows].T
        asked_BC = batch.target_BPM.flatten(1).numpy()
        asked_BC = np.where(self._count_I[asked_BC] > 0, asked_BC, 0)  # items without a value are not spoken of
        asked_BC = np.take_along_axis(asked_BC, np.argsort(asked_BC == 0, axis=1, kind="stable"), axis=1)
        number_B = (asked_BC > 0).sum(1)
        row_B = np.arange(len(rows))
        item_B = asked_BC[row_B, (item * number_B).astype(np.int64)]
        speaks_B = (number_B > 0) & (absent >= self.config.absent_share)
        place_B = self._first_I[item_B] + (value * self._count_I[item_B]).astype(np.int64)
        template_B = (template * len(self.config.templates)).astype(np.int64)
        value_B = self._value[np.where(speaks_B, place_B, 0)]
        words_BT = np.where(speaks_B[:, None], self._sentence_VFT[value_B, template_B], 0)
        words = torch.from_numpy(words_BT.astype(np.int64))
        asks_BP = self._have(batch.target_BPM.numpy(), value_B).any(-1) | ~speaks_B[:, None]
        target_BPM = batch.target_BPM * torch.from_numpy(asks_BP).unsqueeze(-1)
        return replace(batch, history=replace(batch.history, words_BT=words), target_BPM=target_BPM)

    def _have(self, items_BPM: npt.NDArray[np.int64], value_B: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which items have the value of their row, ``[B, P, M]``."""
        found = np.zeros(items_BPM.shape, np.bool_)
        first, count = self._first_I[items_BPM], self._count_I[items_BPM]
        for place in range(int(count.max(initial=0))):
            own = self._value[np.where(place < count, first + place, 0)]
            found |= (place < count) & (own == value_B[:, None, None])
        return found
