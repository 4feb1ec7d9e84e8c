"""A run's folder without any training: real plan, real fingerprints, invented predictions, times and losses.

Every test of the reports starts from one of these; its arguments give the cases that a report must survive.
"""

import atexit
import contextlib
import csv
import importlib
import json
import shutil
import sys
import tempfile
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from glue_bench.config import Config, config_from, plain
from glue_bench.data.predictions import Predictions, read_predictions, write_predictions
from glue_bench.inputs import HashMemo
from glue_bench.learning.metrics import headline, score_with_warnings
from glue_bench.machine import Facts
from glue_bench.pipeline import READS_RECORDS, Run, Shard, run_steps
from glue_bench.plan import STAGE_VERSIONS, Step, explain, fingerprints, plan
from glue_bench.records import Environment, Score, Size, Timing, Training, seal_of, sealed
from glue_bench.reporting import build
from glue_bench.reporting.scores import Spread
from glue_bench.stages import check, report
from glue_bench.store import Store, list_outputs, read_record, write_atomic
from glue_bench.tasks import TASKS

DEV_ROWS = 120
SKILL = {"teacher": 0.9, "distil-2": 0.82, "copied-2": 0.7, "as-released": 0.88}
ENVIRONMENT = Environment("3.11.0", "Linux x86_64", "a processor", 2, 8.0, (), 1, "fp32", {"torch": "2.13.0"}, "abc")
SIZES = {"teacher": Size(1_000_000, 990_000, 800_000, 3_960_000), "student": Size(610_000, 600_000, 400_000, 2_400_000)}
FACTS = Facts(1, "fp32", {"cpu": "a processor, 2 cores"}, 1)


def settings(**changes: Any) -> dict[str, Any]:
    """A config as plain data: a teacher from scratch, a distilled student and the same layers merely copied."""
    raw: dict[str, Any] = {
        "name": "synthetic",
        "title": "An invented run",
        "teacher": {"layers": 4},
        "pretrain": {"tokens": 1000},
        "distill": {"tokens": 1000},
        "students": [
            {"name": "distil-2", "layers": [0, 2]},
            {"name": "copied-2", "layers": [0, 2], "distill": {"tokens": 0}},
        ],
        "finetune": {"seeds": [0, 1, 2]},
        "report": {"resamples": 100},
    }
    return raw | changes


def make_run(
    results: Path,
    raw: Mapping[str, Any] | None = None,
    *,
    name: str = "synthetic",
    skill: Mapping[str, float] = SKILL,
    without: Callable[[str], bool] = lambda step: False,
    reported: bool = True,
) -> Store:
    """Write the records and files of every step but those that `without` names, and mostly the report."""
    config = config_from(raw or settings(), "synthetic")
    store = Store(results, name)
    steps = plan(config, FACTS, HashMemo(None))
    known = fingerprints(steps)
    write_atomic(store.root / "config.json", json.dumps(plain(config), indent=2, sort_keys=True) + "\n")
    for step in steps:
        if step.stage not in ("report", "check") and not without(step.name):
            record(store, step, known, invent(config, store, step, skill))
    if reported:
        report_again(store)
    return store


def report_again(store: Store) -> dict[str, Any]:
    """Run the stages report and check on a synthetic run, as the pipeline would; returns what report returned.

    The figures are not drawn.
    """
    config = config_from(json.loads((store.root / "config.json").read_text()), "config.json")
    steps = plan(config, FACTS, HashMemo(None))
    known = fingerprints(steps)
    with undrawn():
        for step, stage in zip(steps[-2:], (report, check), strict=True):
            (store.folder(step.name) / "record.json").unlink(missing_ok=True)
            record(store, step, known, stage.run(step, store, "cpu"))
    return store.result("report")


def undrawn() -> AbstractContextManager[Any]:
    """Figures, which take most of a report's time, become files of one byte."""
    drawings = ("retention_figure", "scatter_figure", "parameters_figure", "losses_figure")
    return mock.patch.multiple(build, png=lambda _: b".", **{name: lambda *_: None for name in drawings})


@cache
def reported_run() -> Store:
    """A complete run on nine tasks with three seeds, with its report; made once, never to be changed."""
    return make_run(_kept_folder())


@cache
def small_run() -> Store:
    """As reported_run, on two tasks with two seeds: for tests that compute the tables many times."""
    return make_run(_kept_folder(), settings(data={"tasks": ["rte", "mnli"]}, finetune={"seeds": [0, 1]}))


