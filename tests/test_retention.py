"""The regression test: every stored run must keep what it once kept, and every table must follow from its predictions.

It recomputes scores and retention from the stored predictions of each run under results/published/ (of a fresh run of
quick: test_quick_run.py), and fails where retention is below the threshold that the run's config declares, or where a
table, a record or a file no longer agrees. To guard another project's runs in its own CI, call `complaints` on their
folders, or `python -m glue_bench verify` and `check`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY
from synthetic_run import (
    FACTS,
    change_predictions,
    copy_run,
    make_run,
    record,
    report_again,
    settings,
    small_run,
    undrawn,
)

from glue_bench.config import config_from
from glue_bench.data.predictions import read_predictions
from glue_bench.inputs import HashMemo
from glue_bench.learning.metrics import score
from glue_bench.plan import fingerprints, plan
from glue_bench.reporting.gate import asks_something
from glue_bench.reporting.publish import publish
from glue_bench.reporting.run_folder import load_run
from glue_bench.reporting.verify import verify
from glue_bench.store import Store

PUBLISHED = sorted(path.parent for path in (REPOSITORY / "results" / "published").glob("[!.]*/config.json"))


def complaints(folder: Path) -> list[str]:
    """What is wrong with a stored run: disagreements with its predictions, then thresholds that it misses."""
    if found := verify(folder):
        return found
    gate = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["gate"]  # verify has computed it anew
    return [] if gate["passed"] else gate["reasons"]


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_run(folder: Path) -> None:
    assert complaints(folder) == []


def test_reference_runs_are_published_with_thresholds() -> None:
    assert {"quick", "minilm-short"} <= {folder.name for folder in PUBLISHED}
    for folder in PUBLISHED:
        config = load_run(folder).config
        assert asks_something(config.check), f"{folder.name} declares no threshold"


@pytest.fixture(scope="module")
def kept() -> float:
    """What the synthetic student keeps; its run declares a threshold just below."""
    return json.loads((small_run().root / "summary.json").read_text())["models"]["distil-2"]["retention"]["value"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, kept: float) -> Store:
    """A run with thresholds, as one would be published."""
    check = {"min_retention": kept - 0.01, "min_task": {"rte": 0.5}, "students": ["distil-2"]}
    raw = settings(data={"tasks": ["rte", "mnli"]}, finetune={"seeds": [0, 1]}, check=check)
    return make_run(tmp_path_factory.mktemp("guarded"), raw)


def test_a_sound_run_and_its_published_copy_pass(guarded: Store, tmp_path: Path) -> None:
    assert complaints(guarded.root) == []
    with undrawn():
        assert complaints(publish(guarded.root, tmp_path / "published")) == []


def forge(store: Store, step: str) -> None:
    """Spoil predictions and rewrite everything that would tell, as a later, worse run would have left it."""
    change_predictions(store, step, lambda prediction: 1 - prediction)
    config = config_from(json.loads((store.root / "config.json").read_text()), "config.json")
    steps = plan(config, FACTS, HashMemo(None))
    result = dict(store.result(step))
    splits = read_predictions(store.folder(step) / "predictions.parquet")
    for one in result["scores"]:
        part = splits[one["split"]]
        one["metrics"] = score(one["task"], part.prediction, part.label)
    record(store, next(one for one in steps if one.name == step), fingerprints(steps), result)
    report_again(store)


def drop(store: Store) -> None:
    for seed in (0, 1):
        forge(store, f"finetune/distil-2/rte/seed-{seed}")


def edit(name: str, old: str, new: str) -> Callable[[Store], object]:
    def change(store: Store) -> None:
        text = (store.root / name).read_text()
        assert old in text
        (store.root / name).write_text(text.replace(old, new, 1))

    return change


def missing_task(store: Store) -> None:
    for seed in (0, 1):
        (store.folder(f"finetune/distil-2/mnli/seed-{seed}") / "record.json").unlink()


def missing_predictions(store: Store) -> None:
    (store.folder("finetune/distil-2/mnli/seed-0") / "predictions.parquet").unlink()


def nan_prediction(store: Store) -> None:
    def spoil(prediction):
        prediction[3] = float("nan")
        return prediction

    change_predictions(store, "finetune/distil-2/mnli/seed-0", spoil)


MACRO, SCORE = "distil-2,macro_without_wnli,", "distil-2,rte,validation,0,accuracy,0."
PLANTED: dict[str, tuple[Callable[[Store], object], str]] = {
    "a drop that every table agrees with": (drop, "distil-2: retention 0."),
    "a task that is gone": (missing_task, "the run is incomplete"),
    "predictions that are gone": (missing_predictions, "predictions.parquet"),
    "an edited score": (edit("scores.csv", SCORE, f"{SCORE}9"), "scores.csv: row"),
    "an edited retention": (edit("retention.csv", f"{MACRO}0.", f"{MACRO}0.9"), "retention.csv: row"),
    "an edited summary": (edit("summary.json", '"passed": true', '"passed": false'), "summary.json: gate: passed"),
    "an edited report": (edit("report.md", "distil-2 keeps ", "distil-2 keeps 9"), "report.md, line 1"),
    "a NaN among the predictions": (nan_prediction, "nan"),
    "a NaN in a table": (edit("retention.csv", MACRO, f"{MACRO}nan,"), "retention.csv: row"),
    "a lowered threshold": (edit("config.json", '"min_retention": 0.', '"min_retention": 0.0'), "config.json"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault: str, guarded: Store, tmp_path: Path) -> None:
    store = copy_run(tmp_path, guarded)
    plant, words = PLANTED[fault]
    plant(store)
    found = complaints(store.root)
    assert any(words in line for line in found), found


def test_a_drop_alone_leaves_no_other_complaint(guarded: Store, tmp_path: Path, kept: float) -> None:
    """It is the threshold that finds it, not some other trace."""
    store = copy_run(tmp_path, guarded)
    drop(store)
    assert verify(store.root) == []
    (complaint,) = [line for line in complaints(store.root) if "retention 0." in line and "RTE" not in line]
    assert f"is below {kept - 0.01:g}" in complaint
