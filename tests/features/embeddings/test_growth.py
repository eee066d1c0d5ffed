"""Another night in the space of a generation: founders keep their vectors, later items are projected."""

import json

import numpy as np
import polars as pl
import pytest

from features.embeddings.attributes import AttributesConfig, attribute_embedding
from features.embeddings.collaborative import (
    CollaborativeConfig,
    CollaborativeSpace,
    collaborative_embedding,
    cooccurrence,
)
from features.embeddings.config import EmbedConfig
from features.embeddings.fusion import FusionConfig, FusionSpace
from features.embeddings.precomputed import PrecomputedConfig
from features.embeddings.space import EmbeddingSpace, KnownVectors
from features.embeddings.text import TextConfig
from features.item_embeddings import embed, grow_embeddings
from recsys.contracts.errors import ArtifactError, CannotGrow, DataError
from recsys.runtime import PlainProgress
from tests.toy.builders import item_table

NAMES = [f"item {number}" for number in range(12)]
CATEGORIES = {name: [f"c{number % 3}", f"d{number % 2}"] for number, name in enumerate(NAMES)}
TEXTS = {name: ["red shoe", "blue pan", "red pan", "blue shoe"][number % 4] for number, name in enumerate(NAMES)}


def config_of(**changes):
    settings = {
        "text": TextConfig(model=None),
        "collaborative": CollaborativeConfig(dim=4, window=2),
        "attributes": AttributesConfig(dim=4),
        "fusion": FusionConfig(dim=6),
    }
    return EmbedConfig(**{**settings, **changes})


class Nights:
    """Prepares a night from item names and histories of names, and keeps its results."""

    def __init__(self, tmp_path, make_history, make_prepared):
        self.root, self.make_history, self.make_prepared = tmp_path, make_history, make_prepared
        self.count = 0

    def prepared(self, names, histories, **columns):
        place = {name: row for row, name in enumerate(names)}
        events = [[place[name] for name in history if name in place] for history in histories]
        given = {"categories": [CATEGORIES[name] for name in names], **columns}
        items = item_table(len(names), item_id=names, **given)
        self.count += 1
        return self.make_prepared(self.root / f"prepared {self.count}", self.make_history(events), items)

    def out(self, name):
        return self.root / name


@pytest.fixture
def nights(tmp_path, make_history, make_prepared):
    return Nights(tmp_path, make_history, make_prepared)


def walks(names, count=30, length=6, seed=0):
    rng = np.random.default_rng(seed)
    return [[names[place] for place in rng.permutation(len(names))[:length]] for _ in range(count)]


def vectors(folder, array="fused"):
    rows = pl.read_parquet(folder / "rows.parquet")["item_id"].to_list()
    return dict(zip(rows, np.load(folder / f"{array}.npy"), strict=True))


def test_folding_in_by_hand():
    """Two contexts of shares 1/4 and 3/4; an item seen 1 : 1 beside them has ln 2 and ln(2/3) < 0, so only the first counts.

    Along directions (1, 0) and (0, 2) that is (ln 2, 0). An item seen beside none of them stays at zero.
    """
    space = CollaborativeSpace(np.array([0.25, 0.75], np.float32), np.array([[1, 0], [0, 2]], np.float32))
    from scipy import sparse

    found = space.fold_in(sparse.csr_matrix(np.array([[2.0, 2.0], [0.0, 0.0]])), shift=1.0)
    np.testing.assert_allclose(found, [[np.log(2), 0], [0, 0]], rtol=1e-6)


def test_a_founder_folded_in_is_where_it_was(make_history):
    """Projecting what the space was fitted on gives the fit back, for every source and for the fusion."""
    rng = np.random.default_rng(0)
    history = make_history([rng.integers(0, 40, 12).tolist() for _ in range(80)])
    config = CollaborativeConfig(dim=8)
    fitted, space = collaborative_embedding(history, 40, config, seed=1)
    counts = cooccurrence(history, 40, config.window, config.gap_decay)
    np.testing.assert_allclose(space.fold_in(counts, config.shift), fitted, atol=1e-4)
    items = item_table(
        40, categories=[[f"c{n % 5}", f"d{n % 7}"] for n in range(40)], author_index=[n % 4 for n in range(40)]
    )
    for projection in ("svd", "random"):
        attributes, by_name = attribute_embedding(items, AttributesConfig(dim=5, projection=projection), seed=1)
        np.testing.assert_allclose(by_name.project(items.reverse())[::-1], attributes, atol=1e-5)
    sources = {"collaborative": fitted, "attributes": attributes}
    fusion = FusionSpace.fit(sources, {"collaborative": 1.0, "attributes": 0.3}, 6)
    assert np.array_equal(fusion.fuse({name: x[7:9] for name, x in sources.items()}), fusion.fuse(sources)[7:9])


