"""The gate: judges stored tables against thresholds. It computes nothing, and what it cannot judge has not passed.

WNLI enters no threshold: its dev set is adversarial to its training set, so a model below the majority class is normal
there. A threshold on retention is held against the macro over the tasks without it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glue_bench.config import Check
from glue_bench.errors import UserError
from glue_bench.inputs import read_summary
from glue_bench.records import seal_of
from glue_bench.reporting.run_folder import load_run
from glue_bench.reporting.tables import read_csv
from glue_bench.store import RECORD, damaged_file, read_record
from glue_bench.tasks import TASKS

NOT_JUDGED = "wnli"
BASELINE_FILE = "baseline.json"  # the report's copy of the config's baseline


@dataclass(frozen=True)
class Gate:
    """The verdict. Reasons say what failed, or, where it passed, what was asked."""

    passed: bool
    reasons: tuple[str, ...]


def check_run(
    folder: Path,
    *,
    min_retention: float | None,
    min_task: Mapping[str, float],
    min_speedup: float | None,
    min_size_reduction: float | None,
    judge: str | None,
    baseline: str | None,
) -> Gate:
    """Judge a run's stored tables against its config's thresholds; what is given here replaces those.

    Runs nothing: a run whose tables are missing, incomplete, older than its settings or edited has not passed.
    Raises UserError where the folder or the baseline cannot be read.
    """
    if baseline == "":
        raise UserError("--baseline: the path is empty; give the summary.json of another run, or leave it out")
    thresholds = load_run(folder).config.check
    if thresholds.baseline and baseline is None:
        if not (folder / BASELINE_FILE).is_file():
            return Gate(False, (unread_baseline(thresholds),))
        thresholds = replace(thresholds, baseline=str(folder / BASELINE_FILE))
    given = {
        "min_retention": min_retention,
        "min_speedup": min_speedup,
        "min_size_reduction": min_size_reduction,
        "judge": judge,
        "baseline": baseline,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes["min_task"] = {**thresholds.min_task, **min_task}
    thresholds = replace(thresholds, **changes)
    if doubt := untrusted(folder):
        return Gate(False, (doubt,))
    return judge_folder(folder, thresholds)


def unread_baseline(thresholds: Check) -> str:
    """The reason where the config's baseline could not be read when the report was written."""
    return f"the baseline {thresholds.baseline} could not be read as a summary.json"


def judge_folder(folder: Path, thresholds: Check) -> Gate:
    """Judge the tables that stand in a folder. Raises UserError naming a file that cannot be read."""
    summary = read_summary(folder / "summary.json")
    try:
        rows = read_csv((folder / "retention.csv").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / 'retention.csv'}: {error}; run report again") from None
    stored = read_summary(Path(thresholds.baseline)) if thresholds.baseline else None
    return judge(summary, rows, thresholds, stored)


def untrusted(folder: Path) -> str:
    """Why the tables in a folder cannot be judged; empty where they stand as report wrote them."""
    record = read_record(folder / "report")
    if record is None and (folder / "report" / RECORD).exists():
        return f"{folder / 'report' / RECORD} is unreadable or was edited: report writes it anew"
    if record is None:
        return "the report has not been written yet: run-all or report makes it"
    files = record["result"].get("files", {})
    for name in ("summary.json", "retention.csv"):
        if name not in files:
            return f"{folder / name}: not in the report's record; run report again"
    if damaged := damaged_file(folder, files, hash_all=True):
        return f"{damaged} since the report was written; run report again"
    for step, fingerprint in record["needs"].items():
        now = read_record(folder / step)
        seal = record.get("seals", {}).get(step)
        if now is None:
            return f"{folder / step / RECORD}: missing or unreadable; run the step and report again"
        if now["fingerprint"] != fingerprint or (seal and seal_of(now) != seal):
            return f"{step} was computed anew since the report was written; run report again"
    return ""


def judge(
    summary: Mapping[str, Any],
    retention_rows: Sequence[Mapping[str, Any]],
    thresholds: Check,
    baseline: Mapping[str, Any] | None,
) -> Gate:
    """Judge a summary and the rows of retention.csv (values as text or numbers) against thresholds.

    Every chosen student must meet every threshold. A value that is missing, undefined or not finite fails.
    """
    failures: list[str] = []
    met: list[str] = []
    if not summary.get("complete"):
        failures.append(_incomplete(summary))
    students = thresholds.students or tuple(
        name for name, model in summary["models"].items() if model.get("role") == "student"
    )
    if asks_something(thresholds) and not students:
        failures.append("no student to judge")
    for student in students:
        model = summary["models"].get(student)
        if model is None:
            failures.append(f"{student}: not in the tables")
            continue
        if partial := _partial(summary, model, thresholds):
            failures.append(f"{student}: {partial}")
            continue
        for value, least, what in _demands(student, model, retention_rows, thresholds):
            _hold(student, value, least, what, failures, met)
        if baseline is not None:
            _hold_against(student, model, summary, baseline, thresholds, failures, met)
    if baseline is not None and not thresholds.students:
        gone = [name for name, one in baseline["models"].items() if one.get("role") == "student"]
        failures += [f"{name}: in the baseline, but not in this run" for name in gone if name not in summary["models"]]
    if NOT_JUDGED in thresholds.min_task:
        met.append("wnli is left out of the gate: its dev set is adversarial to its training set")
    if failures:
        return Gate(False, tuple(failures))
    return Gate(True, tuple(met) if asks_something(thresholds) else ("no threshold is set; nothing was asked",))