@cache
def int8_run() -> Store:
    """As small_run, with int8 exports."""
    backends = {"backends": ["eager", "onnx-int8"]}
    changes = {"data": {"tasks": ["rte", "mnli"]}, "finetune": {"seeds": [0, 1]}, "benchmark": backends}
    return make_run(_kept_folder(), settings(**changes))


def copy_run(results: Path, original: Store | None = None) -> Store:
    """A copy of small_run (or another) to damage."""
    original = original or small_run()
    shutil.copytree(original.root, results / original.run)
    return Store(results, original.run)


def _kept_folder() -> Path:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


def record(store: Store, step: Step, known: dict[str, str], result: dict[str, Any]) -> None:
    """Write a step's record as the pipeline does."""
    folder = store.folder(step.name)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "step": step.name,
        "stage_version": STAGE_VERSIONS[step.stage],
        "fingerprint": known[step.name],
        **explain(step, known),
        "outputs": list_outputs(folder),
        "environment": asdict(ENVIRONMENT),
        "seconds": 1.5,
        "result": result,
    }
    if step.stage in READS_RECORDS:
        content["seals"] = {need: seal_of(read_record(store.folder(need)) or {}) for need in step.needs}
    write_atomic(folder / "record.json", json.dumps(sealed(content), indent=1, sort_keys=True, allow_nan=False) + "\n")


def run_all(store: Store, config: Config, say: Callable[[str], None]) -> None:
    """run-all over a synthetic run: steps that are not done are invented anew, the report is a real one."""
    with invented_stages(config):
        walk_plan(store, config, say, step_locks=False)


@contextlib.contextmanager
def invented_stages(config: Config) -> Iterator[None]:
    """The stages before report invent what they would have computed."""
    invented = types.ModuleType("invented")
    invented.run = lambda step, store, device: invent(config, store, step, SKILL)  # type: ignore[attr-defined]
    names = [f"glue_bench.stages.{stage}" for stage in ("prepare", "pretrain", "distill", "finetune", "benchmark")]
    real = {name: importlib.import_module(name) for name in names}
    try:  # mock.patch.dict would take out of sys.modules whatever else is imported meanwhile
        sys.modules.update(dict.fromkeys(names, invented))
        with undrawn():
            yield
    finally:
        sys.modules.update(real)


def walk_plan(store: Store, config: Config, say: Callable[[str], None], *, step_locks: bool) -> None:
    """The pipeline over all steps of a config."""
    steps = plan(config, FACTS, HashMemo(None))
    run_steps(steps, steps, Run(store, config, "cpu", 1, "fp32", Shard(1, 1), say, step_locks))


def invent(config: Config, store: Store, step: Step, skill: Mapping[str, float]) -> dict[str, Any]:
    """What a stage would have left: files in the step's folder and a result."""
    parts = step.name.split("/")
    match parts[0]:
        case "prepare" if parts[1] == "glue":
            splits = ("train", *TASKS[parts[2]].dev_splits)
            write_atomic(store.folder(step.name) / "validation.parquet", b"text that is never published")
            return {"rows": dict.fromkeys(splits, DEV_ROWS)}
        case "pretrain" | "distill":
            write_atomic(store.folder(step.name) / "model" / "model.safetensors", b"weights")
            return invent_training(store.folder(step.name)) if step.settings.get("tokens") else {}
        case "finetune":
            return invent_predictions(store, step, skill)
        case "benchmark" if parts[1] == "int8":
            return invent_int8(store, step)
        case "benchmark" if parts[1] == "size":
            owners = step.settings["models"]
            return {"sizes": {m: asdict(SIZES["teacher" if m == config.teacher.name else "student"]) for m in owners}}
        case "benchmark":
            return {"timings": [asdict(invent_timing(m, config.teacher.name)) for m in step.settings["models"]]}
    return {}


def invent_training(folder: Path) -> dict[str, Any]:
    rows = [(step, 100 * step, 8.0 / (1 + step / 5)) for step in range(1, 11)]
    folder.mkdir(parents=True, exist_ok=True)
    for file, column in (("training.csv", "loss"), ("heldout.csv", "mlm_loss")):
        with (folder / file).open("w", newline="") as out:
            csv.writer(out).writerows([("step", "tokens", column), *rows])
    training = Training(10, 100, 1000, 2.0, 8.0, 3.0)
    heldout = {"mlm_loss": 6.0, "accuracy": 0.1, "kl_to_teacher": None}
    return {"training": asdict(training), "heldout": {"before": heldout, "after": heldout}, "tokens_per_second": 500.0}


