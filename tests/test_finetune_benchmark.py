"""benchmarks/finetune.py: what it says of two sets of scores, and the majority score that they are held against."""

from collections.abc import Callable
from types import ModuleType

import pyarrow as pa
import pytest

from glue_bench.tasks import TASKS


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("finetune")


@pytest.mark.parametrize(
    ("theirs", "mine", "majority", "verdict"),
    [
        ([0.80, 0.82, 0.81], [0.81, 0.80, 0.82], 0.7, True),
        ([0.80, 0.82, 0.81], [0.60, 0.61, 0.62], 0.7, False),
        ([0.80], [0.80], 0.7, None),  # one seed
        ([0.68, 0.70, 0.69], [0.69, 0.68, 0.70], 0.7, None),  # neither learned
        ([0.7, 0.7], [0.7, 0.7], 0.7, None),
        ([0.8, 0.8], [0.8, 0.8], 0.7, None),
        ([0.8, 0.8], [0.9, 0.9], 0.7, False),
    ],
)
def test_agreement(
    benchmark: ModuleType, theirs: list[float], mine: list[float], majority: float, verdict: bool | None
) -> None:
    assert benchmark.agreement(theirs, mine, majority)["within_noise"] is verdict


def test_majority_score(benchmark: ModuleType) -> None:
    """MRPC: accuracy 0.75 and F1 6/7 of three ones in four. STS-B: a constant correlates with nothing."""
    tables = {"train": pa.table({"label": [1, 1, 0]}), "dev": pa.table({"label": [1, 0, 1, 1]})}
    assert benchmark.majority_score(TASKS["mrpc"], tables) == pytest.approx((0.75 + 6 / 7) / 2)
    tables = {name: pa.table({"label": [1.0, 4.0, 2.5]}) for name in ("train", "dev")}
    assert benchmark.majority_score(TASKS["stsb"], tables) == 0.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_product_rates(benchmark: ModuleType, precision: str) -> None:
    """Both kinds of product are timed: what the ratio of two fine-tunings is read beside."""
    rates = benchmark.product_rates("cpu", precision)
    assert set(rates) == {"fp32", precision}
    assert all(0.001 < rate < 1000 for rate in rates.values())
