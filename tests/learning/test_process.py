"""What a process is set to while it trains: denormal numbers, and weights in memory of its own."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from glue_bench.learning.process import own_memory, set_to_train

SMALLEST = torch.finfo(torch.float32).tiny  # of the normal numbers


def zeroed(values: torch.Tensor) -> float:
    """The share of values below SMALLEST, that a product makes zero, on all of torch's threads."""
    return float((values * 1.0 == 0.0).float().mean())


def test_denormal_numbers_are_zero_within_the_block_only() -> None:
    values = torch.full((1 << 20,), SMALLEST / 4)  # enough for every thread to have a share
    assert zeroed(values) == 0.0
    with set_to_train():
        assert zeroed(values) == 1.0
        with set_to_train():
            pass
        assert zeroed(values) == 1.0, "a block within a block ends the outer one"
    assert zeroed(values) == 0.0
    with pytest.raises(KeyboardInterrupt), set_to_train():
        raise KeyboardInterrupt
    assert zeroed(values) == 0.0


def test_a_moment_that_nothing_adds_to_ends_at_zero() -> None:
    """As of a word that is not met again: without the block it stays denormal for ever, and every step is slow."""
    weight = torch.nn.Parameter(torch.ones(64))
    optimiser = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0, fused=True)
    with set_to_train():
        for step in range(900):
            weight.grad = torch.full_like(weight, float(step == 0))
            optimiser.step()
    moment = optimiser.state[weight]["exp_avg"]
    assert torch.equal(moment, torch.zeros_like(moment))
    assert bool((optimiser.state[weight]["exp_avg_sq"] > 0).all())


def test_weights_move_from_their_file_to_memory_and_stay_the_same(tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=256, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=4096
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    word = model.get_input_embeddings().weight
    place = word.data_ptr()
    own_memory(model)
    assert word is model.get_input_embeddings().weight and word.data_ptr() != place
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimiser.step()  # that was made before knows the same parameters
    assert not torch.equal(model.classifier.bias, before["classifier.bias"])


def test_a_shared_weight_stays_shared() -> None:
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    second.weight = first.weight
    own_memory(torch.nn.Sequential(first, second))
    assert second.weight is first.weight
