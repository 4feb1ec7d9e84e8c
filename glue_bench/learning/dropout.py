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
SHORT = 100  # tokens up to which attention in bf16 costs a CPU less in products than fused, without gradient
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
    try:
        with attention_in_products(model):
            yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child.train(getattr(parent, name).training))


@contextlib.contextmanager
def attention_in_products(model: PreTrainedModel) -> Iterator[None]:
    """Within the block a model on the CPU takes the attention below, where it would take torch's fused one."""
    before = model.config._attn_implementation
    if model.device.type != "cpu" or before != "sdpa":
        yield
        return
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


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

    On a CPU it is written out in products where it trains, and for short inputs in bf16; elsewhere, and with options
    that encoders do not use, it is torch's scaled_dot_product_attention. Its gradient costs a CPU 42 ms where the
    products' costs 8 (bf16, 16 x 12 heads x 128 tokens x 32, two cores with AMX; in fp32 12 and 10); without gradient
    36 x 12 heads x 56 tokens cost a core 6.7 and 4.5 ms, 73 x 28 tokens 5.4 and 3.4.
    """
    own = getattr(module, "dropout", None)
    plain = not getattr(module, "is_causal", True) and not any(value is not None for value in others.values())
    trains = torch.is_grad_enabled() and query.requires_grad
    short = query.dtype == torch.bfloat16 and key.shape[2] <= SHORT
    drops = dropout > 0.0 and isinstance(own, StreamDropout)
    cheaper = drops or (query.device.type == "cpu" and not dropout and (trains or short))
    if not (plain and query.shape[1] == key.shape[1] and cheaper):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    scores = _scores(query, key, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    if drops:
        weights = weights * own.stream.mask(weights, dropout)
    return torch.matmul(weights.to(value.dtype), value).transpose(1, 2).contiguous(), None


def _scores(query: Tensor, key: Tensor, attention_mask: Tensor | None, scale: float) -> Tensor:
    """scale x query x key^T + mask, (batch, heads, queries, keys): scale and mask within the product where they can be.

    attention_mask: None, or boolean or to be added, of a shape that broadcasts to the scores'.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    rows = torch.zeros(1, 1, 1, dtype=query.dtype)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        hidden = torch.zeros(attention_mask.shape, dtype=query.dtype)
        attention_mask = hidden.masked_fill_(attention_mask.logical_not(), torch.finfo(query.dtype).min)
    same_for_all_queries = attention_mask is not None and attention_mask.shape[1:3] == (1, 1)
    if same_for_all_queries:
        rows = attention_mask.to(query.dtype).expand(batch, heads, 1, keys).reshape(-1, 1, keys)
    query, key = query.reshape(-1, queries, width), key.reshape(-1, keys, width)
    scores = torch.baddbmm(rows, query, key.transpose(1, 2), alpha=scale).view(batch, heads, queries, keys)
    return scores if attention_mask is None or same_for_all_queries else scores + attention_mask


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
