"""Item vectors from a file: every form they come in, how ids are matched, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from features.embeddings.precomputed import PrecomputedConfig, TextRidge, fingerprint, precomputed_embedding
from recsys.contracts.errors import DataError

VECTORS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
CATALOGUE = pl.Series([30, 10, 20])
"""Items in the order of the catalogue; the files hold 10, 20, 30."""

EXPECTED = VECTORS[[2, 0, 1]]


def read(path: Path, catalogue: pl.Series = CATALOGUE, **settings: object) -> np.ndarray:
    return precomputed_embedding(catalogue, PrecomputedConfig(path=path, **settings))[0]  # type: ignore[arg-type]


def table(folder: Path, ids: object = (10, 20, 30), vectors: object = None, **columns: object) -> Path:
    values = VECTORS.tolist() if vectors is None else vectors
    pl.DataFrame({"item_id": ids, "vector": values, **columns}).write_parquet(folder / "v.parquet")
    return folder / "v.parquet"


def arrow(folder: Path, column: pa.Array) -> Path:
    pq.write_table(pa.table({"item_id": pa.array([10, 20, 30]), "vector": column}), folder / "v.parquet")
    return folder / "v.parquet"


FLAT = VECTORS.ravel().tolist()
FORMS = {
    "list": lambda folder: table(folder),
    "fixed size": lambda folder: arrow(folder, pa.FixedSizeListArray.from_arrays(pa.array(FLAT, pa.float32()), 2)),
    "float64": lambda folder: arrow(folder, pa.array(VECTORS.tolist(), pa.list_(pa.float64()))),
    "float16": lambda folder: arrow(folder, pa.FixedSizeListArray.from_arrays(pa.array(np.array(FLAT, np.float16)), 2)),
    "large list": lambda folder: arrow(folder, pa.array(VECTORS.tolist(), pa.large_list(pa.float32()))),
    "int8": lambda folder: arrow(folder, pa.array(VECTORS.astype(int).tolist(), pa.list_(pa.int8()))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_parquet_vector(tmp_path: Path, form: str) -> None:
    found = read(FORMS[form](tmp_path))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, EXPECTED)


@pytest.mark.parametrize("names", [("vector_0", "vector_1"), ("vector1", "vector2"), ("vector.00", "vector.01")])
def test_numbered_columns_in_the_order_of_their_numbers(tmp_path: Path, names: tuple[str, str]) -> None:
    frame = pl.DataFrame({names[1]: VECTORS[:, 1], "item_id": [10, 20, 30], names[0]: VECTORS[:, 0], "vectors": 1})
    frame.write_parquet(tmp_path / "v.parquet")
    np.testing.assert_array_equal(read(tmp_path / "v.parquet"), EXPECTED)


def test_eleven_numbered_columns_are_not_sorted_as_text(tmp_path: Path) -> None:
    frame = pl.DataFrame({f"vector_{n}": [float(n + 1)] for n in reversed(range(11))}).with_columns(item_id=pl.lit("a"))
    frame.write_parquet(tmp_path / "v.parquet")
    assert read(tmp_path / "v.parquet", pl.Series(["a"])).tolist() == [[float(n + 1) for n in range(11)]]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int8])
@pytest.mark.parametrize("ids", ["ids.txt", "ids.npy"])
def test_npy_with_ids_beside_it(tmp_path: Path, kind: type, ids: str) -> None:
    np.save(tmp_path / "v.npy", VECTORS.astype(kind))
    np.save(tmp_path / "ids.npy", np.array([10, 20, 30]))
    (tmp_path / "ids.txt").write_text("﻿10\n20 \n30\n", encoding="utf-8")
    np.testing.assert_array_equal(read(tmp_path / "v.npy", ids=tmp_path / ids), EXPECTED)


def test_ids_are_compared_as_the_catalogue_has_them(tmp_path: Path) -> None:
    """ "007" and 7 are one item in no catalogue: text stays text, and only "7" is the integer 7."""
    texts = table(tmp_path, ["007", "7", "x"])
    assert read(texts, pl.Series(["7", "x", "007"])).tolist() == [[3, 4], [5, 6], [1, 2]]
    assert read(texts, pl.Series([7])).tolist() == [[3, 4]]
    numbers = table(tmp_path, [7, 8, 9])
    assert read(numbers, pl.Series(["9", "7"])).tolist() == [[5, 6], [1, 2]]
    for ids in ([7.0, 8.0, 9.0], [True, False, None]):
        for catalogue in (pl.Series([7]), pl.Series(["7"])):
            with pytest.raises(DataError, match=r"ids are (Float64|Boolean), the catalogue's are"):
                read(table(tmp_path, ids), catalogue)


def test_items_without_a_vector_are_counted_or_refused(tmp_path: Path) -> None:
    """Of four items one is missing and one row belongs to none: 25 % is more than the 5 % allowed."""
    catalogue = pl.Series([30, 99, 10])
    path = table(tmp_path)
    with pytest.raises(DataError, match=r"1 of 3 items have no vector \(99, …; 3 rows in the file, 2 of them match\)"):
        read(path, catalogue)
    found, counts = precomputed_embedding(catalogue, PrecomputedConfig(path=path, max_missing_share=0.4))
    assert found.tolist() == [[5, 6], [0, 0], [1, 2]]
    assert counts == {"rows": 3, "unused_rows": 1, "items_missing": 1}
    nulls = table(tmp_path, vectors=[[1.0, 2.0], None, [5.0, 6.0]])
    assert read(nulls, max_missing_share=0.5).tolist() == [[5, 6], [1, 2], [0, 0]]


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (
            [[1.0, 2.0], [float("nan"), 1.0], [1.0, 1.0]],
            "vector of item 20 holds NaN, null, an infinity, .* as do 1 in all",
        ),
        ([[1.0, 2.0], [float("inf"), 1.0], [1.0, 1.0]], "vector of item 20 holds NaN"),
        ([[1.0, 2.0], [1.0, None], [1.0, 1.0]], "vector of item 20 holds NaN, null"),
        ([[1.0, 2.0], [1e300, 1.0], [1.0, 1.0]], "what float32 cannot hold"),
        ([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], "vector of item 30 is all zeros, which says nothing, as do 2 in all"),
        ([[1.0, 2.0], [3.0, 4.0, 5.0], [1.0, 1.0]], "vector of item 20 has 3 numbers, others have 2"),
        ([[1.0, 2.0], [], [1.0, 1.0]], "vector of item 20 has 0 numbers, others have 2"),
        ([["a"], ["b"], ["c"]], r"column 'vector' is List\(String\), expected a list or an array of numbers"),
        (["1,2", "3,4", "5,6"], "column 'vector' is String"),
    ],
)
def test_vectors_that_say_nothing_are_named(tmp_path: Path, vectors: list, words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        read(table(tmp_path, vectors=vectors))
    assert refused.value.exit_code == 3


def test_an_item_with_two_vectors_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"item 10 has 2 vectors \(rows 0 and 2, counted from 0\), and 1 items"):
        read(table(tmp_path, [10, 20, 10]))


def test_files_that_are_no_vectors(tmp_path: Path) -> None:
    (tmp_path / "v.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "v.parquet")
    path = table(tmp_path)
    with pytest.raises(DataError, match="no column 'sku' of item ids"):
        read(path, id_column="sku")
    with pytest.raises(DataError, match=r"neither a column 'emb' .* nor numbered ones"):
        read(path, vector_column="emb")
    pl.DataFrame({"item_id": [1], "vector_0": [1.0], "vector_2": [1.0]}).write_parquet(path)
    with pytest.raises(DataError, match="number 1 is missing"):
        read(path)
    (tmp_path / "ids.txt").write_text("10\n20\n")
    config = {"path": tmp_path / "v.npy", "ids": tmp_path / "ids.txt"}
    for array, words in (
        (VECTORS, r"has 3 rows, '.*' has 2 ids"),
        (VECTORS[0], r"of shape \(2,\), expected numbers \[rows, width\]"),
        (np.array([["a"]]), "expected numbers"),
        (np.array([{}], dtype=object), "cannot be read"),
    ):
        np.save(tmp_path / "v.npy", array)
        with pytest.raises(DataError, match=words):
            precomputed_embedding(CATALOGUE, PrecomputedConfig(**config))
    with pytest.raises(DataError, match="is no file; name the file of item vectors"):
        fingerprint(PrecomputedConfig(path=tmp_path / "gone.parquet"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "v.csv"}, "ends in neither .parquet nor .npy"),
        ({"path": "v.npy"}, "ids is the file of row ids beside a .npy"),
        ({"path": "v.parquet", "ids": "ids.txt"}, "for a .npy only"),
        ({"path": "v.npy", "ids": "ids.csv"}, "neither .txt"),
    ],
)
def test_settings_that_do_not_fit(settings: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PrecomputedConfig(**settings)


def test_a_changed_file_is_noticed_and_a_moved_one_is_not(tmp_path: Path) -> None:
    before = fingerprint(PrecomputedConfig(path=table(tmp_path)))
    (tmp_path / "b").mkdir()
    moved = (tmp_path / "v.parquet").rename(tmp_path / "b" / "w.parquet")
    assert fingerprint(PrecomputedConfig(path=moved)) == before
    assert fingerprint(PrecomputedConfig(path=table(tmp_path, [10, 20, 31]))) != before
    assert fingerprint(None) == {}


def test_missing_vectors_are_told_from_texts_along_the_line_of_the_others() -> None:
    """y = 2x on a thousand items at x = -1 and 1: the slope is 2 * 1000 / (1000 + 1), so that x = .5 gives .999."""
    x = np.tile([-1.0, 1.0], 500)
    text = np.append(x, [0.5, 0.0]).astype(np.float32)[:, None]
    vectors = np.append(2 * x, [0.0, 0.0]).astype(np.float32)[:, None]
    has = np.append(np.ones(1000, bool), [False, False])
    ridge = TextRidge.fit(vectors, has, text)
    found = ridge.fill(vectors, has, text)
    assert found[1000, 0] == pytest.approx(0.5 * 2 * 1000 / 1001)
    assert found[1001, 0] == 0.0  # no text either
    np.testing.assert_array_equal(found[:1000], vectors[:1000])
    assert TextRidge.fit(vectors, ~has, text * has[:, None]) is None
