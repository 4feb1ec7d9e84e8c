"""results/<run>/: where a step's files stand, when it counts as done, and how files are written atomically.

A step is done when its record.json holds its fingerprint and the files the record lists are what they were. The record
is written last. Nothing is written through a symbolic link.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue_bench.errors import StepError, UserError

RECORD = "record.json"
CHUNK = 1 << 20


@dataclass(frozen=True)
class State:
    """Whether a step is done, stale (settings or inputs changed), damaged (its files changed) or pending; and why."""

    kind: str  # done | stale | damaged | pending
    why: str = ""


@dataclass(frozen=True)
class Store:
    """The folder of one run. `results` holds runs side by side, `cache` what they share."""

    results: Path
    run: str

    @property
    def root(self) -> Path:
        """Folder of this run."""
        return self.results / self.run

    @property
    def cache(self) -> Path:
        """Folder of what runs share: tokenised text, hashes, the caches of datasets and evaluate."""
        return self.results / "cache"

    def folder(self, step: str) -> Path:
        """Folder of a step by its name, e.g. finetune/teacher/rte/seed-0."""
        return self.root / step

    def record(self, step: str) -> dict[str, Any] | None:
        """The step's record, or None where there is none or it cannot be read."""
        return read_record(self.folder(step))

    def result(self, step: str) -> dict[str, Any]:
        """What the step's stage returned. Raises StepError where the step has no readable record."""
        record = self.record(step)
        if record is None:
            raise StepError(f"{self.folder(step) / RECORD}: missing or unreadable; run the step {step} again")
        return record["result"]

    def state(self, step: str, fingerprint: str, explain: Mapping[str, Any]) -> State:
        """Compare a step's record with its present fingerprint and its files with what the record lists.

        `explain` has the present settings, needs (fingerprints) and inputs (identities), to say what made it stale.
        """
        folder = self.folder(step)
        if not (folder / RECORD).exists():
            return State("pending")
        record = read_record(folder)
        if record is None:
            return State("damaged", f"{folder / RECORD} cannot be read")
        if record["fingerprint"] != fingerprint:
            return State("stale", _difference(record, explain))
        tables = record["result"].get("files", {})  # what report leaves at the top of the run's folder
        damaged = damaged_file(folder, record["outputs"]) or damaged_file(self.root, tables)
        return State("damaged", damaged) if damaged else State("done")


def read_record(folder: Path) -> dict[str, Any] | None:
    """A step folder's record.json as a mapping; None where it is missing, unreadable or not of a record's shape."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if _is_record(record) else None


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    tables = [record.get(part) for part in ("settings", "needs", "inputs", "outputs", "result")]
    tables.append(record.get("environment", {}))
    return (
        all(isinstance(table, dict) for table in tables)
        and all(isinstance(record.get(part), str) for part in ("step", "fingerprint"))
        and all(_is_number(record.get(part, 0)) for part in ("stage_version", "seconds"))
        and all(isinstance(one, str) for one in (*record["needs"].values(), *record["inputs"].values()))
        and _is_listing(record["outputs"])
        and _is_listing(record["result"].get("files", {}))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_listing(value: Any) -> bool:
    """Whether a value lists files: name -> bytes and sha256."""
    return isinstance(value, dict) and all(
        isinstance(one, dict) and _is_number(one.get("bytes")) and isinstance(one.get("sha256"), str)
        for one in value.values()
    )


def _difference(record: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first difference between a record and the present settings, needs and inputs, as `what: old -> new`."""
    for part in ("settings", "inputs", "needs"):
        old, new = record[part], now[part]
        for key in sorted(set(old) | set(new)):
            if old.get(key) != new.get(key):
                if part == "needs":
                    return f"{key} changed"
                if part == "inputs":
                    return f"the input {key} changed"
                return f"{key}: {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}"
    return "a newer version of the stage"


def list_outputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Size, time stamp, sha256 of every file below a step's folder except record, checkpoints and partial files."""
    outputs = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        skip = relative.parts[0] in (RECORD, "checkpoints", "weights") or any(p.startswith(".") for p in relative.parts)
        if path.is_file() and not skip:
            stat = path.stat()
            outputs[relative.as_posix()] = {
                "bytes": stat.st_size,
                "mtime_ns": stat.st_mtime_ns,
                "sha256": sha256_file(path),
            }
    return outputs


def damaged_file(folder: Path, outputs: Mapping[str, Mapping[str, Any]], *, hash_all: bool = False) -> str:
    """Name the first listed file that is missing or changed; empty where all are intact.

    Contents are hashed where size or time stamp differ, or always with `hash_all`.
    """
    for name, listed in outputs.items():
        path = folder / name
        try:
            stat = path.stat()
        except OSError:
            return f"{path} is missing"
        if stat.st_size != listed["bytes"]:
            return f"{path} has {stat.st_size} bytes instead of {listed['bytes']}"
        if (hash_all or stat.st_mtime_ns != listed.get("mtime_ns")) and sha256_file(path) != listed["sha256"]:
            return f"{path} was changed"
    return ""


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: to a temporary name beside it, flushed, then renamed. Raises StepError."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_link(path)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StepError(describe_os_error(error, path)) from None


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that takes the place of `path` when the block ends well."""
    temporary = _temporary(path)
    try:
        refuse_link(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    except OSError as error:
        raise StepError(describe_os_error(error, path)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A hidden name beside the path that no other process, here or on a machine that shares the folder, uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")


def refuse_link(path: Path) -> None:
    """Raise UserError where the path itself is a symbolic link: results are never written through one."""
    if path.is_symlink():
        raise UserError(
            f"{path}: is a symbolic link; results are not written through links. Remove it or use --results"
        )


def describe_os_error(error: OSError, path: Path) -> str:
    """One line for a failed write or read: the file and what to do."""
    remedy = {
        errno.ENOSPC: "the disk is full; free some space and run again, finished steps are kept",
        errno.EACCES: "permission denied; give write access or choose another folder with --results",
        errno.EPERM: "permission denied; give write access or choose another folder with --results",
        errno.EROFS: "the file system is read-only; choose another folder with --results",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"{error.filename or path}: {remedy}"


def clean_partial(folder: Path) -> None:
    """Remove what a killed process left under temporary names in a step's folder."""
    if folder.is_dir():
        for path in folder.rglob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, *, wait_s: float, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a file, exclusive or shared; the kernel drops it when its owner dies: none is ever stale.

    Waits up to `wait_s` seconds, then raises UserError naming the owner's pid and host.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_link(path)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(describe_os_error(error, path)) from None
    with file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    owner = file.read().strip() or "another process"
                    raise UserError(
                        f"{path.parent}: in use by {owner}; wait for it to end, or use another --run"
                    ) from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
