"""benchmarks/distill.py: the peer that every ratio stands on computes the triple loss, on a batch that is not split."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from glue_bench.learning.batches import MicroBatch
from glue_bench.learning.losses import IGNORED, LossWeights, loss_positions, triple_loss

SETTINGS = {"temperature": 2.0, "weight_ce": 5.0, "weight_mlm": 2.0, "weight_cos": 1.0}


@pytest.mark.parametrize("padded", [False, True])
def test_the_original_computes_the_triple_loss(padded: bool, load_benchmark: Callable[[str], ModuleType]) -> None:
    benchmark = load_benchmark("distill")
    torch.manual_seed(0)
    shape = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    teacher, student = (BertForMaskedLM(BertConfig(num_hidden_layers=layers, **shape)).eval() for layers in (2, 1))
    ids = torch.randint(5, 30, (3, 8))
    attention = torch.ones_like(ids)
    if padded:
        attention[1, 5:] = 0
    labels = torch.full_like(ids, IGNORED)
    labels[0, 2], labels[1, 4], labels[2, 7] = 7, 8, 9
    positions = loss_positions(labels, attention, ce_positions="attended")
    batch = MicroBatch(0, ids, attention if padded else None, positions)
    found = benchmark.original_loss(student, teacher, batch, SETTINGS)
    of_student, of_teacher = (
        model(input_ids=ids, attention_mask=attention, output_hidden_states=True) for model in (student, teacher)
    )
    terms = triple_loss(
        of_student.logits,
        of_teacher.logits,
        of_student.hidden_states[-1],
        of_teacher.hidden_states[-1],
        labels,
        attention,
        temperature=2.0,
        ce_positions="attended",
    )
    assert found.item() == pytest.approx(terms.total(LossWeights(5.0, 2.0, 1.0)).item(), rel=1e-5)
