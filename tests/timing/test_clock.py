"""The timer against clocks and devices that a test controls."""

import gc
import time

import pytest

from glue_bench.timing.clock import (
    TURN_SECONDS,
    WARM_UP_CALLS,
    Limits,
    event_stopwatch,
    interleave,
    new_garbage_only,
    turns,
    wall_stopwatch,
    warm_up,
)


class FakeMachine:
    """A clock that only calls and waiting move, and a device that works on after the host has gone on."""

    def __init__(self):
        self.time = 100.0
        self.queued = 0.0
        self.log = []

    def now(self):
        return self.time

    def synchronise(self):
        self.time += self.queued
        self.queued = 0.0

    def call(self, name, seconds, launch=0.0):
        """A call that queues `seconds` of device work and keeps the host busy for `launch`."""

        def run():
            self.log.append(name)
            self.queued += seconds(self.time) if callable(seconds) else seconds
            self.time += launch

        return run

    def watch(self):
        return wall_stopwatch(self.now, self.synchronise)


def measure(machine, models, *, fastest=1.0, whole_pass=False, min_passes=2, min_seconds=0.0, max_seconds=1e9):
    limits = Limits(min_passes, min_seconds, max_seconds)
    return interleave(models, fastest, whole_pass, limits, machine.watch(), machine.now)


def test_a_wait_for_the_device_is_part_of_each_sample():
    """Fails if a synchronise is removed: without the last a sample is 0, without the first it has work from before."""
    machine = FakeMachine()
    machine.queued = 7.0
    measured = measure(machine, {"a": [machine.call("a", 2.0)], "b": [machine.call("b", 3.0)]})
    assert measured["a"].samples_s == [2.0, 2.0]
    assert measured["b"].samples_s == [3.0, 3.0]


@pytest.mark.parametrize("broken", ["start", "stop"])
def test_the_test_above_notices_a_missing_synchronise(broken):
    machine = FakeMachine()
    whole = machine.watch()
    blind = wall_stopwatch(machine.now, lambda: None)
    watch = type(whole)(
        blind.start if broken == "start" else whole.start, blind.stop if broken == "stop" else whole.stop
    )
    machine.queued = 7.0
    measured = interleave({"a": [machine.call("a", 2.0)]}, 1.0, False, Limits(2, 0.0, 1e9), watch, machine.now)
    assert measured["a"].samples_s != [2.0, 2.0]


class FakeEvent:
    def __init__(self, cuda):
        self.cuda = cuda

    def record(self):
        """The device stamps the event when it gets there: after what is queued."""
        self.stamp = self.cuda.machine.time + self.cuda.machine.queued
        self.waited = False
        self.cuda.recorded.append(self)

    def elapsed_time(self, end):
        if not end.waited:
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return (end.stamp - self.stamp) * 1000


class FakeCuda:
    def __init__(self):
        self.machine = FakeMachine()
        self.recorded = []

    def synchronize(self):
        self.machine.synchronise()
        for event in self.recorded:
            event.waited = True

    def Event(self, enable_timing):  # noqa: N802
        assert enable_timing
        return FakeEvent(self)


def test_cuda_events_measure_device_work_and_wait_for_it():
    cuda = FakeCuda()
    watch = event_stopwatch(cuda)
    cuda.machine.queued = 5.0
    mark = watch.start()
    cuda.machine.call("a", 2.0, launch=0.0)()
    assert watch.stop(mark) == pytest.approx(2.0)


def test_cuda_events_count_work_queued_before_only_if_start_does_not_wait():
    cuda = FakeCuda()
    cuda.machine.queued = 5.0
    event_stopwatch(cuda).start()
    assert cuda.machine.queued == 0.0


def test_models_take_turns_a_b_b_a_within_a_pass_and_in_reverse_in_the_next():
    machine = FakeMachine()
    models = {name: [machine.call(f"{name}{i}", TURN_SECONDS * 2) for i in range(2)] for name in "ab"}
    measure(machine, models)
    assert machine.log == ["a0", "b0", "b1", "a1", "b0", "a0", "a1", "b1"]


def test_each_turn_is_kept_beside_its_pass():
    machine = FakeMachine()
    lengths = (TURN_SECONDS, 2 * TURN_SECONDS, 3 * TURN_SECONDS)
    models = {name: [machine.call(name, factor * one) for one in lengths] for name, factor in (("a", 2), ("b", 1))}
    for whole_pass in (True, False):
        measured = measure(machine, models, fastest=TURN_SECONDS, whole_pass=whole_pass)
        assert measured["b"].turn_s == pytest.approx(list(lengths) * 2)
        assert measured["a"].turn_s == pytest.approx([2 * one for one in lengths] * 2)
        assert measured["b"].pass_s == pytest.approx([sum(lengths)] * 2)
    short = measure(machine, {"a": [machine.call("a", 0.01)] * 10}, fastest=0.01)
    assert short["a"].turn_s == pytest.approx([0.1, 0.1])
    assert len(short["a"].samples_s) == 20


def test_three_models_go_forwards_then_backwards():
    machine = FakeMachine()
    measure(machine, {name: [machine.call(name, 1.0)] for name in "abc"})
    assert machine.log == list("abccba")


