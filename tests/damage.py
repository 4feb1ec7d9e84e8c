"""Damage to files as disks, crashes and people do it: shared by tests/test_corruption.py and benchmarks/fuzz.py.

Every kind takes a path and a seeded random.Random, and changes what stands there.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

JUNK: tuple[Any, ...] = (None, True, 7, 0.5, float("nan"), 10**400, "x", "../..", "\ud800", [], [None], {}, {"": 0})
SHAPES = ("[]", "{}", "null", "3", '"text"', "[" * 5000, '{"a": {"b": [1]}}', '{"files": 1}', '{"models": {"a": 1}}')


def delete(path: Path, rng: random.Random) -> None:
    """The file is gone."""
    path.unlink()


def empty(path: Path, rng: random.Random) -> None:
    """No byte is left."""
    path.write_bytes(b"")


def truncate(path: Path, rng: random.Random) -> None:
    """Cut at a random place, as by a full disk or a power cut."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))] if content else b"")


def flip(path: Path, rng: random.Random) -> None:
    """One random bit is another; the time stamp tells."""
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def flip_silently(path: Path, rng: random.Random) -> None:
    """One random bit is another under the old time stamp, as on a disk that decays."""
    stat = path.stat()
    flip(path, rng)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def scramble(path: Path, rng: random.Random) -> None:
    """Random bytes of the same number."""
    path.write_bytes(rng.randbytes(path.stat().st_size or 10))


def reshape(path: Path, rng: random.Random) -> None:
    """A whole file of the same kind, but of another shape: other keys, columns or a bare value."""
    if path.suffix == ".json":
        path.write_text(
            rng.choice(("[]", "{}", "null", "3", '"text"', "[" * 5000, '{"a": {"b": [1]}}', '{"files": 1}'))
        )
    elif path.suffix == ".parquet":
        columns = rng.choice(({"a": [1, 2]}, {"split": [1], "idx": ["x"]}, {"idx": [1], "logits": [[None]]}, {}))
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        path.write_text(rng.choice(SHAPES))
    elif path.suffix == ".parquet":
        columns = rng.choice(({"a": [1, 2]}, {"split": [1], "idx": ["x"]}, {"idx": [1], "logits": [[None]]}, {}))
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        path.write_text(rng.choice(("a,b\n1,2\n", "step,tokens,loss\n1,x,nan\n", '"\n')))
    else:
        path.write_text("another kind of file altogether\n")


def junk(path: Path, rng: random.Random) -> None:
    """JSON: the value at a random place becomes one of another type, and no seal tells. Else as reshape."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        places = list(_places(content))
    except (ValueError, RecursionError):
        places = []
    if not places:
        reshape(path, rng)
        return
    table, key = rng.choice(places)
    # A number for a number, or a name for a name, would be a forgery that nothing in the folder could tell.
    kinds = (int, float) if type(table[key]) in (int, float) else (type(table[key]),)
    table[key] = rng.choice([one for one in JUNK if type(one) not in kinds or one != one or one == 10**400])
    if isinstance(content, dict):
        content.pop("seal", None)
    path.write_text(json.dumps(content))


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield value, key
        yield from _places(one)


def swap(path: Path, rng: random.Random) -> None:
    """The file of the same name (or at least ending) of another step takes its place."""
    root = next(one for one in path.parents if (one / "config.json").is_file() or (one / "cache").is_dir())
    same = [one for one in sorted(root.rglob(f"*{path.suffix}")) if one != path and one.is_file()]
    same = [one for one in same if one.name == path.name] or same
    others = [one for one in same if one.read_bytes() != path.read_bytes()]
    shutil.copyfile(rng.choice(others), path) if others else scramble(path, rng)


def directory(path: Path, rng: random.Random) -> None:
    """A directory stands where the file stood."""
    path.unlink()
    path.mkdir()
    (path / "file").write_text("x")


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "deleted": delete,
    "emptied": empty,
    "truncated": truncate,
    "bit flipped": flip,
    "bit flipped silently": flip_silently,
    "random bytes": scramble,
    "of another shape": reshape,
    "junk inside": junk,
    "swapped": swap,
    "a directory": directory,
}


def remedy(path: Path, message: str) -> None:
    """Do what a refusal says: delete the folder it names, else take away what is damaged."""
    named = re.search(r"delete (\S+) and run again", message)
    place = Path(named[1]) if named else path
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
