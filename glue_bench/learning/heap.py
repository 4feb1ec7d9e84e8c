"""Memory while a model trains on the CPU: freed blocks stay with the process, weights leave the file they are in.

glibc maps every block of more than 32 MB anew and gives freed ones back to the kernel, so that each step faults the
same pages in and clears them again: logits and gradients over a vocabulary are such blocks. Measured with MiniLM-L6 to
3 layers on two Zen 3 cores, fp32, heads at masked positions: 760 tokens/s without this, 1,502 with it, at the same peak
of 1.5 GB. After an allocation that failed, glibc serves the thread from another arena, whose blocks of more than 64 MB
are mapped anew again: such a process goes on at the old speed. Not every block finds its predecessor's place at once:
blocks of one size may lie up to some eight times in the heap before all are reused.
"""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

from torch import nn

from glue_bench.timing.memory import release_free_memory

# Parameters of mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20}
# Where glibc's own adjustment ends up after one large block was freed. It is switched off by any call of mallopt, so
# what is timed later in this process must find the state that it would find in a fresh one.
USUAL = {MMAP_MAX: 65_536, TRIM_THRESHOLD: 64 << 20, TOP_PAD: 128 << 10, MMAP_THRESHOLD: 32 << 20}


@contextlib.contextmanager
def kept_heap() -> Iterator[None]:
    """Within the block freed memory is kept for reuse; afterwards it is given back. Does nothing without glibc."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL("libc.so.6")
    _apply(libc, KEPT)
    try:
        yield
    finally:
        _apply(libc, USUAL)
        release_free_memory()


def _apply(libc: ctypes.CDLL, parameters: dict[int, int]) -> None:
    for parameter, value in parameters.items():
        libc.mallopt(parameter, value)


def own_memory(model: nn.Module) -> None:
    """Copy a model's weights from the file that they are mapped from to memory of this process.

    Training writes to all of their pages, which costs 8 µs a page that is mapped and 2 µs a fresh one: on MRPC 0.3 s of
    a fine-tuning of MiniLM-L6, where copying everything takes 0.02 s. Shared parameters stay shared.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
