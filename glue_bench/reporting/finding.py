"""The finding: one sentence that says what was lost and won, with its uncertainty. First line of the report.

It is also the last line that run-all prints, so it stands in plain text; report.py escapes it for Markdown.
"""

from glue_bench.records import Interval
from glue_bench.reporting.analysis import Analysis
from glue_bench.reporting.published_numbers import SPEEDUP
from glue_bench.reporting.tables import percent
from glue_bench.tasks import TASKS


def finding(analysis: Analysis) -> str:
    """One sentence on the best student: retention with interval, size and speed; what is missing, where it is."""
    sentence = _sentence(analysis)
    if analysis.run.complete:
        return sentence
    count = len(analysis.run.missing)
    return f"INCOMPLETE, {count} step{'' if count == 1 else 's'} missing: {sentence}"


def _sentence(analysis: Analysis) -> str:
    best = analysis.best_student
    if best is None:
        return _teacher_alone(analysis)
    parts = [_kept(analysis, best), *_won(analysis, best)]
    parts = [part for part in parts if part]
    if not parts:
        return f"{best} has no retention and was not measured: {analysis.retention(best).reason}"
    sentence = f"{best} {_listed(parts)}"
    if len(analysis.rivals) > 1:
        sentence += f" (best of {len(analysis.rivals)} students)"
    return f"{sentence}{_on_what(analysis)}"


def _kept(analysis: Analysis, best: str) -> str:
    retention = analysis.retention(best)
    found = analysis.comparisons.get(best)
    if found is None or found.macro is None:
        return ""
    if retention.value is None:
        return f"has no defined retention ({retention.reason})"
    interval = _interval(retention)
    count = len(found.macro.tasks)
    low, high = analysis.seeds_behind(best)
    seeds = f"{low} seed{'' if low == 1 else 's'}" if low == high else f"{low} to {high} seeds"
    of_all = f" of {len(analysis.main_tasks)}" if analysis.partial_tasks(best) else ""
    where = f"{count}{of_all} task{'s' if of_all or count != 1 else ''}"
    whose = "macro" if analysis.run.data == "embedded" else "GLUE macro"
    return f"keeps {interval} of the teacher's {whose} over {where} and {seeds}"


def _interval(retention: Interval) -> str:
    if retention.low is None or retention.high is None:
        return f"{percent(retention.value)} %"
    return f"{percent(retention.value)} % [{percent(retention.low)}, {percent(retention.high)}]"


def _won(analysis: Analysis, best: str) -> list[str]:
    parts = []
    reduction = analysis.size_reduction(best)
    if reduction is not None:
        parts.append(f"is {percent(abs(reduction))} % {'smaller' if reduction >= 0 else 'larger'}")
    for device, name in (("cpu", "CPU"), ("cuda", "GPU")):
        speedup = analysis.speedups.get(best, {}).get(device, Interval(None))
        if speedup.value is not None:
            bounds = "" if speedup.low is None else f" [{speedup.low:.2f}, {speedup.high:.2f}]"
            parts.append(f"{speedup.value:.2f}x{bounds} as fast on {name}")
    return parts


def _on_what(analysis: Analysis) -> str:
    if not analysis.tasks:
        return f"; no task was run (the paper reports {SPEEDUP:.2f}x for DistilBERT against BERT-base)"
    if analysis.run.data == "embedded":
        return "; on embedded data, no GLUE result"
    return "" if analysis.run.data == "full" else "; on a subset of GLUE's rows"


def _teacher_alone(analysis: Analysis) -> str:
    tasks = analysis.main_tasks or analysis.tasks  # WNLI alone, if that is all
    macro = analysis.scores.macro(analysis.teacher, tasks, means=False)
    if macro is None:
        return f"{analysis.teacher} has not been scored and there is no student"
    over = TASKS[tasks[0]].title if len(tasks) == 1 else f"{len(tasks)} tasks"
    return f"{analysis.teacher} scores {percent(macro)} over {over}; there is no student{_on_what(analysis)}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
