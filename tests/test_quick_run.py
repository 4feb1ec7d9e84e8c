"""The README's main job, run once as a user would: what it leaves, and what the other commands make of it.

All tests of that run are in this file: a file's tests stay in one process, so that it runs once.
"""

import json
import shutil
from pathlib import Path

import pytest
from conftest import run_cli
from test_retention import complaints

from glue_bench.reporting.analysis import analyse
from glue_bench.reporting.run_folder import load_run
from glue_bench.reporting.summary import retention_rows


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one undisturbed `run-all --config quick`, shared by these tests (minutes)."""
    results = tmp_path_factory.mktemp("quick-results")
    done = run_cli("run-all", "--config", "quick", "--results", str(results), "--debug", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    (results / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    return results / "quick"


@pytest.mark.slow
def test_finished_run_is_a_no_op_and_prints_its_headline(quick_run: Path) -> None:
    first = (quick_run.parent / "stdout.txt").read_text(encoding="utf-8").splitlines()
    done = run_cli("run-all", "--config", "quick", "--results", str(quick_run.parent))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("nothing to compute" in line for line in lines)
    finding = (quick_run / "report.md").read_text(encoding="utf-8").splitlines()[0]
    assert lines[-1] == first[-1] == finding.rstrip(".")


@pytest.mark.slow
def test_contract_files_and_columns(quick_run: Path) -> None:
    summary = json.loads((quick_run / "summary.json").read_text(encoding="utf-8"))
    assert {"run", "config", "complete", "data", "environment", "gate", "models"} <= set(summary)
    assert summary["complete"] is True and summary["data"] == "embedded" and summary["gate"]["passed"] is True
    wanted = {"role", "parameters", "bytes", "scores", "macro", "macro_without_wnli", "retention", "retention_9"}
    for model in summary["models"].values():
        assert wanted | {"gain_retained", "size_reduction", "speedup"} <= set(model)
    columns = {
        "scores.csv": "model,task,split,seed,metric,value",
        "retention.csv": "model,task,score,teacher_score,retention,low,high,gain_retained,p_value,n_seeds",
        "efficiency.csv": "model,device,backend,precision,scenario,batch_size,examples,mean_ms,p50_ms,p90_ms,p99_ms,"
        "examples_per_second,speedup,speedup_low,speedup_high,peak_memory_mb,device_memory_mb",
    }
    for name, header in columns.items():
        assert (quick_run / name).read_text(encoding="utf-8").splitlines()[0] == header
    assert list((quick_run / "figures").glob("*.png"))
    assert "embedded" in (quick_run / "report.md").read_text(encoding="utf-8")[:2000]


@pytest.mark.slow
def test_check_judges_what_is_stored(quick_run: Path) -> None:
    results = str(quick_run.parent)
    assert run_cli("check", "--run", "quick", "--results", results, "--min-retention", "0.1").returncode == 0
    failed = run_cli("check", "--run", "quick", "--results", results, "--min-retention", "1.0", "--judge", "low")
    assert failed.returncode == 1 and "gate:" in failed.stdout


@pytest.mark.slow
def test_verify_and_publish(quick_run: Path, tmp_path: Path) -> None:
    verified = run_cli("verify", "quick", "--results", str(quick_run.parent))
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.slow
def test_a_new_report_is_judged_anew(quick_run: Path, tmp_path: Path) -> None:
    """The verdict belongs to the very report that it judged: an older one would not verify."""
    shutil.copytree(quick_run, tmp_path / "quick")
    for verb in (["report", "--config", "quick"], ["verify", "quick"]):
        done = run_cli(*verb, "--results", str(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_fresh_quick_run(quick_run: Path) -> None:
    assert complaints(quick_run) == []
    rows = list(retention_rows(analyse(load_run(quick_run))))
    assert {row["task"] for row in rows} >= {"macro_without_wnli", "macro", "cola", "mnli"}
