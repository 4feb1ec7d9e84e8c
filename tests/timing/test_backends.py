"""The backends: what each gives back, and the reasons where one cannot run."""

import importlib.util
from dataclasses import replace
from functools import partial

import pytest
import torch
from timing_models import save_bert, save_distilbert, tokenizer

from glue_bench.learning.models import load_classifier
from glue_bench.tasks import TASKS
from glue_bench.timing import backends
from glue_bench.timing.backends import BACKENDS, Source, Unavailable
from glue_bench.timing.lengths import check_batches, random_examples

NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="the extra `onnx` is not installed",
)


@pytest.fixture(scope="module")
def checks():
    return check_batches(random_examples([9, 5, 30, 7], tokenizer(), seed=0), 0)


@pytest.fixture(scope="module", params=[save_bert, save_distilbert], ids=["bert", "distilbert"])
def source(request, tmp_path_factory, checks):
    folder = tmp_path_factory.mktemp("model")
    request.param(folder / "model", 1)
    model = load_classifier(folder / "model", TASKS["stsb"], seed=0)
    return Source(model, torch.device("cpu"), 1, folder, checks[0])


def largest_difference(source, ready, checks):
    eager = BACKENDS["eager"].load(source, "fp32")
    with torch.inference_mode():
        pairs = [(one.logits(one.forward(one.place(batch))) for one in (eager, ready)) for batch in checks]
        return max((first - second).abs().max().item() for first, second in pairs)


def skip_second_family(source):
    if source.model.config.model_type != "bert":
        pytest.skip("one family is enough for what takes seconds: BERT, which has all three inputs")


def test_eager_is_the_model_itself_in_eval_mode(source, checks):
    ready = BACKENDS["eager"].load(source, "fp32")
    assert not source.model.training
    assert largest_difference(source, ready, checks) == 0
    assert ready.weight_bytes == sum(p.numel() * 4 for p in source.model.parameters()) + sum(
        buffer.nbytes for buffer in source.model.buffers()
    )


def test_placing_a_batch_is_all_that_happens_before_the_clock(source, checks):
    ready = BACKENDS["eager"].load(source, "fp32")
    placed = ready.place(checks[0])
    assert placed["input_ids"].device == source.device
    assert ("token_type_ids" in placed) == (source.model.config.model_type == "bert")


def test_bf16_is_a_copy_where_the_cpu_has_tiles_for_it(source, checks, monkeypatch):
    monkeypatch.setattr(backends, "has_fast_bf16", lambda: True)
    ready = BACKENDS["eager"].load(source, "bf16")
    assert next(source.model.parameters()).dtype == torch.float32
    assert 0 < largest_difference(source, ready, checks) < 0.1
    assert ready.weight_bytes < 0.6 * BACKENDS["eager"].load(source, "fp32").weight_bytes


def test_bf16_without_tiles_and_fp16_on_a_cpu_are_skipped_with_the_reason(source, monkeypatch):
    monkeypatch.setattr(backends, "has_fast_bf16", lambda: False)
    with pytest.raises(Unavailable, match="AMX"):
        BACKENDS["eager"].load(source, "bf16")
    with pytest.raises(Unavailable, match="CUDA only"):
        BACKENDS["compile"].load(source, "fp16")


def test_without_a_compiler_compile_is_skipped_with_the_reason(source, monkeypatch):
    def fail(model, dynamic):
        def call(**batch):
            raise RuntimeError("No working C++ compiler found\nlong trace")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(Unavailable, match="^torch.compile failed: RuntimeError: No working C.. compiler found$"):
        BACKENDS["compile"].load(source, "fp32")


class OneSum(torch.nn.Module):
    """The least that there is to compile."""

    config = None

    def forward(self, input_ids):
        return input_ids + 1


