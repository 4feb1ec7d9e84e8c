"""publish: a verified copy of a complete run under results/published/: records, predictions, tables, figures.

Never weights, never text, never the paths of this machine. What a record lists but the copy leaves out is named in it
under `not_published`, so that the copy can be verified as well as the run.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from glue_bench.config import check_name
from glue_bench.errors import StepError, UserError
from glue_bench.records import sealed
from glue_bench.reporting.build import analyse_and_build
from glue_bench.reporting.gate import BASELINE_FILE
from glue_bench.reporting.leaderboard import update_leaderboard
from glue_bench.reporting.report_background import repeat_command
from glue_bench.reporting.run_folder import REPORTED_FILES, load_run
from glue_bench.reporting.verify import REPORTING_STEPS, verify
from glue_bench.reporting.written import listing, write_report
from glue_bench.store import CONFIG_FILE, RECORD, atomic_folder, read_record

PATH = re.compile(r"(?:file://|(?<![\w.:/]))(?:~[\w.-]*)?/[^\s'\",;:()\[\]{}<>|]+")
SHOWN = 3  # disagreements in an error message


def publish(folder: Path, published: Path) -> Path:
    """Copy a run's folder to published/<run> and return that; the copy appears whole or not at all.

    Raises UserError where the run is incomplete or does not agree with its own predictions, naming what.
    """
    run = load_run(folder)
    target = published / check_name(run.name, str(folder))
    if folder.resolve() == target.resolve():
        raise UserError(f"{folder}: is the published copy itself; name a run")
    if run.damaged:
        raise UserError(f"{folder / run.damaged[0] / RECORD}: unreadable or edited; run-all computes the step anew")
    if run.missing:
        shown = ", ".join(run.missing[:SHOWN]) + (" ..." if len(run.missing) > SHOWN else "")
        raise UserError(f"{folder}: incomplete, {len(run.missing)} steps are missing ({shown}); run-all finishes it")
    if found := verify(folder):
        raise UserError(f"{folder}: not published, {_several(found)}; run report again, or the step named")
    with atomic_folder(target) as copy:
        for step in (*run.records, *REPORTING_STEPS):
            _copy_step(folder, copy, step)
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        _write_json(copy / CONFIG_FILE, without_paths(config))
        if (folder / BASELINE_FILE).is_file():
            baseline = json.loads((folder / BASELINE_FILE).read_text(encoding="utf-8"))
            _write_json(copy / BASELINE_FILE, without_paths(baseline))
        _report(copy, run.name)
        if found := verify(copy, run.name):
            raise StepError(f"{target}: the copy does not agree with itself, {_several(found)}; please report this bug")
    update_leaderboard(published.parent)
    return target


def _copy_step(folder: Path, copy: Path, step: str) -> None:
    """A step's record and the files of it that may be published."""
    record = read_record(folder / step)
    if record is None:
        return
    (copy / step).mkdir(parents=True, exist_ok=True)
    kept = {name: _timeless(one) for name, one in record["outputs"].items() if name in REPORTED_FILES}
    for name in kept:
        shutil.copyfile(folder / step / name, copy / step / name)
    left_out = sorted(set(record["outputs"]) - set(kept))
    record = {**record, "outputs": kept, "result": without_paths(record["result"])}
    record.pop("seals", None)  # of the records as they are here
    _write_json(copy / step / RECORD, sealed(record | ({"not_published": left_out} if left_out else {})))


def _report(copy: Path, name: str) -> None:
    """The report made anew from the copy, as its settings hold no paths any more; its record lists the new files."""
    run = load_run(copy, name)
    result = write_report(copy, analyse_and_build(run, command=repeat_command(run))[1])
    for kept in (CONFIG_FILE, BASELINE_FILE):
        if (copy / kept).is_file():
            result["files"][kept] = listing(copy / kept)
    result["files"] = {file: _timeless(one) for file, one in result["files"].items()}
    record = read_record(copy / "report")
    if record is not None:
        _write_json(copy / "report" / RECORD, sealed(record | {"result": record["result"] | result}))


def _timeless(listed: Mapping[str, Any]) -> dict[str, Any]:
    """A listing without the time stamp, which neither a copy nor a checkout keeps."""
    return {key: value for key, value in listed.items() if key != "mtime_ns"}


def without_paths(value: Any) -> Any:
    """Plain data in which absolute paths are cut to their last part, also inside a text: `.../glue`.

    No user's or machine's folders are left.
    """
    if isinstance(value, Mapping):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if not isinstance(value, str):
        return value
    # "/data/my glue/train.parquet: no rows" starts with a path, blanks and all; other texts may quote one
    path, colon, rest = value.partition(": ") if value.startswith(("/", "~")) else ("", "", value)
    rest = PATH.sub(lambda found: f".../{PurePath(found[0]).name}", rest)
    return (f".../{PurePath(path).name}" if path else "") + colon + rest


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _several(found: list[str]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{len(found)} disagreement{'' if len(found) == 1 else 's'}: {'; '.join(found[:SHOWN])}{more}"
