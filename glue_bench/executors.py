"""Fine-tunings in parallel: shard processes on this machine's GPUs or cores, or tasks on a Ray cluster.

Both run the same steps as the serial pipeline, each under its own lock in the shared folder, so that a job that is
killed is done again and none is counted twice. Everything before and after fine-tuning runs in the calling process.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from glue_bench.errors import GlueBenchError, StepError, UserError
from glue_bench.machine import gpu_names
from glue_bench.pipeline import Run, bring_to_done, is_done, run_lock, run_steps, summary_line, with_needs
from glue_bench.plan import Step, fingerprints
from glue_bench.store import CONFIG_FILE

RAY_RETRIES = 3
# A Unix socket's path has 103 bytes on every system, and Ray puts up to 66 behind its folder:
# /session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store and a number where that name is taken.
RAY_FOLDER_BYTES = 103 - 66
RAY_STORE_BYTES = 80 << 20  # shared memory for objects: Ray's least; what goes between processes here are settings
RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(RAY_RETRIES)}


def worker_environments(jobs_per_device: int, device: str) -> list[dict[str, str]]:
    """One environment per local worker: `jobs_per_device` for every GPU (or for the CPU)."""
    gpus = () if device == "cpu" else gpu_names()
    if not gpus:
        return [{} for _ in range(jobs_per_device)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[: len(gpus)] if visible else [str(i) for i in range(len(gpus))]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names for _ in range(jobs_per_device)]


def run_in_parallel(steps: Sequence[Step], run: Run, arguments: Sequence[str], executor: str) -> None:
    """Bring what fine-tuning needs to done here, then the fine-tunings in parallel; a last single one is left open.

    executor: local or ray. Raises UserError and StepError as the steps do, and where ray is asked for and absent.
    """
    known = fingerprints(steps)
    open_steps = [step for step in steps if step.stage == "finetune" and not is_done(step, known, run.store)]
    if not open_steps:
        return
    if executor == "ray":
        _ray()  # before the hours that pretrain and distill may take
    ahead = [step for step in with_needs(steps, open_steps) if step.stage != "finetune"]
    run_steps(steps, ahead, run, more_follows=True)
    if executor == "ray":
        finetune_on_ray(steps, run)
    else:
        workers = worker_environments(run.config.machine.jobs_per_device, run.device)[: len(open_steps)]
        if len(workers) > 1:  # a single one is for this process: as --shard 1/1 it would start another one, and so on
            run.say(f"{len(open_steps)} fine-tunings to do, {len(workers)} at once")
            fan_out(arguments, workers)


def fan_out(arguments: Sequence[str], workers: Sequence[Mapping[str, str]]) -> None:
    """Run `finetune` with these arguments as one shard process per worker; raise as the worst of them failed.

    UserError where one ended with exit code 2 and none worse, else StepError. All are ended when this process is
    interrupted, so that no orphan goes on computing.
    """
    command = [sys.executable, "-m", "glue_bench", "finetune", *arguments]
    started: list[subprocess.Popen] = []
    try:
        for i, extra in enumerate(workers, start=1):
            started.append(subprocess.Popen([*command, "--shard", f"{i}/{len(workers)}"], env=os.environ | dict(extra)))
        codes = [worker.wait() for worker in started]
    except BaseException:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.wait()
        raise
    failed = {i: code for i, code in enumerate(codes, start=1) if code}
    if failed:
        shards = ", ".join(str(i) if code > 0 else f"{i} (killed by signal {-code})" for i, code in failed.items())
        kind = UserError if set(failed.values()) == {UserError.exit_code} else StepError
        raise kind(f"fine-tuning: shard {shards} of {len(workers)} failed; its message stands above")


def finetune_on_ray(steps: Sequence[Step], run: Run) -> None:
    """Run all fine-tunings of the plan as Ray tasks; a task whose worker dies is retried up to 3 times.

    Joins the cluster at RAY_ADDRESS, else starts one here. The results folder must be shared by all its machines, and
    glue_bench be installed on them (or be imported from a checkout at the same place). Raises UserError where ray is
    not installed or the cluster cannot do the work, and what a task raises; StepError where a worker dies for good.
    """
    ray = _ray()
    known = fingerprints(steps)
    grid = [_with_whole_paths(step) for step in steps if step.stage == "finetune"]
    with _ray_cluster(ray, run):
        job = ray.remote(**_ray_needs(ray, grid, run), max_retries=RAY_RETRIES, retry_exceptions=False)(_ray_job)
        store = replace(run.store, results=run.store.results.resolve())
        quiet = replace(run, store=store, say=_nothing, step_locks=True)
        started: dict[str, Any] = {}
        fingerprints_there = ray.put(known)  # once for all tasks: it is as long as the plan
        for step in grid:
            waits = [started[name] for name in step.needs if name in started]
            started[step.name] = job.remote(step, fingerprints_there, quiet, *waits)
        names = {reference: name for name, reference in started.items()}
        while names:
            (done, *_), _ = ray.wait(list(names))
            name = names.pop(done)
            try:
                computed = ray.get(done)
            except ray.exceptions.RayError as error:
                raise _ray_failure(name, error, ray) from None
            record = run.store.record(name) if computed else None
            what = f"{record['seconds']:.1f} s{summary_line(record['result'])}" if record else "done already"
            run.say(f"[ray {len(started) - len(names)}/{len(started)}] {name}: {what}")


def _ray() -> ModuleType:
    """The library. Raises UserError where it is not installed."""
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError("--executor ray: ray is not installed; pip install 'glue_bench[ray]'") from None
    return ray


@contextlib.contextmanager
def _ray_cluster(ray: ModuleType, run: Run) -> Iterator[None]:
    """Within the block this process drives a Ray cluster: the one at RAY_ADDRESS, or one of its own on this machine.

    Its own has as many CPUs as the run has threads, keeps its files in a temporary folder that is removed, stays on
    the loopback interface behind a token of its own, and sends no statistics. Its processes end with this one, however
    that ends. Ray takes SIGTERM for itself and, where the kernel does not end children with their parent, the process
    group: both are put back, or Ctrl-C would not come through where a script started this process.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    folder = "" if address else _ray_folder()
    handler, group = signal.getsignal(signal.SIGTERM), os.getpgrp()
    settings = dict(RAY_SETTINGS) if address else RAY_SETTINGS | {"RAY_AUTH_TOKEN": secrets.token_hex(16)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)  # Ray's own processes read them; a token that Ray makes would go to the home folder
    own = {
        "address": "local",  # None would join whatever cluster was last started on this machine
        "num_cpus": run.threads,
        "num_gpus": 0 if run.device == "cpu" else None,
        "object_store_memory": RAY_STORE_BYTES,
        "include_dashboard": False,
        "_temp_dir": folder,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        try:
            ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            where = f"the cluster at RAY_ADDRESS={address} cannot be joined" if address else "Ray does not start here"
            raise UserError(f"--executor ray: {where}: {reason}") from None
        _put_back(handler, group)
        yield
    finally:
        ray.shutdown(wait_for_processes=True)
        _put_back(handler, group)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _ray_folder() -> str:
    """A new temporary folder whose path leaves room for Ray's sockets. Raises UserError where there is none."""
    for place in dict.fromkeys((os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "/tmp")):
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="glue_bench-", dir=place)
            if len(os.fsencode(folder)) <= RAY_FOLDER_BYTES:
                return folder
            Path(folder).rmdir()
    raise UserError("--executor ray: the path of the temporary folder is too long for sockets; set TMPDIR=/tmp")


