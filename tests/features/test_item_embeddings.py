"""The `embed` stage from prepared data to files."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.embeddings.attributes import AttributesConfig
from features.embeddings.collaborative import CollaborativeConfig
from features.embeddings.config import EmbedConfig
from features.embeddings.fusion import FusionConfig
from features.embeddings.precomputed import PrecomputedConfig
from features.embeddings.text import TextConfig, TextEncoder, text_fingerprint
from features.item_embeddings import embed
from recsys.config import validate
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.contracts.manifest import sha256_of_file
from recsys.runtime import PlainProgress
from recsys.semantic_ids.config import TokenizeConfig
from recsys.semantic_ids.tokenize import tokenize
from tests.toy.builders import item_table

NO_TEXT = TextConfig(model=None)
TRAIN = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]]
CATEGORIES = [["a"], ["a"], ["b"], ["b"], ["a", "b"], None]


def small_config(**changes):
    settings = {"text": NO_TEXT, "collaborative": CollaborativeConfig(dim=3), "attributes": AttributesConfig(dim=2)}
    return EmbedConfig(**{**settings, **changes})


def test_stage_writes_every_source_and_counts_what_is_missing(
    tmp_path, make_history, make_items, make_prepared, tiny_bert
):
    """Item 4 has categories but no events, item 5 nothing at all: it keeps the zero vector and is counted."""
    items = make_items(categories=CATEGORIES, texts=["red shoe", "pan", None, None, None, None])
    prepared = make_prepared(tmp_path / "prepared", make_history(TRAIN), items)
    config = small_config(text=TextConfig(model=str(tiny_bert)), fusion=FusionConfig(dim=None))
    report = embed(prepared, config, tmp_path / "out", 0, PlainProgress())
    arrays = {path.stem: np.load(path) for path in (tmp_path / "out").glob("*.npy")}
    assert {name: array.shape for name, array in arrays.items()} == {
        "text": (6, 8),
        "collaborative": (6, 3),
        "attributes": (6, 2),
        "fused": (6, 13),
    }
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert {name: source["items_without"] for name, source in report["sources"].items()} == {
        "text": 4,
        "collaborative": 2,
        "attributes": 1,
    }
    assert report["items_without_any"] == 1
    assert not arrays["fused"][5].any()
    assert arrays["fused"][4].any()
    assert json.loads((tmp_path / "out" / "embedding_report.json").read_text()) == report


def test_same_input_and_seed_give_the_same_bytes(tmp_path, make_history, make_items, make_prepared):
    prepared = make_prepared(tmp_path / "prepared", make_history(TRAIN), make_items(categories=CATEGORIES))
    digests = []
    for name in ("one", "two"):
        embed(prepared, small_config(), tmp_path / name, 7, PlainProgress())
        digests.append({path.name: sha256_of_file(path) for path in sorted((tmp_path / name).iterdir())})
    assert digests[0] == digests[1]
    assert "fused.npy" in digests[0]


def test_a_source_that_the_data_lack_is_left_out_and_reported(tmp_path, make_history, make_items, make_prepared):
    """No item has a category: attributes are empty, the fused embedding is the collaborative one."""
    prepared = make_prepared(tmp_path / "prepared", make_history(TRAIN), make_items())
    report = embed(prepared, small_config(), tmp_path / "out", 0, PlainProgress())
    assert report["empty_sources"] == ["attributes"]
    assert not report["sources"]["attributes"]["written"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "collaborative.npy",
        "embedding_report.json",
        "fused.npy",
        "rows.parquet",
        "space.json",
        "space.safetensors",
    ]
    assert report["width"] == 3


def test_switched_off_sources_are_not_made(tmp_path, make_history, make_items, make_prepared):
    prepared = make_prepared(tmp_path / "prepared", make_history(TRAIN), make_items(categories=CATEGORIES))
    report = embed(prepared, small_config(collaborative=None), tmp_path / "out", 0, PlainProgress())
    assert sorted(report["sources"]) == ["attributes"]
    assert not (tmp_path / "out" / "collaborative.npy").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"collaborative": None, "attributes": None},
        {"collaborative": None},
        {"fusion": FusionConfig(collaborative=0.0)},
    ],
)
def test_nothing_to_embed_is_refused(tmp_path, make_history, make_items, make_prepared, changes):
    prepared = make_prepared(tmp_path / "prepared", make_history(TRAIN), make_items())
    with pytest.raises(DataError, match=r"none of the sources .* says anything about the 6 items; enable a source"):
        embed(prepared, small_config(**changes), tmp_path / "out", 0, PlainProgress())


def test_an_item_table_out_of_order_is_refused(tmp_path, make_history, make_items, make_prepared):
    items = make_items(categories=CATEGORIES).reverse()
    prepared = make_prepared(tmp_path / "prepared", make_history(TRAIN), items)
    with pytest.raises(ArtifactError, match=r"'item_index is the row number' does not hold in 6 rows.*`prepare` again"):
        embed(prepared, small_config(), tmp_path / "out", 0, PlainProgress())


def test_a_mistyped_key_is_named():
    with pytest.raises(ConfigError, match=r"unknown key 'collaborative.windw' .* did you mean 'window'"):
        validate(EmbedConfig, {"collaborative": {"windw": 3}}, "test")


@pytest.mark.data
@pytest.mark.skipif("RECSYS_DATA" not in os.environ, reason="RECSYS_DATA does not say where the data sets are")
def test_beauty_gets_unique_ids_that_know_what_comes_next(tmp_path, make_history, make_prepared):
    """Real data, without text: at least 90 % of the items are alone on their ID before the repair (a study had 92 %), and a
    user's validation item shares the first code with the last train item ten times as often as chance has it."""
    folder = Path(os.environ["RECSYS_DATA"]) / "amazon14_beauty"
    events = pl.read_parquet(folder / "interactions.parquet").sort("user_id", "position")
    users = (
        (events.with_columns(pl.col("item_id") - 1))
        .group_by("user_id", maintain_order=True)
        .agg("item_id")["item_id"]
        .to_list()
    )
    table = pl.read_parquet(folder / "items.parquet").sort("item_id")
    items = item_table(len(table), item_id=table["item_id"], text=table["short_text"], categories=table["attributes"])
    history = make_history([user[:-2] for user in users], [user[-2:] for user in users])
    prepared = make_prepared(tmp_path / "prepared", history, items)
    report = embed(prepared, EmbedConfig(text=NO_TEXT), tmp_path / "out", 0, PlainProgress())
    assert report["items_without_any"] == 0
    traffic = np.bincount([item for user in users for item in user[:-2]], minlength=len(table))
    fused = np.load(tmp_path / "out" / "fused.npy")
    found = tokenize(fused, table["item_id"], traffic, TokenizeConfig(), tmp_path / "ids", seed=0)
    assert found["before_repair"]["unique_share"] > 0.9
    assert found["after_repair"]["unique_share"] == 1.0
    first_code = np.load(tmp_path / "ids" / "codes.npy")[:, 0]
    last, following = first_code[[user[-3] for user in users]], first_code[[user[-2] for user in users]]
    chance = np.bincount(last, minlength=256) @ np.bincount(following, minlength=256) / len(users) ** 2
    assert (last == following).mean() > 10 * chance


