"""verify finds every edit of predictions, records, tables, settings and files, and nothing where there is none."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import change_predictions, copy_run, make_run, reported_run, settings, small_run

from glue_bench.errors import UserError
from glue_bench.records import SEAL, sealed
from glue_bench.reporting.verify import verify
from glue_bench.store import Store

CELL = "finetune/distil-2/rte/seed-1"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(sealed(content) if SEAL in content else content))  # a forger would seal it again


def replace_number(path: Path, name: str) -> None:
    """Change the first decimal of the last number in the first line that holds `name`."""
    lines = path.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if name in line and re.search(r"\.\d", line))
    digit = lines[place].rindex(".", 0, re.search(r".*\.\d", lines[place]).end()) + 1
    lines[place] = lines[place][:digit] + str((int(lines[place][digit]) + 5) % 10) + lines[place][digit + 1 :]
    path.write_text("".join(lines))


def edit_record(step: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Store], None]:
    return lambda store: edit_json(store.folder(step) / "record.json", change)


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Store], None]:
    return lambda store: edit_json(store.root / "config.json", change)


def test_an_untouched_run_agrees() -> None:
    assert verify(reported_run().root) == []
    assert verify(small_run().root) == []


def test_time_stamps_alone_are_no_disagreement(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(data={"tasks": ["rte"]}))
    for path in store.root.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes())
    assert verify(store.root) == []


EDITS: dict[str, tuple[Callable[[Store], None], str]] = {
    "a prediction": (
        lambda s: change_predictions(s, CELL, lambda p: 1 - p),
        f"{CELL}/record.json: scores of validation",
    ),
    "a NaN among predictions": (
        lambda s: change_predictions(s, CELL, lambda p: p + float("nan")),
        "cannot be recomputed",
    ),
    "predictions deleted": (lambda s: (s.folder(CELL) / "predictions.parquet").unlink(), "is missing"),
    "a score in a record": (
        edit_record(CELL, lambda r: r["result"]["scores"][0]["metrics"].update(accuracy=0.999)),
        f"{CELL}/record.json: scores of validation: accuracy",
    ),
    "a NaN in a record": (
        edit_record(CELL, lambda r: r["result"]["scores"][0]["metrics"].update(accuracy=float("nan"))),
        f"{CELL}/record.json: unreadable or edited",
    ),
    "a score missing in a record": (edit_record(CELL, lambda r: r["result"].update(scores=[])), "accuracy is missing"),
    "a setting in a record": (
        edit_record(CELL, lambda r: r["settings"].update(learning_rate=1.0)),
        f"{CELL}/record.json: its fingerprint",
    ),
    "a fingerprint": (edit_record(CELL, lambda r: r.update(fingerprint="0" * 64)), f"{CELL} has changed since"),
    "a timing": (
        edit_record("benchmark/cpu", lambda r: r["result"]["timings"][0].update(pass_s=[9.0] * 8)),
        "efficiency.csv",
    ),
    "a size": (
        edit_record("benchmark/size", lambda r: r["result"]["sizes"]["distil-2"].update(encoder=1)),
        "summary.json: models: distil-2",
    ),
    "the verdict": (edit_record("check", lambda r: r["result"].update(passed=False)), "check/record.json: its verdict"),
    "the headline": (edit_record("report", lambda r: r["result"].update(headline="best")), "headline"),
    "a step deleted": (lambda s: shutil.rmtree(s.folder(CELL)), "has no record"),
    "a record edited": (
        lambda s: replace_number(s.folder(CELL) / "record.json", "accuracy"),
        f"{CELL}/record.json: unreadable or edited",
    ),
    "a record truncated": (lambda s: (s.folder(CELL) / "record.json").write_text("{"), "has no record"),
    "weights changed": (
        lambda s: (s.folder("distill/distil-2") / "model/model.safetensors").write_bytes(b"other w"),
        "model.safetensors was changed",
    ),
    "a loss curve": (lambda s: replace_number(s.folder("distill/distil-2") / "training.csv", ","), "training.csv "),
    "summary.json": (lambda s: replace_number(s.root / "summary.json", '"rte": '), "summary.json: models"),
    "a key of summary.json": (
        lambda s: edit_json(s.root / "summary.json", lambda c: c["models"].pop("copied-2")),
        "copied-2 is missing",
    ),
    "a NaN in summary.json": (
        lambda s: edit_json(s.root / "summary.json", lambda c: c["models"]["teacher"].update(macro=float("nan"))),
        "macro",
    ),
    "scores.csv": (lambda s: replace_number(s.root / "scores.csv", "distil-2,rte"), "scores.csv: row"),
    "retention.csv": (lambda s: replace_number(s.root / "retention.csv", "distil-2,rte"), "retention.csv: row"),
    "a row of retention.csv": (
        lambda s: (s.root / "retention.csv").write_text("".join((s.root / "retention.csv").open().readlines()[:-1])),
        "entries instead of",
    ),
    "efficiency.csv": (lambda s: replace_number(s.root / "efficiency.csv", "distil-2,cpu"), "efficiency.csv: row"),
    "report.md": (lambda s: replace_number(s.root / "report.md", "| distil-2 |"), "report.md, line"),
    "the finding in report.md": (lambda s: replace_number(s.root / "report.md", "keeps"), "report.md, line 1:"),
    "a line more in report.md": (
        lambda s: (s.root / "report.md").write_text((s.root / "report.md").read_text() + "more\n"),
        "lines instead of",
    ),
    "a figure": (lambda s: (s.root / "figures/losses.png").write_bytes(b"?"), "losses.png was changed"),
    "a figure deleted": (lambda s: (s.root / "figures/losses.png").unlink(), "losses.png is missing"),
    "a table deleted": (lambda s: (s.root / "scores.csv").unlink(), "scores.csv"),
    "the report deleted": (lambda s: shutil.rmtree(s.folder("report")), "not been written"),
    "a learning rate in the config": (
        edit_config(lambda c: c["finetune"].update(learning_rate=1e-5)),
        f"{CELL}/record.json: learning_rate is 3e-05, the config says 1e-05",
    ),
    "a threshold in the config": (edit_config(lambda c: c["check"].update(min_retention=0.99)), "gate"),
    "a seed more in the config": (edit_config(lambda c: c["finetune"].update(seeds=[0, 1, 2])), "complete"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_is_found(edit: str, tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    change, words = EDITS[edit]
    change(store)
    found = verify(store.root)
    assert any(words in line for line in found), found
    assert all("\n" not in line for line in found)


def test_a_folder_without_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json"):
        verify(tmp_path)
