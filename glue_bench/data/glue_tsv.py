"""The original GLUE archive: a dozen TSV layouts, read without quoting (their quotes are unbalanced), each row checked.

Gives tables with the hub's columns, checked further by glue.checked_table. idx is the row's number from 0, as it is
on the hub.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from glue_bench.errors import UserError
from glue_bench.tasks import Task

# QQP's training file holds some 20 broken rows in 363,000, which every reader of GLUE leaves out. No other file does.
TOLERATED = {"qqp": 0.001}


@dataclass(frozen=True)
class Layout:
    """Columns of a TSV file: by header name, or by position where it has no header."""

    inputs: tuple[str, ...]
    label: str
    headerless: tuple[str, ...] = ()  # column names of a training or dev file without header


_SENTENCES = Layout(("sentence1", "sentence2"), "label")
_SENTENCE = Layout(("sentence",), "label")
LAYOUTS = {
    "cola": Layout(("sentence",), "label", ("source", "label", "mark", "sentence")),
    "sst2": _SENTENCE,
    "mrpc": Layout(("#1 String", "#2 String"), "Quality"),
    "stsb": Layout(("sentence1", "sentence2"), "score"),
    "qqp": Layout(("question1", "question2"), "is_duplicate"),
    "mnli": Layout(("sentence1", "sentence2"), "gold_label"),
    "qnli": Layout(("question", "sentence"), "label"),
    "rte": _SENTENCES,
    "wnli": _SENTENCES,
    "ax": _SENTENCES,
}


@dataclass(frozen=True)
class Rows:
    """The rows of a TSV file: column name -> position, and (line number from 1, fields) per row."""

    path: Path
    width: int
    columns: dict[str, int]
    rows: list[tuple[int, list[str]]]


def read_tsv(files: tuple[Path, ...], row: Task, split: str) -> tuple[pa.Table, tuple[str, ...]]:
    """One split with the hub's columns, and warnings. Raises UserError with file, line and remedy."""
    layout = LAYOUTS[row.name]
    is_test = split in row.test_splits
    content = _read(files[0], layout.headerless if not is_test else ())
    keep, notes = _whole_rows(content, TOLERATED.get(row.name, 0.0))
    needed = (*layout.inputs, *(() if is_test else (layout.label,)))
    missing = [name for name in needed if name not in content.columns]
    if missing:
        raise UserError(
            f"{files[0]}: no column {', '.join(missing)} in its first line; {row.tsv_folder} needs {', '.join(needed)}"
        )
    if row.name == "mrpc" and files[-1].name == "dev_ids.tsv":
        keep = _mrpc_part(content, keep, files[-1], split)
    fields = [content.rows[i][1] for i in keep]
    columns: dict[str, pa.Array] = {"idx": pa.array(keep, pa.int64())}
    for name, original in zip(row.inputs, layout.inputs, strict=True):
        position = content.columns[original]
        columns[name] = pa.array([one[position] for one in fields], pa.string())
    if is_test:
        labels = _diagnostic_labels(files, row, columns) if row.predicted_by else [-1] * len(keep)
    else:
        position = content.columns[layout.label]
        labels = [_label(content.rows[i][1][position], row, files[0], content.rows[i][0]) for i in keep]
    columns["label"] = pa.array(labels, pa.float64() if row.is_regression else pa.int64())
    return pa.table(columns), notes


def _read(path: Path, headerless: tuple[str, ...]) -> Rows:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not valid UTF-8; save the file as UTF-8") from None
    lines = text.replace("\r\n", "\n").split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty; expected tab-separated rows")
    split = [line.split("\t") for line in lines]
    header = list(headerless) or split[0]
    first = 0 if headerless else 1
    columns = {name.strip(): position for position, name in enumerate(header)}
    return Rows(path, len(header), columns, [(number + 1, split[number]) for number in range(first, len(split))])


def _whole_rows(content: Rows, tolerated: float) -> tuple[list[int], tuple[str, ...]]:
    """Positions of the rows with a field for every column; a few broken ones are left out where that is tolerated."""
    width = content.width
    keep = [i for i, (_, fields) in enumerate(content.rows) if len(fields) == width]
    broken = len(content.rows) - len(keep)
    if not broken:
        return keep, ()
    line, fields = next(one for one in content.rows if len(one[1]) != width)
    what = f"{content.path}: line {line} has {len(fields)} fields instead of {width}"
    if broken > tolerated * len(content.rows):
        raise UserError(f"{what} ({broken} such lines); expected one tab between columns and one line per row")
    return keep, (f"{what}; {broken} such rows are left out",)


def _mrpc_part(content: Rows, keep: list[int], dev_ids: Path, split: str) -> list[int]:
    """Rows of msr_paraphrase_train.txt that belong to the split: dev_ids.tsv lists GLUE's dev pairs."""
    ids = _read(dev_ids, ("first", "second"))
    _whole_rows(ids, 0.0)
    dev = {tuple(fields) for _, fields in ids.rows}
    first, second = (content.columns.get(name) for name in ("#1 ID", "#2 ID"))
    if first is None or second is None:
        raise UserError(f"{content.path}: no column #1 ID, #2 ID in its first line; they tell dev pairs")
    is_dev = {i for i in keep if (content.rows[i][1][first], content.rows[i][1][second]) in dev}
    return [i for i in keep if (i in is_dev) == (split == "validation")]


def _diagnostic_labels(files: tuple[Path, ...], row: Task, columns: dict[str, pa.Array]) -> list[int]:
    """AX's labels from diagnostic-full.tsv, found by the pair's text; all unknown where the file is absent."""
    full = next((path for path in files if path.name == "diagnostic-full.tsv"), None)
    pairs = list(zip(columns["premise"].to_pylist(), columns["hypothesis"].to_pylist(), strict=True))
    if full is None:
        return [-1] * len(pairs)
    content = _read(full, ())
    _whole_rows(content, 0.0)
    missing = [name for name in ("Premise", "Hypothesis", "Label") if name not in content.columns]
    if missing:
        raise UserError(f"{full}: no column {', '.join(missing)} in its first line")
    premise, hypothesis, label = (content.columns[name] for name in ("Premise", "Hypothesis", "Label"))
    known = {
        (fields[premise], fields[hypothesis]): _label(fields[label], row, full, line) for line, fields in content.rows
    }
    return [known.get(pair, -1) for pair in pairs]


def _label(text: str, row: Task, path: Path, line: int) -> float | int:
    """A label as the data set's integer (class names and integers are both in use) or, for STS-B, its number."""
    if not row.is_regression and text in row.classes:
        return row.classes.index(text)
    try:
        return float(text) if row.is_regression else int(text)
    except ValueError:
        right = "a number" if row.is_regression else " or ".join((*row.classes, "its number"))
        raise UserError(f"{path}: line {line}: the label is {text!r}; expected {right}") from None
