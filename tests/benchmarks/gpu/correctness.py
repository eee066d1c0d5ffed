"""Does the GPU give what the CPU gives: items and scores, bfloat16's recall, graphs, compiled blocks, one training step.

Legend: B users, W beams.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from recsys.contracts.errors import ConfigError
from recsys.decoding.beam_search import Beams, beam_search
from recsys.decoding.bfloat16 import bfloat16_policy
from recsys.decoding.graphed_search import GraphedSearch
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.decoding.search_index import SearchIndex
from recsys.model.generative_recommender import GenerativeRecommender
from tests.benchmarks.gpu import training, worlds
from tests.benchmarks.gpu.bench import Bench

PRESETS: Final = ("tiny", "tiny_pathways", "tiny_lazy")
ITEMS, CODEBOOK, EVENTS, USERS, BEAM = 3000, 64, 30, 64, 50
SESSION: Final = 3


class Pair:
    """One policy on the CPU and on the device, with equal weights, and one batch of ragged histories."""

    def __init__(self, bench: Bench, preset: str, session: int = 1) -> None:
        self.items, codebook = bench.size(ITEMS, 300), bench.size(CODEBOOK, 8)
        codes = worlds.random_codes(self.items, codebook)
        changes = {"encoder_attention": "bidirectional"} if session > 1 else {}
        config = worlds.model_config(preset, smoke=bench.smoke, **changes)
        self.cpu = worlds.build_policy(config, codes, codebook, session=session).eval()
        self.gpu = worlds.build_policy(config, codes, codebook, session=session)
        self.gpu.load_state_dict(self.cpu.state_dict())
        self.gpu = self.gpu.to(bench.device).eval()
        index = PrefixIndex.build(codes, (codebook,) * worlds.LEVELS)
        self.cpu_index, self.gpu_index = SearchIndex.from_index(index), SearchIndex.from_index(index, bench.device)
        users, events = bench.size(USERS, 6), bench.size(EVENTS, 8)
        lengths = torch.randint(0, events + 1, (users,), generator=torch.Generator().manual_seed(2))
        self.history = worlds.histories(users, events, self.items, lengths)
        self.width, self.session = bench.size(BEAM, 8), session
        self.device = bench.device

    def on_cpu(self) -> Beams:
        """The reference."""
        with torch.inference_mode():
            return beam_search(self.cpu, self.history, self.cpu_index, self.width, num_items=self.session)

    def on_gpu(self, policy: GenerativeRecommender | None = None) -> Beams:
        """The same search on the device, by the policy there or another form of it."""
        history = self.history.to(self.device)
        with torch.inference_mode():
            return beam_search(policy or self.gpu, history, self.gpu_index, self.width, num_items=self.session)


def correctness(bench: Bench) -> None:
    """Search, then training."""
    for preset in PRESETS:
        with bench.cell(preset):
            searched(bench, preset)
    with bench.cell("sessions"):
        pair = Pair(bench, "tiny", SESSION)
        bench.row("sessions", **agreement(pair.on_cpu(), pair.on_gpu()))
    for cell, preset in (("training_small", "small"), ("training_tiny", "tiny")):
        with bench.cell(cell):
            bench.row(cell, **one_step(bench, preset))
    with bench.cell("compiled"):
        bench.row("compiled", **compiled_step(bench))


def searched(bench: Bench, preset: str) -> None:
    """CPU = GPU in float32, bfloat16's recall of it, and the graph against the plain search."""
    pair = Pair(bench, preset)
    reference = pair.on_cpu()
    plain = pair.on_gpu()
    bench.row(f"cpu_{preset}", preset=preset, **agreement(reference, plain))
    half = bfloat16_policy(pair.gpu)  # what a recommender decodes with
    with bench.autocast():
        low = pair.on_gpu(half)
        bench.row(f"bfloat16_{preset}", preset=preset, recall=recall(plain, low), largest_difference=gap(plain, low))
    if not bench.is_gpu:
        bench.row(f"graph_{preset}", skipped="a graph needs a GPU")
        return
    for name, on in (("bfloat16", True), ("float32", False)):
        with bench.cell(f"graph_{name}_{preset}"), bench.autocast(on):
            try:
                graphed = GraphedSearch(half if on else pair.gpu, pair.gpu_index, [pair.width], len(pair.history))
                for _ in range(2):  # the second replays what the first recorded
                    replayed = graphed(pair.history.to(bench.device), BatchRules())
            except ConfigError as refusal:
                bench.row(f"graph_{name}_{preset}", preset=preset, refused=str(refusal)[:300])
                continue
            bench.row(f"graph_{name}_{preset}", preset=preset, **agreement(low if on else plain, replayed))


