"""publish copies what proves the tables, and nothing else: no weights, no text, no paths; and only what agrees."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_run import change_predictions, copy_run, make_run, settings, small_run, undrawn

from glue_bench.errors import UserError
from glue_bench.reporting.publish import publish, without_paths
from glue_bench.reporting.verify import verify

ALLOWED = {"record.json", "predictions.parquet", "training.csv", "heldout.csv", "config.json", "summary.json"}
ALLOWED |= {"scores.csv", "retention.csv", "efficiency.csv", "report.md"}


@pytest.fixture(scope="module", autouse=True)
def no_drawing() -> Iterator[None]:
    with undrawn():
        yield


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    return publish(copy_run(results).root, results / "published")


def test_the_copy_agrees_with_itself_and_holds_no_weights_or_text(published: Path) -> None:
    assert published.name == "synthetic" and verify(published) == []
    files = [path for path in published.rglob("*") if path.is_file()]
    assert {path.name for path in files if path.parent.name != "figures"} <= ALLOWED
    assert {path.suffix for path in (published / "figures").iterdir()} == {".png"}
    content = b"".join(path.read_bytes() for path in files)
    assert b"text that is never published" not in content and b"weights\n" not in content
    record = json.loads((published / "prepare/glue/rte/record.json").read_text())
    assert record["outputs"] == {} and record["not_published"] == ["validation.parquet"]


def test_the_tables_are_those_of_the_run(published: Path) -> None:
    for name in ("summary.json", "scores.csv", "retention.csv", "efficiency.csv"):
        assert (published / name).read_bytes() == (small_run().root / name).read_bytes(), name


def test_a_clone_without_time_stamps_agrees_and_an_edit_in_it_is_found(published: Path, tmp_path: Path) -> None:
    clone = tmp_path / "synthetic"
    shutil.copytree(published, clone, copy_function=shutil.copyfile)
    assert verify(clone) == []
    (clone / "scores.csv").write_text((clone / "scores.csv").read_text().replace("0.9", "0.8"))
    assert any("scores.csv" in line for line in verify(clone))


def test_the_leaderboard_lists_the_copy_once(published: Path) -> None:
    board = (published.parent.parent / "leaderboard.md").read_text()
    assert board.count("| distil-2 |") == 1 and "<published/synthetic/report.md>" in board


def test_paths_of_this_machine_stay_here(tmp_path: Path) -> None:
    weights = tmp_path / "home-of-someone" / "checkpoint"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    raw = settings(students=[{"name": "mine", "weights": str(weights)}], data={"tasks": ["rte"]})
    copy = publish(make_run(tmp_path, raw).root, tmp_path / "published")
    for path in copy.rglob("*"):
        if path.is_file():
            assert b"home-of-someone" not in path.read_bytes(), path
    assert ".../checkpoint" in (copy / "config.json").read_text()
    assert verify(copy) == []


def test_only_absolute_paths_are_cut() -> None:
    plain = {"a": ["/home/me/glue", "../shared/glue", "hub", 3, None], "b": "~/x", "c": "package:m/model", "/": "1/2"}
    cut = {"a": [".../glue", "../shared/glue", "hub", 3, None], "b": ".../x", "c": "package:m/model", "/": "1/2"}
    assert without_paths(plain) == cut


def test_an_incomplete_run_is_refused(tmp_path: Path) -> None:
    raw = settings(data={"tasks": ["rte"]})
    store = make_run(tmp_path, raw, without=lambda step: step == "finetune/distil-2/rte/seed-0")
    with pytest.raises(UserError, match="incomplete.*finetune/distil-2/rte/seed-0"):
        publish(store.root, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_a_run_that_does_not_agree_is_refused(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(data={"tasks": ["rte"]}))
    change_predictions(store, "finetune/distil-2/rte/seed-0", lambda prediction: 1 - prediction)
    with pytest.raises(UserError, match="not published, .* disagreements"):
        publish(store.root, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_publishing_again_replaces_and_a_copy_is_not_published_onto_itself(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(data={"tasks": ["rte"]}))
    copy = publish(store.root, tmp_path / "published")
    (copy / "stray").write_text("x")
    assert publish(store.root, tmp_path / "published") == copy and not (copy / "stray").exists()
    with pytest.raises(UserError, match="published copy itself"):
        publish(copy, tmp_path / "published")
