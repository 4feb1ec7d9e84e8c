"""Every setting of glue_bench, its default and its range, written once: frozen dataclasses read from TOML and --set.

A Config is plain data. Unknown keys, wrong types and values out of range raise ConfigError with the file, the key path
and the remedy, before anything heavy is imported. Published hyper-parameters come from Sanh et al. 2019 (the paper)
and its authors' code; where a default departs from them the field says so.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from glue_bench.config_checks import check_config
from glue_bench.config_checks import check_name as check_name
from glue_bench.config_checks import check_run_name as check_run_name
from glue_bench.errors import ConfigError, UserError
from glue_bench.tasks import GLUE_NINE
from glue_bench.typed import build, near_miss, setting
from glue_bench.typed import plain as plain

CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")

UNPARSED = (ValueError, RecursionError)  # a decoder's own error is one; also numbers of 5,000 digits, lists 1,000 deep


@dataclass(frozen=True)
class Data:
    """Where GLUE comes from and how much of it is used."""

    glue: str = setting("embedded", "embedded, hub, or a folder (parquet by task, or the original TSV folders)")
    revision: str = setting("", "commit of the hub data set nyu-mll/glue")
    tasks: tuple[str, ...] = setting(GLUE_NINE, "tasks to fine-tune and score; AX follows MNLI")
    max_train_rows: int = setting(0, "cap on training rows per task, a seeded subset; 0: all", low=0)
    max_dev_rows: int = setting(0, "cap on dev rows per split; the scores then stand on a subset; 0: all", low=0)
    predict_test: bool = setting(False, "also predict the test sets, for `submit`")
    seed: int = setting(0, "seed of the subset and of mini-GLUE", low=0)


@dataclass(frozen=True)
class Corpus:
    """The text that pretrain and distill read."""

    text: tuple[str, ...] = setting(
        ("embedded",), "embedded, files (.txt .gz .zst .parquet), or hub:ID[:SUBSET][@COMMIT]"
    )
    heldout: str = setting("", "a file for the held-out loss; empty: the last heldout_fraction of the text")
    heldout_fraction: float = setting(0.02, "share of the text held out where no file is given", above=0, high=0.5)
    heldout_tokens: int = setting(40_000, "tokens on which the held-out loss is measured", low=1)
    documents: int = setting(20_000, "documents to generate where text is embedded", low=100)
    max_hub_tokens: int = setting(
        0, "tokens read from the hub's texts, all together, before they are left; 0: everything", low=0
    )
    sequence_length: int = setting(128, "tokens per sequence, special ones included", low=8, high=512)
    batches: str = setting(
        "packed",
        "packed: no padding; by_length: a document a sequence; sentences: a sentence a sequence; "
        "mixed: in turn a sentence, a pair (neighbours, or one reworded) with [SEP] between, and a passage",
        choices=("packed", "by_length", "sentences", "mixed"),
    )
    seed: int = setting(0, "seed of the embedded text", low=0)


@dataclass(frozen=True)
class Teacher:
    """The model to compress: released weights, or a BERT of the given shape trained from scratch by pretrain."""

    name: str = setting("teacher", "its row in the tables")
    weights: str = setting("", "folder, hub id or package:MODULE/FOLDER; empty: random weights of the shape below")
    revision: str = setting("", "commit of the hub weights")
    layers: int = setting(4, "shape from scratch: transformer layers", low=1, high=96)
    hidden: int = setting(128, "shape from scratch: width", low=8)
    heads: int = setting(4, "shape from scratch: attention heads", low=1)
    intermediate: int = setting(512, "shape from scratch: width of the feed-forward layer", low=8)
    max_positions: int = setting(128, "shape from scratch: longest sequence", low=8)
    initializer_range: float = setting(0.02, "shape from scratch: deviation of the random weights", above=0, high=1)
    vocabulary: int = setting(0, "shape from scratch: vocabulary; 0: that of the embedded text", low=0)
    finetuned: Mapping[str, str] = field(default_factory=dict, metadata={"help": "task -> a fine-tuned checkpoint"})


@dataclass(frozen=True)
class Optimisation:
    """AdamW with linear warm-up and decay, for both pretrain and distill. Defaults are those of the authors' code."""

    tokens: int = setting(0, "budget in tokens; 0: given by epochs", low=0)
    epochs: float = setting(
        0.0, "budget in passes over the text; the smaller of both; tokens 0 and epochs 0: no training", low=0
    )
    batch_size: int = setting(256, "sequences per optimiser step, over all processes", low=1)
    micro_batch_size: int = setting(32, "sequences per forward pass; only dropout depends on it", low=1)
    learning_rate: float = setting(5e-4, "peak", above=0, high=1)
    warmup: float = setting(0.05, "share of the steps in linear warm-up", low=0, high=1)
    beta1: float = setting(0.9, "AdamW", low=0, high=0.99999)
    beta2: float = setting(0.98, "AdamW", low=0, high=0.99999)
    epsilon: float = setting(1e-6, "AdamW", above=0)
    weight_decay: float = setting(0.0, "AdamW", low=0)
    max_grad_norm: float = setting(5.0, "gradient norm is clipped here", above=0)
    mask_probability: float = setting(0.15, "share of the attended tokens chosen for MLM", above=0, high=0.9)
    mask_smoothing: float = setting(0.7, "token weight in the choice: max(count, 1) ** -mask_smoothing", low=0)
    dropout: float = setting(0.1, "in training mode", low=0, high=0.9)
    seed: int = setting(0, "of initialisation, masks, dropout and order", low=0)
    evaluations: int = setting(10, "held-out evaluations over the whole training", low=1)
    checkpoint_every: int = setting(100, "optimiser steps between checkpoints", low=1)


