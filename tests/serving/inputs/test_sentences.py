"""The column ``words``: read, refused, and part of what an answer follows from."""

from __future__ import annotations

import logging

import numpy as np
import polars as pl
import pytest

from recsys.contracts.errors import DataError
from recsys.data.words import WordList
from serving.batch.asked import asked_numbers
from serving.inputs.history_frame import asked_texts, check_columns
from serving.inputs.sentences import row_words
from tests.toy.histories import histories_of

WORDS = WordList(("glue", "tapes"), longest=2)


def test_texts_become_numbers_and_null_says_nothing() -> None:
    assert row_words(pl.Series(["Tapes!", None, "", "no such thing"]), WORDS).tolist() == [
        [2, 0],
        [0, 0],
        [0, 0],
        [0, 0],
    ]


def test_a_text_without_a_known_word_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="recsys.serving"):
        row_words(pl.Series(["glue", "bicycles", None]), WORDS, reports=True)
    assert "1 of 3 texts hold no word that the policy knows, such as 'bicycles'" in caplog.text


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(DataError, match="column 'words' is Int64, expected text"):
        row_words(pl.Series([1, 2]), WORDS)
    with pytest.raises(DataError, match=r"the policy reads no words; train with model\.words"):
        row_words(pl.Series(["glue"]), None)


def test_the_column_is_known_and_a_column_of_nulls_says_nothing() -> None:
    frame = pl.DataFrame({"user_id": ["a"], "item_ids": [[1]], "words": ["glue"]})
    check_columns(frame.schema)
    texts = asked_texts(frame, "words")
    assert texts is not None
    assert texts.to_list() == ["glue"]
    assert asked_texts(frame.with_columns(words=pl.lit(None)), "words") is None
    assert asked_texts(frame.with_columns(words=pl.lit(" ")), "words") is None
    some = asked_texts(pl.DataFrame({"words": ["", "glue", None, "  "]}), "words")
    assert some is not None
    assert some.to_list() == [None, "glue", None, None]
    with pytest.raises(DataError, match="did you mean 'words'"):
        check_columns(frame.rename({"words": "word"}).schema)


def test_another_sentence_is_another_asking() -> None:
    """Carried answers are found by this number."""
    histories, rules = histories_of([[1, 2], [1, 2]]), np.zeros(2, np.uint64)
    said = histories.with_words(row_words(pl.Series(["glue", "tapes"]), WORDS))
    assert asked_numbers(said, rules)[0] != asked_numbers(said, rules)[1]
    same = histories.with_words(row_words(pl.Series(["glue", "glue"]), WORDS))
    assert asked_numbers(same, rules)[0] == asked_numbers(said, rules)[0]
    silent = histories.with_words(row_words(pl.Series([None, "tapes"]), WORDS))
    assert asked_numbers(silent, rules)[0] == asked_numbers(histories, rules)[0], "nothing is what it is without others"
    assert asked_numbers(silent, rules)[1] == asked_numbers(said, rules)[1]
