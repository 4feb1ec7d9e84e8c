"""Steps of a training on a GPU as CUDA graphs: recorded once for a shape, then replayed by a single call.

A step of BERT-base is 1,200 kernels of five microseconds, and a host may need longer than that to start one. Measured
on an H200 whose host takes 27 microseconds a kernel, batches of 32 x 40 tokens: BERT-base 30 steps/s kernel by kernel
and 145 replayed, DistilBERT 35 and 278, all-MiniLM-L6 40 and 379. The arithmetic is the same, random numbers included:
a graph takes seed and offset from torch's generator when it is replayed.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MOST = 40  # graphs of one training: widths up to 128 in steps of 8, with and without padding, are 32


@dataclass(frozen=True, eq=False)
class Recorded:
    """A step that can be replayed: it reads these inputs and writes these outputs, always at the same place."""

    inputs: tuple[Tensor, ...]
    outputs: Any
    replay: Callable[[], None]


def record(step: Callable[..., Any], inputs: Sequence[Tensor], pool: Any) -> Recorded:
    """Record a step on the current CUDA device without running it. Raises RuntimeError where it cannot be recorded."""
    inputs = tuple(one.clone() for one in inputs)
    graph = torch.cuda.CUDAGraph()
    # Another thread may be copying the next batch to the device, which is forbidden in the mode "global" only.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        outputs = step(*inputs)
    return Recorded(inputs, outputs, graph.replay)


@dataclass
class StepGraphs:
    """Runs the steps of one training: on a CPU as they are, on a GPU from the second of a shape on by replaying it.

    A step must not wait for the device, draws random numbers from torch's generator alone, and does not seed it. What
    it returns is overwritten by the next step of this shape. Steps that cannot be recorded are run as they are.
    """

    device: torch.device
    record: Callable[[Callable[..., Any], Sequence[Tensor], Any], Recorded] | None = None
    failure: str = ""  # why steps could not be recorded, in one line
    _seen: set[Hashable] = field(default_factory=set)
    _recorded: dict[Hashable, Recorded] = field(default_factory=dict)
    _pool: Any = None

    def __post_init__(self) -> None:
        if self.device.type == "cuda" and self.record is None:
            self.record, self._pool = record, torch.cuda.graph_pool_handle()

    def run(self, shape: Hashable, step: Callable[..., Any], *inputs: Tensor) -> Any:
        """step(*inputs); `shape` says all that it depends on but the values of the inputs."""
        recorded = self._recorded.get(shape)
        if recorded is None:
            if self.record is None or not self._worth_it(shape):
                return step(*inputs)
            try:
                recorded = self.record(step, inputs, self._pool)
            except RuntimeError as error:  # it waits for the device, or there is no memory to hold it twice
                self.record = None
                self.failure = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"
            if recorded is None:  # out of the except block, whose traceback holds what the recording had allocated
                torch.cuda.empty_cache()  # does nothing where there is no CUDA
                return step(*inputs)
            self._recorded[shape] = recorded
        for place, values in zip(recorded.inputs, inputs, strict=True):
            place.copy_(values)
        recorded.replay()
        return recorded.outputs

    @property
    def notes(self) -> tuple[str, ...]:
        """What a record should say of this: nothing, or that the steps ran more slowly than they could."""
        slow = "steps could not be recorded as CUDA graphs and ran kernel by kernel, more slowly"
        return (f"{slow} ({self.failure})",) if self.failure else ()

    def _worth_it(self, shape: Hashable) -> bool:
        """Whether a shape has been seen before: its first step sets up what is set up at the first use."""
        if shape in self._seen:
            return len(self._recorded) < MOST
        self._seen.add(shape)
        return False
