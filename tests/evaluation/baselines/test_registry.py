"""Names of baselines that are not known, or given twice, are refused."""

import pytest

from recsys.contracts.errors import ConfigError
from recsys.evaluation.baselines.registry import BaselinesConfig, build_baselines


def test_registry_refuses_unknown_and_repeated_names() -> None:
    with pytest.raises(ConfigError, match="unknown baseline 'sasrek'; known baselines: popularity"):
        build_baselines(["sasrek"], BaselinesConfig())
    with pytest.raises(ConfigError, match="name one twice"):
        build_baselines(["ease", "ease"], BaselinesConfig())
