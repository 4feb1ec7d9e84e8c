"""Transformer layers of the BERT kind in bf16 on a CPU, forward and backward written out.

Module by module under autocast, a layer casts the same hidden states three times, copies biases before products, keeps
its residual stream in fp32 and hands autograd forty small operations. Here hidden states and their gradients stay in
bf16 from layer to layer (weights, what is added up for them and the norms' statistics in fp32, as ever), queries, keys
and values are one product, bias and GELU are taken within products where no gradient needs what is before them, a
residual is added with its dropout in one pass, and softmax takes three passes of seven. MiniLM-L6 on MRPC in batches of
32, two threads with AMX: training 1.2 and prediction 1.35 times as fast as module by module.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from glue_bench.learning.dropout import SHORT, MaskStream, attention, mask_rows
from glue_bench.learning.families import encoder_layers
from glue_bench.learning.fused_linear import LowLinear, onednn_linear
from glue_bench.learning.layer_parts import PARTS, Parts

LOW = torch.bfloat16
ZERO = torch.zeros((), dtype=LOW)
norm_backward = torch.ops.aten.native_layer_norm_backward
softmax_backward = torch.ops.aten._softmax_backward_data.out
gelu_backward = torch.ops.aten.gelu_backward.grad_input


class Weights:
    """A layer's weights and biases in bf16, as they are when first asked for; of queries, keys and values together."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.out, self.up, self.down = (LowLinear(one) for one in (parts.out, parts.up, parts.down))

    @cached_property
    def qkv(self) -> tuple[Tensor, Tensor]:
        """(3 x width, width) and (3 x width,)."""
        layers = (self.parts.query, self.parts.key, self.parts.value)
        weight = torch.empty(3, *layers[0].weight.shape, dtype=LOW)
        bias = torch.empty(3, *layers[0].bias.shape, dtype=LOW)
        for layer, its_weight, its_bias in zip(layers, weight, bias, strict=True):
            its_weight.copy_(layer.weight.detach())
            its_bias.copy_(layer.bias.detach())
        return weight.flatten(0, 1), bias.flatten()


@contextlib.contextmanager
def written_out_layers(model: PreTrainedModel, precision: str, stream: MaskStream | None) -> Iterator[None]:
    """Within the block a model's layers are those below; nothing changes but in bf16 on a CPU, nor in other families.

    With a stream, which dropout draws from, they train; without one they predict, and the model's weights must not
    change meanwhile. A layer whose forward pass somebody has replaced already keeps that one.
    """
    parts_of = PARTS.get(model.config.model_type)
    if parts_of is None or model.device.type != "cpu" or precision != "bf16" or onednn_linear() is None:
        yield
        return
    changed = []
    for layer in encoder_layers(model):
        if "forward" in vars(layer) or not (parts := parts_of(layer)).is_plain:
            continue
        if stream is None:
            layer.forward = partial(_predict, parts, Weights(parts))
        else:
            layer.forward = partial(_train, parts, stream, layer.forward)
        changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _train(
    parts: Parts,
    stream: MaskStream,
    usual: Callable[..., Tensor],
    hidden: Tensor,
    attention_mask: Tensor | None = None,
    *others: Any,
    **options: Any,
) -> Tensor:
    """A layer on hidden states (batch, length, width), with dropout and gradients."""
    rows = mask_rows(attention_mask, LOW, len(hidden), parts.heads)
    if rows is None:
        return usual(hidden, attention_mask, *others, **options)
    weights = Weights(parts)
    with torch.autocast("cpu", enabled=False):
        attended = _Attention.apply(parts, weights, stream, rows, hidden.to(LOW), *parts.attention_parameters)
        return _FeedForward.apply(parts, weights, stream, attended, *parts.feed_forward_parameters)


