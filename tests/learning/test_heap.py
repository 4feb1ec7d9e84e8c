"""The heap that training keeps: freed blocks are reused, and given back in the end."""

import platform

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


def test_freed_blocks_stay_within_the_block_and_go_after_it() -> None:
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


def test_memory_is_given_back_after_an_error() -> None:
    memory = process_memory()
    release_free_memory()
    before = memory.current()
    with pytest.raises(KeyboardInterrupt), kept_heap():
        touch()
        raise KeyboardInterrupt
    assert memory.current() - before < 0.1 * BLOCK
