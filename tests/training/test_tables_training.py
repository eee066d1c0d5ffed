"""Training of id tables in one process: Adagrad by hand, what clipping covers, checkpoints, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from recsys.config import validate
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.data.samples import TargetRows
from recsys.model.checkpoint import load_policy
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.training.callbacks import seed_of_process
from recsys.training.config import TrainConfig
from recsys.training.distributed.checkpoint import load_optimizer_state, load_policy_state, save_training_state
from recsys.training.distributed.launch import read_training_recipe
from recsys.training.distributed.processes import World
from recsys.training.distributed.sharding import gathered, step_ids
from recsys.training.fit import build_policy
from recsys.training.schedule import adamw
from recsys.training.table_optimizers import AdamWWithTables, adagrad_update
from tests.toy.dataset import ring_ids, ring_prepared
from tests.toy.training_runs import MODEL, Run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ADAGRAD = {"table_optimizer": "rowwise_adagrad", "table_learning_rate": 0.1}


@pytest.fixture
def prepared(tmp_path: Path) -> Dataset:
    return ring_prepared(tmp_path / "data")


def policy_for(prepared: Dataset, seed: int = 1, **changes: object) -> GenerativeRecommender:
    torch.manual_seed(seed)
    return build_policy(prepared, ring_ids(), ModelConfig.model_validate(MODEL | changes), None)


def test_rowwise_adagrad_by_hand() -> None:
    """Gradient (3, 1): mean of squares 5, step 0.1 / sqrt(5) * (3, 1) = (0.1342, 0.0447); once more: 0.1 / sqrt(10)."""
    weight, state = torch.ones(2, 2), torch.zeros(2)
    grad = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    adagrad_update(weight, grad, state, 0.1)
    torch.testing.assert_close(weight[0], 1 - 0.1 * grad[0] / math.sqrt(5))
    adagrad_update(weight, grad, state, 0.1)
    torch.testing.assert_close(weight[0], 1 - 0.1 * grad[0] * (5**-0.5 + 10**-0.5))
    assert weight[1].tolist() == [1.0, 1.0]
    assert state.tolist() == [10.0, 0.0]


def test_adagrad_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs, state = torch.randn(4, 3), nn.Parameter(torch.empty(4, 3)), torch.zeros(4, 3)
    theirs.data.copy_(ours)
    optimizer = torch.optim.Adagrad([theirs], lr=0.1, eps=1e-8)
    for _ in range(3):
        theirs.grad = torch.randn(4, 3)
        adagrad_update(ours, theirs.grad, state, 0.1)
        optimizer.step()
    torch.testing.assert_close(ours, theirs.data)


def test_tables_take_adagrad_steps_and_the_rest_adamw_ones() -> None:
    table, dense, alone = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    both = AdamWWithTables(
        [{"params": [dense]}, {"params": [table], "table_rule": "rowwise_adagrad", "lr": 0.1}], lr=0.01, fused=True
    )
    reference = torch.optim.AdamW([alone], lr=0.01, fused=True)
    for _ in range(2):
        for parameter in (table, dense, alone):
            parameter.grad = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
        both.step()
        reference.step()
    assert torch.equal(dense, alone)
    torch.testing.assert_close(table[0], 1 - 0.1 * torch.tensor([3.0, 1.0]) * (5**-0.5 + 10**-0.5))
    assert table.grad is None


def test_every_parameter_has_one_optimiser(prepared: Dataset) -> None:
    policy = policy_for(prepared)
    for settings in ({}, ADAGRAD):
        groups = adamw(policy, TrainConfig.model_validate(settings)).param_groups
        assert sum(len(group["params"]) for group in groups) == len(list(policy.parameters()))
        ruled = [id(p) for group in groups if "table_rule" in group for p in group["params"]]
        assert ruled == ([id(p) for p in policy.tables.parameters()] if settings else [])


def test_step_ids_name_every_row_that_a_step_reads(prepared: Dataset) -> None:
    policy = policy_for(prepared)
    batch = TargetRows.from_dataset(prepared, 5).collate(torch.arange(9).numpy())
    everything = torch.arange(policy.spec.dataset.num_items + 1)
    with policy.tables.one_lookup(step_ids(policy, batch, everything)):
        hidden, query = policy(batch)
        vectors = policy.item_vectors()
    plain_hidden, plain_query = policy(batch)
    torch.testing.assert_close((hidden, query, vectors), (plain_hidden, plain_query, policy.item_vectors()))


def test_plain_tables_are_gathered_already(prepared: Dataset) -> None:
    policy = policy_for(prepared)
    before = policy.tables.collection
    with gathered(policy.tables, torch.device("cpu")):
        assert policy.tables.collection is before


def trained(policy: GenerativeRecommender, config: TrainConfig, prepared: Dataset) -> torch.optim.Optimizer:
    optimizer = adamw(policy, config)
    batch = TargetRows.from_dataset(prepared, 5).collate(torch.arange(9).numpy())
    for _ in range(2):
        optimizer.zero_grad()
        (-policy.log_prob(batch).mean() + policy.item_vectors().square().mean()).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("settings", [{}, ADAGRAD, ADAGRAD | {"table_optimizer": "adagrad"}])
def test_a_training_state_is_read_back(prepared: Dataset, tmp_path: Path, settings: dict) -> None:
    config = TrainConfig.model_validate(settings)
    policy = policy_for(prepared)
    optimizer = trained(policy, config, prepared)
    save_training_state(tmp_path / "state", policy, optimizer)
    again = policy_for(prepared, seed=2)
    resumed = adamw(again, config)
    load_policy_state(tmp_path / "state", again)
    load_optimizer_state(tmp_path / "state", again, resumed)
    batch = TargetRows.from_dataset(prepared, 5).collate(torch.arange(9).numpy())
    for model, steps in ((policy, optimizer), (again, resumed)):
        steps.zero_grad()
        (-model.log_prob(batch).mean()).backward()
        steps.step()
    for (name, a), b in zip(policy.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_training_state_of_another_kind_is_refused(prepared: Dataset, tmp_path: Path) -> None:
    config = TrainConfig()
    policy = policy_for(prepared)
    save_training_state(tmp_path / "state", policy, trained(policy, config, prepared))
    wider = policy_for(prepared, width=64)
    with pytest.raises(ArtifactError, match="another model or optimiser"):
        load_policy_state(tmp_path / "state", wider)
    with pytest.raises(ArtifactError, match="another optimiser than the configuration's"):
        load_optimizer_state(tmp_path / "state", policy, adamw(policy, TrainConfig.model_validate(ADAGRAD)))
    (tmp_path / "state" / ".metadata").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_policy_state(tmp_path / "state", policy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharding": "row_wise"}, "exists for Adagrad only"),
        ({"sharding": "column_wise", **ADAGRAD}, "another step size than one process"),
        ({"sharding": "row_wise", "accumulate_batches": 2, **ADAGRAD}, "would run ahead"),
        ({"precision": "16-mixed"}, "Input should be '32-true' or 'bf16-mixed'"),
        ({"table_weight_decay": 0.1, **ADAGRAD}, "would not decay"),
        ({"batch_size": 1, "processes": 2}, "some would have no row"),
        ({"average_decay": 0.99, "sharding": "row_wise", **ADAGRAD}, "no process holds whole tables to average"),
        ({"distillation_weight": 1.0, "dense_weight": 0.0}, "untrained dense head would teach"),
        ({"distillation_weight": 1.0, "dense_sampled_items": 50}, "which sampling is to spare"),
    ],
)
def test_what_cannot_be_honoured_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(TrainConfig, settings, "my.yaml")


def test_clipping_leaves_adagrad_tables_alone(prepared: Dataset, tmp_path: Path) -> None:
    """A clip of 1e-12 stops all parameters that AdamW trains, but for its normalisation: only the table still learns."""
    moved = {}
    for clip in (1e-12, 0.0):
        folder = tmp_path / f"clip{clip}"
        Run(folder, prepared.path, ADAGRAD | {"max_epochs": 1, "validate_every_epochs": 1, "gradient_clip": clip}, {})()
        moved[clip] = load_policy(folder / "model").tables.weight("item")
    start = policy_for(prepared, seed=5).tables.weight("item")
    assert (moved[1e-12] - start).abs().max() > 1e-3
    assert (moved[1e-12] - start).norm() > 0.2 * (moved[0.0] - start).norm()


def test_two_small_batches_per_step_count_as_one_step(prepared: Dataset, tmp_path: Path) -> None:
    """84 windows in batches of 7 are 12 batches, hence 6 steps; a kill between the batches of a step loses none of them."""
    settings = {"max_epochs": 2, "validate_every_epochs": 1, "accumulate_batches": 2, "checkpoint_every_s": 1e-6}
    whole = Run(tmp_path / "whole", prepared.path, settings, {})
    whole()
    assert whole.losses()["step"].max() == 12
    assert len(whole.losses()) == 12 * 3
    Run(tmp_path / "killed", prepared.path, settings, {}, kill_at=8)()
    resumed = Run(tmp_path / "killed", prepared.path, settings, {})
    resumed()
    assert resumed.losses().equals(whole.losses())


def test_the_world_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert World.from_environment() == World(0, 1, 1)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    world = World.from_environment()
    assert (world.rank, world.num_machines, world.is_first) == (5, 2, False)


def test_no_two_processes_draw_alike() -> None:
    seeds = {seed_of_process(seed, step, rank) for seed in (1, 2) for step in (0, 7) for rank in range(4)}
    assert len(seeds) == 16


def test_the_training_command_reads_its_part_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 3\nsource: {kind: table}\ntrain: {max_epochs: 2}\n")
    recipe = read_training_recipe(path, ["train.batch_size=9"])
    assert (recipe.seed, recipe.train.max_epochs, recipe.train.batch_size) == (3, 2, 9)
    path.write_text("train: {max_epoch: 2}\nseed: 3\n")
    with pytest.raises(ConfigError, match="did you mean 'max_epochs'"):
        read_training_recipe(path, [])
