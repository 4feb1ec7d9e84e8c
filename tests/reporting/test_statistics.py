"""Statistics against hand computation, scikit-learn on explicitly resampled rows, brute force and simulated truth."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student_t

from glue_bench.learning.metrics import headline, score
from glue_bench.reporting import resampling
from glue_bench.reporting.resampling import TaskPredictions, draw_counts, resampled_scores, run_scores, seed_weights
from glue_bench.reporting.statistics import (
    ModelPredictions,
    _widening,
    difference,
    macro_tasks,
    ratio_interval,
    retention,
    retention_change,
)
from glue_bench.tasks import GLUE_NINE, TASKS, WITHOUT_WNLI

SETTINGS = {"resamples": 400, "seed": 3}


def simulated(
    task: str, skill: float, seeds: int, n: int, *, run: int = 0, seed_effect: float = 0.1
) -> TaskPredictions:
    """Labels and runs that share the examples' difficulty; a greater skill is right more often."""
    shared = np.random.default_rng([5, n])
    rng = np.random.default_rng([run, n, int(1000 * skill)])
    difficulty = shared.normal(size=n)
    margins = [skill + difficulty + seed_effect * rng.normal() + 0.7 * rng.normal(size=n) for _ in range(seeds)]
    if TASKS[task].is_regression:
        labels = np.round(shared.uniform(0, 5, n), 1)
        return TaskPredictions(labels, np.stack([labels + 1.5 * margin / (1 + skill) for margin in margins]))
    classes = len(TASKS[task].classes)
    labels = shared.integers(0, classes, n)
    wrong = (labels + shared.integers(1, classes, n)) % classes
    return TaskPredictions(labels, np.stack([np.where(margin > 0, labels, wrong) for margin in margins]))


def model(
    name: str, skill: float, *, seeds: int = 3, n: int = 120, tasks: tuple[str, ...] = GLUE_NINE
) -> ModelPredictions:
    return ModelPredictions(name, {task: simulated(task, skill, seeds, n, run=len(name)) for task in tasks})


def constant(tasks: tuple[str, ...] = GLUE_NINE, n: int = 120) -> ModelPredictions:
    labels = {task: simulated(task, 0, 1, n).labels for task in tasks}
    return ModelPredictions("majority", {task: TaskPredictions(one, np.ones((1, n))) for task, one in labels.items()})


def with_accuracy(task: str, right: list[int], n: int = 100) -> TaskPredictions:
    """A two-class task with the given number of right answers in each run."""
    labels = np.arange(n) % 2
    return TaskPredictions(labels, np.stack([np.where(np.arange(n) < k, labels, 1 - labels) for k in right]))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [40, 3000])  # drawn one by one, and as counts of patterns
def test_scores_of_resamples_are_those_of_explicitly_resampled_rows(task: str, n: int) -> None:
    row = TASKS[task]
    given = simulated(task, 1.0, 3, n)
    runs = given.predictions.astype(float)
    runs[1] = 1  # constant
    if row.is_regression:
        runs[2] = np.round(runs[2])  # with ties
        first, counts = np.arange(n), np.ones(n, dtype=int)
    else:
        _, first, counts = resampling._patterns(row, given.labels, runs)
    drawn = draw_counts(counts, 12, np.random.default_rng(1))
    scores = run_scores(row, given.labels, runs, 12, np.random.default_rng(1))
    for resample in range(12):
        rows = np.repeat(first, drawn[resample])
        assert len(rows) == n
        for run in range(3):
            expected = headline(task, score(task, runs[run, rows], given.labels[rows]))
            assert scores[resample, run] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb", "ax"])
