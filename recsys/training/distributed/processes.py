"""Several training processes: this one's place among them, starting them on this machine, and means over all of them.

Two ways lead to N processes, and both run :func:`recsys.training.fit.train_policy` in each:

- ``train.processes: N`` in the recipe: the calling process starts N workers on this machine and waits for them, so that
  ``recsys train`` and ``recsys run`` stay one command (:func:`start_workers`);
- torchrun, on one or several machines: ``torchrun --nproc_per_node 2 -m recsys.training.distributed.launch …``. Its
  environment variables are the protocol of both ways.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from recsys.contracts import errors
from recsys.contracts.errors import RecsysError
from recsys.runtime import set_threads
from recsys.scratch import scratch_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: 0 … size - 1.
        size: Processes on all machines.
        local_size: Processes on this machine.
    """

    rank: int
    size: int
    local_size: int

    @classmethod
    def from_environment(cls) -> World:
        """Read what torchrun (or :func:`start_workers`) set; one process where nothing is set."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1 or "RANK" not in os.environ:
            return cls(0, 1, 1)
        return cls(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))

    @property
    def num_machines(self) -> int:
        """Machines; all run the same number of processes."""
        return self.size // self.local_size

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


def means_over_processes(
    means: Sequence[torch.Tensor], counts: Sequence[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Turn each process's means into the means over the global batch.

    Processes hold different numbers of targets, so the mean of their means is not the mean of the batch. Gradients are
    averaged over processes (by DDP and by TorchRec alike), hence process r's mean over ``n_r`` of ``N`` targets must enter
    its loss with the factor ``world * n_r / N``. One all-reduce serves all losses of a step.

    Args:
        means: Losses of this process, with their graph; any finite value where the count is 0.
        counts: Targets behind each.

    Returns:
        Per loss ``(what to differentiate, what to log)``. In one process both are the mean itself.

    Example:
        Two processes with losses 1 and 4 over 3 and 1 targets differentiate ``2 * 3/4 * 1`` and ``2 * 1/4 * 4``; both log
        (3 * 1 + 1 * 4) / 4 = 1.75, which is also the average of what they differentiate.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [(mean, mean.detach()) for mean in means]
    own = torch.tensor(counts, dtype=torch.float64, device=means[0].device)
    totals = torch.stack([torch.stack([m.detach().double() for m in means]) * own, own])
    dist.all_reduce(totals)
    sums, num_targets = totals[0], totals[1].clamp(min=1)
    factors = (dist.get_world_size() * own / num_targets).float()
    logged = (sums / num_targets).float()
    return [(mean * factors[i], logged[i]) for i, mean in enumerate(means)]


def sums_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Add up a few numbers over all processes, in float64.

    Args:
        device: Where the process group can reach them; NCCL knows GPUs only.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return list(values)
    totals = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return list(totals.tolist())


def start_workers(work: Callable[..., Any], arguments: tuple[Any, ...], count: int) -> None:
    """Run ``work(*arguments)`` in ``count`` new processes on this machine and wait for all.

    The workers see torchrun's environment variables. They share this process's threads evenly and log at its level, the
    first of them everything, the others warnings.

    Args:
        work: A function of a module; it is found again by name in the new process.

    Raises:
        RecsysError: A worker raised one; it is raised again here, same class and message. Or a signal ended a worker: the
            message names it and, where it was a crash, the line of Python that the worker was in.
        ProcessRaisedException: A worker failed otherwise; the message holds its traceback.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    threads = max(1, torch.get_num_threads() // count)
    level = logging.getLogger("recsys").getEffectiveLevel()
    # one warning that DDP gives for what strategies.TorchRecStrategy asks of it; a process reads this when it starts
    quiet = {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
    with scratch_folder("processes") as folder, _environment(quiet):
        try:
            # spawn: a fork would inherit Polars' and CUDA's threads, which do not survive it
            multiprocessing.start_processes(
                _worker, (work, arguments, count, port, threads, level, str(folder)), nprocs=count, start_method="spawn"
            )
        except multiprocessing.ProcessRaisedException:
            for path in sorted(folder.glob("*.json")):
                told = json.loads(path.read_text(encoding="utf-8"))
                raise getattr(errors, told["class"])(told["message"]) from None
            raise
        except multiprocessing.ProcessExitedException as error:
            raise RecsysError(_crash(error, count, folder)) from error


def _crash(error: multiprocessing.ProcessExitedException, count: int, folder: Path) -> str:
    """What is known of a worker that ended without an exception of its own."""
    rank = error.error_index
    how = f"signal {error.signal_name}" if error.signal_name else f"exit code {error.exit_code}"
    advice = (
        "The kernel does this where memory runs out: take fewer `train.processes` or a smaller `train.batch_size`."
        if error.signal_name == "SIGKILL"
        else ""
    )
    trace = _trace(folder, rank)
    stack = trace.read_text(encoding="utf-8").strip() if trace.exists() else ""
    return "\n".join(
        part
        for part in (
            f"training process {rank} of {count} was ended by {how}; the others were stopped. The next run goes on from the "
            f"last checkpoint.",
            advice,
            stack,
        )
        if part
    )


def _trace(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.trace"


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _worker(
    rank: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    count: int,
    port: int,
    threads: int,
    level: int,
    folder: str,
) -> None:
    os.environ.update(worker_environment(rank, count, port))
    set_threads(threads)
    log_to_stderr()
    faulthandler.enable(_trace(Path(folder), rank).open("w", encoding="utf-8"))
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    logging.getLogger("recsys").setLevel(level if rank == 0 else max(level, logging.WARNING))
    try:
        work(*arguments)
    except RecsysError as error:
        told = {"class": type(error).__name__, "message": str(error)}
        (Path(folder) / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")
        raise
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    _leave()


def _leave() -> None:
    """End a process that has done its work, without taking the interpreter down.

    What still refers to the process group (DDP's reducer does) keeps gloo's threads alive beyond
    ``destroy_process_group``. They answer to the other process's leaving, which may come in the middle of this one's static
    destructors, and then abort a run that has succeeded.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def log_to_stderr() -> None:
    """Time and message on standard error, in place of what a library may have set up on import."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )


def worker_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun would set for process ``rank`` of ``count`` on one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
