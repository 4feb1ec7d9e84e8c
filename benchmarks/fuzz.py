"""Damage random files of a real run at random places, run every verb, and count how each attempt ended.

    python benchmarks/fuzz.py [--rounds 300] [--seed 0] [--first 0]

A tiny run (one teacher, one student, two tasks, two seeds) is made once; each round damages one file of a copy, of the
finished run or of one that was interrupted with its checkpoints, in one of the ways of tests/damage.py. A refusal must
name the file, and its remedy (take away the file, or the folder that it names) must lead to the same tables. A round is
repeated by `--first NUMBER --rounds 1` with the same seed. Last line: one JSON object.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from damage import KINDS, remedy
from synthetic_run import undrawn

from glue_bench import cli
from glue_bench.reporting.leaderboard import leaderboard
from glue_bench.store import sha256_file

TOML = """
title = "a tiny run to damage"
students = [{ name = "small", layers = 1 }]
[data]
tasks = ["rte", "stsb"]
max_train_rows = 64
max_dev_rows = 64
[corpus]
documents = 300
sequence_length = 32
heldout_tokens = 400
[teacher]
layers = 2
hidden = 16
heads = 2
intermediate = 32
max_positions = 64
[pretrain]
tokens = 20_000
batch_size = 16
checkpoint_every = 5
evaluations = 2
[distill]
tokens = 10_000
batch_size = 16
checkpoint_every = 5
evaluations = 2
[finetune]
epochs = 1
seeds = [0, 1]
max_length = 32
[benchmark]
examples = 8
min_passes = 2
min_seconds = 0
[report]
resamples = 100
[machine]
device = "cpu"
precision = "fp32"
threads = 1
"""
RUN = "tiny"
TABLES = ("scores.csv", "retention.csv")
SAME = ("predictions.parquet", "model.safetensors")
SECTIONS = ("## Scores", "## Retention", "## Size and speed")
ENDINGS = ("unharmed", "redone", "refused", "wrong_tables", "tracebacks", "unclear", "not_remedied")


@dataclass
class Reference:
    """An intact run: its folder of results, and what its verbs say."""

    results: Path
    config: Path
    contents: dict[str, str]
    compared: str
    board: str


@dataclass
class Tally:
    """How the attempts ended, by verb and by kind of damage."""

    verbs: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, verb: str, kind: str, ending: str, where: str, said: str) -> None:
        """Count one attempt; what must not happen is shown at once."""
        self.verbs[verb, ending] += 1
        self.kinds[kind, ending] += 1
        if ending not in ENDINGS[:3]:
            self.bad.append(f"{where}: {verb}: {ending}: {said.strip()[:300]}")
            print(self.bad[-1], flush=True)


def call(*arguments: str) -> tuple[int, str, str]:
    """A verb in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), undrawn():
        code = cli.main(arguments)
    return code, out.getvalue(), err.getvalue()


def run_all(results: Path, config: Path) -> tuple[int, str, str]:
    """run-all of the tiny config."""
    return call("run-all", "--config", str(config), "--run", RUN, "--results", str(results))


def contents(results: Path) -> dict[str, str]:
    """Hash of every file that a redone step must give again; times differ, so figures on speed are left out."""
    root = results / RUN
    files = [path for path in root.rglob("*") if path.name in (*TABLES, *SAME) and path.is_file()]
    files = [path for path in files if not {"weights", "checkpoints"} & set(path.relative_to(root).parts)]
    found = {path.relative_to(root).as_posix(): sha256_file(path) for path in files}
    models = json.loads((root / "summary.json").read_text(encoding="utf-8"))["models"]
    kept = ("scores", "mean_scores", "retention", "gain_retained", "parameters", "size_reduction", "role")
    return found | {"summary": json.dumps({m: {k: one[k] for k in kept} for m, one in models.items()}, sort_keys=True)}


def interrupted(results: Path, config: Path) -> None:
    """A run that was interrupted after the last checkpoint of pretrain."""
    with mock.patch("glue_bench.stages.pretrain.save_model", side_effect=KeyboardInterrupt):
        code, out, err = run_all(results, config)
    if code != 130 or not list(results.glob(f"{RUN}/pretrain/*/checkpoints/*/*/state.json")):
        raise SystemExit(f"the interrupted run is not as wanted: {code}\n{out}{err}")


def sections(text: str) -> str:
    """The figures of compare, without heads and environment."""
    return "".join(part for part in text.split("\n\n## ") if f"## {part}".startswith(SECTIONS))


