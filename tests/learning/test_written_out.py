"""Layers written out in bf16 against the formula in fp64, against transformers' modules, and where they stay out."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_classifiers import RECIPE, changed, classifier, examples, labels
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from glue_bench.learning import classify, written_out
from glue_bench.learning.classify import predict, train
from glue_bench.learning.dropout import MaskStream, mask_rows
from glue_bench.learning.families import encoder_layers
from glue_bench.learning.fused_linear import onednn_linear
from glue_bench.learning.layer_parts import PARTS, Parts
from glue_bench.learning.models import set_dropout
from glue_bench.learning.written_out import written_out_layers

HEADS = 2
pytestmark = pytest.mark.skipif(onednn_linear() is None, reason="no oneDNN that does bf16 on this CPU")


class Recorded(MaskStream):
    """A stream that keeps the masks it gave."""

    def __init__(self) -> None:
        super().__init__(0)
        self.masks: list[Tensor] = []

    def kept(self, like: Tensor, probability: float) -> Tensor:
        self.masks.append(super().kept(like, probability))
        return self.masks[-1]


def formula(parts: Parts, masks: Iterator[Tensor], hidden: Tensor, hide: Tensor) -> Tensor:
    """A transformer layer as Devlin et al. 2019 have it; hide (batch, 1, 1, length) is added to scores."""

    def dropped(values: Tensor, probability: float) -> Tensor:
        return values * next(masks).double().view(values.shape) / (1 - probability) if probability else values

    query, key, value = (
        one(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (parts.query, parts.key, parts.value)
    )
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + hide
    context = dropped(scores.softmax(-1), parts.weights_probability) @ value
    context = context.transpose(1, 2).flatten(2)
    hidden = parts.attention_norm(hidden + dropped(parts.out(context), parts.attention_probability))
    return parts.norm(hidden + dropped(parts.down(F.gelu(parts.up(hidden))), parts.probability))


def far(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).detach().norm() / wanted.detach().norm())


@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", list(PARTS))
def test_values_and_gradients_are_the_formulas(family: str, padded: bool, probability: float) -> None:
    torch.manual_seed(0)
    model = classifier(family)
    set_dropout(model, probability)
    layer = encoder_layers(model)[0]
    parts = PARTS[family](layer)
    for parameter in layer.parameters():  # far from their starts: biases of 0 and norms of 1 would hide mistakes
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    keep = torch.ones(3, 1, 1, 24, dtype=torch.bool)  # long enough for oneDNN
    keep[1, ..., 15:] = False
    given = torch.randn(3, 24, model.config.hidden_size).bfloat16().requires_grad_()
    weight = torch.randn(given.shape)
    stream = Recorded()
    with written_out_layers(model, "bf16", stream):
        output = layer(given, keep if padded else None)
    assert output.dtype == torch.bfloat16
    (output.float() * weight).sum().backward()
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert all(one.dtype == torch.float32 for one in found.values())
    assert len(stream.masks) == (0 if probability == 0.0 else 2 if family == "distilbert" else 3)

    layer.zero_grad()
    layer.double()
    exact = given.detach().double().requires_grad_()
    hide = torch.zeros(keep.shape).masked_fill(keep.logical_not(), -1e9).double() if padded else torch.zeros(1)
    wanted = formula(parts, iter(stream.masks), exact, hide)
    (wanted * weight).sum().backward()
    assert far(output, wanted) < 0.015 and far(given.grad, exact.grad) < 0.06
    for name, parameter in layer.named_parameters():
        if parameter is parts.key.bias:  # adding a constant to all scores of a query changes nothing
            assert float(found[name].abs().max()) < 0.3
        else:
            assert far(found[name], parameter.grad) < 0.06, name


@pytest.mark.parametrize("family", list(PARTS))
def test_training_and_predicting_are_as_near_to_fp32_as_module_by_module(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, outcomes = examples(64), {}
    calls = counted(monkeypatch)
    for name, precision in (("full", "fp32"), ("written out", "bf16"), ("modules", "bf16")):
        if name == "modules":
            assert calls == {"_train", "_predict"}
            monkeypatch.setattr(classify, "written_out_layers", lambda *_, **__: contextlib.nullcontext())
        model = classifier(family)
        training = train(model, encoded, labels(64), changed(RECIPE, precision=precision, epochs=3), None, "test")
        assert not any("forward" in vars(module) for module in model.modules())
        outcomes[name] = np.append(predict(model, encoded, precision), training.last_loss)
    written, modules = (np.abs(outcomes[name] - outcomes["full"]).max() for name in ("written out", "modules"))
    assert 0 < written < 2 * modules + 0.02


def counted(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the written-out forward passes, as they are called."""
    calls: set[str] = set()

    def spy(name: str, usual: Any) -> Any:
        return lambda *given, **options: (calls.add(name), usual(*given, **options))[1]

    for name in ("_train", "_predict"):
        monkeypatch.setattr(written_out, name, spy(name, getattr(written_out, name)))
    return calls


