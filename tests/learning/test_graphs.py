"""Recorded steps: which shapes are recorded, that each step runs once on its own inputs, and what happens else."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from glue_bench.learning import graphs
from glue_bench.learning.graphs import Recorded, StepGraphs

CPU = torch.device("cpu")


class Recorder:
    """Stands in for CUDA: recording runs nothing, replaying runs the step on the recorded inputs."""

    def __init__(self, error: RuntimeError | None = None) -> None:
        self.recordings, self.error = 0, error

    def __call__(self, step: Callable[..., Any], inputs: Sequence[Tensor], pool: Any) -> Recorded:
        self.recordings += 1
        if self.error:
            raise self.error
        static, output = tuple(one.clone() for one in inputs), torch.empty(())
        return Recorded(static, output, lambda: output.copy_(step(*static)))


def squares(ran: list[float]) -> Callable[[Tensor], Tensor]:
    """A step that squares a number and remembers for which it ran."""

    def step(number: Tensor) -> Tensor:
        ran.append(float(number))
        return number**2

    return step


def test_a_shape_is_recorded_at_its_second_step_and_every_step_runs_once_on_its_own_inputs() -> None:
    recorder, ran = Recorder(), []
    steps = StepGraphs(CPU, recorder)
    found = [float(steps.run("narrow", squares(ran), torch.tensor(float(number)))) for number in range(5)]
    assert found == [0.0, 1.0, 4.0, 9.0, 16.0] and ran == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert recorder.recordings == 1 and steps.notes == ()
    assert float(steps.run("wide", squares(ran), torch.tensor(7.0))) == 49.0
    assert recorder.recordings == 1
    assert float(steps.run("narrow", squares(ran), torch.tensor(6.0))) == 36.0
    assert recorder.recordings == 1


def test_where_recording_fails_all_steps_run_as_they_are() -> None:
    recorder, ran = Recorder(RuntimeError("operation not permitted when stream is capturing")), []
    steps = StepGraphs(CPU, recorder)
    found = [float(steps.run(shape, squares(ran), torch.tensor(3.0))) for shape in "aabbaabb"]
    assert found == [9.0] * 8 and len(ran) == 8
    assert recorder.recordings == 1  # it would only fail again
    assert len(steps.notes) == 1
    assert "kernel by kernel, more slowly (RuntimeError: operation not permitted when stream is cap" in steps.notes[0]


def test_what_a_failed_recording_allocated_is_gone_when_its_step_runs() -> None:
    class Held:
        """Stands for the activations of a recording that ran out of memory."""

    alive: list[weakref.ref] = []
    found: list[bool] = []

    def record(step: Callable[..., Any], inputs: Sequence[Tensor], pool: Any) -> Recorded:
        held = Held()
        alive.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def step(number: Tensor) -> Tensor:
        found.extend(one() is None for one in alive)
        return number

    steps = StepGraphs(CPU, record)
    for _ in range(2):
        steps.run("narrow", step, torch.tensor(1.0))
    assert found == [True]


def test_no_more_graphs_than_memory_is_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    recorder = Recorder()
    steps = StepGraphs(CPU, recorder)
    for _ in range(3):
        for shape in range(4):
            assert float(steps.run(shape, lambda number: number + 1, torch.tensor(float(shape)))) == shape + 1
    assert recorder.recordings == 2


def test_a_cpu_records_nothing() -> None:
    steps = StepGraphs(CPU)
    assert [int(steps.run("one", lambda number: number, torch.tensor(n))) for n in range(3)] == [0, 1, 2]
    assert steps._recorded == {}