def test_founders_keep_their_vectors_bit_for_bit_whatever_comes_and_goes(nights):
    """Nine founders; tonight six of them in another order, two new items, other histories; the next night all are back."""
    config, founders = config_of(), NAMES[:9]
    embed(nights.prepared(founders, walks(founders)), config, nights.out("first"), 3, PlainProgress())
    tonight = [*NAMES[10:], *founders[6:0:-1]]
    second = nights.prepared(tonight, walks(tonight, seed=5))
    report = grow_embeddings(second, config, nights.out("first"), nights.out("second"), PlainProgress())
    assert (report["founders"], report["projected"], report["new"], report["absent_founders"]) == (6, 2, 2, 3)
    everyone = NAMES[::-1]
    third = nights.prepared(everyone, walks(everyone, seed=6))
    report = grow_embeddings(third, config, nights.out("second"), nights.out("third"), PlainProgress())
    assert (report["founders"], report["projected"], report["new"], report["absent_founders"]) == (9, 3, 1, 0)
    assert not (nights.out("third") / "absent.parquet").exists()
    few = nights.prepared(founders[:5], walks(founders[:5], length=4))
    grow_embeddings(few, config, nights.out("third"), nights.out("fourth"), PlainProgress())
    kept = pl.read_parquet(nights.out("fourth") / "absent.parquet")  # founders alone: later items are placed anew
    assert sorted(kept["item_id"]) == founders[5:]
    for array in ("fused", "collaborative", "attributes"):
        first = vectors(nights.out("first"), array)
        for night, names in (("second", tonight), ("third", everyone)):
            later = vectors(nights.out(night), array)
            assert list(later) == names
            kept = [name for name in names if name in first]
            assert all(later[name].tobytes() == first[name].tobytes() for name in kept)
            assert np.stack(list(later.values())).any(axis=1).all()
    spaces = {
        json.loads((nights.out(n) / "embedding_report.json").read_text())["space"] for n in ("first", "second", "third")
    }
    assert len(spaces) == 1


def test_order_of_rows_and_of_nights_does_not_place_a_new_item(nights):
    """The new items' vectors are the same when the rows are turned round, and when a night lies between."""
    config, founders = config_of(), NAMES[:9]
    histories = walks(NAMES, seed=8)
    embed(nights.prepared(founders, walks(founders)), config, nights.out("first"), 3, PlainProgress())
    for name, names in (("up", NAMES), ("down", NAMES[::-1])):
        grow_embeddings(
            nights.prepared(names, histories), config, nights.out("first"), nights.out(name), PlainProgress()
        )
    few = nights.prepared(NAMES[4:10], walks(NAMES[4:10]))
    grow_embeddings(few, config, nights.out("first"), nights.out("between"), PlainProgress())
    grow_embeddings(
        nights.prepared(NAMES, histories), config, nights.out("between"), nights.out("late"), PlainProgress()
    )
    up, down, late = (vectors(nights.out(name)) for name in ("up", "down", "late"))
    for name in NAMES:
        np.testing.assert_allclose(down[name], up[name], atol=1e-5)
        np.testing.assert_allclose(late[name], up[name], atol=1e-5)


