"""Linear layers of an encoder that only predicts in bf16 on a CPU: bias and GELU within the product.

torch's linear layer in bf16 copies the bias into its output before the product is added, and under autocast queries,
keys and values each cast the same hidden states anew: with GELU's own pass that is a sixth of predicting MRPC's dev set
with all-MiniLM-L6-v2 (AMX, one thread per half of it). oneDNN does bias and GELU while the product is in its registers.
Layers that written_out.py replaces do so themselves; this is for all others, and for a teacher in distillation.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

# Attributes of a feed-forward block: the layer, and the activation that is all that reads its output.
FEED_FORWARD = (("dense", "intermediate_act_fn"), ("lin1", "activation"))


@contextlib.contextmanager
def fused_linear(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Within the block the encoder's linear layers give no gradients; nothing changes but in bf16 on a CPU.

    The same products to the last bit of bf16, but that GELU is taken before rounding and not after it.
    """
    product = onednn_linear()
    if model.device.type != "cpu" or precision != "bf16" or product is None:
        yield
        return
    activated = {}
    for block in model.base_model.modules():
        for layer, activation in FEED_FORWARD:
            if is_gelu(getattr(block, activation, None)) and type(getattr(block, layer, None)) is nn.Linear:
                activated[getattr(block, layer)] = getattr(block, activation)
    layers = [one for one in model.base_model.modules() if type(one) is nn.Linear and "forward" not in vars(one)]
    low = _Cast()
    try:
        for layer in layers:
            layer.forward = partial(_forward, product, low, LowLinear(layer), "gelu" if layer in activated else "none")
        for activation in activated.values():
            activation.forward = _unchanged
        yield
    finally:
        for changed in (*layers, *activated.values()):
            vars(changed).pop("forward", None)


class _Cast:
    """bf16 of what was last asked for on this thread: queries, keys and values read the same hidden states."""

    def __init__(self) -> None:
        self.last = threading.local()

    def __call__(self, values: Tensor) -> Tensor:
        if values.dtype == torch.bfloat16:
            return values
        if getattr(self.last, "values", None) is not values:
            self.last.values, self.last.low = values, values.bfloat16()
        return self.last.low


@dataclass(frozen=True)
class LowLinear:
    """A linear layer's weight and bias in bf16, as they are when first asked for."""

    layer: nn.Linear

    @cached_property
    def both(self) -> tuple[Tensor, Tensor | None]:
        """(outputs, inputs) and, where there is one, (outputs,)."""
        bias = self.layer.bias
        return self.layer.weight.detach().bfloat16(), None if bias is None else bias.detach().bfloat16()


def _forward(product: Any, low: _Cast, layer: LowLinear, activation: str, values: Tensor) -> Tensor:
    return product(low(values), *layer.both, activation, [], "none" if activation == "gelu" else "")


def _unchanged(values: Tensor) -> Tensor:
    return values


def is_gelu(activation: Any) -> bool:
    """Whether this is the exact GELU, not one of its approximations."""
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return type(activation) is GELUActivation and activation.act is nn.functional.gelu


@cache  # asking what the CPU can do costs 0.5 ms
def onednn_linear() -> Any | None:
    """oneDNN's linear layer with what follows it, which torch has for its own compiler; None where it cannot do bf16.

    Unlike torch's plain layers it has nothing to fall back on where the CPU lacks the instructions.
    """
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
