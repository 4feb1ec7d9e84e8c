"""GLUE's metrics: what each task is scored by, and the one number of it that enters the macro.

Wrong input is an error, never a score. Where a metric is undefined (constant predictions or labels) it is 0.0 and a
warning says so; no score is ever NaN. glue_metric.py offers the same as an `evaluate.Metric`.
"""

import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from glue_bench.tasks import TASKS, Task


def score(task: str, predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Metrics of one task as fractions, by name, in the order of tasks.py.

    predictions: (n,) class integers, or real numbers for a regression task. labels: (n,), all known.
    Raises ValueError for NaN, unequal lengths, no examples, classes that the task has not, and unknown labels (-1).
    Source: Wang et al., "GLUE", ICLR 2019, section 3.
    """
    return score_with_warnings(task, predictions, labels)[0]


def score_with_warnings(
    task: str, predictions: ArrayLike, labels: ArrayLike
) -> tuple[dict[str, float], tuple[str, ...]]:
    """As `score`, and beside it one line for every metric that is undefined here and therefore 0.0."""
    row = TASKS[task]
    predicted, true = checked_predictions(row, predictions), checked_labels(row, labels)
    if len(predicted) != len(true):
        raise ValueError(f"{task}: {len(predicted)} predictions for {len(true)} labels")
    metrics, notes = {}, []
    for name in row.metrics:
        value, note = METRICS[name](predicted, true)
        metrics[name] = value
        if note:
            notes.append(f"{task}: {name} is 0 by convention: {note}")
    return metrics, tuple(notes)


def headline(task: str, metrics: Mapping[str, float]) -> float:
    """The task's score that enters the macro: the plain mean of its headline metrics."""
    names = TASKS[task].headline
    return sum(metrics[name] for name in names) / len(names)


def checked_predictions(row: Task, predictions: ArrayLike) -> np.ndarray:
    """Predictions of one run as (n,) int64 classes or float64 values. Raises ValueError where they are neither."""
    return _checked(row, predictions, "predictions", (-np.inf, np.inf))


def checked_labels(row: Task, labels: ArrayLike) -> np.ndarray:
    """Known labels as (n,) int64 classes or float64 values in range. Raises ValueError where one is unknown."""
    return _checked(row, labels, "labels", row.label_range or (-np.inf, np.inf))


def _checked(row: Task, values: ArrayLike, what: str, limits: tuple[float, float]) -> np.ndarray:
    given = np.asarray(values)
    if given.ndim != 1 or given.size == 0:
        raise ValueError(f"{row.name}: {what} of shape {given.shape}; expected one dimension and at least one example")
    if given.dtype.kind not in "iuf":
        raise ValueError(f"{row.name}: {what} of type {given.dtype}; expected numbers")
    bad = np.flatnonzero(~np.isfinite(given))
    if bad.size:
        raise ValueError(f"{row.name}: {what}[{bad[0]}] is {given[bad[0]]} ({bad.size} such of {given.size})")
    if row.is_regression:
        given = given.astype(np.float64)
        bad = np.flatnonzero((given < limits[0]) | (given > limits[1]))
        right = f"a number from {limits[0]:g} to {limits[1]:g}"
    else:
        bad = np.flatnonzero((given != np.trunc(given)) | (given < 0) | (given >= len(row.classes)))
        right = f"a class from 0 to {len(row.classes) - 1}"
    if bad.size:
        raise ValueError(f"{row.name}: {what}[{bad[0]}] is {given[bad[0]]:g}; expected {right}")
    return given if row.is_regression else given.astype(np.int64)


def _accuracy(predicted: np.ndarray, true: np.ndarray) -> tuple[float, str]:
    return float(accuracy_score(true, predicted)), ""


def _f1(predicted: np.ndarray, true: np.ndarray) -> tuple[float, str]:
    """F1 of class 1 (equivalent, duplicate), as GLUE scores MRPC and QQP; 0 where that class never occurs."""
    note = "" if (predicted == 1).any() or (true == 1).any() else "class 1 is neither predicted nor among the labels"
    return float(f1_score(true, predicted, labels=[1], average="macro", zero_division=0)), note


def _matthews_correlation(predicted: np.ndarray, true: np.ndarray) -> tuple[float, str]:
    note = _constant(predicted, true)
    return (0.0, note) if note else (float(matthews_corrcoef(true, predicted)), "")


def _pearson(predicted: np.ndarray, true: np.ndarray) -> tuple[float, str]:
    return _correlation(pearsonr, predicted, true)


def _spearman(predicted: np.ndarray, true: np.ndarray) -> tuple[float, str]:
    return _correlation(spearmanr, predicted, true)


def _correlation(function, predicted: np.ndarray, true: np.ndarray) -> tuple[float, str]:
    note = _constant(predicted, true)
    if note:
        return 0.0, note
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input: the value below is checked instead
        value = float(function(predicted, true).statistic)
    return (value, "") if np.isfinite(value) else (0.0, "the predictions are constant to machine precision")


def _constant(predicted: np.ndarray, true: np.ndarray) -> str:
    for values, what in ((predicted, "prediction"), (true, "label")):
        if (values == values[0]).all():
            return f"every {what} is {values[0]:g}"
    return ""


METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews_correlation,
    "pearson": _pearson,
    "spearman": _spearman,
}
