"""prepare: what a run reads from outside, in one form: GLUE as parquet, weights as folders, text as tokens."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import BertTokenizer, PreTrainedTokenizerBase

from glue_bench.data import embedded
from glue_bench.data.corpus import record_corpus
from glue_bench.data.glue import cap_rows, read_split_with_warnings
from glue_bench.errors import StepError, UserError
from glue_bench.inputs import Input
from glue_bench.learning.models import load_masked_lm, load_tokenizer, new_bert
from glue_bench.learning.saving import save_model
from glue_bench.model_folder import check_model_folder
from glue_bench.plan import Step
from glue_bench.sources import HUB_DATASET, available_splits
from glue_bench.store import Store, atomic_folder, sha256_file, write_atomic
from glue_bench.tasks import TASKS

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WEIGHT_ENDINGS = (".safetensors", ".safetensors.index.json")
MODEL_FILES = ("config.json",)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]
HUB_SECONDS = 10.0


def run(step: Step, store: Store, device: str) -> dict[str, Any]:
    """Run prepare/glue/TASK, prepare/weights/MODEL or prepare/corpus. Raises UserError for what is amiss outside."""
    kind = step.name.split("/")[1]
    if kind == "glue":
        return _glue(step, store)
    if kind == "weights":
        return _weights(step, store)
    tokenizer = load_tokenizer(store.folder(step.needs[0]) / "model")
    return record_corpus(store, step.settings, step.inputs, tokenizer, step.needs[0])


def _glue(step: Step, store: Store) -> dict[str, Any]:
    """<split>.parquet with idx, the task's inputs and label; training and dev rows capped, test rows never."""
    settings = step.settings
    row = TASKS[settings["task"]]
    source = next(iter(step.inputs.values())).location
    there = available_splits(source, row.name)
    wanted = [*(("train",) if row.train_rows else ()), *row.dev_splits]
    if settings["predict_test"] or row.predicted_by:
        wanted += [split for split in row.test_splits if split in there]
    caps = {"train": settings["max_train_rows"]} | dict.fromkeys(row.dev_splits, settings["max_dev_rows"])
    official = {"train": row.train_rows, **dict(zip(row.dev_splits, row.dev_rows, strict=True))}
    result: dict[str, Any] = {"rows": {}, "available": {}, "official": {}, "warnings": []}
    for split in wanted:
        table, warnings = read_split_with_warnings(
            source,
            row.name,
            split,
            seed=settings["seed"],
            revision=settings["revision"],
            cache=store.cache / "datasets" if settings["source"] == "hub" else None,
        )
        result["available"][split] = table.num_rows
        table = cap_rows(table, caps.get(split, 0), settings["seed"])
        if split == "train" and pc.count_distinct(table["label"]).as_py() < 2:
            raise UserError(f"data.max_train_rows: {caps[split]} leaves {row.name} a single label; allow more rows")
        result["rows"][split] = table.num_rows
        result["official"][split] = official.get(split)
        result["warnings"] += warnings
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        write_atomic(store.folder(step.name) / f"{split}.parquet", buffer.getvalue().to_pybytes())
    for stale in store.folder(step.name).glob("*.parquet"):
        if stale.stem not in wanted:
            stale.unlink()
    official_rows = {split: size for split, size in official.items() if size}
    result["complete"] = settings["source"] != "embedded" and all(
        result["rows"].get(split, 0) >= size for split, size in official_rows.items()
    )
    result["source"] = settings["source"]
    if settings["source"] == "hub":
        result["commit"] = _dataset_commit(settings["revision"])
    return result


def _dataset_commit(revision: str) -> str:
    """The commit of the hub's GLUE: as pinned, else what the hub says now; empty where it cannot be asked."""
    if revision:
        return revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(HUB_DATASET, timeout=HUB_SECONDS).sha or ""
    except Exception:  # offline with a filled cache: the data are there, their commit is not known
        return ""


def _weights(step: Step, store: Store) -> dict[str, Any]:
    """model/: a save_pretrained folder with its tokenizer, checked by loading it."""
    folder = source = store.folder(step.name) / "model"
    result: dict[str, Any] = {"kind": step.settings["kind"]}
    if step.settings["kind"] == "scratch":
        _new_model(step.settings["shape"], folder)
    elif step.settings["kind"] == "hub":
        source, result["commit"] = _download(step.inputs["weights"].location)
        _copy({path.name: Input(str(path), "") for path in source.iterdir() if path.is_file()}, source, folder)
    else:
        source = Path(next(iter(step.inputs.values())).location).parent if step.inputs else Path()
        _copy(step.inputs, source, folder)
    try:
        tokenizer = load_tokenizer(folder)
        _check_special_tokens(tokenizer, folder)
        model, has_head = load_masked_lm(folder, seed=0)
    except UserError as error:  # what is to be mended is the source, not the copy
        raise UserError(str(error).replace(str(folder), str(source))) from None
    result["has_mlm_head"] = has_head and step.settings["kind"] != "scratch"
    result["parameters"] = sum(parameter.numel() for parameter in model.base_model.parameters())
    result["layers"] = model.config.num_hidden_layers
    result["model_type"] = model.config.model_type
    return result


def _new_model(shape: Mapping[str, Any], folder: Path) -> None:
    """A BERT of the shape with random weights, and a tokenizer of the embedded text's whole words."""
    words = [*SPECIAL_TOKENS, *embedded.vocabulary()]
    wanted = shape["vocabulary"] or len(words)
    if wanted < len(words):
        raise UserError(
            f"teacher.vocabulary: {wanted} words are too few for the embedded text, which has {len(words)} with the "
            "special ones; use 0 for exactly these, or a larger number"
        )
    words += [f"[unused{number}]" for number in range(wanted - len(words))]
    tokenizer = BertTokenizer(
        vocab={word: number for number, word in enumerate(words)}, model_max_length=shape["max_positions"]
    )
    model = new_bert(
        layers=shape["layers"],
        hidden=shape["hidden"],
        heads=shape["heads"],
        intermediate=shape["intermediate"],
        max_positions=shape["max_positions"],
        initializer_range=shape["initializer_range"],
        vocab_size=len(words),
        pad_id=tokenizer.pad_token_id,
        seed=shape["seed"],
    )
    save_model(model, tokenizer, folder, "# A BERT with random weights, made by glue_bench\n", {})


def _copy(files: Mapping[str, Input], source: Path, folder: Path) -> None:
    """Copy config, safetensors and tokenizer files byte by byte.

    Raises UserError where they make no model, StepError where one has changed.
    """
    check_model_folder(source)
    with atomic_folder(folder) as temporary:
        for name, one in files.items():
            if not (name.endswith(WEIGHT_ENDINGS) or name in MODEL_FILES or name in TOKENIZER_FILES):
                continue
            shutil.copyfile(one.location, temporary / name)
            if one.identity and f"sha256:{sha256_file(temporary / name)}" != one.identity:
                raise StepError(f"{one.location}: changed while it was read; run the same command again")


def _download(location: str) -> tuple[Path, str]:
    """The snapshot folder and commit of hub weights ID[@REVISION]. Raises UserError where there is none."""
    from huggingface_hub import snapshot_download

    name, _, revision = location.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # huggingface_hub, the network and the operating system all raise here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"weights {location}: the hub gave none ({reason}); check the id and the network, or give a folder"
        ) from None
    return folder, folder.name


def _check_special_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    wanted = ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    missing = [name.removesuffix("_id") for name in wanted if getattr(tokenizer, name) is None]
    if missing:
        raise UserError(f"{folder}: the tokenizer has no {', '.join(missing)}; weights of an MLM encoder are needed")