def _predict(
    parts: Parts, weights: Weights, hidden: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """A layer on hidden states (batch, length, width), without gradients."""
    linear = onednn_linear()
    with torch.autocast("cpu", enabled=False):
        hidden = hidden.to(LOW)
        query, key, value = _heads(linear(hidden, *weights.qkv, "none", [], ""), 3, parts.heads)
        context = _context(parts, query, key, value, len(hidden), attention_mask)
        attended = linear.binary(context, hidden, *weights.out.both, "add")
        attended = _norm(attended, parts.attention_norm)[0]
        inner = linear(attended, *weights.up.both, "gelu", [], "none")
        return _norm(linear.binary(inner, attended, *weights.down.both, "add"), parts.norm)[0]


def _context(
    parts: Parts, query: Tensor, key: Tensor, value: Tensor, batch: int, attention_mask: Tensor | None
) -> Tensor:
    """Attention without gradient: (batch x heads, length, width / heads) each -> (batch, length, width)."""
    rows = mask_rows(attention_mask, LOW, batch, parts.heads) if key.shape[1] <= SHORT else None
    found = None if rows is None else _exponentials(query, key, rows)
    if found is None:
        of_heads = (one.unflatten(0, (batch, parts.heads)) for one in (query, key, value))
        return attention(parts.own, *of_heads, attention_mask)[0].flatten(2)
    weights, sums = found
    return _merged(torch.bmm(weights, value).div_(sums)[None], batch)


def _exponentials(query: Tensor, key: Tensor, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """e^scores (batch x heads, queries, keys) and their sums over keys; None where they would over- or underflow.

    softmax's own passes, for the maximum and to fp32 and back, are a twelfth of a step and a fifth of prediction. bf16
    reaches as far as fp32; what is kept, to scores of 69, leaves room for the product with values.
    """
    weights = _scores(query, key, rows).exp_()
    sums = weights.sum(-1, keepdim=True)
    lowest, highest = torch.aminmax(sums)
    return (weights, sums) if 1e-30 < float(lowest) <= float(highest) < 1e30 else None


def _probabilities(query: Tensor, key: Tensor, rows: Tensor) -> Tensor:
    """softmax(scores), (batch x heads, queries, keys)."""
    found = _exponentials(query, key, rows)
    if found is not None:
        return found[0].div_(found[1])
    return torch.softmax(_scores(query, key, rows), dim=-1, dtype=torch.float32).to(LOW)


def _scores(query: Tensor, key: Tensor, rows: Tensor) -> Tensor:
    return torch.baddbmm(rows, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)


class _Attention(torch.autograd.Function):
    """norm(hidden + dropout(out(attention(hidden))))."""

    @staticmethod
    def forward(
        ctx: Any, parts: Parts, weights: Weights, stream: MaskStream, rows: Tensor, hidden: Tensor, *_: Tensor
    ) -> Tensor:
        """hidden (batch, length, width) bf16, rows as mask_rows gives them -> the same shape as hidden."""
        linear = onednn_linear()
        query, key, value = _heads(linear(hidden, *weights.qkv, "none", [], ""), 3, parts.heads)
        probabilities = _probabilities(query, key, rows)
        kept = stream.kept(probabilities, parts.weights_probability) if parts.weights_probability else None
        dropped = probabilities if kept is None else probabilities * kept
        context = _merged(_product(dropped, value, 1.0 / (1.0 - parts.weights_probability))[None], len(hidden))
        total, kept_out = _residual(
            hidden, linear(context, *weights.out.both, "none", [], ""), stream, parts.attention_probability
        )
        normed, mean, deviation = _norm(total, parts.attention_norm)
        ctx.parts, ctx.weights = parts, weights
        saved = (hidden, query, key, value, probabilities, kept, dropped, context, total, kept_out, mean, deviation)
        ctx.save_for_backward(*saved)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, in bf16, and of the parameters, in fp32, from the gradient of what forward gave."""
        hidden, query, key, value, probabilities, kept, dropped, context, total, kept_out, mean, deviation = (
            ctx.saved_tensors
        )
        parts, weights = ctx.parts, ctx.weights
        width = hidden.shape[-1]
        d_total, *d_norm = _norm_backward(gradient, total, parts.attention_norm, mean, deviation)
        d_out = _residual_backward(d_total, kept_out, parts.attention_probability)
        (d_context,) = _heads((d_out.flatten(0, 1) @ weights.out.both[0]).view(hidden.shape), 1, parts.heads)
        of_kept, scale = 1.0 / (1.0 - parts.weights_probability), query.shape[-1] ** -0.5
        d_probabilities = _product(d_context, value.transpose(1, 2), of_kept)
        if kept is not None:
            d_probabilities.mul_(kept)
        d_scores = softmax_backward(d_probabilities, probabilities, -1, LOW, grad_input=d_probabilities)
        d_heads = query.new_empty(3, *query.shape)
        _product(d_scores, key, scale, out=d_heads[0])
        _product(d_scores.transpose(1, 2), query, scale, out=d_heads[1])
        _product(dropped.transpose(1, 2), d_context, of_kept, out=d_heads[2])
        d_qkv = _merged(d_heads, len(hidden)).flatten(0, 1)
        d_weight, d_bias = _linear_backward(d_qkv, hidden)
        of_each = zip(d_weight.view(3, width, width), d_bias.view(3, width), strict=True)
        d_hidden = torch.addmm(d_total.flatten(0, 1), d_qkv, weights.qkv[0]).view(hidden.shape)
        of_layers = (*(one for pair in of_each for one in pair), *_linear_backward(d_out, context))
        return None, None, None, None, d_hidden, *of_layers, *d_norm


class _FeedForward(torch.autograd.Function):
    """norm(hidden + dropout(down(gelu(up(hidden)))))."""

    @staticmethod
    def forward(ctx: Any, parts: Parts, weights: Weights, stream: MaskStream, hidden: Tensor, *_: Tensor) -> Tensor:
        """hidden (batch, length, width) bf16 -> the same shape."""
        linear = onednn_linear()
        inner = linear(hidden, *weights.up.both, "none", [], "")
        activated = F.gelu(inner)
        total, kept = _residual(
            hidden, linear(activated, *weights.down.both, "none", [], ""), stream, parts.probability
        )
        normed, mean, deviation = _norm(total, parts.norm)
        ctx.parts, ctx.weights = parts, weights
        ctx.save_for_backward(hidden, inner, activated, total, kept, mean, deviation)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, in bf16, and of the parameters, in fp32, from the gradient of what forward gave."""
        hidden, inner, activated, total, kept, mean, deviation = ctx.saved_tensors
        d_total, *d_norm = _norm_backward(gradient, total, ctx.parts.norm, mean, deviation)
        d_down = _residual_backward(d_total, kept, ctx.parts.probability)
        d_inner = d_down.flatten(0, 1) @ ctx.weights.down.both[0]
        gelu_backward(d_inner, inner.flatten(0, 1), grad_input=d_inner)
        d_hidden = torch.addmm(d_total.flatten(0, 1), d_inner, ctx.weights.up.both[0]).view(hidden.shape)
        of_layers = (*_linear_backward(d_inner, hidden), *_linear_backward(d_down, activated))
        return None, None, None, d_hidden, *of_layers, *d_norm


def _heads(projected: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(batch, length, parts x width) -> each part's (batch x heads, length, width / heads)."""
    batch, length, _ = projected.shape
    apart = projected.view(batch, length, parts, heads, -1).permute(2, 0, 3, 1, 4).contiguous()
    return apart.flatten(1, 2).unbind(0)


def _merged(of_heads: Tensor, batch: int) -> Tensor:
    """(parts, batch x heads, length, width / heads) -> (batch, length, parts x width), as it was before _heads."""
    parts, _, length, head_width = of_heads.shape
    return of_heads.view(parts, batch, -1, length, head_width).permute(1, 3, 0, 2, 4).reshape(batch, length, -1)


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale x left x right, of one matrix in each (batch, rows, columns) after the other."""
    out = left.new_empty(len(left), left.shape[1], right.shape[2]) if out is None else out
    return torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _residual(hidden: Tensor, output: Tensor, stream: MaskStream, dropout: float) -> tuple[Tensor, Tensor | None]:
    """hidden + dropout(output), and which elements the dropout keeps: ones and zeros, scaled where they are used."""
    if dropout == 0.0:
        return hidden + output, None
    kept = stream.kept(output, dropout)
    return torch.addcmul(hidden, output, kept, value=1.0 / (1.0 - dropout), out=output), kept


def _residual_backward(gradient: Tensor, kept: Tensor | None, dropout: float) -> Tensor:
    """The gradient of what _residual added to hidden, from that of the sum."""
    return gradient if kept is None else torch.addcmul(ZERO, gradient, kept, value=1.0 / (1.0 - dropout))


def _norm(values: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of bf16 values with weights in fp32, and its means and reciprocal deviations, for the gradient."""
    return torch.native_layer_norm(values, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _norm_backward(
    gradient: Tensor, values: Tensor, norm: nn.LayerNorm, mean: Tensor, deviation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    shape = norm.normalized_shape
    return norm_backward(gradient.contiguous(), values, shape, mean, deviation, norm.weight, norm.bias, [True] * 3)


def _linear_backward(gradient: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a linear layer's weight and bias, in fp32, from that of its output and from its input."""
    gradient, values = (one.flatten(0, -2) for one in (gradient, values))
    turned = gradient.t()
    if gradient.shape[1] < values.shape[1]:  # oneDNN reads a product's left side slowly along columns: 1.8 ms, 1.3 so
        turned = turned.contiguous()
    return (turned @ values).float(), gradient.sum(0).float()
