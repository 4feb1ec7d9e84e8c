"""The one optimisation loop, for pretrain and distill: AdamW with linear warm-up and decay over masked batches.

Exact: the gradient is that of the whole batch, however it is split into micro-batches and processes. Resumable: order
and masks are functions of the seed and the position, dropout is seeded by (seed, step, micro-batch), so weights,
moments and the step are all that a checkpoint needs.
"""

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from glue_bench.errors import StepError
from glue_bench.learning.batches import Batch, Batches, MicroBatch
from glue_bench.learning.checkpoints import load_checkpoint, save_checkpoint
from glue_bench.learning.distributed import Group, first_value, require_same, sum_gradients, sum_tensor
from glue_bench.learning.dropout import MaskStream, cheap_dropout
from glue_bench.learning.graphs import StepGraphs
from glue_bench.learning.heap import kept_heap
from glue_bench.learning.losses import Counts, LossTerms, LossWeights
from glue_bench.learning.optimiser import Schedule, adamw
from glue_bench.learning.progress import Progress, matrix_rate
from glue_bench.store import checkpoints_of

LOG_ROWS = 1000  # of training.csv at most; a longer training is logged at every n-th step
CHECKPOINT_SECONDS = 120.0  # slow steps are saved this often, whatever checkpoint_every says
SAVE_BYTES_PER_SECOND = 200e6  # before a checkpoint has told its own; measured: 300 MB a CPU second, with hashing
SAVE_ON_INTERRUPT_SECONDS = 2.0  # an interrupted run must end within 5 s, so it saves only where that is quick
EXPLODED = 3.0  # times the first loss, or that of uniform predictions where that is more
LOG_COLUMNS = ("step", "tokens", "seconds", "learning_rate", "loss", "soft", "mlm", "cosine", "grad_norm")
LOG_COLUMNS += ("tokens_per_second",)
HELDOUT_COLUMNS = ("step", "tokens", "mlm_loss", "accuracy", "kl_to_teacher")


class Objective(Protocol):
    """What is minimised: a model and its loss."""

    model: torch.nn.Module
    weights: LossWeights

    def share(self, batch: MicroBatch, counts: Counts) -> tuple[torch.Tensor, LossTerms]:
        """A micro-batch's share of the loss of the batch with these counts, to call backward on; detached sums."""

    def heldout(self) -> tuple[float, float, float | None]:
        """Held-out MLM loss, accuracy of the masked words, KL to the teacher."""

    def flops(self, tokens: int, rows: int, length: int) -> float:
        """Floating-point operations of a step over so many tokens, of which `rows` go through the MLM heads."""


