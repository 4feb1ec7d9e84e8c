"""benchmarks/agreement.py: cosines of last states by hand, padding left out, and its table on the embedded data."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from timing_models import save_bert
from transformers import BertConfig, BertForMaskedLM

from glue_bench.data.batching import Encoded


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("agreement")


def bert(seed: int) -> BertForMaskedLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=40, max_position_embeddings=16, **shape)).eval()


def examples(rows: list[list[int]]) -> Encoded:
    lengths = np.array([len(row) for row in rows])
    ids = torch.tensor([*np.concatenate(rows), *[0] * 16], dtype=torch.int32)
    return Encoded(ids, None, torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])), lengths, 0, 16, 0)


def test_a_model_agrees_with_itself_and_not_with_its_mirror_image(benchmark: ModuleType) -> None:
    mirrored = bert(0)
    norm = mirrored.bert.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        norm.weight.neg_()
        norm.bias.neg_()
    inputs = examples([[1, 2, 3], [4, 5, 6, 7, 8]])
    assert benchmark.cosines(bert(0), bert(0), inputs) == pytest.approx({"tokens": 1, "first": 1}, abs=1e-6)
    assert benchmark.cosines(bert(0), mirrored, inputs) == pytest.approx({"tokens": -1, "first": -1}, abs=1e-6)


def test_tokens_count_once_and_padding_not_at_all(benchmark: ModuleType) -> None:
    """Of examples of 2 and 7 tokens in one batch, the mean is over 9 tokens, as if each were alone."""
    one, two = examples([[1, 2]]), examples([[3, 4, 5, 6, 7, 8, 9]])
    both = benchmark.cosines(bert(0), bert(1), examples([[1, 2], [3, 4, 5, 6, 7, 8, 9]]))
    alone = [benchmark.cosines(bert(0), bert(1), inputs) for inputs in (one, two)]
    assert both["tokens"] == pytest.approx((2 * alone[0]["tokens"] + 7 * alone[1]["tokens"]) / 9, abs=1e-6)
    assert both["first"] == pytest.approx((alone[0]["first"] + alone[1]["first"]) / 2, abs=1e-6)
    assert both["tokens"] < 0.99


def test_its_table(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher against itself and against another one on embedded tasks; a narrower one is refused."""
    folder, other, narrow = (str(tmp_path / name) for name in ("model", "other", "narrow"))
    save_bert(Path(folder), 1)
    save_bert(Path(other), 2)
    bert(0).save_pretrained(narrow)
    command = ["agreement.py", folder, other, "--teacher", folder, "--tasks", "rte", "cola", "--rows", "5"]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = last["students"][folder]
    assert set(found) == {"rte", "cola"} and last["rows"] == {"rte": 5, "cola": 5}
    assert all(value == pytest.approx(1.0, abs=1e-5) for one in found.values() for value in one.values())
    assert all(value < 0.99 for one in last["students"][other].values() for value in one.values())
    monkeypatch.setattr(sys, "argv", [command[0], narrow, *command[1:]])
    with pytest.raises(SystemExit, match="narrow: another vocab_size than the teacher's"):
        benchmark.main()
