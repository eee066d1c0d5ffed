"""Counts of the summary by hand."""

from recsys.model.config import ModelConfig
from recsys.model.preset_costs import shape_only
from recsys.model.summary import summarise
from tests.toy.builders import beauty_sized


def test_decoding_flops_by_hand() -> None:
    """Tiny, D = 64, two layers, 50 events and the user: S = 51; FFN 128 in the encoder, 2 experts of 128 of 4, 3 levels.

    Encoder: 2 * 51 * (4 * 64^2 + 3 * 64 * 128 + 2 * 64 * 51) = 4,843,776; keys and values: 51 * 4 * 64^2 = 835,584.
    A token that attends to p positions of its own: 2 * (6 * 64^2 + 2 * 3 * 64 * 128 + 4 * 64 + 2 * 64 * 51 + 2 * 64 * p) =
    161,024 + 256 p; the head of a level: 64 * 256 = 16,384. BOS is fed once, then two levels of 50 beams; each meets one
    head. FLOPs are twice the products.
    """
    sizes = summarise(shape_only(ModelConfig(preset="tiny"), beauty_sized()), beam_width=50)
    assert round(sizes.encode_mflops_per_user * 1e6) == 2 * (4_843_776 + 835_584)
    tokens = [161_024 + 256 * position + 16_384 for position in (1, 2, 3)]
    assert round(sizes.decoder_mflops_per_user * 1e6) == 2 * (tokens[0] + 50 * tokens[1] + 50 * tokens[2])
    assert sizes.decode_mflops_per_user == sizes.encode_mflops_per_user + sizes.decoder_mflops_per_user
    assert sizes.key_value_bytes_per_user == 51 * 2 * 2 * 64 * 4


def test_training_flops_follow_the_form_that_a_model_trains_in() -> None:
    """51 prefixes share one encoding, so each pays a 51st of it; a pair pays for all of it."""
    causal = summarise(shape_only(ModelConfig(preset="tiny"), beauty_sized()))
    pairs = summarise(shape_only(ModelConfig(preset="tiny", encoder_attention="bidirectional"), beauty_sized()))
    encode = 3 * causal.encode_mflops_per_user
    assert round(pairs.train_mflops_per_target - causal.train_mflops_per_target, 6) == round(encode * 50 / 51, 6)
