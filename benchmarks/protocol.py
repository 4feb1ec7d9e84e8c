"""How long the paper's fine-tuning protocol takes on this machine: measured for one seed, reckoned for all of it.

    python benchmarks/protocol.py --device cuda --jobs 4
    python benchmarks/protocol.py --device cuda --jobs 4 --share 0.05                       # in two minutes, reckoned
    python benchmarks/protocol.py --share 0.002 --layers 2 --hidden 128 --tasks cola mrpc   # a look at it, on a CPU

A teacher of BERT-base's shape and a student of half its layers (DistilBERT's), both with random weights, on
generated text: every task has GLUE's number of rows, of training and of its dev sets, of the length in tokens and with
the spread of lengths that the real one has, and words as unevenly frequent as real ones. What is learned is nothing; no
time depends on that. It is the command line's own `prepare`, `distill` (which only copies layers) and `finetune`, in
processes of their own, on an empty folder, so that start, tokenisation, predictions and records are in the seconds. 3
epochs, batches of 32, one seed.

Prints a table of the fine-tunings and, as its last line, one JSON object; `protocol_s` is for all seeds of the paper
(5) and both models: what one seed took, without preparing, times 5. With --share every task has that share of its rows,
and `full_seed_s` is reckoned: what a fine-tuning took beside training where that was least is the same for all rows,
and everything else (tokenising, training, predicting, writing) grows with them.
"""

import argparse
import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))  # executors.py, wherever this one is loaded from

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from executors import command
from tabulate import tabulate
from transformers import BertConfig, BertModel, BertTokenizer

from glue_bench.machine import cpu_name, gpu_names
from glue_bench.store import read_record
from glue_bench.tasks import GLUE_NINE, TASKS, Task

VOCABULARY, SPECIAL = 30_522, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ZIPF = 1.1  # the word of rank r comes with probability proportional to r ** -ZIPF
SEEDS = 5  # of the paper's protocol
LONGEST = 128
# Deviation of the length in tokens over its mean, of GLUE's training sets in BERT's word pieces, cut at 128.
SPREAD = {
    "cola": 0.36,
    "sst2": 0.72,
    "mrpc": 0.24,
    "stsb": 0.51,
    "qqp": 0.41,
    "mnli": 0.46,
    "qnli": 0.35,
    "rte": 0.49,
    "wnli": 0.43,
}
CONFIG = """
[data]
glue = "{glue}"
tasks = {tasks}
[teacher]
name = "teacher"
weights = "{weights}"
[[students]]
name = "student"
layers = {layers}
[finetune]
epochs = {epochs}
batch_size = 32
seeds = [0]
keep_weights = "none"
[machine]
device = "{device}"
jobs_per_device = {jobs}
"""


def write_glue(folder: Path, names: list[str], share: float) -> None:
    """A folder of Parquet files as `data.glue` takes it, with `share` of every split's official rows."""
    random = np.random.default_rng(0)
    frequencies = np.arange(1, VOCABULARY - len(SPECIAL) + 1) ** -ZIPF
    cumulative = np.cumsum(frequencies / frequencies.sum())
    for task in (TASKS[name] for name in names):
        sizes = dict(zip(("train", *task.dev_splits), (task.train_rows, *task.dev_rows), strict=True))
        sizes |= dict.fromkeys(task.test_splits, 1)
        (folder / task.name).mkdir(parents=True)
        for split, rows in sizes.items():
            table = _split(task, max(8, round(rows * share)), cumulative, random)
            pq.write_table(table, folder / task.name / f"{split}.parquet")


