"""The bootstrap's time on full GLUE dev sets, and whether its 95 % intervals hold the truth 95 % of the time.

    python benchmarks/bootstrap.py [--resamples 10000] [--experiments 200]

Time: teacher, student and majority row, five seeds of each model, against the same resamples scored row by row with
scikit-learn (extrapolated from two). Coverage: many simulated experiments whose true retention is known, with few and
many seeds that differ little or much. Last line: one JSON object.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import norm
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))

from glue_bench.learning.metrics import headline, score
from glue_bench.reporting.resampling import TaskPredictions, resampled_scores
from glue_bench.reporting.statistics import ModelPredictions, retention
from glue_bench.tasks import GLUE_NINE, TASKS

TEACHER, STUDENT = 1.3, 1.0  # skills: about 80 % and 73 % right on a two-class task
COVERED_TASKS = ("cola", "mrpc", "stsb", "rte")


def pair(
    task: str, n: int, effects: np.ndarray, noise: float, rng: np.random.Generator
) -> tuple[TaskPredictions, TaskPredictions]:
    """Teacher and student with one run for each seed effect in effects (2, seeds), on n examples of shared difficulty.

    A run is right where skill + effect + difficulty + the model's own difficulty + noise is above zero; on STS-B that
    margin narrows the error of its score.
    """
    row, shared = TASKS[task], rng.normal(size=n)
    labels = rng.uniform(0, 5, n).round(1) if row.is_regression else rng.integers(0, len(row.classes), n)
    models = []
    for skill, own_effects in zip((TEACHER, STUDENT), effects, strict=True):
        own = 0.5 * rng.normal(size=n)
        margins = shared + own + noise * rng.normal(size=(len(own_effects), n))
        if row.is_regression:
            runs = labels + margins * np.exp(-0.5 * (skill + own_effects))[:, None]
        else:
            wrong = (labels + rng.integers(1, len(row.classes), n)) % len(row.classes)
            runs = np.where(skill + own_effects[:, None] + margins > 0, labels, wrong)
        models.append(TaskPredictions(labels, runs))
    return models[0], models[1]


def majority(like: TaskPredictions) -> TaskPredictions:
    """Class 1, or the score 1, everywhere."""
    return TaskPredictions(like.labels, np.ones((1, len(like.labels))))


def measure_time(resamples: int, seeds: int) -> tuple[list[dict], dict[str, float]]:
    """Per task the patterns' bootstrap and scikit-learn row by row; then whole `retention`, and the latter in all."""
    rng = np.random.default_rng(0)
    data = {
        task: pair(task, TASKS[task].dev_rows[0], 0.1 * rng.normal(size=(2, seeds)), 0.4, rng) for task in GLUE_NINE
    }
    rows = []
    for task, models in data.items():
        three = [*models, majority(models[0])]
        start = time.perf_counter()
        resampled_scores(task, three, resamples, 0)
        ours = time.perf_counter() - start
        n = len(models[0].labels)
        start = time.perf_counter()
        for _ in range(2):
            chosen = rng.integers(0, n, n)
            for one in three:
                for run in one.predictions:
                    headline(task, score(task, run[chosen], one.labels[chosen]))
        plain = (time.perf_counter() - start) / 2 * resamples
        rows.append({"task": task, "examples": n, "seconds": round(ours, 3), "row_by_row_seconds": round(plain)})
    teacher, student, floor = (
        ModelPredictions(name, {task: models(given) for task, given in data.items()})
        for name, models in (
            ("teacher", lambda given: given[0]),
            ("student", lambda given: given[1]),
            ("majority", lambda given: majority(given[0])),
        )
    )
    start, cpu_start = time.perf_counter(), time.process_time()
    retention(teacher, student, floor, resamples=resamples, seed=0)
    whole = {
        "retention_seconds": round(time.perf_counter() - start, 3),
        "retention_cpu_seconds": round(time.process_time() - cpu_start, 3),
        "row_by_row_seconds": sum(row["row_by_row_seconds"] for row in rows),
    }
    return rows, whole


