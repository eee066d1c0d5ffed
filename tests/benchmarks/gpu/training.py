"""Training: model FLOPs utilisation per preset, compiled blocks, and an epoch of Beauty through the real trainer.

Legend: B users, H history events, P prediction points, M items of a session.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import lightning
import torch

from recsys.data.batch import TrainingBatch
from recsys.decoding.config import DecodeConfig
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.summary import summarise, training_flops
from recsys.runtime import SilentProgress
from recsys.training.acceleration import compile_blocks, float32_products
from recsys.training.config import TrainConfig
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from recsys.training.schedule import adamw
from tests.benchmarks.gpu import worlds
from tests.benchmarks.gpu.bench import Bench

SAMPLED_ITEMS: Final = 8192
"""Negatives of the dense head for a catalogue whose full softmax nobody would train."""
FULL_SOFTMAX_ITEMS: Final = 20_000
CPU_SECONDS: Final = 12.0
"""How long one CPU core trains; an epoch of it is extrapolated from the targets it met."""


@dataclass(frozen=True)
class Shape:
    """A training measurement.

    Attributes:
        batch, events, session: B, H, M.
        codebook: Codes of a level.
    """

    preset: str
    batch: int
    events: int
    items: int = 12_000
    codebook: int = 256
    session: int = 1

    def shrunk(self) -> Shape:
        """The smoke form's."""
        return Shape(self.preset, 4, 8, 300, 8, min(self.session, 2))


PAPER = {"events": 256, "items": 100_000, "codebook": 8192, "session": 5}


def random_batch(policy: GenerativeRecommender, shape: Shape, batch: int) -> TrainingBatch:
    """Full histories; with a causal encoder and one item per answer every prefix asks, otherwise one session per user."""
    history = worlds.histories(batch, shape.events, shape.items)
    generator = torch.Generator().manual_seed(1)
    causal = policy.spec.model.encoder_attention == "causal" and shape.session == 1
    points = shape.events + 1 if causal else 1
    target = torch.randint(1, shape.items + 1, (batch, points, shape.session), generator=generator)
    visible = torch.arange(points).expand(batch, points) if causal else history.lengths_B[:, None]
    return TrainingBatch(history, target, visible.contiguous())


class TrainingStep:
    """One optimiser step as the trainer makes it: the module's loss, backward, clipping, balancing, AdamW.

    Args:
        mixed: bfloat16 by autocast; otherwise float32.
    """

    def __init__(
        self, bench: Bench, policy: GenerativeRecommender, batch: TrainingBatch, *, mixed: bool = True
    ) -> None:
        sampled = SAMPLED_ITEMS if policy.spec.dataset.num_items > FULL_SOFTMAX_ITEMS else None
        self.config = TrainConfig(dense_sampled_items=sampled)
        self.scored_items = policy.spec.dataset.num_items if sampled is None else sampled + 1
        ids: Any = None  # only validation asks for semantic IDs
        self.module = PolicyModule(policy, self.config, DecodeConfig(), ids, total_steps=1000)
        self.module.log = lambda *_, **__: None  # type: ignore[method-assign]  # no trainer to log to
        self.bench, self.batch, self.mixed = bench, batch, mixed
        self.optimiser, self.done = adamw(policy, self.config), 0
        self.parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def loss(self) -> torch.Tensor:
        """Forward."""
        with self.bench.autocast(self.mixed):
            return self.module.training_step(self.batch, 0)

    def __call__(self) -> torch.Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.done += 1
        self.module.finite.clip(self.optimiser, self.config.gradient_clip, self.done)
        self.module.on_before_optimizer_step(self.optimiser)
        self.optimiser.step()
        return loss.detach()


def compiled(policy: GenerativeRecommender, smoke: bool, precision: str = "bf16-mixed") -> None:
    """Compile every block for one shape; the smoke form only traces, because a CPU compiles for a minute."""
    compile_blocks(policy, precision, "aot_eager" if smoke else "inductor", dynamic=False)


