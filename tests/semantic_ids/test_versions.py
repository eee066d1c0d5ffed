"""Versions: what is written is what is read, damage is noticed, and published IDs never move."""

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
    assert table.columns == ["item_index", "item_id", "codes", "sid"]
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


@pytest.mark.parametrize("name", ["semantic_ids.parquet", "codes.npy", "codebooks.safetensors", "semantic_ids.json"])
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


def test_append_by_hand():
    """New items at 0.2 and 0.3 want (0, 0), which is taken, then (0, 1), taken as well: the first gets (0, 2).

    Prefix 0 is then full, so the second goes under prefix 1, residual -99.7, nearest last code 0: (1, 0).
    """
    grown = small().append(["n1", "n2"], np.array([[0.2], [0.3]], np.float32))
    assert grown.codes.tolist() == [[0, 0], [0, 1], [1, 2], [0, 2], [1, 0]]
    assert grown.item_ids.to_list() == ["x", "y", "z", "n1", "n2"]
    assert grown.is_unique


def test_published_ids_never_move_and_ancestors_are_provable(tmp_path):
    rng = np.random.default_rng(0)
    books = tuple(rng.standard_normal((8, 3)).astype(np.float32) for _ in range(3))
    first = SemanticIds(np.array([[0, 0, 0]], np.int32), (8, 8, 8), pl.Series([1]), books)
    second = first.append(list(range(2, 60)), rng.standard_normal((58, 3)).astype(np.float32))
    third = second.append(pl.Series([99]), rng.standard_normal((1, 3)).astype(np.float32))
    assert third.codes[:1].tolist() == first.codes.tolist()
    assert third.codes[:59].tolist() == second.codes.tolist()
    assert third.is_unique
    assert third.ancestors == ((1, first.digest), (59, second.digest))
    third.check_same(first.digest, allow_grown=True)
    with pytest.raises(ArtifactError, match="other semantic IDs"):
        third.check_same(first.digest)
    third.save(tmp_path)
    assert SemanticIds.load(tmp_path).ancestors == third.ancestors
    head = json.loads((tmp_path / "semantic_ids.json").read_text())
    head["ancestors"][0]["num_items"] = 2
    (tmp_path / "semantic_ids.json").write_text(json.dumps(head))
    with pytest.raises(ArtifactError, match="the first 2 items are not those of ancestor"):
        SemanticIds.load(tmp_path)


def test_append_with_an_extra_level_counts_on():
    """Level sizes (2, 3, 2): (0, 0) holds number 0; a new item at 0 gets 1; the next finds it full, goes to (0, 1)."""
    ids = SemanticIds(np.array([[0, 0, 0]], np.int32), (2, 3, 2), pl.Series(["x"]), BOOKS)
    grown = ids.append(["p", "q"], np.zeros((2, 1), np.float32))
    assert grown.codes.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_append_of_nothing_changes_nothing():
    ids = small()
    assert ids.append([], np.empty((0, 1), np.float32)).digest == ids.digest


@pytest.mark.parametrize(
    ("new_ids", "embeddings", "message"),
    [
        (["y"], [[0.0]], "item_id 'y' has an ID already"),
        (["n", "n"], [[0.0], [1.0]], "item_id 'n' has an ID already or is given twice"),
        (["n"], [[0.0, 1.0]], r"shape \(1, 2\), expected \[1, 1\]"),
        (["n"], [[float("nan")]], "NaN"),
        ([7], [[0.0]], "new item ids are Int64"),
        ([None], [[0.0]], "1 nulls"),
    ],
)
def test_append_refuses(new_ids, embeddings, message):
    with pytest.raises(DataError, match=message):
        small().append(new_ids, np.array(embeddings, np.float32))


def test_codes_outside_of_their_level_are_refused():
    with pytest.raises(ValueError, match=r"outside of level sizes \(2, 3\)"):
        SemanticIds(np.array([[2, 0]], np.int32), (2, 3), pl.Series(["x"]), BOOKS)
    with pytest.raises(ValueError, match=r"expected \[2 items, 2 levels\]"):
        SemanticIds(np.array([[1, 0]], np.int32), (2, 3), pl.Series(["x", "y"]), BOOKS)
