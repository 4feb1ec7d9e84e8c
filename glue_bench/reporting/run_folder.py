"""A run's folder as the report sees it: config.json, the steps' records and files, and what is missing.

Everything that is reported comes from here, for a run in results/ and for a published one alike. Steps are looked up
by the names that the config gives them, so what an older config left in the folder is never reported.
"""

import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from glue_bench.config import Config, config_from, distill_settings, plain, task_settings
from glue_bench.data.glue import data_completeness
from glue_bench.data.predictions import PREDICTIONS_FILE
from glue_bench.errors import UserError, redo
from glue_bench.plan import int8_step, model_names, roles, weights_step
from glue_bench.records import Size, Timing, from_json, step_seconds
from glue_bench.store import CONFIG_FILE, RECORD, UNREADABLE, damaged_file, read_record

REPORTED_FILES = (PREDICTIONS_FILE, "training.csv", "heldout.csv")  # what tables and figures are made of


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of the grid: a model on a task with a seed."""

    model: str
    task: str
    seed: int

    @property
    def step(self) -> str:
        """Name of its step."""
        return f"finetune/{self.model}/{self.task}/seed-{self.seed}"


@dataclass(frozen=True)
class RunFolder:
    """The stored run; `records` holds the readable records of the steps that the config asks for.

    `missing` names the steps without one, `damaged` those of them whose record is there, but unreadable or edited.
    """

    root: Path
    name: str
    config: Config
    records: Mapping[str, Mapping[str, Any]]
    missing: tuple[str, ...]
    damaged: tuple[str, ...] = ()

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The grid of fine-tunings that the config asks for."""
        return tuple(grid(self.config))

    @cached_property
    def int8_cells(self) -> tuple[tuple[str, str], ...]:
        """(model, task) of every int8 export whose score the config asks for."""
        return tuple(int8_cells(self.config))

    @property
    def complete(self) -> bool:
        """Whether every step that the config asks for has a record."""
        return not self.missing

    def result(self, step: str) -> Mapping[str, Any]:
        """What a step returned; empty where it has no record."""
        return self.records[step]["result"] if step in self.records else {}

    @cached_property
    def roles(self) -> dict[str, str]:
        """Model -> teacher, as-released, student or majority, in the order of the tables."""
        return roles(self.config)

    @cached_property
    def sizes(self) -> dict[str, Size]:
        """Model -> size, for rows that share a network with another row too."""
        stored = self.result("benchmark/size").get("sizes", {})
        owners = {model: network_of(self.config, model) for model in self.roles if model != "majority"}
        return {model: from_json(Size, stored[owner]) for model, owner in owners.items() if owner in stored}

    @cached_property
    def timings(self) -> tuple[Timing, ...]:
        """All timings of all devices."""
        steps = [step for step in self.records if step.startswith("benchmark/") and step != "benchmark/size"]
        return tuple(from_json(Timing, one) for step in steps for one in self.result(step).get("timings", ()))

    @cached_property
    def rows_used(self) -> dict[str, dict[str, int]]:
        """Task -> split -> rows that were read, from the prepare steps."""
        used = {task: self.result(f"prepare/glue/{task}").get("rows", {}) for task in self.config.data.tasks}
        return {task: dict(rows) for task, rows in used.items() if rows}

    def data_of(self, task: str) -> str:
        """What one task stands on: embedded, subset or full (every official row of training and dev sets)."""
        return data_completeness(self.config.data.glue, {task: self.rows_used.get(task, {})})

    @property
    def data(self) -> str:
        """What the run stands on: embedded, full where all its tasks are, else subset."""
        rows = {task: self.rows_used.get(task, {}) for task in self.config.data.tasks}
        return data_completeness(self.config.data.glue, rows)

    @cached_property
    def environments(self) -> dict[str, list[str]]:
        """Environment (as canonical JSON) -> stages whose steps ran in it, the most frequent first."""
        counts: Counter[str] = Counter()
        stages: dict[str, list[str]] = {}
        for step, record in self.records.items():
            if not (environment := record.get("environment")):
                continue
            key = json.dumps(environment, sort_keys=True)
            counts[key] += 1
            stage = step.split("/")[0]
            if stage not in stages.setdefault(key, []):
                stages[key].append(stage)
        return {key: stages[key] for key, _ in counts.most_common()}

    @property
    def environment(self) -> dict[str, Any]:
        """The environment in which most steps ran; empty where no record names one."""
        return json.loads(next(iter(self.environments), "{}"))

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds of its steps, summed: those that ran at once count in full, resumed ones from the start."""
        total: dict[str, float] = {}
        for step, record in self.records.items():
            stage = step.split("/")[0]
            total[stage] = total.get(stage, 0.0) + step_seconds(record)
        return total

    @cached_property
    def finetune_seconds(self) -> dict[tuple[str, str], float]:
        """(model, task) -> wall time of its fine-tunings, all seeds, predictions included."""
        total: dict[tuple[str, str], float] = {}
        for step, record in self.records.items():
            stage, *place = step.split("/")
            if stage == "finetune":
                key = (place[0], place[1])
                total[key] = total.get(key, 0.0) + step_seconds(record)
        return total


def load_run(root: Path, name: str = "") -> RunFolder:
    """Read a run's folder; `name` stands in for the folder's own. Raises UserError where it holds no run."""
    path = root / CONFIG_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; a run's folder has the config it was made with") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not valid JSON ({error}); run-all writes it anew") from None
    config = config_from(raw, str(path))
    records: dict[str, Mapping[str, Any]] = {}
    missing: dict[str, bool] = {}  # step -> whether something stands where its record belongs
    waiting = deque(expected_steps(config))
    while waiting:
        step = waiting.popleft()
        if step in records or step in missing:
            continue
        record = read_record(root / step)
        if record is None or record["step"] != step:
            missing[step] = (root / step / RECORD).exists()
            continue
        records[step] = record
        waiting += record["needs"]
    if (cuda := read_record(root / "benchmark/cuda")) and _is_current(cuda, config, records):
        records["benchmark/cuda"] = cuda
    ordered = {step: records[step] for step in sorted(records)}
    damaged = tuple(sorted(step for step, stands in missing.items() if stands))
    return RunFolder(root, name or root.resolve().name, config, ordered, tuple(sorted(missing)), damaged)


def _is_current(cuda: Mapping[str, Any], config: Config, records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether timings on CUDA, perhaps another machine's, are of the networks and settings that the run has now."""
    networks = all(need in records and records[need]["fingerprint"] == known for need, known in cuda["needs"].items())
    return networks and all(cuda["settings"].get(key) == value for key, value in plain(config.benchmark).items())