@dataclass(frozen=True)
class Pretrain(Optimisation):
    """Masked-language modelling of the teacher: from scratch, or to give released weights an MLM head."""

    head_only_steps: int = setting(
        0, "first steps that train only a new MLM head, so that it does not damage the encoder", low=0
    )
    freeze_encoder: bool = setting(False, "train the MLM head only: the teacher's encoder stays as released")


@dataclass(frozen=True)
class Distill(Optimisation):
    """The triple loss L = 5.0 L_ce + 2.0 L_mlm + 1.0 L_cos and the student it trains."""

    temperature: float = setting(2.0, "of both softmaxes", above=0)
    weight_ce: float = setting(5.0, "of the soft-target loss", low=0)
    weight_mlm: float = setting(2.0, "of the masked-language-modelling loss", low=0)
    weight_cos: float = setting(1.0, "of the cosine loss between last hidden states", low=0)
    ce_positions: str = setting("attended", "where the soft-target loss is taken", choices=("attended", "masked"))
    initialisation: str = setting("teacher", "layers copied from the teacher, or random", choices=("teacher", "random"))
    family: str = setting("auto", "auto: DistilBERT for a BERT teacher, else the teacher's", choices=("auto", "same"))
    fold_token_types: bool = setting(False, "add the first segment's type vector to the position embeddings")
    copy_head_transform: bool = setting(True, "copy the MLM head's transform, not only its decoder")
    freeze_positions: bool = setting(False, "keep the position embeddings as copied, as in the released student")


@dataclass(frozen=True)
class Student:
    """One row: distilled here (layers), released (weights), or another row's encoder (weights_of)."""

    name: str = setting("", "its row in the tables")
    layers: tuple[int, ...] = setting((), "a count, or the teacher's layers to copy, e.g. [0, 2, 4, 7, 9, 11]")
    weights: str = setting("", "folder, hub id or package:MODULE/FOLDER")
    revision: str = setting("", "commit of the hub weights")
    weights_of: str = setting("", "another student, whose distilled encoder this row fine-tunes too")
    distill: Mapping[str, Any] = field(default_factory=dict, metadata={"help": "overrides of [distill]"})
    soft_targets: float = setting(
        0.0, "weight of the fine-tuned teacher's soft targets in fine-tuning; 0: none", low=0, high=1
    )
    finetuned: Mapping[str, str] = field(default_factory=dict, metadata={"help": "task -> a fine-tuned checkpoint"})

    @property
    def least_teacher_layers(self) -> int:
        """Layers that the teacher must have: a list counts them from 0, a single number is a count."""
        return max(self.layers) + 1 if len(self.layers) > 1 else max(self.layers, default=0)


@dataclass(frozen=True)
class TaskTraining:
    """How one task is fine-tuned."""

    learning_rate: float = setting(3e-5, "peak, AdamW", above=0, high=1)
    batch_size: int = setting(32, "examples per optimiser step", low=1)
    epochs: int = setting(3, "the last epoch is scored, never the best", low=1)
    warmup: float = setting(0.1, "share of the steps in linear warm-up", low=0, high=1)
    weight_decay: float = setting(0.0, "AdamW", low=0)
    max_grad_norm: float = setting(1.0, "gradient norm is clipped here", above=0)
    max_length: int = setting(128, "tokens; longer pairs are cut longest first, and counted", low=8, high=512)
    dropout: float = setting(
        0.1, "in training mode, everywhere (the head of DistilBERT has 0.2 by itself)", low=0, high=0.9
    )
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "one fine-tuning each; the paper takes the median of 5", low=0)


