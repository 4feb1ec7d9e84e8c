"""The command line under torchrun, as the README documents it: two gloo processes do what one does, and survive kills.

Each start of two processes costs seconds of imports, so one undisturbed pair serves all tests here.
"""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

from glue_bench import cli
from glue_bench.store import lock

pytestmark = pytest.mark.slow

CONFIG = """
[data]
tasks = []

[teacher]
layers = 2
hidden = 16
heads = 2
intermediate = 32
max_positions = 32

[corpus]
documents = 200
sequence_length = 32
heldout_tokens = 400

[pretrain]
tokens = 2_000
batch_size = 16
micro_batch_size = 8
evaluations = 1
learning_rate = 1e-4

[distill]
tokens = 30_000
batch_size = 16
micro_batch_size = 4
evaluations = 2
checkpoint_every = 5
learning_rate = 1e-4

[[students]]
name = "small"
layers = 1

[[students]]
name = "copied"
layers = 1
distill = { tokens = 0 }

[machine]
threads = 1
device = "cpu"
precision = "fp32"
"""
STEPS = ("prepare/weights/teacher", "prepare/corpus", "pretrain/teacher", "distill/small", "distill/copied")
NO_HANG_S = 120.0


def arguments(results: Path) -> list[str]:
    """`distill` of the tiny config, which lies beside the results."""
    return ["distill", "--config", str(results.parent / "tiny.toml"), "--results", str(results)]


def step_folder(results: Path, step: str = "distill/small") -> Path:
    """Where a step's files stand."""
    return results / "tiny" / step


def weights(results: Path, step: str = "distill/small") -> dict[str, torch.Tensor]:
    """A step's trained weights."""
    return load_file(step_folder(results, step) / "model" / "model.safetensors")


def record(results: Path, step: str = "distill/small") -> dict[str, Any]:
    """A step's record."""
    return json.loads((step_folder(results, step) / "record.json").read_text(encoding="utf-8"))


@contextlib.contextmanager
def torchrun(results: Path) -> Iterator[subprocess.Popen]:
    """The README's command with two processes, started; whatever is left of them is killed at the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*command, "-m", "glue_bench", *arguments(results)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family = [psutil.Process(process.pid)]
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += family[0].children(recursive=True)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.communicate()


def run_pair(results: Path) -> str:
    """Two processes to the end; returns stdout."""
    with torchrun(results) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one process, this one."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    threads = torch.get_num_threads()
    assert cli.main(arguments(folder / "results")) == 0
    torch.set_num_threads(threads)
    return folder / "results"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Results of two undisturbed processes that began with nothing, and what they said."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    return folder / "results", run_pair(folder / "results")


def test_two_processes_do_what_one_does(alone: Path, pair: tuple[Path, str]) -> None:
    """The same steps, each said and recorded once, by the first; the same weights to 1e-5."""
    results, said = pair
    lines = said.splitlines()
    assert [line.split("]")[1].split(":")[0].strip() for line in lines] == list(STEPS)
    assert record(results)["result"]["processes"] == 2
    assert record(alone)["result"]["processes"] == 1
    assert record(results)["result"]["training"]["tokens"] == record(alone)["result"]["training"]["tokens"]
    for step in ("pretrain/teacher", "distill/small", "distill/copied"):
        ours, theirs = weights(results, step), weights(alone, step)
        start = weights(alone, "prepare/weights/teacher" if step == "pretrain/teacher" else "distill/copied")
        assert ours.keys() == theirs.keys()
        assert step == "distill/copied" or any(float((theirs[n] - start[n]).abs().max()) > 1e-4 for n in theirs)
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5, step
    assert not list(results.rglob("*.partial"))


def test_what_two_processes_did_is_done_for_one(pair: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Distilled under torchrun, fine-tuned without: the steps keep their fingerprints, or days of work were lost."""
    threads = torch.get_num_threads()
    assert cli.main(arguments(pair[0])) == 0
    torch.set_num_threads(threads)
    assert "all 5 steps are done already" in capsys.readouterr().out


def checkpoints(results: Path) -> list[int]:
    """Steps of the checkpoints that are whole."""
    return sorted(int(path.name[5:]) for path in step_folder(results).glob("checkpoints/step-*"))


def kill_rank(results: Path, rank: int) -> tuple[int, str]:
    """Start both, kill one once a checkpoint is there; returns exit code and stderr.

    Nobody may be left when torchrun has ended.
    """
    with torchrun(results) as process:
        deadline = time.monotonic() + NO_HANG_S
        while not checkpoints(results):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.002)
        family = psutil.Process(process.pid).children(recursive=True)
        ranks = {one.environ()["RANK"]: one for one in family if "RANK" in one.environ()}
        owner = (results / "tiny" / ".lock").read_text(encoding="utf-8")
        ranks[str(rank)].kill()
        _, err = process.communicate(timeout=NO_HANG_S)
        assert owner.startswith(f"pid {ranks['0'].pid} "), "the first process alone locks"
        assert sorted(ranks) == ["0", "1"]
        assert not psutil.wait_procs(family, timeout=5)[1], "no orphan"
        return process.returncode, err


def test_a_killed_process_ends_the_step_and_the_rerun_goes_on(pair: tuple[Path, str], tmp_path: Path) -> None:
    """SIGKILL to the process that records: the other one ends at once and cleanly, the lock is free, no record claims
    the step done; the rerun goes on from the checkpoint to the weights of an undisturbed pair, bit for bit.

    test_loop.py kills the other one.
    """
    results = tmp_path / "results"
    shutil.copytree(pair[0], results)
    shutil.copy(pair[0].parent / "tiny.toml", tmp_path)
    shutil.rmtree(step_folder(results))
    code, err = kill_rank(results, 0)
    assert code != 0
    ours = [line for line in err.splitlines() if line.startswith("glue_bench: ")]
    assert len(ours) == 1, err
    # whichever comes first, the broken connection or the SIGTERM that torchrun then sends
    assert "lost another process of the group" in ours[0] or "interrupted; what is finished is kept" in ours[0]
    assert not (step_folder(results) / "record.json").exists()
    with lock(results / "tiny" / ".lock", wait_s=0):
        pass
    reached = checkpoints(results)[-1]
    state = step_folder(results) / "checkpoints" / f"step-{reached:08d}" / "state.json"
    log = json.loads(state.read_text(encoding="utf-8"))["state"]["log"]
    run_pair(results)
    with (step_folder(results) / "training.csv").open(encoding="utf-8") as file:
        seconds = [row["seconds"] for row in csv.DictReader(file)]
    assert len(log) == reached < len(seconds)
    assert seconds[:reached] == [f"{row[2]:.7g}" for row in log], "the killed pair's steps were not done again"
    new, undisturbed = weights(results), weights(pair[0])
    assert all(torch.equal(new[name], undisturbed[name]) for name in undisturbed)
    assert (step_folder(results) / "heldout.csv").read_bytes() == (step_folder(pair[0]) / "heldout.csv").read_bytes()
    assert not list(results.rglob("*.partial"))
