"""The way in: verbs and flags become a Config and a list of steps; exit codes and one-line errors are made here.

0 done and gate passed; 1 gate failed or judged incomplete; 2 bad usage, config or data, or something missing; 3 a step
failed; 130 interrupted.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glue_bench.config import Config, check_run_name, config_names, load_config, parse_task_threshold, with_machine
from glue_bench.errors import GlueBenchError, UserError, printable, without_secrets
from glue_bench.interrupts import interruptible
from glue_bench.paths import check_results, is_file
from glue_bench.store import CONFIG_FILE, UNREADABLE, describe_os_error

OUT_OF_MEMORY = "out of memory; use a smaller micro_batch_size or batch_size, or --device cpu; finished steps are kept"
STEP_VERBS = ("prepare", "pretrain", "distill", "finetune", "benchmark", "report")
VERBS = {
    "run-all": "everything: from the data to the tables and the gate",
    "plan": "state, time, disk and downloads of every step; computes nothing",
    "prepare": "GLUE, weights and text, checked and tokenised",
    "pretrain": "the teacher: masked-language modelling",
    "distill": "the students: triple loss",
    "finetune": "teacher and students on every task",
    "benchmark": "sizes and inference times",
    "report": "tables and figures, written anew",
    "check": "judge stored results against thresholds; computes nothing",
    "verify": "recompute scores and tables from stored predictions and compare",
    "compare": "what changed between two runs",
    "submit": "zip for the GLUE server",
    "publish": "verified copy of a run to results/published/",
    "list": "tasks, configs or runs",
}


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line with the remedy, exit code 2."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see python -m glue_bench {self.prog.rpartition(' ')[2]} --help".replace("\n", " "))


def build_parser() -> argparse.ArgumentParser:
    """All verbs and flags of the contract."""
    parser = _Parser(prog="glue_bench", description="Distil an encoder and say what was lost and won on GLUE.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, help_text in VERBS.items():
        sub = verbs.add_parser(verb, help=help_text, description=help_text)
        sub.add_argument("--results", default="results", metavar="DIR", help="folder of all runs")
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        if verb in ("run-all", "plan", *STEP_VERBS):
            _add_run_flags(sub)
        if verb in ("check", "submit"):
            sub.add_argument("--config", metavar="NAME|FILE.toml", help="the run's config, for its name")
            sub.add_argument("--run", metavar="NAME", help="folder below --results")
        if verb == "check":
            sub.add_argument("--min-retention", type=_fraction, metavar="R", help="least retention, e.g. 0.95")
            sub.add_argument(
                "--min-task", action="append", default=[], metavar="TASK=R", help="least retention of a task"
            )
            sub.add_argument("--min-speedup", type=_ratio, metavar="X", help="least CPU speed-up")
            sub.add_argument("--min-size-reduction", type=_fraction, metavar="R", help="least size reduction")
            sub.add_argument("--judge", choices=("value", "low"), help="point estimate or lower end of the interval")
            sub.add_argument("--baseline", metavar="FILE", help="a summary.json to hold against")
        if verb == "submit":
            sub.add_argument("--model", required=True, metavar="NAME", help="row whose predictions are sent")
        if verb in ("verify", "publish"):
            sub.add_argument("run", metavar="RUN", help="a run's name or folder")
        if verb == "compare":
            sub.add_argument("run", metavar="RUN", help="a run's name or folder")
            sub.add_argument("other", metavar="RUN", help="the run to compare it with")
        if verb == "list":
            sub.add_argument("what", choices=("tasks", "configs", "runs"))
    return parser


def _add_run_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--config", metavar="NAME|FILE.toml", help=f"one of {', '.join(config_names())}, a file, or a run's config.json"
    )
    sub.add_argument("--run", metavar="NAME", help="folder below --results; default: the config's name, or its own run")
    sub.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="override settings")
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: what the config says")
    sub.add_argument("--executor", choices=("local", "ray"), default="local", help="where fine-tunings run")
    sub.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="do the I-th of N parts of the fine-tunings"
    )


def _fraction(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _ratio(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a ratio of 0 or more")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, e.g. 0.95") from None


def _shard(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with 1 <= I <= N, e.g. 2/8")
    return int(first), int(second)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    with interruptible():
        return _run_verb(sys.argv[1:] if arguments is None else arguments)


def _run_verb(arguments: Sequence[str]) -> int:
    debug = "--debug" in arguments
    try:
        options = build_parser().parse_args(arguments)
        return _dispatch(options)
    except KeyboardInterrupt:
        _complain(f"interrupted; what is finished is kept. To go on: python -m glue_bench {shlex.join(arguments)}")
        return 130
    except GlueBenchError as error:
        if debug:
            _show_traceback()
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:  # of `| head`: the interpreter's own last flush must not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 3
    except MemoryError:
        _complain(OUT_OF_MEMORY)
        return 3
    except OSError as error:
        if debug:
            _show_traceback()
        _complain(describe_os_error(error, Path(error.filename or "a file")))
        return 3
    except Exception as error:  # the last resort: a bug, or a library's error; never a traceback without --debug
        if debug:
            _show_traceback()
        first_line = (str(error).splitlines() or [""])[0]
        no_memory = "can't allocate memory" in first_line or type(error).__name__ == "OutOfMemoryError"  # torch's
        _complain(OUT_OF_MEMORY if no_memory else f"{type(error).__name__}: {first_line} (--debug shows where)")
        return 3


def _complain(message: str) -> None:
    print(f"glue_bench: {printable(message)}", file=sys.stderr)


def _show_traceback() -> None:
    print(without_secrets(traceback.format_exc()), file=sys.stderr, end="")


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def _dispatch(options: argparse.Namespace) -> int:
    check_results(options.results)
    match options.verb:
        case "list":
            return _list(options)
        case "check":
            return _check(options)
        case "verify" | "publish" | "compare" | "submit":
            return _stored(options)
    config, chosen = _config(options)
    return _plan(options, config) if options.verb == "plan" else _run(options, config, chosen)


def _config(options: argparse.Namespace) -> tuple[Config, str]:
    """The config of the flags, and why it was chosen where the tool chose it."""
    from glue_bench.preflight import choose_config

    name, why = (options.config, "") if options.config is not None else choose_config(Path(options.results))
    options.chosen = name
    config = load_config(name, options.set)
    if options.run is None:
        options.run = _run_of(name, config)
    if why:
        why = f"config {name}, chosen because: {why}"
        config = replace(config, title=f"{config.title} (chosen by run-all for this machine)")
    if options.device:
        config = with_machine(config, device=options.device)
    return config, why


def _run_of(name: str, config: Config) -> str:
    """The run that --config alone means: named by the config, or the one whose config.json it is."""
    return Path(name).resolve().parent.name if Path(name).name == CONFIG_FILE else config.name


def _run(options: argparse.Namespace, config: Config, chosen: str) -> int:
    from glue_bench.executors import run_in_parallel, worker_environments
    from glue_bench.inputs import HashMemo
    from glue_bench.machine import facts
    from glue_bench.pipeline import Run, Shard, is_done, run_lock, run_steps, with_needs
    from glue_bench.plan import fingerprints, plan
    from glue_bench.preflight import check_parts
    from glue_bench.store import Store

    store = Store(Path(options.results), check_run_name(options.run, "--run"))
    machine = facts(config.machine)
    memo = HashMemo.load(store.cache / "hashes.json")
    try:
        steps = plan(config, machine, memo)
    except UserError:
        check_parts(config)  # names all that is missing rather than the first
        raise
    known = fingerprints(steps)
    prepared = all(is_done(step, known, store) for step in steps if step.stage == "prepare")
    check_parts(config, prepared=prepared)
    memo.save()
    if options.verb == "run-all":
        compute = f"{machine.precision}, {machine.threads} threads"
        _say(f"glue_bench run-all: {chosen or 'config ' + config.name}; {store.root}; {compute}")
        wanted = steps
    else:
        last = "check" if options.verb == "report" else options.verb  # a new report is judged anew
        wanted = with_needs(steps, [step for step in steps if step.stage == last])
    shard = Shard(*options.shard)
    if options.executor == "ray" and shard.count > 1:
        raise UserError("--shard: --executor ray deals the fine-tunings out itself; leave one of the two out")
    workers = worker_environments(config.machine.jobs_per_device, config.machine.device)
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1  # under torchrun the processes are already many
    parallel = alone and shard.count == 1 and (options.executor == "ray" or len(workers) > 1)
    parallel = parallel and any(step.stage == "finetune" for step in wanted)
    locks = parallel or shard.count > 1
    run = Run(store, config, config.machine.device, machine.threads, machine.precision, shard, _say, step_locks=locks)
    with run_lock(run) if parallel else contextlib.nullcontext():  # no plain run comes between its steps
        if parallel:
            run_in_parallel(steps, run, _run_arguments(options, config), options.executor)
        complete = run_steps(steps, wanted, run, force=("report",) if options.verb == "report" else ())
    if options.verb != "run-all" or not complete:
        return int(options.verb == "run-all")  # incomplete: other shards still have some to do
    gate = store.result("check")
    for reason in gate.get("reasons", ()):
        _say(f"gate: {reason}")
    _say(store.result("report").get("headline", "") + (f" [{chosen}]" if chosen else ""))
    return 0 if gate.get("passed") else 1


def _run_arguments(options: argparse.Namespace, config: Config) -> list[str]:
    """The flags with which a worker process sees the same plan."""
    arguments = ["--config", options.config or options.chosen, "--run", options.run]
    arguments += ["--results", options.results, "--device", config.machine.device]
    return arguments + (["--set", *options.set] if options.set else [])


def _plan(options: argparse.Namespace, config: Config) -> int:
    from glue_bench.estimate import plan_table

    _say(plan_table(config, Path(options.results), check_run_name(options.run, "--run")))
    return 0


def _folder(options: argparse.Namespace, name: str | None) -> Path:
    """A run's folder by its name, that of a published one as published/NAME, or by a path. Raises UserError."""
    if name is None:
        chosen = getattr(options, "config", None)
        name = "quick" if chosen is None else _run_of(chosen, load_config(chosen))
    if not name:
        raise UserError("the run's name is empty; python -m glue_bench list runs names the runs")
    own = Path(options.results, name)
    for folder in (own, Path(name)):
        if is_file(folder / CONFIG_FILE):
            return folder
    published = is_file(Path(options.results, "published", name, CONFIG_FILE))
    hint = f"published/{name} is one" if published else "python -m glue_bench list runs names them"
    raise UserError(f"{own}: no run there; {hint}")


