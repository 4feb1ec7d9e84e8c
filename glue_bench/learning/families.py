"""What differs between encoder families: where the layers are, and how the MLM head is put together.

A new family is one row of FAMILIES. Everything else about a model is asked of transformers' common interface.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from glue_bench.errors import UserError
from glue_bench.learning.losses import Head
from glue_bench.learning.models import forward_inputs


@dataclass(frozen=True)
class Family:
    """`layers`: path of the list of layers below the bare encoder; `transform`: the MLM head up to its decoder."""

    layers: str
    transform: Callable[[PreTrainedModel, Tensor], Tensor]


def _bert(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    return model.cls.predictions.transform(hidden)


def _distilbert(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))


def _roberta(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    return model.lm_head.layer_norm(nn.functional.gelu(model.lm_head.dense(hidden)))


def _electra(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    return model.generator_predictions(hidden)


FAMILIES: dict[str, Family] = {
    "bert": Family("encoder.layer", _bert),
    "distilbert": Family("transformer.layer", _distilbert),
    "roberta": Family("encoder.layer", _roberta),
    "xlm-roberta": Family("encoder.layer", _roberta),
    "camembert": Family("encoder.layer", _roberta),
    "mpnet": Family("encoder.layer", _roberta),
    "electra": Family("encoder.layer", _electra),
}


def family_of(model: PreTrainedModel) -> Family:
    """The model's row of FAMILIES. Raises UserError where it has none."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise UserError(f"a model of the type {kind} cannot be distilled; can be: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind]


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers of a model, first to last. Raises UserError for an unknown family."""
    return model.base_model.get_submodule(family_of(model).layers)


def mlm_head(model: PreTrainedModel) -> Head:
    """The MLM head of a ...ForMaskedLM as hidden -> logits, in two parts. Raises UserError for an unknown family."""
    family, decoder = family_of(model), model.get_output_embeddings()
    return Head(lambda hidden: family.transform(model, hidden), decoder.weight, decoder.bias)


def encode(model: PreTrainedModel, batch: Mapping[str, Tensor | None]) -> Tensor:
    """Last hidden states (batch, length, width) of a model's bare encoder.

    `batch` holds input_ids and, where there is padding, attention_mask. Leave that out (or None) where there is none:
    attention is faster without, and on a GPU nothing has to look whether it is all ones.
    """
    return model.base_model(**forward_inputs(model, batch)).last_hidden_state
