"""The bootstrap's engine: scores of several models on resamples of one task's examples, without scoring row by row.

A classification metric depends on an example only through its label and what each run predicted, and a dev set holds
few distinct such patterns. A resample is therefore a multinomial draw of counts over the patterns, and the metrics
follow from contingency counts. Regression works on counts per example, with weighted mid-ranks for Spearman.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from glue_bench.learning.metrics import checked_labels, checked_predictions
from glue_bench.tasks import TASKS, Task

CELLS = 1 << 22  # counts held at once: 32 MB of float64
# Examples from which on too few resamples fit into CELLS to make a Python step per distinct value worth while.
MANY_EXAMPLES = 1 << 16
MULTINOMIAL_COST = 7  # the count of one pattern costs as much as drawing this many examples (measured)


@dataclass(frozen=True)
class TaskPredictions:
    """One model on one split: labels (n,), predictions (seeds, n); class integers, or numbers for regression."""

    labels: np.ndarray
    predictions: np.ndarray

    @property
    def n_seeds(self) -> int:
        """Runs of the model."""
        return len(self.predictions)


@dataclass(frozen=True)
class Tally:
    """Contingency counts of resamples: examples n; (B, K) labels per class; (B, R) right; (B, R, K) predicted."""

    examples: int
    labels: np.ndarray
    right: np.ndarray
    predicted: np.ndarray


def resampled_scores(task: str, models: Sequence[TaskPredictions], resamples: int, seed: int) -> list[np.ndarray]:
    """For each model (resamples,): the mean over its resampled seeds of the headline score on the resampled examples.

    Examples are drawn once for all models and seeds (paired); the seeds of each model apart, n - 1 out of n, since n
    out of n would understate the variance of their mean by the factor (n - 1) / n. A single seed stays as it is.
    The draws depend on seed and task alone. Raises ValueError where the models' labels differ or a value is wrong.
    """
    row = TASKS[task]
    labels = checked_labels(row, models[0].labels)
    for other in models[1:]:
        if not np.array_equal(other.labels, models[0].labels):
            raise ValueError(f"{task}: the models were scored on different examples; their labels differ")
    checked = [checked_predictions(row, run) for model in models for run in model.predictions]
    for run in checked:
        if len(run) != len(labels):
            raise ValueError(f"{task}: {len(run)} predictions for {len(labels)} labels")
    runs = np.stack(checked)
    key = [seed, zlib.crc32(task.encode())]
    scores = run_scores(row, labels, runs, resamples, np.random.default_rng(key))
    means, first = [], 0
    for position, model in enumerate(models):
        weights = seed_weights(model.n_seeds, resamples, np.random.default_rng([*key, 1 + position]))
        means.append((weights * scores[:, first : first + model.n_seeds]).sum(axis=1))
        first += model.n_seeds
    return means


def seed_weights(n_seeds: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, n_seeds): the weight of each seed in a resampled mean, n - 1 drawn out of n."""
    if n_seeds == 1:
        return np.ones((resamples, 1))
    return rng.multinomial(n_seeds - 1, np.full(n_seeds, 1 / n_seeds), size=resamples) / (n_seeds - 1)


