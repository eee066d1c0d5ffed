"""Stages that start from an earlier artefact of their own kind: the base is in the digest and in the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.runner import Runner
from pipelines.engine.stage import Inputs, Stage, earlier_results, explain, make_plan
from recsys.config import FrozenConfig
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, ArtifactStore
from recsys.runtime import PlainProgress, Progress


class Night(FrozenConfig):
    day: int = 1
    unit: str = "item"


class Config(FrozenConfig):
    night: Night = Night()
    step: int = 1


def count(config: Config, inputs: Inputs, out_dir: Path, progress: Progress) -> dict[str, Any]:
    (out_dir / "count.json").write_text(json.dumps(config.night.day))
    return {}


def count_on(config: Config, inputs: Inputs, base: Artifact, out_dir: Path, progress: Progress) -> dict[str, Any]:
    value = json.loads((base.path / "count.json").read_text()) + config.step
    (out_dir / "count.json").write_text(json.dumps(value))
    return {}


def double(config: Config, inputs: Inputs, out_dir: Path, progress: Progress) -> dict[str, Any]:
    (out_dir / "count.json").write_text(json.dumps(2 * json.loads((inputs["count"].path / "count.json").read_text())))
    return {}


COUNT = Stage("count", "counts", count, ("night",), grow=count_on, grown_sections=("step",))
PLAIN = Stage("count", "counts", count, ("night",))
DOUBLE = Stage("double", "doubles", double, (), parents=("count",))


def run(root: Path, config: Config, **bases: Artifact) -> Runner:
    runner = Runner(config, 1, ArtifactStore(root), PlainProgress(), bases=bases)
    runner.run_all((COUNT, DOUBLE))
    return runner


def value(runner: Runner, name: str) -> int:
    return int(json.loads((runner.outcomes[name].artifact.path / "count.json").read_text()))


def test_seven_and_one_is_eight_and_its_double_sixteen(tmp_path: Path) -> None:
    base = run(tmp_path, Config(night=Night(day=7))).outcomes["count"].artifact
    grown = run(tmp_path, Config(), count=base)
    assert (value(grown, "count"), value(grown, "double")) == (8, 16)
    assert grown.outcomes["count"].artifact.manifest.parents == {"base:count": base.digest}
    assert not any(outcome.ran for outcome in run(tmp_path, Config(), count=base).outcomes.values())


def test_without_a_base_a_stage_that_can_grow_has_the_digest_of_one_that_cannot() -> None:
    """The keys that count only when it grows change nothing either."""
    plain = make_plan((PLAIN, DOUBLE), Config(), 1)
    for config in (Config(), Config(step=5)):
        assert [step.digest for step in make_plan((COUNT, DOUBLE), config, 1)] == [step.digest for step in plain]
    ignored = make_plan((PLAIN, DOUBLE), Config(), 1, {"count": "b" * 64, "double": "c" * 64})
    assert [step.digest for step in ignored] == [step.digest for step in plain]


def test_plan_and_run_agree_and_every_base_has_its_own_digest(tmp_path: Path) -> None:
    base = run(tmp_path, Config(night=Night(day=7))).outcomes["count"].artifact
    grown = run(tmp_path, Config(), count=base)
    steps = make_plan((COUNT, DOUBLE), Config(), 1, {"count": base.digest})
    assert [step.digest for step in steps] == [grown.outcomes[name].artifact.digest for name in ("count", "double")]
    assert steps[0].base == base.digest
    others = [
        make_plan((COUNT,), config, 1, bases)[0].digest
        for config, bases in (
            (Config(), None),
            (Config(), {"count": "f" * 64}),
            (Config(step=2), {"count": base.digest}),
        )
    ]
    assert len({steps[0].digest, *others}) == 4
    assert explain(make_plan((COUNT,), Config(), 1, {"count": "f" * 64})[0], ArtifactStore(tmp_path)).startswith(
        "grown from ffffffffffffffff"
    )


def test_a_base_that_changed_on_the_disk_is_refused(tmp_path: Path) -> None:
    base = run(tmp_path, Config(night=Night(day=7))).outcomes["count"].artifact
    (base.path / "count.json").write_text("9")
    with pytest.raises(ArtifactError, match=r"count.json' has changed since it was published"):
        run(tmp_path, Config(), count=base)


def test_an_earlier_result_may_differ_in_the_keys_that_it_is_extended_across(tmp_path: Path) -> None:
    """Of two days, day 1 can be extended on day 2 where the stage says so, and not where the unit differs too."""
    run(tmp_path, Config())
    store = ArtifactStore(tmp_path)
    across = Stage("count", "counts", count, ("night",), extends_across=("night.day",))

    def earlier(stage: Stage, night: Night) -> int:
        return len(earlier_results(make_plan((stage,), Config(night=night), 1)[0], store))

    assert [earlier(stage, Night(day=2)) for stage in (PLAIN, across)] == [0, 1]
    assert earlier(across, Night(day=2, unit="shop")) == 0
