"""Plain data to typed settings: a frozen dataclass is built from a nested mapping, every key, type and range checked.

Used by config.py alone; kept apart from the settings so that these read as one page. The error names the file, the key
path and what would be right, with a near miss where one is close.
"""

import difflib
import types
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields, is_dataclass
from typing import Any

from glue_bench.errors import ConfigError

LARGEST_INT = 2**63 - 1  # torch takes no larger seed
LONGEST_SHOWN = 100
NO_TEXT = ("Cc", "Cs")  # control characters, and bytes that were no UTF-8


def setting(default: Any, help: str, *, low: float | None = None, above: float | None = None, high: float | None = None,
            choices: tuple[str, ...] = ()) -> Any:  # fmt: skip
    """A field with its default, one line of help and its range (low and high included, above excluded)."""
    return field(default=default, metadata={"help": help, "low": low, "above": above, "high": high, "choices": choices})


def plain(config: Any) -> dict[str, Any]:
    """A settings dataclass as JSON-ready plain data (tuples become lists)."""
    return _plain(asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def near_miss(word: str, known: Sequence[str]) -> str:
    """The end of an error message: the closest known word, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def build(cls: type, raw: Any, source: str, path: str) -> Any:
    """Build `cls` from a mapping; `source` and `path` open every message. Raises ConfigError."""
    where = f"{source}: {path}" if path else source
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: expected a table, got {_shown(raw)}")
    known = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in raw.items():
        here = f"{path}.{key}" if path else key
        if key not in known:
            raise ConfigError(f"{source}: {here}: unknown setting{near_miss(key, list(known))}")
        values[key] = _value(hints[key], value, known[key].metadata, source, here)
    return cls(**values)


def _value(hint: Any, value: Any, metadata: Mapping[str, Any], source: str, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
        return _value(hint, value, metadata, source, path)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(_value(item, one, metadata, source, f"{path}[{i}]") for i, one in enumerate(items))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{source}: {path}: expected a table, got {_shown(value)}")
        item = typing.get_args(hint)[1]
        return {
            str(k): one if item is Any else _value(item, one, {}, source, f"{path}.{k}") for k, one in value.items()
        }
    if is_dataclass(hint):
        return build(hint, value, source, path)  # type: ignore[arg-type]
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise ConfigError(f"{source}: {path}: a number of {value.bit_length()} bits; the most allowed is {LARGEST_INT}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is not Any and type(value) is not hint:
        raise ConfigError(f"{source}: {path}: expected {_kind(hint)}, got {_shown(value)}")
    if isinstance(value, str) and any(unicodedata.category(one) in NO_TEXT for one in value):
        raise ConfigError(f"{source}: {path}: {_shown(value)} holds control characters or is not UTF-8; leave them out")
    _check_range(value, metadata, source, path)
    return value


def _kind(hint: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def _shown(value: Any) -> str:
    """A value as an error message shows it: whatever it is, in one line of bounded length."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in a list
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _check_range(value: Any, metadata: Mapping[str, Any], source: str, path: str) -> None:
    choices = metadata.get("choices") or ()
    if choices and value not in choices:
        raise ConfigError(f"{source}: {path}: {_shown(value)} is not one of {', '.join(choices)}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, above, high = metadata.get("low"), metadata.get("above"), metadata.get("high")
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"{source}: {path}: {value} is not a finite number")
    if low is not None and value < low:
        raise ConfigError(f"{source}: {path}: {value} is below the least allowed, {low}")
    if above is not None and value <= above:
        raise ConfigError(f"{source}: {path}: {value} must be above {above}")
    if high is not None and value > high:
        raise ConfigError(f"{source}: {path}: {value} is above the most allowed, {high}")
