"""finetune: one model on one task with one seed, to predictions per example and their scores.

Three kinds of step: pre-trained weights are fine-tuned (from a fine-tuned teacher's soft targets too, where the row
asks for it), a checkpoint that the user fine-tuned only predicts, and the majority row needs no model at all.

A stated deviation: finetune.dropout holds for every dropout of every model, so that teacher and student differ in
nothing but their weights. run_glue.py keeps what a checkpoint's config says, which differs for DistilBERT alone: 0.2
before its last layer (seq_classif_dropout), 0.1 elsewhere.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glue_bench.data.batching import Encoded, encode
from glue_bench.data.predictions import (
    PREDICTIONS_FILE,
    TRAIN_LOGITS_FILE,
    Predictions,
    decide,
    read_train_logits,
    write_predictions,
    write_train_logits,
)
from glue_bench.errors import StepError, UserError
from glue_bench.learning.classify import Recipe, SoftTargets, longest_input, predict, train
from glue_bench.learning.heap import kept_heap
from glue_bench.learning.metrics import score_with_warnings
from glue_bench.learning.models import are_nameless, load_classifier, load_finetuned, load_tokenizer, set_dropout
from glue_bench.learning.saving import save_model
from glue_bench.machine import torch_device, use_threads
from glue_bench.plan import Step
from glue_bench.records import Score, Training
from glue_bench.store import Store, list_outputs
from glue_bench.tasks import TASKS, Task

AX = "ax"  # the split name of the diagnostic set among MNLI's predictions
SPLITS_KEPT = 16  # read and tokenised ones, so that the models and seeds of a task, which come in turn, share them
NO_TRAINING = Training(steps=0, examples=0, tokens=0, seconds=0.0)


@dataclass(frozen=True, eq=False)
class Examples:
    """One split as `prepare` left it: idx (n,), a column of texts for each input, label (n,) (-1 where unknown)."""

    idx: np.ndarray
    texts: tuple[list[str], ...]
    label: np.ndarray


@dataclass(frozen=True)
class Words:
    """A tokenizer and the longest input of its model; two are equal where they treat every text alike."""

    identity: str
    max_length: int
    tokenizer: PreTrainedTokenizerBase = field(compare=False)


def run(step: Step, store: Store, device: str) -> dict[str, Any]:
    """Fine-tune (or only predict) and score; returns scores, training, and rows and truncated rows by split.

    Writes predictions.parquet; weights/ where it trained; train_logits.parquet where students want them.
    """
    task = TASKS[step.settings["task"]]
    splits = _splits(step, store, task)
    if step.settings["model"] == "majority":
        return _majority(step, store, task, splits)
    use_threads(step.settings["threads"])
    place = torch_device(device)
    assumed = False  # the order of a checkpoint's classes
    with kept_heap():
        if "weights" in step.settings:
            model, words, training = _fine_tuned(step, store, task, place)
            columns = tuple(range(task.num_outputs))
        else:
            folder = _checkpoint(step)
            model, columns = load_finetuned(folder, task)
            assumed = not task.is_regression and are_nameless(model.config.id2label)
            words, training = _words(folder, model, step.settings["max_length"]), NO_TRAINING
            model.to(place)
        predictions, truncated = [], {}
        for split, examples in splits.items():
            encoded = _tokenised(examples, words)
            logits = predict(model, encoded, step.settings["precision"])[:, list(columns)]
            predictions.append(_decided(split, examples, logits, task))
            truncated[split] = encoded.truncated
    write_predictions(store.folder(step.name) / PREDICTIONS_FILE, predictions)
    # Apart from the outputs, as the report prunes them; what reads them later looks whether they are still these.
    files = list_outputs(store.folder(step.name) / "weights") if "weights" in step.settings else {}
    files.pop("README.md", None)  # anyone may edit the model card
    more = ({"weights_files": files} if files else {}) | ({"classes_assumed": True} if assumed else {})
    return _result(step, predictions, truncated, training) | more


def _fine_tuned(step: Step, store: Store, task: Task, device: torch.device) -> tuple[PreTrainedModel, Words, Training]:
    """Train on the task's training set; save the weights and, where students want them, the logits on that set."""
    settings, folder = step.settings, store.folder(step.name)
    weights = store.folder(settings["weights"]) / "model"
    model = load_classifier(weights, task, seed=settings["seed"]).to(device)
    set_dropout(model, settings["dropout"])
    words = _words(weights, model, settings["max_length"])
    examples = _read(store.folder(f"prepare/glue/{task.name}") / "train.parquet", task)
    encoded = _tokenised(examples, words)
    recipe = Recipe(**{one.name: settings[one.name] for one in fields(Recipe)})
    soft = _soft_targets(store, settings, examples, device)
    training = train(model, encoded, examples.label, recipe, soft, step.name)
    card = f"# {step.name}\n\n{task.title}, {training.steps} steps of fine-tuning by glue_bench.\n"
    save_model(model, words.tokenizer, folder / "weights", card, {})
    if settings.get("train_logits"):
        logits = predict(model, encoded, settings["precision"])
        write_train_logits(folder / TRAIN_LOGITS_FILE, examples.idx, logits)
    return model, words, training


