"""Tiny classifiers, examples for them and a recipe, for the tests of fine-tuning."""

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from glue_bench.data.batching import Encoded
from glue_bench.learning.classify import Recipe
from glue_bench.learning.models import set_dropout

WORDS = 60
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT |= {"vocab_size": WORDS, "max_position_embeddings": 40, "pad_token_id": 1, "initializer_range": 0.2}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": WORDS, "initializer_range": 0.2}
RECIPE = Recipe(
    learning_rate=1e-3,
    batch_size=8,
    epochs=2,
    warmup=0.1,
    weight_decay=0.0,
    max_grad_norm=1.0,
    seed=0,
    precision="fp32",
)


def classifier(family: str = "bert", outputs: int = 2, dropout: float = 0.0, **changes: Any) -> PreTrainedModel:
    settings = DISTILBERT | {"pad_token_id": 1} if family == "distilbert" else BERT
    config = CONFIG_MAPPING[family](**settings | {"num_labels": outputs} | changes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    set_dropout(model, dropout)
    return model


def examples(count: int, words: int = WORDS, seed: int = 0) -> Encoded:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 20, count)
    ids = np.concatenate([rng.integers(2, words, lengths.sum()), np.full(32, 1)]).astype(np.int32)
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    return Encoded(torch.from_numpy(ids), None, starts, lengths, 1, 32, 0)


def labels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2, count)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    return Recipe(**{**recipe.__dict__, **changes})
