"""The triple loss against an independent reference, hand-computed cases and autograd; the chunked form against it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from glue_bench.learning import decoder_loss
from glue_bench.learning.losses import (
    Counts,
    Head,
    LossTerms,
    LossWeights,
    distillation_loss,
    heldout_sums,
    loss_positions,
    mlm_loss,
    triple_loss,
    triple_loss_sums,
)

WEIGHTS = LossWeights(5.0, 2.0, 1.0)
POSITIONS = ("attended", "masked")


def random_batch(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """3 sequences of 4, 7 and 5 attended tokens, 19 words, width 6; one sequence without a masked position."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.full((3, 7), -100)
    labels[0, 1], labels[0, 3], labels[1, 0], labels[1, 6] = 4, 0, 18, 4
    mask = (torch.arange(7) < torch.tensor([[4], [7], [5]])).long()
    return {
        "student_logits": 2 * normal(3, 7, 19),
        "teacher_logits": 2 * normal(3, 7, 19),
        "student_hidden": normal(3, 7, 6),
        "teacher_hidden": normal(3, 7, 6),
        "labels": labels,
        "attention_mask": mask,
    }


def reference(batch: dict[str, Tensor], temperature: float, ce_positions: str) -> tuple[float, float, float]:
    """The three terms of RECIPE's definition, one position at a time in float64."""
    student, teacher = (batch[name].double().numpy() for name in ("student_logits", "teacher_logits"))
    hidden_s, hidden_t = (batch[name].double().numpy() for name in ("student_hidden", "teacher_hidden"))
    soft, mlm, cosine = [], [], []
    for i, j in np.argwhere(batch["attention_mask"].numpy() == 1):
        true = int(batch["labels"][i, j])
        shares = [np.exp(logits[i, j] / temperature) for logits in (teacher, student)]
        p, q = (share / share.sum() for share in shares)
        if ce_positions == "attended" or true != -100:
            soft.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        if true != -100:
            mlm.append(-math.log(np.exp(student[i, j, true]) / np.exp(student[i, j]).sum()))
        a, b = hidden_s[i, j], hidden_t[i, j]
        cosine.append(1 - a @ b / math.sqrt((a @ a) * (b @ b)))
    return temperature**2 * float(np.mean(soft)), float(np.mean(mlm)), float(np.mean(cosine))


@pytest.mark.parametrize("ce_positions", POSITIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
def test_equals_an_independent_reference(temperature: float, ce_positions: str) -> None:
    for seed in range(3):
        batch = random_batch(seed, torch.float64)
        terms = triple_loss(**batch, temperature=temperature, ce_positions=ce_positions)
        expected = reference(batch, temperature, ce_positions)
        assert [float(x) for x in (terms.soft, terms.mlm, terms.cosine)] == pytest.approx(expected, rel=1e-9)
        assert float(terms.total(WEIGHTS)) == pytest.approx(np.dot(WEIGHTS, expected), rel=1e-9)
        in_fp32 = triple_loss(**random_batch(seed, torch.float32), temperature=temperature, ce_positions=ce_positions)
        assert [float(x) for x in (in_fp32.soft, in_fp32.mlm, in_fp32.cosine)] == pytest.approx(expected, rel=1e-5)


def test_a_case_computed_by_hand() -> None:
    """One attended, masked position, two words, T = 2: p = (3/4, 1/4), q = (1/2, 1/2), at right angles."""
    terms = triple_loss(
        student_logits=torch.zeros(1, 1, 2),
        teacher_logits=torch.tensor([[[2 * math.log(3.0), 0.0]]]),
        student_hidden=torch.tensor([[[1.0, 0.0]]]),
        teacher_hidden=torch.tensor([[[0.0, 3.0]]]),
        labels=torch.tensor([[1]]),
        attention_mask=torch.ones(1, 1),
        temperature=2.0,
        ce_positions="attended",
    )
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(terms.soft) == pytest.approx(4 * kl, rel=1e-6)
    assert float(terms.mlm) == pytest.approx(math.log(2.0), rel=1e-6)
    assert float(terms.cosine) == pytest.approx(1.0)
    assert float(terms.total((5.0, 2.0, 1.0))) == pytest.approx(20 * kl + 2 * math.log(2.0) + 1.0, rel=1e-6)


def test_means_over_positions_computed_by_hand() -> None:
    """Three positions, the third padding, the second masked: soft and cosine are means over two, MLM over one."""
    three = math.log(3.0)
    terms = triple_loss(
        student_logits=torch.tensor([[[three, 0.0], [0.0, three], [9.0, 9.0]]]),
        teacher_logits=torch.tensor([[[three, 0.0], [three, 0.0], [9.0, 0.0]]]),
        student_hidden=torch.tensor([[[1.0, 1.0], [2.0, 0.0], [1.0, 0.0]]]),
        teacher_hidden=torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]]),
        labels=torch.tensor([[-100, 0, 1]]),
        attention_mask=torch.tensor([[1, 1, 0]]),
        temperature=1.0,
        ce_positions="attended",
    )
    kl = 0.75 * math.log(3.0) + 0.25 * math.log(1 / 3)  # (3/4, 1/4) against (1/4, 3/4); the first position agrees
    assert float(terms.soft) == pytest.approx(kl / 2, rel=1e-6)
    assert float(terms.mlm) == pytest.approx(math.log(4.0), rel=1e-6)
    assert float(terms.cosine) == pytest.approx(((1 - 1 / math.sqrt(2)) + 2) / 2, rel=1e-6)


