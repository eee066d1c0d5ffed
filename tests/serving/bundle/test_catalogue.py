"""Outside ids and the model's indices: by hand, there and back, and ids of another type."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.errors import ArtifactError, DataError
from serving.bundle.catalogue import Catalogue, index_of, read_catalogue
from serving.bundle.layout import read_info


@pytest.fixture(scope="module")
def catalogue(bundle: Path) -> Catalogue:
    return read_catalogue(bundle, read_info(bundle))


def test_look_ups_by_hand(catalogue: Catalogue, caplog: pytest.LogCaptureFixture) -> None:
    """Item ids are 100 + 7 * index: 114 is 2, 100 is 0, 101 is none. User u3 has index 3, nobody has met "ada"."""
    ids = pl.Series([114, 101, None, 100])
    assert catalogue.item_index(ids, "items").tolist() == [2, -1, -1, 0]
    assert "not in the model's catalogue" not in caplog.text
    assert catalogue.mask(ids, "the list").tolist() == [True, False, True] + [False] * 9
    assert "the list: 2 of 4 listed items are not in the model's catalogue" in caplog.text
    assert catalogue.user_index(pl.Series(["u3", "ada"])).tolist() == [3, -1]
    assert dataclasses.replace(catalogue, user_ids=None).user_index(pl.Series(["u3"])).tolist() == [-1]


def test_every_index_is_found_by_its_own_id(catalogue: Catalogue) -> None:
    backwards = catalogue.item_ids.reverse()
    assert catalogue.item_index(backwards, "items").tolist() == list(range(len(backwards)))[::-1]
    assert catalogue.mask(backwards).all()


def test_unseen_users_get_rows_behind_the_known_ones(catalogue: Catalogue) -> None:
    """Five users, then 16 rows: "ada" hashes to number 5 of them, so row 10; "7" to number 7, so row 12."""
    with_rows = dataclasses.replace(catalogue, unseen_user_rows=16)
    assert with_rows.user_index(pl.Series(["u3", "ada", "7"])).tolist() == [3, 10, 12]


def test_nothing_but_nulls_is_nothing_known(catalogue: Catalogue) -> None:
    """A column of nulls has no type that could be compared with the model's."""
    assert catalogue.item_index(pl.Series([None, None]), "items").tolist() == [-1, -1]


def test_users_are_read_where_the_policy_looks_them_up(bundle: Path, tmp_path: Path) -> None:
    """A bundle of a policy that knows no users needs no table of them."""
    info = read_info(bundle)
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "users.parquet").unlink()
    without = read_catalogue(tmp_path / "bundle", info.model_copy(update={"uses_users": False}))
    assert without.user_ids is None
    with pytest.raises(ArtifactError, match=r"users\.parquet' cannot be read"):
        read_catalogue(tmp_path / "bundle", info)


def test_items_of_another_number_are_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    pl.read_parquet(bundle / "items.parquet").head(11).write_parquet(tmp_path / "bundle" / "items.parquet")
    with pytest.raises(ArtifactError, match="it has 11 rows, expected 12; export the model again"):
        read_catalogue(tmp_path / "bundle", read_info(bundle))


def test_refusals(catalogue: Catalogue, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="items hold String, the model's ids are Int64"):
        catalogue.item_index(pl.Series(["100"]), "items")
    info = read_info(bundle)
    with pytest.raises(ArtifactError):
        read_catalogue(tmp_path, info)


@pytest.mark.parametrize("apart", [1, 3, 1000])
def test_integer_ids_are_found_by_table_and_by_join_alike(apart: int) -> None:
    """Ids close together are looked up in a table, others joined; the answer is that of a dictionary."""
    generator = np.random.default_rng(apart)
    ids = (generator.permutation(500) * apart - 700).tolist()
    ends = [None, -(2**63), 2**63 - 1, -701, -699, min(ids) - 1, max(ids), max(ids) + 1]
    values = [*generator.integers(-900, 500 * apart, 3000).tolist(), *ends]
    place = {each: number for number, each in enumerate(ids)}
    expected = [place.get(value, -1) for value in values]
    for kind in (pl.Int64, pl.Int32):
        assert index_of(pl.Series(values, dtype=pl.Int64), pl.Series(ids, dtype=kind), "ids").tolist() == expected
    assert index_of(pl.Series([3], dtype=pl.Int64), pl.Series([], dtype=pl.Int64), "ids").tolist() == [-1]
