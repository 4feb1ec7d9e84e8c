"""The triple loss of distillation, L = w_ce L_ce + w_mlm L_mlm + w_cos L_cos, twice over.

`triple_loss` is the definition, written to be read: full logits, autograd. `distillation_loss` and `mlm_loss` are what
training runs. Logits over 30,522 words at every position are the bulk of memory and time, so these put only the needed
positions through the MLM heads, hold the logits of one chunk of them at a time, and compute values and gradients
together while that chunk is there. Tests hold the two equal.

Source: Sanh et al. 2019, section 3, and the authors' code. Means are taken over the whole optimiser batch (`Counts`),
where the authors average the means of its micro-batches: a stated deviation that makes the gradient that of the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from glue_bench.learning.decoder_loss import Decoder, HeadLoss, chunked_loss

IGNORED = -100  # label of a position that is not predicted


class LossWeights(NamedTuple):
    """The weights of the three terms."""

    soft: float
    mlm: float
    cosine: float


class Counts(NamedTuple):
    """The numbers of positions that each term is a mean over, in a whole batch or a part of it; they add up."""

    soft: int
    mlm: int
    cosine: int

    def plus(self, other: "Counts") -> "Counts":
        """The counts of two parts together."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class LossTerms:
    """The three terms, scalar tensors: L_ce (`soft`, T^2 included), L_mlm and L_cos. Means, or sums where so named."""

    soft: Tensor
    mlm: Tensor
    cosine: Tensor

    def total(self, weights: LossWeights | tuple[float, float, float]) -> Tensor:
        """The weighted sum of the terms; `weights` in the order soft, mlm, cosine."""
        soft, mlm, cosine = weights
        return soft * self.soft + mlm * self.mlm + cosine * self.cosine

    def divided(self, counts: Counts) -> "LossTerms":
        """Sums made into means: each term over its count; a term without positions is 0."""
        soft, mlm, cosine = (max(count, 1) for count in counts)
        return LossTerms(self.soft / soft, self.mlm / mlm, self.cosine / cosine)


def triple_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    labels: Tensor,
    attention_mask: Tensor,
    *,
    temperature: float,
    ce_positions: str,
) -> LossTerms:
    """The triple loss of one batch, as means over its positions; differentiable in the student's tensors.

    logits (batch, length, vocabulary), last hidden states (batch, length, width), labels (batch, length) with the true
    token at masked positions and -100 elsewhere, attention_mask (batch, length). A are the attended positions, M those
    with a label among them, T the temperature:
      soft    T^2 / |A| sum over A of KL(softmax(teacher / T) || softmax(student / T)); over M if "masked"
      mlm     mean over M of the cross-entropy with the true token
      cosine  mean over A of 1 - cos(student, teacher)
    A mean over nothing is 0. Padding never contributes, whatever stands there. Raises ValueError on ce_positions.
    Source: Sanh et al. 2019, section 3; the KL differs from their sum t_i log s_i by the teacher's entropy, a constant.
    """
    terms, counts = triple_loss_sums(
        student_logits,
        teacher_logits,
        student_hidden,
        teacher_hidden,
        labels,
        attention_mask,
        temperature=temperature,
        ce_positions=ce_positions,
    )
    return terms.divided(counts)


def triple_loss_sums(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    labels: Tensor,
    attention_mask: Tensor,
    *,
    temperature: float,
    ce_positions: str,
) -> tuple[LossTerms, Counts]:
    """The sums that `triple_loss` takes means of, and the counts to divide by; those of parts of a batch add up."""
    attended = attention_mask.bool()
    masked = attended & (labels != IGNORED)
    soft_at = _soft_positions(attended, masked, ce_positions)
    student_rows, teacher_rows = _full(student_logits[soft_at]), _full(teacher_logits.detach()[soft_at])
    soft = F.kl_div(
        F.log_softmax(student_rows / temperature, dim=-1),
        F.log_softmax(teacher_rows / temperature, dim=-1),
        log_target=True,
        reduction="sum",
    )
    mlm = F.cross_entropy(_full(student_logits[masked]), labels[masked], reduction="sum")
    cosine = cosine_sum(student_hidden[attended], teacher_hidden[attended])
    counts = Counts(int(soft_at.sum()), int(masked.sum()), int(attended.sum()))
    return LossTerms(temperature**2 * soft, mlm, cosine), counts


def cosine_sum(student_rows: Tensor, teacher_rows: Tensor) -> Tensor:
    """Sum over rows of 1 - cos(student, teacher), (rows, width) each; differentiable in the student's."""
    cosines = F.cosine_similarity(_full(student_rows), _full(teacher_rows.detach()), dim=-1)
    return (1.0 - cosines).sum()