def test_vectors_from_a_file_are_fused_by_their_weight(tmp_path, make_history, make_items, make_prepared):
    """Items 0 and 1 point the same way, 2 and 3 the other: centred and scaled these are +1 and -1, times the weight .5."""
    items = make_items(categories=CATEGORIES)
    prepared = make_prepared(tmp_path / "prepared", make_history(TRAIN), items)
    ids = prepared.items["item_id"]
    frame = pl.DataFrame({"item_id": ids[:4], "vector": [[1.0], [1.0], [3.0], [3.0]]})
    frame.write_parquet(tmp_path / "v.parquet")
    settings = {"path": tmp_path / "v.parquet", "max_missing_share": 0.5}
    config = small_config(
        collaborative=None,
        attributes=None,
        precomputed=PrecomputedConfig(**settings),
        fusion=FusionConfig(dim=None, precomputed=0.5),
    )
    report = embed(prepared, config, tmp_path / "out", 0, PlainProgress())
    assert np.load(tmp_path / "out" / "fused.npy").ravel().tolist() == [-0.5, -0.5, 0.5, 0.5, 0.0, 0.0]
    assert np.load(tmp_path / "out" / "precomputed_given.npy").tolist() == [True] * 4 + [False] * 2
    assert report["precomputed"] == {"rows": 4, "unused_rows": 0, "items_missing": 2, "items_told_from_text": 0}
    assert report["sources"]["precomputed"]["items_without"] == 2


