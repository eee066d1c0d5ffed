"""Requests in words: the vocabulary, made-up sentences, and what they do to a policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.contracts.errors import ConfigError, DataError
from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.data.options import WordsConfig
from recsys.data.words import Sentences, WordList, item_values
from recsys.language_model.prompt import PromptWriter
from recsys.model.config import ModelConfig
from recsys.training.fit import build_policy
from tests.toy.builders import item_table
from tests.toy.histories import histories_of
from tests.toy.language_model import language_model_config, ring_ids_of_three_levels, ring_world

ITEMS = item_table(
    4,
    categories=[["Shop", "Adhesive Tapes"], ["Shop", "Glue"], ["Shop"], None],
    author_index=np.array([1, 1, 2, 0], np.int32),
)
CONFIG = WordsConfig(templates=("{value}", "show me {value}"), absent_share=0.25, longest=4)


def asked(rows: list[list[int]]) -> TrainingBatch:
    """Item rows that are asked for, behind empty histories."""
    target = torch.tensor(rows)[:, :, None]
    history = collate_histories(histories_of([[] for _ in rows]), 2)
    return TrainingBatch(history, target, torch.zeros_like(target[..., 0]))


def test_a_value_that_most_items_have_is_not_spoken_of() -> None:
    """Three of four items are of the shop; author a1 makes two of four, which is no more than half."""
    assert item_values(ITEMS, CONFIG) == [["Adhesive Tapes", "a1"], ["Glue", "a1"], ["a2"], []]


def test_a_sentence_becomes_the_numbers_of_its_known_words() -> None:
    words = WordList.of(ITEMS, CONFIG)
    assert words.words == ("a1", "a2", "adhesive", "glue", "me", "show", "tapes")
    assert words.encode(["Show me: TAPES, please", "", None, "tapes tapes tapes tapes tapes"]).tolist() == [
        [6, 5, 7, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [7, 7, 7, 7],
    ]


def test_sentences_name_what_is_asked_for_and_most_rows_of_the_share_speak() -> None:
    """Row 1 is the item with tapes, row 4 the item without a value; a quarter of 2,000 rows is to be silent."""
    words = WordList.of(ITEMS, CONFIG)
    sentences = Sentences(ITEMS, CONFIG, num_rows=2000, seed=3)
    batch = sentences.added(asked([[0, 1]] * 1999 + [[4, 0]]), np.arange(2000), epoch=0)
    assert batch.history.words_BT is not None
    said = {tuple(row) for row in batch.history.words_BT.tolist()}
    expected = ["tapes adhesive", "adhesive tapes", "show me adhesive tapes", "a1", "show me a1", None]
    assert said <= {tuple(row) for row in words.encode(expected).tolist()}
    assert len(said) == 5  # two values in two templates, and silence
    silent = (batch.history.words_BT[:-1] == 0).all(1).double().mean()
    assert abs(float(silent) - 0.25) < 0.04
    assert batch.history.words_BT[-1].tolist() == [0, 0, 0, 0]


def test_a_row_that_speaks_asks_only_for_what_it_names() -> None:
    """Items 1 and 2 are by a1, item 1 alone has tapes, item 3 is by a2; a silent row asks for all, as before."""
    config = CONFIG.model_copy(update={"templates": ("{value}",)})
    words, sentences = WordList.of(ITEMS, config), Sentences(ITEMS, config, num_rows=600, seed=3)
    batch = sentences.added(asked([[1, 2, 4, 3, 0]] * 600), np.arange(600), epoch=0)
    expected = {
        "adhesive tapes": [1, 0, 0, 0, 0],
        "glue": [0, 2, 0, 0, 0],
        "a1": [1, 2, 0, 0, 0],
        "a2": [0, 0, 0, 3, 0],
        "": [1, 2, 4, 3, 0],
    }
    number = {tuple(words.encode([text])[0].tolist()): items for text, items in expected.items()}
    assert batch.history.words_BT is not None
    found = list(zip(batch.history.words_BT.tolist(), batch.target_BPM.flatten(1).tolist(), strict=True))
    assert {tuple(said) for said, _ in found} == set(number)
    assert all(number[tuple(said)] == items for said, items in found)
    assert len(batch.asked.items(batch.target_BPM)) == int((batch.target_BPM > 0).sum())


def test_a_session_is_asked_for_whole_where_one_item_is_named() -> None:
    config = WordsConfig(templates=("{value}",), fields=("category",), absent_share=0.01)
    sentences = Sentences(ITEMS, config, num_rows=40, seed=3)
    plain = asked([[1]] * 40)
    sessions = replace(plain, target_BPM=torch.tensor([[[1, 4], [2, 4], [3, 4]]] * 40), visible_BP=torch.zeros(40, 3))
    found = {str(row) for row in sentences.added(sessions, np.arange(40), epoch=0).target_BPM.tolist()}
    assert found == {str([[1, 4], [0, 0], [0, 0]]), str([[0, 0], [2, 4], [0, 0]])}  # seed 3 leaves no row silent


def test_what_a_row_says_depends_on_seed_epoch_and_row_alone() -> None:
    sentences = Sentences(ITEMS, CONFIG, num_rows=50, seed=3)
    batch, rows = asked([[1, 2, 3]] * 50), np.arange(50)
    whole = sentences.added(batch, rows, epoch=1).history.words_BT
    other = sentences.added(batch, rows, epoch=2).history.words_BT
    part = sentences.added(asked([[1, 2, 3]] * 10), rows[40:], epoch=1).history.words_BT
    assert whole is not None
    assert other is not None
    assert part is not None
    assert torch.equal(whole[40:], part)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("templates", [("tapes",), ("{value} or {value}",)])
def test_a_template_must_hold_its_value_once(templates: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match=r"must hold \{value\} once"):
        WordsConfig(templates=templates)


def test_a_template_leaves_room_for_its_value() -> None:
    """Four words before the value: of a sentence of four the value would not be read, of five its first word is."""
    template = ("I am looking for {value}",)
    with pytest.raises(ConfigError, match="has 4 words before its value, and of a sentence 4 are read"):
        WordList.of(ITEMS, WordsConfig(templates=template, longest=4))
    WordList.of(ITEMS, WordsConfig(templates=template, longest=5))


def test_a_value_stands_alone_in_its_sentence() -> None:
    """Glued to a template's letters it would be a word that nobody knows."""
    config = WordsConfig(fields=("category",), templates=("{value}s",), absent_share=0.01)
    words, sentences = WordList.of(ITEMS, config), Sentences(ITEMS, config, num_rows=1, seed=3)
    said = sentences.added(asked([[2]]), np.arange(1), epoch=0).history.words_BT
    assert said is not None
    assert said.tolist() == words.encode(["glue s"]).tolist()
    assert (said[0] > 0).sum() == 2