def changed_layers(model: PreTrainedModel, precision: str = "bf16") -> list[bool]:
    with written_out_layers(model, precision, None):
        changed = ["forward" in vars(layer) for layer in encoder_layers(model)]
    assert not any("forward" in vars(module) for module in model.modules())
    return changed


def test_only_layers_that_are_as_written_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed_layers(classifier()) == [True, True]
    assert changed_layers(classifier(), "fp32") == [False, False]
    assert changed_layers(classifier(hidden_act="gelu_new")) == [False, False]
    assert changed_layers(classifier("mpnet")) == [False, False]
    odd = classifier()
    encoder_layers(odd)[0].output.dense = nn.Sequential(encoder_layers(odd)[0].output.dense)
    encoder_layers(odd)[1].attention.self.query.bias = None
    assert changed_layers(odd) == [False, False]
    assert changed_layers(classifier(is_decoder=True)) == [False, False]
    bare = classifier()
    encoder_layers(bare)[0].output.dropout = nn.Identity()
    assert changed_layers(bare) == [True, True]
    monkeypatch.setattr(written_out, "onednn_linear", lambda: None)
    assert changed_layers(classifier()) == [False, False]


def test_who_replaced_a_layer_keeps_it() -> None:
    model = classifier()
    last = encoder_layers(model)[-1]
    last.forward = own = lambda hidden, *_: hidden
    with written_out_layers(model, "bf16", None):
        assert last.forward is own
    assert last.forward is own


def test_a_mask_of_its_own_for_every_query_is_left_to_the_module() -> None:
    model = classifier()
    layer, hidden = encoder_layers(model)[0], torch.randn(2, 5, model.config.hidden_size)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None].expand(2, 1, 5, 5)
    wanted = layer(hidden, causal)
    with written_out_layers(model, "bf16", MaskStream(0)):
        assert torch.equal(layer(hidden, causal), wanted)


def test_weights_are_those_of_the_moment_in_training() -> None:
    model = classifier()
    layer, hidden = encoder_layers(model)[0], torch.randn(2, 5, model.config.hidden_size)
    with written_out_layers(model, "bf16", MaskStream(0)):
        before = layer(hidden)
        with torch.no_grad():
            layer.output.dense.weight.mul_(3.0)
        assert not torch.equal(layer(hidden), before)


def test_mask_rows() -> None:
    keep = torch.tensor([[True, True, False], [True, False, False]])[:, None, None, :]
    rows = mask_rows(keep, torch.bfloat16, 2, 2)
    assert rows.shape == (4, 1, 3) and rows.dtype == torch.bfloat16
    assert (rows == 0).squeeze(1).tolist() == [[True, True, False]] * 2 + [[True, False, False]] * 2
    assert torch.equal(mask_rows(torch.full((1, 1, 1, 3), -2.0), torch.float32, 3, 2), torch.full((6, 1, 3), -2.0))
    assert float(mask_rows(None, torch.float32, 2, 2)) == 0.0
    assert mask_rows(keep.expand(2, 1, 3, 3), torch.float32, 2, 2) is None


@pytest.mark.parametrize("size", [1.0, 5.3, -5.3, 20.0, -20.0])
def test_scores_too_large_for_exponentials_go_through_softmax(size: float) -> None:
    """Scores of size^2 x 8 / sqrt(8): 3, 79 (which e^x holds, but no product with it), 1,131; and their negatives."""
    torch.manual_seed(0)
    query = (torch.ones(4, 3, 8) * abs(size) + torch.randn(4, 3, 8)).bfloat16()
    key = (torch.ones(4, 5, 8) * size + torch.randn(4, 5, 8)).bfloat16()
    rows = torch.zeros(1, 1, 1).bfloat16()
    assert (written_out._exponentials(query, key, rows) is None) == (size != 1.0)
    scores = torch.baddbmm(rows, query, key.transpose(1, 2), alpha=8**-0.5)
    assert far(written_out._probabilities(query, key, rows), scores.double().softmax(-1)) < 0.01


def test_prediction_survives_scores_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = classifier(), examples(20)
    for layer in encoder_layers(model):
        layer.attention.self.query.weight.data.mul_(200.0)
    calls = []
    usual = written_out.attention
    monkeypatch.setattr(written_out, "attention", lambda *given: (calls.append(1), usual(*given))[1])
    assert np.abs(predict(model, encoded, "bf16") - predict(model, encoded, "fp32")).max() < 0.5
    assert calls
