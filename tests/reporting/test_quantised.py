"""What int8 costs in score: from kept predictions alone, against the same weights in fp32 and against the teacher."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from synthetic_run import change_predictions, copy_run, int8_run, make_run, settings, small_run

from glue_bench.data.predictions import Predictions, read_predictions
from glue_bench.reporting.analysis import analyse
from glue_bench.reporting.build import build_tables
from glue_bench.reporting.quantised import COLUMNS, logit_difference
from glue_bench.reporting.run_folder import load_run
from glue_bench.reporting.verify import verify
from glue_bench.store import Store

CELL = "benchmark/int8/distil-2/rte"
SCORES = f"{CELL}/record.json: scores of validation"


def tables_of(store: Store) -> dict[str, str]:
    return build_tables(analyse(load_run(store.root)), "")[0]


def rows_of(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["model"], row["task"]): row for row in csv.DictReader(io.StringIO(text))}


def test_scores_and_retentions_are_those_of_the_predictions() -> None:
    store = int8_run()
    rows = rows_of((store.root / "quantised.csv").read_text())
    wanted = ("teacher", "distil-2", "copied-2")
    assert list(rows) == [(m, t) for m in wanted for t in ("rte", "mnli", "macro_without_wnli")], (
        "no row for the majority, nor for a macro with WNLI, which was not run"
    )
    scores = {}
    for model in wanted:
        for task, split in (("rte", "validation"), ("mnli", "validation_matched")):
            row = rows[model, task]
            int8, fp32 = (
                read_predictions(store.root / folder / "predictions.parquet")[split]
                for folder in (f"benchmark/int8/{model}/{task}", f"finetune/{model}/{task}/seed-{row['seed']}")
            )
            scores[model, task] = [accuracy_score(one.label, one.prediction) for one in (int8, fp32)]
            assert float(row["score"]) == pytest.approx(scores[model, task][0])
            assert float(row["fp32_score"]) == pytest.approx(scores[model, task][1])
            assert float(row["retention_of_fp32"]) == pytest.approx(scores[model, task][0] / scores[model, task][1])
            assert float(row["retention"]) == pytest.approx(scores[model, task][0] / scores["teacher", task][1])
            assert float(row["teacher_score"]) == pytest.approx(scores["teacher", task][1])
            assert float(row["fp32_low"]) <= float(row["retention_of_fp32"]) <= float(row["fp32_high"])
            assert float(row["largest_logit_difference"]) == pytest.approx(0.25)
            assert (row["bytes_on_disk"], row["fp32_bytes_on_disk"]) == ("1000000", "4000000")
    own, teacher = (np.mean([scores[m, t][i] for t in ("rte", "mnli")]) for m, i in (("distil-2", 0), ("teacher", 1)))
    macro = rows["distil-2", "macro_without_wnli"]
    assert float(macro["retention"]) == pytest.approx(own / teacher)
    assert (macro["seed"], macro["bytes_on_disk"]) == ("", "")


def test_the_exported_seed_is_the_medians() -> None:
    store = int8_run()
    rows = rows_of((store.root / "quantised.csv").read_text())
    found = analyse(load_run(store.root)).scores.headlines
    assert int(rows["distil-2", "rte"]["seed"]) == found["distil-2"]["rte"].median_seed


def test_the_report_has_a_table_of_its_own() -> None:
    report = (int8_run().root / "report.md").read_text()
    section = report.split("\n## Quantised to int8\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| distil-2")]
    assert [line.split("|")[2].strip() for line in lines] == ["RTE", "MNLI", "**macro over 2 tasks**"]
    rows = rows_of((int8_run().root / "quantised.csv").read_text())
    assert "one example at a time, on a processor, 2 cores." in section and "predicted in" not in section
    rte = next(line for line in lines if "| RTE " in line)
    assert f"{100 * float(rows['distil-2', 'rte']['score']):.1f}" in rte
    assert "1.0" in rte and "4.0" in rte and "0.25" in rte


def test_without_int8_among_the_backends_there_is_neither_table_nor_file() -> None:
    assert not (small_run().root / "quantised.csv").exists()
    assert "Quantised" not in (small_run().root / "report.md").read_text()


def test_a_cell_that_was_not_exported_says_why(tmp_path: Path) -> None:
    store = copy_run(tmp_path, int8_run())
    path = store.folder(CELL) / "record.json"
    record = json.loads(path.read_text())
    record["result"] |= {"skipped": "the package onnx | is not installed", "scores": [], "seed": None}
    record.pop("seal", None)
    path.write_text(json.dumps(record))
    tables = tables_of(store)
    row = rows_of(tables["quantised.csv"])["distil-2", "rte"]
    assert row["skipped"] == "the package onnx | is not installed"
    assert {row[name] for name in COLUMNS[2:-1]} == {""}
    assert "– distil-2, RTE: the package onnx &#124; is not installed" in tables["report.md"]
    assert "macro over 1 task" in tables["report.md"], "its macro stands on what is left"


def test_a_missing_step_makes_the_run_incomplete(tmp_path: Path) -> None:
    raw = settings(data={"tasks": ["rte"]}, finetune={"seeds": [0]}, benchmark={"backends": ["onnx-int8"]})
    store = make_run(tmp_path, raw, without=lambda step: step == CELL, reported=False)
    assert load_run(store.root).missing == (CELL,)
    assert rows_of(tables_of(store)["quantised.csv"])["distil-2", "rte"]["skipped"] == "not run yet"


def edited(change: Callable[[dict], object]) -> Callable[[Store], None]:
    def edit(store: Store) -> None:
        path = store.folder(CELL) / "record.json"
        record = json.loads(path.read_text())
        change(record["result"])
        record.pop("seal", None)
        path.write_text(json.dumps(record))

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: change_predictions(s, CELL, lambda p: 1 - p), SCORES),
        (lambda s: change_predictions(s, CELL, lambda p: 1 - p), "quantised.csv: row"),
        (
            edited(lambda r: r["scores"][0]["metrics"].update(accuracy=0.999)),
            SCORES,
        ),
        (edited(lambda r: r.update(largest_logit_difference=0.0)), "largest_logit_difference"),
        (edited(lambda r: r.update(bytes_on_disk=1)), "quantised.csv: row"),
        (lambda s: (s.folder(CELL) / "predictions.parquet").unlink(), "predictions.parquet"),
    ],
)
def test_verify_finds_every_edit(edit: Callable[[Store], None], words: str, tmp_path: Path) -> None:
    store = copy_run(tmp_path, int8_run())
    edit(store)
    found = verify(store.root)
    assert any(words in line for line in found), found


def test_verify_agrees_with_an_untouched_run() -> None:
    assert verify(int8_run().root) == []


def test_logits_are_compared_by_example_and_only_with_the_same_ones() -> None:
    def part(idx: list[int], logits: list[list[float]]) -> Predictions:
        nothing = np.zeros(len(idx))
        return Predictions("validation", np.array(idx), nothing, nothing, np.array(logits, np.float32))

    one = part([2, 0, 1], [[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert logit_difference(one, part([0, 1, 2], [[0.0, 0.0], [1.0, 0.5], [2.0, 0.0]])) == 0.5
    for other in (part([0, 1, 3], [[0.0, 0.0]] * 3), part([0, 1], [[0.0, 0.0]] * 2), part([0, 1, 2], [[0.0]] * 3)):
        with pytest.raises(ValueError, match="not the examples"):
            logit_difference(one, other)


@pytest.mark.parametrize(
    "lie", [{"seed": "0"}, {"bytes_on_disk": "big"}, {"skipped": 1}, {"scores": [3]}, {"largest_logit_difference": []}]
)
def test_a_record_of_another_shape_is_no_record(lie: dict, tmp_path: Path) -> None:
    store = copy_run(tmp_path, int8_run())
    edited(lambda result: result.update(lie))(store)
    assert load_run(store.root).missing == (CELL,)
    assert rows_of(tables_of(store)["quantised.csv"])["distil-2", "rte"]["skipped"] == "not run yet"
