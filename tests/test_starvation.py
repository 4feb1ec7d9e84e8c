"""A full disk, a read-only folder, no permission, no memory: one clear error, nothing half-written, then resumable."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from synthetic_run import make_run, run_all, settings
from transformers import BertTokenizer

from glue_bench import cli
from glue_bench.config import Config, config_from
from glue_bench.data.corpus import build_corpus, open_corpus
from glue_bench.errors import GlueBenchError, StepError
from glue_bench.inputs import Input
from glue_bench.learning.checkpoints import load_checkpoint, save_checkpoint
from glue_bench.learning.models import load_masked_lm, new_bert
from glue_bench.learning.saving import save_model
from glue_bench.locks import lock
from glue_bench.store import Store, atomic_folder, describe_os_error, write_atomic

FULL = "the disk is full; free some space and run again"
RAW = settings(data={"tasks": ["rte"]}, finetune={"seeds": [0]}, students=[{"name": "distil-2", "layers": [0, 2]}])


def config() -> Config:
    return config_from(RAW, "synthetic")


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """A mount on a folder for the length of the block; the test is skipped where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as folder:
        yield folder


def fill(disk: Path, but: int) -> None:
    """Fill a disk up to the last `but` bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(b"x" * max(0, free - but))


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


@pytest.mark.parametrize("but", [0, 4_096, 40_960, 81_920])
def test_a_full_disk_stops_the_run_and_space_lets_it_go_on(but: int, small_disk: Path, tmp_path: Path) -> None:
    expected = make_run(tmp_path / "elsewhere", RAW)
    fill(small_disk, but)
    store = Store(small_disk / "results", "synthetic")
    said: list[str] = []
    with pytest.raises(GlueBenchError, match=FULL) as error:
        run_all(store, config(), said.append)
    assert "\n" not in str(error.value) and str(small_disk) in str(error.value)
    assert leftovers(small_disk) == []
    for path in store.root.rglob("record.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["step"]
    done = len(list(store.root.rglob("record.json")))
    assert bool(done) == (but > 4_096)
    (small_disk / "filler").unlink()
    said.clear()
    run_all(store, config(), said.append)
    assert len([line for line in said if line.startswith("[")]) == len(list(store.root.rglob("record.json"))) - done
    for name in ("scores.csv", "retention.csv", "efficiency.csv"):
        assert (store.root / name).read_bytes() == (expected.root / name).read_bytes()


def bert() -> tuple[Any, BertTokenizer]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(95))]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    model = new_bert(
        layers=1, hidden=64, heads=2, intermediate=128, max_positions=32, initializer_range=0.02, vocab_size=100,
        pad_id=0, seed=0,
    )  # fmt: skip
    return model, tokenizer


def save_bert(folder: Path) -> None:
    save_model(*bert(), folder / "model", "# a model\n", {})


def save_state(folder: Path) -> None:
    save_checkpoint(folder / "checkpoints", 2, "f", {"a": torch.ones(50_000)}, {"tokens": 1})


def save_corpus(folder: Path) -> None:
    text = folder.parent.parent / "text.txt"  # on another disk
    text.write_text("\n\n".join(f"w{i % 95} " * 40 for i in range(1000)), encoding="utf-8")
    chosen = {"batches": "packed", "heldout_fraction": 0.2, "sequence_length": 16, "seed": 0, "documents": 1}
    manifest = build_corpus(folder / "cache", chosen, {"text-0": Input(str(text), "sha256:1")}, bert()[1])
    open_corpus(folder / "cache", manifest["key"])


@pytest.mark.parametrize("but", [0, 20_000])
@pytest.mark.parametrize("save", [save_bert, save_state, save_corpus])
def test_what_libraries_write_fails_as_clearly(save: Callable[[Path], None], but: int, small_disk: Path) -> None:
    """safetensors says it in Rust's words, numpy without an error number."""
    target = small_disk / "target"
    target.mkdir()
    fill(small_disk, but)
    with pytest.raises(StepError, match=FULL):
        save(target)
    assert leftovers(small_disk) == [] and not list(small_disk.rglob("manifest.json"))
    (small_disk / "filler").unlink()
    save(target)


def test_an_older_model_and_checkpoint_outlive_a_full_disk(small_disk: Path) -> None:
    save_bert(small_disk)
    save_state(small_disk)
    fill(small_disk, 8_192)
    with pytest.raises(StepError, match=FULL):
        save_bert(small_disk)
    with pytest.raises(StepError, match=FULL):
        save_checkpoint(small_disk / "checkpoints", 3, "f", {"a": torch.ones(50_000)}, {"tokens": 2})
    load_masked_lm(small_disk / "model", seed=0)
    assert load_checkpoint(small_disk / "checkpoints", "f")[0] == 2


