"""Locks on files of a results folder: of a run, of a step among shards, of a cache that is being made.

The kernel holds them, on a network file system for all its machines, and drops those of a dead process: none is stale.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from glue_bench.errors import UserError
from glue_bench.store import describe_os_error, refuse_link


@contextlib.contextmanager
def lock(
    path: Path, *, wait_s: float, shared: bool = False, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a lock on a file, exclusive or shared; the kernel drops it when its owner dies: none is ever stale.

    Waits up to `wait_s` seconds, then raises UserError naming the owner's pid and host; `waiting` is told once whom it
    waits for. The text in the file only names the owner: whether there is one the kernel says, on a network file system
    for all its machines. Raises UserError where the file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_link(path)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise UserError(describe_os_error(error, path)) from None
    with file:
        deadline = time.monotonic() + wait_s
        while not _try_lock(file.fileno(), path, shared):
            owner = _owner(path)
            if time.monotonic() >= deadline:
                raise UserError(f"{path.parent}: in use by {owner}; wait for it to end, or use another --run")
            if waiting is not None:
                waiting(owner)
                waiting = None
            time.sleep(0.2)
        own = f"pid {os.getpid()} on {socket.gethostname()}"
        with contextlib.suppress(OSError):  # on a full disk the name is lost, the lock is not
            file.truncate(0)
            file.write(own.encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if not shared:  # those that share it may be several, of one process too: the text outlives its writer
                    file.truncate(0)


def _try_lock(descriptor: int, path: Path, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(describe_os_error(error, path)) from None
    return True


def _owner(path: Path) -> str:
    """Pid and host of a lock's owner, as it wrote them."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:200] or "another process"
    except OSError:
        return "another process"
