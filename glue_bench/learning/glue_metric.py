"""GLUE's metrics as an `evaluate.Metric` that lives in the package: no download, nothing written to the home folder.

`evaluate.load("glue", task)` fetches a script from the hub and fails or hangs without a network; this is its stand-in,
for users of evaluate (the Trainer's compute_metrics, for instance). The numbers are metrics.score's.
"""

from typing import Any

import datasets
import evaluate

from glue_bench.learning.metrics import score
from glue_bench.tasks import TASKS


class GlueMetric(evaluate.Metric):
    """`GlueMetric("mrpc").compute(predictions=[...], references=[...])` -> {"accuracy": ..., "f1": ...}.

    Values are kept in memory. With `cache_dir` they go through files in that folder, which evaluate needs to gather
    the values of several processes (num_process, process_id, experiment_id).
    """

    def __init__(self, task: str, *, cache_dir: str | None = None, **settings: Any) -> None:
        """Raises ValueError for a task that GLUE has not."""
        if task not in TASKS:
            raise ValueError(f"GlueMetric: no task {task!r}; known: {', '.join(TASKS)}")
        settings.setdefault("keep_in_memory", cache_dir is None)
        super().__init__(config_name=task, cache_dir=cache_dir or "", **settings)

    def _build_data_dir(self) -> str:
        """evaluate makes this folder (by default in the home folder) even where all stays in memory; we do not."""
        return "" if self.keep_in_memory else super()._build_data_dir()

    def _info(self) -> evaluate.MetricInfo:
        # Classes are float64 too: int64 would cut a stray 0.7 down to class 0; `score` refuses it.
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="The metrics of one GLUE task, as fractions.",
            citation="Wang et al., GLUE: a multi-task benchmark and analysis platform, ICLR 2019",
            inputs_description="predictions and references: class integers, or numbers for STS-B; one per example.",
            features=datasets.Features({"predictions": value, "references": value}),
            format=None,  # lists; "numpy" would hand float64 over as float32
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return score(self.config_name, predictions, references)
