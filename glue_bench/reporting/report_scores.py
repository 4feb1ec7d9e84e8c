"""The report's sections on scores: headlines, spread over seeds, retention, differences, ablation, published rows."""

from collections.abc import Callable, Iterator, Sequence

from glue_bench.config import distill_settings
from glue_bench.reporting import published_numbers
from glue_bench.reporting.analysis import Analysis, macro_name
from glue_bench.reporting.scores import Spread
from glue_bench.reporting.statistics import Retention
from glue_bench.reporting.tables import (
    DASH,
    markdown_table,
    markdown_text,
    number,
    percent,
    percent_interval,
    points_interval,
)
from glue_bench.tasks import GLUE_NINE, TASKS


def score_section(analysis: Analysis) -> str:
    """Headline score per task and both macros: medians over seeds, the best of each column in bold."""
    if not analysis.tasks:
        return "No task was asked for: sizes and times only.\n"
    models = list(analysis.run.roles)
    columns: list[tuple[str, Callable[[str], float | None]]] = [
        (TASKS[task].title, lambda model, task=task: _median(analysis, model, task)) for task in analysis.tasks
    ]
    for tasks in _macros(analysis):
        columns.append((macro_name(tasks), lambda model, tasks=tasks: analysis.scores.macro(model, tasks, means=False)))
    cells = {model: [percent(value(model)) for _, value in columns] for model in models}
    contest = [model for model in models if model in analysis.scores.headlines]  # majority too: it wins where it wins
    rows = []
    for model in models:
        shown = [
            f"**{cell}**" if len(contest) > 1 and model in contest and _is_best(cells, contest, place, cell) else cell
            for place, cell in enumerate(cells[model])
        ]
        rows.append([_label(analysis, model), *shown])
    table = markdown_table(["model", *(name for name, _ in columns)], rows)
    metrics = "; ".join(f"{TASKS[task].title}: {_metric_names(task)}" for task in analysis.tasks)
    intro = f"Dev sets, times 100, median over seeds; the best of each column in bold. {metrics}."
    return f"{intro}\n\n{table}{_absent(analysis)}"


def spread_section(analysis: Analysis) -> str:
    """Mean and deviation over seeds, with the extremes."""
    rows = [
        [
            _label(analysis, model),
            *(_spread(analysis.scores.headlines.get(model, {}).get(task)) for task in analysis.tasks),
        ]
        for model in analysis.run.roles
    ]
    table = markdown_table(["model", *(TASKS[task].title for task in analysis.tasks)], rows)
    return f"Mean ± standard deviation over seeds (n - 1), [least, greatest], number of seeds.\n\n{table}"


def retention_section(analysis: Analysis) -> str:
    """What each row keeps of the teacher, on the macros and per task, with 95 % intervals."""
    if not analysis.comparisons:
        return f"Undefined: {markdown_text(_why_none(analysis))}.\n"
    run = analysis.run
    macro_rows = []
    for model, found in analysis.comparisons.items():
        nine = percent_interval(found.retention_9)
        row = [_label(analysis, model), percent_interval(found.retention), nine, percent_interval(found.gain_retained)]
        p_value = DASH if found.p_value is None else f"{found.p_value:.4f}"
        macro_rows.append([*row, p_value, _on(found.macro)])
    headers = ["model", "retention %", "with WNLI %", "gain retained %", "p (not worse)", "tasks"]
    task_rows = [
        [_label(analysis, model), *(_kept(found.tasks.get(task)) for task in analysis.tasks)]
        for model, found in analysis.comparisons.items()
    ]
    text = (
        "Retention is the row's macro as a percentage of the teacher's, from means over seeds, over the tasks without "
        "WNLI. *Gain retained* counts from the majority class: (row - majority) / (teacher - majority), so that having "
        f"no skill counts as none. Brackets are 95 % bootstrap intervals ({run.config.report.resamples:,} resamples of "
        "examples, drawn once for all models, and of seeds, drawn for each; widened as Student's t is where seeds are "
        "few). p is one-sided: the share of the resamples, widened likewise, in which the row is not below the "
        "teacher, one more counted on both sides.\n"
    )
    parts = [text, markdown_table(headers, macro_rows), "Retention per task, %:\n"]
    parts.append(markdown_table(["model", *(TASKS[task].title for task in analysis.tasks)], task_rows))
    parts += [f"- {markdown_text(reason)}" for reason in _undefined(analysis)]
    return "\n".join(parts).rstrip("\n") + "\n"


