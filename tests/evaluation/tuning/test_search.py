"""The search for a baseline's settings: what it tries, what it keeps, and what it may look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.evaluation.baselines.config import (
    BaselineName,
    BaselinesConfig,
    EASEConfig,
    ItemKNNConfig,
    MarkovConfig,
    SASRecConfig,
)
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.tuning import search
from recsys.evaluation.tuning.config import EASEGrid, ItemKNNGrid, MarkovGrid, SASRecGrid, TuningConfig
from recsys.evaluation.tuning.validation_rows import ValidationRows
from tests.toy.dataset import ring_prepared

# settings that do badly on the ring: all events of a history count alike, and pairs seven steps apart as much as one
POOR = BaselinesConfig(
    markov=MarkovConfig(gap_decay=1.0, history_decay=1.0),
    item_knn=ItemKNNConfig(history_decay=1.0),
    ease=EASEConfig(regularisation=200.0, history_decay=1.0),
    sasrec=SASRecConfig(width=8, num_heads=2, num_blocks=1, max_epochs=4, learning_rate=1e-5, batch_size=16),
)
SMALL = TuningConfig(sasrec=SASRecGrid(changes=({"learning_rate": 0.02},), epochs_share=0.5))
TUNED: tuple[BaselineName, ...] = ("markov", "item_knn", "ease", "sasrec")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


@pytest.fixture(scope="module")
def valid(prepared: Dataset) -> ValidationRows:
    return ValidationRows.of(prepared, 40, 0, exclude_seen=True)


@pytest.mark.parametrize("name", TUNED)
def test_the_best_trial_is_kept_and_the_ranker_is_the_one_that_was_measured(
    name: BaselineName, prepared: Dataset, valid: ValidationRows
) -> None:
    ranker, record = search.tune(name, prepared, POOR, SMALL, valid, 0)
    values = [trial["ndcg@10"] for trial in record["trials"]]
    assert record["fits"] == len(values) > 1
    assert record["rows"] == 40
    assert record["configured_value"] in values
    assert record["value"] == valid.value(ranker)
    if name != "markov":  # any chain walks round a ring
        assert record["value"] > record["configured_value"]
    if name != "sasrec":  # its trials are shorter than its training
        assert record["value"] in values
        assert record["value"] <= record["best_value"] == max(values)
    settings = type(getattr(POOR, name)).model_validate(record["settings"])
    again = search.fit_with(name, settings, prepared, POOR, 0, "train")
    np.testing.assert_array_equal(again.scores(valid.histories), ranker.scores(valid.histories))
    assert all(record["settings"][key] == value for key, value in record["chosen"].items())


@pytest.mark.parametrize("name", ["popularity", "repeat_last"])
def test_what_has_no_grid_is_measured_as_it_is(name: BaselineName, prepared: Dataset, valid: ValidationRows) -> None:
    ranker, record = search.tune(name, prepared, POOR, SMALL, valid, 0)
    assert (record["fits"], record["chosen"], record["value"]) == (1, {}, valid.value(ranker))
    assert "not chosen, measured on 40 validation rows" in search.describe(record)


@pytest.mark.parametrize("name", TUNED)
def test_test_events_decide_nothing_and_validation_events_are_not_fitted(
    name: BaselineName, prepared: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other items in the test events change no trial; the rows asked for are validation rows, fitted until "train"."""
    asked, original = [], Dataset.targets
    monkeypatch.setattr(Dataset, "targets", lambda self, split: asked.append(split) or original(self, split))
    history = prepared.history
    item = np.array(history.item)
    for start, end in zip(history.valid_end, history.offsets[1:], strict=True):
        item[start:end] = (item[start:end] + 5) % prepared.spec.num_items
    changed = Dataset(prepared.path, prepared.spec, replace(history, item=item))
    records = []
    for data in (prepared, changed):
        _, record = search.tune(name, data, POOR, SMALL, ValidationRows.of(data, 40, 0, exclude_seen=True), 0)
        records.append({**record, "minutes": 0})
    assert records[0] == records[1]
    assert set(asked) == {VALID}


def test_validation_rows_are_drawn_by_the_seed(prepared: Dataset) -> None:
    first, again, other = (ValidationRows.of(prepared, 20, seed, exclude_seen=True) for seed in (0, 0, 1))
    assert first.targets.user_index.tolist() == again.targets.user_index.tolist() != other.targets.user_index.tolist()
    assert len(ValidationRows.of(prepared, 1000, 0, exclude_seen=True)) == len(prepared.targets(VALID))
    valid = prepared.targets(VALID)
    expected = dict(zip(valid.user_index.tolist(), valid.items.tolist(), strict=True))
    assert [expected[user] for user in first.targets.user_index.tolist()] == first.targets.items.tolist()


