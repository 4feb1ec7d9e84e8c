"""Size and speed of every row against the teacher's: percentiles and speed-ups derived from raw timings."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from glue_bench.records import Interval, Timing
from glue_bench.reporting.run_folder import RunFolder, has_weights, network_of
from glue_bench.reporting.statistics import ratio_interval

COLUMNS = (
    "model", "device", "backend", "precision", "scenario", "batch_size", "examples", "mean_ms", "p50_ms", "p90_ms",
    "p99_ms", "examples_per_second", "speedup", "speedup_low", "speedup_high", "peak_memory_mb", "device_memory_mb",
)  # fmt: skip
CELLS = 1 << 21  # ratios held at once while resampling
LEAST_PASSES = 6  # of an interval: the percentiles of fewer are little more than the fastest and the slowest pass
BUSY_CORES = 0.2  # of other processes, above which the report names a timing
PAPER_SCENARIO = {"scenario": "stsb-pass", "batch_size": 1, "precision": "fp32", "backend": "eager"}


def efficiency_rows(run: RunFolder) -> list[dict[str, Any]]:
    """One row per timing, skipped ones too (with the reason under `skipped`, which the CSV does not have)."""
    teacher = {_conditions(one): one for one in run.timings if one.model == run.config.teacher.name}
    return [_row(run, one, teacher.get(_conditions(one))) for one in run.timings]


def speedups(run: RunFolder, rows: list[dict[str, Any]], model: str) -> dict[str, Interval]:
    """Device -> speed-up in the paper's scenario (stsb-pass, batch 1, fp32, eager) of a model's network."""
    found = {}
    for device in ("cpu", "cuda"):
        wanted = PAPER_SCENARIO | {"device": device, "model": network_of(run.config, model)}
        row = next((one for one in rows if all(one[key] == value for key, value in wanted.items())), None)
        if row is None:
            found[device] = Interval(None, reason=_why_not_timed(run, device, model))
        elif row["speedup"] is None:
            found[device] = Interval(None, reason=row["skipped"] or "the teacher was not timed in this scenario")
        else:
            found[device] = Interval(row["speedup"], row["speedup_low"], row["speedup_high"], row["no_interval"])
    return found


def _why_not_timed(run: RunFolder, device: str, model: str) -> str:
    if not has_weights(run.config, model):
        return f"{model} is given as fine-tuned checkpoints only, which are not timed"
    if f"benchmark/{device}" in run.records:
        benchmark = run.config.benchmark
        asked = {"stsb-pass": benchmark.scenarios, "eager": benchmark.backends, "fp32": benchmark.precisions}
        if lacking := [name for name, among in asked.items() if name not in among]:
            return f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not among the benchmark's settings"
        return "not timed in this scenario"
    if device == "cpu":
        return "benchmark was not run"
    has_gpu = any(json.loads(one).get("devices") for one in run.environments)
    return "not timed on CUDA" if has_gpu else "no CUDA device"


def timed_inputs(run: RunFolder) -> str:
    """What a pass of the paper's scenario ran over, as the records say it: number of examples and their source."""
    found = {}
    for one in run.timings:
        if one.scenario == PAPER_SCENARIO["scenario"] and one.pass_s:
            inputs = run.result(f"benchmark/{one.device.partition(':')[0]}").get("inputs") or {}
            source = inputs.get("source", "their source is not in the record")
            if run.config.data.glue == "embedded" and source.startswith("the dev set"):
                source += ", generated text"
            found[f"{one.examples} pairs a pass ({source})"] = None
    return "; ".join(found) or "not timed in this run"


