"""Time and memory under load: records in one results folder, megabytes of text, rows of a dev set. Are they linear?

    python benchmarks/load.py [--records 1250 2500 5000 10000] [--text 10 50 100] [--rows 10000 100000 1000000] [--full]

Each figure is taken in a process of its own: seconds, and by how many MB its memory rose above where it began. --full
adds a text of 1,000 MB. Last line: one JSON object.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import synthetic_run
from synthetic_run import FACTS, make_run, settings, undrawn, walk_plan

from glue_bench.config import config_from
from glue_bench.data.corpus import build_corpus, open_corpus
from glue_bench.data.predictions import Predictions, read_predictions, write_predictions
from glue_bench.inputs import HashMemo, Input
from glue_bench.learning.metrics import score_with_warnings
from glue_bench.pipeline import states
from glue_bench.plan import plan
from glue_bench.reporting.build import build
from glue_bench.reporting.leaderboard import update_leaderboard
from glue_bench.reporting.resampling import TaskPredictions
from glue_bench.reporting.run_folder import load_run
from glue_bench.reporting.statistics import ModelPredictions, retention
from glue_bench.reporting.verify import verify
from glue_bench.store import Store

MEGABYTE = 1_000_000
PAGE = os.sysconf("SC_PAGE_SIZE")
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
RESAMPLES = 100  # of the bootstrap over rows: its time is proportional to them, and the default is 10,000


def measured(what: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """Run a function in a child process; seconds and the rise of its memory."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(sender, what, *arguments))
    child.start()
    sender.close()
    try:
        figures = receiver.recv()
    except EOFError:
        raise SystemExit(f"{what.__name__}{arguments}: failed") from None
    finally:
        child.join()
    return figures


def _child(sender: Any, what: Callable[..., Any], *arguments: Any) -> None:
    gc.freeze()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    started = time.perf_counter()
    what(*arguments)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sender.send({"seconds": round(seconds, 3), "mb": round((peak - before) / MEGABYTE, 1)})


def many_records(count: int) -> dict[str, Any]:
    """A config with about so many fine-tunings: nine tasks, a teacher and two students, as many seeds as it takes."""
    seeds = list(range(max(1, round(count / (len(TASKS) * 3)))))
    students = [{"name": "distil-2", "layers": [0, 2]}, {"name": "copied-2", "layers": [1, 3]}]
    return settings(data={"tasks": list(TASKS)}, finetune={"seeds": seeds}, students=students)


def list_steps(store: Store, raw: dict[str, Any]) -> None:
    """What `plan` does: the state of every step."""
    states(plan(config_from(raw, "load"), FACTS, HashMemo(None)), store)


def no_op(store: Store, raw: dict[str, Any]) -> None:
    """run-all where everything is done."""
    walk_plan(store, config_from(raw, "load"), lambda line: None, step_locks=False)


def report(store: Store) -> None:
    """All tables, nothing drawn."""
    with undrawn():
        build(store.root)


def made(results: Path, raw: dict[str, Any]) -> Store:
    """An invented run, made in a child too: what this process has freed would hide the memory of those after it."""
    measured(make_run, results, raw)
    return Store(results, "synthetic")


def records_ladder(sizes: list[int]) -> list[dict[str, Any]]:
    """Records in one run's folder."""
    found = []
    for size in sizes:
        raw = many_records(size)
        with tempfile.TemporaryDirectory() as folder:
            synthetic_run.DEV_ROWS = 20
            store = made(Path(folder), raw)
            records = sum(1 for _ in store.root.rglob("record.json"))
            row = {"records": records, "plan": measured(list_steps, store, raw), "no-op": measured(no_op, store, raw)}
            row |= {"load": measured(load_run, store.root), "report": measured(report, store)}
            row |= {"verify": measured(verify, store.root), "leaderboard": measured(update_leaderboard, store.results)}
            found.append(row)
    return found


