"""The loop: a batch's gradient does not depend on its split; a killed training ends bit for bit the same."""

import math
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from glue_bench import store
from glue_bench.data.corpus import Corpus, Sequences
from glue_bench.errors import StepError
from glue_bench.learning import checkpoints, loop
from glue_bench.learning.batches import WIDTH_MULTIPLE, Batches, Masking, heldout_batches
from glue_bench.learning.distributed import Group, join
from glue_bench.learning.graphs import StepGraphs
from glue_bench.learning.heldout import HeldOut
from glue_bench.learning.losses import LossWeights
from glue_bench.learning.models import new_bert, set_dropout
from glue_bench.learning.optimiser import Schedule, total_steps
from glue_bench.learning.students import build_student
from glue_bench.stages.distill import Distillation
from glue_bench.stages.pretrain import MaskedLanguageModelling

CPU = torch.device("cpu")
WORDS = 60
SETTINGS = {
    "batch_size": 32,
    "micro_batch_size": 32,
    "learning_rate": 1e-3,
    "beta1": 0.9,
    "beta2": 0.98,
    "epsilon": 1e-6,
    "weight_decay": 0.01,
    "max_grad_norm": 5.0,
    "evaluations": 2,
    "checkpoint_every": 2,
    "seed": 3,
    "precision": "fp32",
    "threads": 1,
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Bit-identical results are promised at a fixed number of threads; forked processes must not share a pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_corpus(kind: str, sequences: int = 100) -> Corpus:
    """Random sequences of 16 tokens (packed), or of 12 to 24 (by_length)."""
    random = np.random.default_rng(5)
    lengths = np.full(sequences, 16) if kind == "packed" else random.integers(12, 25, sequences)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.integers(5, WORDS, offsets[-1]).astype(np.uint16)
    tokens[offsets[:-1]], tokens[offsets[1:] - 1] = 2, 3
    part = Sequences(tokens, offsets)
    counts = np.bincount(tokens, minlength=WORDS)
    settings = {"batches": kind, "sequence_length": 24}
    return Corpus(part, part, counts, {"settings": settings, "train": {"tokens": len(tokens), "sequences": sequences}})


def make_teacher(seed: int = 1) -> Any:
    """A small BERT without dropout."""
    model = new_bert(
        layers=2,
        hidden=16,
        heads=2,
        intermediate=32,
        max_positions=24,
        initializer_range=0.02,
        vocab_size=WORDS,
        pad_id=0,
        seed=seed,
    )
    return model.eval()


def make_training(
    kind: str,
    settings: dict[str, Any],
    steps: int,
    group: Group,
    dropout: float,
    checkpoints: Path,
    device: torch.device = CPU,
) -> loop._Training:
    """A distillation of the small teacher on the random corpus."""
    corpus = make_corpus(kind)
    special = SimpleNamespace(all_special_ids=[0, 1, 2, 3, 4], mask_token_id=4, pad_token_id=0)
    masking = Masking.of(corpus, special, 0.15, 0.7)
    batches = Batches(
        corpus,
        masking,
        settings["seed"],
        settings["batch_size"],
        settings["micro_batch_size"],
        "attended",
        group,
        device,
    )
    teacher = make_teacher().requires_grad_(False).to(device)
    student = build_student(
        make_teacher(2),
        (0,),
        family="auto",
        fold_token_types=False,
        copy_head_transform=True,
        random_init=False,
        seed=0,
    )
    set_dropout(student.to(device), dropout)
    held_out = HeldOut(heldout_batches(corpus.heldout, masking, 400, device), teacher)
    objective = Distillation(student, teacher, held_out, LossWeights(5.0, 2.0, 1.0), 2.0, "fp32", False)
    schedule = Schedule(steps, 1, settings["learning_rate"])
    return loop._Training(objective, batches, schedule, settings, checkpoints, "one")


def gradient_of_first_batch(
    kind: str, micro_batch_size: int, group: Group, tmp_path: Path
) -> tuple[torch.Tensor, list[float]]:
    """The clipped gradient of the first batch as one vector, and the step's logged values."""
    settings = SETTINGS | {"micro_batch_size": micro_batch_size, "max_grad_norm": 1e9}
    training = make_training(kind, settings, 4, group, 0.0, tmp_path)
    kept: list[torch.Tensor] = []

    def keep_gradient() -> None:
        gradients = [one.grad for one in training.parameters.values()]
        kept.append(torch.cat([gradient.reshape(-1).clone() for gradient in gradients if gradient is not None]))

    training.optimiser.step = keep_gradient  # type: ignore[method-assign, assignment]
    row = training._advance(next(training.batches.from_step(0, 4)))
    return kept[0], row


@pytest.mark.parametrize("kind", ["packed", "by_length"])
def test_gradient_does_not_depend_on_the_split(kind: str, tmp_path: Path) -> None:
    """1 x 32, 8 x 4, 2 processes x 4 x 4: one gradient, to 1e-5, though micro-batches hold different counts."""
    whole, row = gradient_of_first_batch(kind, 32, Group(0, 1), tmp_path)
    assert whole.abs().max() > 1e-3
    accumulated, row_accumulated = gradient_of_first_batch(kind, 4, Group(0, 1), tmp_path)
    assert (whole - accumulated).norm() < 1e-5 * whole.norm()
    assert row == pytest.approx(row_accumulated, rel=1e-5)

    def save_gradient(group: Group) -> None:
        gradient, _ = gradient_of_first_batch(kind, 4, group, tmp_path)
        np.save(tmp_path / f"{group.rank}.npy", gradient.numpy())

    assert run_group(save_gradient) == [0, 0]
    for rank in (0, 1):
        assert np.linalg.norm(np.load(tmp_path / f"{rank}.npy") - whole.numpy()) < 1e-5 * float(whole.norm())


def test_micro_batches_hold_different_counts() -> None:
    """Else the test above would pass with means of means as well."""
    training = make_training("by_length", SETTINGS | {"micro_batch_size": 4}, 4, Group(0, 1), 0.0, Path("unused"))
    batch = next(training.batches.from_step(0, 1))
    counts = {(one.positions.counts.mlm, one.positions.counts.cosine) for one in batch.micro_batches}
    assert len(batch.micro_batches) == 8
    assert len(counts) > 2
    assert all(one.input_ids.shape[1] % WIDTH_MULTIPLE == 0 for one in batch.micro_batches)
    assert sum(one.positions.counts.mlm for one in batch.micro_batches) == batch.counts.mlm
    assert batch.counts.mlm == -(-batch.tokens * 15 // 100)


def run_group(work: Callable[[Group], None], size: int = 2) -> list[int]:
    """Run `work` in gloo processes as torchrun would start them; returns their exit codes (StepError: 3)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def enter(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        try:
            work(join(CPU))
        except StepError as error:
            print(error)
            os._exit(3)
        os._exit(0)

    forked = multiprocessing.get_context("fork")
    processes = [forked.Process(target=enter, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode if process.exitcode is not None else 99 for process in processes]


def run_forked(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; returns its exit code (-9: killed)."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode if process.exitcode is not None else 99


def train_to_end(folder: Path, steps: int = 7, group: Group | None = None, **changes: Any) -> loop._Training:
    """One training with dropout, from whatever checkpoint lies there, to its end."""
    settings = SETTINGS | {"micro_batch_size": 8} | changes
    training = make_training("packed", settings, steps, group or Group(0, 1), 0.1, folder)
    training.resume()
    training.run()
    return training


def weights_of(training: loop._Training) -> dict[str, torch.Tensor]:
    """Copies of the trained weights."""
    return {name: one.detach().clone() for name, one in training.model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


KILLS = ("before_step", "in_update", "before_save", "while_saving", "after_save", "in_evaluation")


@pytest.mark.parametrize("place", KILLS)
def test_killed_anywhere_ends_bit_identical(place: str, tmp_path: Path) -> None:
    """SIGKILL at six places of a training with dropout, then a rerun: the weights and curves of an undisturbed one."""
    undisturbed = train_to_end(tmp_path / "whole")

    def killed() -> None:
        torch.set_num_threads(1)
        plant_kill(place)
        train_to_end(tmp_path / "killed")

    assert run_forked(killed) == -signal.SIGKILL
    resumed = train_to_end(tmp_path / "killed")
    assert same(weights_of(undisturbed), weights_of(resumed))
    timeless = [[*row[:2], *row[3:9]] for row in undisturbed.curves.log]
    assert [[*row[:2], *row[3:9]] for row in resumed.curves.log] == timeless
    assert resumed.curves.heldout == undisturbed.curves.heldout
    assert [row[0] for row in resumed.curves.heldout] == [0, 4, 7]


def plant_kill(place: str) -> None:
    """Make the fifth step's (or its checkpoint's) code kill this process."""

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def at_call(number: int, original: Callable, before: bool) -> Callable:
        calls = iter(range(1, 1000))

        def wrapped(*arguments: Any, **named: Any) -> Any:
            now = next(calls) == number
            if now and before:
                die()
            result = original(*arguments, **named)
            if now:
                die()
            return result

        return wrapped

    training = loop._Training
    if place == "before_step":
        training._advance = at_call(5, training._advance, True)  # type: ignore[method-assign]
    elif place == "in_update":
        torch.optim.AdamW.step = at_call(5, torch.optim.AdamW.step, False)  # type: ignore[method-assign]
    elif place == "before_save":
        loop.save_checkpoint = at_call(2, loop.save_checkpoint, True)
    elif place == "while_saving":
        checkpoints.sha256_file = at_call(2, checkpoints.sha256_file, False)
    elif place == "after_save":
        loop.save_checkpoint = at_call(2, loop.save_checkpoint, False)
    elif place == "in_evaluation":
        training._evaluate = at_call(2, training._evaluate, True)  # type: ignore[method-assign]


def test_two_processes_survive_the_loss_of_one(tmp_path: Path) -> None:
    """A killed process ends the other with a StepError; the rerun of both resumes and ends as an undisturbed pair does,
    bit for bit, and near one process."""
    folder = tmp_path / "group"

    def lose_one(group: Group) -> None:
        if group.rank == 1:
            original, calls = loop._Training._advance, iter(range(1, 100))

            def advance(training: Any, batch: Any) -> list[float]:
                if next(calls) == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(training, batch)

            loop._Training._advance = advance  # type: ignore[method-assign, assignment]
        train_to_end(folder, group=group)

    assert run_group(lose_one) == [3, -signal.SIGKILL]
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]

    def finish(place: Path, group: Group) -> None:
        training = train_to_end(place, group=group)
        weights = torch.cat([one.detach().reshape(-1) for one in training.model.parameters()])
        np.save(tmp_path / f"{place.name}-{group.rank}.npy", weights.numpy())

    for place in (folder, tmp_path / "undisturbed"):
        assert run_group(partial(finish, place)) == [0, 0]
    resumed, undisturbed = ([np.load(tmp_path / f"{one}-{i}.npy") for i in (0, 1)] for one in ("group", "undisturbed"))
    assert all(np.array_equal(one, undisturbed[0]) for one in (*resumed, undisturbed[1]))
    alone = train_to_end(tmp_path / "alone")
    weights = torch.cat([one.detach().reshape(-1) for one in alone.model.parameters()]).numpy()
    assert np.abs(resumed[0] - weights).max() < 1e-4


def test_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """The last two checkpoints stay; with the newer one cut short the older one serves, and the end is the same."""
    undisturbed = weights_of(train_to_end(tmp_path / "a"))
    train_to_end(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["step-00000006", "step-00000007"]
    tensors = tmp_path / "b" / "step-00000007" / checkpoints.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-4])
    again = train_to_end(tmp_path / "b")
    assert same(weights_of(again), undisturbed)
    for folder in (tmp_path / "b").iterdir():
        (folder / checkpoints.STATE).write_text("{")
    assert same(weights_of(train_to_end(tmp_path / "b")), undisturbed)


def test_checkpoint_of_other_settings_is_never_resumed(tmp_path: Path) -> None:
    """Another fingerprint means another training: its checkpoints do not serve, and stay for when it comes back."""
    checkpoints.save_checkpoint(tmp_path, 3, "other", {"model/x": torch.ones(2)}, {})
    assert checkpoints.load_checkpoint(tmp_path, "one") is None
    assert checkpoints.load_checkpoint(tmp_path, "other") is not None
    training = train_to_end(tmp_path, steps=2)
    assert training.step == 2
    assert checkpoints.load_checkpoint(tmp_path, "other") is not None
    places = [store.checkpoints_of(tmp_path, fingerprint * 64) for fingerprint in "ab"]
    assert places[0] != places[1] and {one.parent for one in places} == {tmp_path / "checkpoints"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_bad_loss_stops_with_the_last_good_checkpoint(value: float, tmp_path: Path) -> None:
    """NaN, infinity and an exploded loss name the step and leave the checkpoint before it."""
    training = make_training("packed", SETTINGS, 6, Group(0, 1), 0.0, tmp_path)
    original, calls = training.objective.share, iter(range(1, 100))

    def share(batch: Any, counts: Any) -> Any:
        objective, terms = original(batch, counts)
        if next(calls) < 4:
            return objective, terms
        return objective * value, loop.LossTerms(terms.soft * value, terms.mlm, terms.cosine)

    training.objective.share = share  # type: ignore[method-assign]
    with pytest.raises(StepError, match="training step 4 of 6.*checkpoint of step 2 is kept"):
        training.run()
    assert checkpoints.load_checkpoint(tmp_path, "one")[0] == 2  # type: ignore[index]


def test_a_loss_of_several_times_uniform_guessing_has_exploded(tmp_path: Path) -> None:
    """Uniform predictions cost ln(vocabulary) for every unit of weight, which are 5 + 2 + 1 here."""
    training = make_training("packed", SETTINGS, 6, Group(0, 1), 0.0, tmp_path)
    uniform = 8 * math.log(WORDS)
    training._check(2 * uniform, 1.0)
    with pytest.raises(StepError, match="training step 1 of 6: the loss is"):
        training._check(5 * uniform, 1.0)


def test_held_out_masks_do_not_depend_on_the_recipe() -> None:
    """A training that prefers rare words, or hides more of them, is examined as any other."""
    corpus = make_corpus("packed")
    special = SimpleNamespace(all_special_ids=[0, 1, 2, 3, 4], mask_token_id=4, pad_token_id=0)
    plain, other = (
        heldout_batches(corpus.heldout, Masking.of(corpus, special, *how), 400, CPU) for how in ((0.15, 0), (0.4, 0.7))
    )
    for one, two in zip(plain, other, strict=True):
        assert torch.equal(one.input_ids, two.input_ids)
        assert torch.equal(one.positions.rows, two.positions.rows)
    hidden = sum(one.positions.counts.mlm for one in plain)
    positions = sum(one.input_ids.numel() for one in plain)
    assert 0.15 <= hidden / positions < 0.16


def test_the_clock_holds_the_making_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_training("packed", SETTINGS, 3, Group(0, 1), 0.0, tmp_path)
    made = training._batches

    def slow(end: int) -> Any:
        for batch in made(end):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(training, "_batches", slow)
    training.run()
    assert training.curves.seconds >= 0.6


def test_only_who_writes_checkpoints_says_which_is_kept(tmp_path: Path) -> None:
    """The loss is bad in all processes; those that write nothing must not say that there is nothing."""
    for rank, message in ((0, "no checkpoint yet"), (1, "the first process says which checkpoint is kept")):
        training = make_training("packed", SETTINGS, 6, Group(rank, 2), 0.0, tmp_path)
        with pytest.raises(StepError, match=message):
            training._check(float("nan"), 1.0)


def test_interrupt_saves_the_step_it_reached(tmp_path: Path) -> None:
    """Ctrl-C between updates writes a checkpoint and goes on to end the process."""
    training = make_training("packed", SETTINGS | {"checkpoint_every": 100}, 6, Group(0, 1), 0.0, tmp_path)
    original, calls = training.objective.share, iter(range(1, 100))

    def share(batch: Any, counts: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return original(batch, counts)

    training.objective.share = share  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        try:
            training.run()
        except KeyboardInterrupt:
            training.save_if_quick()
            raise
    assert checkpoints.load_checkpoint(tmp_path, "one")[0] == 3  # type: ignore[index]


def test_an_interrupt_does_not_wait_for_a_slow_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long one takes is known from the last one, and guessed from its size before there is one."""
    monkeypatch.setattr(loop, "SAVE_BYTES_PER_SECOND", 1.0)
    training = make_training("packed", SETTINGS, 6, Group(0, 1), 0.0, tmp_path)
    numbers = sum(one.numel() for one in training.model.parameters())
    assert training._seconds_to_save() == 12 * numbers, "weights and two moments, four bytes each"
    training.model.get_input_embeddings().weight.requires_grad_(False)
    training.step = 1
    training.save_if_quick()
    assert not list(tmp_path.iterdir())
    training.save()
    assert training._seconds_to_save() < 2, "measured now"
    training.step = 2
    training.save_if_quick()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_processes_with_other_settings_are_refused(tmp_path: Path) -> None:
    """Machines that differ may find another number of threads; nothing is trained on a mixture."""

    def mixed(group: Group) -> None:
        training = make_training("packed", SETTINGS, 2, group, 0.0, tmp_path)
        training.fingerprint = f"of rank {group.rank}"
        training.resume()
        training.run()

    assert run_group(mixed) == [3, 3]
    assert not list(tmp_path.iterdir())


def test_distillation_learns(tmp_path: Path) -> None:
    """Forty steps bring a student cut from another network towards a teacher with opinions of its own."""
    settings = SETTINGS | {"learning_rate": 5e-3}
    training = make_training("packed", settings, 40, Group(0, 1), 0.0, tmp_path)
    teacher = training.objective.teacher  # type: ignore[attr-defined]
    with torch.no_grad():
        teacher.get_input_embeddings().weight.mul_(20)
    before = training.objective.heldout()[2]
    for batch in training.batches.from_step(0, 40):
        training._advance(batch)
    after = training.objective.heldout()[2]
    assert before is not None
    assert after is not None
    assert after < 0.8 * before


def test_bf16_computes_the_same_loss(tmp_path: Path) -> None:
    """Autocast student, cast teacher: the terms of fp32 to about two digits, weights and their gradients in fp32."""
    rows = []
    for precision in ("fp32", "bf16"):
        settings = SETTINGS | {"precision": precision, "batch_size": 4, "micro_batch_size": 2}
        training = make_training("by_length", settings, 4, Group(0, 1), 0.0, tmp_path)
        teacher = training.objective.teacher  # type: ignore[attr-defined]
        with torch.no_grad():
            teacher.get_input_embeddings().weight.mul_(20)
        if precision == "bf16":
            teacher.to(torch.bfloat16)
        rows.append(training._advance(next(training.batches.from_step(0, 4))))
        assert all(one.dtype == torch.float32 for one in training.parameters.values())
        assert len(training.objective.heldout()) == 3
    assert rows[1] == pytest.approx(rows[0], rel=0.05)
    assert rows[1] != rows[0]


def test_mlm_head_alone_trains_first(tmp_path: Path) -> None:
    """In the first head_only steps the encoder stays bit for bit; then it trains, with a warm-up of its own."""
    corpus = make_corpus("packed")
    special = SimpleNamespace(all_special_ids=[0, 1, 2, 3, 4], mask_token_id=4, pad_token_id=0)
    masking = Masking.of(corpus, special, 0.15, 0.7)
    batches = Batches(corpus, masking, 0, 32, 32, "none", Group(0, 1), CPU)
    model = make_teacher()
    objective = MaskedLanguageModelling(model, HeldOut([], None), "fp32", False)
    schedule = Schedule(6, 2, 1e-2, head_only=3)
    training = loop._Training(objective, batches, schedule, SETTINGS, tmp_path, "one")
    encoder = {name: one.detach().clone() for name, one in model.base_model.named_parameters()}
    head = model.cls.predictions.transform.dense.weight.detach().clone()
    for number, batch in enumerate(batches.from_step(0, 4)):
        if number == 3:
            assert same(encoder, dict(model.base_model.named_parameters()))
            assert not torch.equal(head, model.cls.predictions.transform.dense.weight)
        training._advance(batch)
    assert not same(encoder, dict(model.base_model.named_parameters()))
    training.save()
    resumed = loop._Training(objective, batches, schedule, SETTINGS, tmp_path, "one")
    resumed.resume()
    assert resumed.step == 4


def test_schedule() -> None:
    """Hand-computed: 10 steps, 2 of warm-up, peak 1; the encoder waits for 4 and warms up again."""
    schedule = Schedule(10, 2, 1.0, head_only=4)
    rates = [schedule.rate(step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert [schedule.encoder_rate(step) for step in (0, 3, 4, 5, 9)] == pytest.approx([0, 0, 3 / 8, 5 / 8, 1 / 8])
    assert Schedule(1, 0, 1.0).rate(0) == 1.0
    assert Schedule(1, 1, 1.0).rate(0) == 1.0


def test_total_steps() -> None:
    """The smaller of both budgets, 0 meaning none."""
    assert total_steps(1000, 0, per_epoch=7, batch_size=10, tokens_per_sequence=10) == 10
    assert total_steps(0, 2.5, per_epoch=7, batch_size=10, tokens_per_sequence=10) == 17
    assert total_steps(1000, 1, per_epoch=7, batch_size=10, tokens_per_sequence=10) == 7
    assert total_steps(1, 0, per_epoch=7, batch_size=10, tokens_per_sequence=10) == 1


def test_batches_are_a_function_of_the_step() -> None:
    """Starting in the middle gives the same batches; epochs differ in order and masks, and cover the text."""
    training = make_training("packed", SETTINGS, 9, Group(0, 1), 0.0, Path("unused"))
    everything = list(training.batches.from_step(0, 9))
    later = list(training.batches.from_step(4, 9))
    for one, other in zip(everything[4:], later, strict=True):
        assert torch.equal(one.micro_batches[0].input_ids, other.micro_batches[0].input_ids)
        assert torch.equal(one.micro_batches[0].positions.rows, other.micro_batches[0].positions.rows)
    corpus = training.batches.corpus
    orders = [corpus.epoch_batches(3, epoch, 32) for epoch in (0, 1)]
    assert orders[0].shape == (3, 32)
    assert len(set(orders[0].ravel())) == 96
    assert not np.array_equal(*orders)


def test_a_note_of_steps_that_could_not_be_recorded_outlives_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(loop, "StepGraphs", lambda device: StepGraphs(device, refuse))
    first = make_training("packed", SETTINGS, 4, Group(0, 1), 0.1, tmp_path)
    first.run()
    monkeypatch.undo()
    second = make_training("packed", SETTINGS, 4, Group(0, 1), 0.1, tmp_path)
    second.resume()
    for curves in (first.curves, second.curves):
        assert ["operation not permitted when" in note for note in curves.notes] == [True]


def trained_weights(tmp_path: Path, device: torch.device, seen: list[int]) -> torch.Tensor:
    """All weights after 12 steps with dropout on packed text; `seen` gets how many graphs were recorded."""
    training = make_training("packed", SETTINGS, 12, Group(0, 1), 0.1, tmp_path, device)
    training.run()
    seen.append(len(training.graphs._recorded))
    return torch.cat([one.detach().reshape(-1).cpu() for one in training.parameters.values()])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replayed_steps_are_those_of_one_kernel_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, seen = torch.device("cuda", 0), []
    replayed = trained_weights(tmp_path / "replayed", device, seen)
    again = trained_weights(tmp_path / "again", device, seen)
    monkeypatch.setattr(loop, "StepGraphs", lambda _: StepGraphs(CPU))
    plain = trained_weights(tmp_path / "plain", device, seen)
    assert seen == [1, 1, 0]
    assert torch.equal(replayed, again)
    # Sums of another order: on a CPU two micro-batches for one move a weight by 1e-6; other masks move one by 7e-3.
    assert float((replayed - plain).abs().max()) < 1e-4