def expected_scores(task: str, seed_effect: float, noise: float) -> np.ndarray:
    """Teacher's and student's expected scores: 40 seeds at the quantiles of their effect, 20,000 examples each."""
    effects = seed_effect * norm.ppf((np.arange(40) + 0.5) / 40)
    rng = np.random.default_rng(99)
    total = np.zeros(2)
    for effect in effects:
        models = pair(task, 20_000, np.full((2, 1), effect), noise, rng)
        total += [headline(task, score(task, one.predictions[0], one.labels)) for one in models]
    return total / len(effects)


def measure_coverage(experiments: int, resamples: int) -> list[dict]:
    """Share of simulated experiments whose interval of the retention holds the true one, by task and macro."""
    rows = []
    for seed_effect, noise in ((0.0, 0.4), (0.1, 0.4), (0.3, 0.4), (0.1, 0.0)):
        truth = {task: expected_scores(task, seed_effect, noise) for task in COVERED_TASKS}
        true = {task: student / teacher for task, (teacher, student) in truth.items()}
        teacher, student = sum(truth.values())
        true["macro"] = student / teacher
        for seeds in (1, 2, 3, 5):
            rng = np.random.default_rng([seeds, int(100 * seed_effect), int(100 * noise)])
            inside, widths = dict.fromkeys(true, 0), dict.fromkeys(true, 0.0)
            for experiment in range(experiments):
                data = {}
                for task in COVERED_TASKS:
                    effects = seed_effect * rng.normal(size=(2, seeds))
                    data[task] = pair(task, TASKS[task].dev_rows[0], effects, noise, rng)
                models = [ModelPredictions(f"model {k}", {t: given[k] for t, given in data.items()}) for k in (0, 1)]
                found = retention(*models, None, resamples=resamples, seed=experiment)
                for name in true:
                    interval = found.retention if name == "macro" else found.tasks[name].retention
                    inside[name] += int(interval.low <= true[name] <= interval.high)
                    widths[name] += interval.high - interval.low
            row = {"seed_effect": seed_effect, "noise": noise, "seeds": seeds}
            row |= {name: round(count / experiments, 3) for name, count in inside.items()}
            rows.append(row | {"macro_width": round(widths["macro"] / experiments, 4)})
            print(f"coverage: {row}", file=sys.stderr)
    return rows


def main() -> None:
    """Print both tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--resamples", type=int, default=10_000, help="of the timing; coverage takes 400")
    parser.add_argument("--seeds", type=int, default=5, help="per model, in the timing")
    parser.add_argument("--experiments", type=int, default=200, help="per row of the coverage table; 0: none")
    options = parser.parse_args()
    times, whole = measure_time(options.resamples, options.seeds)
    print(f"Teacher, student ({options.seeds} seeds each) and majority row, {options.resamples:,} resamples\n")
    print(tabulate(times, headers="keys", tablefmt="github"))
    wall, cpu = whole["retention_seconds"], whole["retention_cpu_seconds"]
    print(f"\nretention() over nine tasks: {wall:.2f} s ({cpu:.2f} s of processor time);")
    print(f"the same row by row about {whole['row_by_row_seconds']:,} s\n")
    coverage = measure_coverage(options.experiments, 400) if options.experiments else []
    if coverage:
        print(f"Coverage of the 95 % interval of the retention, {options.experiments} experiments a row")
        print("(seed_effect: deviation of the seeds' skill; noise: of single answers between seeds)\n")
        print(tabulate(coverage, headers="keys", tablefmt="github"), "\n")
    result = {"resamples": options.resamples, "seeds": options.seeds, **whole, "tasks": times}
    print(json.dumps(result | {"experiments": options.experiments, "coverage": coverage}))


if __name__ == "__main__":
    main()
