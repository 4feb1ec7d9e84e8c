"""The report's sections on what the results stand on: data, training, settings, environment, time, the command."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from glue_bench.config import distill_settings, load_config, plain, task_settings
from glue_bench.errors import UserError
from glue_bench.plan import weights_step
from glue_bench.reporting.analysis import Analysis
from glue_bench.reporting.figures import Curve
from glue_bench.reporting.run_folder import RunFolder
from glue_bench.reporting.tables import DASH, code_block, markdown_table, markdown_text, number, percent, read_csv
from glue_bench.sources import source_kind
from glue_bench.store import CONFIG_FILE
from glue_bench.tasks import TASKS

TRAINED_STAGES = ("pretrain", "distill")


def data_section(analysis: Analysis) -> str:
    """Rows in use per task beside the official ones."""
    run = analysis.run
    rows = []
    for task in analysis.tasks:
        used, spec = run.rows_used.get(task, {}), TASKS[task]
        splits = [("train", spec.train_rows), *zip(spec.dev_splits, spec.dev_rows, strict=True)]
        cells = [f"{_count(used.get(split))} of {official:,}" for split, official in splits]
        rows.append([spec.title, cells[0], " + ".join(cells[1:]), run.data_of(task)])
    source = {"embedded": "the built-in generated tasks", "hub": "the hub", "folder": "a folder"}
    intro = f"GLUE from {source[source_kind(run.config.data.glue)]}. Rows used of the official ones:\n\n"
    table = markdown_table(["task", "train", "dev", "data"], rows)
    return f"{intro}{table}" if rows else ""


def training_section(analysis: Analysis) -> str:
    """What pretrain and distill did: tokens, time, losses before and after."""
    rows = []
    for model, step in trained_steps(analysis.run):
        result = analysis.run.result(step)
        training, heldout = result["training"], result.get("heldout") or {}
        before, after = heldout.get("before") or {}, heldout.get("after") or {}
        rows.append(
            [
                markdown_text(model),
                step.split("/")[0],
                f"{training['steps']:,}",
                f"{training['tokens']:,}",
                number(training["seconds"], 0),
                number(result.get("tokens_per_second"), 0),
                number(training.get("first_loss")),
                number(training.get("last_loss")),
                f"{number(before.get('mlm_loss'))} → {number(after.get('mlm_loss'))}",
                f"{percent(before.get('accuracy'))} → {percent(after.get('accuracy'))}",
                f"{number(before.get('kl_to_teacher'))} → {number(after.get('kl_to_teacher'))}",
            ]
        )
    headers = [
        "model", "stage", "steps", "tokens", "seconds", "tokens/s", "first loss", "last loss", "held-out MLM loss",
        "masked words right, %", "KL to teacher",
    ]  # fmt: skip
    return markdown_table(headers, rows, left=2)


def trained_steps(run: RunFolder) -> Iterator[tuple[str, str]]:
    """(model, step) for every row that pretrain or distill trained in this run."""
    for model in run.roles:
        if model in ("majority", "as-released"):
            continue
        student = next((one for one in run.config.students if one.name == model), None)
        if student is not None and not student.layers:
            continue
        step = weights_step(run.config, model)
        if step.startswith(TRAINED_STAGES) and run.result(step).get("training"):
            yield model, step


def loss_panels(run: RunFolder) -> dict[str, list[Curve]]:
    """Panels of the loss figure: training losses by stage, then the held-out loss of all. Raises UserError."""
    names = {"pretrain": "pretrain: MLM loss", "distill": "distill: training loss"}
    panels: dict[str, list[Curve]] = {}
    heldout: list[Curve] = []
    for model, step in trained_steps(run):
        training = _curve(run, step, "training.csv", "loss", model)
        if training is not None:
            panels.setdefault(names[step.split("/")[0]], []).append(training)
        curve = _curve(run, step, "heldout.csv", "mlm_loss", model)
        if curve is not None:
            heldout.append(curve)
    return panels | ({"held-out MLM loss": heldout} if heldout else {})


def _curve(run: RunFolder, step: str, file: str, column: str, name: str) -> Curve | None:
    path = run.root / step / file
    if not path.is_file():
        return None
    try:
        rows = read_csv(path.read_text(encoding="utf-8"))
        points = [(float(row["tokens"]), float(row[column])) for row in rows if row[column]]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no table of losses ({error}); run {step.split('/')[0]} again") from None
    return Curve(name, [x for x, _ in points], [y for _, y in points]) if points else None


def settings_section(analysis: Analysis) -> str:
    """Fine-tuning by task and distillation by student, then every setting."""
    config = analysis.run.config
    names = ("learning_rate", "batch_size", "epochs", "warmup", "max_length", "seeds")
    by_task = []
    for task in analysis.tasks:
        settings = plain(task_settings(config, task))
        cells = [f"{settings[name]:g}" for name in names[:-1]]
        by_task.append([TASKS[task].title, *cells, ", ".join(map(str, settings["seeds"]))])
    parts = []
    if by_task:
        table = markdown_table(["task", *(name.replace("_", " ") for name in names)], by_task)
        parts.append(f"Fine-tuning (last epoch scored, never the best):\n\n{table}")
    names = ("initialisation", "tokens", "epochs", "batch_size", "learning_rate", "temperature")
    names += ("weight_ce", "weight_mlm", "weight_cos", "ce_positions")
    by_student = []
    for student in config.students:
        if student.layers:
            settings = plain(distill_settings(config, student))
            cells = [one if isinstance(one := settings[name], str) else f"{one:,g}" for name in names]
            by_student.append([markdown_text(student.name), ", ".join(map(str, student.layers)), *cells])
    if by_student:
        headers = ["student", "layers", *(name.replace("_", " ") for name in names)]
        parts.append(f"Distillation:\n\n{markdown_table(headers, by_student)}")
    raw = (analysis.run.root / CONFIG_FILE).read_text(encoding="utf-8").strip()
    parts.append(f"All settings, as in {CONFIG_FILE}:\n\n{code_block(raw, 'json')}")
    return "\n".join(parts)


def environment_section(analysis: Analysis) -> str:
    """Machine and versions; where steps ran in several environments, what differs."""
    run = analysis.run
    if not run.environments:
        return "Not recorded.\n"
    flat = [_flat(json.loads(key)) for key in run.environments]
    stages = [", ".join(names) for names in run.environments.values()]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    if len(flat) == 1:
        return markdown_table(["", "value"], ([key, markdown_text(flat[0][key])] for key in keys), left=2)
    same = [key for key in keys if len({one.get(key) for one in flat}) == 1]
    table = markdown_table(["", "value"], ([key, markdown_text(flat[0][key])] for key in same), left=2)
    differing = [key for key in keys if key not in same]
    rows = [
        [which, *(markdown_text(one.get(key, DASH)) for key in differing)]
        for which, one in zip(stages, flat, strict=True)
    ]
    more = markdown_table(["steps of", *differing], rows, left=1 + len(differing))
    return f"{table}\nThe steps ran in {len(flat)} environments; they differ in:\n\n{more}"


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            found |= {f"{key}: {name}": str(one) for name, one in value.items()}
        else:
            found[key] = (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
    return found


def time_section(analysis: Analysis) -> str:
    """Seconds of the steps by stage, and of the fine-tunings by model and task; steps at once count in full."""
    seconds = analysis.run.seconds
    rows = [[stage, number(value, 1)] for stage, value in seconds.items()]
    table = markdown_table(["stage", "seconds"], [*rows, ["all", number(sum(seconds.values()), 1)]])
    jobs = analysis.run.config.machine.jobs_per_device
    beside = f", {jobs} at once on a device" if jobs > 1 else ""
    at_once = "; what ran at once counts in full" if jobs > 1 else ""
    stages = f"The steps' own seconds, summed{at_once}:\n\n{table}"
    if not analysis.tasks:
        return stages
    found = analysis.run.finetune_seconds
    rows = []
    for model in (model for model in analysis.run.roles if model != "majority"):
        cells = [found.get((model, task)) for task in analysis.tasks]
        rows.append([markdown_text(model), *(number(one, 0) for one in [*cells, sum(one or 0.0 for one in cells)])])
    tasks = markdown_table(["model", *(TASKS[task].title for task in analysis.tasks), "all"], rows)
    return f"{stages}\nFine-tuning in seconds, all seeds, training and predictions{beside}:\n\n{tasks}"


def repeat_command(run: RunFolder) -> str:
    """The command line that repeats a run: its config by name and what differs from the shipped one.

    Where that cannot be said so, or the config does not ship with the package: the config.json beside the report.
    """
    command = ["python", "-m", "glue_bench", "run-all", "--config"]
    name, own = run.config.name, plain(run.config)
    try:
        shipped = plain(load_config(name))
    except UserError:
        shipped = {}
    changes = _changes(shipped, own, "") if shipped else None
    command += [CONFIG_FILE] if changes is None else [name]
    command += ["--run", run.name] if run.name != name else []
    for key, value in changes or []:
        if key != "title":
            command += ["--set", f"{key}={_toml(value)}"]
    return shlex.join(command)


def _changes(shipped: Any, own: Any, path: str) -> list[tuple[str, Any]] | None:
    """(key path, value) of every setting that differs; None where --set cannot express it.

    It can set, not remove: no rows of students, no key of a table, no threshold.
    """
    found: list[tuple[str, Any]] = []
    for key, value in own.items():
        here, old = f"{path}{key}", shipped.get(key)
        if value == old:
            continue
        if key == "students" and not path:
            if [one["name"] for one in value] != [one["name"] for one in old]:
                return None
            deeper = [_changes(old[i], row, f"students.{i}.") for i, row in enumerate(value)]
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            deeper = [None if set(old) - set(value) else _changes(old, value, f"{here}.")]
        else:
            deeper = [None if value is None else [(here, value)]]  # TOML has no null
        for changes in deeper:
            if changes is None:
                return None
            found += changes
    return found


def _toml(value: Any) -> str:
    """A value as TOML; text that TOML would not read as another kind of value stays bare."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_quoted(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_quoted(one) for one in value) + "]"
    return _quoted(value)


def _quoted(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return _toml(value)
    return json.dumps(value, ensure_ascii=False)  # numbers, true/false and basic strings read the same in TOML


def _count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"
