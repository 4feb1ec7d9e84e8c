"""Where a task's GLUE files lie: the hub, a folder of Parquet or original TSV files, or the embedded mini-GLUE.

Standard library only, because plan asks before anything heavy is imported. Reading is data/glue.py's work.
"""

from pathlib import Path

from glue_bench.errors import UserError
from glue_bench.paths import home_path, is_folder
from glue_bench.tasks import TASKS, Task

HUB_DATASET = "nyu-mll/glue"
TSV_FILES = {
    "train": "train.tsv",
    "validation": "dev.tsv",
    "test": "test.tsv",
    "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
# MRPC as Microsoft publishes it: one training file, of which dev_ids.tsv names the pairs that are GLUE's dev set.
MSR_FILES = {
    "train": ("msr_paraphrase_train.txt", "dev_ids.tsv"),
    "validation": ("msr_paraphrase_train.txt", "dev_ids.tsv"),
    "test": ("msr_paraphrase_test.txt",),
}
# The diagnostic set AX: texts in GLUE's order, and (published later, perhaps absent) the file with the labels.
DIAGNOSTIC_FILES = ("diagnostic.tsv", "diagnostic-full.tsv")


def source_kind(source: str) -> str:
    """embedded, hub or folder: what the setting data.glue means."""
    return source if source in ("embedded", "hub") else "folder"


def all_splits(task: str) -> tuple[str, ...]:
    """Every split the task can have, by the hub's names: training, dev, test."""
    row = TASKS[task]
    return (*(("train",) if row.train_rows else ()), *row.dev_splits, *row.test_splits)


def available_splits(source: str, task: str) -> tuple[str, ...]:
    """Splits of a task that the source has; test splits may be absent. Raises UserError as split_files does."""
    return all_splits(task) if source_kind(source) != "folder" else tuple(split_files(source, task))


def source_files(source: str, task: str) -> list[Path]:
    """Files of the task in a folder source, each once; none for hub and embedded. Raises as split_files does."""
    if source_kind(source) != "folder":
        return []
    return list(dict.fromkeys(path for files in split_files(source, task).values() for path in files))


def split_files(source: str, task: str) -> dict[str, tuple[Path, ...]]:
    """Split -> its files in a folder source: Parquet (whole or in shards) where there is any, else the original TSV.

    Raises UserError where the folder, the task or its training or dev split is missing. Test splits, and with them all
    of AX, may be absent.
    """
    row = TASKS[task]
    root = home_path(source)
    if not is_folder(root):
        raise UserError(f"data.glue: {source}: no such folder; give embedded, hub, or a folder with a folder per task")
    try:
        files = _parquet_files(root / task, task)
        if not files and row.tsv_folder:
            files = _tsv_files(root / row.tsv_folder, row)
        for split in all_splits(task):
            if split not in files and split not in row.test_splits:
                raise UserError(_missing(root, row, split))
    except OSError as error:
        raise UserError(f"data.glue: {error.filename}: {error.strerror}; make the folder readable") from None
    return {split: files[split] for split in all_splits(task) if split in files}


def _parquet_files(folder: Path, task: str) -> dict[str, tuple[Path, ...]]:
    files = {}
    for split in all_splits(task):
        whole = folder / f"{split}.parquet"
        found = (whole,) if whole.is_file() else tuple(sorted(folder.glob(f"{split}-*-of-*.parquet")))
        if found:
            files[split] = found
        if len(found) > 1 or (found and found[0] != whole):
            _check_shards(found)
    return files


def _check_shards(shards: tuple[Path, ...]) -> None:
    """Raise UserError where files of a split that is stored in parts are missing: the rest is another data set."""
    count = shards[0].stem.rpartition("-of-")[2]
    if not count.isdecimal() or len(shards) != int(count) or any(not one.stem.endswith(count) for one in shards):
        raise UserError(f"data.glue: {shards[0]}: {len(shards)} parts of the split are here; its name says of {count}")


def _tsv_files(folder: Path, row: Task) -> dict[str, tuple[Path, ...]]:
    if row.predicted_by:
        found = tuple(folder / name for name in DIAGNOSTIC_FILES if (folder / name).is_file())
        return {row.test_splits[0]: found} if found[:1] == (folder / DIAGNOSTIC_FILES[0],) else {}
    files = {}
    for split in all_splits(row.name):
        path = folder / TSV_FILES[split]
        if row.name == "mrpc" and all((folder / name).is_file() for name in MSR_FILES[split]):
            files[split] = tuple(folder / name for name in MSR_FILES[split])
        elif path.is_file():
            files[split] = (path,)
    return files


def _missing(root: Path, row: Task, split: str) -> str:
    names = (f"{row.name}/{split}.parquet", f"{row.tsv_folder}/{TSV_FILES[split]}")
    folders = [root / row.name, root / row.tsv_folder]
    there = sorted({path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file()})
    found = f"found {', '.join(there[:8])}" if there else "the task has no files there"
    return f"data.glue: {root}: no split {split} of {row.name}: neither {names[0]} nor {names[1]} ({found})"
