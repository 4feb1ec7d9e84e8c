"""Fine-tuning on a GPU with recorded steps (CUDA graphs) against the same steps kernel by kernel, in turns.

    python benchmarks/graphs.py

Shapes of BERT-base, DistilBERT, all-MiniLM-L6 and its first 3 layers with random weights; batches of 32 generated
examples of 36 +- 12 tokens in a vocabulary of 30,522, dropout 0.1, bf16. Each way trains a model of its own through
glue_bench.learning.classify.train; a warm-up of both is thrown away. Prints a table of steps/s (medians of the turns)
and, as its last line, one JSON object. On a CPU nothing is recorded, and both ways are the same.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from tabulate import tabulate
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, PreTrainedModel

from glue_bench.data.batching import Encoded
from glue_bench.learning import classify
from glue_bench.learning.classify import Recipe, train
from glue_bench.learning.graphs import StepGraphs
from glue_bench.machine import cpu_name, torch_device

LONGEST, BATCH = 128, 32
MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
SHAPES: dict[str, Any] = {
    "bert-base": BertConfig(),
    "distilbert": DistilBertConfig(),
    "minilm-6": BertConfig(num_hidden_layers=6, **MINILM),
    "minilm-3": BertConfig(num_hidden_layers=3, **MINILM),
}
WAYS: dict[str, Callable[[torch.device], StepGraphs]] = {
    "kernel by kernel": lambda _: StepGraphs(torch.device("cpu")),  # which records nothing
    "recorded": StepGraphs,
}


def generated(examples: int) -> Encoded:
    """Random words in lengths that are normally distributed."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(36, 12, examples).round().astype(np.int64), 6, LONGEST)
    words = np.concatenate([random.integers(1000, 30_522, lengths.sum()), np.zeros(LONGEST)])
    ids = torch.from_numpy(words.astype(np.int32))
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    return Encoded(ids, torch.zeros_like(ids), starts, lengths, 0, LONGEST, 0)


def steps_per_second(model: PreTrainedModel, way: str, steps: int) -> float:
    """One epoch of so many batches, one of the two ways; what is recorded is recorded within the time."""
    encoded, labels = generated(BATCH * steps), np.arange(BATCH * steps) % 2
    recipe = Recipe(2e-5, BATCH, 1, 0.1, 0.0, 1.0, 0, "bf16")
    with patch.object(classify, "StepGraphs", WAYS[way]):
        started = time.perf_counter()
        train(model, encoded, labels, recipe, None, way)  # ends with a look at the losses, which waits for the device
        return steps / (time.perf_counter() - started)


def measure(shape: str, device: torch.device, steps: int, turns: int) -> dict[str, Any]:
    """Both ways in turns, with a model of each."""
    torch.manual_seed(0)
    models = {way: AutoModelForSequenceClassification.from_config(SHAPES[shape]).to(device) for way in WAYS}
    for way, model in models.items():
        steps_per_second(model, way, 4)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(turns):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            found[way].append(steps_per_second(models[way], way, steps))
    row: dict[str, Any] = {way: round(median(values), 1) for way, values in found.items()}
    return row | {"ratio": round(row["recorded"] / row["kernel by kernel"], 2)}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, metavar="SHAPE")
    parser.add_argument("--steps", type=int, default=300, help="of a turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    device = torch_device(options.device)
    assert isinstance(device, torch.device)
    rows = {shape: measure(shape, device, options.steps, options.turns) for shape in options.shapes}
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    print(f"{on}: steps/s of fine-tuning, batches of {BATCH}")
    print(tabulate([{"shape": shape} | row for shape, row in rows.items()], headers="keys", tablefmt="github"))
    print(json.dumps({"machine": on, "steps": options.steps, "shapes": rows}))


if __name__ == "__main__":
    main()