def load_intact_run(root: Path) -> RunFolder:
    """As load_run, for what shows figures without checking them: records and predictions are what was written.

    Raises UserError naming the first record or file that is damaged.
    """
    run = load_run(root)
    for step in run.damaged:
        raise UserError(f"{root / step / RECORD}: unreadable or edited; run again: the step is computed anew")
    for step, record in run.records.items():
        listed = {name: one for name, one in record["outputs"].items() if name in REPORTED_FILES}
        if damaged := damaged_file(root / step, listed, hash_all=True):
            raise UserError(f"{damaged}; {redo(root / step)}")
    return run


def expected_steps(config: Config) -> Iterator[str]:
    """Steps without which a run is incomplete. Timing on CUDA is not among them: not every machine has it."""
    for task in config.data.tasks:  # AX, which not every source has, is found by what MNLI's fine-tunings need
        yield f"prepare/glue/{task}"
    for model in model_names(config):
        if has_weights(config, model):
            yield weights_step(config, model)
    for cell in grid(config):
        yield cell.step
    yield "benchmark/size"
    yield "benchmark/cpu"
    for model, task in int8_cells(config):
        yield int8_step(model, task)


def grid(config: Config) -> Iterator[Cell]:
    """The fine-tunings of a config, majority rows included, task by task."""
    students = {student.name: student for student in config.students}
    for task in config.data.tasks:
        yield Cell("majority", task, 0)
        seeds = task_settings(config, task).seeds
        for model in model_names(config):
            own = config.teacher if model == config.teacher.name else students.get(model)
            if own is not None and task in own.finetuned:
                yield Cell(model, task, 0)
            elif has_weights(config, model):
                for seed in seeds:
                    yield Cell(model, task, seed)


def int8_cells(config: Config) -> Iterator[tuple[str, str]]:
    """(model, task) where teacher and students are fine-tuned and int8 is among the backends."""
    if "onnx-int8" in config.benchmark.backends:
        wanted = roles(config)
        cells = ((cell.model, cell.task) for cell in grid(config) if wanted[cell.model] in ("teacher", "student"))
        yield from dict.fromkeys(cells)


def has_weights(config: Config, model: str) -> bool:
    """Whether a row has pre-trained weights, not only checkpoints that the user fine-tuned."""
    student = next((one for one in config.students if one.name == model), None)
    return student is None or bool(student.layers or student.weights or student.weights_of)


def network_of(config: Config, model: str) -> str:
    """The row under which a row's network was measured: its own, the teacher's for as-released, or weights_of."""
    if model == "as-released":
        return config.teacher.name
    student = next((one for one in config.students if one.name == model), None)
    return student.weights_of if student is not None and student.weights_of else model


def is_mere_copy(config: Config, model: str) -> bool:
    """Whether a row is the teacher's layers copied and not trained (the lower bar for distillation)."""
    student = next((one for one in config.students if one.name == model), None)
    if student is None or not student.layers:
        return False
    distill = distill_settings(config, student)
    return distill.tokens == 0 and distill.epochs == 0 and distill.initialisation == "teacher"
