"""Tiny model folders for the tests of timing: a BERT and its DistilBERT student with one tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(45))]


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words w0 to w44, pairs as BERT has them."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    special = {f"{name}_token": f"[{name.upper()}]" for name in names}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=inputs, **special)


def save_bert(folder: Path, layers: int) -> None:
    """A BertForMaskedLM of width 32 with random weights and the tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(WORDS), max_position_embeddings=140, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def save_distilbert(folder: Path, layers: int) -> None:
    """A DistilBertForMaskedLM of the same width."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layers": layers, "n_heads": 2, "hidden_dim": 64}
    config = DistilBertConfig(vocab_size=len(WORDS), max_position_embeddings=140, **sizes)
    DistilBertForMaskedLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