def copies_section(analysis: Analysis) -> str:
    """What distillation added to merely copying the teacher's layers: on the macro, then per task."""
    rows, task_rows = [], []
    for (trained, copy), found in analysis.over_copies.items():
        if found.macro is None:
            continue
        pair = [markdown_text(trained), markdown_text(copy)]
        points = points_interval(found.macro.difference)
        rows.append([*pair, points, f"{found.macro.p_value:.4f}", str(len(found.macro.tasks))])
        of_tasks = [found.tasks.get(task) for task in analysis.tasks]
        task_rows.append([*pair, *(DASH if one is None else points_interval(one.difference) for one in of_tasks)])
    if not rows:
        return ""
    headers = ["distilled", "layers only copied"]
    macro = markdown_table([*headers, "difference in points [95 %]", "p", "tasks"], rows, left=2)
    titles = [TASKS[task].title for task in analysis.tasks]
    return "\n".join([macro, "Per task, points:\n", markdown_table([*headers, *titles], task_rows, left=2)])


def ablation_section(analysis: Analysis) -> str:
    """Change of the macro against the full student, beside the paper's table 4."""
    if analysis.ablation is None:
        return ""
    rows = []
    for name, taken in analysis.ablation.rows.items():
        found = analysis.ablated.get(name)
        nine = found.macro_9 or found.macro if found else None
        ours = points_interval(nine.difference) if nine else DASH
        published = published_numbers.ABLATION.get(taken)
        theirs = DASH if published is None else f"{published:+.2f}"
        rows.append([markdown_text(name), markdown_text(taken), ours, _titles(nine.tasks) if nine else DASH, theirs])
    headers = ["row", "change", "macro, points [95 %]", "tasks", "paper, GLUE"]
    full = markdown_text(analysis.ablation.full)
    student = next(one for one in analysis.run.config.students if one.name == analysis.ablation.full)
    where = distill_settings(analysis.run.config, student).ce_positions
    said = f"Against {full}, which has the whole triple loss (L_ce at {where} positions; the paper's: at attended ones)"
    return f"{said}:\n\n" + markdown_table(headers, rows, left=2)


def _titles(tasks: Sequence[str]) -> str:
    """What a macro is over: "all 9", or the tasks by name."""
    return f"all {len(tasks)}" if set(tasks) == set(GLUE_NINE) else ", ".join(TASKS[task].title for task in tasks)


def published_section(analysis: Analysis) -> str:
    """Published rows beside ours, over the same tasks; not comparable unless the data are GLUE's own, whole."""
    if not analysis.tasks:
        return ""
    macros = _macros(analysis)
    rows = []
    for name, scores in published_numbers.GLUE_DEV.items():
        values = [scores[task] for task in analysis.tasks]
        values += [published_numbers.macro(name, tasks) for tasks in macros]
        rows.append([f"{name} (published)", *(f"{value:.1f}" for value in values)])
    for model in [analysis.teacher, *analysis.students]:
        own = [percent(_median(analysis, model, task)) for task in analysis.tasks]
        own += [percent(analysis.scores.macro(model, tasks, means=False)) for tasks in macros]
        rows.append([_label(analysis, model), *own])
    headers = ["model", *(TASKS[task].title for task in analysis.tasks), *(macro_name(tasks) for tasks in macros)]
    teacher, student = published_numbers.TEACHER_ROW, published_numbers.STUDENT_ROW
    kept = [100 * published_numbers.macro(student, t) / published_numbers.macro(teacher, t) for t in macros]
    retained = " and ".join(f"{value:.1f} % ({macro_name(t)})" for value, t in zip(kept, macros, strict=True))
    servers = ", ".join(
        f"{row.name} {row.average} ({row.retention} %{'' if row.speedup is None else f', {row.speedup}x'})"
        for row in published_numbers.SERVER_ROWS
    )
    return (
        f"{_comparability(analysis)} Published dev scores: README of the authors' code; ELMo: Sanh et al. 2019. There "
        f"DistilBERT retains {retained}.\n\n{markdown_table(headers, rows)}\n"
        "Later work, average on the GLUE test server (both MNLI sets, no WNLI) against BERT-base's 79.5 there: "
        f"{servers}.\n"
    )


