"""An ablation is recognised by its settings alone; anything else is none."""

from typing import Any

import pytest
from synthetic_run import settings

from glue_bench.config import config_from, load_config
from glue_bench.reporting.ablation import ablation_of
from glue_bench.reporting.published_numbers import ABLATION
from glue_bench.reporting.run_folder import is_mere_copy


def rows(*students: dict[str, Any]) -> Any:
    return ablation_of(config_from(settings(students=list(students)), "x"))


FULL = {"name": "full", "layers": [0, 2]}


def test_the_shipped_config_is_the_papers_table() -> None:
    found = ablation_of(load_config("ablation"))
    assert found is not None and set(found.rows.values()) == set(ABLATION)


@pytest.mark.parametrize(
    ("distill", "words"),
    [
        ({"weight_ce": 0.0}, "without L_ce"),
        ({"weight_cos": 0.0}, "without L_cos"),
        ({"weight_mlm": 0.0}, "without L_mlm"),
        ({"initialisation": "random"}, "random initialisation"),
        ({"weight_ce": 0.0, "weight_cos": 0.0}, "without L_ce, without L_cos"),
        ({"weight_ce": 1.0}, None),
        ({"weight_ce": 0.0, "learning_rate": 1e-5}, None),
        ({"tokens": 0}, None),
        ({}, None),
    ],
)
def test_what_is_taken_away(distill: dict[str, Any], words: str | None) -> None:
    found = rows(FULL, {"name": "other", "layers": [0, 2], "distill": distill})
    assert (found.rows["other"] if found else None) == words


def test_other_layers_are_no_ablation() -> None:
    assert rows(FULL, {"name": "other", "layers": [0, 1], "distill": {"weight_ce": 0.0}}) is None
    assert rows(FULL) is None and rows() is None


def test_merely_copied_students() -> None:
    students = [
        FULL,
        {"name": "copy", "layers": [0, 2], "distill": {"tokens": 0}},
        {"name": "untrained", "layers": [0, 2], "distill": {"tokens": 0, "initialisation": "random"}},
    ]
    config = config_from(settings(students=students), "x")
    assert [is_mere_copy(config, name) for name in ("full", "copy", "untrained", "teacher")] == [0, 1, 0, 0]
