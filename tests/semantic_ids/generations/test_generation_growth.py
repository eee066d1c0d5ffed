"""The next version of a generation as `tokenize` writes it, and when the generation is used up."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recsys.config import validate
from recsys.contracts.errors import ArtifactError, CannotGrow, ConfigError, DataError
from recsys.semantic_ids.config import RefitConfig, TokenizeConfig
from recsys.semantic_ids.generations.growth import generation_figures, grow_semantic_ids, refit_reasons
from recsys.semantic_ids.tokenize import tokenize
from recsys.semantic_ids.versions import SemanticIds

CONFIG = TokenizeConfig(codebook_size=8)


def world(count=200, width=6, seed=0):
    rng = np.random.default_rng(seed)
    ids = pl.Series([f"item-{number:03}" for number in range(count)])
    return rng.standard_normal((count, width)).astype(np.float32), ids, rng.integers(0, 50, count)


@pytest.fixture
def founders(tmp_path):
    """150 of 200 items, in a folder."""
    x, ids, traffic = world()
    tokenize(x[:150], ids[:150], traffic[:150], CONFIG, tmp_path / "first", seed=1, space="a space")
    return tmp_path / "first"


def grow(base, rows, out, config=CONFIG, space="a space", shift=0.0):
    x, ids, traffic = world()
    return grow_semantic_ids(base, x[rows] + np.float32(shift), ids.gather(rows), traffic[rows], space, config, out)


def test_the_night_is_told(founders, tmp_path):
    """Of 150 items 10 leave and 20 come; the next night 4 of the 10 are back: 10 - 4 stay reserved."""
    report = grow(founders, np.arange(10, 170)[::-1].copy(), tmp_path / "second")
    assert report["version"] == 1
    assert {name: report["growth"][name] for name in ("known", "new", "returned", "gone", "reserved")} == {
        "known": 140,
        "new": 20,
        "returned": 0,
        "gone": 10,
        "reserved": 10,
    }
    assert json.loads((tmp_path / "second" / "tokenizer_report.json").read_text()) == report
    again = grow(tmp_path / "second", np.arange(6, 170), tmp_path / "third")
    assert (again["growth"]["returned"], again["growth"]["gone"], again["growth"]["reserved"]) == (4, 0, 6)
    assert again["figures"]["fill"] == 170 / 512
    first, last = SemanticIds.load(founders), SemanticIds.load(tmp_path / "third")
    assert last.generation == first.generation == again["generation"]
    assert last.codes[:144].tolist() == first.codes[6:150].tolist()
    last.check_same(first.digest, allow_grown=True)
    assert first.digest in last.warm_digests


def test_a_night_without_change_is_the_same_version(founders, tmp_path):
    report = grow(founders, np.arange(150), tmp_path / "second")
    assert (report["version"], report["growth"]["new"]) == (0, 0)
    assert report["digest"] == SemanticIds.load(founders).digest
    assert report["figures"]["drift"] is None


def test_figures_by_hand():
    """Codebooks 0, 10 and 0, 1. Founders at 0 and 11.5 have errors 0 and .25; the item that came later lies at 10.5 with
    codes (0, 1), 9.5 from its nearest free ID: 90.25 over a founder error of .125 is 722. Three of four IDs are taken, both
    below code 0; 30 of 40 events are on the later item.
    """
    books = (np.array([[0.0], [10.0]], np.float32), np.array([[0.0], [1.0]], np.float32))
    codes = np.array([[0, 0], [1, 1]], np.int32)
    first = SemanticIds(codes, (2, 2), pl.Series(["x", "y"]), books)
    grown = replace(
        first.grown(["x", "y", "z"], np.zeros((3, 1), np.float32)), codes=np.array([[0, 0], [1, 1], [0, 1]], np.int32)
    )
    x = np.array([[0.0], [11.5], [10.5]], np.float32)
    found = generation_figures(grown, x, np.array([8, 2, 30]), 0.125)
    assert found == {
        "fill": 0.75,
        "first_code_fill": 1.0,
        "drift": pytest.approx(722.0),
        "later_item_share": pytest.approx(1 / 3),
        "later_traffic_share": 0.75,
    }
    assert generation_figures(first, x[:2], np.array([0, 0]), 0.125)["later_traffic_share"] == 0.0


def test_drift_tells_items_of_elsewhere_from_items_like_the_founders(founders, tmp_path):
    like = grow(founders, np.arange(200), tmp_path / "like")["figures"]["drift"]
    x, ids, traffic = world()
    x[150:] += 4.0
    elsewhere = grow_semantic_ids(founders, x, ids, traffic, "a space", CONFIG, tmp_path / "far")["figures"]["drift"]
    assert 0.7 < like < 2.0 < 4.0 < elsewhere


def test_every_limit_has_its_sentence():
    figures = {"fill": 0.6, "first_code_fill": 1.0, "drift": 2.75, "later_item_share": 1.0, "later_traffic_share": 0.4}
    reasons = refit_reasons(figures, RefitConfig())
    assert [reason.split()[0] for reason in reasons] == ["fill", "first_code_fill", "drift", "later_traffic_share"]
    assert reasons[2] == (
        "drift is 2.75, tokenize.refit.max_drift allows 2.5: the codes fit later items worse than the founders"
    )
    off = RefitConfig(max_fill=None, max_first_code_fill=None, max_drift=None, max_later_traffic_share=None)
    assert refit_reasons(figures, off) == []
    at_the_limit = RefitConfig(max_fill=0.6, max_first_code_fill=1.0, max_drift=2.75, max_later_traffic_share=0.4)
    assert refit_reasons(figures, at_the_limit) == []
    assert len(refit_reasons({**figures, "drift": None}, RefitConfig(max_fill=1.0))) == 2
    with pytest.raises(ConfigError, match="max_fill"):
        validate(RefitConfig, {"max_fill": 1.5}, "a test")


def test_a_generation_that_is_full_or_does_not_fit_cannot_grow(founders, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CannotGrow, match=r"vectors lie in space another, .* were fitted in a space; let `embed` grow"):
        grow(founders, np.arange(150), out, space="another")
    other = TokenizeConfig(codebook_size=16)
    with pytest.raises(CannotGrow, match=r"tokenize.codebook_size changed \(8 -> 16\), and the codebooks"):
        grow(founders, np.arange(150), out, other)
    free = TokenizeConfig(codebook_size=8, generation="new", refit=RefitConfig(max_fill=0.1))
    assert grow(founders, np.arange(150), out, free)["version"] == 0
    x, ids, traffic = world()
    small = TokenizeConfig(codebook_size=4, num_levels=2)
    tokenize(x[:16], ids[:16], traffic[:16], small, tmp_path / "full", 1, "a space")
    with pytest.raises(CannotGrow, match=r"all 16 IDs .* are taken.*start a new generation"):
        grow_semantic_ids(tmp_path / "full", x[:17], ids[:17], traffic[:17], "a space", small, out)
    with pytest.raises(DataError, match="embeddings have shape"):
        grow_semantic_ids(founders, x[:, :5], ids, traffic, "a space", CONFIG, out)
    tokenize(x, ids, traffic, CONFIG, tmp_path / "bare", 1)
    with pytest.raises(CannotGrow, match="does not say in which vector space"):
        grow(tmp_path / "bare", np.arange(150), out)
    (founders / "tokenizer_report.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer_report\.json' does not exist"):
        grow(founders, np.arange(150), out)


def test_a_new_generation_is_named_after_the_old_one(founders, tmp_path):
    """Fitted on vectors that are turned a little, with 50 more items: named after, more items keep codes than by chance."""
    x, ids, traffic = world()
    rng = np.random.default_rng(3)
    turned = (x + 0.05 * rng.standard_normal(x.shape)).astype(np.float32)
    old = SemanticIds.load(founders)
    plain = tokenize(turned, ids, traffic, CONFIG, tmp_path / "plain", 7, "new space")
    exact = CONFIG.model_copy(update={"keep_within": 0.0})
    named = tokenize(turned, ids, traffic, exact, tmp_path / "named", 7, "new space", old)
    assert named["levels"][-1]["relative_mse"] == pytest.approx(plain["levels"][-1]["relative_mse"], abs=1e-6)
    compared = named["compared_with_before"]
    assert compared["named_after"]
    assert not compared["same_generation"]
    found = {name: SemanticIds.load(tmp_path / name) for name in ("plain", "named")}
    kept = {name: (ids.codes[:150, 0] == old.codes[:, 0]).mean() for name, ids in found.items()}
    assert compared["levels"][0]["up_to"]["items"] == kept["named"]
    assert kept["named"] > 0.45 > 0.3 > kept["plain"]
    assert found["named"].aligned_to == (old.digest,)
    assert found["named"].version == 0
    assert old.digest in found["named"].warm_digests
    with pytest.raises(ArtifactError, match="other semantic IDs"):
        found["named"].check_same(old.digest, allow_grown=True)


def test_items_that_hardly_care_keep_their_codes(founders, tmp_path):
    """More keep their first code the more an item may give for it; the error grows by no more than that share."""
    x, ids, traffic = world()
    turned = (x + 0.05 * np.random.default_rng(3).standard_normal(x.shape)).astype(np.float32)
    old, kept, errors = SemanticIds.load(founders), [], []
    for share in (0.0, 0.1, 0.5):
        config = CONFIG.model_copy(update={"keep_within": share})
        report = tokenize(turned, ids, traffic, config, tmp_path / f"{share}", 7, "new space", old)
        kept.append(report["compared_with_before"]["levels"][0]["up_to"]["items"])
        errors.append(report["levels"][0]["relative_mse"])
        assert report["after_repair"]["unique_share"] == 1.0
    assert kept[0] < kept[1] < kept[2]
    assert errors[0] <= errors[1] <= 1.1 * errors[0]
    assert errors[2] <= 1.5 * errors[0]
    balanced = TokenizeConfig(codebook_size=8, assign="balanced", keep_within=0.5)
    report = tokenize(turned, ids, traffic, balanced, tmp_path / "balanced", 7, "new space", old)
    assert report["levels"][0]["cluster_sizes"]["smallest"] == 25


def test_a_generation_of_another_shape_has_no_names_to_take(founders, tmp_path):
    x, ids, traffic = world()
    report = tokenize(
        x, ids, traffic, TokenizeConfig(codebook_size=16), tmp_path / "out", 1, "b", SemanticIds.load(founders)
    )
    assert report["named_after"] is None
    assert SemanticIds.load(tmp_path / "out").aligned_to == ()
