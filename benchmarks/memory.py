"""Peak memory of tokenising a text and of a few training steps on it, for texts of different size: it should be flat.

For each text two child processes run the command line with the MiniLM teacher (its tokenizer and vocabulary): `prepare`
into an empty cache, then `pretrain` for a few steps over the memory-mapped cache. Two peaks are taken of each, over the
child and its children: resident memory, which counts the pages of mapped files that happen to be in memory and that the
kernel may drop at any time, and anonymous memory, which it may not. Prints a table for people and, as its very last
line, one JSON object with the same figures. Exit code 1 where resident peaks differ by the target or more.

    python benchmarks/memory.py --text small.txt.zst --text large.txt.zst

Measured on two Zen 3 cores, resident (anonymous) MB: prepare 591 (418) for 10 MB of text, 732 (510) for 200 MB;
pretrain 1,252 (1,092) and 1,305 (1,102).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[1]
MB = 1e6
TARGET_MB = 300.0
SAMPLE_S = 0.02
STEPS, BATCH, LENGTH = 4, 8, 128
SETTINGS = [
    "data.tasks=[]",
    "students=[]",
    "check.students=[]",
    "data.glue=embedded",
    "corpus.heldout_tokens=2000",
    f"corpus.sequence_length={LENGTH}",
    f"pretrain.tokens={STEPS * BATCH * LENGTH}",
    f"pretrain.batch_size={BATCH}",
    f"pretrain.micro_batch_size={BATCH}",
    "pretrain.head_only_steps=0",
    "pretrain.evaluations=1",
]


def memory_of(process: psutil.Process) -> tuple[float, float]:
    """(resident, anonymous) megabytes of a process and its children now."""
    resident = anonymous = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{one.pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "Rss"))}
        resident += sizes.get("VmRSS", 0)
        anonymous += sizes.get("RssAnon", 0)
    return resident / MB, anonymous / MB


def measure(verb: str, results: Path, text: str) -> dict[str, float]:
    """Run one verb in a child process; its seconds and peaks in megabytes. Raises SystemExit where it fails."""
    command = [sys.executable, "-m", "glue_bench", verb, "--config", "minilm", "--results", str(results)]
    command += ["--device", "cpu", "--set", *SETTINGS, f"corpus.text={json.dumps([text])}"]
    started = time.monotonic()
    child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process, resident, anonymous = psutil.Process(child.pid), 0.0, 0.0
    while True:
        try:
            now = memory_of(process)
        except psutil.NoSuchProcess:
            now = (0.0, 0.0)
        resident, anonymous = max(resident, now[0]), max(anonymous, now[1])
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(SAMPLE_S)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"{' '.join(command)}\n{child.stdout.read() if child.stdout else ''}")
    child.returncode = 0  # it was waited for here, for its resource usage
    return {
        "seconds": round(seconds, 1),
        "resident_mb": round(max(resident, usage.ru_maxrss * 1024 / MB), 1),  # the kernel's own peak misses nothing
        "anonymous_mb": round(anonymous, 1),
    }


def figures_of(text: str) -> dict[str, object]:
    """What prepare and pretrain take for one text, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        verbs = {verb: measure(verb, results, text) for verb in ("prepare", "pretrain")}
        corpus = json.loads((results / "minilm" / "prepare" / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    tokens = corpus["train"]["tokens"] + corpus["heldout"]["tokens"]
    return {"text": Path(text).name, "file_mb": round(Path(text).stat().st_size / MB, 1), "tokens": tokens, **verbs}


def main() -> int:
    """Measure every text; compare the first with the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="append", required=True, help="twice: a small text, a large one")
    options = parser.parse_args()
    texts = []
    print(f"{'text':32} {'tokens':>12} {'verb':9} {'seconds':>8} {'resident MB':>12} {'anonymous MB':>13}")
    for text in options.text:
        found = figures_of(str(Path(text).resolve()))
        texts.append(found)
        for verb in ("prepare", "pretrain"):
            one: dict[str, float] = found[verb]  # type: ignore[assignment]
            peaks = f"{one['seconds']:8.1f} {one['resident_mb']:12.1f} {one['anonymous_mb']:13.1f}"
            print(f"{found['text']:32} {found['tokens']:12,} {verb:9} {peaks}", flush=True)
    differences = {
        verb: {kind: round(texts[-1][verb][kind] - texts[0][verb][kind], 1) for kind in ("resident_mb", "anonymous_mb")}
        for verb in ("prepare", "pretrain")
    }  # type: ignore[index]
    worst = max(difference["resident_mb"] for difference in differences.values())
    print(f"\nlargest difference of the resident peaks: {worst} MB (target: under {TARGET_MB:g})")
    print(json.dumps({"texts": texts, "difference": differences, "largest_mb": worst, "target_mb": TARGET_MB}))
    return 0 if worst < TARGET_MB else 1


if __name__ == "__main__":
    sys.exit(main())
