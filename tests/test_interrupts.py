"""SIGINT, SIGTERM and SIGHUP end the work wherever they come."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glue_bench.interrupts import interruptible

ALL = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@pytest.fixture(autouse=True)
def hangup() -> Iterator[None]:
    """SIGHUP as in a terminal: nohup has it ignored, and what is ignored stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Signals:
    """An object in whose destructor a signal arrives."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.ended = False

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(10):  # Python calls the handler between two of these
            time.sleep(0.001)
        self.ended = True


@ALL
def test_a_signal_interrupts(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
        time.sleep(5)


@ALL
@pytest.mark.filterwarnings("error")  # an exception lost in a destructor is a warning of pytest's
def test_a_signal_within_a_destructor_interrupts_after_it(number: signal.Signals) -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interruptible():
        Signals(number)
        time.sleep(5)
    assert time.monotonic() - started < 5


def test_an_interrupt_within_compiled_text_is_handled_for_good(tmp_path: Path) -> None:
    """Of a plain KeyboardInterrupt there the process would die, long after it was handled."""
    program = """
from glue_bench.interrupts import interruptible
try:
    with interruptible():
        exec("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)")
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    (tmp_path / "interrupted.py").write_text(program, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", "interrupted"]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}).returncode == 130


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGALRM)]
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGALRM)] == before


def test_what_ignores_sigint_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
