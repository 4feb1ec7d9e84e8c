"""Every kind of file of a run's folder, damaged in every way: redone with the same tables, or refused by name.

Never a traceback, never a wrong table, and never exit code 0 where the figures are not those of the predictions.
benchmarks/fuzz.py does the same to a real run at random places.
"""

import json
import random
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic_run
from damage import KINDS, flip_silently, remedy
from synthetic_run import change_predictions, make_run, run_all, settings, undrawn

from glue_bench import cli
from glue_bench.config import Config, config_from, load_config, plain
from glue_bench.errors import GlueBenchError, StepError, UserError
from glue_bench.inputs import HashMemo
from glue_bench.records import Size, Timing, from_json, is_inside, sealed
from glue_bench.reporting.compare import compare
from glue_bench.reporting.leaderboard import leaderboard
from glue_bench.reporting.report_background import repeat_command
from glue_bench.reporting.run_folder import load_run
from glue_bench.reporting.verify import verify
from glue_bench.store import Store, read_record

CELL = "finetune/distil-2/rte/seed-0"
FILES = (
    "config.json",
    "summary.json",
    "scores.csv",
    "retention.csv",
    "efficiency.csv",
    "report.md",
    "figures/retention.png",
    "prepare/glue/rte/record.json",
    "prepare/glue/rte/validation.parquet",
    "pretrain/teacher/record.json",
    "pretrain/teacher/model/model.safetensors",
    "distill/distil-2/record.json",
    "distill/distil-2/training.csv",
    "distill/distil-2/heldout.csv",
    f"{CELL}/record.json",
    f"{CELL}/predictions.parquet",
    "benchmark/size/record.json",
    "benchmark/cpu/record.json",
    "report/record.json",
    "check/record.json",
)
TABLES = ("scores.csv", "retention.csv", "efficiency.csv")
RAW = settings(data={"tasks": ["rte"]}, finetune={"seeds": [0, 1]}, students=[{"name": "distil-2", "layers": [0, 2]}])


def config() -> Config:
    return config_from(RAW, "synthetic")


@pytest.fixture(scope="module", autouse=True)
def no_drawing() -> Iterator[None]:
    with undrawn():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A complete run on one task; never to be changed."""
    return make_run(tmp_path_factory.mktemp("whole"), RAW)


@pytest.fixture
def run(whole: Store, tmp_path: Path) -> Store:
    """A copy to damage."""
    shutil.copytree(whole.root, tmp_path / "results" / whole.run)
    return Store(tmp_path / "results", whole.run)


def figures(store: Store) -> dict[str, Any]:
    """What must come out the same: the tables, and the models of summary.json."""
    found: dict[str, Any] = {name: (store.root / name).read_text(encoding="utf-8") for name in TABLES}
    return found | {"models": json.loads((store.root / "summary.json").read_text(encoding="utf-8"))["models"]}


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and captured.err.count("\n") <= 3
    assert "--debug shows where" not in captured.err, captured.err  # the last resort of errors that nobody foresaw
    return code, captured.out, captured.err


def damages(first: int) -> list[tuple[str, str]]:
    """Each file with two of the kinds, all kinds in turn; the rest is benchmarks/fuzz.py's."""
    kinds = list(KINDS)
    return [(file, kinds[(first + 3 * i + 5 * j) % len(kinds)]) for i, file in enumerate(FILES) for j in range(2)]


@pytest.mark.parametrize(("file", "kind"), damages(0))
def test_run_all_redoes_the_step_or_names_the_file(file: str, kind: str, run: Store, whole: Store) -> None:
    path = run.root / file
    KINDS[kind](path, random.Random(zlib.crc32(f"{file} {kind}".encode())))
    try:
        run_all(run, config(), lambda line: None)
    except GlueBenchError as error:
        assert str(path.relative_to(run.results)) in str(error) and str(error).count("\n") <= 1
        remedy(path, str(error))
        run_all(run, config(), lambda line: None)
    if kind != "bit flipped silently":  # which the next reader of the file tells, and verify
        assert figures(run) == figures(whole)
        assert verify(run.root) == []


