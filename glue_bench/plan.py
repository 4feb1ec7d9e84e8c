"""The whole experiment on one page: a Config becomes an ordered list of Steps.

A step is (name, settings, needs, inputs). Its name is also its folder under results/<run>/. Its fingerprint is made of
everything that can change its result and of nothing else: no path and no device, but threads and precision.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glue_bench.config import Config, Student, distill_settings, plain, task_settings
from glue_bench.inputs import (
    Input,
    checkpoint_inputs,
    glue_inputs,
    text_inputs,
    text_kinds,
    weights_inputs,
    weights_kind,
)
from glue_bench.machine import Facts
from glue_bench.sources import available_splits, source_kind

# Raised when a stage's results would differ from those of an earlier version with the same settings.
STAGE_VERSIONS = {"prepare": 1, "pretrain": 4, "distill": 4, "finetune": 5, "benchmark": 2, "report": 2, "check": 1}
STAGES = tuple(STAGE_VERSIONS)
TEXT_SETTINGS = ("text", "heldout", "documents", "max_hub_tokens")  # of [corpus]: inputs, or of one kind of text only


@dataclass(frozen=True)
class Step:
    """One unit of work: the first part of its name is its stage. `upkeep` cannot change its result."""

    name: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    inputs: Mapping[str, Input] = field(default_factory=dict)
    upkeep: Mapping[str, Any] = field(default_factory=dict)  # not in the fingerprint: when to write checkpoints

    @property
    def stage(self) -> str:
        """The verb that runs it."""
        return self.name.split("/")[0]


def fingerprints(steps: Sequence[Step]) -> dict[str, str]:
    """Name -> sha256 over stage, stage version, settings, fingerprints of what it needs, identities of its inputs."""
    known: dict[str, str] = {}
    for step in steps:
        known[step.name] = fingerprint(step.name, STAGE_VERSIONS[step.stage], explain(step, known))
    return known


def fingerprint(step: str, stage_version: int, explained: Mapping[str, Any]) -> str:
    """sha256 over a step's name, its stage's version and what `explain` says of it; a record holds all of these."""
    return hashlib.sha256(json.dumps([step, stage_version, explained], sort_keys=True).encode()).hexdigest()


def explain(step: Step, known: Mapping[str, str]) -> dict[str, Any]:
    """What a fingerprint is made of, as it stands in the record: settings, needs and inputs."""
    return {
        "settings": dict(step.settings),
        "needs": {name: known[name] for name in step.needs},
        "inputs": {name: one.identity for name, one in step.inputs.items()},
    }


def plan(config: Config, facts: Facts, memo: Any) -> tuple[Step, ...]:
    """All steps of a run in an order in which they can be run. `memo` remembers content hashes (inputs.HashMemo)."""
    compute = {"threads": facts.threads, "precision": facts.precision}
    steps: list[Step] = []
    steps += _prepare(config, memo)
    steps += _pretrain(config, compute)
    steps += _distill(config, compute)
    steps += _finetune(config, compute | {"threads": facts.job_threads}, memo)
    steps += _benchmark(config, facts, steps)
    done_before = tuple(step.name for step in steps)
    report = {"title": config.title, "config": config.name, **plain(config.report)}
    report["keep_weights"] = config.finetune.keep_weights
    report |= {"source": source_kind(config.data.glue), "check": check_settings(config)}
    baseline = {}
    if config.check.baseline:
        baseline["baseline"] = Input(config.check.baseline, memo.identity(Path(config.check.baseline)))
    steps.append(Step("report", report, done_before, baseline))
    steps.append(Step("check", check_settings(config), ("report",)))
    return tuple(steps)


def check_settings(config: Config) -> dict[str, Any]:
    """The gate's thresholds; of the baseline only whether there is one, as its content is an input of report."""
    return plain(config.check) | {"baseline": bool(config.check.baseline)}


def weights_step(config: Config, model: str) -> str:
    """The step whose folder holds a model's pre-trained weights under `model/`."""
    if model == "as-released":
        return f"prepare/weights/{config.teacher.name}"
    if model == config.teacher.name:
        return f"pretrain/{model}" if _trains(config.pretrain) else f"prepare/weights/{model}"
    student = next(one for one in config.students if one.name == model)
    if student.weights_of:
        return weights_step(config, student.weights_of)
    return f"distill/{model}" if student.layers else f"prepare/weights/{model}"


def model_names(config: Config) -> tuple[str, ...]:
    """Rows that are fine-tuned: teacher, as-released where pretrain changed the released encoder, students."""
    changed = _trains(config.pretrain) and not config.pretrain.freeze_encoder
    released = ("as-released",) if config.teacher.weights and changed else ()
    return (config.teacher.name, *released, *(student.name for student in config.students))


