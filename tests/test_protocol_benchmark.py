"""benchmarks/protocol.py with few rows: GLUE's sizes and lengths are generated as said, and times are reckoned."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY

from glue_bench.tasks import GLUE_NINE, TASKS


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("protocol")


def test_generated_glue_has_the_rows_and_lengths_of_the_real_one(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.write_glue(tmp_path, list(GLUE_NINE), 0.05)
    for name in GLUE_NINE:
        task = TASKS[name]
        train = pq.read_table(tmp_path / name / "train.parquet")
        assert train.num_rows == round(0.05 * task.train_rows)
        for split, rows in zip(task.dev_splits, task.dev_rows, strict=True):
            assert pq.read_metadata(tmp_path / name / f"{split}.parquet").num_rows == max(8, round(0.05 * rows))
        texts = zip(*(train[column].to_pylist() for column in task.inputs), strict=True)
        lengths = np.array([1 + sum(len(text.split()) + 1 for text in row) for row in texts])
        assert lengths.max() <= 128 and lengths.min() >= 1 + 2 * len(task.inputs)
        if train.num_rows > 100:  # of 32 rows the mean scatters more
            assert lengths.mean() == pytest.approx(task.typical_tokens, rel=0.08)
            assert lengths.std() / lengths.mean() == pytest.approx(benchmark.SPREAD[name], rel=0.25)
        labels = train["label"].to_numpy()
        if task.is_regression:
            assert labels.min() >= task.label_range[0] and labels.max() <= task.label_range[1]
        else:
            assert set(labels) == set(range(task.num_outputs))


def test_all_but_the_least_overhead_grows_with_the_rows(benchmark: ModuleType) -> None:
    assert benchmark.full_seconds(100.0, [(70.0, 60.0)], 1.0, 1) == 100.0
    assert benchmark.full_seconds(100.0, [(70.0, 60.0)], 0.5, 1) == 160.0
    # 2 s beside training in the first job, 5 s in the second: 2 are fixed, so 20 and 33 s grow ninefold, in four jobs
    assert benchmark.full_seconds(100.0, [(22.0, 20.0), (35.0, 30.0)], 0.1, 4) == pytest.approx(100.0 + 9 * 53.0 / 4)


@pytest.mark.slow
def test_one_seed_is_run_by_the_command_line() -> None:
    shape = ["--layers", "2", "--hidden", "64", "--epochs", "1", "--share", "0.005", "--device", "cpu"]
    call = [sys.executable, str(REPOSITORY / "benchmarks/protocol.py"), *shape, "--tasks", "stsb", "wnli"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = {(row["task"], row["model"]): row for row in found["fine_tunings"]}
    assert set(rows) == {(task, model) for task in ("stsb", "wnli") for model in ("teacher", "student")}
    assert {row["examples"] for (task, _), row in rows.items() if task == "stsb"} == {round(0.005 * 5_749)}
    assert found["protocol_s"] == pytest.approx(5 * found["full_seed_s"], abs=0.5)
    assert found["full_seed_s"] > found["seed_s"] > max(row["train_s"] for row in rows.values())
