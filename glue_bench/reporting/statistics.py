"""What a student keeps of its teacher, with honest uncertainty: retention, gain retained, differences, speed-up.

Everything comes from kept predictions per example. Intervals are 95 % percentile intervals of a bootstrap that draws
the examples of a task once for all models and seeds (they are paired) and the seeds of each model apart, tasks
independently of each other, widened for few seeds (`_widening`); p-values are shares of the same widened resamples.
Points are means over seeds; medians stand in the score table.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from glue_bench.learning.metrics import headline, score
from glue_bench.records import Interval
from glue_bench.reporting.resampling import TaskPredictions, resampled_scores
from glue_bench.tasks import GLUE_NINE, TASKS

TAIL = 0.025  # outside a 95 % interval, on each side
MACRO_ROWS = ("macro_without_wnli", "macro")  # of the tables, after the tasks
TIE = 1e-9  # scores closer than this are equal: means over seeds round differently


@dataclass(frozen=True)
class ModelPredictions:
    """A model's kept predictions: task -> labels and predictions on the split that gives the headline."""

    name: str
    tasks: Mapping[str, TaskPredictions]


@dataclass(frozen=True)
class Retention:
    """What the student keeps on one task, or on the macro over `tasks`. Scores are means over seeds.

    p_value: that the student is worse (small: it surely is), one-sided: the share of resamples in which it is not,
    after the widening for few seeds: (1 + their number) / (1 + resamples).
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
        top, bottom, *floors = (_mean([drawn[task][i] for task in tasks]) for i in (1, 0, *range(2, len(models))))
        kept = _ratio(top, bottom, None, f"the teacher's score is {bottom.point:.4f}")
        gain = Interval(None, reason="there is no majority row")
        for floor in floors:
            what = f"the teacher's gain over the majority class is {bottom.point - floor.point:.4f}"
            gain = _ratio(top, bottom, floor, what)
        delta, deltas = _minus(top, bottom)
        p_value = (1 + int((deltas >= -TIE).sum())) / (1 + resamples)
        lowest = floors[0].point if floors else None
        seeds, note = _seeds(models[:2], tasks)
        return Retention(tasks, top.point, bottom.point, lowest, kept, gain, p_value, seeds, note)

    return RetentionResult(*_everywhere(judged, tuple(drawn)))


def difference(a: ModelPredictions, b: ModelPredictions, *, resamples: int, seed: int) -> DifferenceResult:
    """Score of a minus score of b over the tasks that both have: an ablation, or distilled minus merely copied.

    p_value: twice the smaller share of resamples on either side of zero. Raises ValueError as `retention` does.
    """
    drawn = _draw([a, b], resamples, seed)

    def judged(tasks: tuple[str, ...]) -> Difference:
        first, second = (_mean([drawn[task][i] for task in tasks]) for i in (0, 1))
        delta, deltas = _minus(first, second)
        fewer = min(int((deltas >= -TIE).sum()), int((deltas <= TIE).sum()))
        p_value = min(1.0, 2 * (1 + fewer) / (1 + resamples))
        seeds, note = _seeds([a, b], tasks)
        interval = Interval(delta, *_limits(deltas))
        return Difference(tasks, first.point, second.point, interval, p_value, seeds, note)

    return DifferenceResult(*_everywhere(judged, tuple(drawn)))


def retention_change(
    before: tuple[ModelPredictions, ModelPredictions],
    after: tuple[ModelPredictions, ModelPredictions],
    *,
    resamples: int,
    seed: int,
) -> Interval:
    """Retention of the macro without WNLI in a second run less that in a first, each a (teacher, student).

    Examples are drawn once for all four. Over the tasks that all have; undefined, with the reason, where a teacher's
    score is not surely above zero. Raises ValueError as `retention` does.
    """
    drawn = _draw([*before, *after], resamples, seed)
    tasks = macro_tasks(tuple(drawn), with_wnli=False)
    if not tasks:
        return Interval(None, reason="no task besides WNLI was scored in both runs")
    macros = [_mean([drawn[task][i] for task in tasks]) for i in range(4)]
    value, changes, linear, seeds = 0.0, np.zeros(resamples), np.zeros(resamples), []
    for sign, bottom, top in ((-1, *macros[:2]), (1, *macros[2:])):
        if min(bottom.point, bottom.samples.min()) <= TIE:
            return Interval(None, reason=f"the teacher's score is {bottom.point:.4f}, not surely above zero")
        value += sign * top.point / bottom.point
        changes += sign * top.samples / bottom.samples
        line, of_seeds = _first_order(top, bottom)
        linear += sign * line
        seeds += of_seeds
    return Interval(value, *_limits(value + _widening(linear, seeds) * (changes - value)))


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


@dataclass(frozen=True)
class _Drawn:
    """A model's score on a task or a macro: the point, its resamples, and the seeds' part of its variance.

    seed_variances: for each task the variance of the mean over seeds and its degrees of freedom, n - 1.
    """

    point: float
    samples: np.ndarray
    seed_variances: tuple[tuple[float, int], ...]


def _draw(models: Sequence[ModelPredictions], resamples: int, seed: int) -> dict[str, list[_Drawn]]:
    """Task -> each model's score on it."""
    shared = [task for task in TASKS if all(task in model.tasks for model in models)]
    if not shared:
        raise ValueError(f"{', '.join(model.name for model in models)} have no task in common")
    drawn = {}
    for task in shared:
        given = [model.tasks[task] for model in models]
        drawn[task] = []
        for one, samples in zip(given, resampled_scores(task, given, resamples, seed), strict=True):
            scores = seed_scores(task, one)
            several = len(scores) > 1
            spread = ((statistics.variance(scores) / len(scores), len(scores) - 1),) if several else ()
            drawn[task].append(_Drawn(statistics.fmean(scores), samples, spread))
    return drawn


