"""The int8 export of a fine-tuned model on its dev sets: whose weights, which score, and why where there is none."""

import importlib.util
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from timing_models import save_bert, tokenizer

from glue_bench.data.predictions import Predictions, decide, read_predictions, write_predictions
from glue_bench.errors import StepError
from glue_bench.inputs import Input
from glue_bench.learning.models import load_classifier
from glue_bench.plan import Step
from glue_bench.records import Score
from glue_bench.store import Store, list_outputs
from glue_bench.tasks import TASKS
from glue_bench.timing import int8
from glue_bench.timing.backends import BACKENDS, Backend, Unavailable, load_eager
from glue_bench.timing.lengths import examples_of, padded

NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="the extra `onnx` is not installed",
)
ROWS = 40
CELL = "finetune/student/rte"
STEP = Step(
    "benchmark/int8/student/rte",
    {"model": "student", "task": "rte", "max_length": 16, "threads": 1},
    (f"{CELL}/seed-0", f"{CELL}/seed-1", f"{CELL}/seed-2", "prepare/glue/rte"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Three seeds of a tiny BERT on RTE with accuracies 0.4, 0.6, 0.5 in their records: seed 2 is the median."""
    store = Store(tmp_path_factory.mktemp("results"), "run")
    rng = np.random.default_rng(0)
    texts = [[" ".join(f"w{i}" for i in rng.integers(0, 45, rng.integers(2, 12))) for _ in range(ROWS)] for _ in "12"]
    table = {"sentence1": texts[0], "sentence2": texts[1], "label": np.arange(ROWS) % 2, "idx": np.arange(ROWS)[::-1]}
    folder = store.folder("prepare/glue/rte")
    folder.mkdir(parents=True)
    pd.DataFrame(table).to_parquet(folder / "validation.parquet")
    save_bert(store.folder("base"), layers=1)
    for seed, accuracy in enumerate((0.4, 0.6, 0.5)):
        step = store.folder(f"{CELL}/seed-{seed}")
        model = load_classifier(store.folder("base"), TASKS["rte"], seed=seed)
        with torch.no_grad():
            model.classifier.weight *= 20
        model.save_pretrained(step / "weights")
        tokenizer().save_pretrained(step / "weights")
        logits = []
        with torch.inference_mode():
            for one in examples_of(texts, tokenizer(), 16):
                logits.append(model(**padded([one], 0)).logits[0].numpy())
        logits = np.stack(logits)
        part = Predictions("validation", table["idx"], table["label"].astype(float), decide(logits, False), logits)
        write_predictions(step / "predictions.parquet", [part])
        scores = [asdict(Score("student", "rte", "validation", seed, {"accuracy": accuracy}, ROWS))]
        record = {"step": f"{CELL}/seed-{seed}", "fingerprint": "", "settings": {}, "needs": {}, "inputs": {}}
        (step / "record.json").write_text(json.dumps(record | {"outputs": {}, "result": {"scores": scores}}))
    return store


@pytest.fixture
def eager_exports(monkeypatch):
    """Exports that are the model itself, at once; `change` acts on the logits of int8."""

    def use(change=lambda logits: logits, fp32=lambda logits: logits):
        for name, precision, act in (("onnx", "fp32", fp32), ("onnx-int8", "int8", change)):

            def load(source, precision, act=act):
                ready = load_eager(source, "fp32")
                return replace(ready, logits=lambda output: act(ready.logits(output)), bytes_on_disk=5)

            monkeypatch.setitem(BACKENDS, name, Backend((precision,), load))

    return use


def test_the_median_seeds_weights_predict_every_example_in_the_data_sets_order(store, tmp_path, eager_exports):
    eager_exports()
    result = json.loads(json.dumps(int8.run(STEP, store, tmp_path), allow_nan=False))
    assert (result["seed"], result["skipped"], result["bytes_on_disk"]) == (2, "", 5)
    kept = read_predictions(store.folder(f"{CELL}/seed-2") / "predictions.parquet")["validation"]
    own = read_predictions(store.folder(STEP.name) / "predictions.parquet")["validation"]
    assert own.idx.tolist() == kept.idx.tolist()
    assert own.prediction.tolist() == kept.prediction.tolist()
    assert np.allclose(own.logits, kept.logits, atol=1e-5)
    assert result["largest_logit_difference"] == pytest.approx(0, abs=1e-5)
    (score,) = result["scores"]
    assert score["metrics"] == {"accuracy": (own.prediction == own.label).mean()}
    assert (score["model"], score["task"], score["split"], score["seed"]) == ("student", "rte", "validation", 2)


def test_a_difference_of_the_export_is_measured_on_all_examples(store, tmp_path, eager_exports):
    eager_exports(lambda logits: logits + torch.tensor([0.0, 100.0]))
    result = int8.run(STEP, store, tmp_path)
    assert result["largest_logit_difference"] == pytest.approx(100, rel=1e-3)
    assert result["scores"][0]["metrics"]["accuracy"] == pytest.approx(0.5)  # one class for all


@NEEDS_ONNX
@pytest.mark.slow
def test_the_real_export_is_smaller_and_its_logits_are_nearly_the_same(store, tmp_path):
    result = int8.run(STEP, store, tmp_path)
    assert result["skipped"] == ""
    assert 0 < result["largest_logit_difference"] < 0.5
    assert 0 < result["bytes_on_disk"] < result["fp32_bytes_on_disk"]
    own = read_predictions(store.folder(STEP.name) / "predictions.parquet")["validation"]
    kept = read_predictions(store.folder(f"{CELL}/seed-2") / "predictions.parquet")["validation"]
    assert np.abs(own.logits - kept.logits).max() == pytest.approx(result["largest_logit_difference"])


def without_weights(store: Store, folder: Path, *seeds: int) -> Store:
    """The same run, the weights of these seeds deleted."""
    copy = Store(folder, "run")
    for seed in range(3):
        step = f"{CELL}/seed-{seed}"
        copy.folder(step).mkdir(parents=True)
        for one in store.folder(step).iterdir():
            if one.name != "weights" or seed not in seeds:
                (copy.folder(step) / one.name).symlink_to(one)
    (copy.root / "prepare").symlink_to(store.root / "prepare")
    return copy


def test_where_the_medians_weights_are_gone_the_closest_seed_stands_in(store, tmp_path, eager_exports):
    eager_exports()
    result = int8.run(STEP, without_weights(store, tmp_path / "copy", 2), tmp_path)
    assert result["seed"] == 0  # as far from the median as seed 1, and the smaller number
    assert int8.run(STEP, without_weights(store, tmp_path / "other", 2, 0), tmp_path)["seed"] == 1


def test_where_all_weights_are_gone_the_cell_says_how_to_get_them(store, tmp_path):
    result = int8.run(STEP, without_weights(store, tmp_path / "copy", 0, 1, 2), tmp_path)
    assert "weights are gone" in result["skipped"]
    assert "delete the folders finetune/student/rte and benchmark/int8/student/rte" in result["skipped"]
    assert (result["scores"], result["seed"]) == ([], None)


def test_a_checkpoint_of_the_users_is_quantised_with_its_classes_in_the_data_sets_order(store, tmp_path, eager_exports):
    eager_exports()
    folder = tmp_path / "checkpoint"
    model = load_classifier(store.folder("base"), TASKS["rte"], seed=2)
    with torch.no_grad():
        model.classifier.weight.copy_(20 * model.classifier.weight.flip(0))
    model.config.id2label = {0: "not_entailment", 1: "entailment"}
    model.config.label2id = {"not_entailment": 0, "entailment": 1}
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    copy = without_weights(store, tmp_path / "copy", 0, 1, 2)
    seed_0 = copy.folder(f"{CELL}/seed-0") / "predictions.parquet"
    seed_0.unlink()
    seed_0.symlink_to(store.folder(f"{CELL}/seed-2") / "predictions.parquet")
    inputs = {"config.json": Input(str(folder / "config.json"), "sha256:0")}
    result = int8.run(replace(STEP, needs=(f"{CELL}/seed-0", "prepare/glue/rte"), inputs=inputs), copy, tmp_path)
    assert result["skipped"] == ""
    assert result["largest_logit_difference"] == pytest.approx(0, abs=1e-5)


def test_what_fails_is_a_reason_and_never_a_number(store, tmp_path, monkeypatch, eager_exports):
    def missing(source, precision):
        raise Unavailable("the package onnx is not installed; pip install 'glue_bench[onnx]'")

    def fails(logits):
        raise RuntimeError("no such kernel\nlong trace")

    for exports, reason in (
        (lambda: eager_exports(fp32=lambda logits: logits + 0.01), "the fp32 export's logits differ"),
        (lambda: eager_exports(fp32=fails), "the fp32 export fails: RuntimeError: no such kernel"),
        (lambda: eager_exports(change=fails), "the int8 export fails: RuntimeError: no such kernel"),
        (lambda: eager_exports(change=lambda logits: logits / 0), "not finite"),
        (lambda: monkeypatch.setitem(BACKENDS, "onnx", Backend(("fp32",), missing)), "onnx is not installed"),
    ):
        exports()
        target = store.folder(STEP.name) / "predictions.parquet"
        target.unlink(missing_ok=True)
        result = int8.run(STEP, store, tmp_path)
        assert reason in result["skipped"] and "\n" not in result["skipped"]
        assert result["scores"] == [] and result["bytes_on_disk"] is None
        assert not target.exists()


def test_weights_that_changed_since_they_were_trained_are_refused(store, tmp_path, eager_exports):
    eager_exports()
    copy = without_weights(store, tmp_path / "copy")
    step = copy.folder(f"{CELL}/seed-2")
    listed = list_outputs(store.folder(f"{CELL}/seed-2") / "weights")
    record = json.loads((step / "record.json").read_text(encoding="utf-8"))
    record["result"]["weights_files"] = listed
    (step / "record.json").unlink()
    (step / "record.json").write_text(json.dumps(record), encoding="utf-8")
    assert int8.run(STEP, copy, tmp_path)["seed"] == 2
    (step / "weights").unlink()
    shutil.copytree(store.folder(f"{CELL}/seed-2") / "weights", step / "weights")
    weights = step / "weights/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 64
    weights.write_bytes(content)
    with pytest.raises(StepError, match="model.safetensors was changed; delete .*seed-2 and run again"):
        int8.run(STEP, copy, tmp_path)
