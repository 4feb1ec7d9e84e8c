"""The gate: each threshold, the interval's lower end, the baseline, WNLI left out; what is not known has not passed."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import copy_run, make_run, report_again, settings, small_run

from glue_bench.config import Check
from glue_bench.errors import UserError
from glue_bench.records import sealed
from glue_bench.reporting.gate import Gate, check_run, judge

NOTHING = dict.fromkeys(("min_retention", "min_speedup", "min_size_reduction", "judge", "baseline")) | {"min_task": {}}


def summary(**changes: Any) -> dict[str, Any]:
    student = {
        "role": "student",
        "retention": {"value": 0.96, "low": 0.93, "high": 0.98},
        "retention_tasks": ["rte", "sst2"],
        "size_reduction": 0.394,
        "speedup": {"cpu": {"value": 1.63, "low": 1.58, "high": 1.68}, "cuda": {"value": None, "reason": "no CUDA"}},
    }
    base = {"complete": True, "data": "full", "tasks": ["rte", "sst2", "wnli"], "missing": []}
    return base | {"models": {"teacher": {"role": "teacher"}, "small": student | changes}}


ROWS = [
    {"model": "small", "task": "rte", "retention": "0.9", "low": "0.8"},
    {"model": "small", "task": "wnli", "retention": "0.1", "low": "0.0"},
]


@pytest.mark.parametrize(
    ("thresholds", "passed"),
    [
        ({}, True),
        ({"min_retention": 0.96}, True),
        ({"min_retention": 0.9601}, False),
        ({"min_retention": 0.95, "judge": "low"}, False),
        ({"min_retention": 0.93, "judge": "low"}, True),
        ({"min_task": {"rte": 0.9}}, True),
        ({"min_task": {"rte": 0.91}}, False),
        ({"min_task": {"rte": 0.85}, "judge": "low"}, False),
        ({"min_task": {"sst2": 0.1}}, False),
        ({"min_task": {"wnli": 1.0}}, True),
        ({"min_size_reduction": 0.394}, True),
        ({"min_size_reduction": 0.4}, False),
        ({"min_speedup": 1.6}, True),
        ({"min_speedup": 1.6, "judge": "low"}, False),
        ({"min_retention": 0.5, "students": ("small",)}, True),
        ({"min_retention": 0.5, "students": ("absent",)}, False),
    ],
)
def test_thresholds(thresholds: dict[str, Any], passed: bool) -> None:
    gate = judge(summary(), ROWS, Check(**thresholds), None)
    assert gate.passed is passed
    assert gate.reasons and all(gate.reasons)


def test_every_failure_is_named_with_its_value_and_threshold() -> None:
    thresholds = Check(min_retention=0.97, min_task={"rte": 0.95}, min_speedup=2.0, min_size_reduction=0.5)
    gate = judge(summary(), ROWS, thresholds, None)
    assert len(gate.reasons) == 4
    for words in ("retention 0.9600 is below 0.97", "RTE retention 0.9000 is below 0.95", "speed-up", "size reduction"):
        assert any(words in reason for reason in gate.reasons), words


def test_a_value_just_below_is_seen_to_be_below() -> None:
    value = {"value": 0.95 - 1e-7, "low": 0.9, "high": 1.0}
    gate = judge(summary(retention=value), ROWS, Check(min_retention=0.95), None)
    assert not gate.passed and "0.9500 is" not in gate.reasons[0]


@pytest.mark.parametrize(
    "retention",
    [
        None,
        {},
        {"value": None, "reason": "undefined: the teacher's score is 0"},
        {"value": float("nan")},
        {"value": "x"},
    ],
)
def test_what_is_not_a_number_has_not_passed(retention: Any) -> None:
    gate = judge(summary(retention=retention), ROWS, Check(min_retention=0.0), None)
    assert not gate.passed and "cannot be judged" in gate.reasons[0]


def test_retention_over_fewer_tasks_than_the_run_has_does_not_pass() -> None:
    gate = judge(summary(retention_tasks=["rte"]), ROWS, Check(min_retention=0.5), None)
    assert not gate.passed and "SST-2" in gate.reasons[0]


def test_an_incomplete_run_does_not_pass_and_says_what_is_missing() -> None:
    unfinished = summary() | {"complete": False, "missing": [f"finetune/small/rte/seed-{i}" for i in range(9)]}
    gate = judge(unfinished, ROWS, Check(), None)
    assert not gate.passed and "finetune/small/rte/seed-0" in gate.reasons[0] and "4 more" in gate.reasons[0]


def test_the_baseline() -> None:
    thresholds = Check(baseline="b.json", tolerance=0.01)
    for before, passed in ((0.96, True), (0.969, True), (0.971, False)):
        stored = summary(retention={"value": before, "low": 0.9, "high": 1.0})
        assert judge(summary(), ROWS, thresholds, stored).passed is passed, before
    for change in ({"data": "subset"}, {"tasks": ["rte"]}):
        gate = judge(summary(), ROWS, thresholds, summary() | change)
        assert not gate.passed and "no comparison" in gate.reasons[0]
    gate = judge(summary(), ROWS, thresholds, summary(retention_tasks=["rte"]))  # a part of the tasks: another macro
    assert not gate.passed and "no comparison" in gate.reasons[0] and "SST-2" in gate.reasons[0]
    other = summary()
    other["models"]["another"] = other["models"].pop("small")
    gate = judge(summary(), ROWS, thresholds, other)
    assert not gate.passed and "another" in " ".join(gate.reasons)


def test_check_judges_what_is_stored_with_the_thresholds_given() -> None:
    folder = small_run().root
    kept = json.loads((folder / "summary.json").read_text())["models"]["copied-2"]["retention"]["value"]
    assert check_run(folder, **NOTHING) == Gate(True, ("no threshold is set; nothing was asked",))
    assert check_run(folder, **NOTHING | {"min_retention": kept - 0.01}).passed
    assert not check_run(folder, **NOTHING | {"min_retention": kept + 0.01}).passed
    assert not check_run(folder, **NOTHING | {"min_task": {"rte": 2.0}}).passed
    assert not check_run(folder, **NOTHING | {"min_speedup": 3.0}).passed
    assert check_run(folder, **NOTHING | {"baseline": str(folder / "summary.json")}).passed
    with pytest.raises(UserError, match="absent.json"):
        check_run(folder, **NOTHING | {"baseline": "absent.json"})
    with pytest.raises(UserError, match="--baseline: the path is empty"):  # an unset variable of a CI script
        check_run(folder, **NOTHING | {"baseline": ""})


def test_check_does_not_trust_edited_or_outdated_tables(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    for name in ("summary.json", "retention.csv", "config.json"):
        path = store.root / name
        before = path.read_text()
        path.write_text(before.replace("0.6", "0.9").replace('"An', '"Another'))
        assert path.read_text() != before
        gate = check_run(store.root, **NOTHING | {"min_retention": 0.1})
        assert not gate.passed and name in gate.reasons[0], name
        path.write_text(before)
    assert check_run(store.root, **NOTHING | {"min_retention": 0.1}).passed


def test_check_of_a_run_without_report(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(data={"tasks": ["rte"]}), reported=False)
    gate = check_run(store.root, **NOTHING)
    assert not gate.passed and "report" in gate.reasons[0]
    with pytest.raises(UserError):
        check_run(tmp_path / "nowhere", **NOTHING)


def test_the_configs_baseline_goes_with_the_run(tmp_path: Path) -> None:
    baseline = tmp_path / "before.json"
    baseline.write_bytes((small_run().root / "summary.json").read_bytes())
    tasks = {"data": {"tasks": ["rte", "mnli"]}, "finetune": {"seeds": [0, 1]}}
    store = make_run(tmp_path, settings(check={"baseline": str(baseline)}, **tasks))
    baseline.unlink()
    assert check_run(store.root, **NOTHING).passed
    with pytest.raises(UserError, match="before.json"):
        report_again(store)  # the plan looks for it before anything runs
    (store.root / "baseline.json").unlink()
    gate = check_run(store.root, **NOTHING)
    assert not gate.passed and "baseline" in gate.reasons[0]


def test_a_step_computed_anew_since_the_report_does_not_pass(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    assert check_run(store.root, **NOTHING).passed
    path = store.folder("finetune/distil-2/rte/seed-0") / "record.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(sealed(content | {"fingerprint": "0" * 64})), encoding="utf-8")
    gate = check_run(store.root, **NOTHING)
    assert not gate.passed
    assert gate.reasons[0].startswith("finetune/distil-2/rte/seed-0 was computed anew since the report")
    for damage in (lambda: path.write_text("{"), path.unlink):
        damage()
        gate = check_run(store.root, **NOTHING)
        assert not gate.passed and "seed-0/record.json: missing or unreadable" in gate.reasons[0]
