"""The modules of a transformer layer by the same names in every family of BERT's kind, for code that writes it out."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from glue_bench.learning.fused_linear import is_gelu


@dataclass(frozen=True)
class Parts:
    """A layer's modules, in the order in which hidden states meet them."""

    own: nn.Module  # self-attention, as transformers' attention functions take it
    heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    attention_dropout: nn.Module
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: nn.Module
    down: nn.Linear
    dropout: nn.Module
    norm: nn.LayerNorm

    @property
    def weights_probability(self) -> float:
        """With which attention weights are dropped."""
        return _probability(self.own.dropout)

    @property
    def attention_probability(self) -> float:
        """With which attention's output is dropped."""
        return _probability(self.attention_dropout)

    @property
    def probability(self) -> float:
        """With which the feed-forward block's output is dropped."""
        return _probability(self.dropout)

    @property
    def attention_parameters(self) -> list[Tensor]:
        """What the attention block learns."""
        return _parameters(self.query, self.key, self.value, self.out, self.attention_norm)

    @property
    def feed_forward_parameters(self) -> list[Tensor]:
        """What the feed-forward block learns."""
        return _parameters(self.up, self.down, self.norm)

    @property
    def is_plain(self) -> bool:
        """Whether these are ordinary linear layers and norms, with biases, the exact GELU, attention to both sides."""
        linear = (self.query, self.key, self.value, self.out, self.up, self.down)
        ordinary = all(type(one) is nn.Linear and one.bias is not None for one in linear)
        normed = all(type(one) is nn.LayerNorm and one.bias is not None for one in (self.attention_norm, self.norm))
        return ordinary and normed and is_gelu(self.activation) and not self.own.is_causal


def _parameters(*modules: nn.Module) -> list[Tensor]:
    return [one for module in modules for one in (module.weight, module.bias)]


def _probability(dropout: nn.Module) -> float:
    return getattr(dropout, "p", 0.0)  # somebody may have put nn.Identity there


def _bert(layer: nn.Module) -> Parts:
    own, output = layer.attention.self, layer.attention.output
    return Parts(
        own=own,
        heads=own.num_attention_heads,
        query=own.query,
        key=own.key,
        value=own.value,
        out=output.dense,
        attention_dropout=output.dropout,
        attention_norm=output.LayerNorm,
        up=layer.intermediate.dense,
        activation=layer.intermediate.intermediate_act_fn,
        down=layer.output.dense,
        dropout=layer.output.dropout,
        norm=layer.output.LayerNorm,
    )


def _distilbert(layer: nn.Module) -> Parts:
    own, block = layer.attention, layer.ffn
    return Parts(
        own=own,
        heads=own.n_heads,
        query=own.q_lin,
        key=own.k_lin,
        value=own.v_lin,
        out=own.out_lin,
        attention_dropout=nn.Identity(),
        attention_norm=layer.sa_layer_norm,
        up=block.lin1,
        activation=block.activation,
        down=block.lin2,
        dropout=block.dropout,
        norm=layer.output_layer_norm,
    )


PARTS: dict[str, Callable[[nn.Module], Parts]] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "camembert": _bert,
    "electra": _bert,
}
