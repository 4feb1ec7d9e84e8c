"""The leaderboard: best first, every row says what it stands on, and no summary can break it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from synthetic_run import small_run

from glue_bench.reporting.leaderboard import leaderboard, update_leaderboard


def write_summary(folder: Path, retention: float | None, **changes: Any) -> None:
    folder.mkdir(parents=True)
    student = {
        "role": "student",
        "retention": {"value": retention, "low": retention, "high": retention},
        "speedup": {"cpu": {"value": 1.5, "low": 1.4, "high": 1.6}},
    }
    teacher = {"role": "teacher", "macro_without_wnli": 0.8}
    models = {"teacher": teacher, "majority": {"role": "majority"}, "small": student}
    summary = {"run": folder.name, "data": "full", "tasks": ["rte"], "complete": True, "models": models}
    (folder / "summary.json").write_text(json.dumps(summary | changes))


def rows(results: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(leaderboard(results)[1])))


def test_best_retention_first_over_runs_and_published_runs(tmp_path: Path) -> None:
    write_summary(tmp_path / "low", 0.5)
    write_summary(tmp_path / "published" / "high", 0.9, data="subset")
    write_summary(tmp_path / "none", None)
    write_summary(tmp_path / "middle", 0.7, data="embedded", complete=False)
    found = rows(tmp_path)
    assert [(row["rank"], row["run"]) for row in found] == [("1", "high"), ("2", "middle"), ("3", "low"), ("4", "none")]
    assert [row["data"] for row in found] == ["subset", "embedded", "full", "full"]
    assert found[0]["report"] == "published/high/report.md" and found[0]["teacher_macro_without_wnli"] == "0.8"
    markdown = leaderboard(tmp_path)[0]
    assert "[high](<published/high/report.md>)" in markdown and "90.0 [90.0, 90.0]" in markdown
    assert "incomplete run" in markdown


def test_rows_are_students_with_the_number_of_tasks_behind_their_retention(tmp_path: Path) -> None:
    kept = {"value": 0.9, "low": 0.9, "high": 0.9}
    models = {
        "teacher": {"role": "teacher", "retention": None},
        "as-released": {"role": "as-released", "retention": {"value": 1.01, "low": 1.0, "high": 1.02}},
        "whole": {"role": "student", "retention": kept, "retention_tasks": ["sst2", "rte"]},
        "part": {"role": "student", "retention": {**kept, "value": 0.8}, "retention_tasks": ["rte"]},
        "older": {"role": "student", "retention": {**kept, "value": 0.7}},
    }
    write_summary(tmp_path / "run", None, models=models, tasks=["sst2", "rte", "wnli"])
    assert [(row["rank"], row["model"], row["tasks"]) for row in rows(tmp_path)] == [
        ("1", "whole", "2"),
        ("2", "part", "1"),
        ("3", "older", "2"),
    ]


def test_a_run_published_unchanged_is_listed_once(tmp_path: Path) -> None:
    for folder in (tmp_path / "same", tmp_path / "published" / "same"):
        write_summary(folder, 0.9)
    assert [row["report"] for row in rows(tmp_path)] == ["published/same/report.md"]
    (tmp_path / "same" / "summary.json").write_text((tmp_path / "same" / "summary.json").read_text() + " ")
    assert len(rows(tmp_path)) == 2


def test_unreadable_summaries_are_named_and_stop_nothing(tmp_path: Path) -> None:
    write_summary(tmp_path / "good", 0.9)
    for name, content in (
        ("cut", "{"),
        ("list", "[]"),
        ("nan", '{"run": "n", "data": "full", "tasks": [], "complete": true, "models": {"a": {"role": "student", '
                '"retention": {"value": NaN}}}}'),
        ("text", '{"run": "n", "data": "full", "tasks": [], "complete": true, "models": {"a": {"role": "student", '
                 '"retention": {"value": "best"}}}}'),
        ("empty", ""),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(content)
    markdown = leaderboard(tmp_path)[0]
    assert [row["run"] for row in rows(tmp_path)] == ["good"]
    for name in ("cut", "list", "nan", "text", "empty"):
        assert name in markdown.split("unreadable:")[1]


def test_hostile_names_break_neither_table(tmp_path: Path) -> None:
    write_summary(tmp_path / "a>(b) [c]", 0.9, run="x|y\n<b>](z)", data="=1+1")
    markdown, text = leaderboard(tmp_path)
    line = next(line for line in markdown.splitlines() if line.startswith("| 1"))
    assert line.count("|") == 14 and "<b>" not in line and "](z)" not in line and "a%3E%28b%29%20%5Bc%5D" in line
    assert next(csv.DictReader(io.StringIO(text)))["data"] == "'=1+1"


def test_no_run_yet(tmp_path: Path) -> None:
    update_leaderboard(tmp_path)
    assert "No run has been reported yet" in (tmp_path / "leaderboard.md").read_text()
    assert len((tmp_path / "leaderboard.csv").read_text().splitlines()) == 1


def test_the_report_stage_writes_it() -> None:
    results = small_run().results
    assert [row["model"] for row in rows(results)] == ["distil-2", "copied-2"]
    assert (results / "leaderboard.csv").read_text() == leaderboard(results)[1]
    assert (results / "leaderboard.md").read_text() == leaderboard(results)[0]
