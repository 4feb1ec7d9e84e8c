"""The report stage: files listed with their hashes, older figures gone, weights pruned as asked, edits noticed."""

import json
import shutil
from pathlib import Path

import pytest
from synthetic_run import FACTS, change_predictions, copy_run, make_run, report_again, settings, small_run

from glue_bench.config import config_from
from glue_bench.inputs import HashMemo
from glue_bench.plan import explain, fingerprints, plan
from glue_bench.reporting.run_folder import load_run
from glue_bench.reporting.scores import score_run
from glue_bench.store import Store, sha256_file

TASKS = {"data": {"tasks": ["rte"]}}


def weights(store: Store, model: str) -> list[int]:
    folders = store.root.glob(f"finetune/{model}/rte/seed-*/weights")
    return sorted(int(folder.parent.name.removeprefix("seed-")) for folder in folders)


def test_every_file_is_listed_with_its_hash() -> None:
    root = small_run().root
    files = small_run().result("report")["files"]
    for name in ("summary.json", "scores.csv", "retention.csv", "efficiency.csv", "report.md", "config.json"):
        assert (
            files[name]["sha256"] == sha256_file(root / name) and files[name]["bytes"] == (root / name).stat().st_size
        )
    assert "figures/retention.png" in files


def test_an_edited_table_makes_the_step_damaged(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    config = config_from(json.loads((store.root / "config.json").read_text()), "config.json")
    steps = plan(config, FACTS, HashMemo(None))
    known = fingerprints(steps)
    report = next(step for step in steps if step.name == "report")
    assert store.state("report", known["report"], explain(report, known)).kind == "done"
    (store.root / "retention.csv").write_text("model\n")
    assert store.state("report", known["report"], explain(report, known)).kind == "damaged"


@pytest.mark.parametrize(("keep", "left"), [("all", 3), ("median", 1), ("none", 0)])
def test_weights_are_kept_as_asked(keep: str, left: int, tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(finetune={"seeds": [0, 1, 2], "keep_weights": keep}, **TASKS))
    for model in ("teacher", "distil-2", "copied-2"):
        kept = weights(store, model)
        assert len(kept) == left
        if keep == "median":
            by_seed = score_run(load_run(store.root)).headlines[model]["rte"].by_seed
            assert by_seed[kept[0]] == sorted(by_seed.values())[1]
    assert store.result("report")["weights_deleted"] == 3 * (3 - left)
    assert len(list(store.root.glob("finetune/*/rte/seed-*/predictions.parquet"))) == 10


def test_raised_keep_weights_says_what_is_gone_and_how_to_have_it(tmp_path: Path, capsys) -> None:
    changes = {"students": [], "teacher": {"layers": 1}, **TASKS}
    store = make_run(tmp_path, settings(finetune={"seeds": [0, 1, 2], "keep_weights": "median"}, **changes))
    (kept,) = weights(store, "teacher")
    assert store.result("report")["weights_missing"] == [] and capsys.readouterr().err == ""
    path = store.root / "config.json"
    for keep, missing in (("all", 2), ("none", 0), ("median", 1)):
        raw = json.loads(path.read_text())
        raw["finetune"]["keep_weights"] = keep
        path.write_text(json.dumps(raw))
        report_again(store)
        gone = store.result("report")["weights_missing"]
        assert len(gone) == missing
        said = capsys.readouterr().err
        assert f"keep_weights = {keep} keeps the weights of {gone[0]}" in said if gone else said == ""
    assert gone == [f"finetune/teacher/rte/seed-{kept}"]


def test_where_the_medians_weights_are_gone_the_closest_are_kept(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(finetune={"seeds": [0, 1, 2], "keep_weights": "all"}, **TASKS))
    spread = score_run(load_run(store.root)).headlines["teacher"]["rte"]
    shutil.rmtree(store.root / f"finetune/teacher/rte/seed-{spread.median_seed}/weights")
    path = store.root / "config.json"
    path.write_text(path.read_text().replace('"keep_weights": "all"', '"keep_weights": "median"'))
    report_again(store)
    (kept,) = weights(store, "teacher")
    distance = {seed: abs(score - spread.median) for seed, score in spread.by_seed.items()}
    assert distance[kept] == sorted(distance.values())[1]


def test_an_unfinished_row_keeps_its_weights(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(**TASKS), without=lambda step: step == "finetune/distil-2/rte/seed-2")
    assert weights(store, "distil-2") == [0, 1] and len(weights(store, "teacher")) == 1


def test_a_new_report_replaces_the_old_one(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(**TASKS))
    (store.root / "figures" / "old.png").write_bytes(b"old")
    before = (store.root / "scores.csv").read_text()
    change_predictions(store, "finetune/distil-2/rte/seed-0", lambda prediction: 1 - prediction)
    report_again(store)
    assert not (store.root / "figures" / "old.png").exists()
    assert (store.root / "scores.csv").read_text() != before
    board = (store.results / "leaderboard.csv").read_text()
    kept = json.loads((store.root / "summary.json").read_text())["models"]["distil-2"]["retention"]["value"]
    assert repr(kept) in board


def test_the_runs_own_baseline_is_not_deleted(tmp_path: Path) -> None:
    """Kept where the report puts its copy, the user's file is its own copy."""
    baseline = tmp_path / "synthetic" / "baseline.json"
    baseline.parent.mkdir()
    baseline.write_bytes((small_run().root / "summary.json").read_bytes())
    store = make_run(tmp_path, settings(check={"baseline": str(baseline)}, **TASKS))
    assert store.root == baseline.parent
    assert baseline.read_bytes() == (small_run().root / "summary.json").read_bytes()
