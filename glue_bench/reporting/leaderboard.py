"""results/leaderboard.{md,csv}: one row per run and compressed model over all runs and published runs, best first.

It reads summaries alone, so a thousand runs take seconds. A summary that cannot be read, or is not the one that its
run's report wrote, is named below the table, and never stops the others.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from glue_bench.locks import lock
from glue_bench.records import Interval
from glue_bench.reporting.tables import (
    DASH,
    csv_text,
    markdown_table,
    markdown_text,
    percent,
    percent_interval,
    times_interval,
)
from glue_bench.store import RECORD, UNREADABLE, damaged_file, read_record, write_atomic

COLUMNS = (
    "rank", "run", "model", "role", "data", "tasks", "seeds", "complete", "retention", "low", "high", "retention_9",
    "gain_retained", "macro_without_wnli", "teacher_macro_without_wnli", "parameters", "size_reduction",
    "speedup_cpu", "speedup_cpu_low", "speedup_cpu_high", "speedup_cuda", "report",
)  # fmt: skip
LISTED_ROLE = "student"  # the teacher, its weights as released and the majority row are no compressed models
LOCK_WAIT_S = 600.0


def update_leaderboard(results: Path) -> None:
    """Write leaderboard.md and .csv anew from all summaries; processes that end at once take turns."""
    with lock(results / ".leaderboard.lock", wait_s=LOCK_WAIT_S):
        markdown, csv = leaderboard(results)
        write_atomic(results / "leaderboard.md", markdown)
        write_atomic(results / "leaderboard.csv", csv)


def leaderboard(results: Path) -> tuple[str, str]:
    """The leaderboard over results/*/summary.json and results/published/*/summary.json as (Markdown, CSV)."""
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for folder in _run_folders(results):
        try:
            rows += _rows(_summary(folder), folder, results)
        except (*UNREADABLE, TypeError, AttributeError, KeyError):
            unreadable.append(folder.relative_to(results).as_posix())
    rows.sort(key=_best_first)
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
    return _markdown(rows, unreadable), csv_text(COLUMNS, rows)


def _run_folders(results: Path) -> list[Path]:
    """Folders with a summary. A run that was published unchanged is listed once, where it is published."""
    published = {path.parent.name: path.parent for path in sorted((results / "published").glob("[!.]*/summary.json"))}
    here = [path.parent for path in sorted(results.glob("[!.]*/summary.json"))]
    return [*published.values(), *(one for one in here if not _same_summary(one, published.get(one.name)))]


def _same_summary(folder: Path, other: Path | None) -> bool:
    try:
        return other is not None and (folder / "summary.json").read_bytes() == (other / "summary.json").read_bytes()
    except OSError:
        return False


def _summary(folder: Path) -> Any:
    """The content of a run's summary.json. Raises ValueError where the run's report did not write it."""
    if (folder / "report" / RECORD).exists():
        record = read_record(folder / "report") or {"result": {}}
        listed = record["result"].get("files", {}).get("summary.json")
        if listed is None or damaged_file(folder, {"summary.json": listed}):
            raise ValueError("not as the report wrote it")
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def _rows(summary: Mapping[str, Any], folder: Path, results: Path) -> list[dict[str, Any]]:
    models = summary["models"]
    teacher = next((one for one in models.values() if one["role"] == "teacher"), {})
    link = (folder / "report.md").relative_to(results).as_posix()
    rows = []
    for name, model in models.items():
        if model["role"] != LISTED_ROLE:
            continue
        retention, speedup = model.get("retention") or {}, model.get("speedup") or {}
        cpu = speedup.get("cpu") or {}
        row = {
            "run": str(summary["run"]),
            "model": str(name),
            "role": str(model["role"]),
            "data": str(summary["data"]),
            "tasks": len(model.get("retention_tasks", [one for one in summary["tasks"] if one != "wnli"])),
            "seeds": model.get("seeds", summary.get("seeds")),
            "complete": bool(summary["complete"]),
            "retention": retention.get("value"),
            "low": retention.get("low"),
            "high": retention.get("high"),
            "retention_9": (model.get("retention_9") or {}).get("value"),
            "gain_retained": (model.get("gain_retained") or {}).get("value"),
            "macro_without_wnli": model.get("macro_without_wnli"),
            "teacher_macro_without_wnli": teacher.get("macro_without_wnli"),
            "parameters": model.get("parameters"),
            "size_reduction": model.get("size_reduction"),
            "speedup_cpu": cpu.get("value"),
            "speedup_cpu_low": cpu.get("low"),
            "speedup_cpu_high": cpu.get("high"),
            "speedup_cuda": (speedup.get("cuda") or {}).get("value"),
            "report": link,
        }
        rows.append({key: _checked(key, value) for key, value in row.items()})
    return rows


TEXT_COLUMNS = ("run", "model", "role", "data", "report")


def _checked(column: str, value: Any) -> Any:
    """The value, where it is what the column holds; raises ValueError otherwise, so that the summary is set aside."""
    if column in TEXT_COLUMNS or column == "complete" or value is None:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{column} is {value!r}")
    return value


def _best_first(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Best retention first; rows without one after all others, the fastest first; then by name."""
    retention, speedup = row["retention"], row["speedup_cpu"]
    return (
        retention is None,
        -(retention or 0.0),
        -(speedup or 0.0),
        row["run"],
        row["model"],
        row["report"],
    )


def _markdown(rows: list[dict[str, Any]], unreadable: list[str]) -> str:
    headers = (
        "#", "model", "run", "data", "tasks", "seeds", "retention % [95 %]", "gain retained %", "macro of 100",
        "teacher", "smaller by %", "speed-up CPU", "CUDA",
    )  # fmt: skip
    lines = [
        "# Leaderboard",
        "",
        "One row per run and student, best retention first. Retention is the macro over the tasks without WNLI as a "
        "percentage of the teacher's; `tasks` counts those it stands on, `seeds` the fewest on any of them. `data`: "
        "`full` is all of GLUE's rows, `subset` fewer of them, `embedded` the built-in generated tasks, no GLUE "
        "results. Rows on different data or tasks cannot be compared.",
        "",
        markdown_table(headers, (_markdown_row(row) for row in rows), left=4) or "No run has been reported yet.\n",
    ]
    if any(not row["complete"] for row in rows):
        lines.append("\\* incomplete run.\n")
    if unreadable:
        lines.append(f"Left out, edited or unreadable: {', '.join(markdown_text(one) for one in unreadable)}.\n")
    return "\n".join(lines)


def _markdown_row(row: Mapping[str, Any]) -> list[str]:
    label = row["run"].replace("[", "(").replace("]", ")")  # brackets would end the text of the link
    run = markdown_text(label) + ("" if row["complete"] else " \\*")
    return [
        str(row["rank"]),
        markdown_text(row["model"]),
        f"[{run}](<{_link(row['report'])}>)",
        markdown_text(row["data"]),
        str(row["tasks"]),
        DASH if row["seeds"] is None else str(row["seeds"]),
        percent_interval(Interval(row["retention"], row["low"], row["high"])),
        percent(row["gain_retained"]),
        percent(row["macro_without_wnli"]),
        percent(row["teacher_macro_without_wnli"]),
        percent(row["size_reduction"]),
        times_interval(Interval(row["speedup_cpu"], row["speedup_cpu_low"], row["speedup_cpu_high"])),
        times_interval(Interval(row["speedup_cuda"])),
    ]


def _link(path: str) -> str:
    """A relative link target that no folder name can break out of."""
    return quote(path)
