"""Several processes on one training, by torch.distributed as `torchrun` starts it: sums of gradients, nothing more.

Each process computes its share of every batch; the losses are normalised by the counts of the whole batch, so the sum
of the gradients is the gradient of the batch. With one process nothing here does anything.
"""

import atexit
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from glue_bench.errors import StepError

TIMEOUT = timedelta(hours=24)  # the others wait while the first one tokenises; a dead one is noticed at once
BUCKET_NUMBERS = 16 << 20  # gradients summed in one message: 64 MB


@dataclass(frozen=True)
class Group:
    """This process's place among those that train together."""

    rank: int
    size: int

    @property
    def records(self) -> bool:
        """Whether this is the one process that writes files and speaks."""
        return self.rank == 0


def join(device: torch.device) -> Group:
    """Join the processes that torchrun started (WORLD_SIZE, RANK, LOCAL_RANK); a group of one without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Group(0, 1)
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        atexit.register(_leave)
    return Group(dist.get_rank(), dist.get_world_size())


def sum_gradients(parameters: Iterable[torch.nn.Parameter], group: Group) -> None:
    """Replace every gradient by its sum over the group; a process without micro-batches of its own adds zeros."""
    if group.size == 1:
        return
    bucket: list[torch.Tensor] = []
    numbers = 0
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        numbers += parameter.grad.numel()
        if numbers >= BUCKET_NUMBERS:
            _sum(bucket)
            bucket, numbers = [], 0
    if bucket:
        _sum(bucket)


def sum_tensor(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Sum a tensor over the group, in place."""
    if group.size > 1:
        _collective(dist.all_reduce, tensor)
    return tensor


def first_value(value: int, group: Group, device: torch.device) -> int:
    """The first process's number, in all processes."""
    if group.size == 1:
        return value
    tensor = torch.tensor(value if group.rank == 0 else 0, device=device)
    return int(sum_tensor(tensor, group))


def require_same(text: str, group: Group, device: torch.device) -> None:
    """Raise StepError in a process whose text is not the first one's, before anything is summed over both."""
    number = int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)  # 60 bits fit an int64
    if first_value(number, group, device) != number:
        raise StepError(
            "this process was given other settings than the first one; on machines that differ set machine.threads "
            "and machine.precision, and start all of them with the same command"
        )


def _sum(gradients: list[torch.Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    _collective(dist.all_reduce, flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def _collective(operation: Any, value: Any) -> None:
    try:
        operation(value)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:150]
        raise StepError(
            f"lost another process of the group ({reason}); run the same command again: it goes on from the checkpoint"
        ) from None


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