def test_an_item_without_events_has_its_attributes_alone(nights):
    """Without reduction the blocks stand side by side: a cold item has zeros for collaborative, and the attribute block of a
    founder of the same categories; when histories hold it, the first block fills.
    """
    config, founders = config_of(fusion=FusionConfig(dim=None)), NAMES[:9]
    embed(nights.prepared(founders, walks(founders)), config, nights.out("first"), 3, PlainProgress())
    cold, twin = NAMES[9], NAMES[3]
    assert CATEGORIES[cold] == [CATEGORIES[twin][0], "d1"] == CATEGORIES[twin]
    grow_embeddings(
        nights.prepared([*founders, cold], walks(founders)),
        config,
        nights.out("first"),
        nights.out("cold"),
        PlainProgress(),
    )
    found = vectors(nights.out("cold"))
    assert not found[cold][:4].any()
    assert found[twin][:4].any()
    np.testing.assert_allclose(found[cold][4:], found[twin][4:], atol=1e-6)
    warm = nights.prepared([*founders, cold], [*walks(founders), [twin, cold, NAMES[2]]])
    report = grow_embeddings(warm, config, nights.out("cold"), nights.out("warm"), PlainProgress())
    assert report["new"] == 0
    assert report["sources"]["collaborative"]["items_without"] == 0
    assert vectors(nights.out("warm"))[cold][:4].any()


def test_items_taken_together_with_a_new_one_lie_near_it(nights):
    """Users walk inside one half of the catalogue; a new item that they meet in the second half lands there."""
    config = config_of(
        attributes=None, collaborative=CollaborativeConfig(dim=2, window=3), fusion=FusionConfig(dim=None)
    )
    left, right = NAMES[:5], NAMES[5:10]
    old = [*walks(left, length=5), *walks(right, length=5, seed=1)]
    embed(nights.prepared([*left, *right], old), config, nights.out("first"), 3, PlainProgress())
    names = [*left, *right, NAMES[10]]
    histories = [*old, [right[0], NAMES[10], right[1]], [right[3], right[2], NAMES[10]]]
    grow_embeddings(
        nights.prepared(names, histories), config, nights.out("first"), nights.out("second"), PlainProgress()
    )
    found = vectors(nights.out("second"))
    distance = {name: np.square(found[name] - found[NAMES[10]]).sum() for name in [*left, *right]}
    assert max(distance[name] for name in right) < min(distance[name] for name in left)


def test_texts_are_encoded_once_and_known_ones_kept(nights, tiny_bert, monkeypatch):
    config = config_of(text=TextConfig(model=str(tiny_bert)))
    founders = NAMES[:9]
    first = nights.prepared(founders, walks(founders), text=[TEXTS[name] for name in founders])
    embed(first, config, nights.out("first"), 3, PlainProgress())
    words = [TEXTS[name] for name in founders]
    second = nights.prepared(NAMES[:11], walks(founders), text=[*words, "red shoe", None])
    grow_embeddings(second, config, nights.out("first"), nights.out("second"), PlainProgress())
    found = vectors(nights.out("second"), "text")
    np.testing.assert_allclose(found[NAMES[9]], found[NAMES[0]], atol=1e-5)
    assert not found[NAMES[10]].any()
    asked = []
    monkeypatch.setattr("features.embeddings.growth.text_embedding", lambda texts, *_: asked.append(texts))
    third = nights.prepared(NAMES[:11], walks(founders), text=[*words, "another text", None])
    grow_embeddings(third, config, nights.out("second"), nights.out("third"), PlainProgress())
    assert asked == []
    assert vectors(nights.out("third"), "text")[NAMES[9]].tobytes() == found[NAMES[9]].tobytes()


