"""What quantising costs in score: the int8 export of one fine-tuned model predicts the dev sets of its task.

The weights are those of the median seed, which `finetune.keep_weights` keeps, or the user's own checkpoint. Examples go
through one at a time, as on the edge: activations are quantised by the largest value of a call, so in a batch an
example's logits would depend on its neighbours. Integer products may saturate on CPUs without VNNI: the machine counts.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from glue_bench.data.predictions import PREDICTIONS_FILE, Predictions, decide, read_predictions, write_predictions
from glue_bench.errors import StepError, redo
from glue_bench.learning.classify import longest_input
from glue_bench.learning.metrics import headline, score_with_warnings
from glue_bench.learning.models import load_finetuned, load_tokenizer
from glue_bench.plan import Step
from glue_bench.records import Score
from glue_bench.reporting.quantised import logit_difference
from glue_bench.reporting.scores import Spread
from glue_bench.store import Store, damaged_file
from glue_bench.tasks import TASKS, Task
from glue_bench.timing.backends import (
    BACKENDS,
    SAME_LOGITS,
    Ready,
    Source,
    Unavailable,
    bytes_of,
    first_line,
    installed_versions,
    logits_of,
)
from glue_bench.timing.lengths import Batch, Example, check_batches, examples_of, padded


def run(step: Step, store: Store, scratch: Path) -> dict[str, Any]:
    """Predict, score, and keep predictions.parquet; where that is impossible, `skipped` says why and nothing is scored.

    Returns scores, seed, largest_logit_difference (against the predictions that finetune kept), bytes_on_disk and
    fp32_bytes_on_disk (of the two exports), versions, skipped. `scratch` is a folder for the exports.
    """
    result: dict[str, Any] = {"scores": [], "seed": None, "largest_logit_difference": None, "bytes_on_disk": None}
    result |= {"fp32_bytes_on_disk": None, "versions": installed_versions(), "skipped": ""}
    try:
        source_step, weights = _weights(step, store)
        return result | _predict(step, store, source_step, weights, scratch)
    except Unavailable as reason:
        return result | {"skipped": str(reason)}


def _weights(step: Step, store: Store) -> tuple[str, Path]:
    """(the fine-tuning, its folder of weights): the user's checkpoint, or the seed closest to the median that has some.

    After more seeds were added the median may be one whose weights are gone. Raises Unavailable where all are.
    """
    model, task = step.settings["model"], step.settings["task"]
    cells = {int(name.rsplit("-", 1)[1]): name for name in step.needs if name.startswith("finetune/")}
    if config := step.inputs.get("config.json"):
        return cells[0], Path(config.location).parent
    split = TASKS[task].dev_splits[0]
    by_seed = {}
    for seed, name in cells.items():
        scored = next(one for one in store.result(name)["scores"] if one["split"] == split)
        by_seed[seed] = headline(task, scored["metrics"])
    folders = {seed: store.folder(name) / "weights" for seed, name in cells.items()}
    there = [seed for seed, folder in folders.items() if any(folder.glob("*.safetensors"))]
    if (seed := Spread(by_seed).closest_to_median(there)) is not None:
        return cells[seed], folders[seed]
    raise Unavailable(
        f"the fine-tuned weights are gone; with finetune.keep_weights = median, delete the folders "
        f"finetune/{model}/{task} and {step.name} of the run, and the next run-all makes them anew"
    )


def _predict(step: Step, store: Store, source_step: str, weights: Path, scratch: Path) -> dict[str, Any]:
    settings, task = step.settings, TASKS[step.settings["task"]]
    if not step.inputs and (
        damaged := damaged_file(weights, store.result(source_step).get("weights_files", {}), hash_all=True)
    ):
        raise StepError(f"{damaged}; {redo(store.folder(source_step))}")
    model, columns = load_finetuned(weights, task)
    tokenizer = load_tokenizer(weights)
    longest = longest_input(model, tokenizer, settings["max_length"])
    splits = {split: _read(store, task, split, tokenizer, longest) for split in task.dev_splits}
    checks = check_batches(splits[task.dev_splits[0]][1], tokenizer.pad_token_id)
    source = Source(model, torch.device("cpu"), settings["threads"], scratch, checks[0])
    _check_export(source, checks)
    ready = BACKENDS["onnx-int8"].load(source, "int8")
    predictions = []
    for split, ((idx, label), examples) in splits.items():
        logits = _logits(ready, examples, tokenizer.pad_token_id, task.num_outputs)[:, list(columns)]
        if not np.isfinite(logits).all():
            raise Unavailable("its logits are not finite")
        prediction = decide(logits, task.is_regression)
        predictions.append(Predictions(split, idx, label.astype(np.float64), prediction, logits))
    write_predictions(store.folder(step.name) / PREDICTIONS_FILE, predictions)
    seed = int(source_step.rsplit("-", 1)[1])
    kept = read_predictions(store.folder(source_step) / PREDICTIONS_FILE)
    return {
        "scores": [asdict(_score(settings["model"], task, seed, one)) for one in predictions],
        "seed": seed,
        "largest_logit_difference": max(logit_difference(one, kept[one.split]) for one in predictions),
        "bytes_on_disk": ready.bytes_on_disk,
        "fp32_bytes_on_disk": bytes_of(scratch / "fp32.onnx"),
    }


def _read(
    store: Store, task: Task, split: str, tokenizer: Any, longest: int
) -> tuple[tuple[np.ndarray, np.ndarray], list[Example]]:
    """((idx, label), examples) of a dev split as `prepare` left it."""
    table = pq.read_table(store.folder(f"prepare/glue/{task.name}") / f"{split}.parquet")
    texts = [table[name].to_pylist() for name in task.inputs]
    return (table["idx"].to_numpy(), table["label"].to_numpy()), examples_of(texts, tokenizer, longest)


def _check_export(source: Source, checks: list[Batch]) -> None:
    """The fp32 export must compute what the model does: what differs after it is then quantisation's doing."""
    eager, exported = (BACKENDS[name].load(source, "fp32") for name in ("eager", "onnx"))
    for batch in checks:
        try:
            difference = (logits_of(eager, batch) - logits_of(exported, batch)).abs().max().item()
        except Exception as error:
            raise Unavailable(f"the fp32 export fails: {first_line(error)}") from None
        if not math.isfinite(difference) or difference > SAME_LOGITS:
            raise Unavailable(f"the fp32 export's logits differ from the model's by up to {difference:.2g}")


def _logits(ready: Ready, examples: list[Example], pad: int, outputs: int) -> np.ndarray:
    """Logits (n, outputs) float32 of n examples, one at a time. Raises Unavailable where the export fails."""
    logits = np.empty((len(examples), outputs), np.float32)
    for row, example in enumerate(examples):
        try:
            logits[row] = ready.logits(ready.forward(ready.place(padded([example], pad)))).numpy()[0]
        except Exception as error:
            raise Unavailable(f"the int8 export fails: {first_line(error)}") from None
    return logits


def _score(model: str, task: Task, seed: int, one: Predictions) -> Score:
    metrics, warnings = score_with_warnings(task.name, one.prediction, one.label)
    return Score(model, task.name, one.split, seed, metrics, len(one.idx), warnings)
