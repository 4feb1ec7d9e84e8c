"""The benchmark stage on tiny models: sizes exact, timings paired, and a reason for every time that is missing."""

import json
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from timing_models import save_bert, save_distilbert
from transformers import BertConfig, DistilBertConfig, DistilBertForMaskedLM

from glue_bench.plan import Step
from glue_bench.records import Size, Timing, from_json
from glue_bench.stages import benchmark
from glue_bench.store import Store
from glue_bench.timing.backends import BACKENDS, Backend, Unavailable, load_eager

MODELS = {"teacher": "prepare/weights/teacher", "student": "distill/student"}
SETTINGS = {
    "scenarios": ["stsb-pass"],
    "batch_sizes": [1, 4],
    "precisions": ["fp32"],
    "backends": ["eager"],
    "examples": 8,
    "min_passes": 4,
    "min_seconds": 0.0,
    "max_seconds": 60.0,
    "seed": 0,
    "models": MODELS,
    "device": "cpu",
    "machine": "a machine, 1 cores",
    "threads": 1,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("results"), "run")
    save_bert(store.folder(MODELS["teacher"]) / "model", layers=2)
    save_distilbert(store.folder(MODELS["student"]) / "model", layers=1)
    return store


def step(needs=(), **changes):
    return Step("benchmark/cpu", SETTINGS | changes, (*MODELS.values(), *needs))


def timings_of(result):
    """Through JSON, as the pipeline writes it."""
    return [from_json(Timing, one) for one in json.loads(json.dumps(result, allow_nan=False))["timings"]]


def test_sizes_of_bert_base_and_distilbert_are_exact(tmp_path):
    store = Store(tmp_path, "run")
    BertConfig().save_pretrained(store.folder(MODELS["teacher"]) / "model")
    DistilBertConfig().save_pretrained(store.folder(MODELS["student"]) / "model")
    result = benchmark.run(Step("benchmark/size", {"models": MODELS}), store, "cpu")
    sizes = {name: from_json(Size, one) for name, one in json.loads(json.dumps(result))["sizes"].items()}
    assert (sizes["teacher"].encoder, sizes["teacher"].parameters) == (109_482_240, 109_483_778)
    assert (sizes["student"].encoder, sizes["student"].parameters) == (66_362_880, 66_955_010)
    assert 1 - sizes["student"].encoder / sizes["teacher"].encoder == pytest.approx(0.394, abs=5e-4)


def test_every_scenario_gives_paired_passes_with_all_samples(store):
    result = benchmark.run(step(scenarios=["stsb-pass", "throughput", "fixed-128"]), store, "cpu")
    timings = timings_of(result)
    cells = [(one.scenario, one.batch_size) for one in timings if one.model == "teacher"]
    assert cells == [("stsb-pass", 1), ("throughput", 1), ("throughput", 4), ("fixed-128", 1), ("fixed-128", 4)]
    assert [one.model for one in timings] == ["teacher", "student"] * 5
    for teacher, student in zip(timings[::2], timings[1::2], strict=True):
        assert len(teacher.pass_s) == len(student.pass_s) >= 4
        assert len(teacher.pass_s) % 2 == 0
        for one in (teacher, student):
            assert one.examples == 8
            calls = 1 if one.scenario == "stsb-pass" else 8 // one.batch_size
            assert len(one.samples_s) == calls * len(one.pass_s)
            assert sum(one.samples_s) == pytest.approx(sum(one.pass_s))
            assert sum(one.turn_s) == pytest.approx(sum(one.pass_s))
            assert len(one.turn_s) % len(one.pass_s) == 0
            assert min(one.samples_s) > 0
            assert one.peak_memory_mb > 0
            assert one.device_memory_mb is None
            assert (one.device, one.threads, one.skipped) == ("cpu", 1, "")
    assert [group["order"] for group in result["groups"]] == [["teacher eager fp32", "student eager fp32"]] * 5
    assert all(group["cores_busy_with_others"] >= 0 for group in result["groups"])
    assert not any(group["stopped_by_max_seconds"] for group in result["groups"])
    assert result["inputs"]["pairs"] == 1_500
    assert torch.get_num_threads() == 1


def test_the_prepared_dev_set_is_what_is_timed_where_there_is_one(store):
    pairs = {"sentence1": ["w1 w2 w3"] * 5, "sentence2": ["w4 w5"] * 5, "label": [1.0] * 5, "idx": range(5)}
    folder = store.folder("prepare/glue/stsb")
    folder.mkdir(parents=True)
    pd.DataFrame(pairs).to_parquet(folder / "validation.parquet")
    result = benchmark.run(step(("prepare/glue/stsb",), examples=0), store, "cpu")
    assert result["inputs"]["source"] == "the dev set of prepare/glue/stsb"
    assert (result["inputs"]["pairs"], result["inputs"]["mean_tokens"]) == (5, 8.0)
    assert [one.examples for one in timings_of(result)] == [5, 5]


