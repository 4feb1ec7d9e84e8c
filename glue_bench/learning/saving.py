"""Models written to folders that `from_pretrained` reads, with tokenizer and model card, whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glue_bench.learning.models import quiet
from glue_bench.store import atomic_folder


def pooler_tensors(folder: Path, model: PreTrainedModel) -> dict[str, Tensor]:
    """The pooler in a folder's weights, which a ...ForMaskedLM leaves out, named as classifiers look for it.

    Empty where there is none. Given to `save_model`, it keeps a pre-trained teacher whole: its classifiers stand on it.
    """
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                _, pooler, rest = f".{name}".rpartition(".pooler.")
                if pooler:
                    found[f"{model.base_model_prefix}.pooler.{rest}"] = file.get_tensor(name).float()
    return found


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str, more: Mapping[str, Tensor]
) -> None:
    """Write weights (safetensors), config, tokenizer and model card; the folder appears whole or not at all.

    `more` are tensors to store beside the model's own (`pooler_tensors`). Raises StepError where it cannot be written.
    """
    tensors = {**model.state_dict(), **more} if more else None
    with atomic_folder(folder) as temporary, quiet():
        model.save_pretrained(temporary, state_dict=tensors)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def model_card(
    *,
    name: str,
    teacher: str,
    shape: str,
    data: Sequence[str],
    tokens: int,
    loss: Mapping[str, float],
    scores: Mapping[str, float],
    notes: Sequence[str],
) -> str:
    """The README.md of a model folder: teacher, data, tokens, loss weights and scores, as far as they are known."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "tags: [glue_bench]",
        "---",
        "",
        f"# {name}",
        "",
    ]
    lines += [f"{shape}, made by glue_bench" + (f" from the teacher {teacher}." if teacher else "."), ""]
    lines += ["| | |", "| --- | --- |", f"| text | {', '.join(data) or 'none'} |", f"| tokens seen | {tokens:,} |"]
    lines += [f"| weight of {term} | {weight:g} |" for term, weight in loss.items()]
    lines += [f"| {metric} | {value:.4f} |" for metric, value in scores.items()]
    return "\n".join([*lines, *(["", *(f"- {note}" for note in notes)] if notes else []), ""])
