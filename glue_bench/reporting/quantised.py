"""What int8 costs in score: the quantised exports against their own fp32 and against the fp32 teacher.

Everything is computed from kept predictions: of benchmark/int8 and, for the same examples, of the fine-tuning whose
weights were exported. A model that was fine-tuned with several seeds stands here with one, the median's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from glue_bench.data.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from glue_bench.errors import UserError
from glue_bench.learning.metrics import score_with_warnings
from glue_bench.plan import int8_step
from glue_bench.records import Interval, Score
from glue_bench.reporting.resampling import TaskPredictions
from glue_bench.reporting.run_folder import RunFolder
from glue_bench.reporting.scores import Scores
from glue_bench.reporting.statistics import MACRO_ROWS, ModelPredictions, RetentionResult, retention
from glue_bench.tasks import TASKS

QUANTISED_FILE = "quantised.csv"
COLUMNS = (
    "model", "task", "seed", "score", "fp32_score", "retention_of_fp32", "fp32_low", "fp32_high", "teacher_score",
    "retention", "low", "high", "largest_logit_difference", "bytes_on_disk", "fp32_bytes_on_disk", "skipped",
)  # fmt: skip


@dataclass(frozen=True)
class Quantised:
    """One model's int8 export on one task, or the reason why there is none."""

    model: str
    task: str
    scores: tuple[Score, ...] = ()
    seed: int | None = None
    largest_logit_difference: float | None = None
    bytes_on_disk: int | None = None
    fp32_bytes_on_disk: int | None = None
    skipped: str = ""
    int8: Predictions | None = None  # of the headline split, by idx
    fp32: Predictions | None = None


@dataclass(frozen=True)
class QuantisedModel:
    """What one model's int8 exports keep, over the tasks that were exported."""

    of_fp32: RetentionResult
    of_teacher: RetentionResult | None


def quantised(run: RunFolder) -> tuple[Quantised, ...]:
    """Every int8 cell that the config asks for, scored from its predictions. Raises UserError naming a damaged file."""
    return tuple(_cell(run, model, task) for model, task in run.int8_cells)


def logit_difference(one: Predictions, other: Predictions) -> float:
    """The largest difference of any logit of the same examples, in whatever order either has them.

    Raises ValueError where the examples or the numbers of logits differ.
    """
    first, second = (part.logits[np.argsort(part.idx, kind="stable")] for part in (one, other))
    if first.shape != second.shape or not np.array_equal(np.sort(one.idx), np.sort(other.idx)):
        raise ValueError("not the examples that fp32 predicted; run benchmark again")
    return float(np.abs(first.astype(np.float64) - second).max())


def kept_by_int8(run: RunFolder, cells: tuple[Quantised, ...], scores: Scores) -> dict[str, QuantisedModel]:
    """Model -> its exports against its own fp32 (the same weights) and against the teacher's median seed in fp32."""
    teacher_seeds = {
        task: found.median_seed for task, found in scores.headlines.get(run.config.teacher.name, {}).items()
    }
    teacher = ModelPredictions(
        run.config.teacher.name,
        {
            cell.task: TaskPredictions(part.label, part.prediction[None])
            for cell, part in scores.predictions.items()
            if cell.model == run.config.teacher.name and teacher_seeds.get(cell.task) == cell.seed
        },
    )
    settings, found = run.config.report, {}
    for model in dict.fromkeys(cell.model for cell in cells):
        own = [cell for cell in cells if cell.model == model and cell.int8 is not None]
        if not own:
            continue
        int8, fp32 = (
            ModelPredictions(
                model, {cell.task: TaskPredictions(part.label, part.prediction[None]) for cell, part in parts}
            )
            for parts in ([(cell, cell.int8) for cell in own], [(cell, cell.fp32) for cell in own])
        )
        draws = {"resamples": settings.resamples, "seed": settings.seed}
        shared = set(teacher.tasks) & set(int8.tasks)
        found[model] = QuantisedModel(
            retention(fp32, int8, None, **draws), retention(teacher, int8, None, **draws) if shared else None
        )
    return found