def _check(options: argparse.Namespace) -> int:
    from glue_bench.reporting.gate import check_run

    folder = _folder(options, options.run)
    gate = check_run(
        folder,
        min_retention=options.min_retention,
        min_task=dict(parse_task_threshold(text) for text in options.min_task),
        min_speedup=options.min_speedup,
        min_size_reduction=options.min_size_reduction,
        judge=options.judge,
        baseline=options.baseline,
    )
    for reason in gate.reasons:
        _say(f"gate: {reason}")
    _say(f"{folder}: gate {'passed' if gate.passed else 'failed'}")
    return 0 if gate.passed else 1


def _stored(options: argparse.Namespace) -> int:
    folder = _folder(options, options.run)
    match options.verb:
        case "verify":
            from glue_bench.reporting.verify import verify

            disagreements = verify(folder)
            for line in disagreements:
                _say(line)
            _say(f"{folder}: {f'{len(disagreements)} disagreements' if disagreements else 'everything agrees'}")
            return 1 if disagreements else 0
        case "publish":
            from glue_bench.reporting.publish import publish

            _say(f"published to {publish(folder, Path(options.results) / 'published')}")
        case "compare":
            from glue_bench.reporting.compare import compare

            _say(compare(folder, _folder(options, options.other)))
        case "submit":
            from glue_bench.reporting.submission import submit

            _say(f"wrote {submit(folder, options.model)}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from glue_bench.tasks import TASKS

    if options.what == "tasks":
        for task in TASKS.values():
            _say(f"{task.name:6} {task.title:6} {task.train_rows:>8,} train  {' + '.join(task.headline)}")
    elif options.what == "configs":
        for name in config_names():
            _say(f"{name:12} {load_config(name).title}")
    else:
        results = Path(options.results)
        for path in sorted([*results.glob("[!.]*/config.json"), *results.glob("published/[!.]*/config.json")]):
            state = "complete" if _is_complete(path.parent / "summary.json") else "unfinished"
            _say(f"{path.parent.relative_to(results)}  {state}")
    return 0


def _is_complete(summary: Path) -> bool:
    try:
        return json.loads(summary.read_text(encoding="utf-8"))["complete"] is True
    except (*UNREADABLE, KeyError, TypeError):
        return False
