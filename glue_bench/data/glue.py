"""GLUE data from any source in one form, strictly checked: nothing wrong goes on to training or scoring.

`read_split` returns a pyarrow.Table with the columns idx (int64), the task's inputs (string) and label (int64; float64
for STS-B; -1 where unknown). The hub is touched here and nowhere else. Labels of test splits are never handed out,
so that they cannot be scored by mistake (the hub's MRPC test set has them); those of the diagnostic set AX are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glue_bench.data.glue_tsv import read_tsv
from glue_bench.errors import UserError
from glue_bench.inputs import glue_in_hub_cache
from glue_bench.sources import HUB_DATASET, all_splits, source_kind, split_files
from glue_bench.sources import available_splits as available_splits
from glue_bench.tasks import TASKS, Task
from glue_bench.typed import near_miss

UNKNOWN = -1  # label of an example whose label is not known


def read_split(source: str, task: str, split: str, *, seed: int, revision: str, cache: Path | None) -> pa.Table:
    """One split of a task, normalised and checked.

    source: embedded, hub or a folder. seed: of mini-GLUE (embedded only). revision: commit of the hub data set, or "".
    cache: folder for what the hub sends; None leaves it to `datasets`. Rows keep the source's order.
    Raises UserError (place and remedy) for a missing split and for everything `checked_table` refuses.
    """
    return read_split_with_warnings(source, task, split, seed=seed, revision=revision, cache=cache)[0]


def read_split_with_warnings(
    source: str, task: str, split: str, *, seed: int, revision: str, cache: Path | None
) -> tuple[pa.Table, tuple[str, ...]]:
    """As `read_split`, with a line for each peculiarity that was let pass: empty texts, malformed rows left out."""
    row = _task(task)
    if split not in all_splits(task):
        raise UserError(f"{task}: no split {split!r}{near_miss(split, all_splits(task))}")
    kind = source_kind(source)
    if kind == "embedded":
        return checked_table(_embedded(row, split, seed), row, split, f"embedded {task}/{split}")
    if kind == "hub":
        return checked_table(_from_hub(row, split, revision, cache), row, split, f"{HUB_DATASET} {task}/{split}")
    files = split_files(source, task)
    if split not in files:
        raise UserError(f"data.glue: {source}: no split {split} of {task}; there are {', '.join(files) or 'none'}")
    if files[split][0].suffix == ".parquet":
        return checked_table(_from_parquet(files[split], row), row, split, str(files[split][0]))
    table, notes = read_tsv(files[split], row, split)
    checked, more = checked_table(table, row, split, str(files[split][0]))
    return checked, notes + more


def checked_table(table: pa.Table, row: Task, split: str, where: str) -> tuple[pa.Table, tuple[str, ...]]:
    """Normalise a table with the hub's columns, and warn of empty texts.

    Raises UserError, naming `where`, column and row (from 0), for: a missing column, no rows, a text that is null, of
    another type or not UTF-8, a label that is text, NaN, fractional, out of range or unknown (test splits: any is
    taken, and dropped), a null or repeated idx, and a training set with a single label.
    """
    wanted = ("idx", *row.inputs, "label")
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise UserError(
            f"{where}: no column {', '.join(missing)}; {row.name} needs {', '.join(wanted)}, "
            f"the file has {', '.join(table.column_names)}"
        )
    if table.num_rows == 0:
        raise UserError(f"{where}: no rows; the split {split} of {row.name} must hold examples")
    columns = {"idx": _idx(table["idx"], where)}
    columns |= {name: _text(table[name], name, where) for name in row.inputs}
    columns["label"] = _labels(table["label"], row, split, where)
    notes = []
    for name in row.inputs:
        empty = np.flatnonzero(pc.equal(pc.utf8_trim_whitespace(columns[name]), "").to_numpy())
        if empty.size:
            notes.append(f"{where}: {name} is empty in {empty.size} rows, first in row {empty[0]}")
    return pa.table(columns), tuple(notes)


def cap_rows(table: pa.Table, max_rows: int, seed: int) -> pa.Table:
    """At most max_rows rows (0: all), drawn at random in a way that depends on the seed and the table's length alone.

    The rows keep their order, and a smaller cap with the same seed gives a subset of a larger one.
    """
    if max_rows <= 0 or max_rows >= table.num_rows:
        return table
    chosen = np.random.default_rng(seed).permutation(table.num_rows)[:max_rows]
    return table.take(pa.array(np.sort(chosen)))


def data_completeness(source: str, rows: Mapping[str, Mapping[str, int]]) -> str:
    """embedded, subset or full: what the scores of a run stand on.

    rows: task -> split -> rows in use. full means that every dev split has its official size, every training split that
    or more; a dev split of more rows is not GLUE's either.
    """
    if source_kind(source) == "embedded":
        return "embedded"
    for name, counts in rows.items():
        row = TASKS[name]
        whole = all(counts.get(split) == size for split, size in zip(row.dev_splits, row.dev_rows, strict=True))
        if not whole or counts.get("train", 0) < row.train_rows:
            return "subset"
    return "full"


def _task(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"no task {name!r}{near_miss(name, tuple(TASKS))}")
    return TASKS[name]


def _embedded(row: Task, split: str, seed: int) -> pa.Table:
    from glue_bench.data import embedded

    return pa.Table.from_pylist(embedded.examples(row.name, split, seed))


def _from_hub(row: Task, split: str, revision: str, cache: Path | None) -> pa.Table:
    """From the hub's own cache where its files are there (`hf download`), also without a network; else by datasets."""
    if folder := glue_in_hub_cache(HUB_DATASET, revision, (row.name,)):
        files = split_files(str(folder), row.name)
        if split in files and files[split][0].suffix == ".parquet":
            return _from_parquet(files[split], row)
    import datasets

    try:
        data = datasets.load_dataset(
            HUB_DATASET, row.name, split=split, revision=revision or None, cache_dir=str(cache) if cache else None
        )
    except Exception as error:  # datasets, huggingface_hub, requests and the operating system all raise here
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"data.glue: hub: {HUB_DATASET} {row.name}/{split}{'@' + revision if revision else ''}: {first[:300]}\n"
            "Reach the hub once (it is cached then), or set data.glue to a folder of Parquet or TSV files, or embedded"
        ) from None
    return data.with_format("arrow")[:]


