"""What no single setting can say: names that are folders, references between rows, lists of choices.

Called once by config.config_from, before anything heavy is imported. Every failure is a ConfigError with its key path.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glue_bench.errors import ConfigError
from glue_bench.tasks import GLUE_NINE
from glue_bench.typed import near_miss

if TYPE_CHECKING:
    from glue_bench.config import Config

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on every system
RESERVED_RUNS = ("cache", "published", "leaderboard.md", "leaderboard.csv")
LOSS_WEIGHTS = ("weight_ce", "weight_mlm", "weight_cos")
RESERVED_MODELS = ("majority", "as-released")


def check_name(name: str, what: str) -> str:
    """Return a run or model name that is safe as a folder name; raise ConfigError otherwise."""
    if not name or name[0] in ".-" or set(name) - NAME_CHARACTERS or len(name) > 80:
        raise ConfigError(f"{what}: {name!r} cannot name a folder; use letters, digits, '-', '_' and '.', at most 80")
    return name


def check_run_name(name: str, what: str) -> str:
    """Return a run's name that is safe beside what all runs share; raise ConfigError otherwise."""
    if check_name(name, what) in RESERVED_RUNS:
        raise ConfigError(f"{what}: {name!r} is what all runs share in the results folder; choose another name")
    return name


def check_config(config: "Config", source: str, seeds: Mapping[str, Sequence[int]]) -> None:
    """What no single field can say: names, references between rows, lists of choices. Raises ConfigError."""
    check_run_name(config.name, f"{source}: name")
    for i, task in enumerate(config.data.tasks):
        if task not in GLUE_NINE:
            hint = "; AX needs no entry, it follows mnli" if task == "ax" else near_miss(task, GLUE_NINE)
            raise ConfigError(f"{source}: data.tasks[{i}]: no task {task!r}{hint}")
    _no_repeats(config.data.tasks, f"{source}: data.tasks")
    for task in config.finetune.tasks:
        if task not in GLUE_NINE:
            raise ConfigError(f"{source}: finetune.tasks.{task}: no such task{near_miss(task, GLUE_NINE)}")
    for task, chosen in seeds.items():
        if not chosen:
            raise ConfigError(f"{source}: finetune.seeds ({task}): at least one seed is needed")
        _no_repeats(chosen, f"{source}: finetune.seeds ({task})")
    for task, least in config.check.min_task.items():
        if task not in GLUE_NINE:
            raise ConfigError(f"{source}: check.min_task.{task}: no such task{near_miss(task, GLUE_NINE)}")
        if not 0 <= least <= 1:
            raise ConfigError(f"{source}: check.min_task.{task}: {least} is not between 0 and 1")
    for chosen, known, path in (
        (config.benchmark.scenarios, ("stsb-pass", "throughput", "fixed-128"), "benchmark.scenarios"),
        (config.benchmark.precisions, ("fp32", "bf16", "fp16"), "benchmark.precisions"),
        (config.benchmark.backends, ("eager", "compile", "onnx", "onnx-int8"), "benchmark.backends"),
    ):
        for i, one in enumerate(chosen):
            if one not in known:
                raise ConfigError(f"{source}: {path}[{i}]: {one!r} is not one of {', '.join(known)}")
        _no_repeats(chosen, f"{source}: {path}")
    _no_repeats(config.benchmark.batch_sizes, f"{source}: benchmark.batch_sizes")
    if config.benchmark.min_passes % 2:
        raise ConfigError(f"{source}: benchmark.min_passes: {config.benchmark.min_passes} is odd; A B B A needs even")
    if config.teacher.hidden % config.teacher.heads:
        raise ConfigError(
            f"{source}: teacher.heads: {config.teacher.heads} does not divide hidden {config.teacher.hidden}"
        )
    check_name(config.teacher.name, f"{source}: teacher.name")
    if config.teacher.name in RESERVED_MODELS:
        raise ConfigError(f"{source}: teacher.name: {config.teacher.name!r} is a row of every table; choose another")
    _check_finetuned(config.teacher.finetuned, f"{source}: teacher.finetuned")
    if config.pretrain.freeze_encoder and not config.teacher.weights:
        raise ConfigError(f"{source}: pretrain.freeze_encoder: would leave random weights; give teacher.weights")
    if not config.teacher.weights and config.corpus.sequence_length > config.teacher.max_positions:
        most = f"the teacher's max_positions, {config.teacher.max_positions}"
        raise ConfigError(f"{source}: corpus.sequence_length: {config.corpus.sequence_length} is above {most}")
    _check_places(config, source)
    _check_students(config, source)


