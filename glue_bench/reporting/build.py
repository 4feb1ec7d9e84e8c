"""From a run's folder to every file of the report: summary.json, the CSVs, report.md and the figures.

`build` reads and computes; nothing is written here. The report stage writes what it returns, verify compares with it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from glue_bench.reporting.analysis import Analysis, analyse
from glue_bench.reporting.efficiency import COLUMNS as EFFICIENCY_COLUMNS
from glue_bench.reporting.figures import Point, losses_figure, parameters_figure, retention_figure, scatter_figure
from glue_bench.reporting.gate import Gate
from glue_bench.reporting.published_numbers import PARAMETERS_MILLIONS
from glue_bench.reporting.report_background import loss_panels, repeat_command
from glue_bench.reporting.report_text import report_text
from glue_bench.reporting.run_folder import RunFolder, load_run
from glue_bench.reporting.summary import RETENTION_COLUMNS, SCORE_COLUMNS, retention_rows, score_rows, summarise
from glue_bench.reporting.tables import csv_text
from glue_bench.tasks import TASKS

TABLES = ("summary.json", "scores.csv", "retention.csv", "efficiency.csv", "report.md")


@dataclass(frozen=True)
class Report:
    """Every file of the report by its name relative to the run's folder, the finding, and the command to repeat."""

    files: dict[str, str | bytes]
    finding: str
    command: str


def build(folder: Path) -> dict[str, str | bytes]:
    """Every file of the report on a run's folder. Raises UserError or StepError naming what is missing or damaged."""
    run = load_run(folder)
    return analyse_and_build(run, command=repeat_command(run))[1].files


def analyse_and_build(run: RunFolder, *, command: str) -> tuple[Analysis, Report]:
    """The analysis of a loaded run, and its report."""
    analysis = analyse(run)
    figures = build_figures(analysis)
    tables, finding = build_tables(analysis, command, tuple(figures))
    images = {f"figures/{name}": image for name, image in figures.items()}
    return analysis, Report({**tables, **images}, finding, command)


def build_tables(analysis: Analysis, command: str, figures: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """(the tables by file name, the finding); `figures` are named in report.md."""
    summary = summarise(analysis)
    gate = Gate(summary["gate"]["passed"], tuple(summary["gate"]["reasons"]))
    tables = {
        "summary.json": json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        "scores.csv": csv_text(SCORE_COLUMNS, score_rows(analysis)),
        "retention.csv": csv_text(RETENTION_COLUMNS, retention_rows(analysis)),
        "efficiency.csv": csv_text(EFFICIENCY_COLUMNS, analysis.efficiency),
        "report.md": report_text(analysis, gate, command, figures),
    }
    return tables, summary["finding"]


def build_figures(analysis: Analysis) -> dict[str, bytes]:
    """Figures by file name, as far as there is something to show."""
    figures: dict[str, bytes] = {}
    panels = {}
    if any(model in analysis.comparisons for model in analysis.students):
        found = {model: analysis.comparisons[model] for model in analysis.students if model in analysis.comparisons}
        panels["macro"] = {model: one.retention for model, one in found.items()}
        for task in analysis.tasks:
            panels[TASKS[task].title] = {
                model: f.tasks[task].retention for model, f in found.items() if task in f.tasks
            }
        figures["retention.png"] = retention_figure(panels)
    points = [
        Point(model, analysis.retention(model), analysis.speedups[model]["cpu"])
        for model in analysis.students
        if analysis.retention(model).value is not None and analysis.speedups[model]["cpu"].value is not None
    ]
    if points:
        figures["retention_speed.png"] = scatter_figure(points)
    if analysis.run.sizes:
        ours = {model: size.encoder / 1e6 for model, size in analysis.run.sizes.items() if model != "as-released"}
        figures["parameters.png"] = parameters_figure(ours, PARAMETERS_MILLIONS)
    if losses := loss_panels(analysis.run):
        figures["losses.png"] = losses_figure(losses)
    return figures
