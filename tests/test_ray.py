"""Fine-tuning in parallel gives what the serial pipeline gives, in other processes: on Ray with two workers, of which
one is killed, after an interrupted start, and as local jobs.

One story for all tests, since each start of Ray costs seconds: the run is interrupted by Ctrl-C, then done to its end
while a worker is killed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import REPOSITORY

from glue_bench import executors
from glue_bench.config import load_config
from glue_bench.data.predictions import read_predictions
from glue_bench.errors import ConfigError, StepError, UserError
from glue_bench.executors import run_in_parallel
from glue_bench.inputs import HashMemo, Input
from glue_bench.machine import facts
from glue_bench.pipeline import Run, Shard, run_steps, with_needs
from glue_bench.plan import Step, plan
from glue_bench.store import Store

# Two threads for two jobs at once. The student waits for the logits of the teacher that has its task and seed.
TINY = """
[data]
tasks = ["rte", "wnli"]
max_train_rows = 64
max_dev_rows = 40

[teacher]
layers = 2
hidden = 16
heads = 2
intermediate = 32
max_positions = 128
initializer_range = 0.2

[[students]]
name = "small"
layers = [1]
soft_targets = 0.5

[finetune]
learning_rate = 1e-3
batch_size = 16
epochs = 2
max_length = 64
seeds = [0, 1]

[machine]
device = "cpu"
precision = "fp32"
threads = 2
jobs_per_device = 2
"""
PATIENCE_S = 300.0  # a busy machine


def grid(config_file: Path) -> tuple[list[Step], Callable[[Path], Run]]:
    """All steps of the tiny experiment, and a serial Run of it in a results folder."""
    config = load_config(str(config_file))
    steps = list(plan(config, facts(config.machine), HashMemo.load(None)))

    def run(results: Path) -> Run:
        return Run(Store(results, "tiny"), config, "cpu", 2, "fp32", Shard(1, 1), print)

    return steps, run


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def serial(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same steps in this process, one after the other."""
    steps, run = grid(config_file)
    here = run(tmp_path_factory.mktemp("serial"))
    run_steps(steps, with_needs(steps, [step for step in steps if step.stage == "finetune"]), here)
    return here.store


def prepared(serial: Store, results: Path) -> Path:
    """A results folder in which all is done but the fine-tunings."""
    shutil.copytree(serial.root, results / "tiny", ignore=shutil.ignore_patterns("finetune", ".lock*"))
    return results


def assert_same(config_file: Path, store: Store, serial: Store) -> None:
    """Every fine-tuning is there once, with the serial one's fingerprint and predictions, bit by bit."""
    names = [step.name for step in grid(config_file)[0] if step.stage == "finetune"]
    assert len(names) == 10
    for name in names:
        one, other = store.record(name), serial.record(name)
        assert one and other and one["fingerprint"] == other["fingerprint"], name
        assert one["result"]["scores"] == other["result"]["scores"], name
        ours, theirs = (read_predictions(at.folder(name) / "predictions.parquet") for at in (store, serial))
        assert list(ours) == list(theirs)
        for split in ours:
            for column in ("idx", "label", "prediction", "logits"):
                assert np.array_equal(getattr(ours[split], column), getattr(theirs[split], column)), (name, split)


@dataclass(frozen=True)
class Ended:
    """How a run on Ray ended: exit code, output, its processes, the worker that was killed, the folder of Ray."""

    code: int
    stdout: str
    stderr: str
    processes: list[psutil.Process]
    victim: int
    ray_folder: Path

    @property
    def computed(self) -> list[str]:
        """Names of the fine-tunings that the driver reported as computed."""
        return re.findall(r"^\[ray \d+/10\] (\S+): \d", self.stdout, flags=re.M)


def busy_worker(results: Path, processes: list[psutil.Process]) -> int:
    """The pid of a worker that holds a step's lock; 0 where there is none yet."""
    for path in (results / "tiny" / ".locks").glob("finetune--*.lock"):
        found = re.match(r"pid (\d+) on ", path.read_text(encoding="utf-8"))
        if found and int(found[1]) in {one.pid for one in processes}:
            return int(found[1])
    return 0