def test_a_resample_of_one_value_is_zero_not_nan(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = simulated(task, 1.0, 2, 50)
    everything_in_the_first = lambda counts, resamples, rng: np.eye(len(counts), dtype=int)[[0] * resamples] * 50  # noqa: E731
    monkeypatch.setattr(resampling, "draw_counts", everything_in_the_first)
    scores = run_scores(TASKS[task], given.labels, given.predictions, 2, np.random.default_rng(0))
    assert np.isfinite(scores).all()
    if task != "mrpc":
        assert (scores == 0).all()


@pytest.mark.parametrize("counts", [[40, 30, 20, 10], [2, 1, 3, 1, 1]])
def test_counts_are_drawn_in_proportion(counts: list[int]) -> None:
    given, total = np.array(counts), sum(counts)
    drawn = draw_counts(given, 20_000, np.random.default_rng(0))
    assert (drawn.sum(axis=1) == total).all()
    np.testing.assert_allclose(drawn.mean(axis=0), given, rtol=0.03)
    np.testing.assert_allclose(drawn.var(axis=0), given * (1 - given / total), rtol=0.08)


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_resampled_seeds_have_the_variance_of_a_mean(n_seeds: int) -> None:
    scores = np.random.default_rng(n_seeds).normal(size=n_seeds)
    means = seed_weights(n_seeds, 40_000, np.random.default_rng(0)) @ scores
    assert means.var() == pytest.approx(scores.var(ddof=1) / n_seeds, rel=0.05)
    assert means.mean() == pytest.approx(scores.mean(), abs=0.02)


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_the_whole_agrees_with_brute_force(task: str) -> None:
    """The mean and deviation of resampled means, against rows and seeds drawn in a plain loop."""
    teacher, student = simulated(task, 1.2, 3, 150), simulated(task, 0.8, 2, 150, run=1)
    ours = resampled_scores(task, [teacher, student], 4000, 0)
    rng, plain = np.random.default_rng(11), []
    for _ in range(250):
        rows = rng.integers(0, 150, 150)
        pair = []
        for one in (teacher, student):
            seeds = rng.integers(0, one.n_seeds, one.n_seeds - 1)
            labels = one.labels[rows]
            pair.append(np.mean([headline(task, score(task, one.predictions[s][rows], labels)) for s in seeds]))
        plain.append(pair)
    theirs = np.array(plain).T
    for our, their in zip(ours, theirs, strict=True):
        assert our.mean() == pytest.approx(their.mean(), abs=4 * their.std() / math.sqrt(250))
        assert our.std() == pytest.approx(their.std(), rel=0.15)
    assert np.corrcoef(ours)[0, 1] == pytest.approx(np.corrcoef(theirs)[0, 1], abs=0.15)


def test_retention_by_hand() -> None:
    teacher = ModelPredictions("t", {"sst2": with_accuracy("sst2", [80, 84]), "rte": with_accuracy("rte", [60, 64])})
    student = ModelPredictions("s", {"sst2": with_accuracy("sst2", [70, 74]), "rte": with_accuracy("rte", [56])})
    majority = ModelPredictions("m", {task: with_accuracy(task, [50]) for task in ("sst2", "rte")})
    found = retention(teacher, student, majority, **SETTINGS)
    assert found.tasks["sst2"].score == pytest.approx(0.72)
    assert found.tasks["sst2"].teacher_score == pytest.approx(0.82)
    assert found.tasks["sst2"].retention.value == pytest.approx(0.72 / 0.82)
    assert found.tasks["sst2"].gain_retained.value == pytest.approx(0.22 / 0.32)
    assert found.retention.value == pytest.approx((0.72 + 0.56) / (0.82 + 0.62))
    assert found.gain_retained.value == pytest.approx((0.22 + 0.06) / (0.32 + 0.12))
    assert found.macro.tasks == ("sst2", "rte")
    assert (found.tasks["sst2"].n_seeds, found.tasks["sst2"].note) == (2, "")
    assert found.tasks["rte"].n_seeds == 1
    assert found.tasks["rte"].note == "one seed: the interval leaves out the variance between seeds"
    assert found.macro.note == "one seed on RTE: the interval leaves out the variance between seeds there"
    untrained = retention(teacher, replace(majority, name="majority"), majority, **SETTINGS)
    assert untrained.macro.note == "", "the majority class has no seeds"
    assert found.retention.low < found.retention.value < found.retention.high


def test_macros_leave_out_wnli_and_the_diagnostic_set() -> None:
    tasks = (*GLUE_NINE, "ax")
    found = retention(model("t", 1.5, tasks=tasks), model("st", 1.0, tasks=tasks), None, **SETTINGS)
    assert found.macro.tasks == WITHOUT_WNLI
    assert found.macro_9.tasks == GLUE_NINE
    assert set(found.tasks) == set(tasks)
    means = [np.mean([one.tasks[task].score for task in WITHOUT_WNLI]) for one in (found,)]
    assert found.macro.score == pytest.approx(means[0])
    assert found.gain_retained.value is None
    assert found.gain_retained.reason == "there is no majority row"
    assert found.retention_9.value != found.retention.value
    assert macro_tasks(("wnli", "rte", "ax"), with_wnli=False) == ("rte",)


def test_macro_over_what_both_have() -> None:
    found = retention(model("t", 1.5), model("s", 1.0, tasks=("rte", "wnli")), None, **SETTINGS)
    assert found.macro.tasks == ("rte",)
    assert found.macro_9.tasks == ("rte", "wnli")
    only = retention(model("t", 1.5), model("s", 1.0, tasks=("wnli",)), None, **SETTINGS)
    assert only.macro is None
    assert only.p_value is None
    assert "WNLI" in only.retention.reason
    without = retention(model("t", 1.5), model("s", 1.0, tasks=("rte",)), None, **SETTINGS)
    assert without.retention_9.reason == "WNLI was not scored"
    with pytest.raises(ValueError, match="no task in common"):
        retention(model("t", 1.5, tasks=("rte",)), model("s", 1.0, tasks=("wnli",)), None, **SETTINGS)


def test_a_model_keeps_all_of_itself() -> None:
    one = model("t", 1.0, seeds=1)
    found = retention(one, one, constant(), **SETTINGS)
    for part in (*found.tasks.values(), found.macro, found.macro_9):
        assert (part.retention.value, part.retention.low, part.retention.high) == (1.0, 1.0, 1.0)
        assert part.p_value == 1.0


def test_undefined_where_the_teacher_has_no_score() -> None:
    teacher = ModelPredictions("t", {"cola": constant(("cola",)).tasks["cola"]})
    found = retention(teacher, model("s", 1.0, tasks=("cola",)), None, **SETTINGS).tasks["cola"]
    assert found.retention.value is None
    assert found.retention.low is None
    assert found.retention.reason == "undefined: the teacher's score is 0.0000"


def test_gain_is_undefined_at_the_floor_and_unbounded_near_it() -> None:
    majority = ModelPredictions("m", {"rte": with_accuracy("rte", [50])})
    student = ModelPredictions("s", {"rte": with_accuracy("rte", [55])})
    at_floor = retention(ModelPredictions("t", {"rte": with_accuracy("rte", [50])}), student, majority, **SETTINGS)
    assert at_floor.tasks["rte"].gain_retained.value is None
    assert "gain over the majority class is 0.0000" in at_floor.tasks["rte"].gain_retained.reason
    # Three seeds whose mean is the floor but rounds to just above it: no gain, rather than a huge one.
    sst2 = {name: with_accuracy("sst2", right, 872) for name, right in (("t", [436, 439, 436]), ("m", [437]))}
    rounded = [ModelPredictions(name, {"sst2": one}) for name, one in sst2.items()]
    found = retention(rounded[0], rounded[0], rounded[1], **SETTINGS).tasks["sst2"]
    assert found.teacher_score > found.majority_score
    assert found.gain_retained.value is None
    # Two examples above the floor: 14 % of the resamples see none of them.
    near = retention(ModelPredictions("t", {"rte": with_accuracy("rte", [52])}), student, majority, **SETTINGS)
    gain = near.tasks["rte"].gain_retained
    assert gain.value == pytest.approx(2.5)
    assert (gain.low, gain.high) == (None, None)
    assert "not surely above zero" in gain.reason


def test_same_seed_same_result_whatever_else_was_scored() -> None:
    teacher, student = model("t", 1.5), model("st", 1.0)
    found = retention(teacher, student, constant(), **SETTINGS)
    assert found == retention(teacher, student, constant(), **SETTINGS)
    alone = retention(
        ModelPredictions("t", {"rte": teacher.tasks["rte"]}),
        ModelPredictions("s", student.tasks),
        constant(),
        **SETTINGS,
    )
    assert alone.tasks["rte"].retention == found.tasks["rte"].retention
    other = retention(teacher, student, constant(), resamples=400, seed=4)
    assert other.retention.value == found.retention.value
    assert other.retention.low != found.retention.low


def test_p_value_says_whether_the_student_is_worse() -> None:
    worse = retention(model("t", 1.5), model("st", 0.5), None, **SETTINGS)
    better = retention(model("t", 0.5), model("st", 1.5), None, **SETTINGS)
    assert worse.p_value == pytest.approx(1 / 401)
    assert better.p_value == 1.0
    assert worse.retention.high < 1 < better.retention.low


def test_different_examples_are_refused() -> None:
    teacher, student = simulated("rte", 1.0, 2, 50), simulated("rte", 1.0, 2, 51)
    with pytest.raises(ValueError, match="rte: the models were scored on different examples"):
        resampled_scores("rte", [teacher, student], 10, 0)
    with pytest.raises(ValueError, match="rte: 49 predictions for 50 labels"):
        resampled_scores("rte", [teacher, TaskPredictions(teacher.labels, teacher.predictions[:, 1:])], 10, 0)
    with pytest.raises(ValueError, match="is nan"):
        resampled_scores("stsb", [TaskPredictions(np.ones(2), np.array([[1.0, math.nan]]))], 10, 0)


def test_difference() -> None:
    a, b = model("a", 1.3), model("bb", 0.9)
    forth, back = difference(a, b, **SETTINGS), difference(b, a, **SETTINGS)
    assert forth.macro.difference.value == pytest.approx(forth.macro.score_a - forth.macro.score_b)
    assert forth.macro.difference.value == pytest.approx(-back.macro.difference.value)
    assert forth.macro.difference.low > 0
    assert forth.macro.p_value == pytest.approx(2 / 401)
    assert forth.macro.tasks == WITHOUT_WNLI
    same = difference(a, a, **SETTINGS).tasks["cola"]
    assert same.difference.value == 0
    assert same.difference.low < 0 < same.difference.high  # its seeds are drawn apart
    assert same.p_value > 0.2


def test_few_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    seeds_alone = rng.normal(size=20_000)
    assert _widening(seeds_alone, []) == 1.0
    assert _widening(seeds_alone, [(0.0, 2)]) == 1.0
    expected = student_t.ppf(0.975, 2) / norm.ppf(0.975)
    assert _widening(seeds_alone, [(1.0, 2)]) == pytest.approx(expected, rel=0.05)
    # Where the examples make nearly all of the variance, few seeds matter little.
    assert 1.0 < _widening(10 * seeds_alone, [(1.0, 2)]) < 1.001
    # Two models with the same part each: twice the degrees of freedom.
    both = student_t.ppf(0.975, 4) / norm.ppf(0.975)
    assert _widening(math.sqrt(2) * seeds_alone, [(1.0, 2), (1.0, 2)]) == pytest.approx(both, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("n_seeds", "seed_effect"), [(3, 0.0), (3, 0.3), (5, 0.1)])
def test_intervals_cover_the_truth(n_seeds: int, seed_effect: float) -> None:
    """RTE's size, accuracy: with normal margins the expected accuracy is known in closed form."""
    rng, n, experiments, covered = np.random.default_rng(8), 277, 120, 0
    estimates, widths = [], []
    spread = math.sqrt(1 + 0.25 + 0.49 + seed_effect**2)
    truth = norm.cdf(0.7 / spread) / norm.cdf(1.0 / spread)
    labels = np.zeros(n, dtype=int)
    for experiment in range(experiments):
        difficulty, pair = rng.normal(size=n), []
        for skill in (1.0, 0.7):
            own = 0.5 * rng.normal(size=n)
            noise = seed_effect * rng.normal(size=(n_seeds, 1)) + 0.7 * rng.normal(size=(n_seeds, n))
            runs = (skill + difficulty + own + noise <= 0).astype(int)
            pair.append(ModelPredictions("model", {"rte": TaskPredictions(labels, runs)}))
        interval = retention(*pair, None, resamples=400, seed=experiment).retention
        covered += interval.low <= truth <= interval.high
        estimates.append(interval.value)
        widths.append(interval.high - interval.low)
    assert 0.90 <= covered / experiments <= 1.0
    # not by being too wide: 1.96 deviations to each side, and with few seeds Student's quantile in place of 1.96
    assert 0.85 < np.mean(widths) / (2 * 1.96 * np.std(estimates)) < 1.15 * student_t.ppf(0.975, n_seeds - 1) / 1.96


def test_speed_up_from_paired_passes() -> None:
    exact = ratio_interval([3.26, 1.63, 3.26], [2.0, 1.0, 2.0], **SETTINGS)
    assert (exact.value, exact.low, exact.high) == (1.63, 1.63, 1.63)
    rng = np.random.default_rng(0)
    noise = np.exp(0.02 * rng.normal(size=(2, 20)))
    noisy = ratio_interval(1.63 * noise[0], noise[1], **SETTINGS)
    assert noisy.low < 1.63 < noisy.high
    assert noisy.high - noisy.low < 0.1
    stalled = ratio_interval(np.append(1.63 * noise[0], 60.0), np.append(noise[1], 1.0), **SETTINGS)
    assert stalled.value == pytest.approx(1.63, rel=0.02)
    single = ratio_interval([2.0], [1.0], **SETTINGS)
    assert (single.value, single.low, single.high) == (2.0, None, None)
    assert "single pair" in single.reason


@pytest.mark.parametrize(("teacher", "student"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([math.nan], [1.0])])
def test_speed_up_refuses_wrong_times(teacher: list[float], student: list[float]) -> None:
    with pytest.raises(ValueError, match="pass"):
        ratio_interval(teacher, student, **SETTINGS)


def test_many_examples_take_another_path_to_the_same_correlations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond MANY_EXAMPLES resamples are ranked one by one; ties, a constant run and repeated rows included."""
    one = simulated("stsb", 0.6, 2, 300)
    runs = np.stack([np.round(one.predictions[0], 1), one.predictions[1], np.full(300, 2.5)])

    def scores() -> np.ndarray:
        return run_scores(TASKS["stsb"], one.labels, runs, 20, np.random.default_rng(0))

    grouped = scores()
    monkeypatch.setattr(resampling, "MANY_EXAMPLES", 10)
    assert np.abs(scores() - grouped).max() < 1e-12
    assert grouped[:, 0].std() > 0.01 and not grouped[:, 2].any()


def test_the_change_of_a_retention_is_paired_by_example() -> None:
    tasks = ("rte", "sst2", "wnli")
    teacher, worse, better = (
        model(name, skill, seeds=1, tasks=tasks) for name, skill in (("t", 1.4), ("one", 0.5), ("other", 1.2))
    )
    kept = [retention(teacher, one, None, **SETTINGS).retention for one in (worse, better)]
    change = retention_change((teacher, worse), (teacher, better), **SETTINGS)
    assert change.value == pytest.approx(kept[1].value - kept[0].value)
    assert 0 < change.low < change.value < change.high
    assert change.high - change.low < sum(one.high - one.low for one in kept)
    back = retention_change((teacher, better), (teacher, worse), **SETTINGS)
    assert back.value == pytest.approx(-change.value)
    assert (back.low, back.high) == pytest.approx((-change.high, -change.low), abs=0.02), "other draws of the same kind"
    none = retention_change((teacher, worse), (teacher, worse), **SETTINGS)
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_change_of_a_retention_is_resampled_as_by_hand() -> None:
    """With one seed on one task it is the accuracies' ratios on the same drawn examples."""
    first, second, third, fourth = (
        ModelPredictions(str(right), {"rte": with_accuracy("rte", [right])}) for right in (80, 60, 90, 81)
    )
    change = retention_change((first, second), (third, fourth), **SETTINGS)
    given = [one.tasks["rte"] for one in (first, second, third, fourth)]
    a, b, c, d = resampled_scores("rte", given, SETTINGS["resamples"], SETTINGS["seed"])
    assert change.value == pytest.approx(81 / 90 - 60 / 80)
    expected = [np.quantile(d / c - b / a, q, method=how) for q, how in ((0.025, "lower"), (0.975, "higher"))]
    assert (change.low, change.high) == pytest.approx(tuple(expected))


def test_a_retention_of_nothing_has_no_change() -> None:
    nothing, something = (ModelPredictions(str(k), {"rte": with_accuracy("rte", [k])}) for k in (0, 50))
    found = retention_change((nothing, something), (something, something), **SETTINGS)
    assert found.value is None and "not surely above zero" in found.reason
    wnli = ModelPredictions("w", {"wnli": with_accuracy("wnli", [50])})
    assert retention_change((wnli, wnli), (wnli, wnli), **SETTINGS).reason


def test_more_seeds_make_the_change_surer() -> None:
    widths = []
    for seeds in (2, 8):
        teacher, one, other = (model("same", skill, seeds=seeds, tasks=("rte",)) for skill in (1.4, 1.0, 1.2))
        change = retention_change((teacher, one), (teacher, other), **SETTINGS)
        widths.append(change.high - change.low)
    assert widths[1] < widths[0]
