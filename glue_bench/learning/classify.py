"""Fine-tuning a classifier on one task, and predicting with it.

The protocol of RECIPE.md section 4: AdamW with bias correction, linear warm-up and decay, clipped gradients, the last
epoch. The gradient is that of the whole batch, however it is split; the seed alone decides order and dropout. The loop
never waits for the device: losses stay there until the epoch ends.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from glue_bench.data.batching import Batch, Encoded, prediction_batches, training_batches
from glue_bench.errors import StepError
from glue_bench.learning.dropout import MaskStream, attention_in_products, cheap_dropout
from glue_bench.learning.first_position import first_position_only
from glue_bench.learning.forward import Forward
from glue_bench.learning.fused_linear import fused_linear
from glue_bench.learning.graphs import StepGraphs
from glue_bench.learning.heap import own_memory
from glue_bench.learning.loop import autocast, dropout_seed
from glue_bench.learning.narrowing import narrowed_vocabulary
from glue_bench.learning.optimiser import STEPS_TO_FADE, clear_faded_moments, clipped_step, tuning_adamw
from glue_bench.learning.output_head import full_precision_head
from glue_bench.learning.written_out import written_out_layers
from glue_bench.machine import is_terminal
from glue_bench.model_folder import FROM_PADDING
from glue_bench.records import Training

# Tokens with padding in one forward pass of prediction: enough to fill the device, little enough for its caches.
PREDICTED_TOKENS = {"cpu": 2_048, "cuda": 65_536}
# Random bits of an element of a dropout mask: with 8 a step in bf16 is 2 % shorter.
MASK_BITS = {"fp32": 16, "bf16": 8}
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
OUT_OF_MEMORY += ("CUBLAS_STATUS_NOT_INITIALIZED",)  # how cuBLAS says that a full GPU has no room for its workspace


@dataclass(frozen=True)
class Recipe:
    """How to train; the fields are those of config.TaskTraining, with one seed, and the precision fp32 or bf16."""

    learning_rate: float
    batch_size: int
    epochs: int
    warmup: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    precision: str


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's logits (n, outputs) on the training set, their weight in the loss, and the temperature."""

    logits: Tensor
    weight: float
    temperature: float


