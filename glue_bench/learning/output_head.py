"""A classifier's head in the weights' own precision, whatever autocast does to the encoder.

In bf16 a logit has eight bits: the 400 similarities that a model of STS-B gives from 0 to 5 take 51 values, so that
Spearman's ranks are full of ties and a squared error is measured from the wrong place. The head sees one position of
each example, so that fp32 costs nothing there.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


@contextlib.contextmanager
def full_precision_head(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the linear layers of a classifier outside its encoder compute in the type of their weights."""
    inside = f"{model.base_model_prefix}."
    heads = [one for name, one in model.named_modules() if isinstance(one, nn.Linear) and not name.startswith(inside)]
    for head in heads:
        head.forward = partial(_linear, head)
    try:
        yield
    finally:
        for head in heads:
            del head.forward


def _linear(head: nn.Linear, values: Tensor) -> Tensor:
    with torch.autocast(values.device.type, enabled=False):
        return F.linear(values.to(head.weight.dtype), head.weight, head.bias)
