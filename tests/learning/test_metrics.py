"""Metrics: hand-computed cases, scikit-learn and scipy per task, degenerate sets, wrong input, and evaluate's form."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from glue_bench.learning.glue_metric import GlueMetric
from glue_bench.learning.metrics import headline, score, score_with_warnings
from glue_bench.tasks import TASKS

# Ten examples with TP = 4, TN = 3, FP = 1, FN = 2.
TRUE = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
GUESS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 1]

REFERENCES = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda true, guess: pearsonr(true, guess)[0],
    "spearman": lambda true, guess: spearmanr(true, guess)[0],
}


def random_case(task: str, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    if TASKS[task].is_regression:
        true = np.round(rng.uniform(0, 5, n), 1)
        return np.round(true + rng.normal(size=n), 1), true
    classes = len(TASKS[task].classes)
    true = rng.integers(0, classes, n)
    return np.where(rng.random(n) < 0.7, true, rng.integers(0, classes, n)), true


@pytest.mark.parametrize("task", TASKS)
def test_agrees_with_scikit_learn_and_scipy(task: str) -> None:
    guess, true = random_case(task)
    metrics = score(task, guess, true)
    assert tuple(metrics) == TASKS[task].metrics
    for name, value in metrics.items():
        assert value == pytest.approx(REFERENCES[name](true, guess), abs=1e-12)
        assert type(value) is float
    assert headline(task, metrics) == pytest.approx(sum(metrics.values()) / len(metrics))


def test_by_hand() -> None:
    assert score("sst2", GUESS, TRUE) == {"accuracy": 0.7}
    assert score("mrpc", GUESS, TRUE) == {"accuracy": 0.7, "f1": pytest.approx(8 / 11)}
    assert score("qqp", GUESS, TRUE)["f1"] == pytest.approx(8 / 11)
    assert score("cola", GUESS, TRUE)["matthews_correlation"] == pytest.approx(
        (4 * 3 - 1 * 2) / math.sqrt(5 * 6 * 4 * 5)
    )
    assert headline("mrpc", {"accuracy": 0.7, "f1": 0.9}) == pytest.approx(0.8)
    assert headline("stsb", {"pearson": 0.5, "spearman": 0.7}) == pytest.approx(0.6)


def test_f1_is_that_of_class_one() -> None:
    swapped = score("mrpc", [1 - value for value in GUESS], [1 - value for value in TRUE])
    assert swapped["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))


def test_spearman_takes_mid_ranks() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert score("stsb", [1, 2, 2, 3], [0, 1, 2, 3])["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_three_class_matthews_correlation_by_hand() -> None:
    true, guess = [0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 1]
    # Gorodkin: (right * n - sum of p_k t_k) / sqrt((n^2 - sum p_k^2) (n^2 - sum t_k^2)).
    assert score("ax", guess, true)["matthews_correlation"] == pytest.approx((4 * 6 - 12) / (36 - 12))


@pytest.mark.parametrize("task", TASKS)
def test_constant_predictions_are_zero_with_a_warning_or_plain(task: str) -> None:
    _, true = random_case(task)
    metrics, notes = score_with_warnings(task, np.ones(len(true)), true)
    assert all(math.isfinite(value) for value in metrics.values())
    undefined = set(metrics) & {"matthews_correlation", "pearson", "spearman"}
    assert all(metrics[name] == 0.0 for name in undefined)
    assert len(notes) == len(undefined)
    assert all("every prediction is 1" in note and note.startswith(task) for note in notes)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_sets_are_defined(task: str, label: int) -> None:
    guess, _ = random_case(task)
    metrics, notes = score_with_warnings(task, guess, np.full(len(guess), label))
    assert all(math.isfinite(value) for value in metrics.values())
    if "accuracy" in metrics:
        assert metrics["accuracy"] == pytest.approx(np.mean(guess == label))
    else:
        assert set(metrics.values()) == {0.0}
        assert all(f"every label is {label}" in note for note in notes)


def test_f1_without_the_class_is_zero_and_said() -> None:
    metrics, notes = score_with_warnings("mrpc", [0, 0], [0, 0])
    assert metrics == {"accuracy": 1.0, "f1": 0.0}
    assert len(notes) == 1
    assert "f1" in notes[0]


def test_ordinary_sets_give_no_warning() -> None:
    for task in TASKS:
        assert score_with_warnings(task, *random_case(task))[1] == ()


@pytest.mark.parametrize(
    ("task", "guess", "true", "message"),
    [
        ("rte", [0, math.nan], [0, 1], r"rte: predictions\[1\] is nan"),
        ("stsb", [1.0, math.nan], [0, 1], r"stsb: predictions\[1\] is nan"),
        ("stsb", [1.0, math.inf], [0, 1], r"predictions\[1\] is inf"),
        ("stsb", [1.0, 2.0], [0, math.nan], r"labels\[1\] is nan"),
        ("rte", [0, 1], [0, -1], r"labels\[1\] is -1; expected a class from 0 to 1"),
        ("stsb", [1.0, 2.0], [0, -1], r"labels\[1\] is -1; expected a number from 0 to 5"),
        ("rte", [0, 2], [0, 1], r"predictions\[1\] is 2; expected a class from 0 to 1"),
        ("mnli", [0, 0.5], [0, 1], r"predictions\[1\] is 0.5"),
        ("rte", [0, 1, 1], [0, 1], "3 predictions for 2 labels"),
        ("rte", [], [], "at least one example"),
        ("rte", [[0.1, 0.9]], [1], "one dimension"),
        ("rte", ["a", "b"], [0, 1], "expected numbers"),
    ],
)
def test_wrong_input_is_an_error(task: str, guess: list, true: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(task, guess, true)


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_metric_gives_the_same(task: str) -> None:
    guess, true = random_case(task)
    metric = GlueMetric(task)
    expected = score(task, guess, true)
    assert metric.compute(predictions=guess, references=true) == expected
    for start in range(0, len(true), 64):
        metric.add_batch(predictions=guess[start : start + 64], references=true[start : start + 64])
    assert metric.compute() == expected


def test_evaluate_metric_refuses_what_score_refuses() -> None:
    with pytest.raises(ValueError, match="is nan"):
        GlueMetric("stsb").compute(predictions=[1.0, math.nan], references=[1.0, 2.0])
    with pytest.raises(ValueError, match="0.7"):
        GlueMetric("rte").compute(predictions=[0.7, 1], references=[1, 0])
    with pytest.raises(ValueError, match="no task 'nope'"):
        GlueMetric("nope")


def test_evaluate_metric_through_files(tmp_path: Path) -> None:
    metric = GlueMetric("rte", cache_dir=str(tmp_path), experiment_id="one")
    assert metric.compute(predictions=[1, 0], references=[1, 1]) == {"accuracy": 0.5}
    assert list(tmp_path.rglob("*.arrow")) == []


@pytest.mark.slow
def test_evaluate_metric_needs_no_network_and_leaves_the_home_folder_alone(tmp_path: Path) -> None:
    program = """
import socket
def refuse(*arguments, **settings):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
from glue_bench.learning.glue_metric import GlueMetric
print(GlueMetric("mrpc").compute(predictions=[1, 0], references=[1, 1]))
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment = kept | {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert "'accuracy': 0.5" in done.stdout, done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
