"""How far a sentence steers, with recommenders whose answers one can see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.contracts.dataset import Dataset
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.data.options import WordsConfig
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.second_stage.recommender import RankedRecommender
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.rankings import BEAM, SERVED
from recsys.evaluation.steering import words
from recsys.evaluation.steering.words import NamedValues, write_words
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.training.fit import build_policy
from tests.toy.alignment import MODEL
from tests.toy.builders import item_table
from tests.toy.dataset import ring_ids, ring_prepared

CONFIG = EvaluateConfig(ks=(1, 3), resamples=100)
WORDS = WordsConfig(fields=("category",))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """18 items, six of each category: item ``i`` is of ``c{i % 3}``."""
    return ring_prepared(tmp_path_factory.mktemp("ring"), users=30, items=18)


@pytest.fixture(scope="module")
def policy(prepared: Dataset) -> GenerativeRecommender:
    torch.manual_seed(0)
    return build_policy(prepared, ring_ids(18), ModelConfig(**MODEL, words=WORDS), None).eval()


def answered(histories: Histories, vocabulary: tuple[str, ...]) -> RankedItems:
    """Items 0, 1 and 2 to who says nothing, one of each category; to others items of the category that they name."""
    items = np.tile(np.arange(3, dtype=np.int32), (len(histories), 1))
    if histories.words is not None:
        for row, said in enumerate(histories.words):
            (named,) = [vocabulary[word - 1] for word in said if word and vocabulary[word - 1].startswith("c")]
            items[row] = int(named[1:]) + 3 * np.arange(3)
    return RankedItems(items, np.zeros(items.shape, np.float32))


class ObedientHead(Recommender):
    """Its dense head follows what is said, its beam does not; notes what it was asked to leave out."""

    excluded: bool | None = None

    def both_orders(self, histories, k, *, exclude_seen=None, progress=None):
        assert k == 3
        self.excluded = exclude_seen
        vocabulary = self.policy.spec.words
        return answered(histories.with_words(None), vocabulary), answered(histories, vocabulary)


class ObedientStage(RankedRecommender):
    """Its second stage follows what is said, its beam does not."""

    def __init__(self, policy: GenerativeRecommender) -> None:
        self.policy, self.config = policy, DecodeConfig()

    def orders(self, histories, k, asked, *, exclude_seen=None, progress=None):
        assert tuple(asked) == ("served", "beam")
        vocabulary = self.policy.spec.words
        return [answered(histories, vocabulary), answered(histories.with_words(None), vocabulary)]


def measured(folder: Path) -> dict:
    found: dict = json.loads((folder / "words.json").read_text())
    return found


def test_shares_by_hand() -> None:
    """Two of four items have the first category, one by author a1 and one by nobody; ``Shop`` is of too many to be said."""
    items = item_table(
        4,
        categories=[["Shop", "Glue"], ["Shop", "Glue"], ["Shop"], None],
        author_index=np.array([1, 0, 0, 0], np.int32),
    )
    values = NamedValues.of(items, WordsConfig(), fewest=2)
    assert values.names == ("Glue",)
    assert NamedValues.of(items, WordsConfig(), fewest=1).names == ("Glue", "a1")
    lists = np.array([[0, 1, 2], [3, 2, 1], [2, -1, -1]])
    assert values.share(lists, np.zeros(3, int)).tolist() == pytest.approx([2 / 3, 1 / 3, 0])


@pytest.mark.parametrize("kind", ["dense head", "second stage"])
def test_a_third_without_and_all_with_the_sentence(
    prepared: Dataset, policy: GenerativeRecommender, tmp_path: Path, kind: str
) -> None:
    recommender = (
        ObedientStage(policy) if kind == "second stage" else ObedientHead(policy, ring_ids(18), DecodeConfig())
    )
    notes = write_words(prepared, recommender, CONFIG, tmp_path, seed=0)
    found = measured(tmp_path)
    assert (found["k"], found["rows"], found["values"]) == (3, 30, 3)
    third, whole = ({"mean": x, "low": x, "high": x} for x in (pytest.approx(1 / 3), 1.0))
    assert found["systems"] == {SERVED: {"without": third, "with": whole}, BEAM: {"without": third, "with": third}}
    assert notes[0] == (
        "words, generative (served): the category or author that a sentence names has 1.000 [1.000, 1.000] of the first 3 "
        "places with the sentence, 0.333 [0.333, 0.333] without; 30 rows, 3 values of at least 6 items"
    )
    assert notes[1].startswith("words, generative (beam): ")


def test_what_is_served_is_the_beam_where_nothing_re_scores_it(
    prepared: Dataset, policy: GenerativeRecommender, tmp_path: Path
) -> None:
    recommender = ObedientHead(policy, ring_ids(18), DecodeConfig(rescore="none"))
    write_words(prepared, recommender, CONFIG.model_copy(update={"filter_seen": "unfiltered"}), tmp_path, seed=0)
    assert measured(tmp_path)["systems"][SERVED]["with"]["mean"] == pytest.approx(1 / 3)
    assert recommender.excluded is False


def test_a_real_policy_is_asked_in_its_own_words(
    prepared: Dataset, policy: GenerativeRecommender, tmp_path: Path
) -> None:
    """Nobody trained it, so nothing is said of how far it follows; the same seed asks the same."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        recommender = Recommender(policy, ring_ids(18), DecodeConfig(beam_width=6))
        write_words(prepared, recommender, CONFIG, tmp_path / name, seed=1)
    assert measured(tmp_path / "one") == measured(tmp_path / "two")


def test_rows_and_values_are_drawn_by_the_seed(
    prepared: Dataset, policy: GenerativeRecommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MOST_ROWS", 10)
    said: dict[int, list[list[int]]] = {}

    class Asked(ObedientHead):
        def both_orders(self, histories, k, *, exclude_seen=None, progress=None):
            named = [] if histories.words is None else histories.words.ravel().tolist()
            said.setdefault(seed, []).append([*histories.user_index.tolist(), *named])
            return super().both_orders(histories, k, exclude_seen=exclude_seen, progress=progress)

    for seed in (0, 1):
        write_words(prepared, Asked(policy, ring_ids(18), DecodeConfig()), CONFIG, tmp_path, seed=seed)
    for first, second in zip(said[0], said[1], strict=True):
        assert first[:10] != second[:10]
    assert said[0][1][10:] != said[1][1][10:]


def test_values_of_few_items_are_not_measured(prepared: Dataset, policy: GenerativeRecommender, tmp_path: Path) -> None:
    recommender = ObedientHead(policy, ring_ids(18), DecodeConfig())
    config = EvaluateConfig(ks=(4,), resamples=100)
    assert write_words(prepared, recommender, config, tmp_path, seed=0) == [
        "words: no category or author has 8 items, so how far a sentence steers was not measured"
    ]
    assert not (tmp_path / "words.json").exists()