@dataclass(frozen=True)
class Head:
    """An MLM head in two parts, so that its wide half can be applied a chunk at a time.

    logits = transform(hidden) @ weight.T + bias; weight (vocabulary, width), bias (vocabulary,).
    """

    transform: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of hidden states (..., width)."""
        return F.linear(self.transform(hidden), self.weight, self.bias)


@dataclass(frozen=True)
class Positions:
    """The positions of one micro-batch that the losses need, as indices into its flattened (batch x length) tokens.

    Made on the CPU by `loss_positions`, then moved: computing them on a GPU would stall it.
    """

    rows: Tensor  # (n,) int64: those that go through the heads, masked ones first
    targets: Tensor  # (m,) int64: the true tokens of the first m rows
    attended: Tensor | None  # (a,) int64; None where nothing is padding
    counts: Counts

    def to(self, device: torch.device | str) -> "Positions":
        """The same on another device, copied without waiting."""
        attended = None if self.attended is None else self.attended.to(device, non_blocking=True)
        rows, targets = (tensor.to(device, non_blocking=True) for tensor in (self.rows, self.targets))
        return Positions(rows, targets, attended, self.counts)


def loss_positions(labels: Tensor, attention_mask: Tensor, *, ce_positions: str) -> Positions:
    """Where the losses of one micro-batch are taken; CPU tensors (batch, length) as for `triple_loss`.

    ce_positions "attended" or "masked" as there; "none" for plain MLM. Raises ValueError on anything else.
    """
    attended = attention_mask.reshape(-1).bool()
    masked = attended & (labels.reshape(-1) != IGNORED)
    soft_at = masked if ce_positions == "none" else _soft_positions(attended, masked, ce_positions)
    masked_rows = masked.nonzero().squeeze(1)
    rows = torch.cat([masked_rows, (soft_at & ~masked).nonzero().squeeze(1)])
    attended_rows = None if attended.all() else attended.nonzero().squeeze(1)
    soft = 0 if ce_positions == "none" else len(rows)
    counts = Counts(soft, len(masked_rows), attended.numel() if attended_rows is None else len(attended_rows))
    return Positions(rows, labels.reshape(-1)[masked_rows], attended_rows, counts)


def distillation_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_head: Head,
    teacher_head: Head,
    positions: Positions,
    counts: Counts,
    *,
    temperature: float,
    weights: LossWeights,
    compiled: bool,
) -> tuple[Tensor, LossTerms]:
    """One micro-batch's share of the triple loss of a whole batch, and the sums of its terms for the log.

    Last hidden states (batch, length, width); `positions` of this micro-batch, on their device; `counts` of the whole
    batch, all micro-batches and processes together. The gradients of the shares, summed over these, are the gradient of
    the whole batch. The sums are detached; their total over the batch, `divided` by its counts, are the means. With
    weight 0 the soft and the cosine term are not computed and stand at 0; L_mlm costs little beside them and is always
    there for the log. `compiled` fuses the element-wise part: for GPUs, where torch.compile works.
    """
    rows = positions.rows if weights.soft else positions.rows[: positions.counts.mlm]
    teacher = None
    if weights.soft:
        with torch.no_grad():
            teacher = Decoder(
                teacher_head.transform(_picked(teacher_hidden, rows)), teacher_head.weight, teacher_head.bias
            )
    scales = (weights.soft / max(counts.soft, 1), weights.mlm / max(counts.mlm, 1))
    features = student_head.transform(_picked(student_hidden, rows))
    objective, soft, mlm = HeadLoss.apply(
        features, student_head.weight, student_head.bias, teacher, positions.targets, temperature, scales, compiled
    )
    cosine = torch.zeros_like(soft)
    if weights.cosine:
        cosine = cosine_sum(_picked(student_hidden, positions.attended), _picked(teacher_hidden, positions.attended))
        objective = objective + weights.cosine / max(counts.cosine, 1) * cosine
    return objective, LossTerms(soft, mlm, cosine.detach())


def mlm_loss(hidden: Tensor, head: Head, positions: Positions, count: int, *, compiled: bool) -> tuple[Tensor, Tensor]:
    """One micro-batch's share of the MLM loss of a batch with `count` masked positions, and the detached sum.

    Last hidden states (batch, length, width); the cross-entropy with the true tokens at the masked positions.
    """
    features = head.transform(_picked(hidden, positions.rows[: positions.counts.mlm]))
    scales = (0.0, 1.0 / max(count, 1))
    objective, _, total = HeadLoss.apply(
        features, head.weight, head.bias, None, positions.targets, 1.0, scales, compiled
    )
    return objective, total


@torch.no_grad()
def heldout_sums(
    hidden: Tensor, head: Head, teacher_hidden: Tensor | None, teacher_head: Head | None, positions: Positions
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the masked positions, without gradients: cross-entropy, right predictions, KL to the teacher (T = 1).

    The KL is 0 where there is no teacher. Last hidden states (batch, length, width).
    """
    rows = positions.rows[: positions.counts.mlm]
    student = Decoder(head.transform(_picked(hidden, rows)), head.weight, head.bias)
    teacher = None
    if teacher_hidden is not None and teacher_head is not None:
        teacher = Decoder(teacher_head.transform(_picked(teacher_hidden, rows)), teacher_head.weight, teacher_head.bias)
    (soft, mlm, right), _ = chunked_loss(
        student, teacher, positions.targets, 1.0, (1.0, 1.0), (False, False, False), False
    )
    return mlm, right, soft


def _picked(hidden: Tensor, rows: Tensor | None) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat if rows is None else flat.index_select(0, rows)


def _full(values: Tensor) -> Tensor:
    """At least fp32: a softmax over 30,522 words in half precision has no digits left."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _soft_positions(attended: Tensor, masked: Tensor, ce_positions: str) -> Tensor:
    if ce_positions == "attended":
        return attended
    if ce_positions == "masked":
        return masked
    raise ValueError(f"ce_positions is 'attended' or 'masked', not {ce_positions!r}")
