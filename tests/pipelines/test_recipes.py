"""Recipes that belong together stay together."""

from pathlib import Path

import yaml

RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"


def test_beauty_rere_is_beauty_and_its_alignment() -> None:
    """Everything but ``align`` and the name is equal, so that both share data, policy, baselines and registered model."""
    plain, aligned = (yaml.safe_load((RECIPES / name).read_text()) for name in ("beauty.yaml", "beauty_rere.yaml"))
    assert aligned.pop("align")["method"] == "rere"
    assert aligned.pop("export") == {"registered_name": plain["name"]}
    assert aligned.pop("name") == "beauty_rere"
    assert plain.pop("name") == "beauty"
    assert aligned == plain
