"""A policy that goes on from another: renumbering changes no answer, new rows are as built, what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.contracts.errors import CannotGrow
from recsys.data.samples import PrefixWindows
from recsys.model.checkpoint import save_policy
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.training.fit import build_policy
from recsys.training.warm.start import WarmStart, start_warm
from recsys.training.warm.vocabularies import row_maps
from tests.toy.dataset import toy_ids
from tests.toy.language_model import SHAPE
from tests.toy.renumbered import CATALOGUE, Numbered, numbered

MODEL: dict[str, Any] = {
    "width": 16,
    "num_heads": 2,
    "ffn_width": 32,
    "expert_width": 16,
    "max_history": 4,
    "features": ("item", "codes", "author", "category", "user"),
    "unseen_user_rows": 2,
}
LANGUAGE_MODEL: dict[str, Any] = {
    "backbone": "llm",
    "language_model": {"shape": SHAPE},
    "features": ("item", "codes"),
    "unseen_user_rows": 0,
}
USERS, AUTHORS, KINDS = ("ada", "bob", "cleo", "dan"), ("farm", "mill", "import"), ("fruit", "grain", "milk")


def built(world: Numbered, seed: int, **changes: Any) -> GenerativeRecommender:
    torch.manual_seed(seed)
    return build_policy(world.data, world.ids, ModelConfig.model_validate(MODEL | changes), None).eval()


@pytest.fixture
def old(tmp_path: Path) -> Numbered:
    """The earlier data set, with a policy in ``policy``."""
    world = numbered(tmp_path / "old", CATALOGUE, USERS, AUTHORS, KINDS)
    save_policy(tmp_path / "policy", built(world, 1))
    return world


def start(tmp_path: Path) -> WarmStart:
    return WarmStart(tmp_path / "policy", tmp_path / "old", "earlier")


def log_probs(policy: GenerativeRecommender, world: Numbered) -> dict[str, list[float]]:
    """Of every event of every user, by name."""
    windows = PrefixWindows.from_dataset(world.data, 4)
    with torch.no_grad():
        values = policy.log_prob(windows.collate(np.arange(len(windows)))).flatten(1)
    return {user: values[row].tolist() for row, user in enumerate(world.data.users["user_id"])}


def test_another_numbering_of_everything_changes_no_answer(tmp_path: Path, old: Numbered) -> None:
    new = numbered(tmp_path / "new", CATALOGUE[::-1], USERS[::-1], AUTHORS[::-1], KINDS[::-1])
    policy = built(new, 2)
    before = log_probs(policy, new)
    report = start_warm(policy, new.data, new.ids, start(tmp_path))
    expected, found = log_probs(built(old, 1), old), log_probs(policy, new)
    for user, values in expected.items():
        assert found[user] == pytest.approx(values, abs=1e-5)
    assert before["ada"] != pytest.approx(expected["ada"], abs=1e-2)
    assert report["from"] == "earlier"
    assert report["tables"] == {
        "item": {"mapped": 7, "new": 0},
        "author": {"mapped": 4, "new": 0},
        "category": {"mapped": 4, "new": 0},
        "user": {"mapped": 5, "new": 0},
    }


def test_rows_that_are_new_stay_as_built_and_rows_that_left_go(tmp_path: Path, old: Numbered) -> None:
    """Grapes, their author and eve are new; eggs have left. Of 7 rows of items 6 are known: padding and five items."""
    items = ("grapes", *(item for item in CATALOGUE if item != "eggs"))
    world = numbered(tmp_path / "new", items, ("eve", "bob"), ("new", *AUTHORS), KINDS)
    world = Numbered(world.data, old.ids.grown(list(items), np.zeros((6, 4), np.float32)))
    policy, fresh, earlier = built(world, 2), built(world, 2), built(old, 1)
    report = start_warm(policy, world.data, world.ids, start(tmp_path))
    assert report["tables"]["item"] == {"mapped": 6, "new": 1}
    assert report["tables"]["user"] == {"mapped": 2, "new": 1}
    assert report["tables"]["author"] == {"mapped": 4, "new": 1}
    torch.testing.assert_close(policy.tables.weight("item")[1], fresh.tables.weight("item")[1])  # grapes
    torch.testing.assert_close(policy.tables.weight("item")[2], earlier.tables.weight("item")[1])  # apple
    torch.testing.assert_close(policy.tables.weight("user")[2], earlier.tables.weight("user")[2])  # bob
    torch.testing.assert_close(policy.tables.weight("user")[-2:], earlier.tables.weight("user")[-2:])  # unseen ones
    torch.testing.assert_close(policy.item_tower.codes_IL, fresh.item_tower.codes_IL)
    torch.testing.assert_close(policy.codes.weight, earlier.codes.weight)


@pytest.mark.parametrize("kind", ["encoder-decoder", "language model, tied", "language model, untied"])
def test_words_are_matched_by_what_they_are(tmp_path: Path, kind: str) -> None:
    """The mill's bread has left and grapes by "new" have come: as many words as before, and number 9 is another one."""
    shape = {**SHAPE, "tie_word_embeddings": kind.endswith(" tied")}
    form = {} if kind == "encoder-decoder" else {**LANGUAGE_MODEL, "language_model": {"shape": shape}}
    changes = {**form, "words": {"fields": ["author"]}}
    before = numbered(tmp_path / "old", CATALOGUE, ("bob",), AUTHORS, KINDS)
    earlier = built(before, 1, **changes)
    save_policy(tmp_path / "policy", earlier)
    items = ("grapes", *(item for item in CATALOGUE if item != "bread"))
    world = numbered(tmp_path / "new", items, ("bob",), ("new", *AUTHORS), KINDS)
    world = Numbered(world.data, before.ids.grown(list(items), np.zeros((6, 4), np.float32)))
    policy, fresh = built(world, 2, **changes), built(world, 2, **changes)
    report = start_warm(policy, world.data, world.ids, start(tmp_path))
    assert report["tables"]["words"] == {"mapped": 10, "new": 1}
    assert len(policy.spec.words) == len(earlier.spec.words) == 11

    def rows(of: GenerativeRecommender, word: str) -> list[torch.Tensor]:
        number = of.spec.words.index(word)
        if of.words is not None:
            return [of.words.embedding.weight[number + 1]]
        vocabulary, row = of.vocabulary, of.encoder.first_word + number  # type: ignore[union-attr,operator]
        return [vocabulary.marks[row], *([] if vocabulary.tied else [vocabulary.head[row]])]  # type: ignore[union-attr,index]

    for word in policy.spec.words:
        for found, expected in zip(rows(policy, word), rows(fresh if word == "new" else earlier, word), strict=True):
            assert torch.equal(found, expected), word
    for name in ("vocabulary.marks", "vocabulary.head") if form else ():
        if (own := dict(policy.named_parameters()).get(name)) is not None:
            other = earlier.get_parameter(name)
            assert torch.equal(own[:4], other[:4])  # marks and the one behaviour
            behind = len(other) - len(earlier.codes.weight)
            assert name != "vocabulary.head" or torch.equal(own[behind:], other[behind:])


