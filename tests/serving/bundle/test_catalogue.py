"""Outside ids and the model's indices: by hand, there and back, and ids of another type."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from recsys.contracts.errors import ArtifactError, DataError
from serving.bundle.catalogue import Catalogue, read_catalogue
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


def test_refusals(catalogue: Catalogue, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="items hold String, the model's ids are Int64"):
        catalogue.item_index(pl.Series(["100"]), "items")
    info = read_info(bundle)
    with pytest.raises(ArtifactError):
        read_catalogue(tmp_path, info)
