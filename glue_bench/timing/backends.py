"""The ways of running a model that are timed, one row each in BACKENDS; CONTRIBUTING.md says how to add one.

A loader gets the eager fp32 model and gives back a Ready, or raises Unavailable with the reason, which then stands in
the table in place of a time.
"""

import contextlib
import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from glue_bench.learning.models import forward_inputs
from glue_bench.machine import has_fast_bf16
from glue_bench.timing.lengths import Batch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Graphs that torch.compile may make of one piece of code: two (one row, several) for each compiled model and precision.
MOST_GRAPHS = 64
# An fp32 backend whose logits are further than this from eager's computes something else; its time would mean nothing.
SAME_LOGITS = 1e-3


class Unavailable(Exception):
    """This backend or precision cannot be timed here; the message is the reason."""


@dataclass(frozen=True)
class Source:
    """What loaders start from: the eager fp32 classifier on its device, and a folder for files soon thrown away."""

    model: PreTrainedModel
    device: torch.device
    threads: int
    folder: Path
    example: Batch  # for tracing: at least two rows, with padding


@dataclass(frozen=True)
class Ready:
    """A model ready to be timed. `place` puts a batch where `forward` reads it (outside the clock).

    `weight_bytes` of memory are held by its weights; None where only measuring tells, and then `open_again` gives a
    second one to measure on.
    """

    place: Callable[[Batch], Any]
    forward: Callable[[Any], Any]
    logits: Callable[[Any], torch.Tensor]  # of forward's result, fp32 on the CPU
    weight_bytes: int | None = None
    open_again: Callable[[], "Ready"] | None = None
    bytes_on_disk: int | None = None


@dataclass(frozen=True)
class Backend:
    """One row: the precisions that it knows and its loader."""

    precisions: tuple[str, ...]
    load: Callable[[Source, str], Ready]

    def wanted(self, precisions: Sequence[str]) -> list[str]:
        """The precisions to time: of those asked for; a backend of one precision has no choice."""
        return list(self.precisions) if len(self.precisions) == 1 else [p for p in precisions if p in self.precisions]


def load_eager(source: Source, precision: str) -> Ready:
    """torch as it is; bf16 and fp16 are a copy of the weights in that type."""
    model = _in_precision(source, precision)
    return Ready(
        partial(_to_device, model, source.device), partial(_forward, model), _torch_logits, _weight_bytes(model)
    )


def load_compiled(source: Source, precision: str) -> Ready:
    """torch.compile with dynamic shapes. Raises Unavailable where compiling the first batch fails (no C++ compiler).

    All models of a class share one cache of graphs, by code. It is emptied before each, and where it overflows all the
    same the call fails: torch would go on in eager mode, whose time would then stand in the table as the compiled one.
    """
    model = _in_precision(source, precision)
    torch.compiler.reset()
    torch.compiler.config.recompile_limit = MOST_GRAPHS
    torch.compiler.config.fail_on_recompile_limit_hit = True
    compiled = torch.compile(model, dynamic=True)
    place = partial(_to_device, model, source.device)
    forward = partial(_forward, compiled)
    try:
        with torch.inference_mode():
            forward(place(source.example))
    except Exception as error:
        raise Unavailable(f"torch.compile failed: {first_line(error)}") from None
    return Ready(place, forward, _torch_logits, _weight_bytes(model))


def load_onnx(source: Source, precision: str) -> Ready:
    """ONNX Runtime on the CPU, exported with dynamic batch and sequence. Raises Unavailable without its packages."""
    path = _exported(source)
    return _session(source, path)


def load_onnx_int8(source: Source, precision: str) -> Ready:
    """As load_onnx, weights quantised to int8 and activations as they come (ONNX Runtime's dynamic quantisation).

    Weights have a scale per channel: for MiniLM-L6 the mean difference of logits is half that of one scale per matrix
    (0.064 against 0.113 on SST-2, 0.023 against 0.052 on MNLI), at the same size and speed.
    """
    path = _exported(source)
    quantised = path.with_name("int8.onnx")
    try:
        quantization = importlib.import_module("onnxruntime.quantization")
        with _silence():
            int8 = quantization.QuantType.QInt8
            quantization.quantize_dynamic(path, quantised, weight_type=int8, per_channel=True)
    except Exception as error:
        raise Unavailable(f"quantisation to int8 failed: {first_line(error)}") from None
    return _session(source, quantised)