def on_ray(config_file: Path, results: Path, home: Path, disturb: Callable[[int, int], None]) -> Ended:
    """`finetune --executor ray` from a script, as in a terminal; disturb(process group, worker) once a worker works."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "RAY_"))}
    environment = kept | {"HOME": str(home), "TMPDIR": str(home.parent), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "glue_bench", "finetune", "--executor", "ray"]
    command += ["--config", str(config_file), "--results", results.name]
    # The shell leads the process group, and Ctrl-C must reach the driver all the same.
    shell = subprocess.Popen(
        ["/bin/sh", "-c", 'trap : INT; "$@"; exit $?', "sh", *command],
        cwd=results.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    seen: dict[int, psutil.Process] = {}
    victim, deadline = 0, time.monotonic() + PATIENCE_S
    while not victim and shell.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
        seen |= {one.pid: one for one in psutil.Process(shell.pid).children(recursive=True)}
        victim = busy_worker(results, list(seen.values()))
    folder = Path()
    for one in seen.values():
        try:
            found = re.search(r"(/\S*/glue_bench-[^/\s]+)/session_", " ".join(one.cmdline()))
        except psutil.Error:
            continue
        folder = Path(found[1]) if found else folder
    if victim:
        disturb(shell.pid, victim)
    try:
        stdout, stderr = shell.communicate(timeout=PATIENCE_S)
    finally:
        for one in seen.values():
            if shell.poll() is None and one.is_running():
                one.kill()
    return Ended(shell.returncode, stdout, stderr, list(seen.values()), victim, folder)


@pytest.fixture(scope="module")
def story(
    config_file: Path, serial: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Ended, Path, Path]:
    """The run that is interrupted, the run that goes on and loses a worker, their results and their home folder."""
    pytest.importorskip("ray", reason="ray is not installed (pip install '.[ray]')")
    place = tmp_path_factory.mktemp("ray-in-a-folder-whose-name-is-too-long-for-the-path-of-a-socket")
    home, results = place / "home", prepared(serial, place / "results")
    home.mkdir()
    interrupted = on_ray(config_file, results, home, lambda group, _: os.killpg(group, signal.SIGINT))
    finished = on_ray(config_file, results, home, lambda _, worker: os.kill(worker, signal.SIGKILL))
    return interrupted, finished, results, home


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_counts_nothing_twice(
    story: tuple[Ended, Ended, Path, Path], config_file: Path, serial: Store
) -> None:
    interrupted, finished, results, _ = story
    assert finished.victim and finished.code == 0, finished.stdout + finished.stderr
    assert_same(config_file, Store(results, "tiny"), serial)
    names = [step.name for step in grid(config_file)[0] if step.stage == "finetune"]
    told = interrupted.computed + finished.computed
    assert len(told) == len(set(told)) and set(told) <= set(names), "none was computed twice"
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_interrupting_ends_everything(story: tuple[Ended, Ended, Path, Path]) -> None:
    interrupted = story[0]
    assert interrupted.victim and interrupted.code == 130, interrupted.stdout + interrupted.stderr
    assert "interrupted; what is finished is kept" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr


@pytest.mark.slow
def test_nothing_is_left_behind(story: tuple[Ended, Ended, Path, Path]) -> None:
    """No process, no folder of Ray's, nothing in the home folder."""
    *runs, _, home = story
    for one in runs:
        gone, alive = psutil.wait_procs(one.processes, timeout=10)
        assert len(gone) > 4 and not alive
        assert one.ray_folder.name.startswith("glue_bench-") and not one.ray_folder.exists()
    assert [path for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_local_jobs_give_the_same(config_file: Path, serial: Store, tmp_path: Path) -> None:
    """Two shard processes (machine.jobs_per_device); another seed gives other bits."""
    steps, run = grid(config_file)
    prepared(serial, tmp_path)
    arguments = ["--config", str(config_file), "--run", "tiny", "--results", str(tmp_path), "--device", "cpu"]
    run_in_parallel(steps, run(tmp_path), arguments, "local")
    assert_same(config_file, Store(tmp_path, "tiny"), serial)
    first, second = (
        read_predictions(serial.folder(f"finetune/teacher/rte/seed-{seed}") / "predictions.parquet")["validation"]
        for seed in (0, 1)
    )
    assert not np.array_equal(first.logits, second.logits)


def test_without_ray_it_is_said_before_anything_is_computed(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    steps, run = grid(config_file)
    with pytest.raises(UserError, match=r"--executor ray: ray is not installed; pip install 'glue_bench\[ray\]'"):
        run_in_parallel(steps, run(tmp_path), [], "ray")
    assert list(tmp_path.iterdir()) == []


def test_a_tasks_own_error_is_raised() -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="ray is not installed (pip install '.[ray]')")
    ray = sys.modules["ray"]
    wrong = UserError("finetuned.rte: no config.json")
    raised = executors._ray_failure("finetune/m/rte/seed-0", exceptions.RayTaskError("job", "Traceback", wrong), ray)
    assert raised is wrong and raised.exit_code == 2
    bug = exceptions.RayTaskError("job", "Traceback", KeyError("x")).as_instanceof_cause()
    raised = executors._ray_failure("finetune/m/rte/seed-0", bug, ray)
    assert type(raised) is StepError and str(raised) == "finetune/m/rte/seed-0: KeyError: 'x'"
    raised = executors._ray_failure("finetune/m/rte/seed-0", exceptions.WorkerCrashedError(), ray)
    assert type(raised) is StepError and "its worker died 4 times" in str(raised)


def test_more_threads_than_a_machine_has_is_an_error(config_file: Path, tmp_path: Path) -> None:
    """Ray would wait forever for a machine with that many CPUs."""

    class Small:
        @staticmethod
        def nodes() -> list[dict]:
            return [{"Alive": True, "Resources": {"CPU": 1.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    steps, run = grid(config_file)
    chosen = [step for step in steps if step.stage == "finetune"]
    assert executors._ray_needs(Small, chosen, run(tmp_path)) == {"num_cpus": 1, "num_gpus": 0}
    greedy = [Step("finetune/m/rte/seed-0", {"threads": 2})]
    with pytest.raises(UserError, match="takes 2 CPUs and the cluster's largest machine has 1; lower machine.threads"):
        executors._ray_needs(Small, greedy, run(tmp_path))


def test_gpus_are_shared_by_the_jobs(config_file: Path, tmp_path: Path) -> None:
    class Large:
        @staticmethod
        def nodes() -> list[dict]:
            return [{"Alive": True, "Resources": {"CPU": 64.0, "GPU": 8.0}}]

    steps, run = grid(config_file)
    automatic = executors.replace(run(tmp_path), device="auto")
    assert executors._ray_needs(Large, steps, automatic) == {"num_cpus": 0, "num_gpus": 0.5}


def test_a_folder_that_the_workers_do_not_see_is_an_error(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the job sets it
    steps, run = grid(config_file)
    with pytest.raises(UserError, match="not there on .*; --executor ray needs --results on a folder that all"):
        executors._ray_job(steps[-3], {}, run(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


def test_workers_find_relative_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}), encoding="utf-8")
    inputs = {"config.json": Input("config.json", "sha256:1"), "glue": Input("hub", "hub:nyu-mll/glue")}
    whole = executors._with_whole_paths(Step("finetune/m/rte/seed-0", {}, (), inputs)).inputs
    assert whole["config.json"] == Input(str(tmp_path / "config.json"), "sha256:1")
    assert whole["glue"] == inputs["glue"]


# -- local jobs --------------------------------------------------------------------------------------------------------


def test_every_gpu_gets_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "gpu_names", lambda: ("H200", "H200"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices = [one["CUDA_VISIBLE_DEVICES"] for one in executors.worker_environments(2, "auto")]
    assert devices == ["0", "0", "1", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in executors.worker_environments(1, "cuda")] == ["5", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,-1")  # nothing after what is not there, as CUDA has it
    assert [one["CUDA_VISIBLE_DEVICES"] for one in executors.worker_environments(1, "cuda")] == ["5", "3"]
    assert executors.worker_environments(3, "cpu") == [{}, {}, {}]


def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let shard processes run a shell script in place of Python."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(executors.sys, "executable", str(path))


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("exit 2", UserError, "shard 1, 2 of 2 failed"),
        ('[ "$SHARD" = 1 ] && exit 2; exit 0', UserError, "shard 1 of 2 failed"),
        ('[ "$SHARD" = 1 ] && exit 2; exit 3', StepError, "shard 1, 2 of 2 failed"),
        ("kill -9 $$", StepError, r"shard 1 \(killed by signal 9\), 2 \(killed by signal 9\) of 2 failed"),
    ],
)
def test_exit_codes_of_shards_are_passed_on(
    script: str, error: type, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_python(tmp_path, monkeypatch, script)
    with pytest.raises(error, match=message) as caught:
        executors.fan_out([], [{"SHARD": "1"}, {"SHARD": "2"}])
    assert type(caught.value) is error


def test_a_real_shards_bad_config_is_exit_2(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        executors.fan_out(["--config", "nope", "--results", str(tmp_path)], [{}])
    assert issubclass(ConfigError, UserError)


def test_interrupting_ends_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(tmp_path, monkeypatch, f'echo $$ > "{tmp_path}/$SHARD"; exec sleep 60')
    wait = subprocess.Popen.wait

    def interrupted(self: subprocess.Popen, timeout: float | None = None) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and [one.read_text()[-1:] for one in tmp_path.glob("[12]")] != ["\n"] * 2:
            time.sleep(0.01)  # until both have written whole lines
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        executors.fan_out([], [{"SHARD": "1"}, {"SHARD": "2"}])
    pids = [int((tmp_path / name).read_text()) for name in ("1", "2")]
    assert not any(psutil.pid_exists(pid) for pid in pids)
