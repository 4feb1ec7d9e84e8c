"""benchmarks/graphs.py: both ways train the same model, and on a CPU both run step by step."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from transformers import BertConfig

CPU = torch.device("cpu")


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_benchmark("graphs")
    tiny = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    monkeypatch.setitem(module.SHAPES, "tiny", tiny)
    return module


def test_examples_are_of_the_stated_lengths(benchmark: ModuleType) -> None:
    encoded = benchmark.generated(2_000)
    assert len(encoded) == 2_000
    assert encoded.lengths.mean() == pytest.approx(36, abs=1)
    assert encoded.lengths.std() == pytest.approx(12, abs=1)
    assert encoded.ids[: encoded.tokens].min() >= 1_000 and encoded.ids.max() < 30_522


def test_both_ways_are_measured(benchmark: ModuleType) -> None:
    row = benchmark.measure("tiny", CPU, 2, 1)
    assert set(row) == {"kernel by kernel", "recorded", "ratio"}
    assert row["recorded"] > 0 and row["ratio"] == pytest.approx(row["recorded"] / row["kernel by kernel"], rel=0.02)


def test_the_first_way_records_nothing(benchmark: ModuleType) -> None:
    """Of the two on a GPU, one must not record: it is told to be on a CPU."""
    assert benchmark.WAYS["kernel by kernel"](torch.device("cuda")).record is None
