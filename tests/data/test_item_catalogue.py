"""The item catalogue: rows by hand, and what does not fit is refused."""

import numpy as np
import polars as pl
import pytest
import torch

from recsys.contracts.errors import ArtifactError
from recsys.data.item_catalogue import ItemCatalogue

ITEMS = pl.DataFrame({"author_index": [2, 0], "category_index": [0, 1]})
CODES = np.array([[1, 0, 2], [0, 3, 1]], np.int32)


def test_padding_stands_before_the_items() -> None:
    """Item 0 is row 1: codes 1 0 2, author 2, category not known."""
    found = ItemCatalogue.from_items(ITEMS, CODES)
    assert found.codes_IL.tolist() == [[0, 0, 0], [1, 0, 2], [0, 3, 1]]
    assert found.side_I2.tolist() == [[0, 0], [2, 0], [0, 1]]
    assert found.num_levels == 3
    found.check_fits(2, (2, 4, 3))


def test_refusals() -> None:
    found = ItemCatalogue.from_items(ITEMS, CODES)
    with pytest.raises(ArtifactError, match="2 items in the prepared data, 1 in the semantic IDs; tokenize this"):
        ItemCatalogue.from_items(ITEMS, CODES[:1])
    with pytest.raises(ValueError, match=r"codes have shape \(3, 3\), expected \(4, 3\)"):
        found.check_fits(3, (2, 4, 3))
    with pytest.raises(ValueError, match="item row 2 has code 3 at level 1, expected 0 to 2"):
        found.check_fits(2, (2, 3, 3))
    with pytest.raises(ValueError, match=r"author_I is torch.int64 of shape \(2,\), expected .* 3 rows"):
        ItemCatalogue(found.codes_IL, found.author_I[:2], found.category_I)
    with pytest.raises(ValueError, match=r"category_I is torch.float32 of shape \(3,\)"):
        ItemCatalogue(found.codes_IL, found.author_I, torch.zeros(3))
    with pytest.raises(ValueError, match=r"author_I is torch.int64 of shape \(3, 1\), expected int64 with 1 dimension"):
        ItemCatalogue(found.codes_IL, found.author_I[:, None], found.category_I)
    below = ItemCatalogue.from_items(ITEMS, CODES - np.array([[0, 1, 0]]))
    with pytest.raises(ValueError, match="item row 1 has code -1 at level 1, expected 0 to 3"):
        below.check_fits(2, (2, 4, 3))


def test_a_blank_catalogue_has_the_shapes_of_a_read_one() -> None:
    blank, read = ItemCatalogue.blank(2, 3), ItemCatalogue.from_items(ITEMS, CODES)
    assert blank.codes_IL.shape == read.codes_IL.shape
    assert blank.side_I2.shape == read.side_I2.shape
    assert not blank.codes_IL.any()
    assert not blank.side_I2.any()


def test_shapes_without_numbers_are_compared_as_shapes() -> None:
    """A model made on the meta device, to count its parameters, has no codes to look at."""
    with torch.device("meta"):
        blank = ItemCatalogue.blank(2, 3)
    blank.check_fits(2, (2, 4, 3))
    with pytest.raises(ValueError, match=r"codes have shape \(3, 3\), expected \(3, 2\)"):
        blank.check_fits(2, (2, 4))