def _check_places(config: "Config", source: str) -> None:
    """Where things are: text to train on and text held out are two, and every path can be one."""
    corpus = config.corpus
    if not corpus.text:
        raise ConfigError(f"{source}: corpus.text: names no text; give embedded, files, or hub:ID")
    if corpus.heldout and corpus.heldout in ("embedded", *corpus.text):
        raise ConfigError(
            f"{source}: corpus.heldout: {corpus.heldout!r} is not held out of the text; "
            "give a file of its own, or leave it empty for the text's last part"
        )
    if not config.data.glue:
        raise ConfigError(f"{source}: data.glue: names no data; give embedded, hub, or a folder")
    places = {"data.glue": config.data.glue, "corpus.heldout": corpus.heldout, "check.baseline": config.check.baseline}
    places |= {f"corpus.text[{i}]": text for i, text in enumerate(corpus.text)}
    rows = {"teacher": config.teacher} | {f"students[{i}]": student for i, student in enumerate(config.students)}
    for where, row in rows.items():
        places |= {f"{where}.weights": row.weights}
        places |= {f"{where}.finetuned.{task}": path for task, path in row.finetuned.items()}
    for where, path in places.items():
        if any(len(part.encode()) > LONGEST_NAME for part in path.split("/")) or len(path.encode()) > LONGEST_PATH:
            raise ConfigError(f"{source}: {where}: {path[:40]!r}... is too long for a path")


def _check_students(config: "Config", source: str) -> None:
    names = [config.teacher.name, *(student.name for student in config.students)]
    for i, student in enumerate(config.students):
        where = f"{source}: students[{i}]"
        check_name(student.name, f"{where}.name")
        if student.name in RESERVED_MODELS:
            raise ConfigError(f"{where}.name: {student.name!r} is a row of every table; choose another")
        ways = [bool(student.layers), bool(student.weights), bool(student.weights_of), bool(student.finetuned)]
        if sum(ways[:3]) != 1 and not (sum(ways[:3]) == 0 and ways[3]):
            raise ConfigError(f"{where} ({student.name}): give exactly one of layers, weights, weights_of")
        if student.weights_of:
            owners = [one.name for one in config.students if not one.weights_of and not one.finetuned]
            if student.weights_of not in owners:
                hint = near_miss(student.weights_of, owners)
                raise ConfigError(f"{where}.weights_of: no distilled row {student.weights_of!r}{hint}")
        if len(student.layers) == 1 and student.layers[0] < 1:
            raise ConfigError(f"{where}.layers: {student.layers[0]} layers; at least 1 is needed")
        if any(layer < 0 for layer in student.layers):
            raise ConfigError(f"{where}.layers: layers are counted from 0; got {list(student.layers)}")
        _no_repeats(student.layers, f"{where}.layers")
        distill = vars(config.distill) | dict(student.distill)
        if student.layers and not any(distill[name] for name in LOSS_WEIGHTS):
            raise ConfigError(f"{where}: {', '.join(LOSS_WEIGHTS)} are all 0; at least one loss needs a weight")
        if student.layers and distill["freeze_positions"] and distill["initialisation"] == "random":
            raise ConfigError(f"{where}: freeze_positions would keep random ones; set distill.freeze_positions = false")
        if student.distill and not student.layers:
            raise ConfigError(f"{where}.distill: {student.name} is not distilled here; only rows with layers are")
        if student.soft_targets and not any(ways[:3]):
            raise ConfigError(f"{where}.soft_targets: {student.name} is not fine-tuned here; leave it out")
        if student.soft_targets and config.teacher.finetuned:
            remedy = "the teacher must be fine-tuned here; remove teacher.finetuned"
            raise ConfigError(f"{where}.soft_targets: needs the teacher's logits on the training set, so {remedy}")
        _check_finetuned(student.finetuned, f"{where}.finetuned")
        if not config.teacher.weights and student.least_teacher_layers > config.teacher.layers:
            raise ConfigError(f"{where}.layers: {list(student.layers)} of a teacher that has {config.teacher.layers}")
    _no_repeats(names, f"{source}: names of teacher and students")
    for i, name in enumerate(config.check.students):
        if name not in names[1:]:
            raise ConfigError(f"{source}: check.students[{i}]: no student {name!r}{near_miss(name, names[1:])}")


def _check_finetuned(finetuned: Mapping[str, str], where: str) -> None:
    for task in finetuned:
        if task not in GLUE_NINE:
            raise ConfigError(f"{where}.{task}: no such task{near_miss(task, GLUE_NINE)}")


def _no_repeats(values: Sequence[Any], where: str) -> None:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ConfigError(f"{where}: {value!r} stands twice")