def test_models_run_on_the_same_tokens_in_inference_mode(store, monkeypatch):
    seen = {}

    def load(source, precision):
        ready = load_eager(source, precision)

        def forward(batch):
            assert torch.is_inference_mode_enabled()
            assert not source.model.training
            seen.setdefault(source.model.config.model_type, []).append(batch["input_ids"].tolist())
            return ready.forward(batch)

        return replace(ready, forward=forward)

    monkeypatch.setitem(BACKENDS, "compile", Backend(("fp32",), load))
    benchmark.run(step(backends=["compile"], scenarios=["throughput"], batch_sizes=[4]), store, "cpu")
    assert set(seen) == {"bert", "distilbert"}
    tokens = [{json.dumps(batch) for batch in batches} for batches in seen.values()]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 2 + 2  # of the checks, and of the pass


def test_what_cannot_run_is_a_row_with_the_reason(store, monkeypatch):
    def load(source, precision):
        raise Unavailable("no compiler")

    monkeypatch.setitem(BACKENDS, "compile", Backend(("fp32",), load))
    timings = timings_of(benchmark.run(step(backends=["eager", "compile"], precisions=["fp32", "fp16"]), store, "cpu"))
    reasons = {(one.model, one.backend, one.precision): one.skipped for one in timings}
    for model in MODELS:
        assert reasons[model, "eager", "fp32"] == ""
        assert reasons[model, "eager", "fp16"] == "fp16 is timed on CUDA only"
        assert reasons[model, "compile", "fp32"] == "no compiler"
    assert all(one.pass_s == () for one in timings if one.skipped)


def test_nothing_that_can_run_is_no_crash(store):
    result = benchmark.run(step(precisions=["fp16"]), store, "cpu")
    assert all(one.skipped for one in timings_of(result))


@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda logits: logits + 0.01, "differ from eager's by up to 0.01"), (lambda logits: logits / 0, "not finite")],
)
def test_a_wrong_export_is_not_timed(store, monkeypatch, change, reason):
    def load(source, precision):
        ready = load_eager(source, precision)
        return replace(ready, logits=lambda output: change(ready.logits(output)))

    monkeypatch.setitem(BACKENDS, "onnx", Backend(("fp32",), load))
    timings = timings_of(benchmark.run(step(backends=["onnx"]), store, "cpu"))
    assert all(reason in one.skipped and not one.samples_s for one in timings)


def load_failing(error, models, source, precision):
    """Eager, but `models` fail on single examples, which only the scenario has besides the longest pair."""
    ready = load_eager(source, precision)

    def forward(batch):
        if source.model.config.model_type in models and batch["input_ids"].shape[0] == 4:
            raise error
        return ready.forward(batch)

    return replace(ready, forward=forward)


def test_a_model_that_does_not_fit_is_skipped_and_the_others_are_timed(store, monkeypatch):
    load = partial(load_failing, torch.OutOfMemoryError("CUDA out of memory"), ("bert",))
    monkeypatch.setitem(BACKENDS, "compile", Backend(("fp32",), load))
    result = benchmark.run(step(backends=["compile"], scenarios=["throughput"], batch_sizes=[4]), store, "cpu")
    teacher, student = timings_of(result)
    assert (teacher.skipped, teacher.samples_s) == ("out of memory", ())
    assert len(student.pass_s) >= 4


@pytest.mark.parametrize("rows", [3, 4], ids=["in the check", "in the scenario"])
def test_a_backend_that_fails_is_a_row_with_the_reason_and_the_others_are_timed(store, monkeypatch, rows):
    def load(source, precision):
        ready = load_eager(source, precision)

        def forward(batch):
            if batch["input_ids"].shape[0] == rows:
                raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED\nlong trace")
            return ready.forward(batch)

        return replace(ready, forward=forward)

    monkeypatch.setitem(BACKENDS, "onnx", Backend(("fp32",), load))
    changes = {"backends": ["eager", "onnx"], "scenarios": ["throughput"], "batch_sizes": [4]}
    timings = timings_of(benchmark.run(step(**changes), store, "cpu"))
    for one in timings:
        if one.backend == "onnx":
            assert one.skipped == "failed: RuntimeError: [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED"
            assert one.samples_s == one.pass_s == () and one.peak_memory_mb is None
        else:
            assert one.skipped == "" and len(one.pass_s) >= 4


