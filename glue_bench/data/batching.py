"""From text to tensors of one task: tokenised once, kept flat, cut into batches of like length, with little padding.

Padding to a fixed 128 tokens makes a step on CoLA (11 tokens on average) ten times as dear as it need be. Tokens lie on
the training device as one flat tensor and a batch is gathered from it there, so the loop copies nothing from the host.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glue_bench.data.rounding import round_up

TOKENISED_AT_ONCE = 10_000  # texts per call of the tokenizer, which holds a few kB per text while it works
# Batches that are drawn at random and then sorted by length together: as the Trainer's group_by_length has it, 50, or a
# quarter of an epoch where that is less, so that examples change their partners from epoch to epoch; but at least 16.
# Tokens with padding, for batches of 32, as a multiple of those without: SST-2 1.05 with 50 (1.15 with 16, 3.01
# unsorted), MNLI 1.04 (1.12 with 16), MRPC, whose quarter is 28 batches, 1.03 (1.05 with 16, 1.50 unsorted).
MOST_GROUPED, LEAST_GROUPED = 50, 16
WIDTH_MULTIPLE = 8  # that widths are rounded up to where kernels want it


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples, one after the other: example i is ids[starts[i] : starts[i + 1]].

    ids (tokens + margin,) int32, the margin being padding; types likewise, or None where the tokenizer gives no
    segments; starts (n + 1,) int64; lengths (n,) on the host; max_length: what they were cut to; truncated: how many.
    """

    ids: Tensor
    types: Tensor | None
    starts: Tensor
    lengths: np.ndarray
    pad_id: int
    max_length: int
    truncated: int

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens of all examples, special ones included."""
        return int(self.lengths.sum())

    def to(self, device: torch.device) -> "Encoded":
        """The same with its tensors on a device."""
        types = None if self.types is None else self.types.to(device)
        return replace(self, ids=self.ids.to(device), types=types, starts=self.starts.to(device))


@dataclass(frozen=True)
class Batch:
    """Examples that go through the model together: their numbers on the host and on the device, (examples,) int64."""

    index: np.ndarray
    rows: Tensor

    def pieces(self, size: int) -> Iterator["Batch"]:
        """The batch in micro-batches of at most `size` examples."""
        for start in range(0, len(self.index), size):
            yield Batch(self.index[start : start + size], self.rows[start : start + size])


def encode(tokenizer: Any, texts: Sequence[Sequence[str]], max_length: int) -> Encoded:
    """Tokenise n examples given as one column of texts, or two for pairs, which are cut longest first.

    tokenizer: a fast tokenizer of transformers. Special tokens count towards max_length.
    """
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    truncated = 0
    for start in range(0, len(texts[0]), TOKENISED_AT_ONCE):
        part = [list(column[start : start + TOKENISED_AT_ONCE]) for column in texts]
        batch = tokenizer(*part, truncation="longest_first", max_length=max_length, return_attention_mask=False)
        ids += [np.asarray(row, dtype=np.int32) for row in batch["input_ids"]]
        types += [np.asarray(row, dtype=np.int32) for row in batch.get("token_type_ids", ())]
        truncated += sum(bool(one.overflowing) for one in batch.encodings)
    tokenizer.backend_tokenizer.no_truncation()  # it keeps the last call's, and would be saved with it
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(
        ids=_flat(ids, tokenizer.pad_token_id, max_length),
        types=_flat(types, 0, max_length) if types else None,
        starts=torch.from_numpy(starts),
        lengths=lengths,
        pad_id=tokenizer.pad_token_id,
        max_length=max_length,
        truncated=truncated,
    )


def _flat(rows: list[np.ndarray], fill: int, margin: int) -> Tensor:
    return torch.from_numpy(np.concatenate([*rows, np.full(margin, fill, dtype=np.int32)]))


def batches_grouped(examples: int, batch_size: int) -> int:
    """How many batches of an epoch are sorted by length together."""
    return min(MOST_GROUPED, max(LEAST_GROUPED, examples // (4 * batch_size)))


def training_batches(encoded: Encoded, batch_size: int, *, seed: int, epoch: int) -> list[Batch]:
    """The batches of one epoch, each example once, in an order drawn from (seed, epoch).

    Examples are shuffled, sorted by length within groups of 16 to 50 batches (equal lengths stay shuffled), cut into
    batches, and these shuffled. Within a batch lengths ascend.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(encoded))
    grouped = batch_size * batches_grouped(len(encoded), batch_size)
    batches = []
    for start in range(0, len(order), grouped):
        group = order[start : start + grouped]
        group = group[np.argsort(encoded.lengths[group], kind="stable")]
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return _placed([batches[i] for i in rng.permutation(len(batches))], encoded)


def prediction_batches(encoded: Encoded, max_tokens: int) -> list[Batch]:
    """All examples by length, the longest first (so that memory runs out at once or never), in batches of at most
    max_tokens tokens with padding to a multiple of 8, or of one example."""
    order = np.argsort(-encoded.lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        width = round_up(int(encoded.lengths[order[start]]), WIDTH_MULTIPLE)
        size = max(1, max_tokens // width)
        batches.append(order[start : start + size])
        start += size
    return _placed(batches, encoded)


def _placed(batches: list[np.ndarray], encoded: Encoded) -> list[Batch]:
    """The batches with their example numbers on the device of the tokens, copied there in one go."""
    if not batches:
        return []
    everything = torch.from_numpy(np.concatenate(batches)).to(encoded.starts.device)
    return [
        Batch(index, rows) for index, rows in zip(batches, everything.split([len(b) for b in batches]), strict=True)
    ]


def width_and_padding(encoded: Encoded, batch: Batch, multiple: int) -> tuple[int, bool]:
    """The width that `gather` gives a batch, and whether any of its examples is shorter."""
    lengths = encoded.lengths[batch.index]
    width = min(round_up(int(lengths.max()), multiple), encoded.max_length)
    return width, int(lengths.min()) < width


def gather(encoded: Encoded, batch: Batch, multiple: int) -> dict[str, Tensor]:
    """input_ids, token_type_ids (where there are segments) and attention_mask of a batch, (examples, width) each.

    The width is the longest example's, rounded up to a multiple but never over max_length. attention_mask is boolean,
    and left out where every example fills the width.
    """
    width, padded = width_and_padding(encoded, batch, multiple)
    starts = encoded.starts[batch.rows, None]
    positions = starts + torch.arange(width, device=starts.device)
    inputs = {"input_ids": encoded.ids[positions].long()}
    if encoded.types is not None:
        inputs["token_type_ids"] = encoded.types[positions].long()
    if padded:
        mask = positions < encoded.starts[batch.rows + 1, None]
        inputs["input_ids"] = torch.where(mask, inputs["input_ids"], encoded.pad_id)
        if encoded.types is not None:
            inputs["token_type_ids"] = inputs["token_type_ids"] * mask
        inputs["attention_mask"] = mask
    return inputs
