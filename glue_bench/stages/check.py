"""check: the gate, as a step. It judges the tables that the report wrote against the config's thresholds."""

from typing import Any

from glue_bench.plan import Step
from glue_bench.reporting.gate import check_run
from glue_bench.store import Store


def run(step: Step, store: Store, device: str) -> dict[str, Any]:
    """Judge the run's stored tables. Returns {"passed": bool, "reasons": [...]}; a failed gate is no error."""
    gate = check_run(
        store.root,
        min_retention=None,
        min_task={},
        min_speedup=None,
        min_size_reduction=None,
        judge=None,
        baseline=None,
    )
    return {"passed": gate.passed, "reasons": list(gate.reasons)}