@dataclass(frozen=True)
class Finetune(TaskTraining):
    """Fine-tuning: the values for every task, and [finetune.tasks.NAME] for one."""

    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, metadata={"help": "task -> overrides"})
    temperature: float = setting(2.0, "of the soft targets, where a student row asks for them", above=0)
    keep_weights: str = setting("median", "which fine-tuned weights stay on disk", choices=("median", "all", "none"))


@dataclass(frozen=True)
class Benchmark:
    """What is timed. The paper's scenario is stsb-pass: the dev pairs of the run's stsb, or random tokens, batch 1."""

    scenarios: tuple[str, ...] = setting(("stsb-pass",), "stsb-pass, throughput (real lengths), fixed-128")
    batch_sizes: tuple[int, ...] = setting((1, 8, 32, 128), "of throughput and fixed-128", low=1, high=65_536)
    precisions: tuple[str, ...] = setting(("fp32",), "fp32, bf16, fp16 (CUDA only)")
    backends: tuple[str, ...] = setting(("eager",), "eager, compile, onnx, onnx-int8")
    examples: int = setting(256, "examples in one pass; 0: the whole dev set of stsb", low=0, high=1_000_000)
    min_passes: int = setting(8, "passes per model, an even number: they are interleaved A B B A", low=2)
    min_seconds: float = setting(1.0, "and at least this long per model", low=0)
    max_seconds: float = setting(600.0, "no further passes after this long per scenario", above=0)
    seed: int = setting(0, "of the examples drawn", low=0)


@dataclass(frozen=True)
class Check:
    """The gate: thresholds on what every student keeps. None: not judged."""

    min_retention: float | None = setting(None, "of the macro over the 8 tasks without WNLI", low=0, high=1)
    min_task: Mapping[str, float] = field(default_factory=dict, metadata={"help": "task -> least retention"})
    min_size_reduction: float | None = setting(None, "1 - student's parameters / teacher's", low=0, high=1)
    min_speedup: float | None = setting(None, "teacher's time / student's, CPU", low=0)
    judge: str = setting("value", "the point estimate, or the lower end of its interval", choices=("value", "low"))
    students: tuple[str, ...] = setting((), "rows to judge; empty: all students")
    baseline: str = setting("", "a summary.json; no student may keep less than there, less tolerance")
    tolerance: float = setting(0.01, "allowed fall of the retention against the baseline", low=0, high=1)


@dataclass(frozen=True)
class Report:
    """The statistics of the report."""

    resamples: int = setting(10_000, "bootstrap resamples", low=100, high=1_000_000)
    seed: int = setting(0, "of the bootstrap", low=0)


@dataclass(frozen=True)
class Machine:
    """How the work is computed. Threads and precision are part of a result's fingerprint, the device is not."""

    device: str = setting("auto", "auto: CUDA where there is one", choices=("auto", "cpu", "cuda"))
    precision: str = setting(
        "auto", "of training; auto: bf16 on CUDA and on CPUs with AMX or AVX-512 BF16", choices=("auto", "fp32", "bf16")
    )
    threads: int = setting(0, "CPU threads, which torchrun's processes share; 0: all cores", low=0, high=1024)
    jobs_per_device: int = setting(
        1, "fine-tunings at once on one GPU, or on the CPU, whose threads they share", low=1, high=64
    )


@dataclass(frozen=True)
class Config:
    """A whole experiment."""

    name: str = setting("", "of the config; the run is named by it unless --run is given")
    title: str = setting("", "one line for the report")
    data: Data = field(default_factory=Data)
    corpus: Corpus = field(default_factory=Corpus)
    teacher: Teacher = field(default_factory=Teacher)
    students: tuple[Student, ...] = ()
    pretrain: Pretrain = field(default_factory=Pretrain)
    distill: Distill = field(default_factory=Distill)
    finetune: Finetune = field(default_factory=Finetune)
    benchmark: Benchmark = field(default_factory=Benchmark)
    check: Check = field(default_factory=Check)
    report: Report = field(default_factory=Report)
    machine: Machine = field(default_factory=Machine)


