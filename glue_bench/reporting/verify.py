"""verify: does everything that stands in a run's folder agree with its predictions, its records and its settings?

Scores and tables are computed anew and compared value by value; files are hashed; each record's fingerprint is made
again from what the record says, and the chain from step to step is followed. Figures are only hashed.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glue_bench.config import Config, distill_settings, plain, task_settings
from glue_bench.data.predictions import PREDICTIONS_FILE
from glue_bench.errors import GlueBenchError
from glue_bench.plan import check_settings, fingerprint, int8_step, pretrain_settings
from glue_bench.records import Score, seal_of
from glue_bench.reporting.analysis import Analysis, analyse
from glue_bench.reporting.build import build_tables
from glue_bench.reporting.report_background import repeat_command
from glue_bench.reporting.run_folder import Cell, RunFolder, load_run
from glue_bench.reporting.tables import read_csv
from glue_bench.store import RECORD, UNREADABLE, damaged_file, kept_weights, read_record
from glue_bench.tasks import TASKS

TOLERANCE = 1e-9  # other versions of numpy and scipy may differ in the last digits, never in what is printed
REPORTING_STEPS = ("report", "check")


def verify(folder: Path, name: str = "") -> list[str]:
    """Every disagreement in a run's folder, as one line each; an empty list where everything agrees.

    `name` stands in for the folder's own name. Raises UserError where the folder holds no run.
    """
    run = load_run(folder, name or _stored_name(folder))
    records = dict(run.records)
    for step in REPORTING_STEPS:
        if (record := read_record(folder / step)) is not None:
            records[step] = record
    found = [f"{step}/{RECORD}: unreadable or edited; run the step again" for step in damaged_records(run)]
    found += [line for step in records for line in _record(run, records, step, records[step])]
    try:
        analysis = analyse(run)
    except (GlueBenchError, ValueError) as error:
        return [*found, f"scores cannot be recomputed: {error}"]
    found += _scores(analysis)
    found += _int8(analysis)
    found += _rows(analysis)
    return found + list(_tables(analysis, records))


def damaged_records(run: RunFolder) -> tuple[str, ...]:
    """Steps whose record stands there but cannot be believed, the report's own included."""
    own = (step for step in REPORTING_STEPS if (run.root / step / RECORD).exists())
    return (*run.damaged, *(step for step in own if read_record(run.root / step) is None))


def _stored_name(folder: Path) -> str:
    """The name that the tables carry: a folder may have been copied or renamed since."""
    try:
        name = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["run"]
    except (*UNREADABLE, KeyError, TypeError):
        return ""
    return name if isinstance(name, str) else ""


def _record(
    run: RunFolder, records: Mapping[str, Mapping[str, Any]], step: str, record: Mapping[str, Any]
) -> Iterator[str]:
    """A record against itself, its files, the records it needs and the config."""
    where = f"{step}/{RECORD}"
    explained = {part: record[part] for part in ("settings", "needs", "inputs")}
    if fingerprint(record["step"], record.get("stage_version", 0), explained) != record["fingerprint"]:
        yield f"{where}: its fingerprint is not that of its settings, needs and inputs"
    if record["step"] != step:
        yield f"{where}: it is the record of {record['step']}"
    for need, known in record["needs"].items():
        if need not in records:
            yield f"{where}: {need}, which it stands on, has no record"
        elif records[need]["fingerprint"] != known:
            yield f"{where}: {need} has changed since; run the step again"
    for need, seal in record.get("seals", {}).items():
        if need in records and seal_of(records[need]) != seal:
            yield f"{need}/{RECORD}: not the one that {step} has read; it was edited, or {step} must be run again"
    for key, value in _settings(run.config, step).items():
        if record["settings"].get(key) != value:
            yield f"{where}: {key} is {record['settings'].get(key)!r}, the config says {value!r}"
    if damaged := damaged_file(run.root / step, record["outputs"], hash_all=True):
        yield f"{damaged}, says {where}"
    kept = kept_weights(run.root / step, record)
    if damaged := damaged_file(run.root / step / "weights", kept, hash_all=True):
        yield f"{damaged}, says {where}"
    if step.startswith("finetune/") and PREDICTIONS_FILE not in record["outputs"]:
        yield f"{where}: {PREDICTIONS_FILE} is not among its files"


def _settings(config: Config, step: str) -> dict[str, Any]:
    """The settings that the config gives a step, as far as they can be told without its inputs."""
    match step.split("/"):
        case ["prepare", "glue", _]:
            return {
                name: getattr(config.data, name) for name in ("max_train_rows", "max_dev_rows", "predict_test", "seed")
            }
        case ["pretrain", _]:
            return _optimisation(pretrain_settings(config))
        case ["distill", model]:
            student = next((one for one in config.students if one.name == model), None)
            if student is None:
                return {}  # of an earlier config; nothing of it enters the tables
            return _optimisation(plain(distill_settings(config, student))) | {"layers": list(student.layers)}
        case ["finetune", model, task, _] if model != "majority":
            own = config.teacher if model == config.teacher.name else None
            own = own or next((one for one in config.students if one.name == model), None)
            settings = plain(task_settings(config, task))
            names = ("max_length",) if own is not None and task in own.finetuned else set(settings) - {"seeds"}
            return {name: settings[name] for name in names}
        case ["benchmark", device] if device != "size":
            return plain(config.benchmark)
        case ["check"]:
            return check_settings(config)
    return {}


