"""What the machine did while the clock ran: its clocks, and how many of its cores others kept busy.

A time says little without it. Nothing here is read inside a timed pass; what cannot be read is null.
"""

import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any

import psutil

GPU_FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")


@dataclass(frozen=True)
class Snapshot:
    """Counters since the machine and the process started (seconds), and clocks now."""

    wall_s: float
    machine_busy_s: float
    own_busy_s: float
    cpu_mhz: float | None
    gpu: dict[str, float] | None


def snapshot(device: str) -> Snapshot:
    """Read all counters; the GPU's only where `device` is cuda, or cuda:1 and so on."""
    kind, _, index = device.partition(":")
    gpu = _gpu(int(index or 0)) if kind == "cuda" else None
    return Snapshot(time.perf_counter(), _machine_busy(), time.process_time(), _cpu_mhz(), gpu)


def between(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """The time between two snapshots: seconds, cores kept busy by this process and by others, clocks at both ends."""
    wall = max(after.wall_s - before.wall_s, 1e-9)
    own = after.own_busy_s - before.own_busy_s
    others = max(0.0, after.machine_busy_s - before.machine_busy_s - own)
    return {
        "seconds": round(wall, 3),
        "cores_busy": round(own / wall, 2),
        "cores_busy_with_others": round(others / wall, 2),
        "cpu_mhz": [before.cpu_mhz, after.cpu_mhz],
        "gpu": [before.gpu, after.gpu],
    }


def _machine_busy() -> float:
    """Seconds that all cores together were not idle; time stolen by a hypervisor counts as busy with others."""
    times = psutil.cpu_times()
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted under user too
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - guest


def _cpu_mhz() -> float | None:
    """Present clock of the cores, their mean."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return round(frequency.current, 1) if frequency and frequency.current else None


def _gpu(index: int) -> dict[str, float] | None:
    """Clocks (MHz), temperature (degrees C) and power (W) of the visible GPU of this number, by nvidia-smi."""
    visible = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    name = visible[index] if index < len(visible) else str(index)
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits", "-i", name]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
        values = answer.stdout.splitlines()[0].split(",")
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
    known = {}
    for name, value in zip(GPU_FIELDS, values, strict=False):
        try:
            known[name] = float(value)
        except ValueError:
            continue
    return known or None