def measure(
    bench: Bench, cell: str, shape: Shape, *, mixed: bool = True, with_compiled: bool = False, needs: float = 5.0
) -> None:
    """One row: milliseconds of a step, targets per second, share of the roof, memory."""
    if bench.smoke:
        shape = shape.shrunk()

    def run(batch: int) -> dict[str, Any]:
        config = worlds.model_config(shape.preset, smoke=bench.smoke)
        codes = worlds.random_codes(shape.items, shape.codebook)
        policy = worlds.policy_on(bench.device, config, codes, shape.codebook, session=shape.session).train()
        sizes = summarise(policy, history=shape.events)
        examples = random_batch(policy, shape, batch)
        counts = examples.asked.counts
        targets = int(counts.items_G.sum())
        if with_compiled:
            compiled(policy, bench.smoke)
        step = TrainingStep(bench, policy, examples.to(bench.device), mixed=mixed)
        start = time.perf_counter()
        first = float(step())
        first_seconds = time.perf_counter() - start
        seconds = bench.seconds(step, 6, 2)
        step.module.check_steps()
        flops = training_flops(policy, counts, len(counts.items_G), step.scored_items)
        return {
            "ms": round(seconds * 1e3, 2),
            "targets_per_s": round(targets / seconds),
            "mfu": round(flops / seconds / bench.roofs["bf16" if mixed else "f32"], 4),
            "gflop_per_target": round(flops / targets / 1e9, 4),
            "parameters_m": round(sizes.total / 1e6, 1),
            "first_step_s": round(first_seconds, 1),
            "peak_gb": bench.peak_gb(),
            "first_loss": round(first, 3),
            "loss": round(float(step()), 3),
        }

    with bench.cell(cell, needs), float32_products(bench.device, tf32=TrainConfig().tf32):
        batch, figures = bench.largest(cell, shape.batch, run)
        kind = {"preset": shape.preset, "batch": batch, "events": shape.events, "session": shape.session}
        precision = "bf16-mixed" if mixed else "float32"
        bench.row(cell, **kind, items=shape.items, precision=precision, compiled=with_compiled, **figures)


def training(bench: Bench) -> None:
    """MFU of the presets."""
    measure(bench, "paper_v1_512", Shape("paper_v1", 512, **PAPER), needs=15)
    measure(bench, "small_512", Shape("small", 512, 100))
    measure(bench, "small_128_float32", Shape("small", 128, 100), mixed=False)
    if not bench.smoke:  # the smoke form knows one size
        measure(bench, "tiny_256", Shape("tiny", 256, 50))
        measure(bench, "paper_v1_128", Shape("paper_v1", 128, **PAPER), needs=10)
        measure(bench, "small_128", Shape("small", 128, 100))
    profile_step(bench, "paper_v1_profile", Shape("paper_v1", 128, **PAPER))


def compile(bench: Bench) -> None:
    """The same with compiled blocks: what the first step costs and what every further one gains."""
    measure(bench, "small_512_compiled", Shape("small", 512, 100), with_compiled=True, needs=20)
    measure(bench, "paper_v1_512_compiled", Shape("paper_v1", 512, **PAPER), with_compiled=True, needs=25)


def profile_step(bench: Bench, cell: str, shape: Shape) -> None:
    """Where a step goes: the operators that take most of the device's time."""
    if bench.smoke:
        shape = shape.shrunk()
    with bench.cell(cell, 12):
        config = worlds.model_config(shape.preset, smoke=bench.smoke)
        codes = worlds.random_codes(shape.items, shape.codebook)
        policy = worlds.policy_on(bench.device, config, codes, shape.codebook, session=shape.session).train()
        step = TrainingStep(bench, policy, random_batch(policy, shape, shape.batch).to(bench.device))
        bench.row(cell, **profiled(bench, step))