def config_names() -> list[str]:
    """Names of the configs that ship with the package."""
    return sorted({path.stem for folder in CONFIG_FOLDERS if folder.is_dir() for path in folder.glob("*.toml")})


def find_config(name: str) -> Path:
    """The file behind --config: a path to a TOML file or a run's config.json, or a shipped name. Raises ConfigError."""
    if name.endswith((".toml", ".json")) or "/" in name:
        path = Path(name)
        try:
            if path.is_file():
                return path
            raise ConfigError(f"--config {name}: {'is no file' if path.exists() else 'no such file'}; give a TOML file")
        except OSError as error:
            raise ConfigError(f"--config {name[:100]}: {error.strerror}; give a TOML file") from None
    for folder in CONFIG_FOLDERS:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise ConfigError(f"--config {name}: no such config{near_miss(name, config_names())}")


def load_config(name: str, assignments: Sequence[str] = ()) -> Config:
    """Read a config by name or path, apply `--set key=value` assignments, check everything. Raises ConfigError."""
    path = find_config(name)
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        raw = parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give a file that can be read") from None
    except UNPARSED as error:
        raise ConfigError(f"{path}: not valid {kind}: {error}") from None
    if not isinstance(raw, dict):  # JSON alone may be a list or a number
        raise ConfigError(f"{path}: no table of settings; give a run's config.json")
    raw.setdefault("name", path.stem)
    for assignment in assignments:
        _assign(raw, assignment)
    return config_from(raw, str(path.name))


def config_from(raw: Mapping[str, Any], source: str) -> Config:
    """Build and check a Config from nested plain data; `source` opens every error message. Raises ConfigError."""
    config = build(Config, raw, source, "")
    for student in config.students:
        distill_settings(config, student)
    check_config(config, source, {task: task_settings(config, task).seeds for task in GLUE_NINE})
    return config


def distill_settings(config: Config, student: Student) -> Distill:
    """[distill] with this student's overrides. Raises ConfigError."""
    merged = {**asdict(config.distill), **student.distill}
    return build(Distill, merged, config.name, f"students.{student.name}.distill")


def task_settings(config: Config, task: str) -> TaskTraining:
    """[finetune] with this task's overrides. Raises ConfigError."""
    names = [f.name for f in fields(TaskTraining)]
    merged = {name: getattr(config.finetune, name) for name in names} | dict(config.finetune.tasks.get(task, {}))
    return build(TaskTraining, merged, config.name, f"finetune.tasks.{task}")


def with_machine(config: Config, **changes: Any) -> Config:
    """The config with other machine settings (the flags --device and the like)."""
    return replace(config, machine=replace(config.machine, **changes))


def _assign(raw: dict[str, Any], assignment: str) -> None:
    """Apply one key=value: the value is read as TOML, else as text. Students are named by number or by name."""
    key, equals, text = assignment.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {assignment}: expected key=value, e.g. distill.tokens=1000000")
    try:
        read = tomllib.loads(f"value = {text}")
    except UNPARSED:
        read = {}
    value = read["value"] if set(read) == {"value"} else text  # more lines would be more settings
    place: Any = raw
    for part in parts[:-1]:
        place = _row(place, part, assignment) if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, (dict, list)):
            raise ConfigError(f"--set {assignment}: {part!r} is a value, not a table")
    if isinstance(place, list):
        raise ConfigError(f"--set {assignment}: name a setting of the row, e.g. students.0.layers=3")
    place[parts[-1]] = value


def _row(rows: list[Any], part: str, assignment: str) -> Any:
    names = [row.get("name", "") if isinstance(row, dict) else "" for row in rows]
    if part in names:
        return rows[names.index(part)]
    if part.isdigit() and int(part) < len(rows):
        return rows[int(part)]
    raise ConfigError(f"--set {assignment}: no row {part!r}{near_miss(part, names)}")


def parse_task_threshold(text: str) -> tuple[str, float]:
    """`rte=0.8` of --min-task as (task, threshold). Raises UserError."""
    task, equals, number = text.partition("=")
    if task not in GLUE_NINE:
        raise UserError(f"--min-task {text}: no task {task!r}{near_miss(task, GLUE_NINE)}")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not equals or not 0 <= value <= 1:
        raise UserError(f"--min-task {text}: expected task=threshold with a threshold from 0 to 1, e.g. rte=0.8")
    return task, value
