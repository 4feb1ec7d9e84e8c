"""The soft-target and MLM losses of a decoder whose logits are never all in memory: the engine behind losses.py.

A decoder turns features (rows, width) into logits over the whole vocabulary, by far the largest tensors of training.
Here they exist for one chunk of rows at a time, and values and gradients are made together while the chunk is there.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glue_bench.data.rounding import round_up

# Rows whose logits are held at once: 0.25 MB each for two models and 30,522 words in fp32. Measured on a Zen 3 core at
# width 384, 1,024 rows are no faster; with fewer than 256 the decoder's gradient, read and written per chunk, tells.
CPU_CHUNK_ROWS = 512
CUDA_CHUNK_ROWS = 4096
# Rows of one element-wise pass, whose half a dozen fp32 buffers (1 MB each at 8 rows) stay in a CPU's cache: 0.15 ms a
# row instead of 0.23 over a whole chunk, beside 1.2 ms for the four products.
CPU_BLOCK_ROWS = 8
CUDA_BLOCK_ROWS = 1024
# Row length of the logits' buffers is a multiple of this: aligned rows make the product behind them a quarter faster.
ROW_ALIGNMENT = 16
# On a CPU the rows of a chunk are filled up to a multiple of this with others whose gradient is set to zero: each new
# number of rows has kernels compiled for it, and masked positions come in another number at every step (25 to 50 ms of
# 330 with 90 of them).
CPU_ROWS_MULTIPLE = 32

_compile_failures: list[str] = []  # the first one of this process: it would only fail again


class Decoder(NamedTuple):
    """What makes logits: features (rows, width), weight (vocabulary, width), bias (vocabulary,)."""

    features: Tensor
    weight: Tensor
    bias: Tensor


class HeadLoss(torch.autograd.Function):
    """scales[0] x (T^2 KL sum) + scales[1] x (cross-entropy sum) of a decoder's logits that are never all there.

    The scales are known before the forward pass, so it computes the gradients at once, while a chunk's logits are in
    hand, and backward only hands them out: nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        teacher: Decoder | None,
        targets: Tensor,
        temperature: float,
        scales: tuple[float, float],
        compiled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (soft, mlm, _), gradients = chunked_loss(
            Decoder(features, weight, bias), teacher, targets, temperature, scales, ctx.needs_input_grad[:3], compiled
        )
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(soft, mlm)
        return scales[0] * soft + scales[1] * mlm, soft, mlm

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, objective: Tensor, _soft: Tensor, _mlm: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if objective.is_cuda or objective.item() != 1.0:  # 1 is the usual case, but asking a GPU would stall it
            gradients = [None if gradient is None else gradient * objective for gradient in gradients]
        return (*gradients, None, None, None, None, None)


