"""Paths that the user gave, looked at so that whatever is wrong with one is said in a line: no permission, too long."""

import re
from collections.abc import Callable
from pathlib import Path

from glue_bench.errors import UserError

NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that were no UTF-8


def check_results(results: str) -> None:
    """Raise UserError where --results cannot be the folder of all runs."""
    if not results or NO_NAME.search(results):
        raise UserError(f"--results {results!r}: no name of a folder; give one, e.g. --results results")
    if is_file(Path(results)):
        raise UserError(f"--results {results}: is a file; give a folder")


def home_path(text: str) -> Path:
    """A path whose ~ stands for a home folder. Raises UserError where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: no home folder of that name; write the path without ~") from None


def is_folder(path: Path) -> bool:
    """Whether a path is a folder. Raises UserError where that cannot be told: no permission, too long a name."""
    return _is(path, path.is_dir)


def is_file(path: Path) -> bool:
    """Whether a path is a file (or a link to one). Raises UserError as is_folder does."""
    return _is(path, path.is_file)


def _is(path: Path, look: Callable[[], bool]) -> bool:
    try:
        return look()
    except OSError as error:
        raise UserError(f"{str(path)[:200]}: {error.strerror}; give another path, or make it readable") from None
