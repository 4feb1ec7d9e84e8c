"""From a run's folder to every file of the report: summary.json, the CSVs, report.md and the figures.

`build` reads and computes; nothing is written here. The report stage writes what it returns, verify compares with it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from glue_bench.reporting.analysis import Analysis, analyse
from glue_bench.reporting.efficiency import COLUMNS as EFFICIENCY_COLUMNS
from glue_bench.reporting.figures import Point, losses_figure, parameters_figure, png, retention_figure, scatter_figure
from glue_bench.reporting.gate import Gate
from glue_bench.reporting.published_numbers import PARAMETERS_MILLIONS
from glue_bench.reporting.quantised import COLUMNS as QUANTISED_COLUMNS
from glue_bench.reporting.quantised import QUANTISED_FILE, quantised_rows
from glue_bench.reporting.report_background import loss_panels, repeat_command
from glue_bench.reporting.report_text import report_text
from glue_bench.reporting.run_folder import RunFolder, load_run
from glue_bench.reporting.summary import RETENTION_COLUMNS, SCORE_COLUMNS, retention_rows, score_rows, summarise
from glue_bench.reporting.tables import csv_text
from glue_bench.tasks import TASKS


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
    tables, finding = build_tables(analysis, command)
    images = {f"figures/{name}": png(draw()) for name, draw in figures_of(analysis).items()}
    return analysis, Report({**tables, **images}, finding, command)


def build_tables(analysis: Analysis, command: str) -> tuple[dict[str, str], str]:
    """(the tables by file name, the finding). Draws nothing; report.md names the figures that there will be."""
    summary = summarise(analysis)
    gate = Gate(summary["gate"]["passed"], tuple(summary["gate"]["reasons"]))
    tables = {
        "summary.json": json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        "scores.csv": csv_text(SCORE_COLUMNS, score_rows(analysis)),
        "retention.csv": csv_text(RETENTION_COLUMNS, retention_rows(analysis)),
        "efficiency.csv": csv_text(EFFICIENCY_COLUMNS, analysis.efficiency),
        "report.md": report_text(analysis, gate, command, tuple(figures_of(analysis))),
    }
    if analysis.quantised:
        rows = quantised_rows(analysis.quantised, analysis.kept_by_int8)
        tables[QUANTISED_FILE] = csv_text(QUANTISED_COLUMNS, rows)
    return tables, summary["finding"]


def figures_of(analysis: Analysis) -> dict[str, Callable[[], Figure]]:
    """File name -> how to draw it, as far as there is something to show."""
    figures: dict[str, Callable[[], Figure]] = {}
    kept = {model: analysis.comparisons[model] for model in analysis.students if model in analysis.comparisons}
    if kept:
        panels = {"macro": {model: found.retention for model, found in kept.items()}}
        for task in analysis.tasks:
            by_model = {model: found.tasks[task].retention for model, found in kept.items() if task in found.tasks}
            panels[TASKS[task].title] = by_model
        figures["retention.png"] = partial(retention_figure, panels)
    timed = {model: analysis.speedups[model]["cpu"] for model in kept}
    points = [Point(model, kept[model].retention, speedup) for model, speedup in timed.items()]
    points = [point for point in points if point.retention.value is not None and point.speedup.value is not None]
    if points:
        figures["retention_speed.png"] = partial(scatter_figure, points)
    if analysis.run.sizes:
        ours = {model: size.encoder / 1e6 for model, size in analysis.run.sizes.items() if model != "as-released"}
        figures["parameters.png"] = partial(parameters_figure, ours, PARAMETERS_MILLIONS)
    if losses := loss_panels(analysis.run):
        figures["losses.png"] = partial(losses_figure, losses)
    return figures