def run_scores(row: Task, labels: np.ndarray, runs: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, R) headline scores of R runs (R, n) on resamples with replacement of the n examples."""
    if row.is_regression:
        patterns, first, counts = runs.T, np.arange(len(labels)), np.ones(len(labels), dtype=np.int64)
    else:
        patterns, first, counts = _patterns(row, labels, runs)
    parts = []
    chunk = max(1, CELLS // len(counts))
    for start in range(0, resamples, chunk):
        drawn = draw_counts(counts, min(chunk, resamples - start), rng)
        if row.is_regression:
            parts.append(_regression_scores(row, labels, runs, drawn))
        else:
            parts.append(_tally_scores(row, _tally(row, patterns[first].T, drawn, len(labels))))
    return np.concatenate(parts)


def draw_counts(counts: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, P): how often each of P patterns occurs when all examples are drawn anew; counts (P,) is its size.

    Frequent patterns get their counts from a multinomial draw; what falls on the others is drawn example by example.
    """
    total, is_rare = int(counts.sum()), counts < MULTINOMIAL_COST
    frequent, rare = np.flatnonzero(~is_rare), np.flatnonzero(is_rare)
    examples = np.repeat(np.arange(len(rare)), counts[rare])
    shares = np.append(counts[frequent], len(examples)) / total
    parts = rng.multinomial(total, shares, size=resamples)
    drawn = np.empty((resamples, len(counts)), dtype=np.int64)
    drawn[:, frequent] = parts[:, :-1]
    if len(rare):
        hits = examples[rng.integers(0, len(examples), size=int(parts[:, -1].sum()), dtype=np.int32)]
        hits += np.repeat(np.arange(resamples), parts[:, -1]) * len(rare)
        drawn[:, rare] = np.bincount(hits, minlength=resamples * len(rare)).reshape(resamples, len(rare))
    return drawn


def _patterns(row: Task, labels: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, q) of zeros and ones that the metrics need, the first example of each distinct row, and its count.

    Accuracy needs only whether each run is right; other metrics the label, too, and each run's class.
    """
    features = [runs == labels]
    if set(row.headline) != {"accuracy"}:
        classes = np.arange(len(row.classes))
        features = [labels == classes[:, None], *features, (runs[:, None] == classes[:, None]).reshape(-1, len(labels))]
    table = np.concatenate(features).astype(np.uint8)
    packed = np.ascontiguousarray(np.packbits(table, axis=0).T)
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    return table.T, first, counts


def _tally(row: Task, features: np.ndarray, drawn: np.ndarray, examples: int) -> Tally:
    """Contingency counts from features (q, P) and drawn (B, P)."""
    sums = drawn.astype(np.float64) @ features.T.astype(np.float64)
    if set(row.headline) == {"accuracy"}:
        none = np.empty((len(sums), 0))
        return Tally(examples, none, sums, none)
    classes = len(row.classes)
    n_runs = (sums.shape[1] - classes) // (classes + 1)
    labels, right, predicted = np.split(sums, [classes, classes + n_runs], axis=1)
    return Tally(examples, labels, right, predicted.reshape(len(sums), n_runs, classes))


def _tally_scores(row: Task, tally: Tally) -> np.ndarray:
    return sum(TALLIED[name](tally) for name in row.headline) / len(row.headline)


def _accuracy(tally: Tally) -> np.ndarray:
    return tally.right / tally.examples


def _f1(tally: Tally) -> np.ndarray:
    """F1 of class 1 of two. right = TP + TN and TN = n - labels - predicted + TP give the true positives."""
    either = tally.labels[:, None, 1] + tally.predicted[:, :, 1]
    return _divide(tally.right - tally.examples + either, either)


def _matthews_correlation(tally: Tally) -> np.ndarray:
    """The general form for K classes (Gorodkin 2004, equation 8); for two it is the familiar one."""
    labels = tally.labels[:, None, :]
    covariance = tally.right * tally.examples - (labels * tally.predicted).sum(axis=2)
    spread = (tally.examples**2 - (labels**2).sum(axis=2)) * (tally.examples**2 - (tally.predicted**2).sum(axis=2))
    return _divide(covariance, np.sqrt(spread))


TALLIED = {"accuracy": _accuracy, "f1": _f1, "matthews_correlation": _matthews_correlation}


def _regression_scores(row: Task, labels: np.ndarray, runs: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    weights = np.ascontiguousarray(drawn.T, dtype=np.float64)  # (n, B): sums over examples run along memory rows
    total = sum(CORRELATED[name](labels, runs, weights) for name in row.headline)
    return (total / len(row.headline)).T


def _pearson(labels: np.ndarray, runs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, B) weighted Pearson correlations."""
    n = weights.sum(axis=0)
    y, x = labels - labels.mean(), runs - runs.mean(axis=1, keepdims=True)
    mean_y, mean_x = (y @ weights) / n, (x @ weights) / n
    covariance = ((x * y) @ weights) / n - mean_x * mean_y
    spread_y, spread_x = (y**2 @ weights) / n - mean_y**2, (x**2 @ weights) / n - mean_x**2
    # Rounding leaves a constant resample a spread of about 1e-16 of its square: that is none.
    spread_y, spread_x = (np.where(s > 1e-14 * np.max(v**2), s, 0) for s, v in ((spread_y, y), (spread_x, x)))
    return _divide(covariance, np.sqrt(spread_x * spread_y))