def agreement(left: Beams, right: Beams) -> dict[str, float]:
    """Share of places with the same item, and the largest difference of scores that exist on both sides."""
    same = (left.items.cpu() == right.items.cpu()).all(-1).float().mean()
    return {"same_items": round(float(same), 5), "largest_difference": gap(left, right)}


def gap(left: Beams, right: Beams) -> float:
    """Largest difference of scores, place by place; ``inf`` where a beam exists on one side alone."""
    ours, theirs = left.scores.cpu().double(), right.scores.cpu().double()
    if not torch.equal(ours.isfinite(), theirs.isfinite()):
        return float("inf")
    return float((ours - theirs)[ours.isfinite()].abs().max())


def recall(full: Beams, low: Beams) -> float:
    """Share of the items found in full precision that are found in the lower one, too."""
    pairs = zip(full.items[..., 0].tolist(), low.items[..., 0].tolist(), strict=True)
    shares = [len({i for i in a if i >= 0} & set(b)) / max(1, len({i for i in a if i >= 0})) for a, b in pairs]
    return round(float(np.mean(shares)), 5)


def _training_pair(bench: Bench, preset: str) -> tuple[list[GenerativeRecommender], Any]:
    """Two equal policies without dropout, and a batch."""
    items, codebook = bench.size(ITEMS, 300), bench.size(CODEBOOK, 8)
    codes = worlds.random_codes(items, codebook)
    still = {"dropout": 0.0, "embedding_dropout": 0.0}
    config = worlds.model_config(preset, smoke=bench.smoke, **still)
    policies = [worlds.build_policy(config, codes, codebook).train() for _ in range(2)]
    policies[1].load_state_dict(policies[0].state_dict())
    shape = training.Shape(preset, bench.size(32, 3), bench.size(EVENTS, 8), items, codebook)
    return policies, training.random_batch(policies[0], shape, shape.batch)


def one_step(bench: Bench, preset: str) -> dict[str, float]:
    """Loss and gradient norm of the same batch: CPU in float32 against the device in float32 and in bfloat16."""
    policies, batch = _training_pair(bench, preset)
    cpu = training.TrainingStep(Bench(torch.device("cpu"), bench.smoke), policies[0], batch, mixed=False)
    figures = dict(zip(("loss_cpu", "norm_cpu"), loss_and_norm(cpu), strict=True))
    gpu = policies[1].to(bench.device)
    moved = batch.to(bench.device)
    for name, mixed in (("float32", False), ("bfloat16", True)):
        step = training.TrainingStep(bench, gpu, moved, mixed=mixed)
        figures |= dict(zip((f"loss_{name}", f"norm_{name}"), loss_and_norm(step), strict=True))
    figures["relative_norm_float32"] = abs(figures["norm_float32"] / figures["norm_cpu"] - 1)
    figures["relative_norm_bfloat16"] = abs(figures["norm_bfloat16"] / figures["norm_cpu"] - 1)
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def loss_and_norm(step: training.TrainingStep) -> tuple[float, float]:
    """Loss of a batch and norm of its gradient; nothing is updated."""
    step.optimiser.zero_grad(set_to_none=True)
    loss = step.loss()
    loss.backward()
    grads = [parameter.grad for parameter in step.parameters if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad.float()) for grad in grads]))
    return float(loss), float(norm)


def compiled_step(bench: Bench) -> dict[str, float]:
    """Compiled blocks against eager ones on one batch."""
    policies, batch = _training_pair(bench, "tiny")
    moved = batch.to(bench.device)
    eager, other = (policy.to(bench.device) for policy in policies)
    figures = dict(
        zip(("loss_eager", "norm_eager"), loss_and_norm(training.TrainingStep(bench, eager, moved)), strict=True)
    )
    training.compiled(other, bench.smoke)
    figures |= dict(
        zip(("loss_compiled", "norm_compiled"), loss_and_norm(training.TrainingStep(bench, other, moved)), strict=True)
    )
    figures["relative_norm"] = abs(figures["norm_compiled"] / figures["norm_eager"] - 1)
    return {name: float(f"{value:.6g}") for name, value in figures.items()}
