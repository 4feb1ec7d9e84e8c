"""results/<run>/: where a step's files stand, when it counts as done, and how files are written atomically.

A step is done when its record.json holds its fingerprint and the files the record lists are what they were. The record
is written last, with a seal over its own content. Nothing is written through a symbolic link.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from glue_bench.errors import StepError, UserError
from glue_bench.records import is_record, seal_of

RECORD = "record.json"
CONFIG_FILE = "config.json"  # of a run: its settings, all written out
CHUNK = 1 << 20
NO_SPACE = 1 << 14  # bytes left on a disk that counts as full, where an error does not say what it is
UNREADABLE = (OSError, ValueError, RecursionError, OverflowError)  # what reading a damaged JSON file raises


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
        if any(
            json.dumps(record[part], sort_keys=True) != json.dumps(explain[part], sort_keys=True) for part in explain
        ):
            return State("damaged", f"{folder / RECORD} was edited")
        for need, seal in record.get("seals", {}).items():
            if (now := read_record(self.folder(need))) is None or seal_of(now) != seal:
                return State("stale", f"{need} was computed anew")
        tables = record["result"].get("files", {})  # what report leaves at the top of the run's folder
        damaged = damaged_file(folder, record["outputs"]) or damaged_file(self.root, tables)
        damaged = damaged or damaged_file(folder / "weights", kept_weights(folder, record))
        return State("damaged", damaged) if damaged else State("done")


def read_record(folder: Path) -> dict[str, Any] | None:
    """A step folder's record.json as a mapping; None where it is missing, unreadable, edited or of another shape.

    Raises UserError where the system refuses to read it: that says nothing of what it holds.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return record if is_record(record) else None
    except OSError as error:
        if not is_absence(error):
            raise UserError(describe_os_error(error, folder / RECORD)) from None
        return None
    except UNREADABLE:
        return None


def is_absence(error: OSError) -> bool:
    """Whether an error of reading a file says that it is not there as a file; any other may pass, and its file live."""
    return isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)) or error.errno == errno.ELOOP


def kept_weights(folder: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Listing of a fine-tuning's weights as they were trained; empty where they are not kept (or were never listed)."""
    return record["result"].get("weights_files", {}) if (folder / "weights").is_dir() else {}


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


def checkpoints_of(folder: Path, key: str) -> Path:
    """Where a step's folder has the checkpoints of one training; those of other settings are beside them."""
    return folder / "checkpoints" / key[:12]


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


def damaged_file(
    folder: Path, outputs: Mapping[str, Mapping[str, Any]], *, hash_all: bool = False, once: bool = False
) -> str:
    """Name the first listed file that is missing or changed; empty where all are intact.

    Contents are hashed where size or time stamp differ, or always with `hash_all`; with `once` too, but each file once
    in the life of this process. Raises UserError where the system refuses to read one.
    """
    for name, listed in outputs.items():
        path = folder / name
        try:
            stat = path.stat()
            if stat.st_size != listed["bytes"]:
                return f"{path} has {stat.st_size} bytes instead of {listed['bytes']}"
            if hash_all or once or stat.st_mtime_ns != listed.get("mtime_ns"):
                known = _hashed_once(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) if once else sha256_file(path)
                if known != listed["sha256"]:
                    return f"{path} was changed"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            if not is_absence(error):
                raise UserError(describe_os_error(error, path)) from None
            return f"{path} cannot be read ({error.strerror or error})"
    return ""


@cache
def _hashed_once(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


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
        with temporary.open("xb") as file:  # a file of its own: never what stands, or links, under that name
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
    """Yield an empty temporary folder that takes the place of `path` when the block ends well, else leaves it be."""
    temporary, old = _temporary(path), _temporary(path)
    try:
        refuse_link(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:  # a record must not reach the disk before what it lists
            _flush(written)
        _take_place(temporary, path, old)
    except Exception as error:
        if (os_error := _as_os_error(error)) is None:
            raise
        raise StepError(describe_os_error(os_error, path)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            _remove(old)


def _take_place(new: Path, path: Path, old: Path) -> None:
    """Rename a folder to `path`; what stands there is moved aside to `old`, and put back on a failure."""
    try:
        if path.exists():
            path.replace(old)
        new.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """A hidden name beside the path that no other process, here or on a machine that shares the folder, uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")


def refuse_link(path: Path) -> None:
    """Raise UserError where the path itself is a symbolic link: results are never written through one."""
    if path.is_symlink():
        raise UserError(
            f"{path}: is a symbolic link; results are not written through links. Remove it or use --results"
        )


def refuse_links(root: Path, folder: Path) -> None:
    """Raise UserError where any part of a folder's path from `root` on, or anything in it, is a symbolic link."""
    inside = folder.relative_to(root).parts
    for depth in range(len(inside) + 1):
        refuse_link(root.joinpath(*inside[:depth]))
    for path in folder.rglob("*"):
        refuse_link(path)


def _as_os_error(error: Exception) -> OSError | None:
    """The operating system's error behind an error; libraries in Rust give it as text: `(os error 28)`."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def describe_os_error(error: OSError, path: Path) -> str:
    """One line for a failed write or read: the file and what to do."""
    code = error.errno or (errno.ENOSPC if _is_full(path) else 0)
    remedy = {
        errno.ENOSPC: "the disk is full; free some space and run again, finished steps are kept",
        errno.EDQUOT: "the disk quota is used up; free some space and run again, finished steps are kept",
        errno.EFBIG: "larger than a file may be here (ulimit -f); raise the limit and run again",
        errno.EACCES: "permission denied; give access to it, or choose another folder with --results",
        errno.EPERM: "permission denied; give access to it, or choose another folder with --results",
        errno.EROFS: "the file system is read-only; choose another folder with --results",
        errno.EISDIR: "is a directory where a file belongs; remove it and run again",
        errno.ENOTDIR: "stands where a directory belongs; remove it and run again",
        errno.EEXIST: "stands where a directory belongs; remove it and run again",
        errno.ENOLCK: "the file system has no locks left; choose another folder with --results",
        errno.EOPNOTSUPP: "the file system has no locks; choose another folder with --results",
    }.get(code, error.strerror or str(error))
    named = error.filename2 or error.filename
    return f"{path if named is None or '.partial' in str(named) else named}: {remedy}"


def _is_full(path: Path) -> bool:
    """Whether the disk that a path lies on has next to nothing left (numpy's short writes carry no error number)."""
    folder = next((one for one in path.parents if one.is_dir()), None)
    if folder is None:
        return False
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize < NO_SPACE


def clean_partial(folder: Path) -> None:
    """Remove what a killed process left under temporary names in a step's folder."""
    if folder.is_dir():
        for path in folder.rglob(".*.partial"):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or a folder, where it is there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
