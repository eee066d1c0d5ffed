"""Recipes that belong together stay together."""

from pathlib import Path

import yaml

RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"


def test_beauty_rere_is_beauty_and_its_alignment() -> None:
    """Everything but ``align`` is equal, so that both share data, policy, baselines and registered name."""
    plain, aligned = (yaml.safe_load((RECIPES / name).read_text()) for name in ("beauty.yaml", "beauty_rere.yaml"))
    assert aligned.pop("align")["method"] == "rere"
    assert aligned == plain
