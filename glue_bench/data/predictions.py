"""predictions.parquet: what a fine-tuned model said of every example; scores, statistics, submissions start here.

Columns: split, idx, label (-1: unknown), prediction (a class integer as float, or the regression value), logits
(list<float32>, classes in the data set's order). No text.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glue_bench.errors import StepError
from glue_bench.store import write_atomic

PREDICTIONS_FILE = "predictions.parquet"
TRAIN_LOGITS_FILE = "train_logits.parquet"
UNKNOWN = -1


@dataclass(frozen=True)
class Predictions:
    """One split: idx (n,) int64, label and prediction (n,) float64, logits (n, outputs) float32."""

    split: str
    idx: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    logits: np.ndarray

    @property
    def is_labelled(self) -> bool:
        """Whether the labels are known."""
        return bool(len(self.label)) and bool((self.label != UNKNOWN).all())


def decide(logits: np.ndarray, is_regression: bool) -> np.ndarray:
    """Predictions (n,) float64 from logits (n, outputs): the first largest class, or the one output as it is."""
    return (logits[:, 0] if is_regression else logits.argmax(axis=1)).astype(np.float64)


def write_predictions(path: Path, splits: Sequence[Predictions]) -> None:
    """Write the splits to one Parquet file. Raises StepError where it cannot be written."""
    columns = {
        "split": pa.array(np.repeat([one.split for one in splits], [len(one.idx) for one in splits]), pa.string()),
        "idx": pa.array(np.concatenate([one.idx for one in splits]), pa.int64()),
        "label": pa.array(np.concatenate([one.label for one in splits]), pa.float64()),
        "prediction": pa.array(np.concatenate([one.prediction for one in splits]), pa.float64()),
        "logits": _lists(np.concatenate([one.logits for one in splits])),
    }
    _write(path, columns)


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Split -> predictions, in the order of the file. Raises StepError where the file is missing or damaged."""
    table = _read(path, ["split", "idx", "label", "prediction", "logits"])
    names = table["split"].to_numpy()
    logits = _matrix(table["logits"], path)
    found = {}
    for split in dict.fromkeys(names):
        rows = np.flatnonzero(names == split)
        idx, label, prediction = (table[name].to_numpy()[rows] for name in ("idx", "label", "prediction"))
        found[split] = Predictions(split, idx, label, prediction, logits[rows])
    return found


def write_train_logits(path: Path, idx: np.ndarray, logits: np.ndarray) -> None:
    """Write a teacher's logits (n, outputs) on its training examples, for students that learn from them."""
    _write(path, {"idx": pa.array(idx, pa.int64()), "logits": _lists(logits)})


def read_train_logits(path: Path, idx: np.ndarray) -> np.ndarray:
    """Logits (n, outputs) float32 of the examples `idx`, in their order.

    Raises StepError where the file is missing or damaged, or lacks one of the examples.
    """
    table = _read(path, ["idx", "logits"])
    known, logits = table["idx"].to_numpy(), _matrix(table["logits"], path)
    order = np.argsort(known, kind="stable")
    places = np.minimum(np.searchsorted(known[order], idx), len(order) - 1)
    missing = np.flatnonzero(known[order][places] != idx)
    if missing.size:
        raise StepError(
            f"{path}: no logits for the training example idx {idx[missing[0]]}; run the teacher's step again"
        )
    return logits[order[places]]


def _lists(logits: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(logits, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]).cast(pa.list_(pa.float32()))


def _matrix(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    flat = column.combine_chunks().flatten().to_numpy()
    if len(column) == 0 or len(flat) % len(column):
        raise StepError(f"{path}: rows with different numbers of logits, or none; run the step again")
    return flat.reshape(len(column), -1)


def _write(path: Path, columns: dict[str, pa.Array]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException, KeyError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise StepError(f"{path}: cannot be read ({line}); run the step again") from None