def roles(config: Config) -> dict[str, str]:
    """Model -> teacher, as-released, student or majority."""
    known = {config.teacher.name: "teacher", "as-released": "as-released", "majority": "majority"}
    names = (*model_names(config), *(("majority",) if config.data.tasks else ()))
    return {name: known.get(name, "student") for name in names}


def _trains(training: Any) -> bool:
    return training.tokens > 0 or training.epochs > 0


def needs_corpus(config: Config) -> bool:
    """Whether any step reads text."""
    distilled = [student for student in config.students if student.layers]
    return _trains(config.pretrain) or any(_trains(distill_settings(config, student)) for student in distilled)


def _prepare(config: Config, memo: Any) -> list[Step]:
    data, teacher = config.data, config.teacher
    kind = source_kind(data.glue)
    steps = []
    for task in (*data.tasks, *_diagnostics(config)):
        settings = {
            "task": task,
            "source": kind,
            "max_train_rows": data.max_train_rows,
            "max_dev_rows": data.max_dev_rows,
        }
        settings |= {"predict_test": data.predict_test, "seed": data.seed}
        settings["revision"] = data.revision if kind == "hub" else ""
        steps.append(Step(f"prepare/glue/{task}", settings, (), glue_inputs(data.glue, task, memo)))
    steps.append(_weights(teacher.name, teacher.weights, teacher.revision, _shape(config), memo))
    for student in config.students:
        if student.weights:
            steps.append(_weights(student.name, student.weights, student.revision, {}, memo))
    if needs_corpus(config):
        settings = {k: v for k, v in plain(config.corpus).items() if k not in TEXT_SETTINGS}
        settings["kinds"] = list(text_kinds(config.corpus))
        if "embedded" in settings["kinds"]:
            settings["documents"] = config.corpus.documents
        if "hub" in settings["kinds"] and config.corpus.max_hub_tokens:
            settings["max_hub_tokens"] = config.corpus.max_hub_tokens
        tokenizer = f"prepare/weights/{teacher.name}"
        steps.append(Step("prepare/corpus", settings, (tokenizer,), text_inputs(config.corpus, memo)))
    return steps


def _diagnostics(config: Config) -> tuple[str, ...]:
    """AX goes with MNLI where the source has it."""
    return ("ax",) if "mnli" in config.data.tasks and available_splits(config.data.glue, "ax") else ()


def _shape(config: Config) -> dict[str, Any]:
    names = ("layers", "hidden", "heads", "intermediate", "max_positions", "initializer_range", "vocabulary")
    return {name: getattr(config.teacher, name) for name in names} | {"seed": config.pretrain.seed}


def _weights(model: str, weights: str, revision: str, shape: Mapping[str, Any], memo: Any) -> Step:
    kind = weights_kind(weights)
    settings: dict[str, Any] = {"model": model, "kind": kind}
    settings |= {"shape": dict(shape)} if kind == "scratch" else {}
    settings |= {"revision": revision} if kind == "hub" else {}
    return Step(f"prepare/weights/{model}", settings, (), weights_inputs(weights, revision, memo))


def _pretrain(config: Config, compute: Mapping[str, Any]) -> list[Step]:
    name = config.teacher.name
    if not _trains(config.pretrain):
        return []
    settings, upkeep = _without_upkeep({**pretrain_settings(config), **compute, "weights": f"prepare/weights/{name}"})
    return [Step(f"pretrain/{name}", settings, (f"prepare/weights/{name}", "prepare/corpus"), {}, upkeep)]


def pretrain_settings(config: Config) -> dict[str, Any]:
    """[pretrain] as a step's settings: freeze_encoder only where it is on, so that older trainings stay done."""
    settings = plain(config.pretrain)
    return settings if config.pretrain.freeze_encoder else {k: v for k, v in settings.items() if k != "freeze_encoder"}


