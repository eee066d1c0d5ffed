"""The prefix index: a hand-worked tree, completeness, size, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.contracts.errors import ArtifactError, DataError
from recsys.decoding import search_index
from recsys.decoding.prefix_index import Pointers, PrefixIndex
from recsys.decoding.search_index import SearchIndex


def test_tree_by_hand() -> None:
    """Items (0,1) (3,0) (0,2): roots 0 and 3; children of 0 are 1 and 2, of 3 is 0; leaves are items 0, 2, 1."""
    index = PrefixIndex.build(np.array([[0, 1], [3, 0], [0, 2]]), (4, 3))
    assert [c.tolist() for c in index.codes] == [[0, 3], [1, 2, 0]]
    assert [p.full().tolist() for p in index.first_child] == [[0, 2, 3]]
    assert index.leaf_item.tolist() == [0, 2, 1]
    assert index.max_children == (2, 2)
    assert [c.tolist() for c in index.leaf_counts(np.array([True, True, False]))] == [[2, 0], [1, 1, 0]]


@settings(max_examples=40, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=60))
def test_walking_the_tree_gives_every_item_once(codes: set[tuple[int, int, int]]) -> None:
    ordered = np.array(sorted(codes, key=lambda c: hash(c)))
    index = PrefixIndex.build(ordered, (4, 3, 5))
    found = {}
    children = [pointers.full() for pointers in index.first_child]
    for a in range(len(index.codes[0])):
        for b in range(*children[0][a : a + 2].tolist()):
            for c in range(*children[1][b : b + 2].tolist()):
                path = (index.codes[0][a], index.codes[1][b], index.codes[2][c])
                found[int(index.leaf_item[c])] = tuple(int(x) for x in path)
    assert found == {i: tuple(row) for i, row in enumerate(ordered.tolist())}


def test_size_and_round_trip(tmp_path) -> None:
    generator = np.random.default_rng(0)
    codes = np.unique(generator.integers(0, 256, (20_000, 3)), axis=0)
    index = PrefixIndex.build(codes, (256, 256, 256))
    index.save(tmp_path)
    again = PrefixIndex.open(tmp_path)
    assert np.array_equal(again.leaf_item, index.leaf_item)
    assert isinstance(again.leaf_item, np.memmap)
    dense = PrefixIndex.build(np.stack(np.unravel_index(np.arange(64**3), (64, 64, 64)), 1), (64, 64, 64))
    assert dense.num_bytes / dense.num_items < 5.1  # a full tree costs its leaves: 1 byte of code, 4 of item number
    sparse = np.unique(generator.integers(0, 256, (20_000, 4)), axis=0)  # hardly any prefix is shared
    assert PrefixIndex.build(sparse, (256,) * 4).num_bytes / len(sparse) < 10
    wide = PrefixIndex.build(np.unique(generator.integers(0, 8192, (20_000, 3)), axis=0), (8192,) * 3)
    assert wide.num_bytes / wide.num_items < 12
    (tmp_path / "leaf_item.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ArtifactError, match="cannot be opened"):
        PrefixIndex.open(tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=80))
def test_packed_pointers_unpack(counts: list[int]) -> None:
    pointers = np.concatenate([[0], np.cumsum(counts)])
    packed = Pointers.pack(pointers)
    assert np.array_equal(packed.full(), pointers)
    assert packed.offset.dtype == (np.uint8 if (packed.offset < 256).all() else np.uint16)


def test_refusals() -> None:
    with pytest.raises(DataError, match="share their codes"):
        PrefixIndex.build(np.array([[0, 1], [0, 1]]), (2, 2))
    with pytest.raises(DataError, match="has code 5 at level 1"):
        PrefixIndex.build(np.array([[0, 5]]), (2, 2))
    with pytest.raises(DataError, match="no items"):
        PrefixIndex.build(np.empty((0, 2), int), (2, 2))


@pytest.mark.parametrize(
    ("size", "dtype"), [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (70_000, np.uint32)]
)
def test_codes_are_kept_in_a_type_that_holds_them(size: int, dtype: type[np.unsignedinteger]) -> None:
    """The last code of a level comes back as it went in, from the packed array and from a search's tables."""
    codes = np.array([[0, size - 1], [1, 0], [1, size - 1]])
    index = PrefixIndex.build(codes, (2, size))
    assert index.codes[1].dtype == dtype
    search = SearchIndex.from_index(index)
    node = torch.arange(2)[None]
    child, exists = search.children(node, 1)
    assert search.child_codes(node, child, 1)[exists].tolist() == [size - 1, 0, size - 1]
    assert search.codes[1][torch.arange(3)].tolist() == [size - 1, 0, size - 1]


@pytest.mark.parametrize("table_bytes", [0, 4 << 20])
def test_child_codes_do_not_depend_on_whether_a_level_has_a_table(table_bytes: int, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Items (0,1) (0,2) (3,0): from a table of a level's codes, and one by one where that table would be large."""
    monkeypatch.setattr(search_index, "DENSE_BYTES", table_bytes)
    search = SearchIndex.from_index(PrefixIndex.build(np.array([[0, 1], [0, 2], [3, 0]]), (4, 3)))
    root, node = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[0, 1]])
    child, exists = search.children(root, 0)
    assert search.child_codes(root, child, 0)[exists].tolist() == [0, 3]
    child, exists = search.children(node, 1)
    assert search.child_codes(node, child, 1)[exists].tolist() == [1, 2, 0]
