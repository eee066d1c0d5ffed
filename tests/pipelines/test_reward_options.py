"""How towers become one reward, from the command line: what reaches the artefact, what is refused before a stage runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli.app import main
from recsys.contracts.manifest import open_artifact
from recsys.reward.checkpoint import load_reward_model
from tests.pipelines.test_bundled_reward_model import STEERED_SESSIONS
from tests.toy import tiny_run

PLAIN = tuple(one for one in STEERED_SESSIONS if not one.startswith(("model.", "recommend", "align")))


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--progress", "off"])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_transform_without_effect_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(tiny_run.write_recipe(tmp_path)), f"output_dir={tmp_path / 'out'}"]
    assert call("run", *arguments, "reward.combination.transform=standard") == 2
    assert "has no effect with mode 'zscore'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_combination_of_a_recipe_is_that_of_the_reward_model(tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--config", str(tiny_run.write_recipe(tmp_path)), f"output_dir={output}", *PLAIN]
    arguments += [
        "align.method=ipa",
        "reward.combination={mode: raw, transform: log_sigmoid, reference_quantile: 0.8, personal: {}}",
    ]
    for verb in ("prepare", "embed", "tokenize", "reward"):
        assert call(verb, *arguments) == 0
    (manifest,) = (output / "artifacts" / "reward_model").glob("[!.]*/manifest.json")
    folder = open_artifact(manifest.parent).path
    for name in ("reward", "held_out"):
        model = load_reward_model(folder / name, None)
        assert model.spec.combination.transform == "log_sigmoid"
        assert (model.transform_TC != 0).all()
        assert (model.average_reactions_T > 0).any()
