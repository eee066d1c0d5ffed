"""Rankings on disk: what was written is read, damage is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.errors import ArtifactError
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.rankings import BEAM, SERVED, ranking_folder, read_ranking, read_rankings, write_ranking

RANKED = RankedItems(np.array([[3, -1]], np.int32), np.array([[0.5, -np.inf]], np.float32))


def test_round_trip_of_two_systems(tmp_path: Path) -> None:
    for system in (BEAM, SERVED):
        write_ranking(ranking_folder(tmp_path, system, True), RANKED)
    found = read_rankings(tmp_path, [BEAM, SERVED], [True])
    assert set(found) == {BEAM, SERVED}
    np.testing.assert_array_equal(found[BEAM][True].items, RANKED.items)
    np.testing.assert_array_equal(found[SERVED][True].scores, RANKED.scores)


def test_an_interrupted_write_leaves_nothing_to_read(tmp_path: Path) -> None:
    path = ranking_folder(tmp_path, BEAM, False)
    left_over = path.with_name(f".{path.name}.part")
    left_over.mkdir(parents=True)
    (left_over / "items.npy").write_bytes(b"half")
    assert not path.exists()
    write_ranking(path, RANKED)
    assert len(read_ranking(path)) == 1


def test_a_truncated_ranking_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r"
    write_ranking(path, RANKED)
    (path / "items.npy").write_bytes((path / "items.npy").read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="run `evaluate` again"):
        read_ranking(path)
