"""pretrain: the teacher learns, what it saves loads as it stands, a missing MLM head is made and trained first."""

import csv
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, BertModel

from glue_bench import pipeline
from glue_bench.errors import UserError
from glue_bench.learning import loop

STEP = "pretrain/teacher"
SOURCE = "prepare/weights/teacher"


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file as mappings."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_teacher_learns_and_is_saved(walk: Callable) -> None:
    """From scratch on embedded text: the held-out loss falls, the curves agree with the result, all loads."""
    here = walk(pretrain={"epochs": 6, "learning_rate": 1e-2}, corpus={"documents": 300})
    result = here.do(STEP)
    assert result["heldout"]["after"]["mlm_loss"] < result["heldout"]["before"]["mlm_loss"] - 0.1
    assert result["heldout"]["after"]["kl_to_teacher"] is None
    assert result["has_mlm_head"] is True
    folder = here.store.folder(STEP)
    log, held = rows(folder / "training.csv"), rows(folder / "heldout.csv")
    training = result["training"]
    assert len(log) == training["steps"]
    assert int(log[-1]["tokens"]) == training["tokens"] == training["steps"] * 16 * 32
    assert float(log[0]["loss"]) == pytest.approx(training["first_loss"], rel=1e-5)
    assert float(log[-1]["mlm"]) == pytest.approx(training["last_loss"], rel=1e-5)
    assert {row["soft"] for row in log} == {row["cosine"] for row in log} == {"0"}
    assert [int(row["step"]) for row in held] == [0, training["steps"] // 2, training["steps"]]
    assert float(held[-1]["mlm_loss"]) == pytest.approx(result["heldout"]["after"]["mlm_loss"], rel=1e-5)
    model = AutoModelForMaskedLM.from_pretrained(folder / "model")
    assert model.config.hidden_dropout_prob == 0.1
    assert "tokens seen" in (folder / "model" / "README.md").read_text()
    assert {"tokenizer.json", "model.safetensors"} <= {path.name for path in (folder / "model").iterdir()}
    listed = here.store.record(STEP)["outputs"]
    assert "training.csv" in listed
    assert not any("checkpoints" in name for name in listed)


def test_same_settings_same_weights(walk: Callable) -> None:
    """Two runs are equal bit for bit; another seed differs."""
    weights = []
    for run, seed in (("one", 0), ("two", 0), ("three", 1)):
        here = walk(run, pretrain={"seed": seed})
        here.do(STEP)
        weights.append(load_file(here.model(STEP) / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.fixture
def encoder_only(walk: Callable, tmp_path: Path) -> Path:
    """Released weights without an MLM head, with a pooler."""
    here = walk("source")
    here.do(SOURCE)
    folder = tmp_path / "released"
    shutil.copytree(here.model(SOURCE), folder)
    BertModel.from_pretrained(folder).save_pretrained(folder)
    return folder


def test_missing_head_is_trained_first(encoder_only: Path, walk: Callable) -> None:
    """While head_only_steps last the encoder stays as released, bit for bit; its pooler stays for good."""
    here = walk(teacher={"weights": str(encoder_only)}, pretrain={"epochs": 1, "head_only_steps": 1000})
    result = here.do(STEP)
    assert result["head_was_new"] is True
    assert result["training"]["notes"] == ["the MLM head is new", "the first 1000 steps trained the head alone"]
    released, trained = (load_file(folder / "model.safetensors") for folder in (encoder_only, here.model(STEP)))
    for name, tensor in released.items():
        assert torch.equal(trained[f"bert.{name}"], tensor), name
    assert any(name.startswith("cls.predictions.transform") for name in trained)
    here = walk(teacher={"weights": str(encoder_only)}, pretrain={"epochs": 1, "head_only_steps": 2})
    here.do(STEP)
    trained = load_file(here.model(STEP) / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(trained[f"bert.{name}"], released[name])
    assert torch.equal(trained["bert.pooler.dense.weight"], released["pooler.dense.weight"])


def test_frozen_encoder_stays_as_released(encoder_only: Path, walk: Callable) -> None:
    """With freeze_encoder only the head trains, to the end, and the held-out loss falls."""
    settings = {"epochs": 4, "learning_rate": 1e-2, "freeze_encoder": True}
    here = walk(teacher={"weights": str(encoder_only)}, pretrain=settings, corpus={"documents": 300})
    result = here.do(STEP)
    assert result["training"]["notes"][1] == "only the MLM head was trained; the encoder is as released"
    assert result["heldout"]["after"]["mlm_loss"] < result["heldout"]["before"]["mlm_loss"] - 0.1
    released, trained = (load_file(folder / "model.safetensors") for folder in (encoder_only, here.model(STEP)))
    for name, tensor in released.items():
        assert torch.equal(trained[f"bert.{name}"], tensor), name


def test_killed_step_resumes_to_the_same_files(walk: Callable) -> None:
    """SIGKILL after the fourth optimiser step: the rerun starts from the checkpoint of the third and ends equal."""
    whole = walk("whole")
    whole.do(STEP)
    broken = walk("broken")
    broken.do("prepare/corpus")

    def killed() -> None:
        original, calls = loop._Training._advance, iter(range(1, 100))

        def advance(training: Any, batch: Any) -> list[float]:
            if next(calls) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(training, batch)

        loop._Training._advance = advance  # type: ignore[method-assign, assignment]
        broken.do(STEP)

    process = get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert broken.store.record(STEP) is None
    assert [path.name for path in (broken.store.folder(STEP) / "checkpoints").glob("*/*")] == ["step-00000003"]
    broken.do(STEP)
    for name in ("model/model.safetensors", "heldout.csv"):
        assert (broken.store.folder(STEP) / name).read_bytes() == (whole.store.folder(STEP) / name).read_bytes()


def test_finished_training_is_not_repeated(walk: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the last checkpoint and the record, the step saves its model again without training."""
    monkeypatch.setattr(pipeline, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))  # killed before it clears up
    here = walk()
    first = here.do(STEP)
    (here.store.folder(STEP) / "record.json").unlink()
    monkeypatch.setattr(loop._Training, "_advance", lambda *_: pytest.fail("trained again"))
    assert here.do(STEP)["training"] == first["training"]


def test_too_short_a_corpus(walk: Callable) -> None:
    """Refused before anything trains."""
    with pytest.raises(UserError, match="too few for one batch of 4000"):
        walk(pretrain={"batch_size": 4000}).do(STEP)


def test_token_budget(walk: Callable) -> None:
    """tokens counts what the model sees; the smaller of both budgets holds."""
    result = walk(pretrain={"epochs": 100, "tokens": 16 * 32 * 5}).do(STEP)
    assert result["training"]["steps"] == 5
    assert result["training"]["tokens"] == 16 * 32 * 5
