"""SIGINT, SIGTERM and SIGHUP as KeyboardInterrupt, on which trainings save and locks are left; never lost in __del__.

Python drops an exception that is raised while some object's __del__ runs, and with it the wish to stop: a run was seen
to go on after SIGTERM. So the exception waits until no __del__ is at work.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

AGAIN_SECONDS = 0.02


class Interrupt(KeyboardInterrupt):
    """A KeyboardInterrupt of a class of its own.

    CPython notes a plain one that leaves code compiled from a string, as dataclasses and named tuples are made, and
    dies of SIGINT in the end although it was handled: of 37 early interrupts one ended so, not with code 130.
    """


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)  # its signal comes here too
            return
        frame = frame.f_back
    raise Interrupt


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the block SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread.

    What is ignored from the start, as SIGINT in a shell's background job or SIGHUP under nohup, stays so.
    """
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGHUP, signal.SIGALRM)}
    for one in (*before, signal.SIGTERM):
        if signal.getsignal(one) is not signal.SIG_IGN:
            signal.signal(one, _interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in before.items():
            signal.signal(one, handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a late one must not raise inside a library's exit hook
