"""Kill `run-all` at random moments, resume it each time, and compare with an undisturbed run.

Predictions, scores, retention and weights must be identical, timings excepted; SIGINT and SIGTERM must end within five
seconds with code 130, a line on how to resume, and no process left. Prints a table for people and, as its very last
line, one JSON object with the same figures.

    python benchmarks/kills.py --kills 20
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from glue_bench.store import sha256_file

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
COMPARED = ("predictions.parquet", "model.safetensors", "retention.csv", "scores.csv")


def command(results: Path, settings: list[str]) -> list[str]:
    """The command line of one run."""
    extra = ["--set", *settings] if settings else []
    return [sys.executable, "-m", "glue_bench", "run-all", "--config", "quick", "--results", str(results), *extra]


def contents(run: Path) -> dict[str, str]:
    """Hash of every file that must not depend on kills. Fine-tuned weights that the report prunes are left out."""
    files = sorted(path for path in run.rglob("*") if path.name in COMPARED and "checkpoints" not in path.parts)
    return {path.relative_to(run).as_posix(): sha256_file(path) for path in files}


def session(leader: int) -> list[int]:
    """Processes that are still in the session of a process that has ended."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def kill_once(results: Path, settings: list[str], wait_s: float, how: signal.Signals) -> dict[str, object] | None:
    """Start the run, kill it after `wait_s`; None where it ended by itself before."""
    process = subprocess.Popen(
        command(results, settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=wait_s)
        if process.returncode != 0:
            raise SystemExit(f"the run failed by itself with code {process.returncode}:\n{out}{err}")
        return None
    except subprocess.TimeoutExpired:
        started = time.monotonic()
        process.send_signal(how)
        out, err = process.communicate(timeout=120)
    lines = out.splitlines()
    orphans = 0 if how is signal.SIGKILL else len(session(process.pid))
    return {
        "signal": how.name,
        "after_s": round(wait_s, 1),
        "code": process.returncode,
        "ended_in_s": round(time.monotonic() - started, 2),
        "traceback": "Traceback" in err,
        "says_how_to_go_on": "To go on" in err,
        "orphans": orphans,
        "last_step": lines[-1].split(":")[0] if lines else "",
    }


def main() -> int:
    """Run the comparison; exit code 1 where a result differs or a traceback was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=25.0, help="longest wait before a kill, seconds")
    parser.add_argument("--set", nargs="*", default=[], help="settings for a shorter run")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would have the runs ignore it
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, disturbed = Path(folder, "undisturbed"), Path(folder, "disturbed")
        subprocess.run(command(undisturbed, options.set), check=True, stdout=subprocess.DEVNULL)
        kills: list[dict[str, object]] = []
        finished = 0
        while len(kills) < options.kills:
            how = rng.choice(SIGNALS)
            kill = kill_once(disturbed, options.set, rng.uniform(0.5, options.longest), how)
            if kill is None:  # done before all kills were spent: begin another run and go on killing
                finished += contents(undisturbed / "quick") == contents(disturbed / "quick")
                disturbed = Path(folder, f"disturbed-{len(kills)}")
                continue
            kills.append(kill)
            print(f"{len(kills):3} {kill['signal']:8} after {kill['after_s']:5} s in or after {kill['last_step']}")
        subprocess.run(command(disturbed, options.set), check=True, stdout=subprocess.DEVNULL)
        expected, found = contents(undisturbed / "quick"), contents(disturbed / "quick")
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    tracebacks = sum(bool(kill["traceback"]) for kill in kills)
    asked = [kill for kill in kills if kill["signal"] != "SIGKILL"]
    slowest = max((float(str(kill["ended_in_s"])) for kill in asked), default=0.0)
    wrong = [kill for kill in asked if kill["code"] != 130 or not kill["says_how_to_go_on"] or kill["orphans"]]
    print(f"\n{len(kills)} kills, {len(expected)} files compared, {len(different)} differ, {tracebacks} tracebacks")
    print(f"SIGTERM and SIGINT: slowest end {slowest} s; {len(wrong)} without code 130, advice, or with a process left")
    for kill in wrong:
        print(f"  wrong end: {kill}")
    for name in different:
        print(f"  differs: {name}")
    figures = {"kills": len(kills), "files_compared": len(expected), "different": different, "tracebacks": tracebacks}
    figures |= {"slowest_end_s": slowest, "wrong_ends": len(wrong), "runs_finished_between": finished}
    figures |= {"signals": {one.name: sum(kill["signal"] == one.name for kill in kills) for one in SIGNALS}}
    print(json.dumps(figures))
    return 1 if different or tracebacks or wrong or slowest > 5 else 0


if __name__ == "__main__":
    sys.exit(main())
