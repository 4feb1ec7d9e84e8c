"""`plan`: the state of every step with a rough guess of its time, disk and downloads. Computes and writes nothing.

A step that ran here tells its own time. For the others the guess is floating-point operations (6 per parameter and
token in training, 2 in inference) over a nominal rate of the machine: good to a factor of two or three, and said so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glue_bench.config import Config
from glue_bench.inputs import HashMemo, glue_in_hub_cache, model_in_hub_cache, text_kinds, weights_folder, weights_kind
from glue_bench.machine import Facts, facts, has_amx, has_fast_bf16
from glue_bench.model_folder import model_config, size_of
from glue_bench.pipeline import states
from glue_bench.plan import Step, plan
from glue_bench.preflight import check_teacher
from glue_bench.records import step_seconds
from glue_bench.sources import HUB_DATASET
from glue_bench.store import Store, kept_weights
from glue_bench.work import fine_tuning_tokens

# FLOP/s that a training step really reaches, per core (a Zen 3 core's fp32 products: 57e9, measured) or device.
RATE_PER_CORE, RATE_PER_BF16_CORE, RATE_PER_AMX_CORE, RATE_PER_GPU = 35e9, 100e9, 300e9, 150e12
HUB_BYTES = {"weights": 440e6, "glue": 160e6, "text": 12e9}
HUB_TOKENS = 3e9  # of a text on the hub, of which nothing is known: between a book corpus and English Wikipedia
TOKENISED_PER_CORE = 400e3  # tokens a second (measured on a Zen 3 core: 440e3 to 490e3)
# English text and BERT's vocabulary, measured on 10 MB; a compressed file is some 3.5 times smaller.
BYTES_PER_TOKEN, COMPRESSED = 4.5, 3.5
TOKENS_PER_DOCUMENT = 16  # of the embedded text


def plan_table(config: Config, results: Path, run_name: str) -> str:
    """One line per step, and the sums. Raises UserError where the settings ask more of the teacher than it has."""
    store = Store(results, run_name)
    machine = facts(config.machine)
    steps = plan(config, machine, HashMemo.load(store.cache / "hashes.json"))
    check_teacher(config)
    known = states(steps, store)
    lines = [f"{'step':44} {'state':8} {'time':>9}  {'disk':>8}  download"]
    total_s = total_bytes = 0.0
    for step in steps:
        state = known[step.name]
        record = store.record(step.name) or {}
        done = state.kind == "done"
        seconds = step_seconds(record) if done else guess_seconds(step, config, machine)
        size = _kept_bytes(store, step, record) if done else guess_bytes(step, config)
        download = "" if done else guess_download(step, config)
        total_s += 0 if done else seconds
        total_bytes += 0 if done else size
        mark = "" if done else "~"
        why = f"  ({state.why})" if state.why else ""
        time_and_disk = f"{mark + _duration(seconds):>9}  {mark + _size(size):>8}"
        lines.append(f"{step.name:44} {state.kind:8} {time_and_disk}  {download}{why}")
    disk = f"{_size(total_bytes)} of disk (before report removes fine-tuned weights, see finetune.keep_weights)"
    lines.append(f"to do: about {_duration(total_s)} (within a factor of three), {disk}")
    return "\n".join(lines)


def _kept_bytes(store: Store, step: Step, record: Mapping[str, Any]) -> float:
    """What a finished step has on disk, fine-tuned weights included where they are still there."""
    kept = kept_weights(store.folder(step.name), record)
    return float(sum(one["bytes"] for one in (*record["outputs"].values(), *kept.values())))


def encoder_parameters(config: Config) -> float:
    """Parameters of the teacher's transformer layers (embeddings cost next to nothing), from config.json or shape."""
    shape = {"hidden": config.teacher.hidden, "layers": config.teacher.layers, "ffn": config.teacher.intermediate}
    kind = weights_kind(config.teacher.weights)
    if kind == "hub":
        shape = {"hidden": 768, "layers": 12, "ffn": 3072}
    elif kind != "scratch":
        raw = model_config(weights_folder(config.teacher.weights))
        hidden = size_of(raw, "hidden") or 768
        shape = {"hidden": hidden, "layers": size_of(raw, "layers") or 12, "ffn": 4 * hidden}
    return shape["layers"] * (4.0 * shape["hidden"] ** 2 + 2.0 * shape["hidden"] * shape["ffn"])