def invent_predictions(store: Store, step: Step, skill: Mapping[str, float]) -> dict[str, Any]:
    model, task = step.settings["model"], TASKS[step.settings["task"]]
    seed = step.settings.get("seed", 0)
    splits, scores = [], []
    for split in task.dev_splits:
        labels = np.random.default_rng(zlib.crc32(f"{task.name} {split}".encode()))
        rng = np.random.default_rng(zlib.crc32(f"{step.name} {split}".encode()))
        right = rng.random(DEV_ROWS) < skill.get(model, 0.5)
        if task.is_regression:
            label = labels.uniform(0, 5, DEV_ROWS)
            prediction = np.where(right, label, rng.uniform(0, 5, DEV_ROWS))
        else:
            others = len(task.classes) - 1
            label = labels.choice(len(task.classes), DEV_ROWS, p=[0.6, *[0.4 / others] * others])
            prediction = np.where(right, label, (label + 1) % len(task.classes))
        if model == "majority":
            prediction = np.full(DEV_ROWS, label.mean() if task.is_regression else 0)
        metrics, warnings = score_with_warnings(task.name, prediction, label)
        scores.append(asdict(Score(model, task.name, split, seed, metrics, DEV_ROWS, warnings)))
        logits = np.zeros((DEV_ROWS, task.num_outputs), np.float32)
        idx = np.arange(DEV_ROWS)
        splits.append(Predictions(split, idx, label.astype(float), prediction.astype(float), logits))
    write_predictions(store.folder(step.name) / "predictions.parquet", splits)
    if model != "majority":
        write_atomic(store.folder(step.name) / "weights" / "model.safetensors", b"fine-tuned weights")
    return {"scores": scores, "training": None}


def invent_int8(store: Store, step: Step) -> dict[str, Any]:
    """The median seed's predictions, every tenth class changed (regression: off by 0.1) and logits off by 0.25."""
    model, task = step.settings["model"], TASKS[step.settings["task"]]
    by_seed = {}
    for name in (need for need in step.needs if need.startswith("finetune/")):
        kept = next(one for one in store.result(name)["scores"] if one["split"] == task.dev_splits[0])
        by_seed[kept["seed"]] = headline(task.name, kept["metrics"])
    seed = Spread(by_seed).median_seed
    splits, scores = [], []
    fp32 = store.folder(f"finetune/{model}/{task.name}/seed-{seed}") / "predictions.parquet"
    for one in read_predictions(fp32).values():
        tenth = one.idx % 10 == 0
        changed = one.prediction + 0.1 if task.is_regression else (one.prediction + tenth) % len(task.classes)
        metrics, warnings = score_with_warnings(task.name, changed, one.label)
        scores.append(asdict(Score(model, task.name, one.split, seed, metrics, DEV_ROWS, warnings)))
        splits.append(Predictions(one.split, one.idx, one.label, changed, one.logits + np.float32(0.25)))
    write_predictions(store.folder(step.name) / "predictions.parquet", splits)
    sizes = {"bytes_on_disk": 1_000_000, "fp32_bytes_on_disk": 4_000_000}
    return {"scores": scores, "seed": seed, "largest_logit_difference": 0.25, "skipped": "", **sizes}


def invent_timing(model: str, teacher: str) -> Timing:
    rng = np.random.default_rng(zlib.crc32(model.encode()))
    passes = tuple(float(one) for one in (1.0 if model == teacher else 0.6) * rng.normal(1, 0.01, 8))
    return Timing(
        model, "cpu", "a processor", "eager", "fp32", "stsb-pass", 1, 64, passes, passes, 100.0, None, threads=1
    )


def change_predictions(
    store: Store, step: str, change: Callable[[np.ndarray], np.ndarray], rows: int | None = None
) -> None:
    """Rewrite a step's predictions (the first `rows` of each split), as a fault or a forger would: its record stays."""
    path = store.folder(step) / "predictions.parquet"
    splits = [
        Predictions(
            one.split, one.idx[:rows], one.label[:rows], change(one.prediction[:rows].copy()), one.logits[:rows]
        )
        for one in read_predictions(path).values()
    ]
    write_predictions(path, splits)
