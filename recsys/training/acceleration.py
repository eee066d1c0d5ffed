"""What makes training faster on a device and changes no more than rounding: TF32, and compiled blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from recsys.model.generative_recommender import GenerativeRecommender

logger = logging.getLogger("recsys.training")


@contextmanager
def float32_products(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Let float32 matrix products on a GPU round their inputs to TF32, or forbid it, inside the ``with`` block.

    Nothing changes for a CPU, where the same setting of torch would let some processors round to bfloat16.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compile_blocks(
    policy: GenerativeRecommender,
    precision: str,
    backend: str | Callable[..., Any] = "inductor",
    *,
    dynamic: bool = True,
) -> int:
    """Compile every block of encoder and decoder in place, for training; return how many there are.

    Blocks rather than the model: blocks of one kind share what was compiled, so the warm-up does not grow with depth, and
    lookups and losses, which break a graph, stay outside. Sizes are symbols, so that a batch of another length needs nothing
    new; what does (a batch without padding needs no mask, say) torch compiles at most eight times per kind, and runs as it
    was from then on. Names of parameters and what is saved stay, and validation and decoding run the blocks as they were.

    Args:
        precision: Of training, as Lightning has it. torch compiles grouped products in bfloat16 alone: in float32 those of
            the experts run between two graphs.
        backend, dynamic: As ``torch.compile`` has them.
    """
    lists = [module for name, module in policy.named_modules() if name.rpartition(".")[2] == "blocks"]
    blocks = [block for blocks in lists for block in blocks.children()]
    if precision == "32-true":
        for layer in policy.moe_layers():
            layer._experts = torch.compiler.disable(layer._experts)  # type: ignore[method-assign]
    for block in blocks:
        block.compile(dynamic=dynamic, backend=backend)
        block._compiled_call_impl = partial(_call, block, block._compiled_call_impl)
    logger.info("training: %d blocks are compiled in the first steps", len(blocks))
    return len(blocks)


def _call(block: torch.nn.Module, compiled: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a block: the compiled form while it trains."""
    return (compiled if block.training else block._call_impl)(*arguments, **named)