def _optimisation(settings: dict[str, Any]) -> dict[str, Any]:
    """What of the settings of a training its result depends on: not when checkpoints are written."""
    settings.pop("checkpoint_every", None)
    return settings


def _scores(analysis: Analysis) -> Iterator[str]:
    """The scores in the records of finetune against those of the predictions."""
    for one in analysis.scores.scores:
        step = _step_of(one)
        stored = {other["split"]: other["metrics"] for other in analysis.run.result(step).get("scores", ())}
        yield from _differences(stored.get(one.split, {}), one.metrics, f"{step}/{RECORD}: scores of {one.split}")


def _rows(analysis: Analysis) -> Iterator[str]:
    """As many predictions of each split as prepare counted rows: a row that all models lack shows nowhere else."""
    for one in analysis.scores.scores:
        prepared = f"prepare/glue/{one.task}"
        split = TASKS[one.task].test_splits[0] if TASKS[one.task].predicted_by else one.split
        counted = analysis.run.result(prepared).get("rows", {}).get(split)
        if counted not in (None, one.examples):
            where = f"{_step_of(one)}/{PREDICTIONS_FILE}: {one.split}"
            yield f"{where} has {one.examples} predictions, {prepared}/{RECORD} counts {counted} rows"


def _step_of(score: Score) -> str:
    """The step whose predictions a score was computed from."""
    return Cell(score.model, TASKS[score.task].predicted_by or score.task, score.seed).step


def _int8(analysis: Analysis) -> Iterator[str]:
    """What the records of benchmark/int8 say against the predictions of the exports."""
    for one in analysis.quantised:
        if one.skipped:
            continue
        step = int8_step(one.model, one.task)
        result = analysis.run.result(step)
        stored = {score["split"]: score["metrics"] for score in result.get("scores", ())}
        for score in one.scores:
            where = f"{step}/{RECORD}: scores of {score.split}"
            yield from _differences(stored.get(score.split, {}), score.metrics, where)
        where = f"{step}/{RECORD}: largest_logit_difference"
        yield from _differences(result.get("largest_logit_difference"), one.largest_logit_difference, where)


def _tables(analysis: Analysis, records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What the report wrote against what it would write now."""
    root = analysis.run.root
    report = records.get("report")
    if report is None:
        yield "report: has not been written yet"
        return
    if damaged := damaged_file(root, report["result"].get("files", {}), hash_all=True):
        yield f"{damaged}, says report/{RECORD}"
    command = report["result"].get("command") or repeat_command(analysis.run)
    expected, finding = build_tables(analysis, command)
    if report["result"].get("headline") != finding:
        yield f"report/{RECORD}: its headline is not the finding"
    for name, content in expected.items():
        try:
            stands = (root / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            yield f"{name}: cannot be read ({error})"
            continue
        if stands != content:
            yield from _table(name, stands, content)
    if "check" in records:
        gate = json.loads(expected["summary.json"])["gate"]
        if {key: records["check"]["result"].get(key) for key in gate} != gate:
            yield f"check/{RECORD}: its verdict is not the one that follows from the tables"


def _table(name: str, stands: str, content: str) -> Iterator[str]:
    """Differences of one file: by value in JSON and CSV, by line in Markdown."""
    if name.endswith(".json"):
        try:
            yield from _differences(json.loads(stands), json.loads(content), name)
        except (ValueError, RecursionError) as error:
            yield f"{name}: not valid JSON ({error})"
    elif name.endswith(".csv"):
        yield from _differences(read_csv(stands), read_csv(content), name)
    else:
        lines, wanted = stands.splitlines(), content.splitlines()
        for number, (line, right) in enumerate(zip(lines, wanted, strict=False), start=1):
            if line != right:
                yield f"{name}, line {number}: differs from what the predictions give: {right[:100]}"
                return
        if len(lines) != len(wanted):
            yield f"{name}: {len(lines)} lines instead of {len(wanted)}"


def _differences(stands: Any, right: Any, where: str) -> Iterator[str]:
    """Where two plain values differ; numbers, also such that stand as text, may differ in the last digits."""
    if isinstance(stands, Mapping) and isinstance(right, Mapping):
        for key in sorted({*stands, *right}, key=str):
            if key not in stands or key not in right:
                yield f"{where}: {key} is {'missing' if key not in stands else 'too much'}"
            else:
                yield from _differences(stands[key], right[key], f"{where}: {key}")
    elif isinstance(stands, list) and isinstance(right, list):
        if len(stands) != len(right):
            yield f"{where}: {len(stands)} entries instead of {len(right)}"
        for number, (one, other) in enumerate(zip(stands, right, strict=False), start=1):
            yield from _differences(one, other, f"{where}: row {number}")
    elif not _equal(stands, right):
        yield f"{where}: {stands!r}, the predictions give {right!r}"


def _equal(stands: Any, right: Any) -> bool:
    if stands == right:
        return type(stands) is type(right) or not isinstance(right, bool)
    try:
        return not isinstance(right, bool) and math.isclose(
            float(stands), float(right), rel_tol=TOLERANCE, abs_tol=TOLERANCE
        )
    except (TypeError, ValueError, OverflowError):
        return False
