"""Five nights, then `clean`: everything that serves goes on as before, and nothing that was kept is made again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipelines.cli.app import main
from tests.toy import tiny_run

pytestmark = pytest.mark.slow

SMALL = ("evaluate.baselines=[popularity]", "recommend.k=5", "decode.beam_width=10", "train.validation_users=20")


class Folder:
    """An output folder and the command line."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.recipe, self.output, self.capsys = tiny_run.write_recipe(root), root / "run", capsys

    def call(self, verb: str, *arguments: str, code: int = 0) -> str:
        """Run a verb in this process; return what it said."""
        with pytest.raises(SystemExit) as end:
            main([verb, *arguments, "--config", str(self.recipe), f"output_dir={self.output}", *SMALL])
        said = "".join(self.capsys.readouterr())
        assert end.value.code == code, said
        return said

    def night(self, number: int) -> str:
        return self.call("run", *of_night(number))

    def folders(self, kind: str) -> set[str]:
        return {path.name for path in (self.output / "artifacts" / kind).glob("[!.]*")}


def of_night(number: int) -> tuple[str, ...]:
    """What makes one night differ from another."""
    return f"train.learning_rate={number}e-3", "train.max_epochs=1"


def ran(said: str) -> set[str]:
    """Stages that did their work."""
    return set(re.findall(r"(\w+): running", said))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_after_cleaning_everything_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Folder(tmp_path, capsys)
    for night in range(1, 6):
        shop.night(night)
    shop.call("rollback", "--to", "3")
    shop.call("rollback", "--to", "2")  # champion 2, previous 3, challenger 5; 1 or 4 has no alias
    shop.call("recommend", *of_night(5))
    aliases = json.loads(shop.call("status", "--json"))["aliases"]
    lost = min({"1", "2", "3", "4", "5"} - set(aliases.values()))
    before, bundles = size(shop.output), shop.folders("bundle")
    told = shop.call("clean", "--keep", "1", "--dry-run")
    assert size(shop.output) == pytest.approx(before, rel=0.01), "a dry run deletes nothing"
    said = shop.call("clean", "--keep", "1")
    megabytes = re.search(r"deleted (\d+) folders, ([\d.]+) MB", said)
    assert megabytes, said
    assert float(megabytes[2]) > 3, "the code of a registered model alone"
    assert "left alone" not in said
    assert f"would delete {megabytes[1]} folders, {megabytes[2]} MB" in told
    assert before - size(shop.output) == pytest.approx(float(megabytes[2]) * 1e6, rel=0.05)
    assert len(shop.folders("bundle")) == len(set(aliases.values()))
    gone = min(bundles - shop.folders("bundle"))

    assert "champion    version 2" in shop.call("status")
    made_from, _, made_into = shop.call("lineage", "@champion").partition("made into")
    assert "prepared" in made_from
    assert "cleaned" not in made_from
    assert "not here" not in made_from
    assert "candidates" in made_into
    assert "cleaned away" in shop.call("lineage", gone)
    assert "was cleaned away at" in shop.call("rollback", "--to", lost, code=4)
    assert "version 3 of 'tiny' is champion again" in shop.call("rollback")
    shop.call("recommend", *of_night(5))
    again = shop.night(5)
    assert not ran(again) - {"recommend"}, again
    sixth = shop.night(6)
    assert ran(sixth) >= {"train", "evaluate", "export"}
    assert not {"prepare", "embed", "tokenize", "baselines"} & ran(sixth)
    returned = shop.night(int(lost))  # what was cleaned away can be made again, as a version of its own
    assert "registered  tiny version 7" in returned
