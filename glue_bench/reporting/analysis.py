"""Everything the report says, computed once from a run's folder: scores, retention, differences, size and speed.

The tables, the figures and summary.json are different views of one Analysis, so that they cannot disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from glue_bench.records import Interval
from glue_bench.reporting.ablation import Ablation, ablation_of
from glue_bench.reporting.efficiency import efficiency_rows, speedups
from glue_bench.reporting.quantised import Quantised, QuantisedModel, kept_by_int8, quantised
from glue_bench.reporting.retention import compare_to, compare_to_copies, compare_to_teacher, model_predictions
from glue_bench.reporting.run_folder import RunFolder
from glue_bench.reporting.scores import Scores, score_run
from glue_bench.reporting.statistics import DifferenceResult, RetentionResult, macro_tasks
from glue_bench.tasks import GLUE_NINE


@dataclass(frozen=True)
class Analysis:
    """A run and all that was computed from it."""

    run: RunFolder
    scores: Scores
    comparisons: Mapping[str, RetentionResult]  # model -> against the teacher; rows without a shared task are absent
    over_copies: Mapping[tuple[str, str], DifferenceResult]  # (trained, merely copied) -> difference
    ablation: Ablation | None
    ablated: Mapping[str, DifferenceResult]  # row of the ablation -> less the full student
    efficiency: list[dict[str, Any]]
    quantised: tuple[Quantised, ...] = ()  # int8 exports by model and task
    kept_by_int8: Mapping[str, QuantisedModel] = field(default_factory=dict)

    @property
    def teacher(self) -> str:
        """The teacher's row."""
        return self.run.config.teacher.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the run, in GLUE's order."""
        return macro_tasks(self.run.config.data.tasks, with_wnli=True)

    @property
    def main_tasks(self) -> tuple[str, ...]:
        """The tasks of the macro that retention stands on: all but WNLI."""
        return macro_tasks(self.run.config.data.tasks, with_wnli=False)

    @property
    def students(self) -> tuple[str, ...]:
        """Rows with the role of a student."""
        return tuple(name for name, role in self.run.roles.items() if role == "student")

    @property
    def fine_tuned(self) -> tuple[str, ...]:
        """Rows that were fine-tuned: all but the majority."""
        return tuple(name for name, role in self.run.roles.items() if role != "majority")

    def retention(self, model: str) -> Interval:
        """Retention of the macro without WNLI; undefined, with the reason, where it cannot be computed."""
        found = self.comparisons.get(model)
        return found.retention if found else Interval(None, reason=self.why_no_retention(model))

    def why_no_retention(self, model: str) -> str:
        """Why a row has no retention."""
        if model == self.teacher:
            return "the teacher itself"
        if not self.tasks:
            return "no task is asked for"
        for row in (self.teacher, model):
            if row not in self.scores.headlines:
                return f"{row} has not been fine-tuned"
        return f"{model} and {self.teacher} share no task"

    def partial_tasks(self, model: str) -> tuple[str, ...]:
        """The tasks that a row's retention stands on, where they are fewer than the run's; else empty."""
        found = self.comparisons.get(model)
        kept_on = found.macro.tasks if found and found.macro else ()
        return () if kept_on == self.main_tasks else kept_on

    @cached_property
    def speedups(self) -> dict[str, dict[str, Interval]]:
        """Model -> device -> speed-up in the paper's scenario."""
        return {model: speedups(self.run, self.efficiency, model) for model in self.fine_tuned}

    def size_reduction(self, model: str) -> float | None:
        """1 - parameters of the row's bare encoder / the teacher's; None where one was not measured."""
        own, teacher = self.run.sizes.get(model), self.run.sizes.get(self.teacher)
        return None if own is None or teacher is None else 1 - own.encoder / teacher.encoder

    @property
    def fewest_seeds(self) -> int:
        """Fewest seeds behind a task's score, over teacher and students; 0 without scores."""
        rows = [self.scores.headlines.get(model, {}) for model in self.fine_tuned]
        return min((one.n_seeds for row in rows for one in row.values()), default=0)

    def seeds_behind(self, model: str) -> tuple[int, int]:
        """Fewest and most seeds of a row and of the teacher behind a task that its retention stands on."""
        found = self.comparisons.get(model)
        rows = [self.scores.headlines.get(one, {}) for one in (self.teacher, model)]
        tasks = found.macro.tasks if found and found.macro else tuple(rows[1])
        counts = [row[task].n_seeds for row in rows for task in tasks if task in row]
        return (min(counts), max(counts)) if counts else (0, 0)

    @property
    def rivals(self) -> tuple[str, ...]:
        """Students whose retentions can be compared: those scored on the most tasks. Empty where none has one."""
        on = {name: len(found.macro.tasks) for name, found in self.comparisons.items() if found.macro}
        known = [name for name in self.students if name in on and self.retention(name).value is not None]
        most = max((on[name] for name in known), default=0)
        return tuple(name for name in known if on[name] == most)

    @property
    def best_student(self) -> str | None:
        """The rival with the highest retention; without any, the first student; None without students."""
        judged = [(self.retention(name).value or 0.0, name) for name in self.rivals]
        return max(judged)[1] if judged else next(iter(self.students), None)


def analyse(run: RunFolder) -> Analysis:
    """Compute everything from a run's folder. Raises UserError or StepError naming a damaged file."""
    scores = score_run(run)
    models = model_predictions(scores)
    ablation = ablation_of(run.config)
    exported = quantised(run)
    return Analysis(
        run,
        scores,
        compare_to_teacher(run, models),
        compare_to_copies(run, models),
        ablation,
        compare_to(run, models, ablation.full, tuple(ablation.rows)) if ablation else {},
        efficiency_rows(run),
        exported,
        kept_by_int8(run, exported, scores),
    )


def macro_name(tasks: Sequence[str]) -> str:
    """How a macro over these tasks is called: one over fewer than GLUE's says over how many."""
    if set(GLUE_NINE) - set(tasks) <= {"wnli"}:
        return "macro" if "wnli" in tasks else "macro without WNLI"
    return f"macro over {len(tasks)} task{'' if len(tasks) == 1 else 's'}"
