"""Lightning strategies: one process with plain tables, or several with sharded ones. Both write the same checkpoints.

A checkpoint is a folder::

    tensors/      policy and optimiser (:mod:`recsys.training.distributed.checkpoint`)
    trainer.pt    loops, callbacks, position in the data, schedule: the same in every process
    rank_3.pt     random state of process 3; read back only by as many processes as wrote it
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel

from recsys.contracts.errors import ArtifactError
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.training.config import TrainConfig
from recsys.training.distributed.checkpoint import load_optimizer_state, load_policy_state, save_training_state
from recsys.training.distributed.sharding import shard_tables
from recsys.training.schedule import is_id_table

RANDOM_STATE = "random_state"
_FOLDER = "folder"


class FolderCheckpoints(Strategy):
    """What both strategies do alike: checkpoints as folders.

    The LightningModule must hold its policy as ``policy`` and have one optimiser.
    """

    world_size: int
    global_rank: int

    @property
    def policy(self) -> GenerativeRecommender:
        """The policy that is trained."""
        policy = getattr(self.lightning_module, "policy", None)
        if not isinstance(policy, GenerativeRecommender):
            raise TypeError(
                f"{type(self).__name__} trains modules with a policy, got {type(self.lightning_module).__name__}"
            )
        return policy

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Tensors are read where they will stay, so tables must have been sharded before."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: tensors go their own way."""
        return {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Nothing: tensors go their own way, and learning rates follow from the schedule."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the folder ``filepath``; every process must call it."""
        folder = Path(filepath)
        own = {RANDOM_STATE: checkpoint.pop(RANDOM_STATE, None), "world": self.world_size}
        if self.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.barrier()
        save_training_state(folder / "tensors", self.policy, self.optimizers[0])
        torch.save(own, folder / f"rank_{self.global_rank}.pt")
        if self.is_global_zero:
            torch.save(checkpoint, folder / "trainer.pt")
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read everything but the tensors; without a random state if another number of processes wrote it."""
        folder = Path(checkpoint_path)
        try:
            checkpoint: dict[str, Any] = torch.load(folder / "trainer.pt", weights_only=True, map_location="cpu")
            path = folder / f"rank_{self.global_rank}.pt"
            own = torch.load(path, weights_only=True, map_location="cpu") if path.exists() else {"world": None}
        except (OSError, RuntimeError, EOFError) as error:
            raise ArtifactError(f"checkpoint '{folder}' cannot be read: {error}; remove it to begin anew") from error
        if own["world"] == self.world_size:
            checkpoint[RANDOM_STATE] = own[RANDOM_STATE]
        return checkpoint | {_FOLDER: str(folder)}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Read the policy's tensors."""
        load_policy_state(Path(checkpoint[_FOLDER]) / "tensors", self.policy)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Read the optimiser's tensors, and put the schedule to its step.

        A schedule saves one rate per parameter group, and sharded tables have none, so only its step is taken over.
        """
        load_optimizer_state(Path(checkpoint[_FOLDER]) / "tensors", self.policy, self.optimizers[0])
        for number, config in enumerate(self.lr_scheduler_configs):
            schedule, saved = config.scheduler, checkpoint["lr_schedulers"][number]
            assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
            step = saved["last_epoch"]
            rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
            for group, rate in zip(self.optimizers[0].param_groups, rates, strict=True):
                group["lr"] = rate
            checkpoint["lr_schedulers"][number] = schedule.state_dict() | {
                "last_epoch": step,
                "_step_count": saved["_step_count"],
                "_last_lr": rates,
            }


class OneProcessStrategy(FolderCheckpoints, SingleDeviceStrategy):
    """One device and plain tables, whatever ``train.sharding`` says."""

    @property
    def parallel_devices(self) -> list[torch.device]:
        """Empty until Lightning, which asks for this name, has found the device."""
        return []

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device] | None) -> None:
        if devices:
            self._root_device = devices[0]


class TorchRecStrategy(FolderCheckpoints, DDPStrategy):
    """Several processes: sharded tables by TorchRec, everything else by DDP; gloo on CPUs, NCCL on GPUs.

    1. ``setup`` spreads the tables over the processes (:func:`~recsys.training.distributed.sharding.shard_tables`),
       before DDP and the optimiser look at the parameters;
    2. DDP leaves the shards out: neither broadcast at the start, nor averaged;
    3. the rest is Lightning's own DDP strategy.

    With ``train.sharding: none`` the tables are dense parameters like all others.
    """

    def __init__(self, config: TrainConfig) -> None:
        # unused parameters: the query of a dense head that is switched off, for one
        super().__init__(
            cluster_environment=TorchElasticEnvironment(), find_unused_parameters=True, broadcast_buffers=False
        )
        self.config = config

    def setup(self, trainer: Any) -> None:
        """Shard, then do what DDP does."""
        if self.config.sharding != "none":
            shard_tables(self.policy.tables, self.config, self.root_device)
        super().setup(trainer)

    def _setup_model(self, model: torch.nn.Module) -> DistributedDataParallel:
        if self.policy.tables.is_sharded:
            shards = [name for name, _ in model.named_parameters(remove_duplicate=False) if is_id_table(name)]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, shards)
        return super()._setup_model(model)
