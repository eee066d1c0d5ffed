"""Versions: what is written is what is read, damage is noticed, and published IDs never move."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest

from recsys.contracts.errors import ArtifactError, DataError
from recsys.semantic_ids.versions import SemanticIds

BOOKS = (np.array([[0.0], [100.0]], np.float32), np.array([[0.0], [1.0], [2.0]], np.float32))


def small(ids=("x", "y", "z")):
    codes = np.array([[0, 0], [0, 1], [1, 2]], np.int32)
    return SemanticIds(codes, (2, 3), pl.Series(ids), BOOKS)


@pytest.mark.parametrize("ids", [("x", "y", "ü,'<"), (7, 5, 2**40)])
def test_what_is_saved_is_loaded(tmp_path, ids):
    saved = small(ids)
    saved.save(tmp_path)
    loaded = SemanticIds.load(tmp_path)
    assert loaded.digest == saved.digest
    assert loaded.codes.tolist() == saved.codes.tolist()
    assert loaded.codes.dtype == np.int32
    assert loaded.item_ids.to_list() == list(ids)
    assert loaded.item_ids.dtype == saved.item_ids.dtype
    assert [book.tolist() for book in loaded.codebooks] == [book.tolist() for book in BOOKS]
    table = pl.read_parquet(tmp_path / "semantic_ids.parquet")
    assert table.columns == ["item_index", "item_id", "codes", "sid", "born"]
    assert table["sid"].to_list() == ["<a_0><b_0>", "<a_0><b_1>", "<a_1><b_2>"]


def test_digest_notices_codes_sizes_and_ids():
    other_codes = small().codes.copy()
    other_codes[0, 1] = 2
    variants = [
        small(),
        SemanticIds(other_codes, (2, 3), pl.Series(["x", "y", "z"]), BOOKS),
        SemanticIds(small().codes, (2, 4), pl.Series(["x", "y", "z"]), BOOKS),
        small(("x", "y", "w")),
        small(("x", "yz", "")),
        small((7, 8, 9)),
        small(("7", "8", "9")),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert small().digest == small().digest


@pytest.mark.parametrize(
    "name", ["semantic_ids.parquet", "codes.npy", "codebooks.safetensors", "reserved.parquet", "semantic_ids.json"]
)
def test_a_truncated_or_missing_file_is_an_artifact_error(tmp_path, name):
    small().save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="again"):
        SemanticIds.load(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match="again"):
        SemanticIds.load(tmp_path)


def test_files_of_two_versions_do_not_mix(tmp_path):
    """Same shapes, other codes: only the digest can tell."""
    one, two = tmp_path / "one", tmp_path / "two"
    small().save(one)
    SemanticIds(np.array([[1, 0], [0, 1], [1, 2]], np.int32), (2, 3), pl.Series(["x", "y", "z"]), BOOKS).save(two)
    (one / "codes.npy").write_bytes((two / "codes.npy").read_bytes())
    with pytest.raises(ArtifactError, match=r"are damaged: digest is .* hold different codes"):
        SemanticIds.load(one)


def test_other_codebooks_are_noticed(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    small().save(one)
    SemanticIds(small().codes, (2, 3), pl.Series(["x", "y", "z"]), (BOOKS[0], BOOKS[1] + 1)).save(two)
    (one / "codebooks.safetensors").write_bytes((two / "codebooks.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"codebooks.safetensors is not the one the codes were made with"):
        SemanticIds.load(one)


def test_a_checkpoint_of_other_ids_is_refused():
    ids = small()
    ids.check_same(ids.digest)
    with pytest.raises(ArtifactError, match="checkpoint was trained with other semantic IDs: it carries digest abc"):
        ids.check_same("abc")


def test_growth_by_hand():
    """New items at 0.2 and 0.3 want (0, 0), which is taken, then (0, 1), taken as well: the first gets (0, 2).

    Prefix 0 is then full, so the second goes under prefix 1, residual -99.7, nearest last code 0: (1, 0). Item y has left
    and keeps (0, 1), which nobody else gets.
    """
    embeddings = np.array([[0.3], [0.0], [0.2], [102.0]], np.float32)
    grown = small().grown(["n2", "x", "n1", "z"], embeddings)
    assert grown.codes.tolist() == [[1, 0], [0, 0], [0, 2], [1, 2]]
    assert grown.item_ids.to_list() == ["n2", "x", "n1", "z"]
    assert grown.born.tolist() == [1, 0, 1, 0]
    assert grown.reserved.item_ids.to_list() == ["y"]
    assert grown.reserved.codes.tolist() == [[0, 1]]
    assert grown.is_unique
    assert grown.version == 1
    back = grown.grown(["y", "n1"], np.zeros((2, 1), np.float32))
    assert back.codes.tolist() == [[0, 1], [0, 2]]
    assert back.born.tolist() == [0, 1]
    assert sorted(back.reserved.item_ids) == ["n2", "x", "z"]
    assert back.version == 2


def test_the_item_with_more_traffic_is_served_first():
    """Both want (0, 2), the last free ID under prefix 0; n2 has more traffic and n1, which stands first, goes elsewhere."""
    grown = small().grown(["x", "y", "z", "n1", "n2"], np.full((5, 1), 0.2, np.float32), np.array([9, 9, 9, 1, 2]))
    assert grown.codes[3:].tolist() == [[1, 0], [0, 2]]
    assert grown.traffic.tolist() == [9, 9, 9, 1, 2]


def books_of(rng, sizes, width=3):
    return tuple(rng.standard_normal((size, width)).astype(np.float32) for size in sizes)


def grown(ids, listed, vectors, traffic):
    return ids.grown(listed, np.stack([vectors[item] for item in listed]), np.array([traffic[item] for item in listed]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ids_are_numbers", [False, True])
def test_published_ids_never_move_whatever_the_nights_bring(tmp_path, seed, ids_are_numbers):
    """Items come, go, return, and stand in another order every night; a twin that sees other orders has the same IDs."""
    rng = np.random.default_rng(seed)
    world = [number * 7 if ids_are_numbers else f"item {number * 7}" for number in range(90)]
    vectors = {item: rng.standard_normal(3).astype(np.float32) for item in world}
    traffic = {item: int(rng.integers(0, 4)) for item in world}
    founders = world[:20]
    first = rng.permutation(64)[:20]
    codes = np.column_stack([first // 16, first // 4 % 4, first % 4]).astype(np.int32)
    ids = twin = SemanticIds(codes, (4, 4, 4), pl.Series(founders), books_of(rng, (4, 4, 4)))
    published, births, digests, members = {}, {}, [], []
    for night in range(12):
        given = {item: tuple(code) for item, code in zip(ids.item_ids, ids.codes.tolist(), strict=True)}
        for item, code in given.items():
            assert published.setdefault(item, code) == code, (night, item)
            assert births.setdefault(item, ids.version) == ids.born[ids.item_ids.to_list().index(item)]
        assert len(set(published.values())) == len(published)
        assert len(ids.register) == len(published)
        assert ids.is_unique
        digests.append(ids.digest)
        ids.save(tmp_path / str(night))
        ids = SemanticIds.load(tmp_path / str(night))
        assert ids.digest == twin.digest
        for digest in digests:
            ids.check_same(digest, allow_grown=True)
        members.append(set(given))
        known = list(published)
        fresh = [item for item in world if item not in published]
        tonight = [item for item in known if rng.random() < 0.8]
        tonight += [fresh[place] for place in rng.permutation(len(fresh))[: rng.integers(0, 5)]]
        shuffled = [tonight[place] for place in rng.permutation(len(tonight))]
        ids, twin = grown(ids, shuffled, vectors, traffic), grown(twin, sorted(tonight), vectors, traffic)
    assert any((members[night] - members[night + 1]) & members[night + 2] for night in range(10))  # some returned


def test_ancestors_are_provable(tmp_path):
    rng = np.random.default_rng(0)
    first = SemanticIds(np.array([[0, 0, 0]], np.int32), (8, 8, 8), pl.Series([1]), books_of(rng, (8, 8, 8)))
    second = first.grown(list(range(1, 60)), rng.standard_normal((59, 3)).astype(np.float32))
    third = second.grown(pl.Series([*range(99, 1, -1)]), rng.standard_normal((98, 3)).astype(np.float32))
    assert third.codes[::-1][:58].tolist() == second.codes[1:].tolist()
    assert [(ancestor.num_items, ancestor.digest) for ancestor in third.ancestors] == [
        (1, first.digest),
        (59, second.digest),
    ]
    assert first.generation == second.generation == third.generation
    third.check_same(first.digest, allow_grown=True)
    with pytest.raises(ArtifactError, match=r"other semantic IDs.*has grown since, map the checkpoint"):
        third.check_same(first.digest)
    with pytest.raises(ArtifactError, match="other semantic IDs"):
        first.check_same(third.digest, allow_grown=True)
    third.save(tmp_path)
    assert SemanticIds.load(tmp_path).ancestors == third.ancestors
    head = json.loads((tmp_path / "semantic_ids.json").read_text())
    head["ancestors"][1]["register"] = head["ancestors"][0]["register"]
    (tmp_path / "semantic_ids.json").write_text(json.dumps(head))
    with pytest.raises(ArtifactError, match="born up to version 1 are not those that it had: an ID has moved"):
        SemanticIds.load(tmp_path)


def test_the_digest_knows_items_and_not_rows():
    """Two nights list the same items in another order: one version, but the rows of a checkpoint fit only one of them."""
    ids = small()
    turned = ids.grown(["z", "x", "y"], np.zeros((3, 1), np.float32))
    assert turned.codes.tolist() == [[1, 2], [0, 0], [0, 1]]
    assert (turned.digest, turned.version) == (ids.digest, 0)
    ids.check_rows(ids.codes)
    with pytest.raises(ArtifactError, match="numbers its items otherwise"):
        turned.check_rows(ids.codes)


def as_schema_1(folder, ids):
    """The files of the release before tables could grow."""
    ids.save(folder)
    (folder / "reserved.parquet").unlink()
    table = pl.read_parquet(folder / "semantic_ids.parquet")
    table.select("item_index", "item_id", "codes", "sid").write_parquet(folder / "semantic_ids.parquet")
    text = json.dumps([[3, 2], [2, 3]]).encode() + ids.codes.tobytes() + json.dumps(ids.item_ids.to_list()).encode()
    head = json.loads((folder / "semantic_ids.json").read_text())
    names = ("num_items", "num_levels", "level_sizes", "unique", "codebooks_digest")
    old = {"digest": hashlib.sha256(text).hexdigest(), "ancestors": [], **{name: head[name] for name in names}}
    (folder / "semantic_ids.json").write_text(json.dumps(old))
    return old["digest"]


def test_a_table_of_schema_1_serves_with_its_digest_and_does_not_grow(tmp_path):
    digest = as_schema_1(tmp_path / "old", small(("z", "y", "x")))
    old = SemanticIds.load(tmp_path / "old")
    assert old.digest == digest != small(("z", "y", "x")).digest
    old.check_same(digest)
    old.save(tmp_path / "copy")
    assert SemanticIds.load(tmp_path / "copy").digest == digest
    with pytest.raises(ArtifactError, match=r"schema 1 cannot grow.*without a base, which starts a new generation"):
        old.grown(["x"], np.zeros((1, 1), np.float32))


def test_a_table_of_a_newer_release_is_refused(tmp_path):
    small().save(tmp_path)
    head = json.loads((tmp_path / "semantic_ids.json").read_text())
    (tmp_path / "semantic_ids.json").write_text(json.dumps({**head, "schema_version": 3}))
    with pytest.raises(ArtifactError, match="have schema 3, this code reads 1 and 2"):
        SemanticIds.load(tmp_path)


def test_growth_with_an_extra_level_counts_on():
    """Level sizes (2, 3, 2): (0, 0) holds number 0; a new item at 0 gets 1; the next finds it full, goes to (0, 1)."""
    ids = SemanticIds(np.array([[0, 0, 0]], np.int32), (2, 3, 2), pl.Series(["x"]), BOOKS)
    grown = ids.grown(["x", "p", "q"], np.zeros((3, 1), np.float32))
    assert grown.codes.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("new_ids", "embeddings", "message"),
    [
        (["n", "n"], [[0.0], [1.0]], "item_id 'n' is there 2 times"),
        (["n"], [[0.0, 1.0]], r"shape \(1, 2\), expected \[1, 1\]"),
        (["n"], [[float("nan")]], "NaN"),
        ([7], [[0.0]], "the item ids are Int64"),
        ([None], [[0.0]], "1 nulls"),
    ],
)
def test_growth_refuses(new_ids, embeddings, message):
    with pytest.raises(DataError, match=message):
        small().grown(new_ids, np.array(embeddings, np.float32))


def test_a_table_without_free_ids_says_so():
    full = small().grown([f"i{number}" for number in range(3)], np.zeros((3, 1), np.float32))
    with pytest.raises(DataError, match=r"all 6 IDs of level sizes \(2, 3\) are taken"):
        full.grown(["one more"], np.zeros((1, 1), np.float32))


def test_codes_outside_of_their_level_are_refused():
    with pytest.raises(ValueError, match=r"outside of level sizes \(2, 3\)"):
        SemanticIds(np.array([[2, 0]], np.int32), (2, 3), pl.Series(["x"]), BOOKS)
    with pytest.raises(ValueError, match=r"expected \[2 items, 2 levels\]"):
        SemanticIds(np.array([[1, 0]], np.int32), (2, 3), pl.Series(["x", "y"]), BOOKS)
