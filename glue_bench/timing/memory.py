"""Peak memory, of the process and of the device, as the rise while a piece of work runs.

A process has one peak for all models that it timed. So the peak is reset before each piece of work (Linux: writing 5
to /proc/self/clear_refs sets VmHWM back to the present size), or, elsewhere, the size is sampled by a thread. Both are
used outside the timed passes only.
"""

import contextlib
import ctypes
import gc
import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
SAMPLE_SECONDS = 0.002
PROC = Path("/proc/self")


@dataclass(frozen=True)
class Memory:
    """`current()` gives bytes now; `watch()` begins to watch and gives a function that ends it and returns the peak."""

    how: str
    current: Callable[[], int]
    watch: Callable[[], Callable[[], int]]


def peak_rise(memory: Memory, work: Callable[[], Result]) -> tuple[Result, int]:
    """Run `work`; return its result and by how many bytes memory rose above its level before, at the highest."""
    release_free_memory()
    before = memory.current()
    peak = memory.watch()
    try:
        result = work()
    finally:
        highest = peak()
    return result, max(0, highest - before)


def held(memory: Memory, make: Callable[[], Result]) -> tuple[Result, int]:
    """Run `make`; return its result and by how many bytes memory stands higher afterwards."""
    release_free_memory()
    before = memory.current()
    result = make()
    release_free_memory()
    return result, max(0, memory.current() - before)


def process_memory(proc: Path = PROC) -> Memory:
    """Resident memory of this process: by the kernel's resettable high-water mark where it works, else sampled."""
    if _resets(proc):
        return Memory("VmHWM after a reset", lambda: _status_bytes(proc, "VmRSS"), lambda: _watch_high_water_mark(proc))
    import psutil

    process = psutil.Process()
    return Memory(
        f"resident size sampled every {SAMPLE_SECONDS * 1000:g} ms",
        lambda: process.memory_info().rss,
        lambda: _watch_by_sampling(lambda: process.memory_info().rss),
    )


def cuda_memory(cuda: Any) -> Memory:
    """Memory that torch's allocator hands out on the current CUDA device; `cuda` is torch.cuda."""

    def watch() -> Callable[[], int]:
        cuda.reset_peak_memory_stats()
        return cuda.max_memory_allocated

    return Memory("torch.cuda.max_memory_allocated after a reset", cuda.memory_allocated, watch)


def release_free_memory() -> None:
    """Collect garbage and give the C library's free pages back, so that what one model freed does not hide what the
    next one takes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status_bytes(proc: Path, key: str) -> int:
    for line in (proc / "status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{proc / 'status'} has no {key}")


def _watch_high_water_mark(proc: Path) -> Callable[[], int]:
    (proc / "clear_refs").write_text("5", encoding="ascii")
    return lambda: _status_bytes(proc, "VmHWM")


def _resets(proc: Path) -> bool:
    """Whether the high-water mark can be read and set back: raise it by 16 MB, give them back, reset, look.

    The memory is mapped by hand: what is freed to the C library can stay with the process.
    """
    try:
        before = _watch_high_water_mark(proc)()
        with mmap.mmap(-1, 16 << 20) as block:
            block.write(bytes(16 << 20))
            raised = _status_bytes(proc, "VmHWM") - before
        reset = _watch_high_water_mark(proc)() - before
    except OSError:
        return False
    return raised > (12 << 20) and reset < raised - (12 << 20)


def _watch_by_sampling(current: Callable[[], int]) -> Callable[[], int]:
    highest = current()
    ended = threading.Event()

    def sample() -> None:
        nonlocal highest
        while not ended.wait(SAMPLE_SECONDS):
            highest = max(highest, current())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()

    def stop() -> int:
        ended.set()
        thread.join()
        return max(highest, current())

    return stop
