"""The GLUE server's zip under a strict reader; refusals; the choice of the median seed from a run's folder."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from glue_bench.config import config_from, plain
from glue_bench.data.predictions import PREDICTIONS_FILE, Predictions, write_predictions
from glue_bench.errors import UserError
from glue_bench.records import to_json
from glue_bench.reporting.run_folder import CONFIG_FILE
from glue_bench.reporting.submission import TEST_ROWS, TestPredictions, submission_files, submit, write_submission
from glue_bench.store import RECORD
from glue_bench.tasks import GLUE_NINE, TASKS

# What the server documents, written here a second time on purpose.
ZERO_ONE, ENTAILMENT = {"0", "1"}, {"entailment", "not_entailment"}
THREE = {"entailment", "neutral", "contradiction"}
SERVER = {
    "CoLA.tsv": (1063, ZERO_ONE),
    "SST-2.tsv": (1821, ZERO_ONE),
    "MRPC.tsv": (1725, ZERO_ONE),
    "STS-B.tsv": (1379, None),
    "QQP.tsv": (390_965, ZERO_ONE),
    "MNLI-m.tsv": (9796, THREE),
    "MNLI-mm.tsv": (9847, THREE),
    "QNLI.tsv": (5463, ENTAILMENT),
    "RTE.tsv": (3000, ENTAILMENT),
    "WNLI.tsv": (146, ZERO_ONE),
    "AX.tsv": (1104, THREE),
}


def read_strictly(path: Path) -> dict[str, list[str]]:
    """File -> predictions in order; every byte that the server would object to is an error."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(SERVER)
        for name, (rows, allowed) in SERVER.items():
            data = archive.read(name)
            assert b"\r" not in data
            assert data.endswith(b"\n")
            header, *lines = data.decode("ascii").removesuffix("\n").split("\n")
            assert header == "index\tprediction"
            pairs = [line.split("\t") for line in lines]
            assert [index for index, _ in pairs] == [str(i) for i in range(rows)], name
            found[name] = [word for _, word in pairs]
            if allowed:
                assert set(found[name]) <= allowed, name
            else:
                assert all(re.fullmatch(r"[0-5]\.\d{3}", word) and float(word) <= 5 for word in found[name])
    return found


def everything() -> dict[tuple[str, str], TestPredictions]:
    """Random predictions of every test set, in shuffled order."""
    rng = np.random.default_rng(0)
    given = {}
    for name, (task, split) in submission_files().items():
        rows, row = SERVER[name][0], TASKS[task]
        values = rng.uniform(-0.5, 5.5, rows) if row.is_regression else rng.integers(0, len(row.classes), rows)
        given[task, split] = TestPredictions(rng.permutation(rows), values)
    return given