def _split(task: Task, rows: int, cumulative: np.ndarray, random: np.random.Generator) -> pa.Table:
    """Rows of generated text; lengths in tokens, special ones included, are gamma distributed."""
    shape, special = SPREAD[task.name] ** -2, 1 + len(task.inputs)
    lengths = random.gamma(shape, task.typical_tokens / shape, rows).round()
    words = np.clip(lengths - special, len(task.inputs), LONGEST - special).astype(int)
    drawn = np.searchsorted(cumulative, random.random(words.sum()))
    ends = np.cumsum(words)
    columns: dict[str, Any] = {name: [] for name in task.inputs}
    for start, end in zip(ends - words, ends, strict=True):
        for name, part in zip(task.inputs, np.array_split(drawn[start:end], len(task.inputs)), strict=True):
            columns[name].append(" ".join(f"w{number}" for number in part))
    labels = (
        random.uniform(*task.label_range, rows) if task.label_range else random.integers(task.num_outputs, size=rows)
    )
    return pa.table(columns | {"label": labels, "idx": np.arange(rows, dtype=np.int32)})


def write_model(folder: Path, layers: int, hidden: int) -> None:
    """A BERT with random weights, and a tokenizer to which every word of the text is one token."""
    torch.manual_seed(0)
    shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": max(1, hidden // 64)}
    BertModel(BertConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, **shape)).save_pretrained(folder)
    words = [*SPECIAL, *(f"w{number}" for number in range(VOCABULARY - len(SPECIAL)))]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)


def fine_tunings(run: Path) -> list[dict[str, Any]]:
    """What each trained job of a run did, in the order of the tasks; seconds are the step's, training's within."""
    rows = []
    for name, model in product(GLUE_NINE, ("teacher", "student")):
        record = read_record(run / "finetune" / model / name / "seed-0")
        if record is None:
            continue
        training = record["result"]["training"]
        row = {"task": name, "model": model, "examples": training["examples"], "tokens": training["tokens"]}
        row |= {"train_s": training["seconds"], "step_s": record["seconds"]}
        row |= {f"{what}_per_s": round(row[what] / training["seconds"], 1) for what in ("examples", "tokens")}
        rows.append(row)
    return rows


def full_seconds(seconds: float, jobs: list[tuple[float, float]], share: float, at_once: int) -> float:
    """Seconds with all rows, of what took `seconds` with a share; jobs: seconds of each, and of its training."""
    fixed = min(whole - training for whole, training in jobs)
    return seconds + sum(whole - fixed for whole, _ in jobs) * (1 / share - 1) / at_once


def main() -> None:
    """Generate, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--jobs", type=int, default=1, help="fine-tunings at once on every device")
    parser.add_argument("--share", type=float, default=1.0, help="of every task's rows")
    parser.add_argument("--tasks", nargs="+", default=list(GLUE_NINE), choices=GLUE_NINE, metavar="TASK")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12, help="of the teacher; the student has half of them")
    parser.add_argument("--hidden", type=int, default=768)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        glue, weights, config = Path(folder, "glue"), Path(folder, "weights"), Path(folder, "protocol.toml")
        write_glue(glue, options.tasks, options.share)
        write_model(weights, options.layers, options.hidden)
        values = {name: getattr(options, name) for name in ("tasks", "epochs", "device", "jobs")}
        places = {"glue": glue, "weights": weights, "layers": options.layers // 2}
        config.write_text(CONFIG.format(**values, **places), encoding="utf-8")
        results = Path(folder)
        prepare_s = command("prepare", results, config) + command("distill", results, config)
        seed_s = command("finetune", results, config)
        rows = fine_tunings(results / config.stem)
    gpus = [] if options.device == "cpu" else gpu_names()
    at_once = options.jobs * max(1, len(gpus))
    full_seed_s = full_seconds(seed_s, [(row["step_s"], row["train_s"]) for row in rows], options.share, at_once)
    on = ", ".join(gpus) or cpu_name()
    print(f"{on}; {at_once} at once; {len(rows)} fine-tunings of one seed: {seed_s:.0f} s by the clock")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=",.1f", intfmt=","))
    found = {
        "machine": on,
        "at_once": at_once,
        "share": options.share,
        "epochs": options.epochs,
        "prepare_s": round(prepare_s, 1),
        "seed_s": round(seed_s, 1),
        "full_seed_s": round(full_seed_s, 1),
        "protocol_s": round(SEEDS * full_seed_s, 1),
        "fine_tunings": rows,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
