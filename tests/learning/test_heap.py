"""The heap that training keeps: freed blocks are reused, and given back in the end.

Each scenario runs in a process of its own, started from this very file: glibc moves a thread to another arena, with
other rules, once an allocation of it has failed, and other tests make allocations fail.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glue_bench.learning.heap import kept_heap
from glue_bench.timing.memory import process_memory, release_free_memory

BLOCK = 128 << 20  # bytes

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's heap can be told to keep memory"
)


def touch() -> None:
    torch.empty(BLOCK, dtype=torch.uint8).fill_(1)


def freed_blocks_stay_within_the_block_and_go_after_it() -> None:
    memory = process_memory()
    touch()
    release_free_memory()
    before = memory.current()
    with kept_heap():
        touch()
        assert memory.current() - before > 0.9 * BLOCK
        touch()
        assert memory.current() - before < 1.1 * BLOCK, "the second block did not take the first one's place"
    assert memory.current() - before < 0.1 * BLOCK
    touch()
    assert memory.current() - before < 0.1 * BLOCK, "freed blocks still stay"


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


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        freed_blocks_stay_within_the_block_and_go_after_it,
        memory_is_given_back_after_an_error,
        memory_is_given_back_after_a_failed_allocation,
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_in_a_fresh_process(scenario: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, scenario]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