def disturbed(run: RunFolder) -> Iterator[str]:
    """A note on the timings that max_seconds cut short, and one on those during which others used the machine."""
    groups = [
        (f"{one.get('device', device)} {one['scenario']}, batch {one['batch_size']}", one)
        for device in ("cpu", "cuda")
        for one in run.result(f"benchmark/{device}").get("groups", ())
    ]
    if cut := [f"{name} ({one['passes']} passes)" for name, one in groups if one.get("stopped_by_max_seconds")]:
        yield f"Timings cut short by benchmark.max_seconds: {'; '.join(cut)}."
    busy = [(name, one.get("cores_busy_with_others") or 0.0) for name, one in groups]
    if loud := [f"{name} ({cores:.2f})" for name, cores in busy if cores > BUSY_CORES]:
        yield f"Other processes used more than {BUSY_CORES} cores during these timings: {'; '.join(loud)}."


def _conditions(one: Timing) -> tuple[Any, ...]:
    return (one.device, one.device_name, one.backend, one.precision, one.scenario, one.batch_size, one.examples)


def _row(run: RunFolder, one: Timing, teacher: Timing | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {name: getattr(one, name) for name in COLUMNS[:7]}
    row |= {"peak_memory_mb": one.peak_memory_mb, "device_memory_mb": one.device_memory_mb}
    row |= {
        "skipped": one.skipped,
        "bytes_on_disk": one.bytes_on_disk,
        "largest_logit_difference": one.largest_logit_difference,
        "passes": len(one.pass_s),
        "threads": one.threads,
        "no_interval": "",
    }
    if one.skipped or not one.samples_s:
        return row | {"skipped": one.skipped or "no samples"}
    row |= latencies(one)
    if teacher is not None and not teacher.skipped and len(teacher.pass_s) == len(one.pass_s) and one.pass_s:
        settings = run.config.report
        speedup = speedup_of(teacher, one, resamples=settings.resamples, seed=settings.seed)
        row |= {"speedup": speedup.value, "speedup_low": speedup.low, "speedup_high": speedup.high}
        if len(one.pass_s) < LEAST_PASSES:
            few = f"no interval from {len(one.pass_s)} passes, it takes {LEAST_PASSES}"
            row |= {"speedup_low": None, "speedup_high": None, "no_interval": few}
    return row


def latencies(one: Timing) -> Mapping[str, float]:
    """Mean and percentiles in milliseconds per call, and examples per second over all passes."""
    samples_ms = 1000 * np.asarray(one.samples_s, dtype=float)
    p50, p90, p99 = np.percentile(samples_ms, (50, 90, 99))
    return {
        "mean_ms": float(samples_ms.mean()),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "examples_per_second": one.examples * len(one.pass_s) / float(np.sum(one.pass_s)),
    }


def speedup_of(teacher: Timing, student: Timing, *, resamples: int, seed: int) -> Interval:
    """Teacher time / student time from what were partners in the interleaved measurement: turns, or else passes."""
    if teacher.model == student.model:
        return Interval(1.0, 1.0, 1.0)
    if teacher.turn_s and len(teacher.turn_s) == len(student.turn_s):
        turns = (np.reshape(one.turn_s, (len(one.pass_s), -1)) for one in (teacher, student))
        return paired_ratio(*turns, resamples=resamples, seed=seed)
    return ratio_interval(teacher.pass_s, student.pass_s, resamples=resamples, seed=seed)


def paired_ratio(teacher: np.ndarray, student: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """Speed-up from seconds of turns (passes, turns): those in the same place are the same calls, one after the other.

    A turn's ratio does not feel what slowed both (clocks, a neighbour's load); the median over passes leaves out what
    hit one of the two. With a load of eight on two cores values from four passes spread by 2.6 % so, ratios of median
    passes by 4.3 %, of fastest passes by 11 %. Turns have different inputs, so their medians are averaged by the
    student's time in them: the value is then the ratio of two whole passes. The 95 % interval resamples passes.
    """
    ratios = teacher / student
    weights = np.median(student, axis=0) / np.median(student, axis=0).sum()
    value = float(np.median(ratios, axis=0) @ weights)
    passes = len(ratios)
    at_once = max(1, CELLS // ratios.size)
    rng = np.random.default_rng(seed)
    drawn = [
        np.median(ratios[rng.integers(0, passes, size=(min(at_once, resamples - first), passes))], axis=1) @ weights
        for first in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    return Interval(value, float(low), float(high))