def _rate_per_core(precision: str) -> float:
    """Floating-point operations a second that training reaches on a CPU core."""
    if precision != "bf16" or not has_fast_bf16():
        return RATE_PER_CORE
    return RATE_PER_AMX_CORE if has_amx() else RATE_PER_BF16_CORE


def guess_seconds(step: Step, config: Config, machine: Facts) -> float:
    """A rough time for a step that has not run."""
    rate = RATE_PER_GPU if "cuda" in machine.devices else _rate_per_core(machine.precision) * machine.threads
    parameters = encoder_parameters(config)
    if step.stage in ("pretrain", "distill"):
        epochs = step.settings["epochs"]
        limits = [step.settings["tokens"], epochs * text_tokens(config) if epochs else 0.0]
        tokens = min((limit for limit in limits if limit), default=0.0)
        work = 5.0 if step.stage == "distill" else 2.0 if step.settings.get("freeze_encoder") else 6.0
        return tokens * parameters * work / rate
    if step.stage == "finetune" and "epochs" in step.settings:
        return 2.0 * fine_tuning_tokens(step, config) * parameters / rate
    if step.name == "prepare/corpus":
        return 2.0 + text_tokens(config) / (TOKENISED_PER_CORE * machine.threads)
    return 10.0 if step.stage == "benchmark" else 2.0


def text_tokens(config: Config) -> float:
    """Tokens of the text that pretrain and distill read once an epoch."""
    hub = tokens = 0.0
    for text, kind in zip(config.corpus.text, text_kinds(config.corpus), strict=True):
        if kind == "hub":
            hub += HUB_TOKENS
        elif kind == "embedded":
            tokens += config.corpus.documents * TOKENS_PER_DOCUMENT
        else:
            unpacked = 1.0 if text.endswith(".txt") else COMPRESSED
            tokens += Path(text).expanduser().stat().st_size * unpacked / BYTES_PER_TOKEN
    return tokens + min(hub, config.corpus.max_hub_tokens or hub)


def guess_bytes(step: Step, config: Config) -> float:
    """A rough size of what a step leaves on disk, as if every row were of the teacher's size."""
    trained = step.stage in ("pretrain", "distill") or (step.stage == "finetune" and "epochs" in step.settings)
    if trained or step.name.startswith("prepare/weights"):
        return 6.0 * encoder_parameters(config)
    if step.name == "prepare/corpus":
        return 2.0 * text_tokens(config)  # two bytes a token in the cache
    return 1e6 if step.stage in ("prepare", "finetune", "report") else 1e4


def guess_download(step: Step, config: Config) -> str:
    """What a prepare step fetches from the hub, as far as it is not in the cache."""
    for name, one in step.inputs.items():
        if step.name.startswith("prepare/weights") and one.identity.startswith("hub:"):
            model, _, revision = one.location.partition("@")
            return "" if model_in_hub_cache(model, revision) else f"{model}, ~{_size(HUB_BYTES['weights'])}"
        if step.name.startswith("prepare/glue") and one.identity.startswith("hub:"):
            cached = glue_in_hub_cache(HUB_DATASET, config.data.revision, (step.settings["task"],))
            return "" if cached else f"{HUB_DATASET}, part of ~160 MB"
        if name.startswith("text-") and one.identity.startswith("hub:"):
            texts = text_kinds(config.corpus).count("hub")
            share = min(1.0, (config.corpus.max_hub_tokens or HUB_TOKENS * texts) / (HUB_TOKENS * texts))
            return f"{one.location.removeprefix('hub:')}, ~{_size(share * HUB_BYTES['text'])}"
    return ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
