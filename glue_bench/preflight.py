"""Before anything is computed: which config suits this machine, and whether every outside part is there.

All parts that are missing or of no use are named in one message with the ways out. The hub is asked only where the
config names it, once, for 3 s at most, and never while HF_HUB_OFFLINE is set.
"""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from glue_bench.config import Config, load_config
from glue_bench.errors import UserError
from glue_bench.inputs import (
    HashMemo,
    checkpoint_inputs,
    glue_in_hub_cache,
    glue_inputs,
    model_in_hub_cache,
    read_summary,
    text_inputs,
    weights_folder,
    weights_inputs,
    weights_kind,
)
from glue_bench.machine import gpu_names
from glue_bench.model_folder import check_model_folder, check_sequence_length, longest_sequence, model_config, size_of
from glue_bench.plan import needs_corpus
from glue_bench.sources import HUB_DATASET, source_kind
from glue_bench.store import CONFIG_FILE

HUB_TIMEOUT_S = 3.0
WAYS_OUT = (
    "Ways out: local files (--set teacher.weights=FOLDER data.glue=FOLDER corpus.text=FILE), "
    "a filled cache of weights and GLUE (HF_HOME), or --config quick, which needs nothing"
)


def hub_reachable() -> bool:
    """Whether the hub answers; never asked while offline, else once."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    return _answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


@cache
def _answers(endpoint: str) -> bool:
    """Ask for at most 3 s in all (name resolution has no timeout of its own, hence the thread)."""
    answer: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
                answer.append(True)
        except urllib.error.HTTPError:
            answer.append(True)
        except (OSError, ValueError):
            answer.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return bool(answer and answer[0])


def choose_config(results: Path) -> tuple[str, str]:
    """The config of a bare run-all and the reason: paper where an accelerator and all that it needs are at hand.

    A run of paper that was begun in `results` goes on: once prepared it needs no hub.
    """
    if not gpu_names():
        return "quick", "no accelerator here"
    if (results / "paper" / CONFIG_FILE).is_file():
        return "paper", "an accelerator, and a run of paper that was begun"
    try:
        check_parts(load_config("paper"))
    except UserError:
        return "quick", "an accelerator, but neither the hub nor all that paper needs in its cache"
    return "paper", "an accelerator is here, and what it needs in the hub or its cache"


def check_parts(config: Config, *, prepared: bool = False) -> None:
    """Raise one UserError naming every outside part (weights, GLUE, text) that is missing or of no use, and ways out.

    Where everything is `prepared`, the hub and what prepare has copied are no longer needed, and not looked at.
    """
    amiss: list[str] = []
    hub: list[str] = []
    released = [(config.teacher.weights, config.teacher.revision, "teacher.weights")]
    released += [(student.weights, student.revision, f"students.{student.name}.weights") for student in config.students]
    finetuned = [("teacher", config.teacher.finetuned), *((f"students.{s.name}", s.finetuned) for s in config.students)]
    for weights, revision, where in () if prepared else released:
        if weights_kind(weights) == "hub":
            if not model_in_hub_cache(weights, revision):
                hub.append(f"weights {weights} ({where})")
        elif weights and _collect(
            amiss, where, lambda w=weights, r=revision: weights_inputs(w, r, HashMemo.names_only())
        ):
            _collect(amiss, where, lambda w=weights: check_model_folder(weights_folder(w)))
    for row, table in finetuned:
        for task, path in table.items():
            where = f"{row}.finetuned.{task}"
            if _collect(amiss, where, lambda p=path, w=where: checkpoint_inputs(p, w, HashMemo.names_only())):
                _collect(amiss, where, lambda p=path: check_model_folder(weights_folder(p)))
    if not prepared:
        _check_data_and_text(config, amiss, hub)
    if config.check.baseline:
        _collect(amiss, "check.baseline", lambda: read_summary(Path(config.check.baseline)))
    if not amiss:
        _collect(amiss, "", lambda: check_teacher(config))
    unreachable = bool(hub) and not hub_reachable()
    if unreachable:
        amiss.append(", ".join(hub) + ": not in the hub's cache (text never is), nor can the hub be reached")
    if amiss:
        message = f"config {config.name}: missing or of no use: " + "; ".join(amiss)
        raise UserError(f"{message}\n{WAYS_OUT}" if unreachable else message)


def _check_data_and_text(config: Config, amiss: list[str], hub: list[str]) -> None:
    """Add what is missing of GLUE and of the text."""
    glue_from_hub = config.data.tasks and source_kind(config.data.glue) == "hub"
    if glue_from_hub and not glue_in_hub_cache(HUB_DATASET, config.data.revision, config.data.tasks):
        hub.append(f"GLUE {HUB_DATASET} (data.glue)")
    if source_kind(config.data.glue) == "folder":
        for task in config.data.tasks:
            _collect(amiss, "data.glue", lambda t=task: glue_inputs(config.data.glue, t, HashMemo.names_only()))
    if needs_corpus(config):
        for text in config.corpus.text:
            one = replace(config.corpus, text=(text,), heldout="")
            _collect(amiss, "corpus.text", lambda c=one: text_inputs(c, HashMemo.names_only()))
        heldout = replace(config.corpus, text=())
        _collect(amiss, "corpus.heldout", lambda: text_inputs(heldout, HashMemo.names_only()))
        for text in config.corpus.text:  # it is streamed, never cached as it is
            if text.startswith("hub:"):
                hub.append(f"text {text.removeprefix('hub:').partition('@')[0].partition(':')[0]} (corpus.text)")


def check_teacher(config: Config) -> None:
    """Raise UserError where a local teacher is at odds with the settings: sequence_length, students' layers."""
    if weights_kind(config.teacher.weights) not in ("folder", "package"):
        return
    teacher = model_config(weights_folder(config.teacher.weights))
    layers = size_of(teacher, "layers")
    if needs_corpus(config):
        check_sequence_length(config.corpus.sequence_length, longest_sequence(teacher))
    for student in config.students:
        if layers is not None and student.least_teacher_layers > layers:
            raise UserError(
                f"students.{student.name}.layers: {list(student.layers)} of a teacher that has {layers} layers; "
                + (f"they count from 0 to {layers - 1}" if len(student.layers) > 1 else f"give at most {layers}")
            )


def _collect(amiss: list[str], where: str, look: Callable[[], Any]) -> bool:
    """Look; where that raises, add what is amiss, once. Returns whether all is well."""
    try:
        look()
        return True
    except (UserError, OSError) as error:
        text = str(error) if isinstance(error, UserError) else f"{error.filename}: {error.strerror}"
        line = text if not where or text.startswith(where) else f"{where}: {text}"
        if line not in amiss:
            amiss.append(line)
        return False
