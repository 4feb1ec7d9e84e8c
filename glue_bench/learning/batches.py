"""The optimiser batches of a training: which sequences, how masked, in micro-batches for each process.

Every batch is a pure function of (seed, step), so a resumed run and any number of processes see the same ones. All
processes mask the whole batch (it is cheap) and so know the counts that its losses are means over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from glue_bench.data.corpus import Corpus, Sequences
from glue_bench.data.masking import mask_batch, token_weights
from glue_bench.data.rounding import round_up
from glue_bench.learning.distributed import Group
from glue_bench.learning.losses import Counts, Positions, loss_positions

# The same held-out positions are masked in every training, all words alike, so that the losses of any two compare:
# a recipe that prefers rare words must not sit a harder exam than another.
HELDOUT_SEED = 0
HELDOUT_PROBABILITY = 0.15
HELDOUT_BATCH = 32
# Padded batches are this much wider than need be at most. On a CPU each new width has forty kernels compiled, 60 ms
# beside a step of 350 (MiniLM-L6 to 3 layers, 64 sentences), and only some 25 widths stay in its cache.
WIDTH_MULTIPLE = 4


@dataclass(frozen=True)
class MicroBatch:
    """Masked tokens of some sequences (n, length) on the device; no attention mask where nothing is padding."""

    number: int  # within the optimiser batch
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    positions: Positions


@dataclass(frozen=True)
class Batch:
    """This process's micro-batches of one optimiser batch; counts and tokens are those of the whole batch."""

    micro_batches: list[MicroBatch]
    counts: Counts
    tokens: int


@dataclass(frozen=True)
class Masking:
    """How tokens are masked: weights (vocabulary,) of the choice, the tokenizer's ids, the share of positions."""

    weights: np.ndarray
    mask_id: int
    pad_id: int
    probability: float

    @classmethod
    def of(cls, corpus: Corpus, tokenizer: Any, probability: float, smoothing: float) -> "Masking":
        """The masking of a corpus: rare tokens are chosen more often."""
        weights = token_weights(corpus.counts, smoothing=smoothing, special_ids=tokenizer.all_special_ids)
        return cls(weights, tokenizer.mask_token_id, tokenizer.pad_token_id, probability)


@dataclass(frozen=True)
class Batches:
    """All optimiser batches of one training."""

    corpus: Corpus
    masking: Masking
    seed: int
    batch_size: int
    micro_batch_size: int
    ce_positions: str  # attended, masked or none, as loss_positions takes it
    group: Group
    device: torch.device

    @property
    def per_epoch(self) -> int:
        """Optimiser batches in one pass over the text."""
        return len(self.corpus.train) // self.batch_size

    def from_step(self, step: int, end: int) -> Iterator[Batch]:
        """The batches of the steps from `step` to before `end`."""
        epoch, order = -1, np.empty(0)
        for now in range(step, end):
            if now // self.per_epoch != epoch:
                epoch = now // self.per_epoch
                order = self.corpus.epoch_batches(self.seed, epoch, self.batch_size)
            yield self._batch(order[now % self.per_epoch], epoch)

    def _batch(self, numbers: np.ndarray, epoch: int) -> Batch:
        input_ids, attention = self.corpus.train.batch(numbers, self.masking.pad_id, WIDTH_MULTIPLE)
        masked, labels = _masked(self.masking, input_ids, attention, numbers, self.seed, epoch)
        whole = loss_positions(torch.from_numpy(labels), torch.from_numpy(attention), ce_positions=self.ce_positions)
        mine = []
        for number, start in enumerate(range(0, len(numbers), self.micro_batch_size)):
            if number % self.group.size == self.group.rank:
                rows = slice(start, start + self.micro_batch_size)
                mine.append(
                    _micro_batch(number, masked[rows], attention[rows], labels[rows], self.ce_positions, self.device)
                )
        return Batch(mine, whole.counts, whole.counts.cosine)


def heldout_batches(sequences: Sequences, masking: Masking, tokens: int, device: torch.device) -> list[MicroBatch]:
    """The first held-out sequences that make up `tokens` tokens (all where there are fewer), masked once for all.

    Of `masking` only the tokenizer's ids count, and which tokens have no weight and are never masked.
    """
    masking = replace(masking, weights=(masking.weights > 0).astype(np.float64), probability=HELDOUT_PROBABILITY)
    count = max(1, min(len(sequences), int(np.searchsorted(sequences.offsets, tokens, side="left"))))
    batches = []
    for number, start in enumerate(range(0, count, HELDOUT_BATCH)):
        numbers = np.arange(start, min(start + HELDOUT_BATCH, count))
        input_ids, attention = sequences.batch(numbers, masking.pad_id, WIDTH_MULTIPLE)
        masked, labels = _masked(masking, input_ids, attention, numbers, HELDOUT_SEED, 0)
        batches.append(_micro_batch(number, masked, attention, labels, "none", device))
    return batches


def _masked(
    masking: Masking, input_ids: np.ndarray, attention: np.ndarray, numbers: np.ndarray, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    return mask_batch(
        input_ids,
        attention,
        numbers,
        seed=seed,
        epoch=epoch,
        weights=masking.weights,
        mask_id=masking.mask_id,
        probability=masking.probability,
    )


def _micro_batch(
    number: int, masked: np.ndarray, attention: np.ndarray, labels: np.ndarray, ce_positions: str, device: torch.device
) -> MicroBatch:
    width = round_up(int(attention.sum(axis=1).max()), WIDTH_MULTIPLE)  # no slice is wider than its array
    masked, attention, labels = (torch.from_numpy(array[:, :width]) for array in (masked, attention, labels))
    positions = loss_positions(labels, attention, ce_positions=ce_positions).to(device)
    mask = None if positions.attended is None else attention.to(device, non_blocking=True)
    return MicroBatch(number, masked.to(device, non_blocking=True), mask, positions)
