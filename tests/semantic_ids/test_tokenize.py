"""The `tokenize` stage from embeddings to files."""

import json

import numpy as np
import polars as pl
import pytest

from recsys.config import validate
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.manifest import sha256_of_file
from recsys.semantic_ids.config import TokenizeConfig, advised_codebook_size, check_codebook_size
from recsys.semantic_ids.tokenize import tokenize
from recsys.semantic_ids.versions import SemanticIds

FILES = (
    "semantic_ids.parquet",
    "reserved.parquet",
    "codes.npy",
    "codebooks.safetensors",
    "semantic_ids.json",
    "tokenizer_report.json",
)


def catalogue(num_items=200, width=6, seed=0):
    rng = np.random.default_rng(seed)
    ids = pl.Series([f"item-{number}" for number in range(num_items)])
    return rng.standard_normal((num_items, width)).astype(np.float32), ids, rng.integers(0, 50, num_items)


def test_stage_writes_a_version_that_opens(tmp_path):
    x, ids, traffic = catalogue()
    report = tokenize(x, ids, traffic, TokenizeConfig(codebook_size=8), tmp_path, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    loaded = SemanticIds.load(tmp_path)
    assert loaded.digest == report["digest"]
    assert loaded.is_unique
    assert loaded.level_sizes == (8, 8, 8)
    assert json.loads((tmp_path / "tokenizer_report.json").read_text()) == report
    assert report["after_repair"]["unique_share"] == 1.0
    before = report["before_repair"]
    assert report["moved_item_share"] == pytest.approx(1.0 - before["distinct_share"])
    errors = [level["relative_mse"] for level in report["levels"]]
    assert errors == sorted(errors, reverse=True)


def test_same_input_and_seed_give_the_same_bytes(tmp_path):
    x, ids, traffic = catalogue()
    digests = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        tokenize(x, ids, traffic, TokenizeConfig(codebook_size=8), tmp_path / name, seed)
        digests.append([sha256_of_file(tmp_path / name / file) for file in FILES])
    assert digests[0] == digests[1]
    assert digests[0][2] != digests[2][2]


def test_extra_level_and_none(tmp_path):
    """200 items on 3**2 = 9 IDs must collide: an extra level makes them unique, ``none`` leaves them and says so."""
    x, ids, traffic = catalogue()
    sizes = {"num_levels": 2, "codebook_size": 3}
    extra = tokenize(x, ids, traffic, TokenizeConfig(**sizes, unique="extra_level"), tmp_path / "extra", seed=0)
    assert extra["level_sizes"] == [3, 3, extra["before_repair"]["largest_bucket"]]
    assert extra["after_repair"]["unique_share"] == 1.0
    bare = tokenize(x, ids, traffic, TokenizeConfig(**sizes, unique="none"), tmp_path / "none", seed=0)
    assert {key: bare["after_repair"][key] for key in bare["before_repair"]} == bare["before_repair"]
    assert bare["before_repair"]["unique_share"] < 0.1
    assert not SemanticIds.load(tmp_path / "none").is_unique
    assert any("expect many collisions" in warning for warning in bare["warnings"])


def test_a_catalogue_smaller_than_the_codebook_is_refused(tmp_path):
    x, ids, traffic = catalogue(num_items=100)
    message = (
        "100 items, fewer than codebook_size=256 codes per level; set tokenize.codebook_size to at most 100 .advised"
    )
    with pytest.raises(DataError, match=message):
        tokenize(x, ids, traffic, TokenizeConfig(), tmp_path, seed=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("num_items", "levels", "size"), [(10, 3, 4), (10, 1, 10), (100, 3, 8), (3, 2, 2)])
def test_the_advice_for_a_tiny_catalogue_can_be_followed(num_items, levels, size):
    """10 items: 2 codes would leave 8 items per code, but give 2**3 = 8 IDs; 4 codes give 64. 100: 100 // 8 = 12 -> 8."""
    with pytest.raises(DataError, match=rf"at most {num_items} \(advised here: {size}\)"):
        check_codebook_size(num_items, TokenizeConfig(num_levels=levels))
    check_codebook_size(num_items, TokenizeConfig(num_levels=levels, codebook_size=size))


def test_reassign_refuses_fewer_ids_than_items(tmp_path):
    x, ids, traffic = catalogue()
    with pytest.raises(
        DataError, match=r"200 items cannot get distinct IDs out of 3\*\*2 = 9; raise tokenize.num_levels"
    ):
        tokenize(x, ids, traffic, TokenizeConfig(num_levels=2, codebook_size=3), tmp_path, seed=0)


def test_advice_by_hand():
    """12,101 / 256 = 47 items per code and 256**3 IDs: fine. 1,000 / 256 = 3.9 < 8: advice is 1000 // 8 = 125 -> 64."""
    assert check_codebook_size(12_101, TokenizeConfig()) == []
    assert advised_codebook_size(1000) == 64
    (warning,) = check_codebook_size(1000, TokenizeConfig())
    assert warning.startswith("3.9 items per code of level 1")
    assert "tokenize.codebook_size=64" in warning


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": pl.Series(["a", "b"])}, "200 embeddings, 2 item ids and 200 traffic counts"),
        ({"ids": pl.Series(["a"] * 200)}, "hold nulls or repeat"),
        ({"traffic": np.full(200, -1)}, "traffic is -1"),
        ({"x": np.full((200, 6), np.inf, np.float32)}, "item_index 0 holds NaN or infinity"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path, change, message):
    x, ids, traffic = catalogue()
    given = {"x": x, "ids": ids, "traffic": traffic, **change}
    with pytest.raises(DataError, match=message):
        tokenize(given["x"], given["ids"], given["traffic"], TokenizeConfig(codebook_size=8), tmp_path, seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codebok_size": 8}, "did you mean 'codebook_size'"),
        ({"method": "residual_kmeans", "assign": "balanced"}, "have no meaning for method=residual_kmeans"),
        ({"sample_size": 100}, "sample_size=100 is smaller than codebook_size=256"),
        ({"num_levels": 0}, "key 'num_levels' is 0"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        validate(TokenizeConfig, values, "test")


@pytest.mark.parametrize("num_items", [0, 1])
def test_a_catalogue_without_a_choice_is_told_so(num_items):
    """Not "codebook_size at most 1": the smallest there is is 2."""
    with pytest.raises(DataError, match=rf"the catalogue has {num_items} item; .* needs at least 2") as refused:
        check_codebook_size(num_items, TokenizeConfig(codebook_size=2))
    assert "codebook_size" not in str(refused.value)
    assert check_codebook_size(2, TokenizeConfig(codebook_size=2))  # advice, no refusal
