"""The store: whole files or none, damage noticed, locks that die with their owner, nothing written through links."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glue_bench.errors import StepError, UserError
from glue_bench.locks import lock
from glue_bench.store import (
    RECORD,
    Store,
    atomic_folder,
    clean_partial,
    damaged_file,
    list_outputs,
    read_record,
    write_atomic,
)

NOW = {"settings": {"epochs": 3}, "needs": {"prepare/glue/rte": "aa"}, "inputs": {"x": "sha256:1"}}


def finished_step(store: Store, name: str = "finetune/a/rte/seed-0") -> Path:
    folder = store.folder(name)
    write_atomic(folder / "predictions.parquet", b"0123456789")
    record = {"step": name, "fingerprint": "f1", **NOW, "outputs": list_outputs(folder), "result": {}}
    record |= {"environment": {}, "seconds": 1.0, "stage_version": 1}
    write_atomic(folder / RECORD, json.dumps(record))
    return folder


def test_states(tmp_path: Path) -> None:
    store = Store(tmp_path, "run")
    name = "finetune/a/rte/seed-0"
    assert store.state(name, "f1", NOW).kind == "pending"
    folder = finished_step(store)
    assert store.state(name, "f1", NOW).kind == "done"
    stale = store.state(name, "f2", NOW | {"settings": {"epochs": 5}})
    assert (stale.kind, stale.why) == ("stale", "epochs: 3 -> 5")
    assert store.state(name, "f2", NOW | {"needs": {"prepare/glue/rte": "bb"}}).why == "prepare/glue/rte changed"
    assert store.state(name, "f2", NOW | {"inputs": {"x": "sha256:2"}}).why == "the input x changed"
    assert store.state(name, "f2", NOW).why == "a newer version of the stage"
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    for part, wrong in (
        ("seconds", "x"),
        ("outputs", []),
        ("needs", {"a": 1}),
        ("result", None),
        ("outputs", {"a": {}}),
    ):
        (folder / RECORD).write_text(json.dumps(record | {part: wrong}), encoding="utf-8")
        assert store.state(name, "f1", NOW).kind == "damaged"
    (folder / RECORD).write_text("{", encoding="utf-8")
    assert store.state(name, "f1", NOW).kind == "damaged"
    with pytest.raises(StepError, match="run the step"):
        store.result(name)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"0123"), "has 4 bytes instead of 10"),
        (lambda path: path.write_bytes(b"012345678X"), "was changed"),
    ],
)
def test_damage_is_noticed(tmp_path: Path, damage, why: str) -> None:
    store = Store(tmp_path, "run")
    folder = finished_step(store)
    damage(folder / "predictions.parquet")
    state = store.state("finetune/a/rte/seed-0", "f1", NOW)
    assert state.kind == "damaged" and why in state.why


def test_touched_but_equal_file_is_intact_and_hashing_finds_a_forged_time_stamp(tmp_path: Path) -> None:
    store = Store(tmp_path, "run")
    folder = finished_step(store)
    path = folder / "predictions.parquet"
    stat = path.stat()
    os.utime(path, ns=(1, 1))
    assert store.state("finetune/a/rte/seed-0", "f1", NOW).kind == "done"
    path.write_bytes(b"012345678X")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    outputs = read_record(folder)["outputs"]
    assert damaged_file(folder, outputs) == ""
    assert "was changed" in damaged_file(folder, outputs, hash_all=True)


def test_outputs_leave_out_record_checkpoints_and_partial_files(tmp_path: Path) -> None:
    for name in (RECORD, "a.csv", "model/config.json", "checkpoints/1/x", "weights/x", ".a.csv.1.partial"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert set(list_outputs(tmp_path)) == {"a.csv", "model/config.json"}
    clean_partial(tmp_path)
    assert not (tmp_path / ".a.csv.1.partial").exists()


def test_atomic_folder_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("1", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        (folder / "new").write_text("2", encoding="utf-8")
        1 / 0  # noqa: B018
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_interrupt_while_a_folder_takes_anothers_place_never_loses_both(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("1", encoding="utf-8")
    replace, calls = Path.replace, []

    def interrupted(self: Path, other: Path) -> Path:
        calls.append(other)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "new").write_text("2", encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    monkeypatch.undo()
    with atomic_folder(target) as folder:
        (folder / "new").write_text("2", encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("precious", encoding="utf-8")
    (tmp_path / "link.txt").symlink_to(outside)
    with pytest.raises(UserError, match="symbolic link"):
        write_atomic(tmp_path / "link.txt", "overwritten")
    with pytest.raises(UserError, match="symbolic link"), lock(tmp_path / "link.txt", wait_s=0):
        pass
    assert outside.read_text(encoding="utf-8") == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_missing_permission_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StepError, match="permission denied"):
        write_atomic(tmp_path / "x", "y")


def test_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StepError, match="disk is full"):
        write_atomic(tmp_path / "x", "y")
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from glue_bench.locks import lock
with lock(Path(sys.argv[1]), wait_s=5):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_names_its_owner_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by pid {owner.pid} on "), lock(path, wait_s=0.1):
            pass
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    with lock(path, wait_s=5):
        assert f"pid {os.getpid()}" in path.read_text(encoding="utf-8")


def test_shared_locks_go_together(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    alone = lock(path, wait_s=0)
    with lock(path, wait_s=0, shared=True), lock(path, wait_s=0, shared=True), pytest.raises(UserError):
        alone.__enter__()


def test_lock_waits(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    owner = subprocess.Popen([sys.executable, "-c", HOLD.replace("60", "0.5"), str(path)], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"held\n"
    started = time.monotonic()
    with lock(path, wait_s=30):
        assert time.monotonic() - started < 30
    owner.wait()


def test_what_the_system_refuses_to_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale handle of a network file system says nothing of a file: days of training must not be redone for it."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    listed = list_outputs(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match="record.json: Stale file handle"):
        read_record(tmp_path)
    with pytest.raises(UserError, match="model.safetensors: Stale file handle"):
        damaged_file(tmp_path, listed)


def test_those_who_share_a_lock_leave_a_name(tmp_path: Path) -> None:
    """The owner of a run's lock takes it again for each walk over the plan: its name must outlive that."""
    path = tmp_path / ".lock"
    with lock(path, wait_s=0, shared=True):
        with lock(path, wait_s=0, shared=True):
            pass
        with pytest.raises(UserError, match=f"in use by pid {os.getpid()} on "), lock(path, wait_s=0):
            pass