def test_points_hold_the_configured_values_once() -> None:
    """Two lists of two and three values, one of them configured and one not: 2 x 4 points, the last changing fastest."""
    base = ItemKNNConfig(shrinkage=3.0, history_decay=0.6)
    found = search.points(base, {"shrinkage": (0.0, 3.0), "history_decay": (0.5, 0.7, 1.0)})
    assert [(p.shrinkage, p.history_decay) for p in found if isinstance(p, ItemKNNConfig)] == [
        (s, d) for s in (0.0, 3.0) for d in (0.5, 0.6, 0.7, 1.0)
    ]
    unlimited = search.points(base, {"num_neighbours": (200, 50)})
    assert [p.num_neighbours for p in unlimited] == [50, 200, None]
    assert search.points(base, {"shrinkage": ()}) == [base]


@dataclass
class _Landscape:
    """Rows that know the quality of every regularisation; a fitted "ranker" is its settings."""

    means: dict[float, float]

    def values(self, ranker: Any) -> np.ndarray:
        return np.full(4, self.means[ranker.regularisation] + 0.001 * ranker.history_decay)


@pytest.mark.parametrize(
    ("values", "fitted", "chosen"),
    [
        ({20: 0.1, 50: 0.2, 100: 0.3, 200: 0.4, 500: 0.3, 1000: 0.9}, [50, 100, 200, 500], 200),  # up, over the top
        ({20: 0.1, 50: 0.2, 100: 0.3, 200: 0.4, 500: 0.5, 1000: 0.6}, [50, 100, 200, 500, 1000], 1000),  # to the end
        ({20: 0.3, 50: 0.2, 100: 0.1, 200: 0.0, 500: 0.0, 1000: 0.0}, [50, 100, 20], 20),  # down
        ({20: 0.2, 50: 0.2, 100: 0.2, 200: 0.0, 500: 0.0, 1000: 0.0}, [50, 100, 20], 50),  # a tie stays where it is
    ],
)
def test_ease_climbs_to_the_nearest_top(values: dict[float, float], fitted: list[float], chosen: float) -> None:
    solved: list[float] = []

    def fit_each(configs: Sequence[Any]) -> Iterator[Any]:
        solved.append(configs[0].regularisation)
        assert [config.history_decay for config in configs] == [0.7, 0.9]
        yield from configs

    grid = EASEGrid(history_decay=(0.9,))
    found = search._climb(EASEConfig(regularisation=50.0), grid, fit_each, _Landscape(values))  # type: ignore[arg-type]
    assert solved == fitted
    assert found.best is not None
    assert isinstance(found.best.config, EASEConfig)
    assert (found.best.config.regularisation, found.best.config.history_decay) == (chosen, 0.9)


@pytest.mark.parametrize(
    ("solvable", "fitted", "chosen"),
    [
        ({100, 200, 500}, [20, 50, 100, 200, 500], 200),  # the configured one and the next are too small for the data
        ({20, 50, 100, 200, 500}, [20, 50], 20),  # all can be solved: nothing else is tried than before
        ({20, 100}, [20, 50], 20),
    ],
)
def test_ease_climbs_over_values_that_are_too_small_for_the_data(
    solvable: set[float], fitted: list[float], chosen: float
) -> None:
    """Before, one value without an inverse left EASE out of the table, whatever the others could do."""
    values = {20: 0.4, 50: 0.3, 100: 0.1, 200: 0.2, 500: 0.0}
    solved: list[float] = []

    def fit_each(configs: Sequence[Any]) -> Iterator[Any]:
        solved.append(configs[0].regularisation)
        if solved[-1] not in solvable:
            raise DataError(f"{solved[-1]:g} is too small")
        yield from configs

    base, grid = EASEConfig(regularisation=20.0), EASEGrid(regularisation=(50.0, 100.0, 200.0, 500.0))
    found = search._climb(base, grid, fit_each, _Landscape(values))  # type: ignore[arg-type]
    assert solved == fitted
    assert found.best is not None
    assert found.best.config.regularisation == chosen  # type: ignore[attr-defined]
    solvable.clear()
    with pytest.raises(DataError, match="500 is too small"):
        search._climb(base, grid, fit_each, _Landscape(values))  # type: ignore[arg-type]


