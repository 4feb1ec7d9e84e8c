"""Dropout on the CPU at a quarter of the price: the same distribution, drawn 16 random bits at a time.

torch draws one Mersenne-Twister float per element on the CPU: 10 ns with the multiplication, measured; over a BERT step
that is a fifth of the time in fp32 and a quarter in bf16 with AMX. Here one 64-bit word of SFC64 serves four elements
and the comparison writes the mask as numbers: 2 ns. On CUDA torch's own dropout is fast and is left alone.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "glue_bench_dropout"  # the name under which transformers finds the attention below
LEVELS = 1 << 16  # values of 16 random bits


class MaskStream:
    """Dropout masks from one stream of random bits, which is started anew by any key of integers."""

    def __init__(self, *key: int) -> None:
        self.restart(*key)

    def restart(self, *key: int) -> None:
        """Make the masks to come a function of the key alone, e.g. (seed, step, micro-batch)."""
        self._bits = np.random.SFC64(key)

    def mask(self, like: Tensor, probability: float) -> Tensor:
        """A mask of like's shape and dtype: 0 with the probability, else 1 / (1 - probability), independently.

        An element is dropped where its 16 bits lie below a threshold; that is rounded at random, up or down, once per
        mask, so that each element is dropped with exactly the probability asked for.
        """
        words = self._bits.random_raw(like.numel() // 4 + 2)
        threshold = math.floor(probability * LEVELS + float(words[-1] >> np.uint64(11)) * 2.0**-53)
        bits = torch.from_numpy(words.view(np.int16))[: like.numel()].view(like.shape)
        mask = torch.empty(like.shape, dtype=like.dtype)
        torch.ge(bits, threshold - LEVELS // 2, out=mask)
        return mask.mul_(1.0 / (1.0 - probability))


class StreamDropout(nn.Dropout):
    """nn.Dropout that takes its masks from a MaskStream."""

    def __init__(self, probability: float, stream: MaskStream) -> None:
        super().__init__(probability)
        self.stream = stream

    def forward(self, values: Tensor) -> Tensor:
        """Values with dropout in training mode, unchanged otherwise."""
        if not self.training or self.p == 0.0:
            return values
        return values * self.stream.mask(values, self.p)


@contextlib.contextmanager
def cheap_dropout(model: PreTrainedModel, stream: MaskStream) -> Iterator[None]:
    """Within the block every dropout of a model on the CPU, that of attention included, draws from the stream.

    Models on other devices, and attention that transformers does not let us replace, keep torch's.
    """
    if model.device.type != "cpu":
        yield
        return
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Dropout
    ]
    for parent, name, child in places:
        setattr(parent, name, StreamDropout(child.p, stream).train(child.training))
    before = model.config._attn_implementation
    if before == "sdpa":
        model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        if before == "sdpa":
            model.set_attn_implementation(before)
        for parent, name, child in places:
            setattr(parent, name, child.train(getattr(parent, name).training))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: (batch, heads, length, width) each -> (batch, length, heads, width).

    Where the CPU trains it is written out in products; elsewhere, and with options that encoders do not use, it is
    torch's scaled_dot_product_attention, whose gradient costs a CPU 42 ms where the products' costs 8 (bf16, 16 x 12
    heads x 128 tokens x 32, two cores with AMX; in fp32 12 and 10).
    """
    own = getattr(module, "dropout", None)
    plain = not getattr(module, "is_causal", True) and not any(value is not None for value in others.values())
    trains = query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad
    drops = dropout > 0.0 and isinstance(own, StreamDropout)
    if not (plain and query.shape[1] == key.shape[1] and (drops or (trains and not dropout))):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(-1, -2))
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            hidden = torch.zeros(attention_mask.shape, dtype=scores.dtype)
            attention_mask = hidden.masked_fill_(attention_mask.logical_not(), torch.finfo(scores.dtype).min)
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1)
    if drops:
        weights = weights * own.stream.mask(weights, dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