def test_vectors_from_a_file_and_told_from_texts(nights, tiny_bert):
    """A new item's vector is in tonight's file, another's is told from its text by the slopes of the founders."""
    path = nights.root / "v.parquet"
    founders = NAMES[:8]
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal(3).tolist() for name in NAMES}
    pl.DataFrame({"item_id": founders, "vector": [given[name] for name in founders]}).write_parquet(path)
    config = config_of(
        text=TextConfig(model=str(tiny_bert)),
        precomputed=PrecomputedConfig(path=path, missing="text", max_missing_share=0.5),
    )
    words = [TEXTS[name] for name in NAMES]
    first = nights.prepared(founders, walks(founders), text=words[:8])
    embed(first, config, nights.out("first"), 3, PlainProgress())
    pl.DataFrame({"item_id": [NAMES[8]], "vector": [given[NAMES[8]]]}).extend(
        pl.DataFrame({"item_id": founders[:4], "vector": [[9.0, 9.0, 9.0]] * 4})
    ).write_parquet(path)
    second = nights.prepared(NAMES[:10], walks(founders), text=words[:10])
    grow_embeddings(second, config, nights.out("first"), nights.out("second"), PlainProgress())
    found = vectors(nights.out("second"), "precomputed")
    np.testing.assert_allclose(found[founders[0]], given[founders[0]], rtol=1e-6)  # not the file's 9
    np.testing.assert_allclose(found[NAMES[8]], given[NAMES[8]], rtol=1e-6)
    assert found[NAMES[9]].any()
    assert vectors(nights.out("second"), "precomputed_given") == {name: name != NAMES[9] for name in NAMES[:10]}
    pl.DataFrame({"item_id": NAMES[:9], "vector": [[1.0]] * 9}).write_parquet(path)
    with pytest.raises(DataError, match="vectors of 1 numbers, those of this generation have 3"):
        grow_embeddings(second, config, nights.out("first"), nights.out("third"), PlainProgress())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": FusionConfig(dim=5)}, r"embed\.fusion\.dim changed \(6 -> 5\).*start a new generation"),
        ({"collaborative": None}, r"embed\.collaborative\.context_smoothing, .*changed \(0\.75 -> None\)"),
        ({"collaborative": CollaborativeConfig(dim=4, window=3)}, r"embed\.collaborative\.window changed \(2 -> 3\)"),
        ({"text": TextConfig(model="other")}, r"embed\.text\.model changed \(None -> 'other'\)"),
    ],
)
def test_other_settings_are_another_space(nights, changes, message):
    prepared = nights.prepared(NAMES[:9], walks(NAMES[:9]))
    embed(prepared, config_of(), nights.out("first"), 3, PlainProgress())
    with pytest.raises(CannotGrow, match=message):
        grow_embeddings(prepared, config_of(**changes), nights.out("first"), nights.out("second"), PlainProgress())
    harmless = config_of(text=TextConfig(model=None, batch_size=7))
    grow_embeddings(prepared, harmless, nights.out("first"), nights.out("second"), PlainProgress())


def test_ids_of_another_type_and_damaged_bases_are_refused(nights):
    prepared = nights.prepared(NAMES[:9], walks(NAMES[:9]))
    first = nights.out("first")
    embed(prepared, config_of(), first, 3, PlainProgress())
    history = nights.make_history([[0, 1, 2], [2, 1, 0]])
    numbers = nights.make_prepared(nights.root / "numbers", history, item_table(3, item_id=[1, 2, 3]))
    with pytest.raises(CannotGrow, match=r"item ids are Int64, those of .* String"):
        grow_embeddings(numbers, config_of(), first, nights.out("second"), PlainProgress())
    small = item_table(3, item_id=pl.Series([7, 8, 9], dtype=pl.Int32), categories=[["a"], ["a"], ["b"]])
    config = config_of(collaborative=None, attributes=AttributesConfig(dim=1, min_items=1))
    embed(
        nights.make_prepared(nights.root / "narrow", history, small),
        config,
        nights.out("narrow out"),
        3,
        PlainProgress(),
    )
    wide = item_table(3, item_id=[2**40, 9, 7], categories=[["a"], ["b"], ["a"]])
    wider = nights.make_prepared(nights.root / "wide", history, wide)
    report = grow_embeddings(wider, config, nights.out("narrow out"), nights.out("wide out"), PlainProgress())
    assert (report["founders"], report["new"], report["absent_founders"]) == (2, 1, 1)
    for name in ("space.safetensors", "rows.parquet"):
        kept = (first / name).read_bytes()
        (first / name).write_bytes(kept[:-40])
        with pytest.raises(ArtifactError, match=r"cannot be read.*run `embed` again"):
            grow_embeddings(prepared, config_of(), first, nights.out("second"), PlainProgress())
        (first / name).write_bytes(kept)
    (first / "space.json").unlink()
    with pytest.raises(ArtifactError, match=r"space\.json' does not exist"):
        EmbeddingSpace.load(first)
    pl.read_parquet(first / "rows.parquet").head(3).write_parquet(first / "rows.parquet")
    with pytest.raises(ArtifactError, match=r"rows\.parquet has 3 rows, the arrays \[9\]"):
        KnownVectors.load(first)