def test_text_tells_vectors_that_are_missing(tmp_path, make_history, make_items, make_prepared, tiny_bert):
    """Item 1 has the text of item 0, and no vector; items 4 and 5 have no text either."""
    items = make_items(categories=CATEGORIES, texts=["red shoe", "red shoe", "pan", "pot", None, None])
    prepared = make_prepared(tmp_path / "prepared", make_history(TRAIN), items)
    ids = prepared.items["item_id"]
    frame = pl.DataFrame({"item_id": ids[[0, 2, 3]], "vector": [[9.0, 1.0], [1.0, 9.0], [1.0, 8.0]]})
    frame.write_parquet(tmp_path / "v.parquet")
    precomputed = PrecomputedConfig(path=tmp_path / "v.parquet", missing="text", max_missing_share=0.5)
    config = small_config(text=TextConfig(model=str(tiny_bert)), precomputed=precomputed)
    report = embed(prepared, config, tmp_path / "out", 0, PlainProgress())
    vectors = np.load(tmp_path / "out" / "precomputed.npy")
    assert vectors[1] @ [1, -1] > vectors[2] @ [1, -1]
    assert not vectors[4:].any()
    assert report["precomputed"]["items_told_from_text"] == 1
    with pytest.raises(ConfigError, match=r"text\.model is null"):
        validate(EmbedConfig, {"text": {"model": None}, "precomputed": {"path": "v.parquet", "missing": "text"}}, "r")


def test_weights_and_words_go_to_the_device(tiny_bert):
    """A device that holds no numbers stands in for a GPU: everything that enters the model must lie there."""
    import torch

    encoder = TextEncoder.load(str(tiny_bert), torch.device("meta"))
    assert {weight.device.type for weight in encoder.model.parameters()} == {"meta"}
    seen = []
    encoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(value.device.type for value in kwargs.values()), with_kwargs=True
    )
    with pytest.raises((NotImplementedError, RuntimeError)):  # its numbers cannot come back
        encoder.encode(["red shoe"], 8)
    assert set(seen) == {"meta"}


@pytest.mark.parametrize(("precision", "close"), [("bfloat16", 0.05), ("float32", 1e-6)])
def test_precision_changes_the_answer_by_rounding_only(tiny_bert, precision, close):
    plain = TextEncoder.load(str(tiny_bert)).encode(["red shoe", "pan"], 8)
    found = TextEncoder.load(str(tiny_bert), precision=precision).encode(["red shoe", "pan"], 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain, atol=close)


def test_an_optional_text_model_that_is_not_there(
    tmp_path, make_history, make_items, make_prepared, tiny_bert, caplog, monkeypatch
):
    """The result is that without text, with a note; the digest differs from that with text; not optional, it is refused."""
    monkeypatch.setattr(logging.getLogger("recsys"), "propagate", True)
    items = make_items(categories=CATEGORIES, texts=["red shoe", "pan", None, None, None, None])
    prepared = make_prepared(tmp_path / "prepared", make_history(TRAIN), items)
    absent = TextConfig(model="no_such_model", optional=True)
    report = embed(prepared, small_config(text=absent), tmp_path / "absent", 0, PlainProgress())
    assert "text model 'no_such_model' is not on this machine" in caplog.text
    assert report["left_out"] == {"text": "model 'no_such_model' is not on this machine"}
    embed(prepared, small_config(), tmp_path / "none", 0, PlainProgress())
    assert sha256_of_file(tmp_path / "absent" / "fused.npy") == sha256_of_file(tmp_path / "none" / "fused.npy")
    assert not (tmp_path / "absent" / "text.npy").exists()
    assert text_fingerprint(absent) == {"embed.text.model": "not on this machine"}
    there = TextConfig(model=str(tiny_bert), optional=True)
    assert text_fingerprint(there) == text_fingerprint(TextConfig(model="no_such_model")) == {}
    report = embed(prepared, small_config(text=there), tmp_path / "there", 0, PlainProgress())
    assert "left_out" not in report
    assert (tmp_path / "there" / "text.npy").exists()
    with pytest.raises(ConfigError, match="neither a folder nor an installed package"):
        embed(prepared, small_config(text=TextConfig(model="no_such_model")), tmp_path / "x", 0, PlainProgress())
    with pytest.raises(ConfigError, match=r"precomputed\.missing is 'text', but text\.optional is true"):
        validate(
            EmbedConfig, {"text": {"optional": True}, "precomputed": {"path": "a.parquet", "missing": "text"}}, "a test"
        )