def write_text(path: Path, megabytes: int) -> None:
    """A text of so many MB: documents of invented words, drawn from 30,000 by rank as words are."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 9))) for _ in range(30_000)]
    chances = [1 / rank for rank in range(1, len(words) + 1)]
    block = "\n".join(" ".join(rng.choices(words, chances, k=rng.randint(20, 120))) for _ in range(2000))
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * MEGABYTE:
            written += file.write(block[rng.randrange(1000) :] + "\n\n")
    Path(path.with_suffix(".words")).write_text("\n".join(words), encoding="utf-8")


def tokenise(text: Path, cache: Path) -> None:
    """Through the corpus cache and open again, every byte hashed."""
    from transformers import BertTokenizer

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *dict.fromkeys(text.with_suffix(".words").read_text().split()),
    ]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    chosen = {"batches": "packed", "heldout_fraction": 0.02, "sequence_length": 128, "seed": 0, "documents": 1}
    manifest = build_corpus(cache, chosen, {"text-0": Input(str(text), "sha256:0")}, tokenizer)
    open_corpus(cache, manifest["key"]).epoch_batches(0, 0, 32)


def text_ladder(sizes: list[int]) -> list[dict[str, Any]]:
    """Megabytes of text through the corpus cache."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder, "text.txt")
            write_text(text, size)
            found.append({"text_mb": size, "corpus": measured(tokenise, text, Path(folder, "cache"))})
    return found


def predictions_file(path: Path, rows: int) -> None:
    """Write and read predictions of so many rows."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, rows).astype(float)
    logits = rng.normal(size=(rows, 3)).astype(np.float32)
    write_predictions(path, [Predictions("validation", np.arange(rows), label, logits.argmax(1).astype(float), logits)])
    assert len(read_predictions(path)["validation"].idx) == rows


def metrics(rows: int) -> None:
    """The metrics of a classification (with F1) and of a regression."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, rows)
    score_with_warnings("mrpc", np.where(rng.random(rows) < 0.9, label, 1 - label).astype(float), label)
    real = rng.uniform(0, 5, rows)
    score_with_warnings("stsb", real + rng.normal(size=rows), real)


def bootstrap(task: str, rows: int) -> None:
    """Retention of a student with its interval."""
    rng = np.random.default_rng(0)
    regression = task == "stsb"
    label = rng.uniform(0, 5, rows) if regression else rng.integers(0, 2, rows).astype(float)

    def model(name: str, skill: float) -> ModelPredictions:
        right = rng.random((1, rows)) < skill
        return ModelPredictions(
            name, {task: TaskPredictions(label, np.where(right, label, 5 - label if regression else 1 - label))}
        )

    retention(model("teacher", 0.9), model("student", 0.85), None, resamples=RESAMPLES, seed=0)


def rows_ladder(sizes: list[int]) -> list[dict[str, Any]]:
    """Rows of a dev set."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            row: dict[str, Any] = {
                "rows": size,
                "predictions": measured(predictions_file, Path(folder, "p.parquet"), size),
            }
            row |= {"metrics": measured(metrics, size), "bootstrap mrpc": measured(bootstrap, "mrpc", size)}
            row["bootstrap stsb"] = measured(bootstrap, "stsb", size)
            synthetic_run.DEV_ROWS = size
            students = [{"name": "distil-2", "layers": [0, 2]}]
            raw = settings(data={"tasks": ["qnli"]}, finetune={"seeds": [0]}, students=students)
            store = made(Path(folder), raw)
            found.append(row | {"report": measured(report, store), "verify": measured(verify, store.root)})
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """A table for people: seconds and MB of each part, by size."""
    if not rows:
        return
    size, *parts = rows[0]
    headers = [size.replace("_", " "), *(f"{part}, {unit}" for part in parts for unit in ("s", "MB"))]
    body = [[f"{row[size]:,}", *(row[part][unit] for part in parts for unit in ("seconds", "mb"))] for row in rows]
    print(tabulate(body, headers=headers, tablefmt="pipe"), "\n", flush=True)


def main() -> None:
    """Measure the ladders and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="*", default=[1250, 2500, 5000, 10_000])
    parser.add_argument("--text", type=int, nargs="*", default=[10, 50, 100], help="MB")
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--full", action="store_true", help="a text of 1,000 MB too")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    ladders = (("records", records_ladder, options.records), ("rows", rows_ladder, options.rows))
    for name, ladder, sizes in (*ladders, ("text", text_ladder, [*options.text, *([1000] if options.full else [])])):
        figures[name] = ladder(sizes)
        show(figures[name])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
