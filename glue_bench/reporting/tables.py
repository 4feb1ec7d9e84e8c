"""Markdown and CSV that nothing from outside can break: names, titles and paths are text, never markup or formulas.

Every table of the report and the leaderboard is written here. CSV holds fractions at full precision; Markdown holds
percentages with one decimal. A missing cell is an empty CSV field, and a dash in Markdown.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tabulate

from glue_bench.records import Interval

DASH = "–"
LONGEST_TEXT = 300  # characters of outside text in one cell
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # the wide ones where Excel is Japanese
# Alignment must not depend on whether the optional package wcwidth is installed: verify compares reports as text.
tabulate.WIDE_CHARS_MODE = False

_MARKUP = re.compile(r"([\\`*~$]|\](?=[(\[:]))")  # a bracket makes a link only with what follows it
_LINE_START = re.compile(r"^([-+=#](?=[-+=#\s])|\d+(?=[.)](?:\s|$)))")
_LOOSE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def one_line(text: str) -> str:
    """Outside text on one line: control characters become spaces, runs of them one, overlong text is cut."""
    flat = "".join(" " if not one.isprintable() else one for one in str(text))
    flat = " ".join(flat.split())
    return flat if len(flat) <= LONGEST_TEXT else flat[: LONGEST_TEXT - 1] + "…"


def markdown_text(text: str) -> str:
    """Outside text for a Markdown line or table cell: no markup, HTML, link or cell border survives."""
    escaped = _MARKUP.sub(r"\\\1", one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    escaped = escaped.replace("|", "&#124;")
    escaped = _LOOSE_UNDERSCORE.sub(r"\\_", escaped)
    escaped = _LINE_START.sub(lambda start: f"&#{ord(start[1][0])};{start[1][1:]}", escaped)
    return escaped.replace("://", ":\\//").replace("www.", "www\\.")


def code_block(text: str, language: str) -> str:
    """A fenced block; the fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A pipe table. Cells are Markdown already (escape outside text first); the first `left` columns align left."""
    align = ["left" if i < left else "right" for i in range(len(headers))]
    body = [list(row) for row in rows]
    if not body:
        return ""
    return tabulate.tabulate(body, headers=headers, tablefmt="pipe", colalign=align, disable_numparse=True) + "\n"


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a header. Text that a spreadsheet would take for a formula gets a leading apostrophe.

    Raises ValueError on NaN or infinity: a missing value is None.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(row.get(column)) for column in columns])
    return out.getvalue()


def read_csv(text: str) -> list[dict[str, str]]:
    """Rows of csv_text as text, leading apostrophes taken off again."""
    rows = []
    for row in csv.DictReader(io.StringIO(text)):
        rows.append({key: _plain_cell(value or "") for key, value in row.items() if key is not None})
    return rows


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a table cell is {value}; a missing value is None")
        return repr(value)
    text = one_line(value)
    return f"'{text}" if text.startswith((*FORMULA_STARTS, "'")) else text


def _plain_cell(text: str) -> str:
    return text[1:] if text.startswith("'") else text


def percent(value: float | None) -> str:
    """A fraction times 100 with one decimal, or a dash."""
    return DASH if value is None else f"{100 * value:.1f}"


def signed_points(value: float | None) -> str:
    """A difference of fractions in points, always with its sign."""
    return DASH if value is None else f"{100 * value:+.1f}"


def percent_interval(interval: Interval) -> str:
    """`96.4 [95.1, 97.6]`, without brackets where there is no interval, or a dash."""
    if interval.value is None:
        return DASH
    if interval.low is None or interval.high is None:
        return percent(interval.value)
    return f"{percent(interval.value)} [{percent(interval.low)}, {percent(interval.high)}]"


def points_interval(interval: Interval) -> str:
    """`+1.2 [-0.3, +2.7]` in points, without brackets where there is no interval, or a dash."""
    if interval.low is None or interval.high is None:
        return signed_points(interval.value)
    return f"{signed_points(interval.value)} [{signed_points(interval.low)}, {signed_points(interval.high)}]"


def times_interval(interval: Interval) -> str:
    """`1.63x [1.60, 1.66]`, or a dash."""
    if interval.value is None:
        return DASH
    if interval.low is None or interval.high is None:
        return f"{interval.value:.2f}x"
    return f"{interval.value:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"


def number(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals and thousands separators, or a dash."""
    return DASH if value is None else f"{value:,.{digits}f}"