def asks_something(thresholds: Check) -> bool:
    """Whether any threshold is set."""
    numbers = (thresholds.min_retention, thresholds.min_size_reduction, thresholds.min_speedup)
    return any(one is not None for one in numbers) or bool(thresholds.min_task) or bool(thresholds.baseline)


def _incomplete(summary: Mapping[str, Any]) -> str:
    missing = list(summary.get("missing") or ())
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return f"the run is incomplete; missing: {shown or 'unknown'}"


def _partial(summary: Mapping[str, Any], model: Mapping[str, Any], thresholds: Check) -> str:
    """Why a retention over fewer tasks than the run has meets no threshold; empty where it is over all of them."""
    if thresholds.min_retention is None and not thresholds.baseline:
        return ""
    wanted = [task for task in summary.get("tasks", ()) if task != NOT_JUDGED]
    lacking = [task for task in wanted if task not in model.get("retention_tasks", wanted)]
    if not lacking or not isinstance(_end(model.get("retention"), "value"), float):
        return ""
    return f"retention cannot be judged: it lacks {', '.join(TASKS[task].title for task in lacking)}"


def _demands(
    student: str, model: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], thresholds: Check
) -> list[tuple[Any, float, str]]:
    """(value or why there is none, least, what) for every threshold on one student."""
    demands: list[tuple[Any, float, str]] = []
    end = thresholds.judge
    label = "" if end == "value" else " (lower end of the 95 % interval)"
    if thresholds.min_retention is not None:
        demands.append((_end(model.get("retention"), end), thresholds.min_retention, f"retention{label}"))
    for task, least in thresholds.min_task.items():
        if task != NOT_JUDGED:
            row = next((one for one in rows if one.get("model") == student and one.get("task") == task), None)
            column = "retention" if end == "value" else "low"
            value = _number(row.get(column)) if row else f"{TASKS[task].title} was not run"
            demands.append((value, least, f"{TASKS[task].title} retention{label}"))
    if thresholds.min_size_reduction is not None:
        demands.append((_number(model.get("size_reduction")), thresholds.min_size_reduction, "size reduction"))
    if thresholds.min_speedup is not None:
        speedup = (model.get("speedup") or {}).get("cpu")
        demands.append((_end(speedup, end), thresholds.min_speedup, f"speed-up on CPU{label}"))
    return demands


def _end(interval: Any, end: str) -> Any:
    """The judged end of an interval {value, low, high}, or the reason why there is none."""
    if not isinstance(interval, Mapping):
        return None
    value = _number(interval.get(end))
    return value if value is not None else interval.get("reason") or None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _hold(student: str, value: Any, least: float, what: str, failures: list[str], met: list[str]) -> None:
    if not isinstance(value, float):
        failures.append(f"{student}: {what} cannot be judged: {value or 'no finite value is stored'}")
    elif value < least:
        failures.append(f"{student}: {what} {_exact(value, least)} is below {least:g}")
    else:
        met.append(f"{student}: {what} {value:.4f} is at least {least:g}")


def _exact(value: float, least: float) -> str:
    """Four decimals, or as many as it takes to be seen below the threshold."""
    for digits in (4, 8, 12):
        if float(f"{value:.{digits}f}") < least:
            return f"{value:.{digits}f}"
    return repr(value)


def _hold_against(
    student: str,
    model: Mapping[str, Any],
    summary: Mapping[str, Any],
    baseline: Mapping[str, Any],
    thresholds: Check,
    failures: list[str],
    met: list[str],
) -> None:
    """The student keeps no less than in the baseline, less the tolerance; on the same tasks and kind of data."""
    stored = baseline["models"].get(student)
    if stored is None:
        met.append(f"{student}: not in the baseline")
        return
    for key in ("data", "tasks"):
        if summary.get(key) != baseline.get(key):
            failures.append(f"{student}: no comparison with the baseline: its {key} are {baseline.get(key)}")
            return
    tasks = summary.get("tasks", ())
    lacking = set(model.get("retention_tasks", tasks)) - set(stored.get("retention_tasks", tasks))
    if lacking := [TASKS[task].title for task in tasks if task in lacking]:
        failures.append(f"{student}: no comparison with the baseline: its retention lacks {', '.join(lacking)}")
        return
    before = _end(stored.get("retention"), "value")
    if not isinstance(before, float):
        failures.append(f"{student}: the baseline has no retention for it")
        return
    value = _end(model.get("retention"), "value")
    least = before - thresholds.tolerance
    what = f"retention against the baseline's {before:.4f} less {thresholds.tolerance:g}:"
    _hold(student, value, least, what, failures, met)
