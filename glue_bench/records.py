"""Result types and their JSON form: what a step leaves behind for the steps, tables and tests after it.

Every record is a frozen dataclass; `to_json` and `from_json` are the only way in and out. JSON holds fractions, seconds
and bytes under names that carry the unit. No NaN is ever written: a missing value is null with a reason beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

RecordType = TypeVar("RecordType")


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; `reason` says why where the value is undefined (None)."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Score:
    """The metrics of one model on one split of one task with one seed."""

    model: str
    task: str
    split: str
    seed: int
    metrics: dict[str, float]
    examples: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timing:
    """Raw latencies of one model in one scenario; percentiles are derived, never stored alone.

    `samples_s` holds seconds per call (a call = one batch, or one whole pass for the scenario `stsb-pass`);
    `pass_s` the duration of each complete pass over the scenario's inputs, in measuring order, so that the i-th pass
    of two models timed interleaved (A B B A) are partners; `turn_s` that of each turn, pass after pass: models change
    places several times within a pass, and the i-th turns of two models are the same calls, one right after the other.
    """

    model: str
    device: str  # cpu | cuda
    device_name: str
    backend: str  # eager | compile | onnx | onnx-int8
    precision: str  # fp32 | bf16 | fp16 | int8
    scenario: str
    batch_size: int
    examples: int  # examples in one pass
    samples_s: tuple[float, ...]
    pass_s: tuple[float, ...]
    peak_memory_mb: float | None = None  # of the process
    device_memory_mb: float | None = None
    threads: int = 0
    bytes_on_disk: int | None = None
    largest_logit_difference: float | None = None  # against the eager fp32 model
    skipped: str = ""  # the reason, where nothing was timed
    turn_s: tuple[float, ...] = ()  # empty in records of before turns were kept


@dataclass(frozen=True)
class Training:
    """What one optimisation (pretrain, distill or finetune) did."""

    steps: int
    examples: int
    tokens: int
    seconds: float
    first_loss: float | None = None
    last_loss: float | None = None
    truncated: int = 0
    micro_batch_size: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Size:
    """Parameters and bytes of one model. `encoder` is the bare encoder, the figure that size reduction is made of."""

    parameters: int  # with a two-class head
    encoder: int
    without_embeddings: int
    bytes: int  # of the safetensors file of the bare encoder in fp32


@dataclass(frozen=True)
class Environment:
    """The machine and the versions that a result stands on. No names of users, hosts or folders."""

    python: str
    system: str
    cpu: str
    cores: int
    memory_gb: float
    devices: tuple[str, ...]
    threads: int
    precision: str
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""


def to_json(record: Any) -> str:
    """Serialise a record (a dataclass, or a mapping of plain values) as indented JSON; raises ValueError on NaN."""
    plain = record if isinstance(record, Mapping) else asdict(record)
    return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(record_type: type[RecordType], plain: Mapping[str, Any]) -> RecordType:
    """Rebuild a record from its JSON object, lists as tuples. Raises ValueError naming missing or unknown fields."""
    known = {f.name for f in fields(record_type)}  # type: ignore[arg-type]
    unknown = sorted(set(plain) - known)
    if unknown:
        raise ValueError(f"{record_type.__name__} has no field {', '.join(unknown)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    try:
        return record_type(**values)
    except TypeError as error:
        raise ValueError(f"{record_type.__name__}: {error}") from None
