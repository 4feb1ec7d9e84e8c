"""Percentiles and speed-ups from raw timings, by hand; what was not timed says why."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import copy_run, make_run, settings

from glue_bench.config import Check
from glue_bench.records import Interval, Timing
from glue_bench.reporting.analysis import analyse
from glue_bench.reporting.build import build_tables
from glue_bench.reporting.efficiency import (
    disturbed,
    efficiency_rows,
    latencies,
    paired_ratio,
    speedup_of,
    speedups,
)
from glue_bench.reporting.gate import judge
from glue_bench.reporting.run_folder import RunFolder, load_run
from glue_bench.store import Store

TEACHER = Timing("teacher", "cpu", "a processor", "eager", "fp32", "stsb-pass", 1, 10, (2.0,) * 6, (2.0,) * 6)
STUDENT = replace(TEACHER, model="distil-2", samples_s=(1.0,) * 6, pass_s=(1.0,) * 6, peak_memory_mb=50.0)


def timed(store: Store, *timings: Timing, device: str = "cpu", gpus: tuple[str, ...] = (), **result: Any) -> RunFolder:
    path = store.folder(f"benchmark/{device}") / "record.json"
    path.parent.mkdir(exist_ok=True)
    content = json.loads((store.folder("benchmark/cpu") / "record.json").read_text())
    content["step"] = f"benchmark/{device}"
    content["result"] |= {"timings": [asdict(one) for one in timings], **result}
    content["environment"]["devices"] = gpus
    content.pop("seal", None)
    path.write_text(json.dumps(content))
    return load_run(store.root)


def test_latencies_by_hand() -> None:
    samples = tuple(one / 1000 for one in range(1, 101))
    found = latencies(replace(TEACHER, samples_s=samples, pass_s=(2.0, 3.0), examples=50))
    assert found["mean_ms"] == pytest.approx(50.5) and found["p50_ms"] == pytest.approx(50.5)
    assert found["p90_ms"] == pytest.approx(90.1) and found["p99_ms"] == pytest.approx(99.01)
    assert found["examples_per_second"] == pytest.approx(2 * 50 / 5.0)


def test_speedup_is_against_the_teacher_in_the_same_conditions(tmp_path: Path) -> None:
    batched = replace(STUDENT, batch_size=8, scenario="throughput")
    run = timed(copy_run(tmp_path), TEACHER, STUDENT, batched)
    rows = efficiency_rows(run)
    assert [row["speedup"] for row in rows] == [1.0, 2.0, None]
    assert (rows[1]["speedup_low"], rows[1]["speedup_high"]) == (2.0, 2.0)
    assert rows[1]["mean_ms"] == 1000.0 and rows[1]["peak_memory_mb"] == 50.0
    assert speedups(run, rows, "distil-2")["cpu"].value == 2.0
    assert speedups(run, rows, "copied-2")["cpu"].reason


def test_a_speedup_of_turns_feels_neither_what_slows_both_nor_what_hits_one() -> None:
    """Two turns of 2 and 6 s against 1 and 2 s: a pass is 8 s against 3 s, whatever the machine does meanwhile."""
    teacher, student = np.tile([2.0, 6.0], (6, 1)), np.tile([1.0, 2.0], (6, 1))
    assert paired_ratio(teacher, student, resamples=50, seed=0) == Interval(8 / 3, 8 / 3, 8 / 3)
    drift = np.array([1, 1.5, 3, 1, 2, 1.1])[:, None]
    assert paired_ratio(teacher * drift, student * drift, resamples=50, seed=0).value == pytest.approx(8 / 3)
    spoilt = student.copy()
    spoilt[1, 0], spoilt[4, 1] = 9.0, 7.0  # another process during one turn each
    assert paired_ratio(teacher, spoilt, resamples=50, seed=0).value == pytest.approx(8 / 3)
    ratio_of_medians = np.median(teacher.sum(1)) / np.median((spoilt * drift).sum(1))
    assert ratio_of_medians != pytest.approx(8 / 3, rel=0.05), "what the median of passes would have said"


def test_the_interval_of_turns_holds_the_value_and_shrinks_with_passes() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for passes in (6, 60):
        teacher, student = (scale * rng.normal(1, 0.02, (passes, 4)) for scale in (1.6, 1.0))
        found = paired_ratio(teacher, student, resamples=2000, seed=0)
        assert found.low < found.value < found.high
        assert found.value == pytest.approx(1.6, rel=0.03)
        assert found == paired_ratio(teacher, student, resamples=2000, seed=0)
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_turns_are_used_where_both_have_them_and_passes_elsewhere(tmp_path: Path) -> None:
    teacher = replace(TEACHER, turn_s=(1.0,) * 12)
    student = replace(STUDENT, turn_s=(0.25,) * 12)
    for one, expected in ((student, 4.0), (replace(student, turn_s=()), 2.0), (replace(student, turn_s=(1.0,)), 2.0)):
        assert speedup_of(teacher, one, resamples=10, seed=0).value == expected
    rows = efficiency_rows(timed(copy_run(tmp_path), teacher, student))
    assert [row["speedup"] for row in rows] == [1.0, 4.0]


def test_the_summary_has_the_papers_scenario_and_no_other(tmp_path: Path) -> None:
    other = [replace(one, precision="bf16") for one in (TEACHER, replace(STUDENT, pass_s=(0.1,) * 6))]
    run = timed(copy_run(tmp_path), *other, TEACHER, STUDENT)
    summary = json.loads(build_tables(analyse(run), "")[0]["summary.json"])
    assert summary["models"]["distil-2"]["speedup"]["cpu"]["value"] == 2.0


def test_cuda_is_reported_where_it_was_timed(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    gpu = [replace(one, device="cuda", device_name="a GPU", device_memory_mb=70.0) for one in (TEACHER, STUDENT)]
    tables = build_tables(analyse(timed(store, *gpu, device="cuda")), "")[0]
    assert json.loads(tables["summary.json"])["models"]["distil-2"]["speedup"]["cuda"]["value"] == 2.0
    assert "2.00x [2.00, 2.00] as fast on GPU" in tables["report.md"].splitlines()[0]
    assert "no CUDA device" not in tables["report.md"]


def test_timings_on_cuda_under_other_settings_are_not_reported(tmp_path: Path) -> None:
    """They may come from another machine, which alone could time anew; the CPU's would be of the new settings."""
    store = copy_run(tmp_path)
    assert "benchmark/cuda" in timed(store, replace(TEACHER, device="cuda"), device="cuda").records
    config = json.loads((store.root / "config.json").read_text())
    config["benchmark"]["examples"] += 1
    (store.root / "config.json").write_text(json.dumps(config))
    assert "benchmark/cuda" not in load_run(store.root).records