def _from_parquet(files: tuple[Path, ...], row: Task) -> pa.Table:
    wanted = ("idx", *row.inputs, "label")
    parts = []
    for path in files:
        try:
            names = pq.read_schema(path).names
            parts.append(pq.read_table(path, columns=[name for name in wanted if name in names], partitioning=None))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0][:200]}") from None
    try:
        return pa.concat_tables(parts)
    except pa.ArrowInvalid:
        raise UserError(f"{files[0]}: its columns differ from those of the other parts of the split") from None


def _idx(column: pa.ChunkedArray, where: str) -> pa.Array:
    if not pa.types.is_integer(column.type):
        raise UserError(f"{where}: column idx holds {column.type}; expected integers")
    if column.null_count:
        raise UserError(f"{where}: column idx: row {_first(column.is_null())} is empty; expected an integer")
    values = column.to_numpy()
    unique, first = np.unique(values, return_index=True)
    if len(unique) < len(values):
        repeated = np.setdiff1d(np.arange(len(values)), first)[0]
        raise UserError(f"{where}: column idx: row {repeated} repeats {values[repeated]}; every row needs its own")
    return pa.array(values.astype(np.int64))


def _text(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{where}: column {name} holds {column.type}; expected text")
    if column.null_count:
        raise UserError(f"{where}: column {name}: row {_first(column.is_null())} is empty (null); expected text")
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raise UserError(f"{where}: column {name}: row {_not_utf8(column)} is not valid UTF-8") from None
    return column.cast(pa.string())


def _labels(column: pa.ChunkedArray, row: Task, split: str, where: str) -> pa.Array:
    hidden = split in row.test_splits and not row.predicted_by
    kind = pa.float64() if row.is_regression else pa.int64()
    if hidden:
        return pa.array(np.full(len(column), UNKNOWN), kind)
    place = f"{where}: column label"
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise UserError(f"{place} holds {column.type}; expected {_right(row)}")
    if column.null_count:
        raise UserError(f"{place}: row {_first(column.is_null())} is empty; expected {_right(row)}")
    values = column.to_numpy().astype(np.float64)
    if row.is_regression:
        # The hub holds STS-B's scores, of three decimals, as float32: 3.8 comes as 3.79999995.
        values = np.round(values, 6)
        low, high = row.label_range or (-np.inf, np.inf)
        fine = (values >= low) & (values <= high)
    else:
        fine = (values == np.trunc(values)) & (values >= 0) & (values < len(row.classes))
    if split in row.test_splits:
        fine |= values == UNKNOWN
    bad = np.flatnonzero(~fine)
    if bad.size:
        unknown = " (-1 marks an unknown label)" if values[bad[0]] == UNKNOWN else ""
        raise UserError(f"{place}: row {bad[0]} is {values[bad[0]]:g}{unknown}; expected {_right(row)}")
    if split == "train" and (values == values[0]).all():
        raise UserError(f"{place}: every row of the training set is {values[0]:g}; at least two labels are needed")
    return pa.array(values.astype(kind.to_pandas_dtype()))


def _right(row: Task) -> str:
    if row.label_range:
        return f"a number from {row.label_range[0]:g} to {row.label_range[1]:g}"
    return "one of " + ", ".join(f"{i} ({name})" for i, name in enumerate(row.classes))


def _first(flags: pa.ChunkedArray) -> int:
    return int(np.flatnonzero(flags.to_numpy())[0])


def _not_utf8(column: pa.ChunkedArray) -> int:
    binary: Any = column.cast(pa.large_binary())
    for i, value in enumerate(binary):
        try:
            value.as_py().decode("utf-8")
        except UnicodeDecodeError:
            return i
    return 0
