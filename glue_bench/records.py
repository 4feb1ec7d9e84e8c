"""Result types and their JSON form: what a step leaves behind for the steps, tables and tests after it.

Every record is a frozen dataclass; `to_json` and `from_json` are the only way in and out. JSON holds fractions, seconds
and bytes under names that carry the unit. No NaN is ever written: a missing value is null with a reason beside it.
"""

import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import PurePosixPath
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
    device: str  # cpu | cuda; cuda:2 for the first GPU of another kind
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

    def __post_init__(self) -> None:
        if min((*self.samples_s, *self.pass_s, *self.turn_s), default=1) <= 0:
            raise ValueError(f"{self.model}: a time of 0 seconds or less")


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

    def __post_init__(self) -> None:
        if min(self.parameters, self.encoder, self.without_embeddings, self.bytes) <= 0:
            raise ValueError("a model has more than 0 parameters")


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


def from_json(record_type: type[RecordType], plain: Any) -> RecordType:
    """Rebuild a record from its JSON object, lists as tuples. Raises ValueError naming the part that does not fit."""
    return _value(record_type, plain, record_type.__name__)


# What steps and tables read of a stage's result, where it is there, and of which type it must be.
RESULTS: Mapping[str, Mapping[str, Any]] = {
    "prepare": {"rows": dict[str, int], "train": dict[str, int], "has_mlm_head": bool},
    "pretrain": {
        "training": Training | None,
        "heldout": dict[str, dict[str, float | None]] | None,
        "tokens_per_second": float | None,
        "has_mlm_head": bool,
    },
    "finetune": {"scores": tuple[Score, ...], "training": Training | None, "sequences": dict[str, int]},
    "benchmark": {
        "sizes": dict[str, Size],
        "timings": tuple[Timing, ...],
        "scores": tuple[Score, ...],
        "seed": int | None,
        "largest_logit_difference": float | None,
        "bytes_on_disk": int | None,
        "fp32_bytes_on_disk": int | None,
        "skipped": str,
    },
    "report": {"headline": str, "command": str},
    "check": {"passed": bool, "reasons": tuple[str, ...]},
}
SAME_RESULT = {"distill": "pretrain"}
SEAL = "seal"
LARGEST = 2**63  # what a number in a record may be


@cache
def _hints(record_type: type) -> dict[str, Any]:
    return typing.get_type_hints(record_type)


def _value(hint: Any, value: Any, where: str) -> Any:
    """A JSON value as the type that the hint names. Raises ValueError."""
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _value(arms[0], value, where)
    if is_dataclass(hint):
        return _record(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(arms[0], one, where) for one in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: _value(arms[1], one, f"{where}.{key}") for key, one in value.items()}
    if hint in (float, int) and type(value) in (hint, int) and -LARGEST < value < LARGEST:  # a NaN is in no range
        return value
    if hint in (str, bool) and type(value) is hint:
        return value
    raise ValueError(f"{where}: {str(value)[:40]!r} is no {getattr(hint, '__name__', hint)}")


def _record(record_type: type, plain: Any, where: str) -> Any:
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where}: {str(plain)[:40]!r} is no {record_type.__name__}")
    known = {one.name: one for one in fields(record_type)}
    unknown = sorted(set(plain) - set(known))
    required = {name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING}
    if unknown or required - set(plain):
        names = ", ".join(map(str, unknown or sorted(required - set(plain))))
        raise ValueError(f"{where}: a {record_type.__name__} has {'no' if unknown else 'always a'} field {names}")
    hints = _hints(record_type)
    return record_type(**{name: _value(hints[name], one, f"{where}.{name}") for name, one in plain.items()})


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON content with a hash of itself under `seal`, so that a digit that flips on the disk is not another result."""
    return {**content, SEAL: seal_of(content)}


def seal_of(content: Mapping[str, Any]) -> str:
    """sha256 over JSON content without its seal, whatever the order of its keys."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def seal_holds(content: Mapping[str, Any]) -> bool:
    """Whether JSON content is what was sealed; content of earlier versions has no seal, and passes."""
    return SEAL not in content or content[SEAL] == seal_of(content)


def is_record(record: Any) -> bool:
    """Whether JSON content is a step's record as it was sealed, the typed parts of its result of their types."""
    if not isinstance(record, dict):
        return False
    tables = [record.get(part) for part in ("settings", "needs", "inputs", "outputs", "result")]
    tables += [record.get("environment", {}), record.get("seals", {})]
    return (
        all(isinstance(table, dict) for table in tables)
        and all(isinstance(record.get(part), str) for part in ("step", "fingerprint"))
        and all(_is_number(record.get(part, 0)) for part in ("stage_version", "seconds"))
        and all(isinstance(one, str) for one in (*record["needs"].values(), *record["inputs"].values()))
        and all(is_inside(name) for name in (*record["needs"], *record.get("seals", {})))
        and _is_listing(record["outputs"])
        and all(_is_listing(record["result"].get(name, {})) for name in ("files", "weights_files"))
        and seal_holds(record)
        and _is_result(record["step"].split("/")[0], record["result"])
    )


def step_seconds(record: Mapping[str, Any]) -> float:
    """Seconds that a recorded step took: its own are of the sitting that ended it, its training's of all sittings."""
    training = record["result"].get("training") or {}
    return max(float(record.get("seconds") or 0.0), float(training.get("seconds") or 0.0))


def _is_result(stage: str, result: Mapping[str, Any]) -> bool:
    typed = RESULTS.get(SAME_RESULT.get(stage, stage), {})
    try:
        for name, hint in typed.items():
            if name in result:
                _value(hint, result[name], name)
    except ValueError:
        return False
    return True


def is_inside(name: str) -> bool:
    """Whether a name that stands in a file, joined to a folder, stays below that folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and name.isprintable()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def _is_listing(value: Any) -> bool:
    """Whether a value lists files below a folder: name -> bytes and sha256."""
    return isinstance(value, dict) and all(
        is_inside(name) and isinstance(one, dict) and _is_number(one.get("bytes")) and type(one.get("sha256")) is str
        for name, one in value.items()
    )