def _put_back(handler: Any, group: int) -> None:
    with contextlib.suppress(ValueError, TypeError, OSError):  # not the main thread; no handler of Python's; no group
        signal.signal(signal.SIGTERM, handler)
        if os.getpgrp() != group:
            os.setpgid(0, group)


def _ray_needs(ray: ModuleType, grid: Sequence[Step], run: Run) -> dict[str, float]:
    """What a task takes of a machine: a share of a GPU where the cluster has any, else as many CPUs as threads.

    Raises UserError where no machine of the cluster has as many: Ray would wait for one forever.
    """
    machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    if run.device != "cpu" and any(one.get("GPU") for one in machines):
        return {"num_cpus": 0, "num_gpus": 1 / run.config.machine.jobs_per_device}
    if run.device == "cuda":
        raise UserError("--device cuda: no machine of the Ray cluster has a GPU; use --device cpu or auto")
    threads = max(step.settings.get("threads", 1) for step in grid)
    most = max((one.get("CPU", 0) for one in machines), default=0)
    if threads > most:
        raise UserError(
            f"--executor ray: a fine-tuning takes {threads} CPUs and the cluster's largest machine has {most:g}; "
            "lower machine.threads or raise machine.jobs_per_device"
        )
    return {"num_cpus": threads, "num_gpus": 0}


def _ray_job(step: Step, known: dict[str, str], run: Run, *waits: int) -> int:
    """In a worker: bring one step to done; returns how many were computed (0 or 1). Raises as the step does."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # all that a fine-tuning reads lies in the run's folder
    if not (run.store.root / CONFIG_FILE).is_file():
        raise UserError(
            f"{run.store.root}: not there on {socket.gethostname()}; --executor ray needs --results on a folder that "
            "all machines of the cluster share"
        )
    with run_lock(run):  # the driver's is gone where the driver was killed
        return bring_to_done(step, known, run, step.name, force=False)


def _ray_failure(name: str, error: Exception, ray: ModuleType) -> GlueBenchError:
    """What to raise for a task that failed for good: the step's own error, or one that says how its worker ended."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, GlueBenchError):
        return cause
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return StepError(f"{name}: its worker died {RAY_RETRIES + 1} times (killed, or out of memory)")
    shown = cause if isinstance(cause, BaseException) else error
    reason = (str(shown).strip().splitlines() or [""])[0]
    return StepError(f"{name}: {type(shown).__name__}: {reason}")


def _with_whole_paths(step: Step) -> Step:
    """The step with absolute paths of its outside inputs: workers have another working directory."""
    whole = {
        name: replace(one, location=str(Path(one.location).absolute())) if Path(one.location).exists() else one
        for name, one in step.inputs.items()
    }
    return replace(step, inputs=whole)


def _nothing(line: str) -> None:
    """Workers are silent: the driver reports."""
