"""For all tests: never the network; the command line as a user runs it; benchmarks as modules."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # threads that wait spinning take the CPUs from the tests beside them
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job; the tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_cli(*arguments: str, cwd: Path = REPOSITORY, timeout: float = 600) -> subprocess.CompletedProcess:
    """Run `python -m glue_bench` as a user would; stdout and stderr are text."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "glue_bench", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script below benchmarks/ as a module, by its name without .py."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{name}_benchmark", REPOSITORY / f"benchmarks/{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module

    return load
