"""Two processes train like one, shards of any shape hold the same tables, and a kill changes nothing.

All runs with two processes are made by one pair of processes (``outcome``), because starting them takes most of the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError, RecsysError
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import load_policy
from recsys.model.config import ModelConfig
from recsys.runtime import PlainProgress, set_threads
from recsys.training.config import TrainConfig
from recsys.training.distributed.checkpoint import load_optimizer_state, load_policy_state
from recsys.training.distributed.processes import start_workers
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.schedule import adamw
from tests.toy.dataset import ring_ids, ring_prepared
from tests.toy.training_runs import (
    COLUMN_WISE,
    MODEL,
    ROW_WISE,
    TABLE_WISE,
    TRAIN,
    Balance,
    Means,
    Reshard,
    Run,
    log_probs,
    run_all,
    untrained,
)
from tests.training.refusal import abort_while_leaving, crash, refuse

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]

KINDS = {
    "none": {},
    "row_wise": ROW_WISE,
    "table_wise": TABLE_WISE,
    "column_wise": COLUMN_WISE,
    "copies_under_adagrad": ROW_WISE | {"sharding": "none", "table_learning_rate": 0.005},
}
SHORT = {"max_epochs": 2, "validate_every_epochs": 1}
HEADLESS = {"dense_weight": 0.0, "table_learning_rate": 0.005}
OFTEN = SHORT | {"checkpoint_every_s": 1e-6}
NOISY = {"dropout": 0.1}
# AdamW divides a gradient by its own size: where the user table has one of 1e-9, which is rounding, it takes a full step,
# another one for each order of summation.
MODELS = {"none": {"features": ("item", "codes", "author", "gap")}}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all runs: ``<name>1`` on one process, ``<name>2`` on two."""
    root = tmp_path_factory.mktemp("runs")
    data = root / "data"
    ring_prepared(data, users=61)
    run_all([Run(root / f"{name}1", data, train, MODELS.get(name, {})) for name, train in KINDS.items()])
    run_all(
        [
            Run(root / "short1", data, ROW_WISE | SHORT, {}),
            Run(root / "headless1", data, ROW_WISE | SHORT | HEADLESS, {}),
            Run(root / "from1to2", data, ROW_WISE | OFTEN, {}, kill_at=15),
        ]
    )
    two = [Run(root / f"{name}2", data, train, MODELS.get(name, {})) for name, train in KINDS.items()]
    resumed = [
        Run(root / "noisy2", data, ROW_WISE | SHORT, NOISY),
        Run(root / "killed2", data, ROW_WISE | OFTEN, NOISY, kill_at=3),
        Run(root / "killed2", data, ROW_WISE | OFTEN, NOISY, kill_at=15),
        Run(root / "killed2", data, ROW_WISE | SHORT, NOISY),
        Run(root / "from1to2", data, TABLE_WISE | SHORT, {}),
        Run(root / "from2to1", data, ROW_WISE | OFTEN, {}, kill_at=9),
        Run(root / "headless2", data, ROW_WISE | SHORT | HEADLESS, {}),
        Run(root / "sampled2", data, ROW_WISE | SHORT | {"dense_sampled_items": 4}, NOISY),
        Run(root / "chain", data, OFTEN | COLUMN_WISE | {"sharding": "row_wise"}, {}, kill_at=5),
    ]
    start = root / "chain" / ".scratch" / "resume" / "step-00000005" / "tensors"
    table, column = root / "as_table_wise", root / "as_column_wise"
    chain = [
        Reshard(data, COLUMN_WISE | {"sharding": "table_wise"}, start, table, root / "table_wise.pt"),
        Reshard(data, COLUMN_WISE, table, column, root / "column_wise.pt"),
        Means(root),
        Balance(root),
    ]
    start_workers(run_all, ([*two, *resumed, *chain],), 2)
    run_all([Run(root / "from2to1", data, TABLE_WISE | SHORT, {})])
    return root


def run_in(outcome: Path, name: str) -> Run:
    return Run(outcome / name, outcome / "data", {}, {})


def largest_difference(a: pl.DataFrame, b: pl.DataFrame) -> float:
    assert a.select("step", "name").equals(b.select("step", "name"))
    return float((a["value"] - b["value"]).abs().max())


def test_losses_are_weighted_by_targets_by_hand(outcome: Path) -> None:
    """Losses 1 and 4 over 3 and 1 targets: 2 * 3/4 * 1 = 1.5 and 2 * 1/4 * 4 = 2, both log 7/4; the second loss has no
    targets on process 1: 2 * 2/2 * 5 = 10 and 0, both log 5."""
    assert torch.load(outcome / "means_0.pt") == [1.5, 1.75, 10.0, 5.0]
    assert torch.load(outcome / "means_1.pt") == [2.0, 1.75, 0.0, 5.0]


def test_experts_are_balanced_over_all_processes_by_hand(outcome: Path) -> None:
    """Loads (3, 1, 0, 0) + (0, 1, 0, 3) = (3, 2, 0, 3), mean 2: down, as it is, up, down."""
    for rank in range(2):
        assert torch.load(outcome / f"balance_{rank}.pt") == [-0.25, 0.0, 0.25, -0.25]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_like_one(outcome: Path, kind: str) -> None:
    """What is left is the order of summation: the rows of a batch in another order move one process's losses as much."""
    one, two = run_in(outcome, f"{kind}1"), run_in(outcome, f"{kind}2")
    assert one.losses()["step"].max() >= 50
    assert largest_difference(one.losses(), two.losses()) < 1e-5
    assert largest_difference(one.figures(), two.figures()) < 1e-9
    first, last = (one.losses().filter(pl.col("name") == "train/loss")["value"][place] for place in (0, -1))
    assert last < 0.6 * first  # what is compared is training, not standing still