def test_temperature_squared_keeps_the_gradient_while_temperatures_rise() -> None:
    """For T -> infinity T^2 KL is (1/2V) sum of squared differences of centred logits (Hinton et al. 2015)."""
    batch = random_batch(0, torch.float64)
    attended = batch["attention_mask"].bool()
    centred = [
        batch[n][attended] - batch[n][attended].mean(-1, keepdim=True) for n in ("student_logits", "teacher_logits")
    ]
    limit = (centred[0] - centred[1]).square().sum(-1).mean() / (2 * 19)
    soft = triple_loss(**batch, temperature=1e3, ce_positions="attended").soft
    assert float(soft) == pytest.approx(float(limit), rel=1e-2)


@pytest.mark.parametrize("ce_positions", POSITIONS)
def test_gradients_pass_gradcheck(ce_positions: str) -> None:
    batch = random_batch(1, torch.float64)
    names = ("student_logits", "student_hidden")
    inputs = tuple(batch[name].requires_grad_() for name in names)

    def total(*tensors: Tensor) -> Tensor:
        given = batch | dict(zip(names, tensors, strict=True))
        return triple_loss(**given, temperature=2.0, ce_positions=ce_positions).total(WEIGHTS)

    assert torch.autograd.gradcheck(total, inputs)


def test_soft_has_the_gradient_of_the_papers_cross_entropy() -> None:
    """Sanh et al. print sum t_i log s_i; it differs from the KL by the teacher's entropy, which has no gradient."""
    batch = random_batch(2, torch.float64)
    logits = batch["student_logits"].requires_grad_()
    soft = triple_loss(**batch, temperature=2.0, ce_positions="attended").soft
    attended = batch["attention_mask"].bool()
    shares = torch.softmax(batch["teacher_logits"][attended] / 2, dim=-1)
    printed = -4 * (shares * torch.log_softmax(logits[attended] / 2, dim=-1)).sum(-1).mean()
    ours, papers = (torch.autograd.grad(value, logits)[0] for value in (soft, printed))
    assert torch.allclose(ours, papers, atol=1e-12)
    assert float((printed - soft).detach()) > 0.1, "the values differ by the entropy"


def test_no_masked_position_gives_zero() -> None:
    batch = random_batch(0, torch.float32)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    batch["student_logits"].requires_grad_()
    terms = triple_loss(**batch, temperature=2.0, ce_positions="masked")
    assert terms.mlm.item() == 0.0 and terms.soft.item() == 0.0
    terms.total(WEIGHTS).backward()
    assert float(batch["student_logits"].grad.abs().max()) == 0.0
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="masked")
    objective, sums, _ = run_chunked(batch, positions.counts, "masked", WEIGHTS)
    assert float(sums.mlm) == 0.0 and float(sums.soft) == 0.0 and bool(torch.isfinite(objective))


def test_all_padding_gives_zero() -> None:
    batch = random_batch(0, torch.float32)
    batch["attention_mask"] = torch.zeros(3, 7)
    terms = triple_loss(**batch, temperature=2.0, ce_positions="attended")
    assert [float(terms.soft), float(terms.mlm), float(terms.cosine)] == [0.0, 0.0, 0.0]


