"""Peak memory: known allocations, freed before anyone looks."""

import time

import numpy as np
import pytest

from glue_bench.timing.memory import cuda_memory, peak_rise, process_memory

MEGABYTES = 100


def allocate_and_free():
    block = np.ones(MEGABYTES << 20, dtype=np.uint8)
    time.sleep(0.05)  # the sampling thread needs a moment
    return int(block[-1])


def test_a_known_allocation_is_measured_within_ten_percent():
    result, rise = peak_rise(process_memory(), allocate_and_free)
    assert result == 1
    assert rise / (1 << 20) == pytest.approx(MEGABYTES, rel=0.1)


def test_so_it_is_by_sampling_where_the_mark_cannot_be_reset(tmp_path):
    memory = process_memory(tmp_path)
    assert memory.how.startswith("resident size sampled")
    _, rise = peak_rise(memory, allocate_and_free)
    assert rise / (1 << 20) == pytest.approx(MEGABYTES, rel=0.1)


def test_an_earlier_peak_does_not_count():
    memory = process_memory()
    peak_rise(memory, allocate_and_free)
    _, rise = peak_rise(memory, lambda: None)
    assert rise < 5 << 20


def test_watching_ends_when_the_work_fails(tmp_path):
    import threading

    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        peak_rise(process_memory(tmp_path), lambda: 1 / 0)
    assert threading.active_count() == threads


class FakeCuda:
    allocated = 300
    peak = 900

    def reset_peak_memory_stats(self):
        self.peak = self.allocated

    def memory_allocated(self):
        return self.allocated

    def max_memory_allocated(self):
        return self.peak


def test_device_memory_is_the_rise_of_the_allocator_after_a_reset():
    cuda = FakeCuda()

    def work():
        cuda.peak = max(cuda.peak, cuda.allocated + 50)

    assert peak_rise(cuda_memory(cuda), work)[1] == 50
