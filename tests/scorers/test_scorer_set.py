"""The set of scorers: sums by hand, what is left out, what is refused at load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.scorers.config import EASEScorerConfig, ScorersConfig, TransitionsConfig
from recsys.scorers.scorer_set import ScorerSet
from tests.toy.histories import histories_of, prepared_of

PLAIN = TransitionsConfig(max_gap=1, row_power=0.0, history_decay=0.5, floor=1.0)
USERS = [[0, 1, 2, 9, 9], [0, 1, 9, 9], [1, 0, 9, 9]]
"""Train events 0 1 2, 0 1, 1 0; transitions 0->1 twice, 1->2 once, 1->0 once."""


def fit(names: list[str], **changes: object) -> ScorerSet:
    config = ScorersConfig(names=names, transitions=PLAIN, preceding=PLAIN, **changes)  # type: ignore[arg-type]
    return ScorerSet.fit(prepared_of(USERS, 10), config, {}, catalogue="toy")


def test_transitions_by_hand() -> None:
    """History 0 1, decay 1/2: item 2 gets 1 (1->2), item 0 gets 1 (1->0), item 1 gets 1/2 * 2 (0->1), so all log(1 + 1)."""
    scores = fit(["transitions"]).scores(histories_of([[0, 1], [0]]))
    np.testing.assert_allclose(scores[0, 0, :4], np.log([2.0, 2.0, 2.0, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(scores[0, 1, :4], np.log([1.0, 3.0, 1.0, 1.0]), rtol=1e-6)


def test_preceding_looks_backwards() -> None:
    """Before 1 came 0, twice; before 2 came 1, once: history 2 1 gives item 0 its 2, item 1 half of 1."""
    scores = fit(["preceding"]).scores(histories_of([[2, 1]]))
    np.testing.assert_allclose(scores[0, 0, :3], np.log1p([2.0, 0.5, 0.0]), rtol=1e-6)


def test_a_sum_is_the_weighted_sum_of_the_scores() -> None:
    scorers = fit(["transitions", "popularity", "item_knn"])
    histories = histories_of([[0, 1], [2], []])
    out = np.full((3, 10), 7.0, np.float32)
    scorers.add_fused(histories, {"popularity": 0.5, "transitions": 2.0, "item_knn": 0.0}, out)
    parts = scorers.scores(histories)
    np.testing.assert_allclose(out, 7.0 + 2.0 * parts[0] + 0.5 * parts[1], atol=1e-5)
    items = np.array([[1, -1], [0, 2], [9, 1]])
    at = scorers.scores_at(histories, items)
    assert at.shape == (3, 2, 3)
    np.testing.assert_allclose(at[1, 1], parts[:, 1, 2], atol=1e-6)
    assert at[0, 1].tolist() == [0.0, 0.0, 0.0]


def test_lists_are_cut_to_the_largest_neighbours() -> None:
    """After 1 come 2 and 0 alike; one neighbour is kept, the lower item."""
    scores = fit(["transitions"], num_neighbours=1).scores(histories_of([[1]]))
    assert np.flatnonzero(scores[0, 0]).tolist() == [0]


def test_what_cannot_be_had_is_left_out_with_a_note() -> None:
    scorers = fit(["ease", "similar", "similar_text", "popularity"], ease=EASEScorerConfig(max_items=9))
    assert scorers.names == ("popularity",)
    assert [note.split(":")[0] for note in scorers.notes] == [
        "ease is left out",
        "similar is left out",
        "similar_text is left out",
    ]
    assert "10 items, scorers.ease.max_items allows 9" in scorers.notes[0]
    with pytest.raises(ConfigError, match=r"no scorer 'ease' here.*max_items allows 9"):
        scorers.add_fused(histories_of([[1]]), {"ease": 1.0}, np.zeros((1, 10), np.float32))


def test_ease_without_an_inverse_is_left_out_with_a_note() -> None:
    """Four users have items 0 and 1 and nothing else: 4 - 4 * 4 / 4 is no pivot, and a ranker needs no EASE."""
    config = ScorersConfig(names=("ease", "popularity"), ease=EASEScorerConfig(regularisation=1e-9))
    scorers = ScorerSet.fit(prepared_of([[0, 1, 9, 9]] * 4, 10), config, {}, catalogue="toy")
    assert scorers.names == ("popularity",)
    assert "ease is left out: EASE: X^T X + 1e-09 I is singular in float32" in scorers.notes[0]


def test_validation_events_count_only_when_asked_for() -> None:
    prepared = prepared_of([[0, 1, 2, 9]], 10)
    config = ScorersConfig(names=("transitions",), transitions=PLAIN)
    histories = histories_of([[1]])
    assert ScorerSet.fit(prepared, config, {}, catalogue="").scores(histories)[0, 0, 2] == 0.0
    assert ScorerSet.fit(prepared, config, {}, "valid", catalogue="").scores(histories)[0, 0, 2] > 0.0


def test_refuses_vectors_of_another_catalogue() -> None:
    with pytest.raises(DataError, match=r"fused vectors have shape \(9, 3\).*10 items"):
        ScorerSet.fit(
            prepared_of(USERS, 10),
            ScorersConfig(names=("similar",)),
            {"fused": np.ones((9, 3), np.float32)},
            catalogue="",
        )
    with pytest.raises(ValidationError, match="name a scorer twice"):
        ScorersConfig(names=("ease", "ease"))


def test_refuses_files_of_another_catalogue_and_damaged_ones(tmp_path: Path) -> None:
    fit(["transitions", "popularity"]).save(tmp_path)
    with pytest.raises(ArtifactError, match=r"are of catalogue toy .*expected other"):
        ScorerSet.load(tmp_path, catalogue="other")

    arrays = load_file(tmp_path / "scorers.safetensors")
    beyond = {**arrays, "transitions/indices": arrays["transitions/indices"] + 9}
    for damaged in (beyond, {**arrays, "popularity/shares": np.ones(3, np.float32)}, {}):
        save_file(damaged, tmp_path / "scorers.safetensors")
        with pytest.raises(ArtifactError, match=r"cannot be read.*fit the scorers again"):
            ScorerSet.load(tmp_path)
    save_file(arrays, tmp_path / "scorers.safetensors")
    head = json.loads((tmp_path / "scorers.json").read_text())
    for change in ({"form": "Unknown"}, {"scale": "square"}, {"history_decay": None}):
        changed = {**head, "scorers": [{**head["scorers"][0], **change}]}
        (tmp_path / "scorers.json").write_text(json.dumps(changed))
        with pytest.raises(ArtifactError, match="transitions"):
            ScorerSet.load(tmp_path)
    (tmp_path / "scorers.safetensors").write_bytes(b"cut off")
    with pytest.raises(ArtifactError, match="cannot be read"):
        ScorerSet.load(tmp_path)


def test_scorers_that_differ_in_the_decay_of_gaps_alone_count_apart() -> None:
    """0 1 2: the pair 0->2 is two steps apart and counts .5 in one, .1 in the other; what was counted first is no answer."""
    near = PLAIN.model_copy(update={"max_gap": 2, "gap_decay": 0.5})
    config = ScorersConfig(
        names=("transitions", "slow_transitions"),
        transitions=near,
        slow_transitions=near.model_copy(update={"gap_decay": 0.1}),
    )
    scorers = ScorerSet.fit(prepared_of(USERS, 10), config, {}, catalogue="toy")
    np.testing.assert_allclose(scorers.scores(histories_of([[0]]))[:, 0, 2], np.log1p([0.5, 0.1]), rtol=1e-6)
