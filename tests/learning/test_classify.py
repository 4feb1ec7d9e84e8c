"""The fine-tuning loop: the gradient of the batch, however it is computed, and shortcuts that change no result."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_classifiers import RECIPE, WORDS, changed, classifier, examples, labels
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from glue_bench.data.batching import Encoded
from glue_bench.errors import StepError
from glue_bench.learning import classify, dropout, fused_linear
from glue_bench.learning.classify import (
    Forward,
    Recipe,
    SoftTargets,
    is_out_of_memory,
    longest_input,
    predict,
    task_loss,
    train,
)
from glue_bench.learning.dropout import MaskStream, StreamDropout, cheap_dropout
from glue_bench.learning.first_position import first_position_only
from glue_bench.learning.graphs import StepGraphs
from glue_bench.learning.layer_parts import PARTS
from glue_bench.learning.narrowing import narrowed_vocabulary


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def differences(model: nn.Module, other: nn.Module) -> float:
    theirs = weights(other)
    return max(float((value - theirs[name]).abs().max()) for name, value in weights(model).items())


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_hard_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0]])
    loss = task_loss(logits, torch.tensor([0, 0]), None, weight=0.0, temperature=1.0)
    assert loss.item() == pytest.approx(np.log(2) - np.log(3 / 4))
    squared = task_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 5.0]), None, weight=0.0, temperature=1.0)
    assert squared.item() == pytest.approx(1.0 + 4.0)


def test_soft_loss_by_hand() -> None:
    """T = 2, teacher (3/4, 1/4) and student (1/2, 1/2) at that temperature."""
    teacher, student = torch.tensor([[2 * np.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    kl = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    loss = task_loss(student, torch.tensor([1]), teacher, weight=0.25, temperature=2.0)
    assert loss.item() == pytest.approx(0.75 * np.log(2) + 0.25 * 4 * kl, rel=1e-6)
    assert task_loss(teacher, torch.tensor([1]), teacher, weight=1.0, temperature=2.0).item() == pytest.approx(
        0, abs=1e-7
    )
    loss = task_loss(torch.tensor([[1.0]]), torch.tensor([3.0]), torch.tensor([[4.0]]), weight=0.25, temperature=2.0)
    assert loss.item() == pytest.approx(0.75 * 4 + 0.25 * 9)


# -- training against an independent reference -------------------------------------------------------------------------


def reference(model: PreTrainedModel, encoded: Encoded, wanted: np.ndarray, recipe: Recipe) -> None:
    """The protocol written down plainly: padded batches, the model's own loss, plain AdamW, a schedule by formula."""
    model.train()
    decays = [one for one in model.parameters() if one.ndim > 1]
    others = [one for one in model.parameters() if one.ndim <= 1]
    groups = [{"params": decays, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, foreach=False, fused=False)
    epochs = range(recipe.epochs)
    batches = [
        batch
        for epoch in epochs
        for batch in classify.training_batches(encoded, recipe.batch_size, seed=recipe.seed, epoch=epoch)
    ]
    warm = int(np.ceil(recipe.warmup * len(batches)))
    for step, batch in enumerate(batches):
        ids = torch.full((len(batch.index), 32), 1)
        for row, example in enumerate(batch.index):
            length = encoded.lengths[example]
            ids[row, :length] = encoded.ids[encoded.starts[example] : encoded.starts[example] + length].long()
        loss = model(input_ids=ids, attention_mask=(ids != 1).long(), labels=torch.from_numpy(wanted[batch.index])).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        rate = step / warm if step < warm else (len(batches) - step) / (len(batches) - warm)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * rate
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


@pytest.mark.parametrize(("family", "decay"), [("bert", 0.0), ("bert", 0.1), ("distilbert", 0.0), ("roberta", 0.0)])
def test_training_equals_a_plain_reference(family: str, decay: float) -> None:
    """Grouped lengths, dropped masks, narrowed words and the short last layer change nothing but the time."""
    ours = classifier(family).double()  # in fp32 Adam makes whole steps of the rounding errors of gradients that are 0
    theirs = copy.deepcopy(ours)
    encoded, wanted, recipe = examples(30, words=20), labels(30), changed(RECIPE, weight_decay=decay)
    done = train(ours, encoded, wanted, recipe, None, "test")
    reference(theirs, encoded, wanted, recipe)
    assert differences(ours, classifier(family)) > 1e-3
    assert differences(ours, theirs) < 1e-8
    assert (done.steps, done.examples, done.tokens) == (8, 60, 2 * encoded.tokens)
    assert not ours.training and ours.config._attn_implementation == "sdpa"
    assert not any(isinstance(module, StreamDropout) for module in ours.modules())


def test_weights_move_from_their_file_to_memory_when_they_train(tmp_path: Path) -> None:
    """Under the same names, and what was tied stays tied."""
    classifier(vocab_size=4 * WORDS).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    before = {name: (one, one.detach()) for name, one in model.named_parameters()}
    train(model, examples(16), labels(16), RECIPE, None, "test")  # knows a quarter of the words meanwhile
    for name, one in model.named_parameters():
        assert one is before[name][0] and one.data_ptr() != before[name][1].data_ptr(), name
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    classify.own_memory(again)
    for name, one in again.named_parameters():
        assert torch.equal(one, before[name][1]), name  # which training did not write to
    tied = AutoModelForMaskedLM.from_config(model.config)
    decoder = tied.get_output_embeddings()
    assert decoder.weight is tied.get_input_embeddings().weight
    place = decoder.weight.data_ptr()
    classify.own_memory(tied)
    assert decoder.weight is tied.get_input_embeddings().weight and decoder.weight.data_ptr() != place


def test_moments_that_faded_are_cleared_every_hundred_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    at, step = [], [0]

    def count(usual: Any) -> Any:
        return lambda *given: (step.__setitem__(0, step[0] + 1), usual(*given))[1]

    monkeypatch.setattr(classify._Updates, "_step", count(classify._Updates._step))
    monkeypatch.setattr(classify, "clear_faded_moments", lambda optimiser: at.append((step[0], len(optimiser.state))))
    model = classifier()
    train(model, examples(20), labels(20), changed(RECIPE, batch_size=2, epochs=25), None, "test")
    assert at == [(100, len(list(model.parameters()))), (200, len(list(model.parameters())))]


def test_regression_is_trained_on_squared_errors() -> None:
    model, encoded = classifier(outputs=1), examples(40)
    values = (encoded.lengths / 4.0).astype(np.float64)
    done = train(model, encoded, values, changed(RECIPE, epochs=10, learning_rate=5e-3), None, "test")
    first = np.mean(values[classify.training_batches(encoded, 8, seed=0, epoch=0)[0].index] ** 2)
    assert done.first_loss == pytest.approx(first, rel=0.5)
    assert done.last_loss < 0.5 * done.first_loss


def test_the_result_is_a_function_of_the_seed() -> None:
    def trained(seed: int) -> PreTrainedModel:
        torch.manual_seed(int(torch.randint(1000, ()).item()))  # whatever the state of torch's generator is
        model = classifier(dropout=0.3)
        torch.rand(seed + 3)
        train(model, examples(30), labels(30), changed(RECIPE, seed=seed), None, "test")
        return model

    assert differences(trained(1), trained(1)) == 0.0
    assert differences(trained(1), trained(2)) > 1e-4


def test_training_leaves_the_callers_random_state_alone() -> None:
    model = classifier(dropout=0.1)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(model, examples(16), labels(16), RECIPE, None, "test")
    assert torch.equal(torch.rand(3), wanted)


def test_soft_targets_pull_towards_the_teacher() -> None:
    encoded, wanted = examples(32), labels(32)
    teacher = torch.from_numpy(np.where(wanted[:, None] == [0, 1], -3.0, 3.0).astype(np.float32))  # the opposite
    model = classifier()
    recipe = changed(RECIPE, epochs=30, learning_rate=5e-3)
    train(model, encoded, wanted, recipe, SoftTargets(teacher, weight=1.0, temperature=2.0), "test")
    assert (predict(model, encoded, "fp32").argmax(1) == 1 - wanted).mean() > 0.9


def test_nan_is_an_error_that_says_where() -> None:
    model = classifier()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(StepError, match=r"^test: the loss is nan at step 1 of 8; lower learning_rate"):
        train(model, examples(30), labels(30), RECIPE, None, "test")
    assert model.get_input_embeddings().num_embeddings == WORDS  # whole again after the error


# -- memory ------------------------------------------------------------------------------------------------------------


NO_MEMORY = {
    "torch on CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CUDA": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "torch on the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "torch on other CPUs": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    "NumPy": MemoryError("Unable to allocate 3.64 TiB for an array"),
}


def small_memory(
    monkeypatch: pytest.MonkeyPatch, most: int, error: Exception = NO_MEMORY["torch on CUDA"]
) -> list[int]:
    """Let forward passes of more than `most` examples run out of memory; returns the sizes that were tried."""
    tried: list[int] = []
    plain = Forward.__call__

    def limited(self: Forward, encoded: Encoded, batch: Any) -> torch.Tensor:
        tried.append(len(batch.index))
        if len(batch.index) > most:
            raise error
        return plain(self, encoded, batch)

    monkeypatch.setattr(Forward, "__call__", limited)
    return tried


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = classifier().double(), classifier().double()
    encoded, wanted = examples(32), labels(32)
    undisturbed = train(whole, encoded, wanted, RECIPE, None, "test")
    tried = small_memory(monkeypatch, 3)
    done = train(parts, encoded, wanted, RECIPE, None, "test")
    assert tried[:3] == [8, 4, 2] and set(tried[3:]) == {2}
    assert done.micro_batch_size == 2 and undisturbed.micro_batch_size == 8
    assert len(done.notes) == 2 and "micro-batches of 2, the batch stays 8" in done.notes[1]
    assert undisturbed.notes == () and done.steps == undisturbed.steps
    assert done.last_loss == pytest.approx(undisturbed.last_loss, abs=1e-5)
    assert differences(whole, parts) < 1e-8


def test_no_memory_for_the_optimisers_state_halves_the_micro_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its moments are made at the first step, when the gradients are there: nothing has been updated yet."""
    whole, parts = classifier().double(), classifier().double()
    train(whole, examples(32), labels(32), RECIPE, None, "test")
    step, calls = torch.optim.AdamW.step, []

    def first_without_memory(self: torch.optim.AdamW, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", first_without_memory)
    done = train(parts, examples(32), labels(32), RECIPE, None, "test")
    assert len(calls) == done.steps + 1 and done.micro_batch_size == 4
    assert differences(whole, parts) < 1e-8


def test_half_made_optimiser_states_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW notes a parameter's step before it has its moments; where these find no room, that is no state."""
    whole, parts = classifier().double(), classifier().double()
    train(whole, examples(32), labels(32), RECIPE, None, "test")
    zeros, calls = torch.zeros_like, []

    def fifth_without_memory(*arguments: Any, **settings: Any) -> Any:
        if settings.get("memory_format") is torch.preserve_format:  # as AdamW makes them
            calls.append(1)
            if len(calls) == 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*arguments, **settings)

    monkeypatch.setattr(torch, "zeros_like", fifth_without_memory)
    done = train(parts, examples(32), labels(32), RECIPE, None, "test")
    assert len(calls) > 5 and done.micro_batch_size == 4
    assert differences(whole, parts) < 1e-8