def test_skipped_rows_say_why(tmp_path: Path) -> None:
    skipped = replace(STUDENT, backend="compile", samples_s=(), pass_s=(), skipped="no C++ compiler | here")
    run = timed(copy_run(tmp_path), TEACHER, STUDENT, skipped)
    tables = build_tables(analyse(run), "")[0]
    assert "cpu compile fp32: no C++ compiler &#124; here (distil-2)" in tables["report.md"]
    assert tables["efficiency.csv"].splitlines()[-1].startswith("distil-2,cpu,compile,fp32,stsb-pass,1,10,,,,,,,,,")


def test_a_long_list_of_models_does_not_cut_the_reason(tmp_path: Path) -> None:
    skipped = replace(STUDENT, backend="compile", samples_s=(), pass_s=(), skipped="no C++ compiler")
    many = [replace(skipped, model=f"student-{number:070}") for number in range(6)]
    report = build_tables(analyse(timed(copy_run(tmp_path), TEACHER, *many)), "")[0]["report.md"]
    assert "cpu compile fp32: no C++ compiler (student-0" in report


def test_few_passes_give_a_speedup_without_an_interval_and_the_reason(tmp_path: Path) -> None:
    few = [replace(one, samples_s=one.samples_s[:4], pass_s=one.pass_s[:4]) for one in (TEACHER, STUDENT)]
    run = timed(copy_run(tmp_path), *few)
    rows = efficiency_rows(run)
    assert [(row["speedup"], row["speedup_low"], row["speedup_high"]) for row in rows] == [
        (1.0, None, None),
        (2.0, None, None),
    ]
    tables = build_tables(analyse(run), "")[0]
    found = json.loads(tables["summary.json"])["models"]["distil-2"]["speedup"]["cpu"]
    assert found == {"value": 2.0, "low": None, "high": None, "reason": "no interval from 4 passes, it takes 6"}
    assert "2.00x as fast on CPU" in tables["report.md"].splitlines()[0]
    assert "no interval from 4 passes" in tables["report.md"]
    thresholds = Check(min_speedup=1.5, judge="low")
    assert judge(json.loads(tables["summary.json"]), [], thresholds, None).reasons[0].endswith("it takes 6")


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"source": "random tokens in the lengths of the STS-B dev set"}, "random tokens in the lengths"),
        ({"source": "the dev set of prepare/glue/stsb"}, "the dev set of prepare/glue/stsb, generated text"),
        ({}, "their source is not in the record"),
    ],
)
def test_the_report_says_what_was_timed_as_the_record_does(
    tmp_path: Path, inputs: dict[str, str], expected: str
) -> None:
    run = timed(copy_run(tmp_path), TEACHER, STUDENT, inputs=inputs)
    report = build_tables(analyse(run), "")[0]["report.md"]
    assert f"10 pairs a pass ({expected}" in report
    assert "a pass over STS-B dev pairs" not in report


