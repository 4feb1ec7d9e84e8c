"""The guesses of `plan`: text from the hub up to its cap, files by their size, the smaller of two budgets."""

from pathlib import Path

import pytest

from glue_bench.config import Config, load_config
from glue_bench.errors import UserError
from glue_bench.estimate import guess_bytes, guess_download, guess_seconds, plan_table, text_tokens
from glue_bench.inputs import HashMemo
from glue_bench.machine import Facts
from glue_bench.plan import Step, plan

FACTS = Facts(threads=2, precision="fp32", devices={"cpu": "a processor"}, job_threads=2)


def step_of(name: str, *assignments: str) -> tuple[Step, Config]:
    """One step of quick with these changes."""
    config = load_config("quick", assignments)
    return next(one for one in plan(config, FACTS, HashMemo(None)) if one.name == name), config


def test_capped_text_of_the_hub() -> None:
    """A hundredth of the tokens: a hundredth of time, disk and download."""
    hub = "corpus.text=hub:a/b@1f"
    whole, config = step_of("prepare/corpus", hub)
    part, capped = step_of("prepare/corpus", hub, "corpus.max_hub_tokens=30_000_000")
    assert text_tokens(capped) == 3e7 == text_tokens(config) / 100
    assert guess_seconds(part, capped, FACTS) - 2 == pytest.approx((guess_seconds(whole, config, FACTS) - 2) / 100)
    assert guess_bytes(part, capped) == guess_bytes(whole, config) / 100 == 6e7
    assert guess_download(whole, config) == "a/b@1f, ~12.0 GB"
    assert guess_download(part, capped) == "a/b@1f, ~120.0 MB"


def test_files_count_by_their_size(tmp_path: Path) -> None:
    """A compressed one holds several times as much; a cap on the hub does not concern it."""
    for name in ("a.txt", "b.txt.gz"):
        (tmp_path / name).write_bytes(bytes(4500))
    plain, packed = (
        text_tokens(load_config("quick", (f"corpus.text={tmp_path / name}", "corpus.max_hub_tokens=1")))
        for name in ("a.txt", "b.txt.gz")
    )
    assert (plain, packed) == (1000, 3500)


def test_the_smaller_budget_is_guessed() -> None:
    """tokens, epochs, or the smaller of both; neither is no training."""
    times = {}
    for tokens, epochs in ((900_000, 0.0), (0, 1.0), (900_000, 1.0), (900_000, 100.0)):
        step, config = step_of("pretrain/teacher", f"pretrain.tokens={tokens}", f"pretrain.epochs={epochs}")
        times[tokens, epochs] = guess_seconds(step, config, FACTS)
    assert times[900_000, 1.0] == min(times[900_000, 0.0], times[0, 1.0])
    assert times[900_000, 100.0] == times[900_000, 0.0] > 0
    student, config = step_of("distill/distil-2", "distill.tokens=0")
    assert guess_seconds(student, config, FACTS) == 0


def test_every_fine_tuning_leaves_weights_until_the_report() -> None:
    """Of all models and seeds at once: what fills a disk after hours."""
    cell, config = step_of("finetune/teacher/rte/seed-0")
    weights, _ = step_of("prepare/weights/teacher")
    assert guess_bytes(cell, config) == guess_bytes(weights, config) > 1e6
    assert guess_bytes(step_of("finetune/majority/rte/seed-0")[0], config) == 1e6


def test_text_that_nothing_reads_need_not_be_there() -> None:
    """Layers merely copied."""
    nothing = ("pretrain.tokens=0", "pretrain.epochs=0", "distill.tokens=0", "distill.epochs=0")
    student, config = step_of("distill/distil-2", *nothing, "corpus.text=/nonexistent/x.txt")
    assert guess_seconds(student, config, FACTS) == 0


def test_what_run_all_would_refuse_of_a_teacher_is_refused_here_too(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/config.json").write_text('{"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 8}')
    changes = (f"teacher.weights={tmp_path}/teacher", "students.0.layers=9")
    with pytest.raises(UserError, match="students.distil-2.layers: .* of a teacher that has 4 layers"):
        plan_table(load_config("quick", changes), tmp_path / "results", "x")
