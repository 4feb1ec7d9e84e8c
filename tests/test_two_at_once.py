"""Two processes at once: on one run the second is refused by name; runs that share caches do not disturb each other."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from synthetic_run import invented_stages, make_run, run_all, settings, walk_plan

from glue_bench import cli, executors
from glue_bench.config import config_from
from glue_bench.errors import UserError
from glue_bench.locks import lock
from glue_bench.reporting.leaderboard import update_leaderboard
from glue_bench.store import Store

RAW = settings(data={"tasks": ["rte"]}, finetune={"seeds": [0]}, students=[])
HOLD = """
import sys, time
from pathlib import Path
from glue_bench.locks import lock
with lock(Path(sys.argv[1]), wait_s=5, shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held(path: Path, how: str) -> Iterator[subprocess.Popen]:
    """Another process that holds a lock, exclusive or shared."""
    command = [sys.executable, "-c", HOLD, str(path), how]
    owner = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        yield owner
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()


@pytest.mark.parametrize("how", ["exclusive", "shared"])
def test_the_second_run_is_refused_with_the_owners_pid_and_host(how: str, tmp_path: Path, capsys) -> None:
    """Shared: by a run whose fine-tunings are spread over processes."""
    with held(tmp_path / "quick" / ".lock", how) as owner:
        assert cli.main(["run-all", "--config", "quick", "--results", str(tmp_path)]) == 2
        message = capsys.readouterr().err
        assert f"in use by pid {owner.pid} on {socket.gethostname()}; wait for it to end" in message
        assert message.count("\n") == 1
        assert not list(tmp_path.rglob("record.json"))


def test_a_dead_owners_lock_is_taken_over(tmp_path: Path) -> None:
    """Killed, it could not take its name back; the kernel took the lock."""
    store = Store(tmp_path, "synthetic")
    with held(store.root / ".lock", "exclusive") as owner:
        pass
    assert f"pid {owner.pid}" in (store.root / ".lock").read_text()
    run_all(store, config_from(RAW, "synthetic"), lambda line: None)
    assert (store.root / "summary.json").is_file() and (store.root / ".lock").read_text() == ""


def test_a_held_lock_is_never_taken_over_whoever_it_names(tmp_path: Path) -> None:
    """The owner may be on another machine: what it wrote is shown, not judged."""
    path = tmp_path / ".lock"
    with held(path, "exclusive"):
        path.write_text("pid 1 on another-machine")
        with pytest.raises(UserError, match="in use by pid 1 on another-machine"), lock(path, wait_s=0):
            pass


def test_those_who_share_a_lock_leave_each_others_names(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock(path, wait_s=0, shared=True):
        with held(path, "shared") as other:
            assert path.read_text() == f"pid {other.pid} on {socket.gethostname()}"
        path.write_text("pid 2 on another-machine")
    assert path.read_text() == "pid 2 on another-machine"


def test_who_waits_says_for_whom(tmp_path: Path) -> None:
    path, said = tmp_path / ".lock", []
    with held(path, "exclusive") as owner:
        threading.Timer(0.5, owner.kill).start()
        with lock(path, wait_s=30, waiting=said.append):
            assert said == [f"pid {owner.pid} on {socket.gethostname()}"]


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch) -> None:
    def none_here(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr("glue_bench.locks.fcntl.flock", none_here)
    with pytest.raises(UserError, match="has no locks; choose another folder"), lock(tmp_path / "a", wait_s=0):
        pass


def test_no_plain_run_comes_between_the_steps_of_a_parallel_one(tmp_path: Path, monkeypatch) -> None:
    """Before the first worker has its lock, and after the last has given it back, the parent holds the folder."""
    refused: list[str] = []

    def between(steps: Any, run: Any, arguments: Any, executor: str) -> None:
        with pytest.raises(UserError) as error, lock(run.store.root / ".lock", wait_s=0):
            pass
        refused.append(str(error.value))
        with lock(run.store.root / ".lock", wait_s=0, shared=True):  # a worker may
            pass

    monkeypatch.setattr(executors, "run_in_parallel", between)
    monkeypatch.setattr("glue_bench.pipeline.run_steps", lambda *_, **__: True)
    chosen = ["--set", "machine.jobs_per_device=2", "machine.device=cpu"]
    assert cli.main(["finetune", "--config", "quick", "--results", str(tmp_path), *chosen]) == 0
    assert refused == [f"{tmp_path / 'quick'}: in use by pid {os.getpid()} on {socket.gethostname()}; "
                       "wait for it to end, or use another --run"]  # fmt: skip


def test_two_parallel_runs_share_the_work(tmp_path: Path) -> None:
    """Both hold step locks: each step is computed by one of them, whoever comes first."""
    store, said, config = Store(tmp_path, "synthetic"), ([], []), config_from(RAW, "synthetic")
    runs = [
        threading.Thread(target=walk_plan, args=(store, config, one.append), kwargs={"step_locks": True})
        for one in said
    ]
    with invented_stages(config):
        for one in runs:
            one.start()
        for one in runs:
            one.join()
    computed = [line for lines in said for line in lines if line.startswith("[") and " s" in line]
    assert len(computed) == len(list(store.root.rglob("record.json")))


CORPUS = """
import sys, time
from pathlib import Path
from glue_bench.data import tokenising
from glue_bench.data import corpus
from glue_bench.inputs import Input
from transformers import BertTokenizer

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(50))]
tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
settings = {"batches": "packed", "heldout_fraction": 0.2, "sequence_length": 16, "seed": 0, "documents": 1}
write = corpus.write_sequences

def counted(*arguments):
    print("tokenised", flush=True)
    time.sleep(1)
    return write(*arguments)

corpus.write_sequences = counted
print("ready", flush=True)
sys.stdin.readline()
manifest = corpus.build_corpus(Path(sys.argv[1]), settings, {"text-0": Input(sys.argv[2], "sha256:1")}, tokenizer)
print(manifest["key"], manifest["train"]["tokens"], flush=True)
"""


def test_runs_that_share_a_cache_tokenise_once_and_read_the_same(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"w{i % 50} " * 30 for i in range(200)))
    command = [sys.executable, "-c", CORPUS, str(tmp_path / "cache"), str(text)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=REPOSITORY, **pipes) for _ in range(2)]
    for one in both:
        assert one.stdout.readline() == "ready\n", one.stderr.read()
    for one in both:
        one.stdin.write("go\n")
        one.stdin.flush()
    outputs = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    lines = [out.splitlines() for out, _ in outputs]
    assert sum("tokenised" in one for one in lines) == 1 and lines[0][-1] == lines[1][-1]
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")] == [
        lines[0][-1].split()[0]
    ]


def test_runs_that_end_at_once_leave_one_whole_leaderboard(tmp_path: Path) -> None:
    make_run(tmp_path, RAW, name="a")
    make_run(tmp_path, RAW, name="b")
    both = [threading.Thread(target=update_leaderboard, args=(tmp_path,)) for _ in range(4)]
    started = time.monotonic()
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert time.monotonic() - started < 60
    assert len((tmp_path / "leaderboard.csv").read_text().splitlines()) == 1  # no students, only the header
    assert not list(tmp_path.glob(".*.partial"))
