"""Runs the steps of a plan: what is done is skipped, what is stale or damaged is redone, the rest is computed here.

Under torchrun every rank walks the same plan: rank 0 alone locks, prepares and records; all ranks join in pretrain and
distill. With --shard I/N the fine-tunings are dealt out over N processes that share the folder, with a lock per step.
"""

import contextlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glue_bench.config import Config, plain
from glue_bench.errors import StepError, UserError, redo
from glue_bench.locks import lock
from glue_bench.machine import environment, gpu_names
from glue_bench.plan import STAGE_VERSIONS, Step, checkpoint_key, explain, fingerprints
from glue_bench.records import seal_of, sealed
from glue_bench.store import (
    CONFIG_FILE,
    RECORD,
    State,
    Store,
    checkpoints_of,
    clean_partial,
    damaged_file,
    describe_os_error,
    list_outputs,
    read_record,
    refuse_link,
    refuse_links,
    write_atomic,
)
from glue_bench.work import deal

DISTRIBUTED_STAGES = ("pretrain", "distill")
TRAINED_STAGES = (*DISTRIBUTED_STAGES, "finetune")
REHEARSED = (*DISTRIBUTED_STAGES, "benchmark")
# These print times and other figures that come out differently when a step is computed anew, whatever its fingerprint
# says: they are done only for the very records that they have read.
READS_RECORDS = ("report", "check")
MACHINE_SETTINGS = {"threads", "precision"}
POLL_S = 0.5
SHARED_FOLDER_WAIT_S = 300.0
STEP_LOCK_WAIT_S = 7 * 24 * 3600.0  # another shard may well train for days


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count` of the fine-tunings."""

    index: int
    count: int


@dataclass(frozen=True)
class Run:
    """What a walk over the plan needs to know besides the steps."""

    store: Store
    config: Config
    device: str
    threads: int
    precision: str
    shard: Shard
    say: Callable[[str], None]
    step_locks: bool = False  # other processes work on the same plan


def with_needs(steps: Sequence[Step], chosen: Sequence[Step]) -> list[Step]:
    """The chosen steps and, transitively, what they need, in the plan's order."""
    by_name = {step.name: step for step in steps}
    wanted: set[str] = set()
    waiting = [step.name for step in chosen]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += by_name[name].needs
    return [step for step in steps if step.name in wanted]


def is_done(step: Step, known: Mapping[str, str], store: Store) -> bool:
    """Whether a step needs no computing; `known` has the fingerprints of the whole plan."""
    return store.state(step.name, known[step.name], explain(step, known)).kind == "done"


def states(steps: Sequence[Step], store: Store) -> dict[str, State]:
    """The state of every step of a whole plan."""
    known = fingerprints(steps)
    return {step.name: store.state(step.name, known[step.name], explain(step, known)) for step in steps}


def run_steps(
    all_steps: Sequence[Step],
    wanted: Sequence[Step],
    run: Run,
    *,
    force: Sequence[str] = (),
    more_follows: bool = False,
) -> bool:
    """Bring the wanted steps to done, in order. Returns False where other shards still have some to finish.

    `force` names stages that are redone even if done. Where `more_follows`, it is not said that nothing was to do.
    Raises StepError and UserError as the stages do.
    """
    known = fingerprints(all_steps)
    by_name = {step.name: step for step in all_steps}
    with run_lock(run):
        if _rank() == 0:
            write_config(run)
        numbers = {step.name: f"[{i}/{len(wanted)}]" for i, step in enumerate(wanted, start=1)}
        owners = deal([step for step in wanted if step.stage == "finetune"], run.config, run.shard.count)
        mine = run.shard.index - 1  # every other step is for whoever comes first
        remaining = [step for step in wanted if owners.get(step.name, mine) == mine]
        computed = 0
        rehearsed = _rank() != 0
        while remaining:
            blocked = []
            for step in remaining:
                if step.stage != "prepare" and not rehearsed:
                    _rehearse(all_steps, known, run)
                    rehearsed = True
                if run.shard.count > 1:
                    # a soft student's teacher may be another shard's: wait for it, or do it, under its lock
                    for need in (by_name[name] for name in step.needs if step.stage == by_name[name].stage):
                        computed += bring_to_done(need, known, run, numbers[need.name], False)
                    # nothing is timed while another shard may be training beside it
                    waits_for = [one for one in wanted if one.stage == "finetune"] if step.stage == "benchmark" else []
                    waits_for += [by_name[name] for name in step.needs]
                    waits_for = [one for one in waits_for if not is_done(one, known, run.store)]
                    if waits_for:
                        for one in waits_for:
                            _refuse_another_machine(one, known, run)  # it would wait for ever
                        blocked.append(step)
                        continue
                computed += bring_to_done(step, known, run, numbers[step.name], step.stage in force)
            if len(blocked) == len(remaining):
                run.say(
                    f"shard {run.shard.index}/{run.shard.count} is done; {blocked[0].name} waits for the other shards"
                )
                return False
            remaining = blocked
        if not rehearsed:
            _rehearse(all_steps, known, run)
        if not computed and not more_follows:
            run.say(f"all {len(wanted)} steps are done already; nothing to compute")
    return True


def _rehearse(steps: Sequence[Step], known: Mapping[str, str], run: Run) -> None:
    """Before the first training: what a step would refuse after hours is refused now. Raises UserError."""
    ahead = [step for step in steps if step.stage in REHEARSED or (step.stage == "finetune" and step.inputs)]
    ahead = [step for step in ahead if not is_done(step, known, run.store)]
    if ahead:
        importlib.import_module("glue_bench.learning.rehearsal").rehearse(ahead, run.store)


def write_config(run: Run) -> None:
    """Write the resolved config beside the results: report, verify and publish work from it alone."""
    path = run.store.root / CONFIG_FILE
    text = json.dumps(plain(run.config), indent=2, sort_keys=True, allow_nan=False) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        write_atomic(path, text)


def bring_to_done(step: Step, known: Mapping[str, str], run: Run, place: str, force: bool) -> int:
    """Run one step unless it is done; returns how many steps were computed (0 or 1)."""
    reasons = explain(step, known)
    if _rank() != 0:
        return _follow(step, known[step.name], reasons, run)
    state = run.store.state(step.name, known[step.name], reasons)
    if state.kind == "done" and not force:
        return 0
    with _step_lock(step, run):
        state = run.store.state(step.name, known[step.name], reasons)  # another shard may have finished it meanwhile
        if state.kind == "done" and not force:
            return 0
        if state.kind == "damaged" and step.stage in DISTRIBUTED_STAGES and not force:
            folder = run.store.folder(step.name)  # days of work, for an edited model card perhaps: not without asking
            raise StepError(f"{state.why}; restore it, or {redo(folder)}")
        if state.kind == "stale" and (run.shard.count > 1 or step.stage in DISTRIBUTED_STAGES) and not force:
            _refuse_another_machine(step, known, run)
        if state.kind in ("stale", "damaged"):
            run.say(f"{place} {step.name}: {state.kind}, computed anew ({state.why})")
        _refuse_changed_needs(step, run)
        started = time.monotonic()
        result = _compute(step, run)
        seconds = time.monotonic() - started
        _write_record(step, known, run, result, seconds)
        _remove_checkpoints(step, known, run)
        run.say(f"{place} {step.name}: {seconds:.1f} s{summary_line(result)}")
    return 1


def _refuse_another_machine(step: Step, known: Mapping[str, str], run: Run) -> None:
    """Nothing is trained anew for nothing but another machine. Raises UserError.

    Shards on machines of different kinds would train one after the other; a single process may be asked to, by setting
    machine.threads or machine.precision itself.
    """
    record = run.store.record(step.name)
    if record is None or step.stage not in TRAINED_STAGES or record["stage_version"] != STAGE_VERSIONS[step.stage]:
        return
    now, made = explain(step, known), record["settings"]
    changed = {key for key in made.keys() | step.settings.keys() if made.get(key) != step.settings.get(key)}
    if changed and changed <= MACHINE_SETTINGS and all(record[part] == now[part] for part in ("needs", "inputs")):
        was = _machine_of(step, record, changed, run)
        if run.shard.count > 1:
            remedy = f"give every process {was}, or run it alone"
            raise UserError(f"{step.name}: done on another kind of machine; {remedy}")
        if all(getattr(run.config.machine, key) in (0, "auto") for key in changed):
            anew = " ".join(f"machine.{key}={getattr(run, key)}" for key in sorted(changed))
            remedy = f"{was} keeps it, --set {anew} trains it anew"
            raise UserError(f"{step.name}: done on another kind of machine; {remedy}")


def _machine_of(step: Step, record: Mapping[str, Any], changed: set[str], run: Run) -> str:
    """The flags under which a step was done. Fine-tunings at once share the run's threads on a CPU, not on a GPU."""
    flags: list[str] = []
    was: dict[str, Any] = {"precision": record["settings"].get("precision")} if "precision" in changed else {}
    if "threads" in changed:
        threads = record["environment"]["threads"]
        if threads != run.threads:
            was["threads"] = threads
        if step.stage == "finetune":
            jobs = threads // record["settings"]["threads"]
            on_gpu = run.device != "cpu" and bool(gpu_names())
            if on_gpu and jobs > 1:
                flags.append("--device cpu")
            if jobs != run.config.machine.jobs_per_device and (jobs > 1 or not on_gpu):
                was["jobs_per_device"] = jobs
    if was:
        flags += ["--set", *(f"machine.{key}={was[key]}" for key in sorted(was))]
    return " ".join(flags)


def _refuse_changed_needs(step: Step, run: Run) -> None:
    """Hash what a step is about to read: a flipped bit leaves size and time stamp as they were. Raises StepError."""
    for need in step.needs:
        folder = run.store.folder(need)
        record = read_record(folder)
        damaged = damaged_file(folder, record["outputs"], once=True) if record else f"{folder / RECORD} is unreadable"
        if damaged:
            raise StepError(f"{damaged}; {redo(folder)}")


def _compute(step: Step, run: Run) -> dict[str, Any]:
    folder = run.store.folder(step.name)
    refuse_links(run.store.root, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)
        clean_partial(folder)
        stage = importlib.import_module(f"glue_bench.stages.{step.stage}")
        return stage.run(step, run.store, run.device)
    except OSError as error:
        raise StepError(describe_os_error(error, folder)) from None


def _write_record(step: Step, known: Mapping[str, str], run: Run, result: dict[str, Any], seconds: float) -> None:
    """The record is what makes a step done, so it is written last."""
    folder = run.store.folder(step.name)
    record = {
        "step": step.name,
        "stage_version": STAGE_VERSIONS[step.stage],
        "fingerprint": known[step.name],
        **explain(step, known),
        "outputs": list_outputs(folder),
        "environment": asdict(environment(run.threads, run.precision)),
        "seconds": round(seconds, 3),
        "result": result,
    }
    if step.stage in READS_RECORDS:
        record["seals"] = {need: seal_of(read_record(run.store.folder(need)) or {}) for need in step.needs}
    try:
        text = json.dumps(sealed(record), indent=1, sort_keys=True, allow_nan=False)
    except ValueError:
        raise StepError(
            f"{step.name}: the result holds a NaN or an infinite number; this is a bug, please report it"
        ) from None
    write_atomic(folder / RECORD, text + "\n")


def _remove_checkpoints(step: Step, known: Mapping[str, str], run: Run) -> None:
    """Those of a finished training are of no use any more; those of other settings stay, as these may come back."""
    own = checkpoints_of(run.store.folder(step.name), checkpoint_key(step, {need: known[need] for need in step.needs}))
    shutil.rmtree(own, ignore_errors=True)
    with contextlib.suppress(OSError):  # others are there, or none ever were
        own.parent.rmdir()


def summary_line(result: dict[str, Any]) -> str:
    """A few words on a step's result for its line on stdout."""
    if scores := result.get("scores"):
        metrics = scores[0]["metrics"]
        return "  " + ", ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items())
    if "tokens_per_second" in result:
        return f"  {result['tokens_per_second']:,.0f} tokens/s"
    return ""


def _follow(step: Step, fingerprint: str, reasons: dict[str, Any], run: Run) -> int:
    """A rank other than 0: joins in the distributed stages, waits for rank 0 in all others."""
    if step.stage in DISTRIBUTED_STAGES:
        if run.store.state(step.name, fingerprint, reasons).kind == "done":
            return 0
        importlib.import_module(f"glue_bench.stages.{step.stage}").run(step, run.store, run.device)
    started = time.monotonic()
    while run.store.state(step.name, fingerprint, reasons).kind != "done":
        time.sleep(POLL_S)  # torchrun ends this process where rank 0 fails
        if time.monotonic() - started > SHARED_FOLDER_WAIT_S and not (run.store.root / CONFIG_FILE).is_file():
            raise UserError(f"{run.store.root}: nothing is written there; all processes need a common --results folder")
    return int(step.stage in DISTRIBUTED_STAGES)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def run_lock(run: Run) -> Iterator[None]:
    """One plain process at a time in a run's folder; those with step locks share it. Raises UserError naming the owner.

    A process that starts others for its run holds it from before the first until after the last.
    """
    if _rank() != 0:
        yield
        return
    for place in (run.store.root, run.store.root / ".locks", run.store.cache, run.store.cache / "corpus"):
        refuse_link(place)
    with lock(run.store.root / ".lock", wait_s=2.0, shared=run.step_locks):
        yield


@contextlib.contextmanager
def _step_lock(step: Step, run: Run) -> Iterator[None]:
    if not run.step_locks:
        yield
        return
    path = run.store.root / ".locks" / f"{step.name.replace('/', '--')}.lock"
    with lock(path, wait_s=STEP_LOCK_WAIT_S, waiting=lambda owner: run.say(f"{step.name}: waits for {owner}")):
        yield
