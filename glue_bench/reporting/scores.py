"""Scores recomputed from the stored predictions, and what they come to over seeds and tasks.

A record's own scores are never trusted: every table starts from predictions.parquet. The score table shows medians over
seeds, as the paper does; statistics stand on means over seeds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, stdev

import numpy as np

from glue_bench.data.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from glue_bench.errors import UserError
from glue_bench.learning.metrics import headline, score_with_warnings
from glue_bench.records import Score
from glue_bench.reporting.run_folder import Cell, RunFolder
from glue_bench.tasks import TASKS


@dataclass(frozen=True)
class Spread:
    """One score of one model over its seeds, as fractions."""

    by_seed: Mapping[int, float]

    @property
    def n_seeds(self) -> int:
        """How many seeds."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.by_seed.values())

    @property
    def median(self) -> float:
        """Median over seeds; the mean of the middle two where their number is even."""
        return median(self.by_seed.values())

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation (divisor n - 1); None with one seed."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def least(self) -> float:
        """The worst seed's."""
        return min(self.by_seed.values())

    @property
    def greatest(self) -> float:
        """The best seed's."""
        return max(self.by_seed.values())

    @property
    def median_seed(self) -> int:
        """The seed whose score is the median: the lower of the two middle ones, and of equals the smallest seed."""
        ordered = sorted(self.by_seed, key=lambda seed: (self.by_seed[seed], seed))
        return ordered[(len(ordered) - 1) // 2]

    def closest_to_median(self, seeds: Iterable[int]) -> int | None:
        """Of these seeds the median one or the one that scores most like it, the smallest of equals; None of none."""
        median, middle = self.by_seed[self.median_seed], self.median_seed
        order = sorted(seeds, key=lambda seed: (seed != middle, abs(self.by_seed[seed] - median), seed))
        return order[0] if order else None


@dataclass(frozen=True)
class Scores:
    """All scores of a run and the predictions of the headline splits that they come from."""

    scores: tuple[Score, ...]
    predictions: Mapping[Cell, Predictions]  # of the task's first dev split, sorted by idx

    @cached_property
    def headlines(self) -> dict[str, dict[str, Spread]]:
        """Model -> task -> headline score over seeds, of the first dev split."""
        found: dict[str, dict[str, dict[int, float]]] = {}
        for one in self.scores:
            if one.split in TASKS[one.task].dev_splits[:1]:
                by_seed = found.setdefault(one.model, {}).setdefault(one.task, {})
                by_seed[one.seed] = headline(one.task, one.metrics)
        return {model: {task: Spread(by_seed) for task, by_seed in tasks.items()} for model, tasks in found.items()}

    def macro(self, model: str, tasks: Iterable[str], *, means: bool) -> float | None:
        """Plain mean over tasks of a model's medians (or means) over seeds; None where it lacks one of them."""
        known, chosen = self.headlines.get(model, {}), list(tasks)
        if not chosen or any(task not in known for task in chosen):
            return None
        return fmean(known[task].mean if means else known[task].median for task in chosen)


def score_run(run: RunFolder) -> Scores:
    """Score every stored prediction of a run. Raises UserError or StepError naming a damaged file."""
    scores: list[Score] = []
    predictions: dict[Cell, Predictions] = {}
    first: dict[tuple[str, str], tuple[str, Predictions]] = {}
    for cell in run.cells:
        if cell.step not in run.records:
            continue
        path = run.root / cell.step / PREDICTIONS_FILE
        splits = read_predictions(path)
        for task, split in _scored_splits(cell.task, splits):
            where = f"{path}: {split}"
            if split not in splits:
                raise UserError(f"{where}: no predictions; run finetune again")
            part = _sorted(splits[split])
            try:
                metrics, notes = score_with_warnings(task, part.prediction, part.label)
            except ValueError as error:
                raise UserError(f"{where}: {error}") from None
            _check_examples(part, where, *first.setdefault((task, split), (where, part)))
            scores.append(Score(cell.model, task, split, cell.seed, metrics, len(part.idx), notes))
            if split == TASKS[cell.task].dev_splits[0]:
                predictions[cell] = part
    return Scores(tuple(scores), predictions)


def _scored_splits(task: str, splits: Mapping[str, Predictions]) -> list[tuple[str, str]]:
    """(task, split) to score: the dev splits, and the diagnostic set that is predicted here, where it has labels."""
    found = [(task, split) for split in TASKS[task].dev_splits]
    diagnostic = [one.name for one in TASKS.values() if one.predicted_by == task]
    return found + [(name, name) for name in diagnostic if name in splits and splits[name].is_labelled]


def _sorted(part: Predictions) -> Predictions:
    """In the order of idx, so that models line up whatever order they were predicted in; without logits."""
    order = np.argsort(part.idx, kind="stable")
    return Predictions(part.split, part.idx[order], part.label[order], part.prediction[order], part.logits[:0])


def _check_examples(part: Predictions, where: str, owner: str, first: Predictions) -> None:
    """All models and seeds must have been asked the same questions, each once, with the same answers."""
    if (np.diff(part.idx) == 0).any():
        raise UserError(f"{where}: an idx stands twice; run finetune again")
    if not np.array_equal(part.idx, first.idx):
        raise UserError(f"{where}: {len(part.idx)} examples, not the {len(first.idx)} of {owner}; run finetune again")
    if not np.array_equal(part.label, first.label):
        raise UserError(f"{where}: labels differ from those of {owner}; run finetune again")