def test_identical_student_and_teacher_give_zero() -> None:
    batch = random_batch(0, torch.float32)
    batch |= {"student_logits": batch["teacher_logits"], "student_hidden": batch["teacher_hidden"]}
    terms = triple_loss(**batch, temperature=2.0, ce_positions="attended")
    assert float(terms.soft) == 0.0
    assert abs(float(terms.cosine)) < 1e-6


@pytest.mark.parametrize("garbage", [1e4, math.nan, math.inf])
def test_padding_never_contributes(garbage: float) -> None:
    clean, dirty = random_batch(0, torch.float64), random_batch(0, torch.float64)
    padding = dirty["attention_mask"] == 0
    for name in ("student_logits", "teacher_logits", "student_hidden", "teacher_hidden"):
        dirty[name][padding] = garbage
    dirty["labels"][padding] = 3
    for batch in (clean, dirty):
        batch["student_logits"].requires_grad_()
        triple_loss(**batch, temperature=2.0, ce_positions="attended").total(WEIGHTS).backward()
    expected, found = (triple_loss(**b, temperature=2.0, ce_positions="attended") for b in (clean, dirty))
    assert found.total(WEIGHTS).item() == expected.total(WEIGHTS).item()
    assert torch.equal(clean["student_logits"].grad, dirty["student_logits"].grad)
    assert float(dirty["student_logits"].grad[padding].abs().max()) == 0.0


def test_no_gradient_reaches_the_teacher() -> None:
    batch = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in random_batch(0, torch.float64).items()}
    triple_loss(**batch, temperature=2.0, ce_positions="attended").total(WEIGHTS).backward()
    assert batch["teacher_logits"].grad is None and batch["teacher_hidden"].grad is None


def test_an_unknown_choice_of_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="'attended' or 'masked', not 'all'"):
        triple_loss(**random_batch(0, torch.float32), temperature=2.0, ce_positions="all")


def test_sums_of_parts_make_the_loss_of_the_whole() -> None:
    """Parts with 2, 2 and 0 masked positions: the mean of their means would be wrong, their sums are not."""
    batch = random_batch(3, torch.float64)
    whole = triple_loss(**batch, temperature=2.0, ce_positions="attended")
    counts, sums, means = Counts(0, 0, 0), [0.0, 0.0, 0.0], []
    for i in range(3):
        part = {name: value[i : i + 1] for name, value in batch.items()}
        terms, more = triple_loss_sums(**part, temperature=2.0, ce_positions="attended")
        counts = counts.plus(more)
        sums = [a + b for a, b in zip(sums, (terms.soft, terms.mlm, terms.cosine), strict=True)]
        means.append(float(terms.divided(more).total(WEIGHTS)))
    together = LossTerms(*sums).divided(counts)
    assert counts == Counts(16, 4, 16)
    assert float(together.total(WEIGHTS)) == pytest.approx(float(whole.total(WEIGHTS)), rel=1e-12)
    assert np.mean(means) != pytest.approx(float(whole.total(WEIGHTS)), rel=1e-3)


# --- the form that training runs -------------------------------------------------------------------------------------


def heads(dtype: torch.dtype) -> tuple[Head, Head, list[Tensor]]:
    """A student's and a teacher's head with a nonlinear transform, and the student's parameters."""
    generator = torch.Generator().manual_seed(9)
    shapes = [(6, 6), (19, 6), (19,)] * 2
    made = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    parameters = [tensor.requires_grad_() for tensor in made[:3]]
    student = Head(lambda hidden: torch.tanh(hidden @ parameters[0]), parameters[1], parameters[2])
    teacher = Head(lambda hidden: torch.tanh(hidden @ made[3]), made[4], made[5])
    return student, teacher, parameters


def run_chunked(
    batch: dict[str, Tensor], counts: Counts, ce_positions: str, weights: LossWeights, temperature: float = 2.0
) -> tuple[Tensor, LossTerms, list[Tensor]]:
    """distillation_loss of a batch by its hidden states; the objective, the sums, the gradients."""
    student, teacher, parameters = heads(batch["student_hidden"].dtype)
    hidden = batch["student_hidden"].clone().requires_grad_()
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions=ce_positions)
    objective, sums = distillation_loss(
        hidden,
        batch["teacher_hidden"],
        student,
        teacher,
        positions,
        counts,
        temperature=temperature,
        weights=weights,
        compiled=False,
    )
    objective.backward()
    return objective.detach(), sums, [hidden.grad, *(parameter.grad for parameter in parameters)]


