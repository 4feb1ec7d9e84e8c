"""How repeatable is a speed-up? The same measurement several times, interleaved as the tool does it and, beside it, one
model after the other as it is often done.

    python benchmarks/speedup_repeats.py [--config shapes] [--repeats 5] [--minutes 7.5] [--set key=value ...]

The paper's scenario only, unless --set benchmark.scenarios=... says otherwise. --minutes bounds the time on the clock,
all repeats and both methods together; loading, warm-up and writing the models come on top (a few minutes for
BERT-base). Prepares (and distils, where the config trains) in a temporary folder, or in --results. Prints a table and,
as its last line, one JSON object: for each row and method the speed-ups, their median, the largest deviation from it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from tabulate import tabulate

from glue_bench.config import Config, load_config, with_machine
from glue_bench.inputs import HashMemo
from glue_bench.machine import cpu_name, facts
from glue_bench.plan import Step, plan
from glue_bench.records import Timing, from_json
from glue_bench.reporting.efficiency import speedup_of
from glue_bench.stages import benchmark
from glue_bench.store import Store

METHODS = ("interleaved", "one after the other")
SCENARIO = 'benchmark.scenarios=["stsb-pass"]'


def prepare(options: argparse.Namespace, results: Path) -> None:
    """Bring every step that `benchmark` needs to done, by the command line."""
    for verb in ("prepare", "distill"):
        command = [sys.executable, "-m", "glue_bench", verb, "--config", options.config, "--results", str(results)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run([*command, "--run", "repeats", "--set", *options.set], check=True, env=environment)


def key_of(one: Timing) -> tuple[str, ...]:
    """What must be equal for two timings to be compared."""
    return (one.backend, one.precision, one.scenario, str(one.batch_size))


def speedups(timings: list[Timing], config: Config, interleaved: bool) -> dict[tuple[str, ...], float]:
    """(student, backend, precision, scenario, batch size) -> speed-up.

    Interleaved as the report computes it; models timed apart have no partners, only a median pass each.
    """
    teacher = {key_of(one): one for one in timings if one.model == config.teacher.name and not one.skipped}
    found = {}
    for one in timings:
        if one.model != config.teacher.name and not one.skipped and key_of(one) in teacher:
            partner = teacher[key_of(one)]
            value = median(partner.pass_s) / median(one.pass_s)
            if interleaved:
                value = speedup_of(partner, one, resamples=1, seed=0).value
            found[(one.model, *key_of(one))] = value
    return found


def measure(
    step: Step, store: Store, device: str, interleaved: bool, seconds: float
) -> tuple[list[Timing], list[dict[str, Any]]]:
    """One measurement of all models together, or of each by itself, and what the machine did meanwhile."""
    models: Mapping[str, str] = step.settings["models"]
    groups = [dict(models)] if interleaved else [{name: source} for name, source in models.items()]
    sizes = len(step.settings["batch_sizes"])
    works = sum(1 if scenario == "stsb-pass" else sizes for scenario in step.settings["scenarios"])
    limit = min(step.settings["max_seconds"], seconds / len(groups) / works)
    changes = {**step.settings, "max_seconds": limit}
    results = [benchmark.run(replace(step, settings=changes | {"models": one}), store, device) for one in groups]
    timings = [from_json(Timing, one) for result in results for one in result["timings"]]
    return timings, [group for result in results for group in result["groups"] if group["order"]]


def table_of(
    found: Mapping[str, list[dict[tuple[str, ...], float]]],
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Method -> repeats -> speed-ups as (rows to print, rows as data). A row may be missing from some repeats."""
    table, figures = [], []
    for method, repeats in found.items():
        for key in dict.fromkeys(key for one in repeats for key in one):
            values = [one[key] for one in repeats if key in one]
            middle = median(values)
            worst = max(abs(value / middle - 1) for value in values)
            cells = [f"{one[key]:.3f}" if key in one else "skipped" for one in repeats]
            table.append([*key, method, *cells, f"{middle:.3f}", f"{100 * worst:.1f} %"])
            names = ("model", "backend", "precision", "scenario", "batch_size")
            row = dict(zip(names, key, strict=True)) | {"method": method, "speedups": values}
            figures.append(row | {"median": middle, "largest_deviation": worst})
    return table, figures


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="shapes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=7.5, help="on the clock, all repeats and methods together")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--results", type=Path, help="kept; otherwise a temporary folder")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args()
    options.set = [SCENARIO, *options.set]
    started = time.monotonic()
    config = with_machine(load_config(options.config, options.set), device=options.device)
    seconds = 60 * options.minutes / options.repeats / len(METHODS)
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(options.results or Path(temporary), "repeats")
        prepare(options, store.results)
        steps = plan(config, facts(config.machine), HashMemo(None))
        step = next(one for one in steps if one.name == f"benchmark/{options.device}")
        found: dict[str, list[dict[tuple[str, ...], float]]] = {method: [] for method in METHODS}
        others, passes = [], []
        for repeat in range(options.repeats):
            for method in METHODS:
                interleaved = method == METHODS[0]
                timings, groups = measure(step, store, options.device, interleaved, seconds)
                found[method].append(speedups(timings, config, interleaved))
                if groups:
                    others.append(round(fmean(group["cores_busy_with_others"] for group in groups), 2))
                    passes.append(min(group["passes"] for group in groups))
            print(f"repeat {repeat + 1} of {options.repeats} done", file=sys.stderr)
    table, figures = table_of(found)
    if not table:
        sys.exit("nothing to compare: no student was timed beside the teacher")
    numbers = (str(i + 1) for i in range(options.repeats))
    head = ["student", "backend", "precision", "scenario", "batch", "method", *numbers, "median", "worst"]
    print(tabulate(table, headers=head, disable_numparse=True))
    minutes = (time.monotonic() - started) / 60
    print(
        f"{step.settings['machine']}; {step.settings['threads']} threads; at least {min(passes)} passes of each model; "
        f"cores busy with others meanwhile: {fmean(others):.2f}; {minutes:.1f} minutes in all"
    )
    summary = {"config": options.config, "device": options.device, "cpu": cpu_name(), "rows": figures}
    summary |= {"threads": step.settings["threads"], "passes": min(passes), "minutes": round(minutes, 1)}
    print(json.dumps(summary | {"cores_busy_with_others": others}))


if __name__ == "__main__":
    main()