def test_a_dense_head_that_is_switched_off_stops_no_process(outcome: Path) -> None:
    one, two = run_in(outcome, "headless1"), run_in(outcome, "headless2")
    assert largest_difference(one.losses(), two.losses()) < 1e-5


def test_sampled_negatives_are_fetched_with_the_rest(outcome: Path) -> None:
    losses = run_in(outcome, "sampled2").losses().filter(pl.col("name") == "train/loss")["value"]
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()


def test_the_model_of_two_processes_is_an_ordinary_model(outcome: Path) -> None:
    one, two = (load_policy(outcome / f"row_wise{count}" / "model", ring_ids().digest) for count in (1, 2))
    torch.testing.assert_close(log_probs(one, outcome / "data"), log_probs(two, outcome / "data"), atol=1e-4, rtol=1e-4)


def test_a_kill_changes_nothing_on_two_processes(outcome: Path) -> None:
    undisturbed, killed = run_in(outcome, "noisy2"), run_in(outcome, "killed2")
    assert undisturbed.losses().equals(killed.losses())
    expected = load_file(outcome / "noisy2" / "model" / "model.safetensors")
    actual = load_file(outcome / "killed2" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["from1to2", "from2to1"])
def test_a_run_goes_on_with_another_number_of_processes_and_another_sharding(outcome: Path, name: str) -> None:
    undisturbed, moved = run_in(outcome, "short1"), run_in(outcome, name)
    assert largest_difference(undisturbed.losses(), moved.losses()) < 1e-5


def test_row_wise_table_wise_column_wise_and_plain_tables_answer_alike(outcome: Path) -> None:
    data = outcome / "data"
    start = outcome / "chain" / ".scratch" / "resume" / "step-00000005" / "tensors"
    config = TrainConfig.model_validate(TRAIN | COLUMN_WISE)
    answers, sums = [], []
    for folder in (start, outcome / "as_column_wise"):
        policy = untrained(Dataset.open(data))
        unread = log_probs(policy, data)
        optimizer = adamw(policy, config)
        load_policy_state(folder, policy)
        load_optimizer_state(folder, policy, optimizer)
        answers.append(log_probs(policy, data))
        sums.append(optimizer.state[policy.tables.weight("item")]["sum"])
    assert not torch.equal(unread, answers[0])
    for name in ("table_wise", "column_wise"):
        assert torch.equal(torch.load(outcome / f"{name}.pt"), answers[0])
    assert torch.equal(answers[0], answers[1])
    assert sums[0].sum() > 0
    assert torch.equal(sums[0], sums[1])


def test_only_the_newest_checkpoint_is_kept(outcome: Path) -> None:
    (folder,) = (outcome / "killed2" / ".scratch" / "resume").iterdir()
    assert folder.name.startswith("step-")


def test_one_call_starts_its_processes(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path / "data")
    config = TrainConfig.model_validate(
        TRAIN | ROW_WISE | {"processes": 2, "max_epochs": 1, "validate_every_epochs": 1}
    )
    set_threads(1)
    model = ModelConfig.model_validate(MODEL)
    inputs = TrainingInputs(prepared, ring_ids(), model, config, DecodeConfig(beam_width=12), seed=5)
    report = train_policy(inputs, tmp_path, PlainProgress())
    assert report["best_epoch"] == 0
    load_policy(tmp_path / "model", ring_ids().digest)


def test_an_error_of_a_worker_is_the_callers() -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        start_workers(refuse, ("nothing to train on",), 2)


@pytest.mark.parametrize(
    ("name", "told"),
    [("SIGABRT", "in crash"), ("SIGSEGV", "in crash"), ("SIGKILL", "memory runs out: take fewer `train")],
)
def test_a_worker_that_a_signal_ends_is_named(name: str, told: str) -> None:
    with pytest.raises(RecsysError, match=f"training process 1 of 2 was ended by signal {name}") as caught:
        start_workers(crash, (name,), 2)
    assert told in str(caught.value)


def test_work_that_is_done_does_not_fail_while_its_process_ends(tmp_path: Path) -> None:
    start_workers(abort_while_leaving, (str(tmp_path),), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"], "both did their work"


def test_torchrun_starts_the_training_command(tmp_path: Path) -> None:
    ring_prepared(tmp_path / "data")
    ring_ids().save(tmp_path / "ids")
    train = TRAIN | TABLE_WISE | {"max_epochs": 1, "validate_every_epochs": 1}
    model = {key: list(value) if isinstance(value, tuple) else value for key, value in MODEL.items()}
    recipe = {"seed": 5, "threads": 1, "model": model, "train": train, "decode": {"beam_width": 12}, "source": "unread"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [
        "-m",
        "recsys.training.distributed.launch",
        "--prepared",
        "data",
        "--semantic-ids",
        "ids",
        "--recipe",
        "recipe.yaml",
    ]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [*torchrun, *command, "--work-dir", "out", "train.learning_rate=0.001"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["best_epoch"] == 0
    load_policy(tmp_path / "out" / "model", ring_ids().digest)