def checkpoint_key(step: Step, needs: Mapping[str, str]) -> str:
    """What a training's checkpoints belong to: its settings, stage version and the fingerprints of what it needs."""
    content = json.dumps([step.name, STAGE_VERSIONS[step.stage], dict(step.settings), dict(needs)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _without_upkeep(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    rest = dict(settings)
    return rest, {"checkpoint_every": rest.pop("checkpoint_every")}


def _distill(config: Config, compute: Mapping[str, Any]) -> list[Step]:
    teacher = weights_step(config, config.teacher.name)
    steps = []
    for student in config.students:
        if not student.layers:
            continue
        distill = distill_settings(config, student)
        settings, upkeep = _without_upkeep(
            {**plain(distill), **compute, "layers": list(student.layers), "teacher": teacher}
        )
        # A BERT's classifiers stand on its pooler, which no MLM trains. Said of these alone: other students stay done.
        if distill.family == "same" and distill.initialisation == "teacher":
            settings["keeps_pooler"] = True
        needs = (teacher, "prepare/corpus") if _trains(distill) else (teacher,)
        steps.append(Step(f"distill/{student.name}", settings, needs, {}, upkeep))
    return steps


def _finetune(config: Config, compute: Mapping[str, Any], memo: Any) -> list[Step]:
    steps = []
    soft = any(student.soft_targets for student in config.students)
    rows = {student.name: student for student in config.students}
    teacher = config.teacher.name
    for task in config.data.tasks:
        data = (
            f"prepare/glue/{task}",
            *(f"prepare/glue/{name}" for name in (_diagnostics(config) if task == "mnli" else ())),
        )
        steps.append(Step(f"finetune/majority/{task}/seed-0", {"model": "majority", "task": task}, data))
        base = plain(task_settings(config, task))
        seeds = base.pop("seeds")
        for model in model_names(config):
            student = rows.get(model, Student(name=model))
            finetuned = config.teacher.finetuned if model == teacher else student.finetuned
            if task in finetuned:
                settings = {"model": model, "task": task, "max_length": base["max_length"], **compute, "seed": 0}
                inputs = checkpoint_inputs(finetuned[task], f"finetuned.{task} of {model}", memo)
                steps.append(Step(f"finetune/{model}/{task}/seed-0", settings, data, inputs))
                continue
            if not (student.layers or student.weights or student.weights_of) and model in rows:
                continue  # a row of fine-tuned checkpoints only: the report says which tasks it lacks
            weights = weights_step(config, model)
            for seed in seeds:
                settings = {"model": model, "task": task, "seed": seed, "weights": weights, **base, **compute}
                needs = (weights, *data)
                if model == teacher and soft:
                    settings["train_logits"] = True
                if student.soft_targets:
                    settings |= {"soft_targets": student.soft_targets, "temperature": config.finetune.temperature}
                    settings["teacher"] = f"finetune/{teacher}/{task}/seed-{seed}"
                    needs = (*needs, settings["teacher"])
                steps.append(Step(f"finetune/{model}/{task}/seed-{seed}", settings, needs))
    return steps


def _benchmark(config: Config, facts: Facts, before: Sequence[Step]) -> list[Step]:
    sources = {}
    for model in model_names(config):
        student = next((one for one in config.students if one.name == model), None)
        if model == "as-released" or (student and (student.weights_of or not (student.layers or student.weights))):
            continue  # the same network as another row, or no pre-trained weights to time
        sources[model] = weights_step(config, model)
    needs = tuple(dict.fromkeys(sources.values()))
    steps = [Step("benchmark/size", {"models": sources}, needs)]
    inputs = ("prepare/glue/stsb",) if "stsb" in config.data.tasks else ()
    for device, machine in facts.devices.items():
        settings = {**plain(config.benchmark), "models": sources, "device": device, "machine": machine}
        settings |= {"threads": facts.threads, **_packages(config), **(_compiler(config) if device == "cpu" else {})}
        steps.append(Step(f"benchmark/{device}", settings, (*needs, *inputs)))
    return steps + (_int8(config, facts, before) if "onnx-int8" in config.benchmark.backends else [])


def _int8(config: Config, facts: Facts, before: Sequence[Step]) -> list[Step]:
    """A step for the int8 export of each model on each task; its score depends on the CPU's integer products."""
    cells: dict[tuple[str, str], list[Step]] = {}
    wanted = {model for model, role in roles(config).items() if role in ("teacher", "student")}
    for step in before:
        if step.stage == "finetune" and step.settings["model"] in wanted:
            cells.setdefault((step.settings["model"], step.settings["task"]), []).append(step)
    steps = []
    for (model, task), grid in cells.items():
        settings = {"model": model, "task": task, "max_length": grid[0].settings["max_length"]}
        settings |= {"machine": facts.devices["cpu"], "threads": facts.threads, **_packages(config)}
        needs = (*(one.name for one in grid), f"prepare/glue/{task}")
        steps.append(Step(int8_step(model, task), settings, needs, grid[0].inputs))
    return steps


def int8_step(model: str, task: str) -> str:
    """The step that scores a model's int8 export on a task."""
    return f"benchmark/int8/{model}/{task}"


def _packages(config: Config) -> dict[str, dict[str, bool]]:
    """Where ONNX is asked for, whether its packages are there: a row that was skipped for want of them is redone."""
    if not {"onnx", "onnx-int8"} & set(config.benchmark.backends):
        return {}
    return {"packages": {name: find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript")}}


def _compiler(config: Config) -> dict[str, bool]:
    """Where torch.compile is asked for, that the C++ compiler it calls is missing. Nothing where it is there, so that
    what was timed before this was looked at stays done."""
    wanted = "compile" in config.benchmark.backends
    return {"compiler": False} if wanted and shutil.which(os.environ.get("CXX", "g++")) is None else {}