def test_letters_are_the_same_however_they_are_composed() -> None:
    words = WordList(("café", "scotch"), longest=2)
    texts = ["CAFE\N{COMBINING ACUTE ACCENT}", "café", "cafe", "Scotch™"]
    assert words.encode(texts).tolist() == [[1, 0], [1, 0], [0, 0], [2, 0]]


def test_data_without_values_are_refused() -> None:
    with pytest.raises(DataError, match="no item of this data set has a value of category"):
        WordList.of(item_table(3), WordsConfig())


@pytest.mark.parametrize("kind", ["encoder_decoder", "llm"])
def test_words_reach_a_policy_and_silence_changes_nothing(tmp_path: Path, kind: str) -> None:
    """An answer without words is the answer of a batch where others speak; the same words in another row, the same shift."""
    dataset = ring_world(tmp_path)
    tags = pl.Series("categories", [[f"kind{item % 3}"] for item in range(20)])
    dataset = replace(dataset)  # without its cached table
    dataset.__dict__["items"] = ring_world(tmp_path).items.with_columns(tags)
    words = {"max_history": 6, "words": {"fields": ["category"], "longest": 5}}
    config = (
        ModelConfig.model_validate({**words, "width": 16, "dropout": 0.0, "embedding_dropout": 0.0})
        if kind == "encoder_decoder"
        else language_model_config(model=words)
    )
    torch.manual_seed(1)
    policy = build_policy(dataset, ring_ids_of_three_levels(), config, None).eval()
    if policy.words is not None:
        torch.nn.init.normal_(policy.words.projection.weight)
    encode = WordList(policy.spec.words, 5).encode
    histories = Histories.from_targets(dataset.history, dataset.all_users()).take(np.arange(3))

    def first_codes(asked_of: Histories) -> tuple[torch.Tensor, torch.Tensor]:
        state = policy.start(collate_histories(asked_of, 6))
        found = policy.next_codes(state, None)
        assert found is not None
        return found[:, 0], state.dense_query_BD

    said = histories.with_words(encode([None, "something in kind2", "nobody knows this"]))
    for silent, mixed in zip(first_codes(histories), first_codes(said), strict=True):  # both heads read the sentence
        torch.testing.assert_close(mixed[0], silent[0])
        torch.testing.assert_close(mixed[2], silent[2])
        assert float((mixed[1] - silent[1]).detach().abs().max()) > 1e-3
    batch = collate_histories(histories.with_words(encode(["kind1", "kind2", None])), 6)
    log_probs = policy.log_prob(TrainingBatch(batch, torch.tensor([[[3]], [[4]], [[5]]]), batch.lengths_B[:, None]))
    state = policy.start(batch)
    first = policy.next_codes(state, None)
    assert first is not None
    code = policy.item_tower.codes_IL[torch.tensor([3, 4, 5]), 0]
    hidden, _ = policy(TrainingBatch(batch, torch.tensor([[[3]], [[4]], [[5]]]), batch.lengths_B[:, None]))
    along = policy.code_log_probs(hidden, torch.tensor([[[3]], [[4]], [[5]]]))[:, 0, 0, 0]
    torch.testing.assert_close(first[:, 0].gather(1, code[:, None])[:, 0], along, atol=1e-5, rtol=1e-5)
    of_candidates = candidate_log_probs(policy, batch, torch.tensor([[[2]], [[3]], [[4]]])).sessions
    torch.testing.assert_close(of_candidates, log_probs[..., 0], atol=1e-5, rtol=1e-5)  # along a tree of prefixes