@pytest.mark.slow
def test_compile_is_skipped_with_the_reason_where_the_compiler_is_hidden(source, monkeypatch, tmp_path):
    """The real torch.compile with an empty PATH and nothing compiled before."""
    skip_second_family(source)
    inductor = pytest.importorskip("torch._inductor.config")
    compilers = pytest.importorskip("torch._inductor.cpp_builder")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    compilers.cpp_compiler_search.cache_clear()
    try:
        with inductor.patch(fx_graph_cache=False), pytest.raises(Unavailable) as caught:
            BACKENDS["compile"].load(replace(source, model=OneSum()), "fp32")
    finally:
        compilers.cpp_compiler_search.cache_clear()
        torch.compiler.reset()
    assert str(caught.value).startswith("torch.compile failed: ") and "compiler" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_compiled_model_starts_with_no_graphs_of_another_and_never_falls_back_to_eager(source, monkeypatch):
    """torch's cache of graphs is by code, and two models of one class have the same: past its limit torch would go on
    in eager mode without a word, whose time would stand in the table as the compiled one."""
    skip_second_family(source)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(backends, "MOST_GRAPHS", 1)
    try:
        first = BACKENDS["compile"].load(source, "fp32")
        other = replace(source, model=load_classifier(source.folder / "model", TASKS["stsb"], seed=1))
        BACKENDS["compile"].load(other, "fp32")  # would be one graph too many, were the first's still there
        shorter = check_batches(random_examples([9, 5, 8, 7], tokenizer(), seed=0), 0)[1]
        with torch.inference_mode(), pytest.raises(Exception, match="recompile_limit"):
            for batch in (source.example, shorter):
                first.forward(first.place(batch))
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_the_remedy(source, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    for backend in ("onnx", "onnx-int8"):
        with pytest.raises(Unavailable, match=rf"{package} is not installed; pip install 'glue_bench\[onnx\]'"):
            BACKENDS[backend].load(source, "fp32")


def test_onnx_on_a_gpu_is_skipped_with_the_reason(source):
    with pytest.raises(Unavailable, match="on the CPU"):
        BACKENDS["onnx"].load(replace(source, device=torch.device("cuda")), "fp32")


@NEEDS_ONNX
def test_a_failed_export_is_a_reason(source, monkeypatch, tmp_path):
    def fail(*arguments, **settings):
        raise ValueError("cannot trace this")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(Unavailable, match="the ONNX export failed: ValueError: cannot trace this"):
        BACKENDS["onnx"].load(replace(source, folder=tmp_path), "fp32")


@NEEDS_ONNX
def test_a_file_that_the_runtime_does_not_take_is_a_reason(source, monkeypatch, tmp_path):
    def write_nonsense(model, inputs, path, **settings):
        path.write_bytes(b"this is no graph")

    monkeypatch.setattr(torch.onnx, "export", write_nonsense)
    for backend, reason in (("onnx", "ONNX Runtime does not take the model: "), ("onnx-int8", "quantisation to int8")):
        with pytest.raises(Unavailable, match=reason):
            BACKENDS[backend].load(replace(source, folder=tmp_path), "fp32")


@NEEDS_ONNX
def test_half_an_export_is_not_taken_for_one_by_the_next_backend(source, monkeypatch, tmp_path):
    def fail(model, inputs, path, **settings):
        path.write_bytes(b"half")
        raise ValueError("disk full")

    monkeypatch.setattr(torch.onnx, "export", fail)
    for backend in ("onnx", "onnx-int8"):
        with pytest.raises(Unavailable, match="the ONNX export failed: ValueError: disk full"):
            BACKENDS[backend].load(replace(source, folder=tmp_path), "fp32")


def test_a_backend_of_one_precision_has_no_choice():
    assert BACKENDS["onnx-int8"].wanted(("fp32", "bf16")) == ["int8"]
    assert BACKENDS["onnx"].wanted(("bf16",)) == ["fp32"]
    assert BACKENDS["eager"].wanted(("bf16", "fp32")) == ["bf16", "fp32"]


def test_a_session_leaves_the_cores_to_the_next_row_after_its_run(source, monkeypatch, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    seen = []

    class Session:
        def __init__(self, path, options, providers):
            seen.append(options.get_session_config_entry("session.force_spinning_stop"))

        def get_inputs(self):
            return []

    monkeypatch.setattr(runtime, "InferenceSession", Session)
    backends._session(source, tmp_path / "model.onnx")
    assert seen == ["1"]


@NEEDS_ONNX
@pytest.mark.slow
def test_the_exported_models_compute_the_same_on_shapes_never_seen(source, checks):
    skip_second_family(source)
    fp32 = BACKENDS["onnx"].load(source, "fp32")
    assert largest_difference(source, fp32, checks) < 1e-5
    int8 = BACKENDS["onnx-int8"].load(source, "int8")
    assert 0 < largest_difference(source, int8, checks) < 0.1
    assert fp32.bytes_on_disk > sum(p.numel() * 4 for p in source.model.parameters())
    assert int8.bytes_on_disk > 0
    again = fp32.open_again()
    assert largest_difference(source, again, checks) < 1e-5


@pytest.mark.slow
def test_the_compiled_model_computes_the_same_with_and_without_padding(source, checks, monkeypatch):
    """Traced as it would be, but run without generated C++, whose compilation takes a minute on a busy machine."""
    skip_second_family(source)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    ready = BACKENDS["compile"].load(source, "fp32")
    assert largest_difference(source, ready, checks) < 1e-5