def _soft_targets(
    store: Store, settings: Mapping[str, Any], examples: Examples, device: torch.device
) -> SoftTargets | None:
    if not settings.get("soft_targets"):
        return None
    logits = read_train_logits(store.folder(settings["teacher"]) / TRAIN_LOGITS_FILE, examples.idx)
    return SoftTargets(torch.from_numpy(logits).to(device), settings["soft_targets"], settings["temperature"])


def _majority(step: Step, store: Store, task: Task, splits: Mapping[str, Examples]) -> dict[str, Any]:
    """The row without a model: the most frequent class of the training labels, or their mean.

    Its logits are the logarithms of the classes' shares, or that mean.
    """
    labels = _read(store.folder(f"prepare/glue/{task.name}") / "train.parquet", task).label
    if task.is_regression:
        logits = np.array([labels.mean()])
    else:
        counts = np.bincount(labels, minlength=task.num_outputs)
        logits = np.log(np.maximum(counts, 0.5) / len(labels))
    predictions = [
        _decided(split, one, np.tile(logits.astype(np.float32), (len(one.idx), 1)), task)
        for split, one in splits.items()
    ]
    write_predictions(store.folder(step.name) / PREDICTIONS_FILE, predictions)
    return _result(step, predictions, dict.fromkeys(splits, 0), NO_TRAINING)


def _splits(step: Step, store: Store, task: Task) -> dict[str, Examples]:
    """What is predicted: the dev sets, the test sets that are there, and by the model of MNLI the AX that it needs."""
    folder = store.folder(f"prepare/glue/{task.name}")
    found = {split: _read(folder / f"{split}.parquet", task) for split in task.dev_splits}
    for split in task.test_splits:
        if (folder / f"{split}.parquet").is_file():
            found[split] = _read(folder / f"{split}.parquet", task)
    for other in TASKS.values():
        source = f"prepare/glue/{other.name}"
        if other.predicted_by == task.name and source in step.needs:
            found[AX] = _read(store.folder(source) / f"{other.test_splits[0]}.parquet", other)
    return found


def _decided(split: str, examples: Examples, logits: np.ndarray, task: Task) -> Predictions:
    prediction = decide(logits, task.is_regression)
    if not np.isfinite(logits).all():
        raise StepError(f"{task.name}: the model's outputs on {split} hold NaN or infinity; lower learning_rate")
    return Predictions(split, examples.idx, examples.label.astype(np.float64), prediction, logits)


def _result(
    step: Step, predictions: list[Predictions], truncated: Mapping[str, int], training: Training
) -> dict[str, Any]:
    scores = [_score(step, one) for one in predictions if one.split in _scored_splits(step) and one.is_labelled]
    return {
        "scores": [asdict(one) for one in scores],
        "training": asdict(training),
        "sequences": {one.split: len(one.idx) for one in predictions},
        "truncated": dict(truncated),
    }


def _scored_splits(step: Step) -> tuple[str, ...]:
    """Test sets are never scored, whatever their labels; AX is where its labels are known."""
    return (*TASKS[step.settings["task"]].dev_splits, AX)


def _score(step: Step, one: Predictions) -> Score:
    task = AX if one.split == AX else step.settings["task"]
    try:
        metrics, warnings = score_with_warnings(task, one.prediction, one.label)
    except ValueError as error:
        raise StepError(f"{step.name}: {one.split}: {error}") from None
    seed = step.settings.get("seed") or 0
    return Score(step.settings["model"], task, one.split, seed, metrics, len(one.idx), warnings)


def _checkpoint(step: Step) -> Path:
    """The folder of a checkpoint that the user fine-tuned."""
    config = step.inputs.get("config.json")
    if config is None:
        raise UserError(
            f"finetuned.{step.settings['task']} of {step.settings['model']}: no config.json among its files "
            f"({', '.join(sorted(step.inputs))}); give the folder that save_pretrained wrote"
        )
    return Path(config.location).parent


def _read(file: Path, task: Task) -> Examples:
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        raise StepError(f"{file}: missing; run prepare again") from None
    return _read_once(file, stamp, task)


@lru_cache(maxsize=SPLITS_KEPT)
def _read_once(file: Path, stamp: int, task: Task) -> Examples:
    table = pq.read_table(file)
    texts = tuple(table[name].to_pylist() for name in task.inputs)
    return Examples(table["idx"].to_numpy(), texts, table["label"].to_numpy())


def _words(folder: Path, model: PreTrainedModel, max_length: int) -> Words:
    tokenizer = load_tokenizer(folder)
    content = [tokenizer.backend_tokenizer.to_str(), tuple(tokenizer.model_input_names), tokenizer.pad_token_id]
    identity = hashlib.sha256(repr(content).encode()).hexdigest()
    return Words(identity, longest_input(model, tokenizer, max_length), tokenizer)


@lru_cache(maxsize=SPLITS_KEPT)
def _tokenised(examples: Examples, words: Words) -> Encoded:
    return encode(words.tokenizer, examples.texts, words.max_length)
