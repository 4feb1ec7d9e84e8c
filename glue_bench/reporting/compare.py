"""compare: what changed between two runs in settings, environment, scores, retention, size and speed."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glue_bench.config import plain
from glue_bench.records import Interval
from glue_bench.reporting.analysis import Analysis, analyse, macro_name
from glue_bench.reporting.retention import model_predictions
from glue_bench.reporting.run_folder import load_intact_run
from glue_bench.reporting.statistics import DifferenceResult, ModelPredictions, difference, retention_change
from glue_bench.reporting.tables import (
    DASH,
    markdown_table,
    markdown_text,
    number,
    percent,
    percent_interval,
    points_interval,
    times_interval,
)
from glue_bench.tasks import TASKS

ABSENT = "(none)"
Pair = tuple[ModelPredictions, ModelPredictions]  # of one run: teacher, student
CHANGE_NOTE = (
    "A's and B's intervals are each run's own: whether they overlap is no test of the change, whose interval is paired "
    "by example and needs the same examples and tasks in both."
)


def compare(first: Path, second: Path) -> str:
    """What changed from the first run to the second, as Markdown.

    Raises UserError where a folder holds no run, or a damaged one.
    """
    runs = [analyse(load_intact_run(folder)) for folder in (first, second)]
    sections = [
        ("Settings", _changes(*(_flat(plain(one.run.config)) for one in runs))),
        ("Environment", _changes(*(_flat(one.run.environment) for one in runs))),
        ("Scores", _scores(*runs)),
        ("Retention", _retention(*runs)),
        ("Size and speed", _efficiency(*runs)),
    ]
    head = [_head(name, one) for name, one in zip("AB", runs, strict=True)]
    body = [f"## {title}\n\n{text or 'No difference.'}".rstrip() for title, text in sections]
    return "\n\n".join(["\n".join(head), *body])


def _head(name: str, one: Analysis) -> str:
    run = one.run
    state = "complete" if run.complete else f"incomplete, {len(run.missing)} steps missing"
    return f"{name}: {markdown_text(str(run.root))} (config {run.config.name}, data {run.data}, {state})"


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Nested plain data as key path -> JSON text; rows of students by their names."""
    if isinstance(value, Mapping) and value:
        return {k: v for key, one in value.items() for k, v in _flat(one, f"{path}.{key}" if path else key).items()}
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "name" in one for one in value):
        return {k: v for one in value for k, v in _flat(one, f"{path}.{one['name']}").items()}
    return {path: json.dumps(value, ensure_ascii=False)}


def _changes(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    rows = [
        [markdown_text(key), markdown_text(first.get(key, ABSENT)), markdown_text(second.get(key, ABSENT))]
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]
    return markdown_table(["", "A", "B"], rows, left=3)


def _shared(first: Analysis, second: Analysis) -> Iterator[tuple[str, str, str]]:
    """(label, row of A, row of B): rows of the same name, and the teachers whatever their names."""
    if first.teacher != second.teacher:
        yield f"{first.teacher} / {second.teacher}", first.teacher, second.teacher
    for model in first.run.roles:
        if model in second.run.roles:
            yield model, model, model


def _scores(first: Analysis, second: Analysis) -> str:
    """Means over seeds of each shared row, and B - A with its interval where both runs have the same examples."""
    models = [model_predictions(one.scores) for one in (first, second)]
    rows, notes = [], []
    for label, one, other in _shared(first, second):
        if one not in models[0] or other not in models[1]:
            continue
        shared = [task for task in first.tasks if task in models[0][one].tasks and task in models[1][other].tasks]
        if not shared:
            continue
        settings = first.run.config.report
        try:
            found = difference(models[1][other], models[0][one], resamples=settings.resamples, seed=settings.seed)
        except ValueError as error:
            notes.append(f"- {markdown_text(label)}: no intervals: {markdown_text(str(error))}")
            found = None
        rows += list(_score_rows(label, one, other, shared, first, second, found))
    table = markdown_table(["model", "task", "A", "B", "B - A [95 %]", "p"], rows, left=2)
    only = [_only("A", first, second), _only("B", second, first)]
    return "\n".join([table, *notes, *(line for line in only if line)]).rstrip("\n")


def _score_rows(
    label: str,
    one: str,
    other: str,
    shared: list[str],
    first: Analysis,
    second: Analysis,
    found: DifferenceResult | None,
) -> Iterator[list[str]]:
    for task in shared:
        values = first.scores.headlines[one][task].mean, second.scores.headlines[other][task].mean
        row = found.tasks[task] if found else None
        delta = Interval(values[1] - values[0]) if row is None else row.difference
        p_value = DASH if row is None else f"{row.p_value:.4f}"
        yield [markdown_text(label), TASKS[task].title, *map(percent, values), points_interval(delta), p_value]
    if found and found.macro:
        macro = found.macro
        values = percent(macro.score_b), percent(macro.score_a)
        name = macro_name(macro.tasks)
        yield [markdown_text(label), f"**{name}**", *values, points_interval(macro.difference), f"{macro.p_value:.4f}"]


def _only(name: str, here: Analysis, there: Analysis) -> str:
    rows = [model for model in here.run.roles if model not in there.run.roles and model != here.teacher]
    return f"- only in {name}: {', '.join(map(markdown_text, rows))}" if rows else ""


def _retention(first: Analysis, second: Analysis) -> str:
    models = [model_predictions(one.scores) for one in (first, second)]
    rows = []
    for label, one, other in _shared(first, second):
        if one in first.comparisons and other in second.comparisons:
            kept, now = first.comparisons[one], second.comparisons[other]
            change = DASH
            if kept.retention.value is not None and now.retention.value is not None:
                change = points_interval(Interval(now.retention.value - kept.retention.value))
                if kept.macro and now.macro and kept.macro.tasks == now.macro.tasks:
                    before = models[0][first.teacher], models[0][one]
                    after = models[1][second.teacher], models[1][other]
                    change = _change(before, after, first) or change
            gains = percent_interval(kept.gain_retained), percent_interval(now.gain_retained)
            both = percent_interval(kept.retention), percent_interval(now.retention)
            rows.append([markdown_text(label), *both, change, *gains])
    headers = [
        "model", "A, % [95 %]", "B, % [95 %]", "change, points [95 %]", "gain retained A, %", "gain retained B, %",
    ]  # fmt: skip
    table = markdown_table(headers, rows)
    return f"{table}\n{CHANGE_NOTE}" if rows else ""


def _change(before: Pair, after: Pair, first: Analysis) -> str:
    """The change of retention with its interval; empty where the runs answered different examples."""
    settings = first.run.config.report
    try:
        found = retention_change(before, after, resamples=settings.resamples, seed=settings.seed)
    except ValueError:
        return ""
    return "" if found.value is None else points_interval(found)


def _efficiency(first: Analysis, second: Analysis) -> str:
    rows = []
    for label, one, other in _shared(first, second):
        if one == "majority":
            continue
        sizes = [a.run.sizes.get(m) for a, m in ((first, one), (second, other))]
        millions = [number(size.encoder / 1e6 if size else None) for size in sizes]
        speeds = [a.speedups[m][d] for d in ("cpu", "cuda") for a, m in ((first, one), (second, other))]
        rows.append([markdown_text(label), *millions, *map(times_interval, speeds)])
    headers = ["model", "encoder A, M", "B, M", "speed-up CPU A", "CPU B", "CUDA A", "CUDA B"]
    return markdown_table(headers, rows)
