"""benchmarks/speedup_repeats.py: a row that was skipped in a repeat, or in all, does not lose the measurement."""

from collections.abc import Callable
from types import ModuleType


def test_a_row_that_is_missing_from_a_repeat_is_shown_as_skipped(load_benchmark: Callable[[str], ModuleType]) -> None:
    repeats = load_benchmark("speedup_repeats")
    one, other = (("student", backend, "fp32", "stsb-pass", "1") for backend in ("eager", "onnx"))
    table, figures = repeats.table_of({"interleaved": [{one: 2.0}, {one: 2.2, other: 3.0}], "apart": [{}, {}]})
    assert [row[5:] for row in table] == [
        ["interleaved", "2.000", "2.200", "2.100", "4.8 %"],
        ["interleaved", "skipped", "3.000", "3.000", "0.0 %"],
    ]
    assert [row["speedups"] for row in figures] == [[2.0, 2.2], [3.0]]
    assert repeats.table_of({"interleaved": [{}]}) == ([], [])