def quantised_rows(cells: tuple[Quantised, ...], kept: Mapping[str, QuantisedModel]) -> Iterator[dict[str, Any]]:
    """Rows of quantised.csv: each model's tasks, then its macros over the tasks that were exported."""
    for model in dict.fromkeys(cell.model for cell in cells):
        for cell in cells:
            if cell.model == model:
                yield _row(cell, kept.get(model))
        if model in kept:
            of_fp32, of_teacher = kept[model].of_fp32, kept[model].of_teacher
            for name, own, against in zip(
                MACRO_ROWS,
                (of_fp32.macro, of_fp32.macro_9),
                (of_teacher.macro, of_teacher.macro_9) if of_teacher else (None, None),
                strict=True,
            ):
                if own is not None:
                    yield {"model": model, "task": name} | _figures(own, against)


def _row(cell: Quantised, kept: QuantisedModel | None) -> dict[str, Any]:
    names = ("model", "task", "seed", "largest_logit_difference", "bytes_on_disk", "fp32_bytes_on_disk", "skipped")
    row = {name: getattr(cell, name) for name in names}
    if kept is None or cell.int8 is None:
        return row
    of_teacher = kept.of_teacher.tasks.get(cell.task) if kept.of_teacher else None
    return row | _figures(kept.of_fp32.tasks[cell.task], of_teacher)


def _figures(own: Any, against: Any) -> dict[str, Any]:
    """Scores and both retentions of one task or macro."""
    figures = {"score": own.score, "fp32_score": own.teacher_score}
    figures |= dict(zip(("retention_of_fp32", "fp32_low", "fp32_high"), _three(own.retention), strict=True))
    if against is not None and against.tasks == own.tasks:
        figures["teacher_score"] = against.teacher_score
        figures |= dict(zip(("retention", "low", "high"), _three(against.retention), strict=True))
    return figures


def _three(interval: Interval) -> tuple[float | None, float | None, float | None]:
    return interval.value, interval.low, interval.high


def _cell(run: RunFolder, model: str, task: str) -> Quantised:
    step = int8_step(model, task)
    if step not in run.records:
        return Quantised(model, task, skipped="not run yet")
    result = run.result(step)
    seed = result.get("seed")
    if result.get("skipped") or not isinstance(seed, int):
        return Quantised(model, task, skipped=str(result.get("skipped") or "its record names no seed"))
    path = run.root / step / PREDICTIONS_FILE
    splits = read_predictions(path)
    fp32 = read_predictions(run.root / f"finetune/{model}/{task}/seed-{seed}" / PREDICTIONS_FILE)
    scores, differences = [], []
    for split in TASKS[task].dev_splits:
        where = f"{path}: {split}"
        try:
            differences.append(logit_difference(splits[split], fp32[split]))
            metrics, notes = score_with_warnings(task, splits[split].prediction, splits[split].label)
        except KeyError:
            raise UserError(f"{where}: no predictions; run benchmark again") from None
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        scores.append(Score(model, task, split, seed, metrics, len(splits[split].idx), notes))
    split = TASKS[task].dev_splits[0]
    int8, own = _by_idx(splits[split]), _by_idx(fp32[split])
    if not np.array_equal(int8.label, own.label):
        raise UserError(f"{path}: {split}: labels differ from those of fp32; run benchmark again")
    sizes = {name: result.get(name) for name in ("bytes_on_disk", "fp32_bytes_on_disk")}
    return Quantised(model, task, tuple(scores), seed, max(differences), **sizes, int8=int8, fp32=own)


def _by_idx(part: Predictions) -> Predictions:
    order = np.argsort(part.idx, kind="stable")
    return Predictions(part.split, part.idx[order], part.label[order], part.prediction[order], part.logits[order])
