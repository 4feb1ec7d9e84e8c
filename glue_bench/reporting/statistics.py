"""What a student keeps of its teacher, with honest uncertainty: retention, gain retained, differences, speed-up.

Everything comes from kept predictions per example. Intervals are 95 % percentile intervals of a bootstrap that draws
the examples of a task once for all models and seeds (they are paired) and the seeds of each model apart; examples,
seeds and tasks are independent of each other. Points are means over seeds; medians stand in the score table.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from glue_bench.learning.metrics import headline, score
from glue_bench.records import Interval
from glue_bench.reporting.resampling import TaskPredictions, resampled_scores
from glue_bench.tasks import GLUE_NINE, TASKS

TAIL = 0.025  # outside a 95 % interval, on each side


@dataclass(frozen=True)
class ModelPredictions:
    """A model's kept predictions: task -> labels and predictions on the split that gives the headline."""

    name: str
    tasks: Mapping[str, TaskPredictions]


@dataclass(frozen=True)
class Retention:
    """What the student keeps on one task, or on the macro over `tasks`. Scores are means over seeds.

    p_value: that the student is worse (small: it surely is), one-sided: the share of resamples in which it is not.
    """

    tasks: tuple[str, ...]
    score: float
    teacher_score: float
    majority_score: float | None
    retention: Interval
    gain_retained: Interval
    p_value: float
    n_seeds: int  # of the student; the fewest where tasks differ
    note: str = ""


@dataclass(frozen=True)
class RetentionResult:
    """Per task, on the macro without WNLI and, where WNLI was scored, on the macro with it."""

    tasks: dict[str, Retention]
    macro: Retention | None
    macro_9: Retention | None

    @property
    def retention(self) -> Interval:
        """On the macro without WNLI."""
        return self.macro.retention if self.macro else Interval(None, reason="no task besides WNLI was scored")

    @property
    def retention_9(self) -> Interval:
        """On the macro with WNLI."""
        return self.macro_9.retention if self.macro_9 else Interval(None, reason="WNLI was not scored")

    @property
    def gain_retained(self) -> Interval:
        """On the macro without WNLI."""
        return self.macro.gain_retained if self.macro else Interval(None, reason="no task besides WNLI was scored")

    @property
    def p_value(self) -> float | None:
        """On the macro without WNLI."""
        return self.macro.p_value if self.macro else None


@dataclass(frozen=True)
class Difference:
    """Score of a minus score of b (fractions), on one task or on the macro over `tasks`; p_value is two-sided."""

    tasks: tuple[str, ...]
    score_a: float
    score_b: float
    difference: Interval
    p_value: float
    n_seeds: int
    note: str = ""


@dataclass(frozen=True)
class DifferenceResult:
    """Per task, on the macro without WNLI and, where WNLI was scored, on the macro with it."""

    tasks: dict[str, Difference]
    macro: Difference | None
    macro_9: Difference | None


def seed_scores(task: str, given: TaskPredictions) -> list[float]:
    """The headline score of each seed on all examples. Raises ValueError as metrics.score does."""
    return [headline(task, score(task, run, given.labels)) for run in given.predictions]


def macro_tasks(tasks: Sequence[str], *, with_wnli: bool) -> tuple[str, ...]:
    """Those of the tasks that enter the macro, in GLUE's order."""
    return tuple(task for task in GLUE_NINE if task in tasks and (with_wnli or task != "wnli"))


def retention(
    teacher: ModelPredictions,
    student: ModelPredictions,
    majority: ModelPredictions | None,
    *,
    resamples: int,
    seed: int,
) -> RetentionResult:
    """What the student keeps of the teacher: student / teacher, and (student - majority) / (teacher - majority).

    Over the tasks that all given models have. Raises ValueError where they share none, or were scored on different
    examples, or a prediction or label is wrong.
    """
    models = [teacher, student, *([majority] if majority else [])]
    drawn = _draw(models, resamples, seed)

    def judged(tasks: tuple[str, ...]) -> Retention:
        points, samples = _means(drawn, tasks)
        floor, floors = (points[2], samples[2]) if majority else (None, None)
        kept = _ratio(points[1], points[0], samples[1], samples[0], f"the teacher's score is {points[0]:.4f}")
        if floor is None:
            gain = Interval(None, reason="there is no majority row")
        else:
            gain = _ratio(
                points[1] - floor,
                points[0] - floor,
                samples[1] - floors,
                samples[0] - floors,
                f"the teacher's gain over the majority class is {points[0] - floor:.4f}",
            )
        p_value = (1 + int((samples[1] >= samples[0]).sum())) / (1 + resamples)
        seeds, note = _seeds(models[:2], tasks)
        return Retention(tasks, points[1], points[0], floor, kept, gain, p_value, seeds, note)

    return RetentionResult(*_everywhere(judged, tuple(drawn)))


