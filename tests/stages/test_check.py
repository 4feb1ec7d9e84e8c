"""The check stage judges the report's tables with the config's thresholds; a failed gate is a verdict, not an error."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import make_run, settings, small_run

TASKS = {"data": {"tasks": ["rte"]}, "finetune": {"seeds": [0]}}


def test_without_thresholds_it_passes_and_says_so() -> None:
    assert small_run().result("check") == {"passed": True, "reasons": ["no threshold is set; nothing was asked"]}


@pytest.mark.parametrize(
    ("thresholds", "passed"),
    [
        ({"min_retention": 0.01}, True),
        ({"min_retention": 1.0, "judge": "low"}, False),
        ({"min_task": {"rte": 0.01}}, True),
        ({"min_task": {"sst2": 0.01}}, False),
        ({"min_size_reduction": 0.3}, True),
        ({"min_size_reduction": 0.5}, False),
        ({"min_speedup": 1.2}, True),
        ({"min_speedup": 9.0}, False),
        ({"min_speedup": 9.0, "students": []}, False),
    ],
)
def test_the_configs_thresholds(thresholds: dict[str, Any], passed: bool, tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(check=thresholds, **TASKS))
    verdict = store.result("check")
    assert verdict["passed"] is passed
    assert json.loads((store.root / "summary.json").read_text())["gate"] == verdict
    report = (store.root / "report.md").read_text()
    assert ("**Failed.**" in report) is not passed


def test_an_incomplete_run_fails(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(**TASKS), without=lambda step: step == "finetune/teacher/rte/seed-0")
    verdict = store.result("check")
    assert verdict["passed"] is False and "finetune/teacher/rte/seed-0" in verdict["reasons"][0]