def profiled(bench: Bench, run: Callable[[], object], top: int = 12) -> dict[str, Any]:
    """Device milliseconds and calls of the operators that take most, and the wall clock beside their sum."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):
        run()
    bench.wait()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_gpu else [])]
    with profile(activities=kinds) as recorded:
        start = time.perf_counter()
        run()
        bench.wait()
        wall = time.perf_counter() - start
    name = "self_device_time_total" if bench.is_gpu else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, name))
    return {
        "wall_ms": round(wall * 1e3, 2),
        "busy_ms": round(sum(getattr(event, name) for event in events) / 1e3, 2),
        "top": [[event.key[:60], round(getattr(event, name) / 1e3, 2), event.count] for event in events[:top]],
    }


class EpochClock(lightning.Callback):
    """Seconds of every training epoch, validation left out, and the targets of the batches that were trained."""

    def __init__(self, bench: Bench, stop_after: float | None = None) -> None:
        self.bench, self.stop_after = bench, stop_after
        self.seconds: list[float] = []
        self.targets = 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Begin."""
        self.bench.wait()
        self._start, self.targets, self._steps = time.perf_counter(), 0, 0

    def on_train_batch_end(self, trainer: lightning.Trainer, _: Any, __: Any, batch: TrainingBatch, *___: Any) -> None:
        """Count on the CPU alone, where nothing has to be waited for; stop there when the time is over."""
        if self.stop_after is None:
            return
        self.targets += int((batch.target_BPM > 0).sum())
        self._steps += 1
        if self._steps == 3:  # the first batches are slower than the rest
            self._start, self.targets = time.perf_counter(), 0
        if self._steps > 3 and time.perf_counter() - self._start > self.stop_after:
            raise StopEarly(self.targets / (time.perf_counter() - self._start))

    def on_train_epoch_end(self, *_: Any) -> None:
        """End."""
        self.bench.wait()
        self.seconds.append(time.perf_counter() - self._start)


class StopEarly(Exception):
    """Carries the targets per second out of the trainer."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate


def beauty(bench: Bench) -> None:
    """An epoch of ``beauty.yaml``'s policy on the GPU, through the real trainer, against one CPU core."""
    with bench.cell("epoch", 25), TemporaryDirectory() as folder:
        dataset, ids, source = worlds.beauty_dataset(Path(folder) / "data", smoke=bench.smoke)
        model = ModelConfig(
            preset="tiny", width=bench.size(128, 16), max_history=20, dropout=0.3, embedding_dropout=0.3
        )
        train = {
            "batch_size": bench.size(256, 16),
            "label_smoothing": 0.1,
            "dense_targets_share": 0.5,
            "validation_users": bench.size(3000, 20),
            "max_epochs": bench.size(4, 2),
            "validate_every_epochs": 100,
        }
        decode = DecodeConfig(beam_width=bench.size(50, 5))

        def run(name: str, clock: EpochClock, device: torch.device, **changes: Any) -> dict[str, Any]:
            config = TrainConfig(**{**train, **changes})
            inputs = TrainingInputs(dataset, ids, model, config, decode, seed=17, device=device)
            return train_policy(inputs, Path(folder) / name, SilentProgress(), [clock])

        clock = EpochClock(bench)
        precision = "bf16-mixed"
        report = run("gpu", clock, bench.device, precision=precision)
        seconds = min(clock.seconds)
        rate = report["targets_per_epoch"] / seconds
        figures = {"source": source, "epoch_s": round(seconds, 2), "targets_per_s": round(rate)}
        bench.row("epoch", **figures, epochs=[round(s, 2) for s in clock.seconds], precision=precision)
        cpu_rate = cpu_core_rate(run, bench)
        bench.row(
            "against_one_core",
            targets_per_s=round(cpu_rate),
            epoch_s=round(report["targets_per_epoch"] / cpu_rate, 1),
            times=round(rate / cpu_rate, 1),
        )


def cpu_core_rate(run: Callable[..., dict[str, Any]], bench: Bench) -> float:
    """Targets per second of the same training on one core, over some seconds of an epoch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run("cpu", EpochClock(bench, stop_after=bench.size(CPU_SECONDS, 0)), torch.device("cpu"))
    except StopEarly as stopped:
        return stopped.rate
    finally:
        torch.set_num_threads(threads)
    raise RuntimeError("the epoch ended before its rate was measured")