def run_definition(
    batch: dict[str, Tensor], ce_positions: str, weights: LossWeights, temperature: float = 2.0
) -> tuple[LossTerms, Tensor, list[Tensor]]:
    """triple_loss of the same: the terms, their total, the gradients."""
    student, teacher, parameters = heads(batch["student_hidden"].dtype)
    hidden = batch["student_hidden"].clone().requires_grad_()
    logits = {"student_logits": student(hidden), "teacher_logits": teacher(batch["teacher_hidden"])}
    given = batch | logits | {"student_hidden": hidden}
    terms = triple_loss(**given, temperature=temperature, ce_positions=ce_positions)
    total = terms.total(weights)
    total.backward()
    return terms, total.detach(), [hidden.grad, *(parameter.grad for parameter in parameters)]


@pytest.fixture(params=[(5, 1), (6, 3), (32, 32)])
def small_chunks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Small chunks and passes of 2 rows, so that small batches have several of both; filled up to a multiple or not."""
    chunk, multiple = request.param
    monkeypatch.setattr(decoder_loss, "CPU_CHUNK_ROWS", chunk)
    monkeypatch.setattr(decoder_loss, "CPU_ROWS_MULTIPLE", multiple)
    monkeypatch.setattr(decoder_loss, "CPU_BLOCK_ROWS", 2)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ce_positions", POSITIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_chunked_equals_the_definition(
    dtype: torch.dtype, tolerance: float, temperature: float, ce_positions: str
) -> None:
    batch = random_batch(5, dtype)
    counts = loss_positions(batch["labels"], batch["attention_mask"], ce_positions=ce_positions).counts
    objective, sums, found = run_chunked(batch, counts, ce_positions, WEIGHTS, temperature)
    terms, total, expected = run_definition(batch, ce_positions, WEIGHTS, temperature)
    means = sums.divided(counts)
    for ours, theirs in (
        (objective, total),
        *((getattr(means, n), getattr(terms, n)) for n in ("soft", "mlm", "cosine")),
    ):
        assert float(ours) == pytest.approx(float(theirs), rel=tolerance)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance), float((ours - theirs).abs().max())


@pytest.mark.usefixtures("small_chunks")
def test_no_more_logits_than_a_chunk_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 attended positions of 19 words in chunks: two buffers of a chunk, for the student and for the teacher."""
    made: list[tuple[int, int]] = []
    original = decoder_loss._buffer

    def buffer(rows: int, columns: int, *others: Any) -> Tensor:
        made.append((rows, columns))
        return original(rows, columns, *others)

    monkeypatch.setattr(decoder_loss, "_buffer", buffer)
    batch = random_batch(5, torch.float32)
    counts = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="attended").counts
    run_chunked(batch, counts, "attended", WEIGHTS)
    assert counts.soft == 16
    assert made == [(decoder_loss.CPU_CHUNK_ROWS, 19)] * 2


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "weights", [LossWeights(0.0, 2.0, 1.0), LossWeights(5.0, 0.0, 1.0), LossWeights(5.0, 2.0, 0.0)]
)
def test_chunked_equals_the_definition_without_a_term(weights: LossWeights) -> None:
    batch = random_batch(6, torch.float64)
    counts = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="attended").counts
    objective, sums, found = run_chunked(batch, counts, "attended", weights)
    terms, total, expected = run_definition(batch, "attended", weights)
    assert float(objective) == pytest.approx(float(total), rel=1e-9)
    assert float(sums.divided(counts).mlm) == pytest.approx(float(terms.mlm), rel=1e-9)
    assert float(sums.soft) == 0.0 or weights.soft
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ce_positions", POSITIONS)
def test_micro_batches_add_up_to_the_batch(ce_positions: str) -> None:
    batch = random_batch(7, torch.float32)
    counts = loss_positions(batch["labels"], batch["attention_mask"], ce_positions=ce_positions).counts
    whole = run_chunked(batch, counts, ce_positions, WEIGHTS)
    parts = [run_chunked({n: v[i : i + 1] for n, v in batch.items()}, counts, ce_positions, WEIGHTS) for i in range(3)]
    assert float(sum(part[0] for part in parts)) == pytest.approx(float(whole[0]), rel=1e-5)
    assert torch.allclose(torch.cat([part[2][0] for part in parts]), whole[2][0], atol=1e-6)
    for i in range(1, 4):
        assert torch.allclose(sum(part[2][i] for part in parts), whole[2][i], atol=1e-5)


