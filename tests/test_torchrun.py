"""The command line under torchrun, as the README documents it: two gloo processes do what one does, and survive kills.

Each start of two processes costs 20 CPU seconds of imports, so there are two: one that is killed, one that goes on.
"""

import contextlib
import csv
import json
import os
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
from glue_bench.locks import lock

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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one process, this one."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    run_here(folder / "results")
    return folder / "results"


def run_here(results: Path) -> None:
    """The same command in this process."""
    threads = torch.get_num_threads()
    assert cli.main(arguments(results)) == 0
    torch.set_num_threads(threads)


def checkpoints(results: Path) -> list[int]:
    """Steps of the checkpoints that are whole."""
    return sorted(int(path.name[5:]) for path in step_folder(results).glob("checkpoints/*/step-*"))


def said(out: str) -> list[str]:
    """The steps that were said to be done, in order."""
    return [line.split("]")[1].split(":")[0].strip() for line in out.splitlines()]


def kill_first(results: Path) -> tuple[int, str, str]:
    """Start both, kill the first once there is a checkpoint of the student; returns exit code, stdout and stderr.

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
        ranks["0"].kill()
        out, err = process.communicate(timeout=NO_HANG_S)
        assert owner.startswith(f"pid {ranks['0'].pid} "), "the first process alone locks"
        assert sorted(ranks) == ["0", "1"]
        assert not psutil.wait_procs(family, timeout=5)[1], "no orphan"
        return process.returncode, out, err


def test_two_processes_do_what_one_does_though_one_is_killed(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From nothing, until SIGKILL meets the process that records: the other one ends at once and cleanly, the lock is
    free, no record claims the step done. The rerun goes on from the checkpoint to one process's weights (to 1e-5), and
    one process finds everything done. test_loop.py kills the other process, and compares with an undisturbed pair.
    """
    (tmp_path / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    results = tmp_path / "results"
    code, out, err = kill_first(results)
    assert code != 0
    assert said(out) == list(STEPS[:3]), "each is said once, by the first process"
    ours = [line for line in err.splitlines() if line.startswith("glue_bench: ")]
    assert len(ours) == 1, err
    # whichever comes first, the broken connection or the SIGTERM that torchrun then sends
    assert "lost another process of the group" in ours[0] or "interrupted; what is finished is kept" in ours[0]
    assert not (step_folder(results) / "record.json").exists()
    with lock(results / "tiny" / ".lock", wait_s=0):
        pass
    reached = checkpoints(results)[-1]
    (state,) = step_folder(results).glob(f"checkpoints/*/step-{reached:08d}/state.json")
    log = json.loads(state.read_text(encoding="utf-8"))["state"]["log"]

    with torchrun(results) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert said(out) == list(STEPS[3:])
    with (step_folder(results) / "training.csv").open(encoding="utf-8") as file:
        seconds = [row["seconds"] for row in csv.DictReader(file)]
    assert len(log) == reached < len(seconds)
    assert seconds[:reached] == [f"{row[2]:.7g}" for row in log], "the killed pair's steps were not done again"
    assert not list(results.rglob("*.partial"))
    assert [record(one)["result"]["processes"] for one in (results, alone)] == [2, 1]
    assert record(results)["result"]["training"]["tokens"] == record(alone)["result"]["training"]["tokens"]
    for step in STEPS[2:]:
        new, expected = weights(results, step), weights(alone, step)
        start = weights(alone, "prepare/weights/teacher" if step == "pretrain/teacher" else "distill/copied")
        moved = max(float((expected[name] - start[name]).abs().max()) for name in start.keys() & expected.keys())
        assert step == "distill/copied" or moved > 1e-4
        assert new.keys() == expected.keys()
        assert max(float((new[name] - expected[name]).abs().max()) for name in new) < 1e-5, step

    capsys.readouterr()
    run_here(results)
    assert "all 5 steps are done already" in capsys.readouterr().out