def test_of_settings_that_rows_cannot_tell_apart_the_nearest_to_the_configured_is_chosen() -> None:
    """The best has mean .6. Two changes (.5) and one change (.5) are behind by .1 with differences of 1 and -1 on several
    rows: standard error sqrt(.49) / sqrt(10) = .22, so both are as good. The configured setting is behind by .1 on every
    row: error 0, so it is not. Of the two the one with a single change is chosen; a better one with one change beats it.
    """
    base = EASEConfig(regularisation=50.0, history_decay=0.7)

    def trial(values: list[float], **changes: float) -> search.Trial:
        return search.Trial(base.model_copy(update=changes), np.array(values))

    best = trial([1, 1, 1, 1, 1, 1, 0, 0, 0, 0], regularisation=500.0, history_decay=0.9)
    two = trial([0, 0, 0, 1, 1, 1, 1, 1, 0, 0], regularisation=200.0, history_decay=0.9)
    one = trial([1, 1, 1, 0, 0, 0, 0, 0, 1, 1], regularisation=200.0)
    configured = trial([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, -0.1, -0.1, -0.1, -0.1])
    assert search.choose([two, best, configured, one], base) is one
    assert search.choose([two, best, configured], base) is best
    assert search.choose([best, configured], base) is best
    unlucky = trial([0.9, 1.1, 0.9, 1.1, 0.9, 0.9, 0, 0, 0, 0])
    assert search.choose([best, unlucky, one], base) is unlucky


def test_trials_of_sasrec_are_fitted_on_train_events(
    prepared: Dataset, valid: ValidationRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, original = [], search.fit_with
    monkeypatch.setattr(search, "fit_with", lambda *given: asked.append(given[-1]) or original(*given))
    search.tune("sasrec", prepared, POOR, SMALL, valid, 0)
    assert asked == ["train"] * 3


def test_sasrec_trials_are_short_and_the_best_is_trained_in_full(prepared: Dataset, valid: ValidationRows) -> None:
    """Half of four epochs for two trials, then four for the better one."""
    ranker, record = search.tune("sasrec", prepared, POOR, SMALL, valid, 0)
    assert record["chosen"] == {"learning_rate": 0.02}
    assert record["settings"]["max_epochs"] == 4
    assert {point.epoch for point in ranker.curves} == {0, 1, 2, 3}
    alone = TuningConfig(sasrec=SASRecGrid(changes=()))
    _, record = search.tune("sasrec", prepared, POOR, alone, valid, 0)
    assert record["fits"] == 1


def test_a_trial_of_longer_training_is_longer(
    prepared: Dataset, valid: ValidationRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of 4 epochs as configured, half of 8 in the trial that asks for 8; then the chosen one in full."""
    epochs, fit = [], search.fit_with

    def noted(name: str, config: SASRecConfig, *rest: object) -> object:
        epochs.append(config.max_epochs)
        return fit(name, config.model_copy(update={"max_epochs": 1}), *rest)

    monkeypatch.setattr(search, "fit_with", noted)
    config = TuningConfig(sasrec=SASRecGrid(changes=({"max_epochs": 8},), epochs_share=0.5))
    search.tune("sasrec", prepared, POOR, config, valid, 0)
    assert epochs[:2] == [2, 4]
    assert epochs[2] in (4, 8)


def test_refusals() -> None:
    with pytest.raises(
        ValidationError, match=r"history_decay: 1\.5 cannot be tried: Input should be less than or equal"
    ):
        MarkovGrid(history_decay=(0.5, 1.5))
    with pytest.raises(ValidationError, match="num_neighbours: 0 cannot be tried"):
        ItemKNNGrid(num_neighbours=(0,))
    with pytest.raises(ValidationError, match=r"\{'breadth': 128\} cannot be tried: breadth"):
        SASRecGrid(changes=({"breadth": 128},))
    with pytest.raises(ValidationError, match="an empty change is the configured setting"):
        SASRecGrid(changes=({},))
    with pytest.raises(ValidationError, match="fusion_weights must be positive"):
        TuningConfig(fusion_weights=(0.0, 1.0))
    for weights in ((1.0, float("nan")), (float("nan"), 1.0), (0.5, 1.0, 0.5), (float("inf"),)):
        with pytest.raises(ValidationError, match="positive numbers, each once"):
            TuningConfig(fusion_weights=weights)
    with pytest.raises(ValidationError, match="width 128 cannot be split into 3 heads"):
        EvaluateConfig(baseline_settings=BaselinesConfig(sasrec=SASRecConfig(width=63, num_heads=3)))
    with pytest.raises(ValidationError, match="reference 'ease' is not among the baselines"):
        EvaluateConfig(baselines=("markov",), reference="ease")


def test_a_recipe_is_read_without_what_fits(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, recsys.evaluation.config; print([m for m in ('torch', 'scipy', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