@pytest.mark.parametrize(("file", "kind"), damages(4))
def test_verbs_that_read_refuse_or_say_the_same(
    file: str, kind: str, run: Store, whole: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run.root / file).read_bytes()
    KINDS[kind](run.root / file, random.Random(zlib.crc32(f"{kind} {file}".encode())))
    if (run.root / file).is_file() and (run.root / file).read_bytes() == before:
        pytest.skip("the damage changed nothing")
    results = ["--results", str(run.results)]
    code, out, err = call(capsys, "verify", run.run, *results)
    assert code in (1, 2), "verify found nothing"
    place = "no run there" if file == "config.json" else Path(file).parent.as_posix()
    assert Path(file).name in out + err or place in out + err
    code, out, err = call(capsys, "compare", str(whole.root), str(run.root))
    if code == 0:
        right = compare(whole.root, whole.root).split("## Environment")[1] + "\n"
        assert "incomplete, 1 steps missing" in out or out.split("## Environment")[1] == right
    else:
        assert code == 2 and (file.split("/")[-1] in err or place in err)
    code, out, err = call(capsys, "check", "--run", run.run, *results)
    assert code in (0, 1, 2)
    if code == 0:
        assert (run.root / "summary.json").read_bytes() == (whole.root / "summary.json").read_bytes()
    assert call(capsys, "publish", run.run, *results)[0] == 2
    assert not (run.results / "published" / run.run).exists()
    assert call(capsys, "list", "runs", *results)[0] == 0
    listed = leaderboard(run.results)
    assert listed[1] == leaderboard(whole.results)[1] or len(listed[1].splitlines()) == 1


