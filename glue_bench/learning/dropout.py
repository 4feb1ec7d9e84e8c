"""Dropout on the CPU at a quarter of the price: the same distribution, drawn 16 random bits at a time.

torch draws one Mersenne-Twister float per element on the CPU: 10 ns with the multiplication, measured; over a BERT step
that is a fifth of the time in fp32 and a quarter in bf16 with AMX. Here one 64-bit word of SFC64 serves four elements
(or eight) and the comparison writes the mask as numbers: 2 ns. On CUDA torch's own dropout is fast and is left alone.
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


class MaskStream:
    """Dropout masks from one stream of random bits, 16 or 8 an element, which any key of integers starts anew."""

    def __init__(self, *key: int, bits: int = 16) -> None:
        self.levels, self.kind = 1 << bits, np.dtype(f"int{bits}")
        self.restart(*key)

    def restart(self, *key: int) -> None:
        """Make the masks to come a function of the key alone, e.g. (seed, step, micro-batch)."""
        self._bits = np.random.SFC64(key)

    def mask(self, like: Tensor, probability: float) -> Tensor:
        """A mask of like's shape and dtype: 0 with the probability, else 1 / (1 - probability), in like's precision."""
        return self.kept(like, probability).mul_(1.0 / (1.0 - probability))

    def kept(self, like: Tensor, probability: float) -> Tensor:
        """The same mask with ones, for who scales what it keeps.

        An element is dropped where its bits lie below a threshold; that is rounded at random, up or down, once per
        mask, so that each element is dropped with exactly the probability asked for. With 8 bits the share dropped of
        one mask is within a 256th of it.
        """
        words = self._bits.random_raw(like.numel() * self.kind.itemsize // 8 + 2)
        threshold = math.floor(probability * self.levels + float(words[-1] >> np.uint64(11)) * 2.0**-53)
        bits = torch.from_numpy(words.view(self.kind))[: like.numel()].view(like.shape)
        kept = torch.empty(like.shape, dtype=like.dtype)
        return torch.ge(bits, threshold - self.levels // 2, out=kept)


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
    rows = mask_rows(attention_mask, query.dtype, batch, heads)
    within = torch.zeros(1, 1, 1, dtype=query.dtype) if rows is None else rows
    query, key = query.reshape(-1, queries, width), key.reshape(-1, keys, width)
    scores = torch.baddbmm(within, query, key.transpose(1, 2), alpha=scale).view(batch, heads, queries, keys)
    return scores if rows is not None else scores + _added(attention_mask, query.dtype)


def mask_rows(attention_mask: Tensor | None, dtype: torch.dtype, batch: int, heads: int) -> Tensor | None:
    """What a mask adds to scores (batch x heads, queries, keys): of shape (batch x heads or 1, 1, keys or 1).

    None where it is not the same for all queries and heads. attention_mask: None, or boolean or to be added, of a shape
    that broadcasts to (batch, heads, queries, keys).
    """
    if attention_mask is None:
        return torch.zeros(1, 1, 1, dtype=dtype)
    if attention_mask.shape[1:3] != (1, 1):
        return None
    keys = attention_mask.shape[-1]
    return _added(attention_mask, dtype).to(dtype).expand(batch, heads, 1, keys).reshape(-1, 1, keys)


def _added(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers to add: of a boolean one the lowest number where nothing is attended to."""
    if attention_mask.dtype != torch.bool:
        return attention_mask
    hidden = torch.zeros(attention_mask.shape, dtype=dtype)
    return hidden.masked_fill_(attention_mask.logical_not(), torch.finfo(dtype).min)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
