"""Models and tokenizers from folders, and how large they are.

Weights are read from safetensors only, in fp32, without remote code and without a network. Everything that can be wrong
with a folder is said in one or two lines before any time is spent on it. Attention is transformers' default: fused
(sdpa) where the family has it.
"""

import contextlib
import copy
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from glue_bench.data.rounding import round_up
from glue_bench.errors import UserError
from glue_bench.model_folder import check_tokenizer_files, check_weight_files, model_config
from glue_bench.records import Size
from glue_bench.tasks import Task

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
# A tokenizer may know fewer words than the model has rows (padded to a round number), but not many fewer.
LEAST_VOCABULARY = 0.9
USUAL_DEVIATION = 0.02  # of a new head's weights, where a family's configuration does not say
IN_A_LAYER = re.compile(r"\.(layer|layers|h|block|blocks)\.\d+\.")  # where a family's layers are in its tensors' names


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises UserError where there is none or it does not match config.json."""
    config = config_of(folder)
    check_tokenizer_files(folder)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(f"{folder}: the tokenizer cannot be read: {_one_line(error)}") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"{folder}: its {type(tokenizer).__name__} has no fast form; add a tokenizer.json to the folder"
        )
    # sentence-transformers leaves its own limit of 128 tokens in tokenizer.json
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    rows = getattr(config, "vocab_size", None)
    if not isinstance(rows, int):
        raise UserError(f"{folder}: a model of the type {config.model_type} has no vocabulary; give a text encoder")
    words = tokenizer.get_vocab()
    if not LEAST_VOCABULARY * rows <= len(words) <= rows or max(words.values()) >= rows:
        raise UserError(f"{folder}: the tokenizer has {len(words)} words, the model {rows}; they are not of one model")
    return tokenizer


def load_masked_lm(folder: Path, *, seed: int) -> tuple[PreTrainedModel, bool]:
    """A ...ForMaskedLM in fp32, in eval mode, and whether its MLM head stood in the weights.

    A head that did not is drawn with `seed`. Raises UserError where the folder is incomplete, damaged or holds NaN.
    """
    model, missing = _load(AutoModelForMaskedLM, folder, seed, {})
    inside = f"{model.base_model_prefix}."
    _refuse_missing(folder, [name for name in missing if name.startswith(inside)])
    return model, not missing


def load_classifier(folder: Path, task: Task, *, seed: int) -> PreTrainedModel:
    """Pre-trained weights with a new head for a task, drawn with `seed`; what head there was is not used.

    logits (batch, task.num_outputs), in the order of task.classes. Raises UserError as load_masked_lm does.
    """
    names = dict(enumerate(task.classes or (task.name,)))
    settings = {
        "num_labels": task.num_outputs,
        "id2label": names,
        "label2id": {name: i for i, name in names.items()},
        "problem_type": "regression" if task.is_regression else "single_label_classification",
        "ignore_mismatched_sizes": True,  # a head for other classes; it is drawn anew below
    }
    model, missing = _load(AutoModelForSequenceClassification, folder, seed, settings)
    inside = f"{model.base_model_prefix}."
    _refuse_missing(folder, [name for name in missing if name.startswith(inside) and ".pooler." not in name])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and not name.startswith(inside):
                module.weight.normal_(0.0, getattr(model.config, "initializer_range", USUAL_DEVIATION))
                if module.bias is not None:  # ModernBERT's head has none
                    module.bias.zero_()
    return model


def load_finetuned(folder: Path, task: Task) -> tuple[PreTrainedModel, tuple[int, ...]]:
    """A fine-tuned classifier and the columns of its logits in the order of the data set's classes.

    Raises UserError where it has no trained head, another number of classes, or classes of other names.
    """
    config = config_of(folder)
    columns = label_permutation(config.id2label, task)
    model, missing = _load(AutoModelForSequenceClassification, folder, 0, {})
    _refuse_missing(folder, missing)
    return model, columns


def are_nameless(id2label: Mapping[Any, str]) -> bool:
    """Whether a checkpoint's classes are called LABEL_0, LABEL_1 ..., so that their order can only be assumed."""
    return [id2label[key].upper() for key in sorted(id2label, key=int)] == [f"LABEL_{i}" for i in range(len(id2label))]


def label_permutation(id2label: Mapping[Any, str], task: Task) -> tuple[int, ...]:
    """Columns of a checkpoint's logits in the order of task.classes, matched by name: logits[:, columns].

    Names are compared without case, and -, _ and blanks are one; LABEL_0, LABEL_1 ... mean the data set's order. A
    regression has one column. Raises UserError naming both where they do not match (MNLI drops to about 10 % unmapped).
    """
    found = [id2label[key] for key in sorted(id2label, key=int)]
    if not all(isinstance(name, str) for name in found):
        raise UserError(f"{task.title}: the checkpoint's id2label holds {found}; give the classes' names")
    if len(found) != task.num_outputs:
        raise UserError(
            f"{task.title}: the checkpoint has {len(found)} outputs ({', '.join(found)}), not {task.num_outputs}"
        )
    if task.is_regression or are_nameless(id2label):
        return tuple(range(len(found)))
    plain = [_plain_label(name) for name in found]
    wanted = [_plain_label(name) for name in task.classes]
    if sorted(plain) != sorted(wanted):
        raise UserError(
            f"{task.title}: the checkpoint's classes are {', '.join(found)}; wanted: {', '.join(task.classes)}"
        )
    return tuple(plain.index(name) for name in wanted)


