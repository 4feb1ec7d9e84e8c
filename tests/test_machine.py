"""The machine as the settings see it: which processors train in bf16 by default."""

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
