"""Which rows are held against the merely copied one: whatever has its layers and saw any distillation."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from synthetic_run import settings

from glue_bench.config import config_from
from glue_bench.reporting.resampling import TaskPredictions
from glue_bench.reporting.retention import compare_to_copies
from glue_bench.reporting.statistics import ModelPredictions

LABELS = np.tile([0, 1], 50)
STUDENTS = [
    {"name": "full", "layers": [0, 2]},
    {"name": "soft", "weights_of": "full", "soft_targets": 0.5},
    {"name": "other", "layers": [0, 1]},
    {"name": "released", "weights": "some/folder"},
    {"name": "released-soft", "weights_of": "released", "soft_targets": 0.5},
    {"name": "released-wide", "weights": "other/folder"},
    {"name": "copy", "layers": [0, 2], "distill": {"tokens": 0}},
]
RESULTS = {
    "distill/copy": {"model_type": "distilbert", "parameters": 100},
    "prepare/weights/released": {"model_type": "distilbert", "parameters": 100},
    "prepare/weights/released-wide": {"model_type": "distilbert", "parameters": 150},
}


def right(name: str, share: float) -> ModelPredictions:
    """A model that is right on the first so many of 100 RTE examples."""
    predictions = np.where(np.arange(100) < 100 * share, LABELS, 1 - LABELS)
    return ModelPredictions(name, {"rte": TaskPredictions(LABELS, predictions[None])})


def test_rows_built_as_the_copy_are_held_against_it() -> None:
    """The row that fine-tunes another's weights was left out, as it names no layers; so were weights from elsewhere."""
    run: Any = SimpleNamespace(
        config=config_from(settings(students=STUDENTS), "x"), result=lambda step: RESULTS.get(step, {})
    )
    shares = {"full": 0.8, "soft": 0.9, "other": 1.0, "released": 0.75, "released-soft": 0.85, "released-wide": 1.0}
    found = compare_to_copies(run, {name: right(name, share) for name, share in (shares | {"copy": 0.7}).items()})
    assert {pair: one.macro.difference.value for pair, one in found.items()} == {
        ("full", "copy"): pytest.approx(0.1),
        ("soft", "copy"): pytest.approx(0.2),
        ("released", "copy"): pytest.approx(0.05),
        ("released-soft", "copy"): pytest.approx(0.15),
    }
