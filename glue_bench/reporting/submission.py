"""The GLUE server's zip: eleven TSV files at its root, made of predictions of the unlabelled test sets.

Nothing incomplete is written: a file that is missing, short or out of order would be rejected there, or scored wrong.
Source: gluebenchmark.com, FAQ; class names for MNLI, QNLI, RTE and AX, integers for the others.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glue_bench.data.predictions import PREDICTIONS_FILE, read_predictions
from glue_bench.errors import UserError
from glue_bench.learning.metrics import checked_predictions
from glue_bench.reporting.run_folder import Cell, load_intact_run
from glue_bench.reporting.scores import score_run
from glue_bench.store import write_atomic
from glue_bench.tasks import TASKS, Task
from glue_bench.typed import near_miss

# Rows of the official test sets.
TEST_ROWS = {
    "CoLA.tsv": 1_063,
    "SST-2.tsv": 1_821,
    "MRPC.tsv": 1_725,
    "STS-B.tsv": 1_379,
    "QQP.tsv": 390_965,
    "MNLI-m.tsv": 9_796,
    "MNLI-mm.tsv": 9_847,
    "QNLI.tsv": 5_463,
    "RTE.tsv": 3_000,
    "WNLI.tsv": 146,
    "AX.tsv": 1_104,
}


@dataclass(frozen=True)
class TestPredictions:
    """One run on one test split: idx (n,) of the examples and predictions (n,), class integers or numbers."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    idx: np.ndarray
    predictions: np.ndarray


def submit(folder: Path, model: str) -> Path:
    """Write submission-MODEL.zip into a run's folder: of each task the seed whose dev score is the median.

    AX is predicted by the same MNLI run, under the split name of `stored_split`. Raises UserError where the model
    is unknown, has not been fine-tuned or lacks a test set (all are named), and StepError for a damaged file.
    """
    run = load_intact_run(folder)
    if model not in run.roles:
        raise UserError(f"--model {model}: no such row in {folder}{near_miss(model, tuple(run.roles))}")
    spreads = score_run(run).headlines.get(model, {})
    found, stored = {}, {}
    for task, split in submission_files().values():
        owner = TASKS[task].predicted_by or task
        if owner not in spreads:
            continue
        if owner not in stored:
            step = Cell(model, owner, spreads[owner].median_seed).step
            stored[owner] = read_predictions(run.root / step / PREDICTIONS_FILE)
        one = stored[owner].get(stored_split(task, split))
        if one is not None:
            found[task, split] = TestPredictions(one.idx, one.prediction)
    return write_submission(found, folder / f"submission-{model}.zip")


def stored_split(task: str, split: str) -> str:
    """Name of a test split in predictions.parquet; AX, which MNLI's runs predict, stands there by its task's name."""
    return task if TASKS[task].predicted_by else split


def submission_files() -> dict[str, tuple[str, str]]:
    """File of the zip -> (task, test split)."""
    return {
        name: (row.name, split)
        for row in TASKS.values()
        for name, split in zip(row.submission_files, row.test_splits, strict=True)
    }


def write_submission(predictions: Mapping[tuple[str, str], TestPredictions], path: Path) -> Path:
    """Write the zip whole or not at all; predictions by (task, test split).

    The same predictions give the same bytes. Raises UserError, naming every file concerned, where a test set is
    missing or has not its official rows 0 to n - 1, or a prediction is no class of the task.
    """
    files = submission_files()
    missing = [f"{name} ({'/'.join(key)})" for name, key in files.items() if key not in predictions]
    if missing:
        raise UserError(
            f"submission: no test predictions for {', '.join(missing)}; "
            "the server wants all eleven files: give data with every test set and set data.predict_test = true"
        )
    problems = [one for name, key in files.items() if (one := _problem(name, TASKS[key[0]], predictions[key]))]
    if problems:
        raise UserError(f"submission: {'; '.join(problems)}; the server takes the official test sets only")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, key in files.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, submission_text(TASKS[key[0]], predictions[key]))
    write_atomic(path, buffer.getvalue())
    return path


def submission_text(row: Task, given: TestPredictions) -> str:
    """One file: the header `index<TAB>prediction`, then a line per example in order of idx."""
    order = np.argsort(given.idx, kind="stable")
    values = checked_predictions(row, np.asarray(given.predictions))[order]
    if row.is_regression:
        words = [f"{value:.3f}" for value in np.clip(values, *row.label_range)]
    elif row.submission_by_name:
        words = [row.classes[value] for value in values]
    else:
        words = [str(value) for value in values]
    lines = [f"{index}\t{word}\n" for index, word in zip(np.asarray(given.idx)[order], words, strict=True)]
    return "index\tprediction\n" + "".join(lines)


def _problem(name: str, row: Task, given: TestPredictions) -> str:
    rows, wanted = len(given.idx), TEST_ROWS[name]
    if rows != wanted:
        return f"{name} has {rows} of {wanted} rows"
    if not np.array_equal(np.sort(given.idx), np.arange(wanted)):
        return f"{name} has not the rows 0 to {wanted - 1} once each"
    try:
        checked = checked_predictions(row, given.predictions)
    except ValueError as error:
        return f"{name}: {error}"
    return "" if len(checked) == rows else f"{name} has {len(checked)} predictions for {rows} rows"
