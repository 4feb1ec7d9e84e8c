"""A folder of weights as save_pretrained leaves it, looked at without torch: is all there, and what does it say it is?

So plan answers at once, and a bad folder is refused before anything is copied, tokenised or trained. That the weights
are whole and finite is found by loading them, in prepare.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glue_bench.errors import UserError

CONFIG = "config.json"
SHARDS = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# One size under the names that BERT and DistilBERT give it, and the largest that is no mistake.
SIZES = {
    "layers": (("num_hidden_layers", "n_layers"), 1_000),
    "hidden": (("hidden_size", "dim"), 1_000_000),
    "vocabulary": (("vocab_size",), 100_000_000),
    "positions": (("max_position_embeddings",), 100_000_000),
}
# Families that count positions from the padding's number plus one.
FROM_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})


def check_model_folder(folder: Path) -> None:
    """Raise UserError where config.json, safetensors or the tokenizer is missing, or weights are a pickle only."""
    model_config(folder)
    check_weight_files(folder)
    check_tokenizer_files(folder)


def check_tokenizer_files(folder: Path) -> None:
    """Raise UserError where a folder has no tokenizer."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(
            f"{folder}: no tokenizer (tokenizer.json or vocab.txt); copy it from where the weights are from"
        )


def check_weight_files(folder: Path) -> None:
    """Raise UserError where there are no safetensors, or their index names anything but safetensors beside it."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if "adapter_config.json" in names:
        raise UserError(
            f"{folder}: holds a PEFT adapter, no whole model; merge it (merge_and_unload), then save_pretrained"
        )
    if not any(name.endswith(".safetensors") for name in names):
        if pickles := sorted(name for name in names if name.endswith(PICKLES)):
            raise UserError(
                f"{folder}: only {pickles[0]}, a pickle, which is never read; convert it: load it once with "
                "from_pretrained where you trust it, then save_pretrained, which writes model.safetensors"
            )
        raise UserError(f"{folder}: no weights (model.safetensors); give a folder as save_pretrained leaves it")
    if SHARDS in names and "model.safetensors" not in names:
        shards = _read_json(folder / SHARDS).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{folder / SHARDS}: no weight_map; save the model anew with save_pretrained")
        for shard in shards.values():
            if not isinstance(shard, str) or not shard.endswith(".safetensors") or shard not in names:
                raise UserError(f"{folder / SHARDS}: names {shard!r}, which is no .safetensors file in this folder")


def model_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json as plain data. Raises UserError where it is missing or no JSON, or its sizes are none."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder}: no config.json; a folder as save_pretrained leaves it is needed")
    raw = _read_json(path)
    for names, largest in SIZES.values():
        for name in names:
            size = raw.get(name)
            whole = isinstance(size, int) and not isinstance(size, bool)
            if size is not None and not (whole and 1 <= size <= largest):
                raise UserError(f"{path}: {name} is {size!r}; expected a whole number from 1 to {largest:,}")
    if not isinstance(raw.get("model_type", ""), (str, type(None))):
        raise UserError(f"{path}: model_type is {raw['model_type']!r}; expected a family's name, e.g. bert")
    deviation = raw.get("initializer_range", 0.0)  # of the heads of classifiers, which are new
    if isinstance(deviation, (int, float)) and not 0 <= deviation < float("inf"):
        raise UserError(f"{path}: initializer_range is {deviation!r}; expected a number of 0 or more")
    return raw


def size_of(config: Mapping[str, Any], what: str) -> int | None:
    """layers, hidden, vocabulary or positions of a config.json, whatever its family calls them; None where unsaid."""
    return next((config[name] for name in SIZES[what][0] if config.get(name) is not None), None)


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """The tokens for which a model has positions; None where its config.json names no limit."""
    positions = size_of(config, "positions")
    if positions is not None and config.get("model_type") in FROM_PADDING:
        padding = config.get("pad_token_id")
        positions -= (padding if isinstance(padding, int) else 1) + 1  # transformers' default for these families is 1
    return positions


def check_sequence_length(wanted: int, longest: int | None) -> None:
    """Raise UserError where sequences of the text are longer than the model has positions (None: no limit)."""
    if longest is not None and wanted > longest:
        raise UserError(
            f"corpus.sequence_length: {wanted} is above the teacher's {longest} positions; set at most that"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not a valid JSON file; save the model anew with save_pretrained") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no JSON object; save the model anew with save_pretrained")
    return raw