def metrics_section(analysis: Analysis) -> str:
    """Every metric of every model, task and dev split over seeds."""
    values: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for one in analysis.scores.scores:
        for metric, value in one.metrics.items():
            values.setdefault((one.model, one.task, one.split, metric), {})[one.seed] = value
    rows = []
    for (model, task, split, metric), found in values.items():
        one = Spread(found)
        cells = [percent(one.median), percent(one.mean), percent(one.deviation), percent(one.least)]
        place = [_label(analysis, model), TASKS[task].title, split, metric.replace("_", " ")]
        rows.append([*place, *cells, percent(one.greatest), str(one.n_seeds)])
    headers = ["model", "task", "split", "metric", "median", "mean", "sd", "least", "greatest", "seeds"]
    return markdown_table(headers, rows, left=4)


def score_warnings(analysis: Analysis) -> Iterator[str]:
    """Metrics that were undefined and count as 0, one line per model and warning."""
    seen: dict[tuple[str, str], list[int]] = {}
    for one in analysis.scores.scores:
        for warning in one.warnings:
            if one.model != "majority":
                seen.setdefault((one.model, warning), []).append(one.seed)
    for (model, warning), seeds in seen.items():
        yield f"{model}, {warning} (seed {', '.join(map(str, seeds))})"


def _macros(analysis: Analysis) -> list[tuple[str, ...]]:
    """The macros that are shown: with WNLI and without, once where they are the same."""
    return [tasks for tasks in dict.fromkeys((analysis.tasks, analysis.main_tasks)) if tasks]


def _median(analysis: Analysis, model: str, task: str) -> float | None:
    found = analysis.scores.headlines.get(model, {}).get(task)
    return found.median if found else None


def _is_best(cells: dict[str, list[str]], contest: Sequence[str], place: int, cell: str) -> bool:
    """Best as printed: rows that look equal are equally bold."""
    known = [float(cells[model][place]) for model in contest if cells[model][place] != DASH]
    return cell != DASH and float(cell) == max(known)


def _label(analysis: Analysis, model: str) -> str:
    role = analysis.run.roles[model]
    name = markdown_text(model)
    return name if role in ("student", model) else f"{name} ({role})"


def _metric_names(task: str) -> str:
    names = [name.replace("_", " ") for name in TASKS[task].headline]
    return names[0] if len(names) == 1 else f"mean of {' and '.join(names)}"


def _absent(analysis: Analysis) -> str:
    """Why cells are empty, one line per row of the table."""
    lines = []
    for model in analysis.run.roles:
        lacking = [task for task in analysis.tasks if task not in analysis.scores.headlines.get(model, {})]
        if not lacking:
            continue
        asked = {cell.task for cell in analysis.run.cells if cell.model == model}
        for words, tasks in (
            ("not run yet", [task for task in lacking if task in asked]),
            ("no weights or checkpoint given for it", [task for task in lacking if task not in asked]),
        ):
            if tasks:
                titles = ", ".join(TASKS[task].title for task in tasks)
                lines.append(f"- {DASH} {markdown_text(model)}: {titles}: {words}")
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _spread(one: Spread | None) -> str:
    if one is None:
        return DASH
    if one.deviation is None:
        return f"{percent(one.mean)} (1)"
    bounds = f"[{percent(one.least)}, {percent(one.greatest)}]"
    return f"{percent(one.mean)} ± {number(100 * one.deviation, 1)} {bounds} ({one.n_seeds})"


def _kept(found: Retention | None) -> str:
    return DASH if found is None else percent_interval(found.retention)


def _on(found: Retention | None) -> str:
    return DASH if found is None else str(len(found.tasks))


def _why_none(analysis: Analysis) -> str:
    first = next((model for model in analysis.fine_tuned if model != analysis.teacher), "")
    return analysis.why_no_retention(first) if first else "there is no student"


def _undefined(analysis: Analysis) -> Iterator[str]:
    """Reasons for missing values and intervals, each once."""
    lines: dict[str, None] = {}
    for model, found in analysis.comparisons.items():
        for row in (*found.tasks.values(), found.macro, found.macro_9):
            if row is not None:
                name = TASKS[row.tasks[0]].title if row in found.tasks.values() else macro_name(row.tasks)
                for what, one in (("retention", row.retention), ("gain retained", row.gain_retained)):
                    if one.reason:
                        lines[f"{model}, {name}, {what}: {one.reason}"] = None
                if row.note and row is found.macro:
                    lines[f"{model}: {row.note}"] = None
    return iter(lines)


def _comparability(analysis: Analysis) -> str:
    if analysis.run.data == "full":
        return "On the same dev sets."
    if analysis.run.data == "embedded":
        return "**Not comparable**: ours are embedded, generated tasks, not GLUE."
    return "**Not comparable**: ours stand on a subset of GLUE's rows."
