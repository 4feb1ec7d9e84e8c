"""The report's files on disk: written whole, listed with their hashes, older ones taken away."""

from pathlib import Path
from typing import Any

from glue_bench.reporting.build import Report
from glue_bench.reporting.quantised import QUANTISED_FILE
from glue_bench.store import refuse_link, sha256_file, write_atomic

FIGURE_FOLDER = "figures"


def write_report(root: Path, report: Report) -> dict[str, Any]:
    """Write a report into a run's folder; returns what its record says of it. Raises StepError, UserError.

    {"headline": the finding, "command": how to repeat, "files": name -> bytes, sha256, mtime_ns}
    """
    refuse_link(root / FIGURE_FOLDER)
    for name, content in report.files.items():
        write_atomic(root / name, content)
    for old in (root / FIGURE_FOLDER).glob("*.png"):
        if f"{FIGURE_FOLDER}/{old.name}" not in report.files:
            old.unlink()
    if QUANTISED_FILE not in report.files:
        (root / QUANTISED_FILE).unlink(missing_ok=True)
    return {
        "headline": report.finding,
        "command": report.command,
        "files": {name: listing(root / name) for name in sorted(report.files)},
    }


def listing(path: Path) -> dict[str, Any]:
    """What a record says of a file: size, time stamp, sha256."""
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_file(path)}