BACKENDS: Mapping[str, Backend] = {
    "eager": Backend(("fp32", "bf16", "fp16"), load_eager),
    "compile": Backend(("fp32", "bf16", "fp16"), load_compiled),
    "onnx": Backend(("fp32",), load_onnx),
    "onnx-int8": Backend(("int8",), load_onnx_int8),
}


def _in_precision(source: Source, precision: str) -> PreTrainedModel:
    if precision == "fp32":
        return source.model
    if source.device.type == "cpu" and precision == "fp16":
        raise Unavailable("fp16 is timed on CUDA only")
    if source.device.type == "cpu" and precision == "bf16" and not has_fast_bf16():
        raise Unavailable("bf16 needs a CPU with AMX or AVX-512 BF16; without, it is up to 100 times slower than fp32")
    if source.device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(False):
        raise Unavailable("this GPU has no bf16")
    return copy.deepcopy(source.model).to(DTYPES[precision])


def _to_device(model: PreTrainedModel, device: torch.device, batch: Batch) -> Batch:
    return {name: tensor.to(device) for name, tensor in forward_inputs(model, batch).items()}


def _forward(model: Callable[..., Any], batch: Batch) -> Any:
    return model(**batch)


def _torch_logits(output: Any) -> torch.Tensor:
    return output.logits.detach().float().cpu()


def _weight_bytes(model: PreTrainedModel) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


class _LogitsOnly(torch.nn.Module):
    """Takes tensors in a fixed order and gives the logits: what an ONNX graph's signature can say."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True))).logits


def _exported(source: Source) -> Path:
    """The fp32 ONNX file of a model, written on first use. Raises Unavailable."""
    if source.device.type != "cpu":
        raise Unavailable("ONNX Runtime is timed on the CPU, the edge it is for")
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"the package {package} is not installed; pip install 'glue_bench[onnx]'")
    path = source.folder / "fp32.onnx"
    if path.exists():
        return path
    example = forward_inputs(source.model, source.example)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _silence(), torch.no_grad():
            torch.onnx.export(
                _LogitsOnly(source.model, tuple(example)).train(False),
                tuple(example.values()),
                path,
                input_names=list(example),
                output_names=["logits"],
                dynamic_shapes=(tuple(dict(dynamic) for _ in example),),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        path.unlink(missing_ok=True)  # half an export must not be taken for one by the next backend
        raise Unavailable(f"the ONNX export failed: {first_line(error)}") from None
    return path


def _session(source: Source, path: Path) -> Ready:
    try:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = source.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # after a run the cores are the next row's
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors derive from Exception alone
        raise Unavailable(f"ONNX Runtime does not take the model: {first_line(error)}") from None
    names = [one.name for one in session.get_inputs()]

    def place(batch: Batch) -> dict[str, np.ndarray]:
        return {name: batch[name].numpy() for name in names}

    return Ready(
        place,
        forward=lambda batch: session.run(["logits"], batch),
        logits=lambda output: torch.from_numpy(output[0]),
        open_again=partial(_session, source, path),
        bytes_on_disk=bytes_of(path),
    )


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter warns of packages for images, the quantiser of a step that its dynamic mode does not need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def bytes_of(path: Path) -> int:
    """Size of an ONNX file with the weights that lie beside it."""
    files = (path, path.with_name(f"{path.name}.data"))
    return sum(file.stat().st_size for file in files if file.exists())


def logits_of(ready: Ready, batch: Batch) -> torch.Tensor:
    """Logits (batch, outputs) of one batch, fp32 on the CPU."""
    with torch.inference_mode():
        return ready.logits(ready.forward(ready.place(batch)))


def installed_versions() -> dict[str, str]:
    """Versions of what ran, as far as it is installed."""
    names = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript")
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def first_line(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"
