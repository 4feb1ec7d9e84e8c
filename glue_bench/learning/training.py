"""What pretrain and distill have in common around the loop: the set-up from a step's settings, and what is recorded."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from glue_bench.data.corpus import Corpus, corpus_of, made_from
from glue_bench.learning.batches import Batches, Masking, MicroBatch, heldout_batches
from glue_bench.learning.decoder_loss import compile_failure
from glue_bench.learning.distributed import Group, join
from glue_bench.learning.loop import HELDOUT_COLUMNS, LOG_COLUMNS, Curves, Objective, train
from glue_bench.learning.models import load_tokenizer
from glue_bench.learning.optimiser import Schedule, total_steps
from glue_bench.learning.progress import matrix_rate
from glue_bench.machine import local_processes, torch_device, use_threads
from glue_bench.plan import Step, checkpoint_key
from glue_bench.records import Training
from glue_bench.store import Store, write_atomic


@dataclass(frozen=True)
class Setup:
    """The text of a training, cut into batches, and its schedule."""

    corpus: Corpus
    batches: Batches
    heldout: list[MicroBatch]
    schedule: Schedule


def start(settings: Mapping[str, Any], device: str) -> tuple[torch.device, Group]:
    """Device and process group of a training, with the number of threads fixed: torchrun's processes share them."""
    use_threads(max(1, settings["threads"] // local_processes()))
    place = torch_device(device)
    assert isinstance(place, torch.device)
    return place, join(place)


def set_up(
    step: Step,
    store: Store,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    group: Group,
    *,
    ce_positions: str,
    head_only_steps: int,
) -> Setup:
    """Batches and schedule from a step's settings (config.Optimisation). Raises UserError for too short a corpus."""
    settings = step.settings
    corpus = corpus_of(store, load_tokenizer)
    corpus.epoch_batches(settings["seed"], 0, settings["batch_size"])
    masking = Masking.of(corpus, tokenizer, settings["mask_probability"], settings["mask_smoothing"])
    batches = Batches(
        corpus=corpus,
        masking=masking,
        seed=settings["seed"],
        batch_size=settings["batch_size"],
        micro_batch_size=settings["micro_batch_size"],
        ce_positions=ce_positions,
        group=group,
        device=device,
    )
    made = corpus.manifest["train"]
    per_sequence = made["tokens"] / made["sequences"]
    steps = total_steps(settings["tokens"], settings["epochs"], batches.per_epoch, settings["batch_size"], per_sequence)
    warmup = round(settings["warmup"] * steps)
    schedule = Schedule(steps, warmup, settings["learning_rate"], min(head_only_steps, steps))
    tokens = made_from(store)["settings"]["heldout_tokens"]  # the cache may be another run's, with another number
    return Setup(corpus, batches, heldout_batches(corpus.heldout, masking, tokens, device), schedule)


def fingerprint(step: Step, store: Store) -> str:
    """What this training's checkpoints belong to (plan.checkpoint_key)."""
    return checkpoint_key(step, {name: (store.record(name) or {}).get("fingerprint", "") for name in step.needs})


def train_step(objective: Objective, setup: Setup, step: Step, store: Store) -> Curves:
    """Train as a step's settings say, going on from its checkpoints; writes training.csv and heldout.csv."""
    folder = store.folder(step.name)
    curves = train(
        objective,
        setup.batches,
        setup.schedule,
        {**step.settings, **step.upkeep},
        folder=folder,
        fingerprint=fingerprint(step, store),
    )
    if setup.batches.group.records:
        _write_curves(folder, curves)
    return curves


def _write_curves(folder: Path, curves: Curves) -> None:
    write_atomic(folder / "training.csv", _csv(LOG_COLUMNS, curves.log))
    write_atomic(folder / "heldout.csv", _csv(HELDOUT_COLUMNS, curves.heldout))


def training_result(curves: Curves, setup: Setup, settings: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """The JSON-ready result of a training step: records.Training, held-out values before and after, speed."""
    steps = setup.schedule.steps
    record = Training(
        steps=steps,
        examples=steps * settings["batch_size"],
        tokens=curves.tokens,
        seconds=round(curves.seconds, 3),
        first_loss=curves.first_loss,
        last_loss=curves.last_loss,
        micro_batch_size=settings["micro_batch_size"],
        notes=(*notes, *_compile_notes(), *curves.notes),
    )
    rate = matrix_rate(setup.batches.device, settings["precision"])
    achieved = curves.flops / max(curves.seconds, 1e-9)
    return {
        "training": asdict(record),
        "heldout": {when: _heldout(curves.heldout[place]) for when, place in (("before", 0), ("after", -1))},
        "tokens_per_second": round(curves.tokens / max(curves.seconds, 1e-9), 1),
        "flops_per_second": achieved,
        "matrix_flops_per_second": rate,
        "flops_share": achieved / (rate * setup.batches.group.size),
        "epochs": steps / setup.batches.per_epoch,
        "processes": setup.batches.group.size,
    }


def _compile_notes() -> list[str]:
    failure = compile_failure()
    return [f"the loss could not be compiled and was computed in blocks, more slowly ({failure})"] if failure else []


def _heldout(row: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(HELDOUT_COLUMNS[2:], row[2:], strict=True))


def _csv(columns: Sequence[str], rows: Sequence[Sequence[float | None]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.7g}" if isinstance(value, float) else value for value in row] for row in rows)
    return file.getvalue()