def task_loss(logits: Tensor, labels: Tensor, teacher: Tensor | None, weight: float, temperature: float) -> Tensor:
    """Sum over examples of (1 - w) hard + w soft; logits (n, outputs), labels (n,) integers, or real for regression.

    hard: cross-entropy, or squared error with one output. soft, towards the teacher's logits (n, outputs):
    T^2 KL(softmax(teacher / T) || softmax(logits / T)), or squared error. Without a teacher the hard part alone.
    Source: Hinton et al. 2015, section 2; Sanh et al. 2019, section 3 ("two steps of distillation").
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    regression = labels.is_floating_point()
    hard = F.mse_loss(logits[:, 0], labels, reduction="sum") if regression else None
    if hard is None:
        hard = F.cross_entropy(logits, labels, reduction="sum")
    if teacher is None:
        return hard
    if regression:
        soft = F.mse_loss(logits, teacher, reduction="sum")
    else:
        student_log = F.log_softmax(logits / temperature, dim=-1)
        teacher_log = F.log_softmax(teacher / temperature, dim=-1)
        soft = temperature**2 * F.kl_div(student_log, teacher_log, log_target=True, reduction="sum")
    return (1.0 - weight) * hard + weight * soft


def train(
    model: PreTrainedModel, encoded: Encoded, labels: np.ndarray, recipe: Recipe, soft: SoftTargets | None, name: str
) -> Training:
    """Fine-tune a model, which lies on its device in fp32, on n examples; it is left in eval mode.

    labels (n,): int64 classes, or real numbers where the model has one output. `name` opens error messages.
    Out of memory halves the micro-batch, keeping the batch, and a note says so.
    Raises StepError where the loss is no finite number, or one example is too much for the memory.
    """
    device = model.device
    started = time.perf_counter()
    steps = -(-len(encoded) // recipe.batch_size) * recipe.epochs
    losses = torch.zeros(steps, device=device)
    stream = MaskStream(recipe.seed, bits=MASK_BITS[recipe.precision])
    devices = [device] if device.type == "cuda" else []
    if device.type == "cpu":
        own_memory(model)
    model.train()
    with (
        torch.random.fork_rng(devices=devices),
        narrowed_vocabulary(model, encoded.to(device), wanted=recipe.weight_decay == 0.0) as known,
        cheap_dropout(model, stream),
        first_position_only(model),
        written_out_layers(model, recipe.precision, stream),
        full_precision_head(model),
        tqdm(total=steps, unit="step", leave=False, disable=not is_terminal(), desc=name) as bar,
    ):
        updates = _Updates(model, known, _targets(labels, device), soft, recipe, stream)
        schedule = get_linear_schedule_with_warmup(updates.optimiser, math.ceil(recipe.warmup * steps), steps)
        step = 0
        for epoch in range(recipe.epochs):
            for batch in training_batches(known, recipe.batch_size, seed=recipe.seed, epoch=epoch):
                losses[step] = updates.update(batch, step, name)
                schedule.step()
                step += 1
                if device.type == "cpu" and step % STEPS_TO_FADE == 0:
                    clear_faded_moments(updates.optimiser)
                bar.update()
            _refuse_nan(losses[:step], steps, name)
        updates.optimiser.zero_grad()
    model.eval()
    return Training(
        steps=steps,
        examples=len(encoded) * recipe.epochs,
        tokens=encoded.tokens * recipe.epochs,
        seconds=round(time.perf_counter() - started, 3),
        first_loss=float(losses[0]),
        last_loss=float(losses[-1]),
        truncated=encoded.truncated,
        micro_batch_size=updates.micro_batch_size,
        notes=(*updates.notes, *updates.graphs.notes),
    )


def predict(model: PreTrainedModel, encoded: Encoded, precision: str) -> np.ndarray:
    """Logits (n, outputs) float32 of n examples, in their order. Out of memory halves a batch.

    On a CPU every thread predicts batches of its own, so that the result does not depend on their number.
    """
    device = model.device
    known, forward = encoded.to(device), Forward(model)
    logits = torch.empty(len(encoded), model.config.num_labels, device=device)
    waiting = prediction_batches(known, PREDICTED_TOKENS[device.type])[::-1]
    model.eval()

    def work() -> None:
        with torch.no_grad(), autocast(device, precision):
            while waiting:
                try:
                    batch = waiting.pop()
                except IndexError:  # another thread was faster
                    return
                for piece, values in _in_memory(forward, known, batch):
                    logits[piece.rows] = values.float()

    with (
        first_position_only(model),
        full_precision_head(model),
        attention_in_products(model),
        written_out_layers(model, precision, stream=None),
        fused_linear(model, precision),
    ):
        if device.type == "cpu" and torch.get_num_threads() > 1:
            _on_every_thread(work, stop=waiting.clear)
        else:
            work()
    return logits.cpu().numpy()


def _in_memory(forward: Forward, encoded: Encoded, batch: Batch) -> Iterator[tuple[Batch, Tensor]]:
    """The logits of a batch, in halves of halves where the memory asks for it."""
    try:
        values = forward(encoded, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch.index) == 1:
            raise
    else:
        yield batch, values
        return
    for piece in batch.pieces(-(-len(batch.index) // 2)):
        yield from _in_memory(forward, encoded, piece)


def _on_every_thread(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run `work` once on each of torch's threads, which then computes alone there; raises what one of them raised.

    Products of a few hundred rows do not fill two cores together: two threads that work apart predict the dev sets of
    MRPC and CoLA 1.25 times as fast (AMX, bf16). `stop` leaves them nothing more to do, on an interrupt or an error.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for done in [pool.submit(work) for _ in range(threads)]:
                    done.result()
            except BaseException:
                stop()
                raise
    finally:
        torch.set_num_threads(threads)


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """max_length, or what the model's positions and its tokenizer allow where that is less.

    Families of the RoBERTa kind count positions from the padding's number plus one.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or max_length
    positions = positions if positions > 0 else max_length  # XLNet's -1: no limit
    if model.config.model_type in FROM_PADDING:
        positions -= tokenizer.pad_token_id + 1
    return min(max_length, positions, tokenizer.model_max_length)


