"""Distributed training: the processes of a run, and how they add up their sums.

Plain `torch.distributed` under `torchrun`: gloo between CPUs, nccl between GPUs. A single process is a
group of one, so the trainer has one code path.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others, such as while rank 0 builds windows."""


@dataclass(frozen=True)
class MicroBatch:
    """Some windows of a global batch (their `index`), and which of its micro-batches they are."""

    number: int
    index: NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """The processes of a run: this one is `rank` of `size`."""

    rank: int
    size: int

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's `values`, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def micro_batches(self, batch: NDArray[np.int64], *, alone: int = 1) -> list[MicroBatch]:
        """This process's micro-batches of a global batch; they differ by at most one window, or are empty.

        Each process has one; a process alone has `alone` of them, and with two computes the very numbers
        that two processes do.
        """
        split = np.array_split(batch, alone if self.size == 1 else self.size)
        numbered = [MicroBatch(number, index) for number, index in enumerate(split)]
        return numbered if self.size == 1 else [numbered[self.rank]]

    def wait(self) -> None:
        """Wait for every process to come here."""
        if self.size > 1:
            dist.barrier()


ALONE = Group(0, 1)


def launched_by_torchrun() -> bool:
    """Whether `torchrun` started this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined_group(device: torch.device) -> Iterator[tuple[Group, torch.device]]:
    """Join the other processes that `torchrun` started: the group, and the device of this process.

    Without `torchrun` it is a group of one on `device`.
    """
    if not launched_by_torchrun():
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Group(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
