"""Fine-tunings in parallel: shard processes on this machine's GPUs or cores, or tasks on a Ray cluster.

Both run the same steps as the serial pipeline, each under its own lock in the shared folder, so that a job that is
killed is done again and none is counted twice. Everything before and after fine-tuning runs in the calling process.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glue_bench.errors import StepError, UserError
from glue_bench.machine import gpu_names
from glue_bench.pipeline import Run, bring_to_done, is_done, run_steps, with_needs
from glue_bench.plan import Step, fingerprints

RAY_RETRIES = 3


def worker_environments(jobs_per_device: int, device: str) -> list[dict[str, str]]:
    """One environment per local worker: `jobs_per_device` for every GPU (or for the CPU)."""
    gpus = () if device == "cpu" else gpu_names()
    if not gpus:
        return [{} for _ in range(jobs_per_device)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(len(gpus))]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names for _ in range(jobs_per_device)]


def fan_out(arguments: Sequence[str], workers: Sequence[Mapping[str, str]]) -> None:
    """Run `finetune` with these arguments as one shard process per worker; raise StepError where one fails.

    All are ended when this process is interrupted, so that no orphan goes on computing.
    """
    command = [sys.executable, "-m", "glue_bench", "finetune", *arguments]
    started = [
        subprocess.Popen([*command, "--shard", f"{i}/{len(workers)}"], env=os.environ | dict(extra))
        for i, extra in enumerate(workers, start=1)
    ]
    try:
        codes = [worker.wait() for worker in started]
    except BaseException:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.wait()
        raise
    failed = [str(i) for i, code in enumerate(codes, start=1) if code]
    if failed:
        raise StepError(f"fine-tuning: shard {', '.join(failed)} of {len(workers)} failed; its message stands above")


def finetune_on_ray(steps: Sequence[Step], run: Run) -> None:
    """Run all fine-tunings of the plan as Ray tasks; a task whose worker dies is retried up to 3 times.

    Joins the cluster at RAY_ADDRESS, else starts one here. The results folder must be shared by all its machines.
    Raises UserError where ray is not installed, StepError where a task fails for good.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--executor ray: ray is not installed; pip install 'glue_bench[ray]'") from None
    known = fingerprints(steps)
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False)
    gpu_share = 1 / run.config.machine.jobs_per_device if gpu_names() and run.device != "cpu" else 0
    cores = next(
        (step.settings["threads"] for step in steps if "threads" in step.settings and step.stage == "finetune"), 1
    )
    job = ray.remote(num_cpus=cores, num_gpus=gpu_share, max_retries=RAY_RETRIES, retry_exceptions=False)(_ray_job)
    quiet = replace(run, say=_nothing, step_locks=True)
    try:
        references: dict[str, Any] = {}
        for step in steps:
            if step.stage == "finetune":
                waits = [references[name] for name in step.needs if name in references]
                references[step.name] = job.remote(step, known, quiet, *waits)
        for number, (name, reference) in enumerate(references.items(), start=1):
            computed = ray.get(reference)
            run.say(f"[ray {number}/{len(references)}] {name}: {'computed' if computed else 'done already'}")
    except ray.exceptions.RayError as error:
        raise StepError(f"--executor ray: {str(error).strip().splitlines()[-1]}") from None
    finally:
        if ours:
            ray.shutdown()


def _nothing(line: str) -> None:
    """Workers are silent: the driver reports."""


def _ray_job(step: Step, known: dict[str, str], run: Run, *waits: int) -> int:
    return bring_to_done(step, known, run, step.name, force=False)


def run_in_parallel(steps: Sequence[Step], run: Run, arguments: Sequence[str], executor: str) -> None:
    """Bring what fine-tuning needs to done here, then the fine-tunings in parallel; nothing where all are done."""
    known = fingerprints(steps)
    open_steps = [step for step in steps if step.stage == "finetune" and not is_done(step, known, run.store)]
    if not open_steps:
        return
    run_steps(steps, [step for step in with_needs(steps, open_steps) if step.stage != "finetune"], run)
    if executor == "ray":
        finetune_on_ray(steps, run)
    else:
        workers = worker_environments(run.config.machine.jobs_per_device, run.device)
        fan_out(arguments, workers[: len(open_steps)])