def new_bert(
    *,
    layers: int,
    hidden: int,
    heads: int,
    intermediate: int,
    max_positions: int,
    initializer_range: float,
    vocab_size: int,
    pad_id: int,
    seed: int,
) -> BertForMaskedLM:
    """A BertForMaskedLM with random weights drawn with `seed`. Raises UserError where heads do not divide hidden."""
    if hidden % heads:
        raise UserError(f"teacher.heads: {heads} heads do not divide the width {hidden}")
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=max_positions,
        initializer_range=initializer_range,
        vocab_size=vocab_size,
        pad_token_id=pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForMaskedLM.from_config(config, dtype=torch.float32)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout of a model, attention included; 0 makes training deterministic. The config keeps its own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


def forward_inputs(model: PreTrainedModel, batch: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The entries of a batch that the model's forward takes: DistilBERT and MPNet have no token types.

    transformers 5 gives DistilBERT a BERT tokenizer, which makes token_type_ids all the same; families with a single
    type (RoBERTa) accept them but have no vector for a second segment.
    """
    accepted = set(inspect.signature(model.forward).parameters)
    if getattr(model.config, "type_vocab_size", 2) < 2:
        accepted.discard("token_type_ids")
    return {name: value for name, value in batch.items() if value is not None and name in accepted}


def count_parameters(model: Path | PretrainedConfig | PreTrainedModel) -> Size:
    """Size of a model, from its config alone: a folder with config.json, a config, or a model. Needs no memory.

    `encoder` is the bare encoder as AutoModel makes it (109,482,240 for BERT-base with its pooler and token types,
    66,362,880 for DistilBERT); `parameters` are those of its classifier with two outputs; `without_embeddings` leaves
    out the embedding tables; `bytes` is the bare encoder's safetensors file in fp32. Raises UserError for a bad folder.
    """
    config = copy.deepcopy(config_of(model) if isinstance(model, Path) else getattr(model, "config", model))
    config.num_labels = 2
    try:
        with torch.device("meta"), quiet():
            encoder = AutoModel.from_config(config, dtype=torch.float32)
            classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except Exception as error:  # a family without a classifier, or values that its own code does not take
        raise UserError(f"{model if isinstance(model, Path) else config.model_type}: {_one_line(error)}") from None
    count = sum(parameter.numel() for parameter in encoder.parameters())
    tables = [module for module in encoder.modules() if isinstance(module, nn.Embedding)]
    return Size(
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        encoder=count,
        without_embeddings=count - sum(table.weight.numel() for table in tables),
        bytes=_safetensors_bytes(encoder.state_dict()),
    )


def _safetensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of these tensors as an fp32 safetensors file: 8 bytes, a JSON header padded to 8 bytes, the values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        end = offset + 4 * tensors[name].numel()
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"))
    return 8 + round_up(len(text), 8) + offset


def _load(auto: Any, folder: Path, seed: int, settings: Mapping[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    """A model in eval mode and the names of its tensors that the weights lack. Raises UserError for a bad folder."""
    config_of(folder)
    check_weight_files(folder)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, info = auto.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **_LOCAL,
                **settings,
            )
    except MemoryError:
        raise
    except Exception as error:  # transformers, safetensors and a family's own code all raise here, of many kinds
        mismatch = "ignore_mismatched_sizes" in str(error)  # transformers' advice is for those who want to lose them
        reason = "tensors have other shapes than config.json says" if mismatch else _one_line(error)
        raise UserError(f"{folder}: the weights cannot be read: {reason}") from None
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise UserError(f"{folder}: the weights hold NaN or infinity (in {name}); take an earlier checkpoint")
    if more := sorted(name for name in info["unexpected_keys"] if IN_A_LAYER.search(name)):
        raise UserError(
            f"{folder}: the weights hold {len(more)} tensors in their layers that the model in config.json lacks, "
            f"first {more[0]}; give the config.json that belongs to them"
        )
    return model.eval(), sorted(info["missing_keys"])


def _refuse_missing(folder: Path, missing: Sequence[str]) -> None:
    if missing:
        raise UserError(
            f"{folder}: the weights lack {len(missing)} tensors of the model in config.json, first {missing[0]}"
        )


def config_of(folder: Path) -> PretrainedConfig:
    """A folder's config.json. Raises UserError where it is missing, damaged or of no known model."""
    raw = model_config(folder)
    if "auto_map" in raw and not raw.get("model_type"):
        raise UserError(f"{folder / 'config.json'}: its model is remote code, which is never run; give a known family")
    try:
        return AutoConfig.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # a family's own code checks the values, in its own ways
        raise UserError(f"{folder / 'config.json'}: {_one_line(error)}") from None


def _plain_label(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' tables of missing tensors and its progress bars: what matters of them is said by us."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