def _spearman(labels: np.ndarray, runs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, B) weighted Spearman correlations: Pearson of mid-ranks, as if each example stood there `weight` times.

    A group of equal values with weight g has the mid-rank (weight up to its middle) + 1/2, and the ranks' sum of
    squares is (n^3 - sum g^3) / 12. Constants drop out against centred ranks of the labels. All sums are of halves of
    integers, hence exact. A group is a row of B numbers: the passes below stay in the processor's cache.
    """
    if len(labels) > MANY_EXAMPLES:
        return _spearman_of_many(labels, runs, weights)
    n, half, cubes = weights.sum(axis=0), weights / 2, weights * weights * weights
    untied = n * n * n - cubes.sum(axis=0)
    spread_y, ranks = untied.copy(), np.empty_like(weights)
    for rows, step, middle in _groups(labels, half):
        ranks[rows] = middle - n / 2
        spread_y -= 8 * step * step * step - cubes[rows].sum(axis=0)
    ranks *= weights
    result = np.empty((len(runs), len(n)))
    for i, run in enumerate(runs):
        spread_x, covariance, part = untied.copy(), np.zeros(len(n)), np.empty(len(n))
        for rows, step, middle in _groups(run, half):
            if len(rows) == 1:
                np.multiply(ranks[rows[0]], middle, out=part)
            else:
                np.multiply(ranks[rows].sum(axis=0), middle, out=part)
                spread_x -= 8 * step * step * step - cubes[rows].sum(axis=0)
            covariance += part
        result[i] = _divide(12 * covariance, np.sqrt(spread_x * spread_y))
    return result


def _spearman_of_many(labels: np.ndarray, runs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`_spearman` resample by resample: each takes a few passes over all examples instead of a step per value."""
    result = np.empty((len(runs), weights.shape[1]))
    orders = [_sorted_groups(values) for values in (labels, *runs)]
    for column in range(weights.shape[1]):
        weight = np.ascontiguousarray(weights[:, column])
        n = weight.sum()
        ranks, spread_y = _mid_ranks(*orders[0], weight)
        ranks = (ranks - n / 2) * weight
        for i, order in enumerate(orders[1:]):
            middle, spread_x = _mid_ranks(*order, weight)
            result[i, column] = _divide(12 * (ranks @ middle), np.sqrt(spread_x * spread_y))
    return result


def _sorted_groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows in rising order of their values, and where in that order each group of equal values starts."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return order, np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)


def _mid_ranks(order: np.ndarray, starts: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) weight up to the middle of each row's group, and 12 times the ranks' centred sum of squares."""
    groups = np.add.reduceat(weight[order], starts)
    up_to = np.cumsum(groups)
    ranks = np.empty(len(order))
    ranks[order] = np.repeat(up_to - groups / 2, np.diff(starts, append=len(order)))
    return ranks, up_to[-1] ** 3 - (groups**3).sum()


def _groups(values: np.ndarray, half: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Groups of equal values in rising order: rows, half the group's weight (B,), and the weight up to its middle (B,).

    half (n, B) are halved weights. The last array is overwritten by the next group.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    before = np.zeros(half.shape[1])
    ends = [*(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist(), len(order)]
    for start, end in pairwise([0, *ends]):
        rows = order[start:end]
        step = half[rows[0]] if end - start == 1 else half[rows].sum(axis=0)
        before += step
        yield rows, step, before
        before += step


CORRELATED = {"pearson": _pearson, "spearman": _spearman}


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, and 0 where the bottom is 0: the convention of metrics.py for undefined scores."""
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0)