def _mean(parts: Sequence[_Drawn]) -> _Drawn:
    """A model's plain mean over tasks."""
    n = len(parts)
    spread = tuple((variance / n**2, freedom) for part in parts for variance, freedom in part.seed_variances)
    return _Drawn(statistics.fmean(part.point for part in parts), sum(part.samples for part in parts) / n, spread)


def _minus(first: _Drawn, second: _Drawn) -> tuple[float, np.ndarray]:
    """first - second and its resamples, widened."""
    delta, deltas = first.point - second.point, first.samples - second.samples
    widening = _widening(deltas, [*first.seed_variances, *second.seed_variances])
    return delta, delta + widening * (deltas - delta)


def _widening(samples: np.ndarray, seed_variances: Sequence[tuple[float, int]]) -> float:
    """How much wider than the bootstrap's an interval must be, because few seeds tell little of their variance.

    The quantile of Student's t over the normal one, with the degrees of freedom of the whole variance after Welch and
    Satterthwaite: the examples' part counts as known. 1.0 for many seeds or where they hardly vary; with two seeds
    that vary much up to 6.5.
    """
    uncertain = sum(variance**2 / freedom for variance, freedom in seed_variances)
    if uncertain == 0:
        return 1.0
    known = sum(variance for variance, _ in seed_variances)
    total = max(float(np.var(samples)), known)
    return float(student_t.ppf(1 - TAIL, total**2 / uncertain) / norm.ppf(1 - TAIL))


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
    fewest = min(models[1].tasks[task].n_seeds for task in tasks)
    trained = [model for model in models if model.name != "majority"]
    single = [task for task in tasks if any(model.tasks[task].n_seeds == 1 for model in trained)]
    if not single:
        return fewest, ""
    where = "" if len(single) == len(tasks) else f" on {', '.join(TASKS[task].title for task in single)}"
    return fewest, f"one seed{where}: the interval leaves out the variance between seeds{' there' if where else ''}"


def _ratio(top: _Drawn, bottom: _Drawn, floor: _Drawn | None, what: str) -> Interval:
    """(top - floor) / (bottom - floor) with its interval; undefined where the bottom is not above zero.

    Resamples whose bottom is not above zero count to both tails; where they fill one, there is no interval.
    """
    top, bottom = _above(top, floor), _above(bottom, floor)
    if bottom.point <= TIE:
        return Interval(None, reason=f"undefined: {what}")
    value = top.point / bottom.point
    below = bottom.samples <= TIE
    if below.mean() >= TAIL:
        return Interval(value, reason=f"no interval: {what}, not surely above zero")
    widening = _widening(*_first_order(top, bottom))
    with np.errstate(divide="ignore", invalid="ignore"):
        return Interval(value, *_limits(value + widening * (top.samples / bottom.samples - value), below))


def _above(one: _Drawn, floor: _Drawn | None) -> _Drawn:
    """What of a score is above the floor; the seeds' part of its variance is its own."""
    return replace(one, point=one.point - floor.point, samples=one.samples - floor.samples) if floor else one


def _first_order(top: _Drawn, bottom: _Drawn) -> tuple[np.ndarray, list[tuple[float, int]]]:
    """Resamples of what top / bottom moves by in first order, and the seeds' variances of it, for `_widening`.

    The ratio moves by (d top - ratio * d bottom) / bottom: that line gives the part that few seeds leave uncertain.
    """
    ratio, gap = top.point / bottom.point, bottom.point
    seeds = [(variance / gap**2, freedom) for variance, freedom in top.seed_variances]
    seeds += [(variance * (ratio / gap) ** 2, freedom) for variance, freedom in bottom.seed_variances]
    return (top.samples - ratio * bottom.samples) / gap, seeds


def _limits(values: np.ndarray, unbounded: np.ndarray | None = None) -> tuple[float, float]:
    """The 95 % percentile interval; values flagged unbounded count as lying beyond either end."""
    lows = highs = values
    if unbounded is not None:
        lows, highs = np.where(unbounded, -np.inf, values), np.where(unbounded, np.inf, values)
    return (
        float(np.quantile(lows, TAIL, method="lower")),
        float(np.quantile(highs, 1 - TAIL, method="higher")),
    )
