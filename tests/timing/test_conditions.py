"""What is said of the machine while the clock ran."""

import subprocess
import time

import pytest

from glue_bench.timing import conditions
from glue_bench.timing.conditions import Snapshot, between, snapshot


def test_cores_busy_with_this_process_and_with_others():
    before = Snapshot(100.0, 500.0, 20.0, 2400.0, None)
    after = Snapshot(110.0, 517.0, 35.0, 2300.0, None)
    said = between(before, after)
    assert (said["seconds"], said["cores_busy"], said["cores_busy_with_others"]) == (10.0, 1.5, 0.2)
    assert said["cpu_mhz"] == [2400.0, 2300.0]


def test_own_work_is_seen_and_is_not_blamed_on_others():
    before = snapshot("cpu")
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    after = snapshot("cpu")
    assert after.own_busy_s - before.own_busy_s == pytest.approx(0.2, rel=0.3)
    assert after.machine_busy_s - before.machine_busy_s > 0.1


def test_a_gpus_clocks_are_read_where_they_are_readable(monkeypatch):
    answer = "1980, 2619, 41, [N/A]\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, answer, ""))
    assert snapshot("cuda").gpu == {"clocks.sm": 1980.0, "clocks.mem": 2619.0, "temperature.gpu": 41.0}
    assert snapshot("cpu").gpu is None


@pytest.mark.parametrize(
    ("visible", "device", "asked"),
    [
        (None, "cuda", "0"),
        (None, "cuda:2", "2"),
        ("4,6", "cuda", "4"),
        ("4, GPU-a1", "cuda:1", "GPU-a1"),
        ("", "cuda", "0"),
    ],
)
def test_the_clocks_of_the_gpu_that_is_timed_are_read(monkeypatch, visible, device, asked):
    commands = []

    def answer(command, **settings):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "1, 2, 3, 4\n", "")

    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert snapshot(device).gpu["clocks.sm"] == 1.0
    assert commands[0][-1] == asked


@pytest.mark.parametrize("failure", [FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 20)])
def test_what_cannot_be_read_is_null(monkeypatch, failure):
    def fail(*arguments, **settings):
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(conditions.psutil, "cpu_freq", lambda: None)
    now = snapshot("cuda")
    assert now.gpu is None
    assert now.cpu_mhz is None
