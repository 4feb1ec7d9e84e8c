"""predictions.parquet: what is written is read back, and what is damaged is an error with a remedy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glue_bench.data.predictions import (
    Predictions,
    decide,
    read_predictions,
    read_train_logits,
    write_predictions,
    write_train_logits,
)
from glue_bench.errors import StepError


def predictions(split: str, rows: int, outputs: int) -> Predictions:
    rng = np.random.default_rng(rows)
    logits = rng.normal(size=(rows, outputs)).astype(np.float32)
    idx = rng.permutation(rows) + 10
    return Predictions(split, idx, rng.integers(0, outputs, rows).astype(float), decide(logits, outputs == 1), logits)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_what_is_written_is_read_back(tmp_path: Path, outputs: int) -> None:
    written = [predictions("validation_matched", 7, outputs), predictions("ax", 3, outputs)]
    write_predictions(tmp_path / "predictions.parquet", written)
    found = read_predictions(tmp_path / "predictions.parquet")
    assert list(found) == ["validation_matched", "ax"]
    for one in written:
        for name in ("idx", "label", "prediction", "logits"):
            assert np.array_equal(getattr(found[one.split], name), getattr(one, name)), name


def test_the_file_has_the_columns_of_the_contract_and_no_text(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.parquet", [predictions("validation", 4, 2)])
    schema = pq.read_schema(tmp_path / "p.parquet")
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "split": "string",
        "idx": "int64",
        "label": "double",
        "prediction": "double",
        "logits": "list<element: float>",
    }
    assert pd.read_parquet(tmp_path / "p.parquet")["logits"].map(len).tolist() == [2] * 4


def test_the_same_predictions_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_predictions(tmp_path / name, [predictions("validation", 50, 3)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_decisions() -> None:
    logits = np.array([[0.1, 0.3, 0.2], [5.0, 5.0, 1.0]], dtype=np.float32)
    assert decide(logits, False).tolist() == [1.0, 0.0]
    assert decide(np.array([[2.5], [7.0]], dtype=np.float32), True).tolist() == [2.5, 7.0]


def test_a_split_is_labelled_where_every_label_is_known() -> None:
    one = predictions("test", 5, 2)
    assert one.is_labelled
    one.label[2] = -1
    assert not one.is_labelled


def test_damage_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    with pytest.raises(StepError, match=r"predictions\.parquet: cannot be read"):
        read_predictions(path)
    write_predictions(path, [predictions("validation", 50, 2)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StepError, match="cannot be read.*run the step again"):
        read_predictions(path)
    pq.write_table(pa.table({"idx": [1], "split": ["validation"]}), path)
    with pytest.raises(StepError, match="cannot be read"):
        read_predictions(path)


def test_train_logits_come_back_by_idx(tmp_path: Path) -> None:
    path = tmp_path / "train_logits.parquet"
    logits = np.arange(8, dtype=np.float32).reshape(4, 2)
    write_train_logits(path, np.array([30, 10, 40, 20]), logits)
    assert read_train_logits(path, np.array([10, 20, 10])).tolist() == [[2, 3], [6, 7], [2, 3]]
    for unknown in (5, 25, 99):
        with pytest.raises(StepError, match=f"idx {unknown}"):
            read_train_logits(path, np.array([10, unknown]))