LIMITED = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from pathlib import Path
from glue_bench.store import write_atomic
from glue_bench.errors import StepError
try:
    write_atomic(Path(sys.argv[1]), b"x" * 5000)
except StepError as error:
    print(error)
"""


def test_a_limit_on_file_sizes_is_one_clear_error(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "a")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert "ulimit -f" in done.stdout and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_results_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_run(tmp_path / "results", RAW)
    results = ["--results", str(store.results)]
    with mounted(store.results, "--bind", str(store.results)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(store.results)], check=True)
        assert cli.main(["run-all", "--config", "quick", *results]) in (2, 3)
        message = capsys.readouterr().err
        assert "read-only; choose another folder with --results" in message and message.count("\n") == 1
        assert cli.main(["publish", store.run, *results]) in (2, 3)
        assert "read-only" in capsys.readouterr().err
        # what only reads works
        assert cli.main(["verify", store.run, *results]) == 0
        assert cli.main(["check", "--run", store.run, *results]) == 0
        assert cli.main(["compare", str(store.root), str(store.root)]) == 0
        assert cli.main(["plan", "--config", "quick", *results]) == 0
        assert cli.main(["list", "runs", *results]) == 0
    capsys.readouterr()
    said: list[str] = []
    run_all(store, config(), said.append)
    assert said[-1].endswith("nothing to compute")


# Nothing is forbidden to root but by the loss of its capabilities to override permissions, from the next exec on.
BOUND = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if ctypes.CDLL(None, use_errno=True).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            sys.exit(77)
os.execv(sys.executable, [sys.executable, "-m", "glue_bench", *sys.argv[1:]])
"""


@pytest.mark.parametrize("forbidden", ["corpus.text", "data.glue", "teacher.weights", "results"])
def test_a_missing_permission_names_the_place(forbidden: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "text.txt").write_text("words\n")
    named = {"corpus.text": secret / "text.txt", "data.glue": secret, "teacher.weights": secret}
    chosen = ["--set", f"{forbidden}={named[forbidden]}"] if forbidden in named else []
    results = secret / "results" if forbidden == "results" else tmp_path / "results"
    command = [sys.executable, "-c", BOUND, "run-all", "--config", "quick", "--results", str(results), *chosen]
    secret.chmod(0)
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    finally:
        secret.chmod(0o700)
    if done.returncode == 77:
        pytest.skip("root cannot be bound by permissions here")
    assert done.returncode in (2, 3), done.stdout + done.stderr
    assert "ermission denied" in done.stderr and str(secret) in done.stderr, done.stderr
    assert done.stderr.count("\n") <= 2 and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_no_memory_is_one_clear_error(error: Exception, monkeypatch, capsys) -> None:
    def starved(options: Any) -> int:
        raise error

    monkeypatch.setattr(cli, "_dispatch", starved)
    assert cli.main(["run-all", "--config", "quick"]) == 3
    message = capsys.readouterr().err
    assert "out of memory; use a smaller micro_batch_size" in message and message.count("\n") == 1


HUNGRY = """
import resource, sys
import torch
from glue_bench.cli import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {more}, used + {more}))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_no_memory_for_the_model_is_one_clear_error(tmp_path: Path) -> None:
    """A real limit on the address space; the step before it is kept."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")
    wide = ["data.tasks=[]", "teacher.hidden=16384", "corpus.documents=300", "machine.threads=1"]
    arguments = ["run-all", "--config", "quick", "--results", str(tmp_path), "--set", *wide]
    command = [sys.executable, "-c", HUNGRY.format(more=1 << 29), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "out of memory" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert leftovers(tmp_path) == []


def test_errors_of_the_system_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StepError, match=f"{tmp_path}/a: is a directory where a file belongs; remove it"):
        write_atomic(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    with pytest.raises(StepError, match=f"{tmp_path}/b: stands where a directory belongs; remove it"):
        write_atomic(tmp_path / "b" / "c", "x")
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "c").write_text("x")
    assert (tmp_path / "b" / "c").is_file()
    with pytest.raises(GlueBenchError, match="is a directory"), lock(tmp_path / "a", wait_s=0):
        pass
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "d"):
        1 / 0  # noqa: B018
    assert describe_os_error(OSError(28, "x"), tmp_path) == f"{tmp_path}: {FULL}, finished steps are kept"
    assert leftovers(tmp_path) == []


def test_any_error_of_the_system_is_one_line(monkeypatch, capsys) -> None:
    def broken(options: Any) -> int:
        Path("/nonexistent/file").read_text()
        return 0

    monkeypatch.setattr(cli, "_dispatch", broken)
    assert cli.main(["plan"]) == 3
    assert capsys.readouterr().err == "glue_bench: /nonexistent/file: No such file or directory\n"