class _Updates:
    """Optimiser steps on whole batches, in as many micro-batches as the memory asks for."""

    def __init__(
        self,
        model: PreTrainedModel,
        encoded: Encoded,
        targets: Tensor,
        soft: SoftTargets | None,
        recipe: Recipe,
        stream: MaskStream,
    ) -> None:
        self.model, self.encoded, self.targets, self.soft, self.recipe = model, encoded, targets, soft, recipe
        self.forward, self.stream = Forward(model), stream
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = tuning_adamw(self.trained, recipe.learning_rate, recipe.weight_decay, targets.device)
        self.graphs = StepGraphs(targets.device)
        self.micro_batch_size = recipe.batch_size
        self.notes: list[str] = []

    def update(self, batch: Batch, step: int, name: str) -> Tensor:
        """Take a step on the mean loss of a batch; returns that loss, detached, which the next call may overwrite.

        Raises StepError where one example is too much for the memory.
        """
        while True:
            try:
                return self._update(batch, step)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.micro_batch_size == 1:
                raise StepError(
                    f"{name}: out of memory with one example at a time; lower max_length, or use a smaller model"
                )
            self._halve(step)

    def _update(self, batch: Batch, step: int) -> Tensor:
        if len(batch.index) <= self.micro_batch_size:
            self._restart(step, 0)
            shape = (len(batch.index), *self.forward.shape(self.encoded, batch))
            return self.graphs.run(shape, partial(self._whole, batch.index), batch.rows)
        self.optimiser.zero_grad()
        total = torch.zeros((), device=self.targets.device)
        for number, piece in enumerate(batch.pieces(self.micro_batch_size)):
            self._restart(step, number)
            total += self._add_gradients(piece, len(batch.index))
        self._step()
        return total

    def _whole(self, index: np.ndarray, rows: Tensor) -> Tensor:
        """A step on a batch in one piece; a graph of it is for other rows of the same shape."""
        self.optimiser.zero_grad()
        loss = self._add_gradients(Batch(index, rows), len(index))
        self._step()
        return loss

    def _restart(self, step: int, micro_batch: int) -> None:
        """Make dropout a function of the seed and the position."""
        key = dropout_seed(self.recipe.seed, step, micro_batch)
        torch.manual_seed(key)
        self.stream.restart(key)

    def _add_gradients(self, piece: Batch, examples: int) -> Tensor:
        """Add the gradient of a micro-batch's share of the mean over so many examples; returns that share, detached."""
        with autocast(self.targets.device, self.recipe.precision):
            logits = self.forward(self.encoded, piece)
        loss = self._loss(logits, piece) / examples
        loss.backward()
        return loss.detach()

    def _step(self) -> None:
        within = self.targets.device.type == "cpu" and self.recipe.precision == "bf16"
        clipped_step(self.optimiser, self.trained, self.recipe.max_grad_norm, within=within)

    def _loss(self, logits: Tensor, piece: Batch) -> Tensor:
        labels = self.targets[piece.rows]
        if self.soft is None:
            return task_loss(logits, labels, None, weight=0.0, temperature=1.0)
        teacher = self.soft.logits[piece.rows]
        return task_loss(logits, labels, teacher, weight=self.soft.weight, temperature=self.soft.temperature)

    def _halve(self, step: int) -> None:
        self.model.zero_grad()
        if step == 0:  # moments that were being made: half of them are no state to go on with
            self.optimiser.state.clear()
        torch.cuda.empty_cache()  # does nothing where there is no CUDA
        self.micro_batch_size = -(-self.micro_batch_size // 2)
        self.notes.append(
            f"out of memory at step {step + 1}: from there in micro-batches of {self.micro_batch_size}, "
            f"the batch stays {self.recipe.batch_size}"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is the device's memory running out, or the machine's, whichever library met it.

    torch's allocator of CUDA memory has a class of its own; the CPU's, CUDA itself and cuBLAS say it in words; NumPy
    (the dropout masks) raises MemoryError.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def _targets(labels: np.ndarray, device: torch.device) -> Tensor:
    """Labels on the device: int64 classes, or fp32 numbers."""
    values = torch.tensor(labels)  # a copy: arrays read from Parquet are read-only
    return (values.float() if values.is_floating_point() else values.long()).to(device)


def _refuse_nan(losses: Tensor, steps: int, name: str) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise StepError(
            f"{name}: the loss is {float(losses[step])} at step {step + 1} of {steps}; "
            "lower learning_rate, raise warmup, or use precision fp32"
        )