def test_another_base_is_refused(tmp_path: Path, old: Numbered) -> None:
    save_policy(tmp_path / "policy", built(old, 1, **LANGUAGE_MODEL))
    policy = built(old, 2, **LANGUAGE_MODEL)
    assert start_warm(policy, old.data, old.ids, start(tmp_path))["from"] == "earlier"
    assert policy.spec.language is not None
    language = policy.spec.language.model_copy(update={"digest": "b" * 64})
    policy.spec = policy.spec.model_copy(update={"language": language})
    with pytest.raises(CannotGrow, match=r"of weights None, and this one begins from bbbb.*nights.warm_start=false"):
        start_warm(policy, old.data, old.ids, start(tmp_path))


def test_ids_are_matched_with_their_type(tmp_path: Path, old: Numbered) -> None:
    maps = row_maps(old.data, old.data, ("item", "user", "gap", "behaviour"))
    assert {name: rows.tolist() for name, rows in maps.items()} == {
        "item": [0, 1, 2, 3, 4, 5, 6],
        "user": [0, 1, 2, 3, 4],
        "gap": [0],
        "behaviour": [0],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32, "expert_width": 32}, r"weights of the policy in '.*' have another form, the first is"),
        ({"num_decoder_layers": 3}, r"weights of the policy in '.*' have another form"),
    ],
)
def test_another_form_is_refused_with_the_way_out(
    tmp_path: Path, old: Numbered, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CannotGrow, match=message + r".*nights.warm_start=false"):
        start_warm(built(old, 2, **changes), old.data, old.ids, start(tmp_path))


def test_other_semantic_ids_are_refused(tmp_path: Path, old: Numbered) -> None:
    """Codes of another generation mean other items; those that were named after this one are welcome."""
    other = toy_ids(old.ids.codes[::-1].copy(), (3, 3))
    world = Numbered(old.data, other)
    with pytest.raises(CannotGrow, match="its codes would mean other items"):
        start_warm(built(world, 2), world.data, other, start(tmp_path))
    named = type(other)(other.codes, other.level_sizes, other.item_ids, other.codebooks, aligned_to=(old.ids.digest,))
    assert (
        start_warm(built(Numbered(old.data, named), 2), old.data, named, start(tmp_path))["tables"]["item"]["new"] == 0
    )


def test_other_levels_are_refused(tmp_path: Path, old: Numbered) -> None:
    wider = toy_ids(old.ids.codes, (4, 3))
    named = type(wider)(wider.codes, (4, 3), wider.item_ids, wider.codebooks, aligned_to=(old.ids.digest,))
    with pytest.raises(CannotGrow, match=r"has levels of \(3, 3\) codes, the semantic IDs \(4, 3\)"):
        start_warm(built(Numbered(old.data, named), 2), old.data, named, start(tmp_path))