def test_a_student_with_a_smaller_vocabulary_is_timed_in_every_scenario(store):
    folder = store.folder("distill/narrow") / "model"
    save_distilbert(folder, layers=1)
    model = DistilBertForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(46)  # of the tokenizer's 50
    model.save_pretrained(folder)
    models = {"teacher": MODELS["teacher"], "narrow": "distill/narrow"}
    changes = {"models": models, "scenarios": ["stsb-pass", "throughput", "fixed-128"], "batch_sizes": [4]}
    timings = timings_of(benchmark.run(step(**changes), store, "cpu"))
    assert len(timings) == 6
    assert all(one.skipped == "" and one.pass_s for one in timings)


def test_a_model_that_takes_fewer_tokens_is_no_row_of_the_fixed_length(store):
    sizes = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "vocab_size": 50}
    short = DistilBertForMaskedLM(DistilBertConfig(max_position_embeddings=64, **sizes))
    short.save_pretrained(store.folder("distill/short") / "model")
    models = {"teacher": MODELS["teacher"], "short": "distill/short"}
    result = benchmark.run(step(models=models, scenarios=["throughput", "fixed-128"], batch_sizes=[4]), store, "cpu")
    reasons = {(one.model, one.scenario): one.skipped for one in timings_of(result)}
    assert reasons.pop(("short", "fixed-128")) == "takes 64 tokens at most"
    assert set(reasons.values()) == {""}


def test_a_failing_model_fails_the_step(store, monkeypatch):
    load = partial(load_failing, RuntimeError("shapes do not match"), ("bert",))
    monkeypatch.setitem(BACKENDS, "eager", Backend(("fp32",), load))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        benchmark.run(step(scenarios=["throughput"], batch_sizes=[4]), store, "cpu")


def test_the_exported_model_is_compared_with_eager_and_eager_with_nothing(store, monkeypatch):
    def load(source, precision):
        ready = load_eager(source, "fp32")
        return replace(ready, logits=lambda output: ready.logits(output) + 0.25, bytes_on_disk=123)

    monkeypatch.setitem(BACKENDS, "onnx-int8", Backend(("int8",), load))
    result = benchmark.run(step(backends=["eager", "onnx-int8"]), store, "cpu")
    timings = timings_of(result)
    rows = ("eager fp32", "onnx-int8 int8")
    assert result["groups"][0]["order"] == [f"{model} {row}" for row in rows for model in MODELS], (
        "partners side by side"
    )
    found = {(one.model, one.backend): (one.largest_logit_difference, one.bytes_on_disk) for one in timings}
    assert found["student", "eager"] == (None, None)
    assert found["student", "onnx-int8"] == (pytest.approx(0.25), 123)


@pytest.mark.parametrize("least", [{"min_passes": 1_000}, {"min_passes": 2, "min_seconds": 1e6}])
def test_time_runs_out_after_one_pair_of_passes_and_the_record_says_so(store, least):
    result = benchmark.run(step(**least, max_seconds=1e-9), store, "cpu")
    assert [len(one.pass_s) for one in timings_of(result)] == [2, 2]
    assert result["groups"][0]["stopped_by_max_seconds"] is True


def test_one_gpu_of_every_kind_is_timed(monkeypatch):
    names = ["H100", "H100", "A10", "H100", "A10"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
    found = [(one.label, one.name, one.device) for one in benchmark.places({"device": "cuda"})]
    assert found == [("cuda", "H100", torch.device("cuda:0")), ("cuda:2", "A10", torch.device("cuda:2"))]


def test_every_place_has_rows_of_its_own(store, monkeypatch):
    cpu = torch.device("cpu")
    two = [benchmark.Place("cpu", "a machine", cpu), benchmark.Place("cpu:1", "another", cpu)]
    monkeypatch.setattr(benchmark, "places", lambda settings: two)
    result = benchmark.run(step(), store, "cpu")
    found = [(one.device, one.device_name, one.model) for one in timings_of(result)]
    assert found == [(one.label, one.name, model) for one in two for model in MODELS]
    assert [group["device"] for group in result["groups"]] == ["cpu", "cpu:1"]


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_own_events(store):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    result = benchmark.run(step(device="cuda", precisions=["fp32", "bf16", "fp16"]), store, "cuda")
    assert result["clock"] == "CUDA events"
    for one in timings_of(result):
        assert one.device_memory_mb > 0
        assert min(one.samples_s) > 0