def test_a_step_computed_anew_makes_the_report_anew(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fingerprint is what it was, its times are not: the tables must not keep the old ones."""
    before = figures(run)
    (run.folder("benchmark/cpu") / "record.json").unlink()
    first = synthetic_run.invent_timing
    monkeypatch.setattr(synthetic_run, "invent_timing", lambda model, teacher: first(model, "distil-2"))
    said: list[str] = []
    run_all(run, config(), said.append)
    assert any("report: stale, computed anew (benchmark/cpu was computed anew)" in line for line in said)
    assert figures(run) != before
    assert verify(run.root) == []
    said.clear()
    run_all(run, config(), said.append)
    assert said == [f"all {len(list(run.root.rglob('record.json')))} steps are done already; nothing to compute"]


def test_a_silent_flip_is_found_by_the_step_that_reads_the_file(run: Store, whole: Store) -> None:
    path = run.folder(CELL) / "predictions.parquet"
    flip_silently(path, random.Random(0))
    (run.folder("report") / "record.json").unlink()
    with pytest.raises(StepError, match=re.escape(f"{path} was changed; delete {run.folder(CELL)} and run again")):
        run_all(run, config(), lambda line: None)
    shutil.rmtree(run.folder(CELL))
    run_all(run, config(), lambda line: None)
    assert figures(run) == figures(whole)


def test_predictions_that_all_models_lack_are_missed(run: Store) -> None:
    """As many as prepare counted: cut alike everywhere, they agree with one another."""
    for path in run.root.glob("finetune/*/rte/seed-*/predictions.parquet"):
        change_predictions(run, path.parent.relative_to(run.root).as_posix(), lambda p: p, rows=100)
    found = verify(run.root)
    assert any("has 100 predictions, prepare/glue/rte/record.json counts 120 rows" in line for line in found)


def test_verify_knows_a_forged_record_by_what_the_report_has_read(run: Store) -> None:
    """Of the right types and without a seal, as records of earlier versions: nothing but the report's record tells."""
    path = run.folder("benchmark/size") / "record.json"
    forged = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    forged["environment"]["cpu"] = "a faster processor"
    path.write_text(json.dumps(forged))
    assert verify(run.root)[0].startswith("benchmark/size/record.json: not the one that report has read")


def test_the_records_of_a_run_name_nothing_outside_it(run: Store, tmp_path: Path) -> None:
    """A record that stands outside is not followed to, however the name in `needs` is written."""
    shutil.copytree(run.folder(CELL), tmp_path / "outside")
    record = run.record(CELL)
    for name in ("../../outside", str(tmp_path / "outside"), "a/../../../outside", "", "a\nb"):
        forged = record | {"needs": record["needs"] | {name: "0"}}
        (run.folder(CELL) / "record.json").write_text(json.dumps(sealed(forged)))
        assert read_record(run.folder(CELL)) is None
        loaded = load_run(run.root)
        assert name not in loaded.records and CELL in loaded.damaged
        with pytest.raises(UserError, match=f"{CELL}/record.json"):
            compare(run.root, run.root)
    assert [is_inside(name) for name in ("a/b", "model/x.json", "..", "/a", "a/..", ".")] == [True, True] + 4 * [False]


def test_records_are_typed() -> None:
    size = {"parameters": 2, "encoder": 1, "without_embeddings": 1, "bytes": 4}
    assert from_json(Size, size) == Size(2, 1, 1, 4)
    for change in ({"encoder": "1"}, {"encoder": 1.5}, {"encoder": True}, {"encoder": 0}, {"encoder": 2**70}, {"x": 1}):
        with pytest.raises(ValueError):
            from_json(Size, size | change)
    with pytest.raises(ValueError, match="always a field bytes"):
        from_json(Size, {key: value for key, value in size.items() if key != "bytes"})
    timing = {"model": "a", "device": "cpu", "device_name": "x", "backend": "eager", "precision": "fp32"}
    timing |= {"scenario": "s", "batch_size": 1, "examples": 1, "samples_s": [1, 0.5], "pass_s": [1.0]}
    assert from_json(Timing, timing).samples_s == (1, 0.5)
    for change in ({"samples_s": [1.0, "2"]}, {"samples_s": 1.0}, {"pass_s": [float("nan")]}, {"pass_s": [0.0]}):
        with pytest.raises(ValueError):
            from_json(Timing, timing | change)


def test_a_memo_of_hashes_that_lies_is_not_believed(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some words")
    memo = HashMemo.load(tmp_path / "hashes.json")
    identity = memo.identity(text)
    memo.save()
    assert HashMemo.load(tmp_path / "hashes.json").known
    content = (tmp_path / "hashes.json").read_text()
    digit = content.index("sha256:") + 10
    lies = [content[:digit] + ("1" if content[digit] == "0" else "0") + content[digit + 1 :]]
    lies += ["[]", "{}", '{"known": 3}', '{"known": {"x": 3}}', "[" * 5000, "", '{"seal": 1}']
    for lie in lies:
        (tmp_path / "hashes.json").write_text(lie)
        memo = HashMemo.load(tmp_path / "hashes.json")
        assert memo.known == {} and memo.identity(text) == identity


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda raw: raw["check"].update(min_retention=None), "--config config.json"),
        (lambda raw: raw["finetune"]["tasks"].clear(), "--config config.json"),
        (lambda raw: raw["students"][0].update(layers=[0, 3]), "--config quick --set 'students.0.layers=[0, 3]'"),
        (lambda raw: raw["finetune"].update(epochs=9), "--config quick --set finetune.epochs=9"),
    ],
)
def test_the_command_to_repeat_says_what_set_can_say(change: Any, expected: str, tmp_path: Path) -> None:
    """--set has no null and removes nothing: such a run is repeated from its own file."""
    raw = plain(load_config("quick"))
    change(raw)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert repeat_command(load_run(tmp_path, "quick")).endswith(expected)
