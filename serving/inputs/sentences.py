"""What a request says in words: texts of the column ``words`` as the numbers that the policy reads."""

from __future__ import annotations

import logging

import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.data.words import WordArray, WordList

logger = logging.getLogger("recsys.serving")


def row_words(texts: pl.Series, words: WordList | None, *, reports: bool = False) -> WordArray:
    """Return the words of every row, ``[N, T]``; null or empty says nothing.

    Args:
        reports: Log how many texts hold no word that the policy knows; such rows are answered as if they said nothing.

    Raises:
        DataError: It is no column of text, or the policy reads no words.
    """
    if texts.dtype not in (pl.String, pl.Null):
        raise DataError(f"column '{Columns.WORDS}' is {texts.dtype}, expected text such as 'something in tapes'")
    if words is None:
        raise DataError(
            f"column '{Columns.WORDS}' says something, and the policy reads no words; train with model.words, or leave the "
            "column out"
        )
    sentences = texts.cast(pl.String).to_list()
    found = words.encode(sentences)
    if reports:
        mute = [text for text, row in zip(sentences, found, strict=True) if text and not row.any()]
        if mute:
            logger.warning(
                "column '%s': %d of %d texts hold no word that the policy knows, such as %r; these rows say nothing",
                Columns.WORDS,
                len(mute),
                len(sentences),
                mute[0][:80],
            )
    return found