def test_no_memory_for_one_example_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, 0)
    with pytest.raises(StepError, match="test: out of memory with one example at a time; lower max_length"):
        train(classifier(), examples(8), labels(8), RECIPE, None, "test")


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_whoever_runs_out_of_memory_it_is_noticed(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    small_memory(monkeypatch, 4, error)
    done = train(classifier(), examples(8), labels(8), changed(RECIPE, epochs=1), None, "test")
    assert done.micro_batch_size == 4 and len(done.notes) == 1
    assert predict(classifier(), examples(8), "fp32").shape == (8, 2)


def test_the_cpus_own_message_is_known() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, 0, RuntimeError("shapes cannot be multiplied"))
    for work in (
        lambda: train(classifier(), examples(8), labels(8), RECIPE, None, "test"),
        lambda: predict(classifier(), examples(8), "fp32"),
    ):
        with pytest.raises(RuntimeError, match="shapes"):
            work()


def test_prediction_survives_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = classifier(), examples(50)
    wanted = predict(model, encoded, "fp32")
    small_memory(monkeypatch, 5)
    assert np.allclose(predict(model, encoded, "fp32"), wanted, atol=1e-6)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# -- prediction --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_prediction_equals_one_example_at_a_time(family: str) -> None:
    model, encoded = classifier(family, outputs=3), examples(25)
    logits = predict(model, encoded, "fp32")
    for i in (0, 7, 24):
        ids = encoded.ids[encoded.starts[i] : encoded.starts[i + 1]].long()[None]
        with torch.no_grad():
            assert np.allclose(logits[i], model(input_ids=ids).logits[0], atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prediction_does_not_depend_on_the_number_of_threads(
    precision: str, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    monkeypatch.setitem(classify.PREDICTED_TOKENS, "cpu", 40)
    model, encoded = classifier(), examples(60)
    together = predict(model, encoded, precision)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert np.array_equal(predict(model, encoded, precision), together)


def test_an_error_or_interrupt_while_predicting_ends_all_threads(
    monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    monkeypatch.setitem(classify.PREDICTED_TOKENS, "cpu", 1)  # a batch an example
    calls = []

    def interrupted(self: Forward, encoded: Encoded, batch: Any) -> torch.Tensor:
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Forward, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(classifier(), examples(60), "fp32")
    assert len(calls) <= 2
    assert torch.get_num_threads() == 2


def test_widths_are_rounded_where_products_are_in_bf16() -> None:
    """Short batches and fp32 keep their width; every other one is a multiple of 8, at most max_length."""
    model = classifier()
    encoded = examples(1)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True)
    for length in (5, 32, 33, 37):
        ids = torch.randint(2, WORDS, (length + 39,), dtype=torch.int32)
        one = replace(
            encoded, ids=ids, types=None, starts=torch.tensor([0, length]), lengths=np.array([length]), max_length=39
        )
        exact, rounded = predict(model, one, "fp32"), predict(model, one, "bf16")
        assert np.allclose(exact, rounded, atol=0.05)
    assert seen[0::2] == [5, 32, 33, 37] and seen[1::2] == [5, 32, 36, 39]


def test_the_head_computes_in_full_precision() -> None:
    """In bf16 the outputs of a regression would be one of a few values between two powers of two."""
    model, encoded = classifier(outputs=1), examples(60)
    logits = torch.from_numpy(predict(model, encoded, "bf16"))
    assert float((logits == logits.bfloat16().float()).float().mean()) < 0.1
    train(model, encoded, np.full(60, 3.0), changed(RECIPE, precision="bf16"), None, "test")
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_bias_and_gelu_within_the_product_change_nothing(
    family: str, activation: str, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    """Only the exact GELU goes into the product; plain layers say the same, and the model is as it was afterwards."""
    product = fused_linear.onednn_linear()
    if product is None:
        pytest.skip("no oneDNN that does bf16 on this CPU")
    model = classifier(family, **{"activation" if family == "distilbert" else "hidden_act": activation})
    encoded, calls = examples(10), []

    def counted(values: torch.Tensor, weight: torch.Tensor, bias: Any, then: str, *others: Any) -> torch.Tensor:
        calls.append(then)
        assert values.dtype == weight.dtype == torch.bfloat16
        return product(values, weight, bias, then, *others)

    monkeypatch.setattr(fused_linear, "onednn_linear", lambda: counted)
    monkeypatch.setattr(classify, "written_out_layers", lambda *_, **__: contextlib.nullcontext())
    fused, full = predict(model, encoded, "bf16"), predict(model, encoded, "fp32")
    assert calls.count("gelu") == (2 if activation == "gelu" else 0) and calls.count("none") >= 10
    assert not any("forward" in vars(module) for module in model.modules())
    monkeypatch.setattr(fused_linear, "onednn_linear", lambda: None)
    plain = predict(model, encoded, "bf16")
    assert np.abs(fused - full).max() < 2 * np.abs(plain - full).max() + 0.01
    assert not np.array_equal(fused, full)


def test_queries_keys_and_values_share_a_cast_but_never_another_tensors() -> None:
    low = fused_linear._Cast()
    first, second = torch.randn(3), torch.randn(3)
    assert low(first) is low(first)
    assert torch.equal(low(second), second.bfloat16()) and torch.equal(low(first), first.bfloat16())
    already = first.bfloat16()
    assert low(already) is already


def test_bf16_is_used_where_asked_for() -> None:
    model, encoded = classifier(), examples(10)
    full, half = predict(model, encoded, "fp32"), predict(model, encoded, "bf16")
    assert full.dtype == half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.1
    done = train(model, encoded, labels(10), changed(RECIPE, precision="bf16"), None, "test")
    assert np.isfinite(done.last_loss) and next(model.parameters()).dtype == torch.float32


def test_no_limit_of_positions_is_none() -> None:
    """XLNet's configuration says -1."""
    model = classifier()
    model.config.max_position_embeddings = -1
    assert longest_input(model, SimpleNamespace(model_max_length=10**30), 128) == 128


@pytest.mark.parametrize(("family", "positions"), [("bert", 40), ("roberta", 38), ("distilbert", 64)])
def test_longest_input(family: str, positions: int) -> None:
    """RoBERTa counts positions from the padding's number plus one (here 2), so two of its 40 are never used."""

    class Words:
        pad_token_id, model_max_length = 1, 64

    model = classifier(family)
    assert longest_input(model, Words(), 128) == positions
    assert longest_input(model, Words(), 16) == 16


# -- the last layer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(PARTS))
@pytest.mark.parametrize("padded", [False, True])
def test_the_last_layer_is_needed_at_the_first_position_only(family: str, padded: bool) -> None:
    model = classifier(family)
    ids = torch.randint(2, WORDS, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids[mask == 0] = 1
    inputs = {"input_ids": ids} | ({"attention_mask": mask} if padded else {})

    def outputs_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(**inputs).logits
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    whole = outputs_and_gradients()
    with first_position_only(model):
        assert model.base_model(**inputs).last_hidden_state.shape[1] == 1
        short = outputs_and_gradients()
    assert model.base_model(**inputs).last_hidden_state.shape[1] == 9
    assert len(whole) == len(short)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, short, strict=True))


# -- dropout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("probability", [0.1, 0.25, 0.9, 1e-5])
def test_masks_drop_with_the_probability_and_keep_the_mean(probability: float, bits: int) -> None:
    stream = MaskStream(0, bits=bits)
    count = 4_000_000 if bits == 16 else 1000
    mask = torch.cat([stream.mask(torch.empty(count), probability) for _ in range(4_000_000 // count)])
    count = len(mask)
    values = mask.unique()
    assert values[0] == 0 and values[1] == pytest.approx(1 / (1 - probability)) and len(values) == 2
    deviation = (probability * (1 - probability) / count) ** 0.5
    per_mask = 1 / 65536 if bits == 16 else 4 / 256 / 2 / 4000**0.5  # a threshold's rounding; 4,000 masks of 8 bits
    assert abs(float((mask == 0).float().mean(dtype=torch.float64)) - probability) < 4 * deviation + per_mask


def test_the_threshold_is_rounded_at_random_so_that_the_probability_is_exact() -> None:
    """A probability of a quarter of one of the 65,536 levels: most masks drop nothing, the others one in 65,536."""
    stream = MaskStream(1)
    probability = 0.25 / 65536
    dropped = np.array([int((stream.mask(torch.empty(65536 * 4), probability) == 0).sum()) for _ in range(600)])
    assert abs(dropped.mean() - 1.0) < 0.4  # one in 262,144 on average
    assert 0.68 < (dropped == 0).mean() < 0.84  # 3/4 with the lower threshold, and e^-4 of the rest


@pytest.mark.parametrize("bits", [8, 16])
def test_elements_are_independent(bits: int) -> None:
    mask = MaskStream(2, bits=bits).mask(torch.empty(1_000_000), 0.3) == 0
    kept = mask.double() - mask.double().mean()
    for lag in (1, 2, 3, 4, 8, 1000):
        assert abs(float((kept[lag:] * kept[:-lag]).mean())) < 4 * 0.21 / 1000


def test_masks_follow_from_the_key() -> None:
    stream, like = MaskStream(7, 1), torch.empty(33, 5)
    first, second = stream.mask(like, 0.5), stream.mask(like, 0.5)
    assert not torch.equal(first, second)
    stream.restart(7, 1)
    assert torch.equal(stream.mask(like, 0.5), first)
    stream.restart(7, 2)
    assert not torch.equal(stream.mask(like, 0.5), first)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_cheap_dropout_has_torchs_distribution(family: str) -> None:
    """Mean and spread of the logits over many draws, attention with padding included, against nn.Dropout's."""
    model = classifier(family, dropout=0.2).train()
    ids = torch.randint(2, WORDS, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    inputs = {"input_ids": ids.repeat(3000, 1), "attention_mask": mask.repeat(3000, 1)}

    def drawn() -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).logits.view(3000, 2, 2).double()

    torch.manual_seed(0)
    theirs = drawn()
    with cheap_dropout(model, MaskStream(3)):
        assert model.training and all(module.training for module in model.modules())
        ours = drawn()
    deviation = theirs.std(0) / 3000**0.5
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 5 * deviation).all())
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.1)
    assert float(theirs.std(0).min()) > 0.01


@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_training_uses_our_attention(family: str, probability: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's has the same distribution, so nothing else would notice that the fast one is not taken."""

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("torch's attention, with its dropout")

    model = classifier(family, dropout=probability).train()
    ids = torch.randint(2, WORDS, (2, 7))
    padded = torch.ones_like(ids)
    padded[1, 4:] = 0
    monkeypatch.setattr(dropout, "sdpa_attention_forward", never)
    with cheap_dropout(model, MaskStream(0)), first_position_only(model):
        for mask in (None, padded.bool()[:, None, None, :]):
            model(input_ids=ids, attention_mask=mask).logits.sum().backward()


def test_without_dropout_our_attention_has_torchs_values_and_gradients() -> None:
    model = classifier().double().train()
    ids = torch.randint(2, WORDS, (3, 6))
    padded = torch.ones_like(ids)
    padded[1, 4:] = 0
    found = []
    for stream in (None, MaskStream(0)):
        with cheap_dropout(model, stream) if stream else contextlib.nullcontext():
            logits = model(input_ids=ids, attention_mask=padded).logits
            gradients = torch.autograd.grad(logits[:, 0].sum(), list(model.parameters()), allow_unused=True)
        found.append([logits, *(one for one in gradients if one is not None)])
    assert len(found[0]) > 10
    for wanted, got in zip(*found, strict=True):
        assert torch.allclose(got, wanted, atol=1e-10)


def test_where_nothing_trains_the_attention_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    theirs = dropout.sdpa_attention_forward
    monkeypatch.setattr(dropout, "sdpa_attention_forward", lambda *a, **k: (calls.append(1), theirs(*a, **k))[1])
    model, ids = classifier().train(), torch.randint(2, WORDS, (3, 6))
    with cheap_dropout(model, MaskStream(0)), torch.no_grad():
        model(input_ids=ids)
    assert len(calls) == model.config.num_hidden_layers


@pytest.mark.parametrize("mask", ["none", "keys", "all", "added"])
@pytest.mark.parametrize("queries", [1, 9])
def test_attention_in_products_has_torchs_values(mask: str, queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradient in bf16: short inputs in products, longer ones by torch, whatever shape the mask has."""
    torch.manual_seed(0)
    keep = torch.ones(2, 1, 1 if mask == "keys" else queries, 9, dtype=torch.bool)
    keep[1, ..., 6:] = False
    added = torch.zeros(keep.shape).masked_fill(keep.logical_not(), -1e9)
    given = {"none": None, "keys": keep, "all": keep, "added": added.bfloat16()}[mask]
    query, key, value = (torch.randn(2, 3, length, 32).bfloat16() for length in (queries, 9, 9))  # enough for oneDNN
    module = nn.Module()
    module.is_causal = False
    exact = [one.float() for one in (query, key, value)]
    wanted = dropout.sdpa_attention_forward(module, *exact, added if mask == "added" else given, scaling=0.3)
    monkeypatch.setattr(dropout, "sdpa_attention_forward", lambda *_, **__: ("torch", None))
    found, _ = dropout.attention(module, query, key, value, given, scaling=0.3)
    assert found.dtype == torch.bfloat16 and found.shape == (2, queries, 3, 32)
    assert torch.allclose(found.float(), wanted[0], atol=0.03)
    monkeypatch.setattr(dropout, "SHORT", 8)
    assert dropout.attention(module, query, key, value, given, scaling=0.3)[0] == "torch"


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_narrowed_model_says_the_same() -> None:
    for family in ("bert", "roberta"):
        model, encoded = classifier(family), examples(20, words=15)
        wanted = predict(model, encoded, "fp32")
        before = weights(model)
        with narrowed_vocabulary(model, encoded, wanted=True) as known:
            assert model.get_input_embeddings().num_embeddings == 15
            assert np.array_equal(predict(model, known, "fp32"), wanted)
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
        assert np.array_equal(predict(model, encoded, "fp32"), wanted)


def test_the_vocabulary_stays_whole_where_that_would_not_be_exact_or_not_pay() -> None:
    few, many = examples(20, words=15), examples(200)
    for encoded, wanted in ((few, False), (many, True)):
        model = classifier()
        with narrowed_vocabulary(model, encoded, wanted=wanted) as known:
            assert known is encoded and model.get_input_embeddings().num_embeddings == WORDS
    shared = classifier()
    shared.other = nn.Linear(16, WORDS)
    shared.other.weight = shared.get_input_embeddings().weight
    with narrowed_vocabulary(shared, few, wanted=True) as known:
        assert known is few


# -- recorded steps ----------------------------------------------------------------------------------------------------


def test_a_record_says_where_steps_could_not_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, refused = classifier(dropout=0.1), classifier(dropout=0.1)
    wanted = train(plain, examples(64), labels(64), RECIPE, None, "test")
    monkeypatch.setattr(classify, "StepGraphs", lambda device: StepGraphs(device, refuse))
    done = train(refused, examples(64), labels(64), RECIPE, None, "test")
    assert wanted.notes == () and len(done.notes) == 1
    assert "kernel by kernel, more slowly (RuntimeError: operation not permitted" in done.notes[0]
    assert differences(plain, refused) == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_replayed_steps_are_those_of_one_kernel_after_the_other(
    precision: str, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, a last batch that is smaller, widths of 8 to 24, with and without decay: the same numbers."""
    recipe = changed(RECIPE, epochs=6, precision=precision, weight_decay=decay)
    made: list[StepGraphs] = []
    monkeypatch.setattr(classify, "StepGraphs", lambda device: made.append(StepGraphs(device)) or made[-1])
    replayed, again, plain = (classifier(dropout=0.1).cuda() for _ in range(3))
    first = train(replayed, examples(60), labels(60), recipe, None, "test")
    train(again, examples(60), labels(60), recipe, None, "test")
    assert len(made[0]._recorded) >= 2
    monkeypatch.setattr(classify, "StepGraphs", lambda device: StepGraphs(torch.device("cpu")))
    second = train(plain, examples(60), labels(60), recipe, None, "test")
    assert differences(replayed, again) == 0.0
    assert differences(replayed, plain) < 1e-5
    assert first.last_loss == pytest.approx(second.last_loss, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("soft", [False, True])
def test_long_batches_can_be_recorded(family: str, soft: bool) -> None:
    """More than 3,072 tokens, from where torch sorts the words for the word vectors' gradient; teachers' logits too."""
    model = classifier(family, max_position_embeddings=160, pad_token_id=1).cuda()
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(2, WORDS, 64 * 128 + 128).astype(np.int32))
    starts = torch.arange(65) * 128
    encoded = Encoded(ids, None, starts, np.full(64, 128), 1, 128, 0)
    recipe = changed(RECIPE, batch_size=32, epochs=4, precision="bf16")
    teacher = SoftTargets(torch.randn(64, 2).cuda(), 0.5, 2.0) if soft else None
    made: list[StepGraphs] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(classify, "StepGraphs", lambda device: made.append(StepGraphs(device)) or made[-1])
        done = train(model, encoded, labels(64), recipe, teacher, "test")
    assert len(made[0]._recorded) == 1 and made[0].record is not None
    assert np.isfinite(done.last_loss)
