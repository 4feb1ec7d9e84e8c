"""What a process is set to while it trains on the CPU, and where the weights lie that it writes to."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from glue_bench.learning.heap import kept_heap


@contextlib.contextmanager
def set_to_train() -> Iterator[None]:
    """Within the block freed memory stays with the process, and denormal numbers count as zero.

    Adam's first moment of a word that is not met again shrinks by a tenth at every step: 750 steps later it is below
    1e-38, where a CPU computes ten times as slowly, and rounding keeps it from ever reaching 0. On SST-2 (60,000 rows,
    all-MiniLM-L6-v2, AMX) that is a quarter of the optimiser's time from step 800 on. No weight notices: such a moment
    would move it by less than 1e-30.
    """
    with kept_heap(), _denormals_as_zero():
        yield


@contextlib.contextmanager
def _denormals_as_zero() -> Iterator[None]:
    before = _are_zero()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _are_zero() -> bool:
    return float(torch.full((), 1e-39) * 1.0) == 0.0


def own_memory(model: nn.Module) -> None:
    """Copy a model's weights from the file that they are mapped from to memory of this process.

    The first step writes to every page of them, and with a mapped one that costs 8 µs, a fresh one 2: 0.2 of the 5 s
    that 20 steps of MiniLM-L6 take, where copying all of it takes 0.02.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
