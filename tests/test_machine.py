"""The machine as the settings see it: which processors train in bf16 by default."""

import subprocess
from pathlib import Path

import pytest

from glue_bench import machine
from glue_bench.config import Machine


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("fpu avx2", "fp32"),
        ("fpu avx512f avx512_vnni", "fp32"),
        ("fpu avx512f avx512_bf16", "bf16"),
        ("fpu avx512_bf16 amx_bf16 amx_tile", "bf16"),
    ],
)
def test_auto_precision_on_a_cpu_follows_its_bf16_instructions(flags, precision, monkeypatch):
    monkeypatch.setattr(machine, "_cpuinfo", lambda key: flags if key == "flags" else "a processor")
    assert machine.facts(Machine(device="cpu")).precision == precision
    assert machine.facts(Machine(device="cpu", precision="fp32")).precision == "fp32"


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ("H200", "A10", "H200")),
        ("", ()),
        ("-1", ()),
        ("1", ("A10",)),
        ("2,1", ("H200", "A10")),
        ("GPU-bb", ("A10",)),
        ("MIG-4f", ("H200",)),
        ("0,7,1", ("H200",)),  # as CUDA does: nothing after what is not there
    ],
)
def test_gpus_that_the_environment_hides_are_not_counted(visible, names, monkeypatch):
    listing = "0, GPU-aa11, H200\n1, GPU-bb22, A10\n2, GPU-cc33, H200\n"
    answer = subprocess.CompletedProcess([], 0, listing, "")
    monkeypatch.setattr(machine, "_torch_is_built_for_cuda", lambda: True)
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpu_names() == names
    assert machine.environment(1, "fp32").devices == (("H200", "A10", "H200") if visible not in ("", "-1") else ())
