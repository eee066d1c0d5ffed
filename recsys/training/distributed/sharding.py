"""Id tables over several processes: TorchRec's ``DistributedModelParallel`` around the embedding collection.

What happens to a step's ids:

1. :func:`step_ids` names every row that the step will read;
2. :meth:`~recsys.model.layers.tables.FeatureTables.one_lookup` drops repeats and asks the sharded collection once: ids
   travel to the process that owns the row (all-to-all), vectors travel back;
3. in the backward pass the gradients of the distinct rows take the same way, and the owner applies row-wise Adagrad to the
   sum over processes at once (fused), without a gradient ever being stored for the table.

The dense part is not here: Lightning's DDP averages its gradients (:mod:`recsys.training.distributed.strategies`).

Legend: B users, H history events, P prediction points, M items per session, N ids, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingCollection

from recsys.contracts.errors import ConfigError
from recsys.data.batch import TrainingBatch
from recsys.model.encoder import EVENT_FEATURES
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.layers.tables import FeatureTables
from recsys.training.config import Sharding, TrainConfig
from recsys.training.distributed.processes import World
from recsys.training.table_optimizers import ADAGRAD_EPS

FUSED: Final = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
}

MIN_COLUMNS: Final = 4
"""FBGEMM's kernels read rows in groups of four numbers."""


def shard_tables(tables: FeatureTables, config: TrainConfig, device: torch.device) -> None:
    """Spread the tables over all processes of the default group; what they hold is kept.

    Every process must hold the same plain tables; each keeps its shards and drops the rest. So the whole tables must fit
    into memory once per process, at the start.

    Raises:
        ConfigError: The planner finds no way to lay the tables out.
    """
    assert config.sharding != "none", "nothing to shard"
    logging.getLogger("torchrec").setLevel(logging.ERROR)  # advice on cluster planning at every start
    world = World.from_environment()
    sharder: Any = EmbeddingCollectionSharder(
        fused_params={
            "optimizer": FUSED[config.table_optimizer],
            "learning_rate": config.effective_table_learning_rate,
            "eps": ADAGRAD_EPS,
        }
    )
    collection = tables.collection
    assert isinstance(collection, EmbeddingCollection)
    planner = EmbeddingShardingPlanner(
        topology=_topology(world, device),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
        constraints=_constraints(tables, config.sharding, world.size),
        debug=False,
    )
    try:
        # planned in every process alike: an error inside a collective plan would leave the others waiting
        plan = planner.plan(collection, [sharder])
    except PlannerError as error:
        raise ConfigError(
            f"train.sharding={config.sharding!r}: tables of width {tables.width} cannot be laid out over {world.size} "
            f"processes: {str(error).splitlines()[0]}; take another sharding or another number of processes"
        ) from error
    parallel = DistributedModelParallel(
        collection,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=plan,
        sharders=[sharder],
        init_data_parallel=False,
    )
    # without its wrapper, which renames everything around it when it is asked for its state inside a larger module
    tables.collection = parallel.module


def _topology(world: World, device: torch.device) -> Topology:
    """What the planner may fill: the memory of the smallest machine, so that all processes make the same plan."""
    import psutil  # not on every machine that trains in one process

    host = psutil.virtual_memory().total // world.local_size
    accelerator = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    smallest = torch.tensor([host, accelerator], device=device)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    host, accelerator = (int(size) for size in smallest)
    return Topology(
        world_size=world.size,
        local_world_size=world.local_size,
        compute_device=device.type,
        ddr_cap=host,
        hbm_cap=accelerator,
    )


def _constraints(tables: FeatureTables, sharding: Sharding, world: int) -> dict[str, ParameterConstraints]:
    columns = tables.width // world
    if sharding == "column_wise" and (tables.width % world or columns % MIN_COLUMNS):
        raise ConfigError(
            f"train.sharding='column_wise': model.width {tables.width} over {world} processes is "
            f"{tables.width / world:g} columns each, expected a multiple of {MIN_COLUMNS}; change the width or the number "
            "of processes, or take row_wise"
        )
    return {
        table.name: ParameterConstraints(
            sharding_types=[sharding],
            compute_kernels=["fused"],
            min_partition=columns if sharding == "column_wise" else None,
        )
        for table in tables.configs
    }


def step_ids(policy: GenerativeRecommender, batch: TrainingBatch, dense_rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every table row that a training step may read.

    Args:
        dense_rows: Item rows that the dense head scores, ``[N]``.
    """
    history = batch.history
    items = torch.cat([history.item_BH.flatten(), dense_rows.flatten()])
    tower = policy.item_tower
    ids = {"item": items, "author": tower.author_I[items], "category": tower.category_I[items], "user": history.user_B}
    ids |= {name: getattr(history, f"{name}_BH") for name in EVENT_FEATURES}
    return {name: ids[name] for name in policy.tables.features}


def set_learning_rate(tables: FeatureTables, learning_rate: float) -> None:
    """Hand the fused optimiser the learning rate of the coming backward pass."""
    optimizer = _sharded(tables).fused_optimizer
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()  # passes the rate on to the kernels; the step itself is part of the backward pass


@contextmanager
def gathered(tables: FeatureTables, device: torch.device) -> Iterator[None]:
    """Let ``tables`` be plain and whole inside the ``with`` block, in every process; all must enter.

    For validation and for writing the model: decoding needs no collective lookups then, processes may do different
    work, and everything downstream sees an ordinary policy. Changes made inside are lost. Does nothing to plain tables.

    Args:
        device: This process's device, where the whole tables must fit beside their shards.
    """
    if not tables.is_sharded:
        yield
        return
    sharded = tables.collection
    tables.collection = _gather(tables, device)
    try:
        yield
    finally:
        tables.collection = sharded


def _gather(tables: FeatureTables, device: torch.device) -> EmbeddingCollection:
    sharded = _sharded(tables)
    plain = EmbeddingCollection(tables=tables.configs, device=torch.device("meta"))
    for name, shards in sharded.state_dict().items():
        whole = torch.zeros(shards.size(), device=device)
        for shard in shards.local_shards():
            (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            whole[row : row + rows, column : column + columns] = shard.tensor
        dist.all_reduce(whole)  # every entry has one owner: the sum puts the parts together
        plain.embeddings[name.split(".")[1]].weight = torch.nn.Parameter(whole, requires_grad=False)
    return plain


def table_tensors(tables: FeatureTables) -> dict[str, ShardedTensor]:
    """Weights and optimiser state of sharded tables, named as in a plain collection.

    ``embeddings.table_item.weight`` is the weight, ``embeddings.table_item.weight/sum`` the accumulated squares. The tensors
    are views: reading a checkpoint into them changes the tables.
    """
    sharded = _sharded(tables)
    found: dict[str, ShardedTensor] = dict(sharded.state_dict())
    for name, state in sharded.fused_optimizer.state_dict()["state"].items():
        (found[f"{name}/sum"],) = (value for key, value in state.items() if key.endswith(".momentum1"))
    return found


def _sharded(tables: FeatureTables) -> ShardedEmbeddingCollection:
    assert isinstance(tables.collection, ShardedEmbeddingCollection)
    return tables.collection