def test_chunked_gradients_pass_gradcheck_and_scale() -> None:
    """backward with another gradient than 1, and numerical differentiation through the custom function."""
    batch = random_batch(8, torch.float64)
    student, teacher, parameters = heads(torch.float64)
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="attended")
    settings = {"temperature": 2.0, "weights": WEIGHTS, "compiled": False}

    def objective(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = Head(student.transform, weight, bias)
        value, _ = distillation_loss(
            hidden, batch["teacher_hidden"], head, teacher, positions, positions.counts, **settings
        )
        return 3.0 * value

    hidden = batch["student_hidden"].requires_grad_()
    assert torch.autograd.gradcheck(objective, (hidden, parameters[1], parameters[2]))


def test_the_fused_form_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile is given on a GPU, run here without a compiler."""
    monkeypatch.setattr(decoder_loss, "_fused_loss", lambda: decoder_loss._whole_loss)
    batch = random_batch(5, torch.float64)
    student, teacher, _ = heads(torch.float64)
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="attended")
    found = []
    for compiled in (False, True):
        hidden = batch["student_hidden"].clone().requires_grad_()
        objective, sums = distillation_loss(
            hidden,
            batch["teacher_hidden"],
            student,
            teacher,
            positions,
            positions.counts,
            temperature=2.0,
            weights=WEIGHTS,
            compiled=compiled,
        )
        found.append(
            [sums.soft, sums.mlm, objective.detach(), *torch.autograd.grad(objective, [hidden, student.weight])]
        )
    for blocks, fused in zip(*found, strict=True):
        assert torch.allclose(blocks, fused, rtol=1e-9, atol=1e-12)


def failing_compiler(message: str, kind: type[Exception], calls: list[int]) -> Any:
    """A compiled function that fails when it is first called, as torch.compile's do."""

    def call(*_: Any) -> Any:
        calls.append(1)
        raise kind(message)

    return lambda: call


def test_where_nothing_compiles_the_blockwise_loss_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried once, then bit for bit the loss in blocks; the reason is kept for the record."""
    calls: list[int] = []
    message = "Failed to find C compiler. Please specify via CC environment variable.\nMore lines"
    monkeypatch.setattr(decoder_loss, "_compile_failures", [])
    monkeypatch.setattr(decoder_loss, "_fused_loss", failing_compiler(message, RuntimeError, calls))
    batch = random_batch(5, torch.float32)
    student, teacher, _ = heads(torch.float32)
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="attended")
    settings = {"temperature": 2.0, "weights": WEIGHTS}
    found = []
    for compiled in (False, True, True):
        assert decoder_loss.compile_failure() == "" or len(found) == 2
        hidden = batch["student_hidden"].clone().requires_grad_()
        objective, _ = distillation_loss(
            hidden, batch["teacher_hidden"], student, teacher, positions, positions.counts, **settings,
            compiled=compiled,
        )  # fmt: skip
        found.append([objective.detach(), *torch.autograd.grad(objective, [hidden, student.weight, student.bias])])
    assert len(calls) == 1
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], one, strict=True))
    expected = "RuntimeError: Failed to find C compiler. Please specify via CC environment variable."
    assert decoder_loss.compile_failure() == expected


def test_a_full_gpu_is_no_failure_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory is said as what it is: blocks would not help, and the next batch may fit."""
    monkeypatch.setattr(decoder_loss, "_compile_failures", [])
    monkeypatch.setattr(decoder_loss, "_fused_loss", failing_compiler("full", torch.OutOfMemoryError, []))
    batch = random_batch(5, torch.float32)
    student, _, _ = heads(torch.float32)
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="none")
    with pytest.raises(torch.OutOfMemoryError):
        mlm_loss(batch["student_hidden"], student, positions, 4, compiled=True)
    assert decoder_loss.compile_failure() == ""


