"""The heap that training keeps: freed blocks are reused, and given back in the end.

The scenarios run in a process of their own, started from this very file: glibc moves a thread to another arena, with
other rules, once an allocation of it has failed, and other tests make allocations fail. So that scenario is the last.
"""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glue_bench.learning.heap import kept_heap
from glue_bench.timing.memory import process_memory, release_free_memory

BLOCK = 40 << 20  # bytes: more than glibc ever takes from its heap of its own accord
# A sliver is freed before each aligned block, and glibc keeps 7 of each of 4 sizes apart: so many blocks can miss the
# place of the one before.
ROUNDS = 32

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's heap can be told to keep memory"
)


def touch() -> None:
    torch.empty(BLOCK, dtype=torch.uint8).fill_(1)


def page_faults(rounds: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        touch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def freed_blocks_are_reused_within_the_block_and_go_after_it() -> None:
    memory = process_memory()
    page_faults(1)
    release_free_memory()
    before = memory.current()
    usual = page_faults(ROUNDS)
    assert memory.current() - before < 0.1 * BLOCK
    with kept_heap():
        page_faults(ROUNDS)
        kept = memory.current() - before
        assert kept > 0.9 * BLOCK
        assert page_faults(ROUNDS) < 0.01 * usual, "pages are faulted in again and again"
        assert memory.current() - before - kept < 0.1 * BLOCK, "memory grows without an end"
    assert memory.current() - before < 0.1 * BLOCK
    page_faults(1)
    release_free_memory()
    assert memory.current() - before < 0.1 * BLOCK, "what the heap took later cannot be given back"


def memory_is_given_back_after_an_error() -> None:
    memory = process_memory()
    release_free_memory()
    before = memory.current()
    with pytest.raises(KeyboardInterrupt), kept_heap():
        touch()
        raise KeyboardInterrupt
    assert memory.current() - before < 0.1 * BLOCK


def memory_is_given_back_after_a_failed_allocation() -> None:
    memory = process_memory()
    before = memory.current()
    with kept_heap():
        with pytest.raises(RuntimeError):
            torch.empty(1 << 50, dtype=torch.uint8)
        touch()
    assert memory.current() - before < 0.1 * BLOCK


@pytest.mark.slow
def test_in_a_fresh_process() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    freed_blocks_are_reused_within_the_block_and_go_after_it()
    memory_is_given_back_after_an_error()
    memory_is_given_back_after_a_failed_allocation()