def chunked_loss(
    student: Decoder,
    teacher: Decoder | None,
    targets: Tensor,
    temperature: float,
    scales: tuple[float, float],
    wanted: tuple[bool, bool, bool],
    compiled: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Sums (soft, mlm, right predictions) and gradients (features, weight, bias) of the scaled losses.

    The first len(targets) rows have a true token; all have a teacher or none has. `wanted` says which
    gradients are. Products are in the autocast type or the features' own, the rest in fp32 or better.
    """
    device, kind = student.features.device, student.features.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else student.features.dtype
    full = torch.promote_types(low, torch.float32)
    rows, vocabulary, features_dtype = student.features.shape[0], student.weight.shape[0], student.features.dtype
    chunk_rows = CUDA_CHUNK_ROWS if kind == "cuda" else CPU_CHUNK_ROWS
    multiple = 1 if kind == "cuda" or compiled else min(CPU_ROWS_MULTIPLE, chunk_rows)
    loss = _fused_where_it_compiles if compiled else _blockwise_loss

    with torch.autocast(kind, enabled=False), torch.no_grad():
        student = _filled(_scaled(student, low, temperature), multiple)
        teacher = None if teacher is None else _filled(_scaled(teacher, low, temperature), multiple)
        size = min(round_up(rows, multiple), chunk_rows)
        buffers = [_buffer(size, vocabulary, low, device) for _ in range(1 if teacher is None else 2)]
        soft, mlm, right = (torch.zeros((), dtype=full, device=device) for _ in range(3))
        soft_scale, mlm_scale = (torch.full((), scale, dtype=full, device=device) for scale in scales)
        to_features = torch.zeros_like(student.features) if wanted[0] else None
        to_weight = torch.empty_like(student.weight, dtype=full) if wanted[1] else None
        to_bias = torch.zeros_like(student.bias, dtype=full) if wanted[2] else None
        for start, stop in _chunks(targets.numel(), rows, chunk_rows):
            here, end = stop - start, start + round_up(stop - start, multiple)
            logits = _logits(student, start, end, buffers[0], temperature)[:here]
            teacher_logits = None if teacher is None else _logits(teacher, start, end, buffers[1], temperature)[:here]
            true = targets[start:stop] if start < targets.numel() else None
            if not any(wanted) and true is not None:
                right += (logits.argmax(dim=-1) == true).sum()
            *sums, gradient = loss(logits, teacher_logits, true, temperature, soft_scale, mlm_scale)
            soft, mlm = soft + sums[0], mlm + sums[1]
            if end > stop:  # blockwise the gradient stands where the logits stood, and before those of filling rows
                gradient = buffers[0][: end - start]
                gradient[here:] = 0
            if to_features is not None:  # rows after `stop` belong to the next chunk, which overwrites them
                torch.mm(gradient, student.weight, out=to_features[start:end])
            if to_weight is not None and low == full:
                to_weight.addmm_(gradient.t(), student.features[start:end], beta=0.0 if start == 0 else 1.0)
            elif to_weight is not None:
                product = gradient.t() @ student.features[start:end]
                if start == 0:
                    to_weight.copy_(product)
                else:  # first to fp32: an addition of two types is not vectorised, 22 ms instead of 3
                    to_weight += product.to(full)
            if to_bias is not None:
                to_bias += gradient.sum(dim=0, dtype=full)
        if to_weight is not None and rows == 0:
            to_weight.zero_()
    if to_features is not None:
        to_features = to_features[:rows].to(features_dtype)
    return (soft, mlm, right), (to_features, to_weight, to_bias)


def _blockwise_loss(
    logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor | None,
    temperature: float,
    soft_scale: Tensor,
    mlm_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of T^2 KL and of cross-entropy over rows of logits / T, and the gradient, which takes the logits' place."""
    soft, mlm = torch.zeros_like(soft_scale), torch.zeros_like(mlm_scale)
    step = CUDA_BLOCK_ROWS if logits.is_cuda else CPU_BLOCK_ROWS
    for start in range(0, logits.shape[0], step):
        rows = slice(start, start + step)
        values = logits[rows].to(soft_scale.dtype)
        given = None if teacher_logits is None else teacher_logits[rows].to(soft_scale.dtype)
        true = None if targets is None else targets[rows]
        sums = _in_place_loss(values, given, true, temperature, soft_scale, mlm_scale)
        soft, mlm = soft + sums[0], mlm + sums[1]
        if values.dtype != logits.dtype:
            logits[rows] = values
    return soft, mlm, logits


def _in_place_loss(
    logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor | None,
    temperature: float,
    soft_scale: Tensor,
    mlm_scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """`_blockwise_loss` of fp32 rows in as few passes as it takes; the teacher's logits are lost.

    With e = exp(z / T - max), so that softmax(z / T) = e / sum e, the softmax without temperature is e^T / sum e^T.
    Gradients are those with respect to z: T (softmax(z_s / T) - softmax(z_t / T)), and softmax(z_s) - onehot.
    """
    soft, mlm = torch.zeros_like(soft_scale), torch.zeros_like(mlm_scale)
    logits -= logits.amax(dim=-1, keepdim=True)
    powers = logits.exp()
    if targets is not None:
        sharp = _to_the(powers, logits, temperature)
        total = sharp.sum(dim=-1, keepdim=True)
        targets = targets.unsqueeze(-1)
        mlm = (total.log() - temperature * logits.gather(-1, targets)).sum()
    if teacher_logits is not None:
        teacher_logits -= teacher_logits.amax(dim=-1, keepdim=True)
        teacher_powers = teacher_logits.exp()
        norm, teacher_norm = powers.sum(dim=-1, keepdim=True), teacher_powers.sum(dim=-1, keepdim=True)
        differences = (teacher_logits.sub_(logits)).mul_(teacher_powers).sum(dim=-1, keepdim=True)
        soft = temperature**2 * (differences / teacher_norm - teacher_norm.log() + norm.log()).sum()
        torch.mul(powers, temperature * soft_scale / norm, out=logits)
        logits.addcmul_(teacher_powers, -temperature * soft_scale / teacher_norm)
    else:
        logits.zero_()
    if targets is not None:
        logits.addcmul_(sharp, mlm_scale / total)
        logits.scatter_add_(-1, targets, -mlm_scale.expand(targets.shape))
    return soft, mlm


def _to_the(powers: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """exp(logits) ** temperature; an exponential costs six multiplications."""
    if temperature == 1.0:
        return powers
    return powers * powers if temperature == 2.0 else torch.exp(temperature * logits)


def compile_failure() -> str:
    """Why the fused loss could not be compiled in this process, in one line; empty where it could or was not tried."""
    return _compile_failures[0] if _compile_failures else ""


def _fused_where_it_compiles(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The fused loss, or from the first failure to compile it on the blockwise one, which needs no compiler."""
    if not _compile_failures:
        try:
            return _fused_loss()(logits, *others)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no C compiler, no Triton, a GPU they do not know: each raises another kind
            if logits.is_cuda and torch.cuda.is_current_stream_capturing():
                raise  # it compiled before: what failed is to record it
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            _compile_failures.append(f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}")
    return _blockwise_loss(logits, *others)


@functools.cache
def _fused_loss() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(_whole_loss, dynamic=True)


def _whole_loss(
    logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor | None,
    temperature: float,
    soft_scale: Tensor,
    mlm_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_blockwise_loss`, nothing in place: compiled, it is a few passes over the chunk at full bandwidth."""
    soft, mlm = torch.zeros_like(soft_scale), torch.zeros_like(mlm_scale)
    values = logits.to(soft_scale.dtype)
    gradient = torch.zeros_like(values)
    if teacher_logits is not None:
        student = torch.log_softmax(values, dim=-1)
        teacher = torch.log_softmax(teacher_logits.to(soft_scale.dtype), dim=-1)
        shares = teacher.exp()
        soft = temperature**2 * (shares * (teacher - student)).sum()
        gradient = temperature * soft_scale * (student.exp() - shares)
    if targets is not None:
        sharp = torch.log_softmax(temperature * values, dim=-1)
        hit = torch.arange(logits.shape[-1], device=logits.device) == targets.unsqueeze(-1)
        mlm = -torch.where(hit, sharp, 0.0).sum()
        gradient = gradient + mlm_scale * (sharp.exp() - hit.to(sharp.dtype))
    return soft, mlm, gradient.to(logits.dtype)


def _scaled(wide: Decoder, dtype: torch.dtype, temperature: float) -> Decoder:
    """Detached, in the type of the products, the bias divided by the temperature as the logits will be."""
    return Decoder(
        wide.features.detach().to(dtype), wide.weight.detach().to(dtype), (wide.bias.detach() / temperature).to(dtype)
    )


def _filled(wide: Decoder, multiple: int) -> Decoder:
    """With as many empty rows behind as it may take to fill a chunk up to a multiple, wherever it starts."""
    if multiple == 1:
        return wide
    return wide._replace(features=torch.nn.functional.pad(wide.features, (0, 0, 0, multiple - 1)))


def _logits(wide: Decoder, start: int, stop: int, buffer: Tensor, temperature: float) -> Tensor:
    """Logits / T of rows start to stop, in the buffer."""
    features = wide.features[start:stop]
    return torch.addmm(wide.bias, features, wide.weight.t(), alpha=1 / temperature, out=buffer[: stop - start])


def _buffer(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised (rows, columns) tensor with aligned rows."""
    return torch.empty(rows, round_up(columns, ROW_ALIGNMENT), dtype=dtype, device=device)[:, :columns]


def _chunks(masked: int, rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Even ranges of at most `size` rows, none across the boundary between rows with a true token and rows without."""
    for low, high in ((0, masked), (masked, rows)):
        pieces = max(-(-(high - low) // size), 1)
        step = max(-(-(high - low) // pieces), 1)
        for start in range(low, high, step):
            yield start, min(start + step, high)