def test_a_machine_that_slows_down_steadily_favours_no_model():
    """Work that takes 1 % longer every second: in turns equal models come out equal, one after the other 20 % apart."""

    def ever_slower(start):
        return 1.0 + 0.01 * (start - 100.0)

    machine = FakeMachine()
    measured = measure(machine, {n: [machine.call(n, ever_slower)] * 2 for n in "ab"}, min_passes=4)
    ratio = sum(measured["a"].pass_s) / sum(measured["b"].pass_s)
    assert ratio == pytest.approx(1.0, abs=0.002)
    machine = FakeMachine()
    first, second = (measure(machine, {n: [machine.call(n, ever_slower)] * 2}, min_passes=4) for n in "ab")
    assert sum(second["b"].pass_s) / sum(first["a"].pass_s) > 1.05


def test_a_turn_of_short_calls_opens_with_one_that_is_not_timed():
    machine = FakeMachine()
    measured = measure(machine, {n: [machine.call(f"{n}{i}", 0.01) for i in range(3)] for n in "ab"}, fastest=0.01)
    assert machine.log[:8] == ["a0", "a0", "a1", "a2", "b0", "b0", "b1", "b2"]
    assert len(measured["a"].samples_s) == 6
    assert measured["a"].pass_s == pytest.approx([0.03, 0.03])


def test_a_whole_pass_is_one_sample_and_waits_for_the_device_once_a_turn():
    machine = FakeMachine()
    waits = []
    watch = wall_stopwatch(machine.now, lambda: (waits.append(1), machine.synchronise()))
    calls = {"a": [machine.call("a", 0.01)] * 10}
    measured = interleave(calls, 0.01, True, Limits(2, 0.0, 1e9), watch, machine.now)
    assert measured["a"].samples_s == measured["a"].pass_s == pytest.approx([0.1, 0.1])
    assert len(waits) == 4


@pytest.mark.parametrize(
    ("limits", "passes"),
    [
        ({"min_passes": 2}, 2),
        ({"min_passes": 6}, 6),
        ({"min_passes": 2, "min_seconds": 9.0}, 10),  # a pass is one second; passes come in pairs
        ({"min_passes": 100, "max_seconds": 11.0}, 6),  # two models: a pair of passes takes four seconds
    ],
)
def test_it_goes_on_until_both_minima_are_met_or_time_is_up(limits, passes):
    machine = FakeMachine()
    measured = measure(machine, {n: [machine.call(n, 1.0)] for n in "ab"}, **limits)
    assert [len(one.pass_s) for one in measured.values()] == [passes, passes]


def test_the_least_measured_model_decides_about_the_seconds():
    machine = FakeMachine()
    measured = measure(machine, {"slow": [machine.call("s", 5.0)], "fast": [machine.call("f", 1.0)]}, min_seconds=4.0)
    assert len(measured["slow"].pass_s) == len(measured["fast"].pass_s) == 4


def test_models_with_other_calls_are_refused():
    machine = FakeMachine()
    with pytest.raises(ValueError, match="same calls"):
        measure(machine, {"a": [machine.call("a", 1.0)], "b": []})
    with pytest.raises(ValueError, match="same calls"):
        measure(machine, {"a": [], "b": []})


def test_garbage_is_not_collected_while_the_clock_runs_and_is_afterwards():
    machine = FakeMachine()
    seen = []
    measure(machine, {"a": [lambda: seen.append(gc.isenabled())]})
    assert seen == [False, False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    with new_garbage_only():
        kept = gc.get_freeze_count()
        measure(machine, {"a": [lambda: None]})
        assert gc.get_freeze_count() >= kept > 0, "the inner one leaves the outer one's objects aside"
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(("count", "seconds"), [(1, 9.0), (7, 0.01), (10, 0.1), (256, 0.03), (5, 100.0), (3, 0.0)])
def test_turns_cover_every_call_once_in_order(count, seconds):
    cut = turns(count, seconds)
    assert [i for turn in cut for i in turn] == list(range(count))
    assert all(len(turn) > 0 for turn in cut)
    if count * seconds > 4 * TURN_SECONDS > 4 * seconds:
        assert all(0.5 < len(turn) * seconds / TURN_SECONDS < 2 for turn in cut)


def test_warm_up_sees_every_shape_once_and_leaves_first_call_costs_out():
    machine = FakeMachine()
    slow_at_first = {}

    def call(i):
        def run():
            machine.log.append(i)
            machine.queued += 0.001 if slow_at_first.get(i) else 5.0
            slow_at_first[i] = True

        return run

    shapes = [(1, 8), (1, 9), (1, 8), (1, 10)] * 5
    per_call = warm_up([call(i) for i in range(20)], shapes, machine.watch())
    assert machine.log[:3] == [0, 1, 3]
    assert set(machine.log) == {0, 1, 3}
    assert 3 <= len(machine.log) <= WARM_UP_CALLS
    machine.log.clear()
    per_call = warm_up([call(i) for i in range(20)], shapes, machine.watch())
    assert per_call == pytest.approx(0.001)
    assert len(machine.log) == WARM_UP_CALLS


def test_a_known_sleep_is_measured_within_ten_percent():
    """The least of some passes: a sleep never ends early, and on a busy machine some end late."""
    watch = wall_stopwatch(time.perf_counter, lambda: None)
    calls = {"short": [lambda: time.sleep(0.02)], "long": [lambda: time.sleep(0.04)]}
    measured = interleave(calls, TURN_SECONDS, False, Limits(6, 0.0, 10.0), watch, time.perf_counter)
    assert min(measured["short"].samples_s) == pytest.approx(0.02, rel=0.1)
    assert min(measured["long"].samples_s) == pytest.approx(0.04, rel=0.1)