@dataclass
class Curves:
    """What a training has done so far; part of its checkpoint."""

    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    log: list[list[float]] = field(default_factory=list)
    heldout: list[list[float | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def train(
    objective: Objective,
    batches: Batches,
    schedule: Schedule,
    settings: Mapping[str, Any],
    *,
    folder: Path,
    fingerprint: str,
) -> Curves:
    """Train objective.model in place, from the newest checkpoint of this fingerprint under folder/checkpoints on.

    settings: those of config.Optimisation, with threads and precision. The last checkpoint stays: a step that is killed
    before its record is written does not train again. Raises StepError where the loss is no number or explodes.
    """
    training = _Training(objective, batches, schedule, settings, checkpoints_of(folder, fingerprint), fingerprint)
    training.resume()
    with kept_heap():
        try:
            training.run()
        except KeyboardInterrupt:
            training.save_if_quick()
            raise
    return training.curves


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 products where the precision is bf16, else nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Seed of torch's generator for one micro-batch."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Training:
    """The state of one training: model, optimiser, position, curves."""

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        schedule: Schedule,
        settings: Mapping[str, Any],
        checkpoints: Path,
        fingerprint: str,
    ) -> None:
        self.objective, self.batches, self.schedule, self.settings = objective, batches, schedule, settings
        self.checkpoints, self.fingerprint = checkpoints, fingerprint
        self.group: Group = batches.group
        self.model = objective.model
        self.parameters = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        self.optimiser = adamw(self.model, settings)
        self.graphs = StepGraphs(batches.device)
        self.dropout = MaskStream(0)
        self.step = 0
        self.curves = Curves()
        self.whole = True  # an interrupt in the middle of an update leaves nothing to save
        self.saved_step = -1
        self.save_seconds = 0.0
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the newest intact checkpoint that the first process sees."""
        require_same(self.fingerprint, self.group, self.batches.device)
        found = load_checkpoint(self.checkpoints, self.fingerprint) if self.group.records else None
        step = first_value(found[0] if found else -1, self.group, self.batches.device)
        if step < 0:
            return
        found = found or load_checkpoint(self.checkpoints, self.fingerprint)
        if found is None or found[0] != step:
            raise StepError(f"{self.checkpoints}: not the same in all processes; they need a common results folder")
        _, tensors, state = found
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model/{name}"])
        for name, parameter in self.parameters.items():
            if f"exp_avg/{name}" in tensors:
                moments = {key: tensors[f"{key}/{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
                step_device = parameter.device if parameter.device.type == "cuda" else "cpu"
                self.optimiser.state[parameter] = {"step": tensors[f"step/{name}"].to(step_device), **moments}
        self.curves = Curves(**state)
        self.step = self.saved_step = step

    def run(self) -> None:
        """All steps that are left."""
        wanted = self._evaluations()
        if not self.curves.heldout:
            self._evaluate()
        end = self.schedule.steps
        progress = Progress(end, self.step, self.group.records, self._matrix_rate)
        with progress, cheap_dropout(self.model, self.dropout):
            started = time.monotonic()
            for batch in self._batches(end):  # its making counts: a GPU may have to wait for it
                row = self._advance(batch)
                seconds = time.monotonic() - started
                self._log(row, batch, seconds)
                progress.show(self.step, dict(zip(LOG_COLUMNS, self.curves.log[-1], strict=True)), self.curves.flops)
                if self.step in wanted:
                    self._evaluate()
                self.whole = True  # step, log and evaluation belong together: an interrupt saves all three or none
                due = self.step % self.settings["checkpoint_every"] == 0
                if due or self.step == end or time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
                    self.save()
                started = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        if not self.group.records or self.saved_step == self.step:
            return
        started = time.monotonic()
        self.curves.notes += [note for note in self.graphs.notes if note not in self.curves.notes]
        tensors = {f"model/{name}": one for name, one in self.model.named_parameters()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
        save_checkpoint(self.checkpoints, self.step, self.fingerprint, tensors, asdict(self.curves))
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.save_seconds = self.saved_at - started

    def save_if_quick(self) -> None:
        """On an interrupt: a checkpoint, where the state is whole and writing takes no more than a moment."""
        if self.whole and self.step > 0 and self._seconds_to_save() < SAVE_ON_INTERRUPT_SECONDS:
            self.save()

    def _seconds_to_save(self) -> float:
        """What a checkpoint takes: as long as the last one, and before there is one, by its size."""
        if self.save_seconds:
            return self.save_seconds
        numbers = sum(one.numel() for one in self.model.parameters())
        numbers += 2 * sum(one.numel() for one in self.parameters.values())
        return 4 * numbers / SAVE_BYTES_PER_SECOND

    def _matrix_rate(self) -> float:
        """Floating-point operations per second that the devices of all processes can do."""
        return self.group.size * matrix_rate(self.batches.device, self.settings["precision"])

    def _batches(self, end: int) -> Iterator[Batch]:
        """The batches that are left; for a GPU the next one is made while this one is computed.

        Not while the second one is, with which the step is recorded: a copy to the device beside it may spoil that.
        """
        batches = self.batches.from_step(self.step, end)
        if self.batches.device.type != "cuda":
            yield from batches
            return
        yield from itertools.islice(batches, 2)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(next, batches, None)
            while (batch := waiting.result()) is not None:
                waiting = pool.submit(next, batches, None)
                yield batch

    def _advance(self, batch: Batch) -> list[float]:
        """One optimiser step; returns loss, its three terms and the gradient norm."""
        self._set_rates()
        self.model.train()
        trained = list(self.parameters.values())
        match batch.micro_batches:
            case [only] if only.attention_mask is None:
                sums = self._replayed(only, batch.counts)
            case several:
                sums = torch.zeros(3, device=self.batches.device)
                with autocast(self.batches.device, self.settings["precision"]):  # around all: one cast of each weight
                    for micro_batch in several:
                        self._restart_dropout(micro_batch.number)
                        sums += self._add_gradients(micro_batch, batch.counts)
        sum_gradients(trained, self.group)
        sum_tensor(sums, self.group)
        norm = torch.nn.utils.clip_grad_norm_(trained, self.settings["max_grad_norm"])
        soft, mlm, cosine, grad_norm = torch.cat([sums, norm.reshape(1).float()]).tolist()
        means = LossTerms(*torch.tensor([soft, mlm, cosine], dtype=torch.float64)).divided(batch.counts)
        loss = float(means.total(self.objective.weights))
        self._check(loss, grad_norm)
        self.whole = False
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.curves.tokens += batch.tokens
        self.curves.last_loss = loss
        if self.curves.first_loss is None:
            self.curves.first_loss = loss
        return [loss, float(means.soft), float(means.mlm), float(means.cosine), grad_norm]

    def _add_gradients(self, micro_batch: MicroBatch, counts: Counts) -> torch.Tensor:
        """Add the gradient of a micro-batch's share of the loss; returns the sums of the three terms (3,), detached."""
        place = self.batches.device
        with autocast(place, self.settings["precision"]):
            share, terms = self.objective.share(micro_batch, counts)
            with torch.autocast(place.type, enabled=False):
                share.backward()
        return torch.stack([terms.soft, terms.mlm, terms.cosine]).float()

    def _replayed(self, only: MicroBatch, counts: Counts) -> torch.Tensor:
        """`_add_gradients` of a batch that is one micro-batch without padding: packed text gives the same shape always.

        Recorded are forward and backward pass; gradients are summed over processes, clipped and used outside.
        """
        self._restart_dropout(only.number)
        trained = list(self.parameters.values())

        def add(input_ids: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
            self.optimiser.zero_grad(set_to_none=True)  # a recording that failed leaves gradients without values
            positions = replace(only.positions, rows=rows, targets=targets)
            sums = self._add_gradients(replace(only, input_ids=input_ids, positions=positions), counts)
            return sums, [parameter.grad for parameter in trained]

        head_only = self.step < self.schedule.head_only
        shape = (only.input_ids.shape, only.positions.counts, counts, head_only)
        inputs = (only.input_ids, only.positions.rows, only.positions.targets)
        sums, gradients = self.graphs.run(shape, add, *inputs)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        return sums

    def _restart_dropout(self, micro_batch: int) -> None:
        """Make dropout a function of the seed and the position."""
        seed = self.settings["seed"]
        self.dropout.restart(seed, self.step, micro_batch)
        torch.manual_seed(dropout_seed(seed, self.step, micro_batch))

    def _set_rates(self) -> None:
        head_only = self.step < self.schedule.head_only
        for group in self.optimiser.param_groups:
            encoder = group["encoder"]
            group["lr"] = self.schedule.encoder_rate(self.step) if encoder else self.schedule.rate(self.step)
            if encoder and self.schedule.head_only:
                for parameter in group["params"]:
                    parameter.requires_grad_(not head_only)

    def _check(self, loss: float, grad_norm: float) -> None:
        soft, mlm, cosine = self.objective.weights
        uniform = math.log(self.model.config.vocab_size) * (soft + mlm) + 2.0 * cosine  # 1 - cos is at most 2
        limit = EXPLODED * max(self.curves.first_loss or 0.0, uniform)
        if math.isfinite(loss) and math.isfinite(grad_norm) and loss <= limit:
            return
        last = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step > 0 else "no checkpoint yet"
        if not self.group.records:
            last = "the first process says which checkpoint is kept"
        raise StepError(
            f"training step {self.step + 1} of {self.schedule.steps}: the loss is {loss:.4g}, the gradient norm "
            f"{grad_norm:.4g}; {last}. Lower learning_rate, raise warmup, or use precision fp32"
        )

    def _log(self, row: list[float], batch: Batch, seconds: float) -> None:
        curves = self.curves
        curves.seconds += seconds
        rows = batch.counts.mlm if self.batches.ce_positions != "attended" else batch.counts.soft
        length = batch.micro_batches[0].input_ids.shape[1] if batch.micro_batches else 0
        curves.flops += self.objective.flops(batch.tokens, rows, length)
        rate = self.schedule.rate(self.step - 1)
        every = math.ceil(self.schedule.steps / LOG_ROWS)
        if curves.log and curves.log[-1][0] % every and curves.log[-1][0] != 1:
            curves.log.pop()  # only the newest row, every n-th one and the first stay
        curves.log.append([self.step, curves.tokens, curves.seconds, rate, *row, batch.tokens / max(seconds, 1e-9)])

    def _evaluations(self) -> set[int]:
        count = min(self.settings["evaluations"], self.schedule.steps)
        return {round(self.schedule.steps * number / count) for number in range(1, count + 1)}

    def _evaluate(self) -> None:
        self.model.eval()
        values = list(self.objective.heldout()) if self.group.records else [0.0, 0.0, None]
        self.curves.heldout.append([self.step, self.curves.tokens, *values])
        if not all(value is None or math.isfinite(value) for value in values):
            raise StepError(f"training step {self.step}: the held-out loss is no finite number; lower learning_rate")
