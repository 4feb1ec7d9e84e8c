"""Before anything is computed: which config suits this machine, and whether every outside part is there.

All missing parts are named in one message with the ways out. The hub is asked only where the config names it, once, for
3 s at most, and never while HF_HUB_OFFLINE is set.
"""

import os
import threading
import urllib.error
import urllib.request
from dataclasses import replace

from glue_bench.config import Config
from glue_bench.errors import UserError
from glue_bench.inputs import HashMemo, glue_inputs, in_hub_cache, text_inputs, weights_inputs, weights_kind
from glue_bench.machine import gpu_names
from glue_bench.plan import needs_corpus
from glue_bench.sources import HUB_DATASET, source_kind

HUB_TIMEOUT_S = 3.0
WAYS_OUT = (
    "Ways out: local files (--set teacher.weights=FOLDER data.glue=FOLDER corpus.text=FILE), "
    "a filled cache (HF_HOME), or --config quick, which needs nothing"
)


def hub_reachable() -> bool:
    """Ask the hub once, for at most 3 s in all (name resolution has no timeout of its own, hence the thread)."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    answer: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
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


def choose_config() -> tuple[str, str]:
    """The config of a bare run-all and the reason: paper where an accelerator and the hub (or its cache) are there."""
    if not gpu_names():
        return "quick", "no accelerator here"
    if in_hub_cache("models", "bert-base-uncased", "") or in_hub_cache("models", "google-bert/bert-base-uncased", ""):
        return "paper", "an accelerator, and bert-base-uncased in the hub's cache"
    if hub_reachable():
        return "paper", "an accelerator and the hub are here"
    return "quick", "an accelerator, but neither the hub nor its cache"


def check_parts(config: Config) -> None:
    """Raise one UserError naming every outside part (weights, GLUE, text) that is missing, with the ways out."""
    missing: list[str] = []
    hub: list[str] = []
    rows = [(config.teacher.weights, config.teacher.revision, "teacher.weights")]
    rows += [(student.weights, student.revision, f"students.{student.name}.weights") for student in config.students]
    finetuned = [("teacher", config.teacher.finetuned), *((f"students.{s.name}", s.finetuned) for s in config.students)]
    rows += [(path, "", f"{where}.finetuned.{task}") for where, table in finetuned for task, path in table.items()]
    for weights, revision, where in rows:
        if weights_kind(weights) == "hub":
            if not in_hub_cache("models", weights, revision):
                hub.append(f"weights {weights} ({where})")
        else:
            _collect(missing, where, lambda w=weights, r=revision: weights_inputs(w, r, HashMemo.names_only()))
    glue_from_hub = config.data.tasks and source_kind(config.data.glue) == "hub"
    if glue_from_hub and not in_hub_cache("datasets", HUB_DATASET, config.data.revision):
        hub.append(f"GLUE {HUB_DATASET} (data.glue)")
    if source_kind(config.data.glue) == "folder":
        for task in config.data.tasks:
            _collect(missing, "data.glue", lambda t=task: glue_inputs(config.data.glue, t, HashMemo.names_only()))
    if needs_corpus(config):
        for text in (*config.corpus.text, *([config.corpus.heldout] if config.corpus.heldout else [])):
            one = replace(config.corpus, text=(text,), heldout="")
            _collect(missing, "corpus.text", lambda c=one: text_inputs(c, HashMemo.names_only()))
        for text in config.corpus.text:
            name = text.removeprefix("hub:").partition("@")[0].partition(":")[0]
            if text.startswith("hub:") and not in_hub_cache("datasets", name, ""):
                hub.append(f"text {name} (corpus.text)")
    unreachable = bool(hub) and not hub_reachable()
    if unreachable:
        missing.append(", ".join(hub) + ": neither in the hub's cache nor can the hub be reached")
    if missing:
        message = f"config {config.name}: missing: " + "; ".join(missing)
        raise UserError(f"{message}\n{WAYS_OUT}" if unreachable else message)


def _collect(missing: list[str], where: str, look: object) -> None:
    try:
        look()  # type: ignore[operator]
    except UserError as error:
        text = str(error)
        line = text if text.startswith(where) else f"{where}: {text}"
        if line not in missing:
            missing.append(line)
