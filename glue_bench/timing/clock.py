"""The timer: models take turns on the same inputs, in an order in which a machine that drifts favours none of them.

Only the standard library: the clock comes in as an argument, so that a test can hand in a fake one. What is timed is a
list of calls without arguments (a model bound to a batch that already lies on its device), so that tokenisation and
copies are outside the clock by construction.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Call = Callable[[], Any]

# Models change places about this often within a pass. Long against what a change costs (refilling 32 MB of cache takes
# some 3 ms), short against what disturbs a machine: with a load of eight on two cores speed-ups from four passes spread
# by 2.7 % (standard deviation) with turns of 0.5 s and by 1.3 % with turns of 0.1 s. The call that opens a turn is not
# timed, so shorter turns cost time: at 30 ms a call, 0.2 s costs an eighth and 0.1 s a quarter of it.
TURN_SECONDS = 0.2
WARM_UP_CALLS = 10
WARM_UP_SECONDS = 1.0


@dataclass(frozen=True)
class Stopwatch:
    """`start()` gives a mark, `stop(mark)` the seconds since. Both wait until the device has nothing left to do."""

    start: Callable[[], Any]
    stop: Callable[[Any], float]


@dataclass(frozen=True)
class Limits:
    """When to stop: at `min_passes` and `min_seconds` per model, or after `max_seconds` of everything together."""

    min_passes: int
    min_seconds: float
    max_seconds: float


@dataclass
class Measured:
    """Seconds of each call (or of each pass, where passes are timed whole), of each pass and of each turn of a pass, in
    measuring order."""

    samples_s: list[float] = field(default_factory=list)
    pass_s: list[float] = field(default_factory=list)
    turn_s: list[float] = field(default_factory=list)


def wall_stopwatch(now: Callable[[], float], synchronise: Callable[[], None]) -> Stopwatch:
    """A stopwatch on a clock in seconds; `synchronise` waits for the device (does nothing on a CPU)."""

    def start() -> float:
        synchronise()
        return now()

    def stop(mark: float) -> float:
        synchronise()
        return now() - mark

    return Stopwatch(start, stop)


def event_stopwatch(cuda: Any) -> Stopwatch:
    """A stopwatch on CUDA events, which the device stamps itself; `cuda` is torch.cuda.

    The first event is stamped on an idle stream, before the host launches any kernel: time that the device spends
    waiting for a slow host counts, as it does for a user.
    """

    def start() -> Any:
        cuda.synchronize()
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(mark: Any) -> float:
        event = cuda.Event(enable_timing=True)
        event.record()
        cuda.synchronize()
        return mark.elapsed_time(event) / 1000

    return Stopwatch(start, stop)


def warm_up(calls: Sequence[Call], shapes: Sequence[Any], watch: Stopwatch) -> float:
    """Run one call of every distinct shape (kernels are chosen and compiled by shape), and at least WARM_UP_CALLS of
    them or WARM_UP_SECONDS; return the seconds per call of the second half, so that first-call costs stay out."""
    first_of_shape: dict[Any, int] = {}
    for i, shape in enumerate(shapes):
        first_of_shape.setdefault(shape, i)
    order = list(first_of_shape.values())
    seconds: list[float] = []
    while len(seconds) < len(order) or (len(seconds) < WARM_UP_CALLS and sum(seconds) < WARM_UP_SECONDS):
        mark = watch.start()
        calls[order[len(seconds) % len(order)]]()
        seconds.append(watch.stop(mark))
    second_half = seconds[len(seconds) // 2 :]
    return sum(second_half) / len(second_half)


def turns(count: int, seconds_per_call: float) -> list[range]:
    """Cut calls 0 to count-1 into turns of about TURN_SECONDS for the fastest model, of one call at least."""
    number = min(count, max(1, round(count * seconds_per_call / TURN_SECONDS)))
    bounds = [count * i // number for i in range(number + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]


def interleave(
    models: Mapping[str, Sequence[Call]],
    fastest_call_s: float,
    whole_pass: bool,
    limits: Limits,
    watch: Stopwatch,
    now: Callable[[], float],
) -> dict[str, Measured]:
    """Time passes over the calls of each model, all models taking turns: A B on one turn, B A on the next.

    Every model has one call per batch, in the same order. Passes come in pairs, the second in the reverse order of the
    first, so that the order of any two models is balanced and a linear drift cancels; the i-th passes of two models
    are partners. Before each turn the model makes one call that is not timed (unless calls are as long as turns): the
    caches are then its own. With `whole_pass` a turn is timed in one go and a sample is a whole pass; otherwise
    each call is timed. Garbage is collected between passes, never within.
    Returns model -> Measured, in seconds. Raises ValueError where models have different numbers of calls, or none.
    """
    counts = {len(calls) for calls in models.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"every model needs the same calls; got {[len(calls) for calls in models.values()]}")
    plan = turns(counts.pop(), fastest_call_s)
    settle = fastest_call_s < TURN_SECONDS
    measured = {name: Measured() for name in models}
    begun = now()
    with _garbage_only_between_passes() as collect:
        while True:
            for backwards in (False, True):
                _one_pass(models, plan, backwards, settle, whole_pass, watch, measured)
                collect()
            enough = all(
                len(one.pass_s) >= limits.min_passes and sum(one.pass_s) >= limits.min_seconds
                for one in measured.values()
            )
            if enough or now() - begun >= limits.max_seconds:
                return measured


def _one_pass(
    models: Mapping[str, Sequence[Call]],
    plan: Sequence[range],
    backwards: bool,
    settle: bool,
    whole_pass: bool,
    watch: Stopwatch,
    measured: Mapping[str, Measured],
) -> None:
    """One pass of every model. Turn by turn the order is reversed, and `backwards` reverses all of them."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in models}
    for number, turn in enumerate(plan):
        reverse = (number % 2 == 1) != backwards
        for name in reversed(list(models)) if reverse else models:
            calls = models[name]
            if settle:
                calls[turn[0]]()
            values: list[float] = []
            for timed_together in [turn] if whole_pass else [range(i, i + 1) for i in turn]:
                mark = watch.start()
                for i in timed_together:
                    calls[i]()
                values.append(watch.stop(mark))
            seconds[name].append(values)
    for name, by_turn in seconds.items():
        samples = [value for values in by_turn for value in values]
        total = sum(samples)
        measured[name].pass_s.append(total)
        measured[name].turn_s.extend(sum(values) for values in by_turn)
        measured[name].samples_s.extend([total] if whole_pass else samples)


@contextmanager
def new_garbage_only() -> Iterator[None]:
    """Collecting garbage looks at objects made within only: all that torch keeps takes tenths of a second."""
    outermost = not gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if outermost:
            gc.unfreeze()


@contextmanager
def _garbage_only_between_passes() -> Iterator[Callable[[], Any]]:
    """No garbage is collected but by calling what is yielded."""
    was_enabled = gc.isenabled()
    with new_garbage_only():
        gc.disable()
        try:
            yield gc.collect
        finally:
            if was_enabled:
                gc.enable()
