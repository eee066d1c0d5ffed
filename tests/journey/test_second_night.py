"""Two nights on the same events: the champion answers the second night's rows as well as it did the first night's."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.toy import tiny_run

pytestmark = pytest.mark.slow

CHANGES = (
    "evaluate.baselines=[popularity]",
    "train.max_epochs=2",
    "recommend.k=5",
    "decode.beam_width=10",  # narrower than the 50 places that are evaluated
)


def test_an_equal_policy_ties_with_the_champion(tmp_path: Path) -> None:
    """One line more, which is refused: other raw data, the same events, the same policy; the gate sees no difference."""
    draw = random.Random(0)
    lines = [
        f"{user},{(user * 3 + step * 7 + draw.randrange(3)) % 40},{1_700_000_000 + user * 50 + step * 86_400}"
        for user in range(120)
        for step in range(8)
    ]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    recipe = tmp_path / "nights.yaml"
    source = f"source: {{kind: table, path: {log}, timestamp_unit: s}}"
    recipe.write_text(re.sub(r"source: .*", lambda _: source, tiny_run.RECIPE))
    first = tiny_run.run(recipe, tmp_path / "run", *CHANGES)
    assert first.returncode == 0, first.stderr[-2000:]
    log.write_text(log.read_text() + "total,960,\n")
    second = tiny_run.run(recipe, tmp_path / "run", *CHANGES)
    assert second.returncode == 0, second.stderr[-2000:]
    said = second.stdout + second.stderr
    assert "version 2" in said
    found = re.search(r"ndcg@10 (\d\.\d+) against (\d\.\d+), difference \+0\.0000 \[\+0\.0000, \+0\.0000\]", said)
    assert found, said[-2000:]
    assert float(found[1]) == float(found[2]) > 0