def test_words_stay_with_their_rows(tmp_path: Path) -> None:
    dataset = ring_world(tmp_path)
    histories = Histories.from_targets(dataset.history, dataset.all_users()).take(np.arange(3))
    words = np.array([[1, 0], [2, 0], [3, 4]], np.int32)
    taken = histories.with_words(words).take(np.array([2, 0])).words
    assert taken is not None
    assert taken.tolist() == [[3, 4], [1, 0]]


def test_a_sentence_stands_between_instruction_and_history(tmp_path: Path) -> None:
    """Words 1 and 2 of row 0 are the marks of these words; row 1 says nothing and is as long as before."""
    dataset = ring_world(tmp_path)
    dataset.__dict__["items"] = dataset.items.with_columns(
        pl.Series("categories", [[f"kind{item % 3}"] for item in range(20)])
    )
    config = language_model_config(model={"max_history": 6, "words": {"fields": ["category"], "longest": 5}})
    policy = build_policy(dataset, ring_ids_of_three_levels(), config, None).eval()
    writer = policy.encoder
    assert isinstance(writer, PromptWriter)
    assert writer.first_word is not None
    histories = Histories.from_targets(dataset.history, dataset.all_users()).take(np.arange(2))
    silent, said = (
        writer(collate_histories(one, 6), policy.item_tower.codes_IL, None)
        for one in (histories, histories.with_words(np.array([[1, 2, 0], [0, 0, 0]], np.int32)))
    )
    header, first = len(writer.header_N), writer.vocabulary.mark(writer.first_word)
    long = silent.token_BS.shape[1]
    assert said.token_BS[0, header : header + 2].tolist() == [first, first + 1]
    assert said.token_BS[0, header + 2 :].tolist() == silent.token_BS[0, header:].tolist()
    assert said.token_BS[1, :long].tolist() == silent.token_BS[1].tolist()
    assert (said.length_BV - silent.length_BV).tolist() == [[2] * 7, [0] * 7]


@pytest.mark.parametrize("kind", ["encoder_decoder", "llm"])
def test_a_policy_that_reads_no_words_refuses_them(tmp_path: Path, kind: str) -> None:
    dataset = ring_world(tmp_path)
    config = ModelConfig.model_validate({"width": 16}) if kind == "encoder_decoder" else language_model_config()
    policy = build_policy(dataset, ring_ids_of_three_levels(), config, None).eval()
    histories = Histories.from_targets(dataset.history, dataset.all_users())
    said = histories.with_words(np.ones((len(histories), 2), np.int32))
    with pytest.raises(ConfigError, match=r"train with model\.words"):
        policy.start(collate_histories(said, 6))
    with pytest.raises(DataError, match="words have 1 rows"):
        histories.with_words(np.ones((1, 2), np.int32))
