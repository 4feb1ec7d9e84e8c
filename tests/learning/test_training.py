"""What is recorded of a training: speed over all processes, and that a loss could not be compiled."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glue_bench.config import Machine
from glue_bench.learning import decoder_loss, training
from glue_bench.learning.distributed import Group
from glue_bench.learning.loop import Curves
from glue_bench.learning.optimiser import STEPS_TO_FADE, Schedule, clear_faded_moments, clipped_step, tuning_adamw
from glue_bench.machine import facts


def result(processes: int) -> dict[str, Any]:
    """Of ten steps that took two seconds."""
    heldout = [[0, 0, 5.0, 0.1, None], [10, 4000, 4.0, 0.2, None]]
    curves = Curves(tokens=4000, seconds=2.0, flops=6e9, first_loss=5.0, last_loss=4.0, heldout=heldout)
    batches = SimpleNamespace(device=torch.device("cpu"), group=Group(0, processes), per_epoch=4)
    setup: Any = SimpleNamespace(batches=batches, schedule=Schedule(10, 1, 1e-3))
    return training.training_result(
        curves, setup, {"batch_size": 8, "micro_batch_size": 4, "precision": "fp32"}, ("a note",)
    )


def test_speed_is_shared_by_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """3e9 FLOP/s on devices that can do 6e9 each."""
    monkeypatch.setattr(training, "matrix_rate", lambda device, precision: 6e9)
    alone, pair = result(1), result(2)
    assert (alone["flops_share"], pair["flops_share"]) == (0.5, 0.25)
    assert alone["tokens_per_second"] == 2000
    assert alone["heldout"]["after"] == {"mlm_loss": 4.0, "accuracy": 0.2, "kl_to_teacher": None}
    assert (pair["processes"], pair["epochs"]) == (2, 2.5)
    assert alone["training"]["notes"] == ("a note",)


def test_a_loss_that_did_not_compile_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the step's own notes, with the reason."""
    monkeypatch.setattr(training, "matrix_rate", lambda device, precision: 6e9)
    monkeypatch.setattr(decoder_loss, "_compile_failures", ["RuntimeError: no compiler"])
    own, added = result(1)["training"]["notes"]
    assert own == "a note"
    assert "computed in blocks, more slowly (RuntimeError: no compiler)" in added


def test_processes_share_the_threads_that_the_fingerprint_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun a plan has the same threads as without, or run-all would do anew what torchrun did."""
    used: list[int] = []
    monkeypatch.setattr(training, "use_threads", used.append)
    planned = []
    for processes in ("1", "2", "8"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        planned.append(facts(Machine(device="cpu")).threads)
        training.start({"threads": 6}, "cpu")
    assert len(set(planned)) == 1
    assert used == [6, 3, 1]


@pytest.mark.parametrize("scale", [0.01, 1000.0])
def test_gradients_scaled_within_the_step_are_scaled_as_before_it(scale: float) -> None:
    """Below the norm they stay as they are, to the bit; above it they have it."""
    torch.manual_seed(0)
    start, gradient = torch.randn(7, 5), torch.randn(7, 5) * scale
    after = []
    for within in (False, True):
        trained = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.ones(3))]
        optimiser = tuning_adamw(trained, 0.1, 0.0, torch.device("cpu"))
        for step in range(3):  # Adam alone would not see a scale that never changes
            trained[0].grad = gradient * (step + 1)
            clipped_step(optimiser, trained, 1.0, within=within)
        after.append(trained[0].detach().clone())
        moments = optimiser.state[trained[0]]["exp_avg_sq"]
        assert float(moments.sum()) == pytest.approx(
            sum(0.999 ** (2 - step) * 0.001 * min(float(gradient.norm()) * (step + 1), 1.0) ** 2 for step in range(3)),
            rel=1e-4,
        )
        assert torch.equal(trained[1], torch.ones(3)) and not torch.equal(after[-1], start)
    assert torch.equal(*after) if scale < 1 else torch.allclose(*after, atol=1e-5)


def test_only_matrices_decay() -> None:
    trained = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    optimiser = tuning_adamw(trained, 0.1, 0.5, torch.device("cpu"))
    for one in trained:
        one.grad = torch.zeros_like(one)
    clipped_step(optimiser, trained, 1.0, within=True)
    assert torch.allclose(trained[0], torch.full((2, 2), 0.95)) and torch.equal(trained[1], torch.ones(2))


def test_only_first_moments_that_faded_are_cleared() -> None:
    weight = torch.nn.Parameter(torch.ones(5))
    optimiser = tuning_adamw([weight], 0.1, 0.0, torch.device("cpu"))
    weight.grad = torch.ones(5)
    optimiser.step()
    state = optimiser.state[weight]
    state["exp_avg"].copy_(torch.tensor([1e-19, -1e-19, 1e-21, -1e-21, 1e-40]))
    second = state["exp_avg_sq"].fill_(1e-40).clone()
    clear_faded_moments(optimiser)
    assert torch.equal(state["exp_avg"], torch.tensor([1e-19, -1e-19, 0.0, 0.0, 0.0]))
    assert torch.equal(state["exp_avg_sq"], second)


@pytest.mark.parametrize("cleared", [False, True])
def test_a_moment_that_nothing_adds_to_never_becomes_denormal(cleared: bool) -> None:
    """As of a word that is not met again. Otherwise it does, and stays so; the weights are the same to the bit."""
    ends = []
    for clears in (cleared, False):
        weight = torch.nn.Parameter(torch.linspace(-2.0, 2.0, 64))
        optimiser = tuning_adamw([weight], 1e-3, 0.0, torch.device("cpu"))
        denormal = 0
        for step in range(1, 1101):
            weight.grad = torch.linspace(0.1, 10.0, 64) * (step == 1)
            optimiser.step()
            if clears and step % STEPS_TO_FADE == 0:
                clear_faded_moments(optimiser)
            moments = optimiser.state[weight]["exp_avg"]
            denormal += int(((moments != 0) & (moments.abs() < torch.finfo(torch.float32).tiny)).any())
        assert denormal == 0 if clears else denormal > 300
        ends.append(weight.detach())
    assert torch.equal(*ends)