def reading_verbs(copy: Path, path: Path, reference: Reference, kind: str, where: str, tally: Tally) -> None:
    """verify, compare, check and the leaderboard on the damaged copy."""
    results = ("--results", str(copy))
    intact = all(_same(copy / RUN / name, reference.results / RUN / name) for name in (*TABLES, "summary.json"))
    code, out, err = call("verify", RUN, *results)
    ending = _ending(code, out + err, path, copy, right=intact, agreed=(0,), refusals=(1, 2, 3))
    tally.add("verify", kind, ending, where, out + err)
    code, out, err = call("compare", str(reference.results / RUN), str(copy / RUN))
    ending = _ending(code, err, path, copy, right=sections(out) == reference.compared, agreed=(0,), refusals=(2, 3))
    tally.add("compare", kind, ending, where, out[-300:] + err)
    code, out, err = call("check", "--run", RUN, *results)
    ending = _ending(code, out + err, path, copy, right=intact, agreed=(0,), refusals=(1, 2, 3))
    tally.add("check", kind, ending, where, out + err)
    markdown, board = leaderboard(copy)
    named = RUN in markdown.partition("Left out")[2] or not (copy / RUN / "summary.json").exists()
    right = board == reference.board
    ending = "unharmed" if right else "refused" if len(board.splitlines()) == 1 and named else "wrong_tables"
    tally.add("leaderboard", kind, ending, where, board)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()


def _ending(code: int, said: str, path: Path, copy: Path, *, right: bool, agreed: tuple[int, ...],
            refusals: tuple[int, ...]) -> str:  # fmt: skip
    if "Traceback" in said or "--debug shows where" in said:
        return "tracebacks"
    if code in agreed:
        return "unharmed" if right else "wrong_tables"
    parts = path.relative_to(copy).parts
    names = [part for part in parts if part not in (RUN, "cache")]
    folder = "/".join(parts[1:-1])
    named = names[-1] in said or bool(folder) and folder in said or "config.json" in said
    return "refused" if code in refusals and named else "unclear"


def full_run(copy: Path, path: Path, reference: Reference, kind: str, where: str, tally: Tally) -> None:
    """run-all on the damaged copy; where it refuses, the remedy and run-all again."""
    code, out, err = run_all(copy, reference.config)
    if code not in (0, 1):
        ending = _ending(code, err, path, copy, right=False, agreed=(), refusals=(2, 3))
        tally.add("run-all", kind, ending, where, err)
        remedy(path, err)
        code, out, err = run_all(copy, reference.config)
        if code != 0 or contents(copy) != reference.contents:
            tally.add("remedy", kind, "not_remedied", where, out + err)
        return
    right = code == 0 and contents(copy) == reference.contents
    verified = call("verify", RUN, "--results", str(copy))
    silent = kind == "bit flipped silently"  # found where the file is read next, and by verify
    right = right or silent
    right = right and (verified[0] == 0 or silent)
    ending = "wrong_tables" if not right else "unharmed" if "nothing to compute" in out else "redone"
    tally.add("run-all", kind, ending, where, out[-200:] + err + verified[1])


def one_round(number: int, seed: int, references: list[Reference], folder: Path, tally: Tally) -> None:
    """Damage one file of a copy and run everything on it."""
    rng = random.Random(f"{seed} {number}")
    unfinished = rng.random() < 0.15
    reference = references[unfinished]
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(reference.results, copy)
    by_name: dict[str, list[Path]] = {}
    for path in sorted(copy.rglob("*")):
        if path.is_file() and (not unfinished or "checkpoints" in path.parts or rng.random() < 0.1):
            key = path.name if path.suffix not in (".lock", ".png", ".bin") else path.suffix
            by_name.setdefault(key, []).append(path)
    path = rng.choice(by_name[rng.choice(sorted(by_name))])
    kind = rng.choice(sorted(KINDS))
    KINDS[kind](path, rng)
    where = f"round {number}, {path.relative_to(copy)} {kind}"
    if not unfinished:
        reading_verbs(copy, path, reference, kind, where, tally)
    full_run(copy, path, reference, kind, where, tally)


def table(counts: Counter, what: str) -> str:
    """Counts by row and ending."""
    rows = [[row, *(counts[row, ending] for ending in ENDINGS)] for row in sorted({row for row, _ in counts})]
    return tabulate(rows, headers=[what, *ENDINGS], tablefmt="pipe")


def main() -> int:
    """Make the runs, damage copies of them, print the tables; exit code 1 where anything ended badly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    options = parser.parse_args()
    tally, started = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "tiny.toml"
        config.write_text(TOML, encoding="utf-8")
        finished, unfinished = folder / "finished", folder / "unfinished"
        code, out, err = run_all(finished, config)
        if code != 0:
            raise SystemExit(f"the undamaged run failed with code {code}:\n{out}{err}")
        root = str(finished / RUN)
        same = Reference(finished, config, contents(finished), sections(call("compare", root, root)[1]), "")
        same.board = leaderboard(finished)[1]
        interrupted(unfinished, config)
        references = [same, Reference(unfinished, config, same.contents, "", "")]
        made = time.monotonic() - started
        for number in range(options.first, options.first + options.rounds):
            one_round(number, options.seed, references, folder, tally)
    print(f"\n{table(tally.verbs, 'verb')}\n\n{table(tally.kinds, 'damage')}\n")
    total: Counter[str] = Counter()
    for (_, ending), count in tally.verbs.items():
        total[ending] += count
    figures: dict[str, Any] = {"rounds": options.rounds, "seed": options.seed, "tried": sum(total.values())}
    figures |= {ending: total[ending] for ending in ENDINGS}
    figures |= {"seconds": round(time.monotonic() - started, 1), "seconds_reference": round(made, 1)}
    print(json.dumps(figures))
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())