def test_a_disturbed_timing_is_a_note(tmp_path: Path) -> None:
    groups = [
        {"scenario": "stsb-pass", "batch_size": 1, "passes": 8, "cores_busy_with_others": 0.2},
        {"scenario": "throughput", "batch_size": 8, "passes": 2, "stopped_by_max_seconds": True},
        {"device": "cpu", "scenario": "fixed-128", "batch_size": 32, "passes": 8, "cores_busy_with_others": 0.54},
        {"device": "cpu", "scenario": "fixed-128", "batch_size": 1, "order": []},
    ]
    run = timed(copy_run(tmp_path), TEACHER, STUDENT, groups=groups)
    notes = list(disturbed(run))
    assert notes == [
        "Timings cut short by benchmark.max_seconds: cpu throughput, batch 8 (2 passes).",
        "Other processes used more than 0.2 cores during these timings: cpu fixed-128, batch 32 (0.54).",
    ]
    report = build_tables(analyse(run), "")[0]["report.md"]
    assert all(f"- {note[:40]}" in report.split("\n## ")[0] for note in notes)


def test_why_there_is_no_speedup(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    run = timed(store, TEACHER, STUDENT, gpus=("NVIDIA H100",))
    assert speedups(run, efficiency_rows(run), "distil-2")["cuda"].reason == "not timed on CUDA"
    run = timed(store, TEACHER, STUDENT)
    assert speedups(run, efficiency_rows(run), "distil-2")["cuda"].reason == "no CUDA device"
    other = replace(run.config.benchmark, backends=("onnx",), precisions=("bf16",))
    reason = speedups(replace(run, config=replace(run.config, benchmark=other)), [], "distil-2")["cpu"].reason
    assert reason == "eager and fp32 are not among the benchmark's settings"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    raw = settings(students=[{"name": "mine", "finetuned": {"rte": str(mine)}}], data={"tasks": ["rte"]})
    run = load_run(make_run(tmp_path, raw, name="own", reported=False).root)
    for device in ("cpu", "cuda"):
        assert "fine-tuned checkpoints only" in speedups(run, [], "mine")[device].reason


def test_a_turn_takes_time() -> None:
    with pytest.raises(ValueError, match="a time of 0 seconds"):
        replace(TEACHER, turn_s=(1.0, 0.0))


def test_exported_forms_show_their_size_and_their_difference(tmp_path: Path) -> None:
    int8 = replace(STUDENT, backend="onnx-int8", precision="int8", bytes_on_disk=3_000_000)
    run = timed(copy_run(tmp_path), TEACHER, STUDENT, replace(int8, largest_logit_difference=0.0125))
    report = build_tables(analyse(run), "")[0]["report.md"]
    line = next(one for one in report.splitlines() if "onnx-int8" in one and "0.013" in one or "0.012" in one)
    assert "3.0" in line