@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_decoders_get_no_gradient(frozen: int) -> None:
    batch = random_batch(5, torch.float32)
    student, _, parameters = heads(torch.float32)
    parameters[frozen].requires_grad_(False)
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="none")
    objective, _ = mlm_loss(batch["student_hidden"], student, positions, positions.counts.mlm, compiled=False)
    objective.backward()
    assert [parameter.grad is None for parameter in parameters] == [i == frozen for i in range(3)]


@pytest.mark.usefixtures("small_chunks")
def test_mlm_loss_is_the_cross_entropy() -> None:
    batch = random_batch(4, torch.float64)
    student, _, parameters = heads(torch.float64)
    hidden = batch["student_hidden"].requires_grad_()
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="none")
    objective, total = mlm_loss(hidden, student, positions, 4, compiled=False)
    expected = torch.nn.functional.cross_entropy(student(hidden).flatten(0, 1), batch["labels"].flatten())
    assert float(objective) == pytest.approx(float(expected), rel=1e-12)
    assert float(total) == pytest.approx(4 * float(expected), rel=1e-12)
    inputs = [hidden, *parameters]
    for ours, theirs in zip(torch.autograd.grad(objective, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_bf16_autocast_stays_near_fp32() -> None:
    """Products in bf16, the softmax in fp32; gradients come back in the parameters' type."""
    batch = random_batch(5, torch.float32)
    counts = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="attended").counts
    exact, _, expected = run_chunked(batch, counts, "attended", WEIGHTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, sums, found = run_chunked(batch, counts, "attended", WEIGHTS)
    assert sums.soft.dtype == torch.float32
    assert float(rough) == pytest.approx(float(exact), rel=0.02)
    assert float(rough) != float(exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=0.05 * float(theirs.abs().max()))


@pytest.mark.usefixtures("small_chunks")
def test_heldout_sums() -> None:
    batch = random_batch(4, torch.float64)
    student, teacher, _ = heads(torch.float64)
    with torch.no_grad():
        logits, given = student(batch["student_hidden"]), teacher(batch["teacher_hidden"])
    masked = (batch["labels"] != -100) & (batch["attention_mask"] == 1)
    batch["labels"][0, 1] = int(logits[0, 1].argmax())  # so that not everything is wrong
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="none")
    mlm, right, kl = heldout_sums(batch["student_hidden"], student, batch["teacher_hidden"], teacher, positions)
    true = batch["labels"][masked]
    assert float(mlm) == pytest.approx(float(-torch.log_softmax(logits[masked], -1)[range(4), true].sum()), rel=1e-9)
    assert int(right) == int((logits[masked].argmax(-1) == true).sum()) >= 1
    shares = torch.softmax(given[masked], -1)
    expected = (shares * (shares.log() - torch.log_softmax(logits[masked], -1))).sum()
    assert float(kl) == pytest.approx(float(expected), rel=1e-9)
    mlm_alone, right_alone, nothing = heldout_sums(batch["student_hidden"], student, None, None, positions)
    assert (float(mlm_alone), int(right_alone), float(nothing)) == pytest.approx((float(mlm), int(right), 0.0))


def test_identical_models_give_exactly_zero_in_chunks() -> None:
    batch = random_batch(2, torch.float32)
    student, _, _ = heads(torch.float32)
    positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="attended")
    hidden = batch["teacher_hidden"]
    _, sums = distillation_loss(
        hidden, hidden, student, student, positions, positions.counts, temperature=2.0, weights=WEIGHTS, compiled=False
    )
    assert float(sums.soft) == 0.0
    assert abs(float(sums.cosine)) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(compiled: bool) -> None:
    batch = random_batch(5, torch.float32)
    student, teacher, _ = heads(torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        weights = [student.weight.detach().to(device).requires_grad_(), student.bias.detach().to(device)]
        positions = loss_positions(batch["labels"], batch["attention_mask"], ce_positions="attended").to(device)
        objective, _ = distillation_loss(
            batch["student_hidden"].to(device),
            batch["teacher_hidden"].to(device),
            Head(torch.tanh, *weights),
            Head(torch.tanh, teacher.weight.to(device), teacher.bias.to(device)),
            positions,
            positions.counts,
            temperature=2.0,
            weights=WEIGHTS,
            compiled=compiled and device == "cuda",
        )
        objective.backward()
        results.append((objective.detach().cpu(), weights[0].grad.cpu()))
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert torch.allclose(on_cpu, on_gpu, rtol=1e-4, atol=1e-5)
