"""One process of a group: NCCL (gloo on a CPU) under the losses and the experts' load, as in training with several."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from tests.benchmarks.gpu import training, worlds
from tests.benchmarks.gpu.bench import Bench


def processes(bench: Bench) -> None:
    """A sum over one process, then two training steps inside the group; losses must be those without it."""
    shape = training.Shape("tiny", 16, 30, 3000, 64)
    shape = shape.shrunk() if bench.smoke else shape
    codes = worlds.random_codes(shape.items, shape.codebook)
    still = {"dropout": 0.0, "embedding_dropout": 0.0}
    config = worlds.model_config(shape.preset, smoke=bench.smoke, **still)

    def losses() -> list[float]:
        policy = worlds.build_policy(config, codes, shape.codebook).to(bench.device).train()
        step = training.TrainingStep(
            bench, policy, training.random_batch(policy, shape, shape.batch).to(bench.device), mixed=False
        )
        return [float(step()) for _ in range(2)]

    with bench.cell("group", 3), TemporaryDirectory() as folder:
        alone = losses()
        backend = "nccl" if bench.is_gpu else "gloo"
        dist.init_process_group(backend, init_method=f"file://{Path(folder) / 'store'}", rank=0, world_size=1)
        try:
            total = torch.ones(1000, device=bench.device)
            dist.all_reduce(total)
            together = losses()
        finally:
            dist.destroy_process_group()
        bench.row(
            "group",
            backend=backend,
            sum_is_right=bool((total == 1).all()),
            losses=together,
            largest_difference=max(abs(a - b) for a, b in zip(alone, together, strict=True)),
        )
