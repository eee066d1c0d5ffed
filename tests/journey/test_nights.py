"""Nights of a small shop through every real stage: warm ones, a new file in between, a rollback, a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.config import RunConfig
from pipelines.engine.lock import run_lock
from pipelines.nightly.journal import Journal, Night
from pipelines.nightly.night import run_nights
from pipelines.release.rollback import roll_back
from pipelines.workflow import Workflow, describe_plan
from recsys.contracts.errors import DataError
from recsys.runtime import PlainProgress
from recsys.semantic_ids.versions import SemanticIds
from tests.toy.nights import config_of, day_of, write_day, write_days

pytestmark = pytest.mark.slow


class Shop:
    """A log and the folder of its nights."""

    def __init__(self, root: Path) -> None:
        self.log, self.output = root / "log", root / "out"

    def config(self, **changes: object) -> RunConfig:
        return config_of(self.log, self.output, **changes)

    def night(self, number: int, **changes: object) -> Night:
        config = self.config(**changes)
        with run_lock(config.output_dir):
            return run_nights(config, day_of(number), PlainProgress()).night

    def summary(self, night: Night, stage: str) -> dict:
        stages = night.stages[stage]
        path = self.output / "artifacts" / stages.kind / stages.digest[:16] / "manifest.json"
        return json.loads(path.read_text())["summary"]

    def ids(self, night: Night) -> dict[str, tuple[int, ...]]:
        stage = night.stages["tokenize"]
        table = SemanticIds.load(self.output / "artifacts" / stage.kind / stage.digest[:16])
        return dict(zip(table.item_ids, map(tuple, table.codes.tolist()), strict=True))


def test_nights_of_a_shop(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    write_days(shop.log, 1, 2, 3)
    first = shop.night(3)
    assert (first.kind, first.version) == ("full", "1")
    write_day(shop.log, 4)
    second = shop.night(4)
    assert (second.state, second.kind, second.version) == ("registered", "warm", "2")
    warm = shop.summary(second, "train")["warm_start"]
    assert warm["tables"]["item"]["mapped"] == len(shop.ids(first)) + 1
    assert warm["tables"]["item"]["new"] == len(shop.ids(second)) - len(shop.ids(first)) > 0
    assert shop.ids(first).items() <= shop.ids(second).items()  # no published ID moved

    write_day(shop.log, 5)  # a file that the night did not see changes nothing for the verbs after it
    assert {row["action"] for row in describe_plan(shop.config())} == {"skip"}
    assert not Workflow(shop.config(), PlainProgress()).run_verb("evaluate").ran

    lenient = shop.config().promote.model_dump()
    refused = shop.night(5, promote={**lenient, "margin": 1e-6, "rule": "better"})
    assert (refused.state, refused.exit_code, refused.champion) == ("refused", 0, "2")
    (shop.log / f"day={day_of(6)}.parquet").write_bytes(b"PAR1 is no table")
    with pytest.raises(DataError):
        shop.night(6)
    assert Journal(shop.output, "shop").of(day_of(6)).exit_code == 3
    roll_back(Workflow(shop.config(), PlainProgress()).registry(), "shop", shop.output, "1")
    write_days(shop.log, 6, 7)
    last = shop.night(7, nights={"epochs": 1, "full_every": 4})
    nights = Journal(shop.output, "shop").nights()
    assert [night.state for night in nights] == ["registered", "registered", "refused", "registered", "registered"]
    assert nights[3].champion == "1"
    assert nights[3].bases["train"] == first.stages["train"].digest
    assert shop.ids(refused).items() <= shop.ids(nights[3]).items()
    assert (last.kind, sorted(last.bases)) == ("full", ["tokenize", "train"])
    assert shop.summary(last, "tokenize")["version"] == 0
    assert shop.summary(last, "train")["warm_start"]["from"] == nights[3].stages["train"].digest[:16]
