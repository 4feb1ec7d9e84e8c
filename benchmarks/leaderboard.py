"""How long the leaderboard takes over many runs, and whether its time grows with their number and no faster.

    python benchmarks/leaderboard.py [--runs 100 1000 10000] [--students 2]

Each run is a folder with a summary.json of the size that a run on nine tasks leaves, under invented names and figures.
Last line: one JSON object.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))

from glue_bench.machine import environment
from glue_bench.reporting.leaderboard import update_leaderboard
from glue_bench.tasks import GLUE_NINE

REPEATS = 3


def invented_summary(name: str, students: int, rng: random.Random) -> dict[str, Any]:
    """A summary.json as the report writes it, with random figures."""

    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    def model(role: str) -> dict[str, Any]:
        scores = {task: rng.random() for task in GLUE_NINE}
        return {
            "role": role,
            "parameters": 66_362_880,
            "parameters_with_head": 66_955_010,
            "bytes": 265_000_000,
            "scores": scores,
            "mean_scores": scores,
            "macro": rng.random(),
            "macro_without_wnli": rng.random(),
            **{key: interval(rng.random()) for key in ("retention", "retention_9", "gain_retained")},
            "retention_tasks": list(GLUE_NINE[:-1]),
            "size_reduction": 0.394,
            "speedup": {device: interval(1 + rng.random()) for device in ("cpu", "cuda")},
        }

    names = {"teacher": "teacher", "majority": "majority"} | {f"student-{i}": "student" for i in range(students)}
    return {
        "run": name,
        "config": "paper",
        "title": "An invented run",
        "complete": True,
        "missing": [],
        "data": rng.choice(("full", "subset", "embedded")),
        "tasks": list(GLUE_NINE),
        "seeds": 5,
        "teacher": "teacher",
        "environment": asdict(environment(1, "fp32")),
        "finding": "student-0 keeps what it keeps",
        "models": {name: model(role) for name, role in names.items()},
        "gate": {"passed": True, "reasons": ["no threshold is set; nothing was asked"]},
    }


def measure(runs: int, students: int) -> dict[str, Any]:
    """Seconds (the best of three) to write the leaderboard over so many runs, a tenth of them published."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        template = invented_summary("run", students, rng)
        for number in range(runs):
            name = f"run-{number:05}"
            target = results / "published" / name if number % 10 == 0 else results / name
            target.mkdir(parents=True)
            kept = {"value": rng.random(), "low": 0.0, "high": 1.0}
            models = {key: one | {"retention": kept} for key, one in template["models"].items()}
            content = json.dumps(template | {"run": name, "models": models}, indent=1)
            (target / "summary.json").write_text(content)
        seconds = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            update_leaderboard(results)
            seconds.append(time.perf_counter() - started)
        rows = len((results / "leaderboard.csv").read_text().splitlines()) - 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "runs": runs,
        "rows": rows,
        "summary_bytes": len(content),
        "seconds": round(min(seconds), 3),
        "peak_mb": round(peak),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000, 10_000], help="how many runs, in turn")
    parser.add_argument("--students", type=int, default=2, help="students in each run")
    options = parser.parse_args()
    found = [measure(runs, options.students) for runs in options.runs]
    print(tabulate(found, headers="keys", tablefmt="pipe"))
    print(json.dumps({"leaderboard": found}))


if __name__ == "__main__":
    main()
