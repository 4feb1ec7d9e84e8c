"""benchmark: how large the models are, and how long they take on the same inputs, taking turns.

benchmark/size counts; benchmark/cpu and benchmark/cuda time; benchmark/int8/... score the exports (timing/int8.py).
Every model is timed as a classifier with one output, as for STS-B; its head has random weights, which no time depends
on. All models, backends and precisions of one scenario are timed interleaved, so that any two of its rows can be
compared turn by turn.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from glue_bench import machine
from glue_bench.learning.classify import longest_input
from glue_bench.learning.models import count_parameters, load_classifier, load_tokenizer
from glue_bench.plan import Step
from glue_bench.records import Timing
from glue_bench.store import Store
from glue_bench.tasks import TASKS
from glue_bench.timing import int8
from glue_bench.timing.backends import (
    BACKENDS,
    SAME_LOGITS,
    Ready,
    Source,
    Unavailable,
    first_line,
    installed_versions,
    logits_of,
)
from glue_bench.timing.clock import Limits, event_stopwatch, interleave, new_garbage_only, wall_stopwatch, warm_up
from glue_bench.timing.conditions import between, snapshot
from glue_bench.timing.lengths import (
    Batch,
    Example,
    Work,
    check_batches,
    random_examples,
    stsb_examples,
    stsb_lengths,
    within_vocabulary,
    work_of,
)
from glue_bench.timing.memory import cuda_memory, held, peak_rise, process_memory

STSB = "prepare/glue/stsb"
MEGABYTE = 1e6
LONGEST = 512  # tokens; no pair of STS-B comes near
MEMORY_MEANS = (
    "what the weights hold (ONNX: what opening a second session takes) plus the rise of memory while the scenario's "
    "largest batch runs, after warm-up, in units of 1e6 bytes; process: {how}; device: "
    "torch.cuda.max_memory_allocated; on CUDA the weights lie on the device"
)


@dataclass(frozen=True)
class Place:
    """Where models are timed: cpu, cuda, cuda:1 ..., and what it is called by its maker."""

    label: str
    name: str
    device: torch.device


@dataclass(frozen=True)
class Row:
    """One model on one backend in one precision: ready to be timed, or the reason why it is not."""

    model: str
    backend: str
    precision: str
    ready: Ready | None = None
    skipped: str = ""
    logit_difference: float | None = None

    @property
    def name(self) -> str:
        """Unique within a step."""
        return f"{self.model} {self.backend} {self.precision}"

    @property
    def is_reference(self) -> bool:
        """Whether this is the model itself, which all others are compared with: where it fails, the step does."""
        return (self.backend, self.precision) == ("eager", "fp32")


def run(step: Step, store: Store, device: str) -> dict[str, Any]:
    """Run benchmark/size, benchmark/int8/..., benchmark/cpu or benchmark/cuda; the device is the one in the settings.

    Returns {"sizes": {model: Size}}, what int8.run does, or {"timings": [Timing, ...], "groups": what the machine did
    meanwhile, ...}.
    """
    if step.name.startswith("benchmark/int8/"):
        machine.use_threads(step.settings["threads"])
        with tempfile.TemporaryDirectory() as scratch:
            return int8.run(step, store, Path(scratch))
    folders = {model: store.folder(source) / "model" for model, source in step.settings["models"].items()}
    if step.name == "benchmark/size":
        return {"sizes": {model: asdict(count_parameters(folder)) for model, folder in folders.items()}}
    machine.use_threads(step.settings["threads"])
    parts = []
    for place in places(step.settings):
        on_device = torch.cuda.device(place.device) if place.device.type == "cuda" else contextlib.nullcontext()
        with on_device, tempfile.TemporaryDirectory() as scratch:
            parts.append(_time_all(step, store, folders, place, Path(scratch)))
    several = {name: [one for part in parts for one in part[name]] for name in ("timings", "groups")}
    return parts[0] | several


def places(settings: Mapping[str, Any]) -> list[Place]:
    """The CPU, or one visible GPU of every kind: cuda is the first, cuda:3 the first of another kind."""
    first = machine.torch_device(settings["device"])
    if first.type != "cuda":
        return [Place(settings["device"], settings["machine"], first)]
    kinds: dict[str, int] = {}
    for index in range(torch.cuda.device_count()):
        kinds.setdefault(torch.cuda.get_device_name(index), index)
    return [Place(f"cuda:{i}" if i else "cuda", name, torch.device("cuda", i)) for name, i in kinds.items()]


def _time_all(step: Step, store: Store, folders: Mapping[str, Path], place: Place, scratch: Path) -> dict[str, Any]:
    settings, device = step.settings, place.device
    tokenizer = load_tokenizer(next(iter(folders.values())))  # the teacher's, for all
    models = {
        name: load_classifier(folder, TASKS["stsb"], seed=settings["seed"]).to(device)
        for name, folder in folders.items()
    }
    takes = {name: longest_input(model, tokenizer, LONGEST) for name, model in models.items()}
    longest = min(takes.values())
    vocabulary = min(model.config.vocab_size for model in models.values())
    pool, source = _examples(step, store, tokenizer, longest)
    pool = within_vocabulary(pool, vocabulary)
    checks = check_batches(pool, tokenizer.pad_token_id)
    by_model = []
    for name, model in models.items():
        (scratch / name).mkdir()
        source_of_rows = Source(model, device, settings["threads"], scratch / name, checks[0])
        by_model.append(_rows(name, source_of_rows, checks, settings))
    rows = [row for partners in zip(*by_model, strict=True) for row in partners]  # their turns follow each other
    works = [
        work
        for scenario in settings["scenarios"]
        for work in work_of(scenario, settings["batch_sizes"], pool, settings, tokenizer, vocabulary)
    ]
    timings, groups = [], []
    with new_garbage_only():
        for work in tqdm(works, desc=step.name, unit="scenario", disable=not machine.is_terminal()):
            measured, group = _time_together(work, _that_fit(rows, work, takes), place, settings)
            timings += measured
            groups.append(group)
    return {
        "timings": [asdict(timing) for timing in timings],
        "groups": groups,
        "inputs": {
            "source": source,
            "pairs": len(pool),
            "mean_tokens": round(sum(len(one.ids) for one in pool) / len(pool), 1),
            "max_length": longest,
        },
        "clock": "CUDA events" if device.type == "cuda" else "time.perf_counter",
        "memory": MEMORY_MEANS.format(how=process_memory().how),
        "head": "one output, random weights",
        "versions": installed_versions(),
    }


def _examples(step: Step, store: Store, tokenizer: Any, longest: int) -> tuple[list[Example], str]:
    """The pairs that scenarios draw from, and what they are."""
    if STSB in step.needs:
        return stsb_examples(store.folder(STSB) / "validation.parquet", tokenizer, longest), f"the dev set of {STSB}"
    seed = step.settings["seed"]
    pool = random_examples(stsb_lengths(longest, seed), tokenizer, seed)
    return pool, "random tokens in the lengths of the STS-B dev set"


def _rows(model: str, source: Source, checks: Sequence[Batch], settings: Mapping[str, Any]) -> list[Row]:
    """A row for each backend and precision asked for, its logits compared with those of eager fp32.

    A backend that fails, in whatever way, is a row with the reason.
    """
    expected = [logits_of(BACKENDS["eager"].load(source, "fp32"), batch) for batch in checks]
    rows = []
    for backend in settings["backends"]:
        for precision in BACKENDS[backend].wanted(settings["precisions"]):
            row = Row(model, backend, precision)
            try:
                ready = BACKENDS[backend].load(source, precision)
                pairs = zip(expected, checks, strict=True)
                difference = max((logits_of(ready, batch) - logits).abs().max().item() for logits, batch in pairs)
            except Unavailable as reason:
                rows.append(replace(row, skipped=str(reason)))
                continue
            except Exception as error:
                rows.append(_failed(row, error))
                continue
            if not math.isfinite(difference):
                rows.append(replace(row, skipped="its logits are not finite"))
                continue
            row = replace(row, ready=ready, logit_difference=None if row.is_reference else difference)
            if precision == "fp32" and difference > SAME_LOGITS:
                row = replace(row, ready=None, skipped=f"its logits differ from eager's by up to {difference:.2g}")
            rows.append(row)
    return rows


def _that_fit(rows: Sequence[Row], work: Work, takes: Mapping[str, int]) -> list[Row]:
    """The rows; where a model takes fewer tokens than the scenario has, with the reason. `takes`: model -> tokens."""
    return [
        replace(row, ready=None, skipped=f"takes {takes[row.model]} tokens at most")
        if row.ready and takes[row.model] < work.longest
        else row
        for row in rows
    ]


def _failed(row: Row, error: Exception) -> Row:
    """The row with the reason; a model that fails as it is fails the step."""
    if row.is_reference:
        raise error
    return replace(row, ready=None, skipped=f"failed: {first_line(error)}")


def _time_together(
    work: Work, rows: Sequence[Row], place: Place, settings: Mapping[str, Any]
) -> tuple[list[Timing], dict[str, Any]]:
    """Warm up every row, measure its memory, then time all rows in turns. Returns timings and what is said of them."""
    on_gpu = place.device.type == "cuda"
    watch = event_stopwatch(torch.cuda) if on_gpu else wall_stopwatch(time.perf_counter, lambda: None)
    limits = Limits(settings["min_passes"], settings["min_seconds"], settings["max_seconds"])
    group: dict[str, Any] = {"device": place.label, "scenario": work.scenario, "batch_size": work.batch_size}
    calls: dict[str, list[Any]] = {}
    call_s: dict[str, float] = {}
    timings = {
        row.name: Timing(
            model=row.model,
            device=place.label,
            device_name=place.name,
            backend=row.backend,
            precision=row.precision,
            scenario=work.scenario,
            batch_size=work.batch_size,
            examples=work.examples,
            samples_s=(),
            pass_s=(),
            threads=settings["threads"],
            bytes_on_disk=row.ready.bytes_on_disk if row.ready else None,
            largest_logit_difference=row.logit_difference,
            skipped=row.skipped,
        )
        for row in rows
    }
    with torch.inference_mode():
        for row in rows:
            if row.ready is None:
                continue
            try:
                placed = [partial(row.ready.forward, row.ready.place(batch)) for batch in work.batches]
                seconds = warm_up(placed, work.shapes, watch)
                memory = _memory(row.ready, work.batches[work.largest], on_gpu)
            except (MemoryError, torch.OutOfMemoryError):
                timings[row.name] = replace(timings[row.name], skipped="out of memory")
                continue
            except Exception as error:
                timings[row.name] = replace(timings[row.name], skipped=_failed(row, error).skipped)
                continue
            calls[row.name], call_s[row.name] = placed, seconds
            timings[row.name] = replace(timings[row.name], **memory)
        if not calls:
            return list(timings.values()), group | {"order": []}
        before = snapshot(place.label)
        measured = interleave(calls, min(call_s.values()), work.whole_pass, limits, watch, time.perf_counter)
        meanwhile = between(before, snapshot(place.label))
    for name, one in measured.items():
        raw = {part: tuple(round(value, 9) for value in values) for part, values in vars(one).items()}
        timings[name] = replace(timings[name], **raw)
    passes = len(next(iter(measured.values())).pass_s)
    seconds = min(sum(one.pass_s) for one in measured.values())
    stopped = passes < limits.min_passes or seconds < limits.min_seconds
    group |= {"order": list(calls), "passes": passes, "stopped_by_max_seconds": stopped}
    return list(timings.values()), group | meanwhile


def _memory(ready: Ready, batch: Batch, on_gpu: bool) -> dict[str, float]:
    """Peak memory of process and device in MB while a batch runs, after warm-up; see MEMORY_MEANS."""
    process, weights = process_memory(), ready.weight_bytes
    if ready.open_again is not None:
        ready, weights = held(process, ready.open_again)
    call = partial(ready.forward, ready.place(batch))
    _, rise = peak_rise(process, call)
    if not on_gpu:
        return {"peak_memory_mb": round((weights + rise) / MEGABYTE, 2)}
    _, device_rise = peak_rise(cuda_memory(torch.cuda), call)
    return {
        "peak_memory_mb": round(rise / MEGABYTE, 2),
        "device_memory_mb": round((weights + device_rise) / MEGABYTE, 2),
    }
