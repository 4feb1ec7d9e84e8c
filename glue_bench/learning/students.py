"""The student, cut from its teacher: which layers it takes, and the tensors that are copied.

Source: Sanh et al. 2019, section 3 ("Student initialization"), and the authors' extraction scripts.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, DistilBertConfig, PreTrainedModel

from glue_bench.errors import UserError
from glue_bench.learning.families import encoder_layers, family_of, mlm_head
from glue_bench.learning.models import config_of, quiet

# Below a layer of BERT -> below a layer of DistilBERT.
_LAYER_NAMES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
DISTILBERT_EPSILON = 1e-12  # fixed in its code, where BERT has the setting layer_norm_eps
_TRANSFORM_NAMES = {"dense": "vocab_transform", "LayerNorm": "vocab_layer_norm"}


def student_layers(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The teacher's layers that a student of that many layers takes: evenly spaced, the first and the last among them.

    Layer i is i (teacher_layers - 1) / (student_layers - 1), rounded, halves up. From 12 to 6 these are the paper's
    0, 2, 4, 7, 9, 11; from 6 to 3: 0, 3, 5. A single layer is the first. Raises UserError where there are not enough.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(f"layers: {student_layers} layers asked of a teacher that has {teacher_layers}")
    last, gaps = teacher_layers - 1, max(student_layers - 1, 1)
    return tuple((2 * i * last + gaps) // (2 * gaps) for i in range(student_layers))


def chosen_layers(teacher_layers: int, setting: Sequence[int]) -> tuple[int, ...]:
    """The setting `layers`: one number is a count, several are the teacher's layers themselves, counted from 0.

    Raises UserError where one is out of range or stands twice.
    """
    if len(setting) == 1:
        return student_layers(teacher_layers, setting[0])
    check_layers(teacher_layers, setting)
    return tuple(setting)


def check_layers(teacher_layers: int, layers: Sequence[int]) -> None:
    """Raise UserError where there is no layer, one is out of range, or one stands twice."""
    if not layers:
        raise UserError("layers: at least one is needed")
    for i, layer in enumerate(layers):
        if not 0 <= layer < teacher_layers:
            raise UserError(f"layers[{i}]: no layer {layer}; the teacher's are 0 to {teacher_layers - 1}")
        if layer in layers[:i]:
            raise UserError(f"layers[{i}]: layer {layer} stands twice")


def check_student(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError where this teacher cannot be distilled as config.Distill says: built without memory or weights.

    folder: the teacher's. settings: those of the distill step.
    """
    with torch.device("meta"), quiet(), torch.random.fork_rng(devices=[]):
        teacher = AutoModelForMaskedLM.from_config(config_of(folder), dtype=torch.float32)
        _, student = student_of(teacher, settings)
        mlm_head(student)
        if settings["freeze_positions"]:
            freeze_positions(student)


def student_of(teacher: PreTrainedModel, settings: Mapping[str, Any]) -> tuple[tuple[int, ...], PreTrainedModel]:
    """The teacher's layers that a distill step takes, and the student built of them (build_student)."""
    layers = chosen_layers(len(encoder_layers(teacher)), settings["layers"])
    student = build_student(
        teacher,
        layers,
        family=settings["family"],
        fold_token_types=settings["fold_token_types"],
        copy_head_transform=settings["copy_head_transform"],
        random_init=settings["initialisation"] == "random",
        seed=settings["seed"],
    )
    return layers, student


