"""Which rows are compared with which: every row with the teacher, trained students with merely copied ones, ablations.

The statistics are statistics.py's; here stored predictions become its input.
"""

from collections.abc import Mapping

import numpy as np

from glue_bench.config import Student
from glue_bench.reporting.resampling import TaskPredictions
from glue_bench.reporting.run_folder import RunFolder, is_mere_copy
from glue_bench.reporting.scores import Scores
from glue_bench.reporting.statistics import (
    DifferenceResult,
    ModelPredictions,
    RetentionResult,
    difference,
    retention,
)


def model_predictions(scores: Scores) -> dict[str, ModelPredictions]:
    """Model -> its predictions on the headline splits, seeds in ascending order."""
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    labels: dict[str, np.ndarray] = {}
    for cell, part in scores.predictions.items():
        found.setdefault(cell.model, {}).setdefault(cell.task, {})[cell.seed] = part.prediction
        labels[cell.task] = part.label
    return {
        model: ModelPredictions(
            model,
            {
                task: TaskPredictions(labels[task], np.stack([by_seed[seed] for seed in sorted(by_seed)]))
                for task, by_seed in tasks.items()
            },
        )
        for model, tasks in found.items()
    }


def compare_to_teacher(run: RunFolder, models: Mapping[str, ModelPredictions]) -> dict[str, RetentionResult]:
    """Model -> what it keeps of the teacher; rows that share no task with it are left out."""
    teacher = models.get(run.config.teacher.name)
    if teacher is None:
        return {}
    settings, majority = run.config.report, models.get("majority")
    results = {}
    for name in run.roles:
        shared = set(teacher.tasks) & set(models[name].tasks) if name in models else set()
        if name == teacher.name or not shared:
            continue
        floor = majority if majority is not None and shared <= set(majority.tasks) else None
        results[name] = retention(teacher, models[name], floor, resamples=settings.resamples, seed=settings.seed)
    return results


def compare_to_copies(
    run: RunFolder, models: Mapping[str, ModelPredictions]
) -> dict[tuple[str, str], DifferenceResult]:
    """(trained student, merely copied one) -> the difference that the training made.

    Held against a copy are students of the same layers, weights from elsewhere of the same shape, and the rows that
    fine-tune the weights of one of these (weights_of).
    """
    students = {student.name: student for student in run.config.students}
    copies = [name for name in students if is_mere_copy(run.config, name)]
    found = {}
    for copy in copies:
        for name, student in students.items():
            source = students.get(student.weights_of, student)
            if name not in copies and _is_built_as(run, source, students[copy]):
                found[name, copy] = _difference(run, models, name, copy)
    return {pair: one for pair, one in found.items() if one is not None}


def _is_built_as(run: RunFolder, student: Student, copy: Student) -> bool:
    if student.layers:
        return student.layers == copy.layers
    given, copied = run.result(f"prepare/weights/{student.name}"), run.result(f"distill/{copy.name}")
    return bool(given) and all(given.get(key) == copied.get(key) for key in ("model_type", "parameters"))


def _difference(
    run: RunFolder, models: Mapping[str, ModelPredictions], name: str, other: str
) -> DifferenceResult | None:
    if name not in models or other not in models or not set(models[name].tasks) & set(models[other].tasks):
        return None
    settings = run.config.report
    return difference(models[name], models[other], resamples=settings.resamples, seed=settings.seed)


def compare_to(
    run: RunFolder, models: Mapping[str, ModelPredictions], reference: str, names: tuple[str, ...]
) -> dict[str, DifferenceResult]:
    """Each named row less the reference row: the change that leaving something out made."""
    found = {name: _difference(run, models, name, reference) for name in names if name != reference}
    return {name: one for name, one in found.items() if one is not None}