def test_the_zip_is_what_the_server_wants(tmp_path: Path) -> None:
    given = everything()
    found = read_strictly(write_submission(given, tmp_path / "first.zip"))
    mnli = given["mnli", "test_matched"]
    first = mnli.predictions[np.flatnonzero(mnli.idx == 0)[0]]
    assert found["MNLI-m.tsv"][0] == ("entailment", "neutral", "contradiction")[first]
    rte = given["rte", "test"]
    assert found["RTE.tsv"] == [("entailment", "not_entailment")[k] for k in rte.predictions[np.argsort(rte.idx)]]
    wnli = given["wnli", "test"]
    assert found["WNLI.tsv"] == [str(k) for k in wnli.predictions[np.argsort(wnli.idx)]]
    stsb = given["stsb", "test"]
    assert found["STS-B.tsv"] == [f"{k:.3f}" for k in np.clip(stsb.predictions[np.argsort(stsb.idx)], 0, 5)]
    assert found["MNLI-m.tsv"] != found["MNLI-mm.tsv"][:9796]
    write_submission(given, tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.zip", "second.zip"]
    assert {name: rows for name, (rows, _) in SERVER.items()} == TEST_ROWS


def test_refuses_and_names_everything_that_is_missing(tmp_path: Path) -> None:
    given = everything()
    del given["mnli", "test_mismatched"], given["qqp", "test"], given["ax", "test"]
    with pytest.raises(UserError) as caught:
        write_submission(given, tmp_path / "out.zip")
    named = "QQP.tsv (qqp/test), MNLI-mm.tsv (mnli/test_mismatched), AX.tsv (ax/test)"
    assert f"no test predictions for {named};" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_refuses_short_repeated_and_wrong_predictions(tmp_path: Path) -> None:
    path = tmp_path / "out.zip"
    path.write_bytes(b"earlier")
    given = everything()
    rte, wnli, sst2, stsb, cola = (given[task, "test"] for task in ("rte", "wnli", "sst2", "stsb", "cola"))
    given["rte", "test"] = TestPredictions(rte.idx[:-1], rte.predictions[:-1])
    given["wnli", "test"] = TestPredictions(np.where(wnli.idx == 3, 4, wnli.idx), wnli.predictions)
    given["sst2", "test"] = TestPredictions(sst2.idx, np.where(sst2.idx == 0, 2, sst2.predictions))
    given["stsb", "test"] = TestPredictions(stsb.idx, np.where(stsb.idx == 0, np.nan, stsb.predictions))
    given["cola", "test"] = TestPredictions(cola.idx, cola.predictions[:-1])
    with pytest.raises(UserError) as caught:
        write_submission(given, path)
    for problem in (
        "RTE.tsv has 2999 of 3000 rows",
        "WNLI.tsv has not the rows 0 to 145 once each",
        "SST-2.tsv: sst2: predictions",
        "STS-B.tsv: stsb: predictions",
        "CoLA.tsv has 1062 predictions for 1063 rows",
    ):
        assert problem in str(caught.value)
    assert path.read_bytes() == b"earlier"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with stored predictions of the teacher: seed s predicts min(s, 1) on every test set."""
    raw = {"name": "sent", "finetune": {"seeds": [0], "tasks": {"rte": {"seeds": [0, 1, 2]}}}}
    config = config_from(raw, "test")
    (tmp_path / CONFIG_FILE).write_text(to_json(plain(config)), encoding="utf-8")
    # RTE's dev accuracy is 1, 0 and 1/2: seed 2 is the median.
    dev_right = {0: [1, 0], 1: [0, 1], 2: [1, 1]}
    for task in GLUE_NINE:
        for seed in (0, 1, 2) if task == "rte" else (0,):
            folder = tmp_path / f"finetune/teacher/{task}/seed-{seed}"
            splits = [constant(split, 2, 1, [1, 0], dev_right[seed]) for split in TASKS[task].dev_splits]
            names = zip(TASKS[task].submission_files, TASKS[task].test_splits, strict=True)
            splits += [constant(split, TEST_ROWS[name], min(seed, 1)) for name, split in names]
            if task == "mnli":
                splits.append(constant("ax", TEST_ROWS["AX.tsv"], 2))
            write_predictions(folder / PREDICTIONS_FILE, splits)
            empty = dict.fromkeys(("settings", "needs", "inputs", "outputs", "result"), {})
            record = empty | {"step": f"finetune/teacher/{task}/seed-{seed}", "fingerprint": ""}
            (folder / RECORD).write_text(to_json(record), encoding="utf-8")
    return tmp_path


def constant(split: str, n: int, value: int, labels: list | None = None, values: list | None = None) -> Predictions:
    return Predictions(
        split,
        np.arange(n),
        np.array(labels if labels is not None else np.full(n, -1), dtype=float),
        np.array(values if values is not None else np.full(n, value), dtype=float),
        np.zeros((n, 1), dtype=np.float32),
    )


def test_submit_sends_the_median_seed_of_each_task(run: Path) -> None:
    path = submit(run, "teacher")
    assert path == run / "submission-teacher.zip"
    found = read_strictly(path)
    assert set(found["RTE.tsv"]) == {"not_entailment"}  # seed 2 predicts class 1; seed 0 would say entailment
    assert set(found["QNLI.tsv"]) == {"entailment"}
    assert set(found["AX.tsv"]) == {"contradiction"}


def test_submit_names_unknown_models_and_missing_sets(run: Path) -> None:
    with pytest.raises(UserError, match="--model teecher: no such row in .*; did you mean 'teacher'"):
        submit(run, "teecher")
    with pytest.raises(UserError, match=r"no test predictions for CoLA.tsv \(cola/test\), SST-2.tsv"):
        submit(run, "majority")
    (run / "finetune/teacher/mnli/seed-0" / RECORD).unlink()
    with pytest.raises(UserError, match="MNLI-m.tsv .*MNLI-mm.tsv .*AX.tsv .*predict_test"):
        submit(run, "teacher")