def build_student(
    teacher: PreTrainedModel,
    layers: Sequence[int],
    *,
    family: str,
    fold_token_types: bool,
    copy_head_transform: bool,
    random_init: bool,
    seed: int,
) -> PreTrainedModel:
    """A ...ForMaskedLM of the given teacher layers: DistilBERT for BERT with family "auto", else the teacher's family.

    Copied bit for bit: word and position embeddings and their LayerNorm, the layers, the MLM decoder (tied to the word
    embeddings) with its bias, and with `copy_head_transform` the head's transform. `fold_token_types` adds the type
    vector of the first segment to DistilBERT's position embeddings, which otherwise has none at all. `random_init`
    copies nothing. What is not copied is drawn with `seed`. Dropout is the teacher's. The random state of the caller is
    left alone. Raises UserError for an unknown family, wrong layers, types that cannot be folded, or
    layer norms that DistilBERT does not have.
    """
    check_layers(len(encoder_layers(teacher)), layers)
    kind = teacher.config.model_type
    distilbert = family == "auto" and kind == "bert"
    if distilbert and not random_init and teacher.config.layer_norm_eps != DISTILBERT_EPSILON:
        unfolded = " without fold_token_types" if fold_token_types else ""
        raise UserError(
            f"distill.family: DistilBERT's layer norms add {DISTILBERT_EPSILON:g}, this teacher's "
            f'{teacher.config.layer_norm_eps:g}; use family = "same"{unfolded}'
        )
    if fold_token_types and not distilbert:
        raise UserError(f"distill.fold_token_types: a {kind} student has no place for it; leave it off")
    config = _distilbert_config(teacher, len(layers)) if distilbert else copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    if random_init:
        return student
    tensors = teacher.state_dict()
    copied = _distilbert_tensors(tensors, layers) if distilbert else _same_tensors(teacher, tensors, layers)
    if fold_token_types:
        first_type = tensors["bert.embeddings.token_type_embeddings.weight"][0]
        copied["distilbert.embeddings.position_embeddings.weight"] += first_type
    if not copy_head_transform:
        copied |= {name: value for name, value in student.state_dict().items() if name in _transform_names(student)}
    student.load_state_dict(copied)
    return student


def freeze_positions(model: PreTrainedModel) -> None:
    """Keep the position embeddings as they are: those of the released DistilBERT are frozen copies of BERT's.

    Raises UserError where the family has none of its own (relative positions only).
    """
    frozen = 0
    for name, parameter in model.base_model.named_parameters():
        if name.endswith("embeddings.position_embeddings.weight"):
            parameter.requires_grad_(False)
            frozen += 1
    if not frozen:
        raise UserError(f"distill.freeze_positions: {model.config.model_type} has no position embeddings; leave it off")


def _distilbert_config(teacher: PreTrainedModel, layers: int) -> DistilBertConfig:
    config = teacher.config
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        sinusoidal_pos_embds=False,
        n_layers=layers,
        n_heads=config.num_attention_heads,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation=config.hidden_act,
        initializer_range=config.initializer_range,
        tie_word_embeddings=config.tie_word_embeddings,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )


def _distilbert_tensors(tensors: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """A BERT's tensors under DistilBERT's names; token types are left out, the pooler is not part of an MLM."""
    names = {f"cls.predictions.transform.{old}": new for old, new in _TRANSFORM_NAMES.items()}
    names |= {"cls.predictions.decoder": "vocab_projector"}
    for part in ("word_embeddings", "position_embeddings", "LayerNorm"):
        names[f"bert.embeddings.{part}"] = f"distilbert.embeddings.{part}"
    for i, layer in enumerate(layers):
        for old, new in _LAYER_NAMES.items():
            names[f"bert.encoder.layer.{layer}.{old}"] = f"distilbert.transformer.layer.{i}.{new}"
    return {
        f"{new}.{kind}": tensors[f"{old}.{kind}"].clone()
        for old, new in names.items()
        for kind in ("weight", "bias")
        if f"{old}.{kind}" in tensors
    }


def _same_tensors(teacher: PreTrainedModel, tensors: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """A teacher's tensors, without those of the layers that are not taken; the others renumbered."""
    prefix = f"{teacher.base_model_prefix}.{family_of(teacher).layers}."
    copied = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    for i, layer in enumerate(layers):
        old = f"{prefix}{layer}."
        copied |= {f"{prefix}{i}.{name[len(old) :]}": v for name, v in tensors.items() if name.startswith(old)}
    return copied


def _transform_names(model: PreTrainedModel) -> set[str]:
    """Names of the MLM head's tensors up to its decoder."""
    decoder = model.get_output_embeddings()
    decoders = {id(decoder.weight), id(decoder.bias)}
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not name.startswith(f"{model.base_model_prefix}.") and id(parameter) not in decoders
    }