def difference(a: ModelPredictions, b: ModelPredictions, *, resamples: int, seed: int) -> DifferenceResult:
    """Score of a minus score of b over the tasks that both have: an ablation, or distilled minus merely copied.

    p_value: twice the smaller share of resamples on either side of zero. Raises ValueError as `retention` does.
    """
    drawn = _draw([a, b], resamples, seed)

    def judged(tasks: tuple[str, ...]) -> Difference:
        points, samples = _means(drawn, tasks)
        deltas = samples[0] - samples[1]
        interval = Interval(points[0] - points[1], *_limits(deltas))
        fewer = min(int((deltas >= 0).sum()), int((deltas <= 0).sum()))
        p_value = min(1.0, 2 * (1 + fewer) / (1 + resamples))
        seeds, note = _seeds([a, b], tasks)
        return Difference(tasks, points[0], points[1], interval, p_value, seeds, note)

    return DifferenceResult(*_everywhere(judged, tuple(drawn)))


def ratio_interval(
    teacher_seconds: Sequence[float], student_seconds: Sequence[float], *, resamples: int, seed: int
) -> Interval:
    """Speed-up: teacher time / student time from interleaved passes, the i-th of both being partners.

    The value is the ratio of the medians; the interval resamples pairs. One pair gives no interval. Raises ValueError
    for no passes, unequal numbers of them, and times that are not above zero.
    """
    teacher, student = np.asarray(teacher_seconds, float), np.asarray(student_seconds, float)
    if teacher.shape != student.shape or teacher.ndim != 1 or not teacher.size:
        raise ValueError(f"{teacher.size} and {student.size} passes; expected as many of the teacher as of the student")
    if not (np.isfinite(teacher).all() and np.isfinite(student).all() and min(teacher.min(), student.min()) > 0):
        raise ValueError("a pass did not take a finite time above zero")
    value = float(np.median(teacher) / np.median(student))
    if teacher.size == 1:
        return Interval(value, reason="no interval: a single pair of passes")
    drawn = np.random.default_rng(seed).integers(0, teacher.size, size=(resamples, teacher.size))
    return Interval(value, *_limits(np.median(teacher[drawn], axis=1) / np.median(student[drawn], axis=1)))


def _draw(models: Sequence[ModelPredictions], resamples: int, seed: int) -> dict[str, tuple[list[float], list]]:
    """Task -> (each model's mean score over its seeds, each model's resampled scores)."""
    shared = [task for task in TASKS if all(task in model.tasks for model in models)]
    if not shared:
        raise ValueError(f"{', '.join(model.name for model in models)} have no task in common")
    drawn = {}
    for task in shared:
        given = [model.tasks[task] for model in models]
        points = [statistics.fmean(seed_scores(task, one)) for one in given]
        drawn[task] = (points, resampled_scores(task, given, resamples, seed))
    return drawn


def _means(drawn: Mapping[str, tuple[list[float], list]], tasks: Sequence[str]) -> tuple[list[float], list]:
    """Points and resamples of each model, averaged over tasks."""
    points = [statistics.fmean(values) for values in zip(*(drawn[task][0] for task in tasks), strict=True)]
    samples = [sum(values) / len(tasks) for values in zip(*(drawn[task][1] for task in tasks), strict=True)]
    return points, samples


def _everywhere(judged, shared: tuple[str, ...]) -> tuple[dict, object, object]:
    """`judged` for each task, for the macro without WNLI and, where WNLI is there, for the macro with it."""
    tasks = {task: judged((task,)) for task in shared}
    eight, nine = (macro_tasks(shared, with_wnli=with_wnli) for with_wnli in (False, True))
    return (
        tasks,
        judged(eight) if eight else None,
        judged(nine) if "wnli" in nine else None,
    )


def _seeds(models: Sequence[ModelPredictions], tasks: Sequence[str]) -> tuple[int, str]:
    """Seeds of the second model (the fewest over tasks), and a note where a single seed hides the seeds' variance."""
    fewest = [min(model.tasks[task].n_seeds for task in tasks) for model in models]
    single = [model.name for model, seeds in zip(models, fewest, strict=True) if seeds == 1]
    if not single:
        return fewest[1], ""
    return fewest[1], f"one seed of {' and '.join(single)}: the interval leaves out the variance between seeds"


def _ratio(top: float, bottom: float, tops: np.ndarray, bottoms: np.ndarray, what: str) -> Interval:
    """top / bottom with its interval; undefined where the bottom is not above zero.

    Resamples whose bottom is not above zero count to both tails; where they fill one, there is no interval.
    """
    if bottom <= 0:
        return Interval(None, reason=f"undefined: {what}")
    below = bottoms <= 0
    if below.mean() >= TAIL:
        return Interval(top / bottom, reason=f"no interval: {what}, not surely above zero")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = tops / bottoms
    return Interval(top / bottom, *_limits(ratios, below))


def _limits(values: np.ndarray, unbounded: np.ndarray | None = None) -> tuple[float, float]:
    """The 95 % percentile interval; values flagged unbounded count as lying beyond either end."""
    lows = highs = values
    if unbounded is not None:
        lows, highs = np.where(unbounded, -np.inf, values), np.where(unbounded, np.inf, values)
    return (
        float(np.quantile(lows, TAIL, method="lower")),
        float(np.quantile(highs, 1 - TAIL, method="higher")),
    )
