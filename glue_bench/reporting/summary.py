"""summary.json and the CSV tables: an Analysis as data for scripts. Fractions, never percent; null where undefined."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from glue_bench.errors import UserError
from glue_bench.inputs import read_summary
from glue_bench.records import Interval
from glue_bench.reporting.analysis import Analysis
from glue_bench.reporting.finding import finding
from glue_bench.reporting.gate import BASELINE_FILE, Gate, judge, unread_baseline
from glue_bench.reporting.run_folder import RunFolder
from glue_bench.reporting.statistics import MACRO_ROWS, Retention

SCORE_COLUMNS = ("model", "task", "split", "seed", "metric", "value")
RETENTION_COLUMNS = (
    "model", "task", "score", "teacher_score", "retention", "low", "high", "gain_retained", "p_value", "n_seeds",
)  # fmt: skip
NOT_TIMED = Interval(None, reason="not timed")


def summarise(analysis: Analysis) -> dict[str, Any]:
    """The content of summary.json, the gate's verdict included."""
    run = analysis.run
    summary: dict[str, Any] = {
        "run": run.name,
        "config": run.config.name,
        "title": run.config.title,
        "complete": run.complete,
        "missing": list(run.missing),
        "data": run.data,
        "tasks": list(analysis.tasks),
        "seeds": analysis.fewest_seeds or None,
        "teacher": analysis.teacher,
        "environment": run.environment,
        "finding": finding(analysis),
        "models": {model: _model(analysis, model, role) for model, role in run.roles.items()},
    }
    gate = verdict(run, summary, list(retention_rows(analysis)))
    return summary | {"gate": {"passed": gate.passed, "reasons": list(gate.reasons)}}


def verdict(run: RunFolder, summary: dict[str, Any], rows: list[dict[str, Any]]) -> Gate:
    """The gate with the config's thresholds and the report's own copy of the baseline.

    A baseline that could not be read fails it, with the reason.
    """
    thresholds = run.config.check
    try:
        baseline = read_summary(run.root / BASELINE_FILE) if thresholds.baseline else None
    except UserError:
        return Gate(False, (unread_baseline(thresholds),))
    return judge(summary, rows, thresholds, baseline)


def _model(analysis: Analysis, model: str, role: str) -> dict[str, Any]:
    scores, size = analysis.scores, analysis.run.sizes.get(model)
    known = scores.headlines.get(model, {})
    comparison = analysis.comparisons.get(model)
    timed = analysis.speedups.get(model, {})
    undefined = Interval(None, reason=analysis.why_no_retention(model)) if comparison is None else None
    return {
        "role": role,
        "parameters": size.encoder if size else None,
        "parameters_with_head": size.parameters if size else None,
        "bytes": size.bytes if size else None,
        "scores": {task: known[task].median for task in analysis.tasks if task in known},
        "mean_scores": {task: known[task].mean for task in analysis.tasks if task in known},
        "macro": scores.macro(model, analysis.tasks, means=False),
        "macro_without_wnli": scores.macro(model, analysis.main_tasks, means=False),
        "retention": interval_json(undefined or comparison.retention),
        "retention_9": interval_json(undefined or comparison.retention_9),
        "gain_retained": interval_json(undefined or comparison.gain_retained),
        "retention_tasks": list(comparison.macro.tasks) if comparison and comparison.macro else [],
        "seeds": analysis.seeds_behind(model)[0] or None,
        "size_reduction": analysis.size_reduction(model),
        "speedup": {device: interval_json(timed.get(device, NOT_TIMED)) for device in ("cpu", "cuda")},
    }


def interval_json(interval: Interval) -> dict[str, Any]:
    """{value, low, high}, and the reason where the value is undefined."""
    plain = asdict(interval)
    return plain if plain["reason"] else {key: plain[key] for key in ("value", "low", "high")}


def score_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Rows of scores.csv: every metric of every model, task, dev split and seed."""
    for one in analysis.scores.scores:
        for metric, value in one.metrics.items():
            place = {"model": one.model, "task": one.task, "split": one.split, "seed": one.seed}
            yield place | {"metric": metric, "value": value}


def retention_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Rows of retention.csv: means over seeds, per task and for both macros, of every row but the teacher's."""
    for model, found in analysis.comparisons.items():
        rows: dict[str, Retention | None] = dict(found.tasks)
        rows |= dict(zip(MACRO_ROWS, (found.macro, found.macro_9), strict=True))
        for name, row in rows.items():
            if row is not None:
                yield {
                    "model": model,
                    "task": name,
                    "score": row.score,
                    "teacher_score": row.teacher_score,
                    "retention": row.retention.value,
                    "low": row.retention.low,
                    "high": row.retention.high,
                    "gain_retained": row.gain_retained.value,
                    "p_value": row.p_value,
                    "n_seeds": row.n_seeds,
                }
