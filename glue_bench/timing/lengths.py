"""What the models are timed on: the STS-B dev set as the run prepared it, or random tokens of the dev set's lengths.

Every model gets the same token ids in the same batches. Tokenising and padding happen here, long before the clock.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from glue_bench.data.batching import encode

Batch = dict[str, torch.Tensor]

# Tokens per pair, special tokens included -> pairs: the 1,500 pairs of the STS-B dev set in the uncased BERT vocabulary
# (30,522 entries). Mean 31.5, median 28, longest 87.
STSB_DEV_LENGTHS = {  # fmt: skip
    11: 1,
    12: 6,
    13: 17,
    14: 11,
    15: 34,
    16: 60,
    17: 79,
    18: 69,
    19: 67,
    20: 61,
    21: 93,
    22: 63,
    23: 53,
    24: 45,
    25: 39,
    26: 32,
    27: 19,
    28: 31,
    29: 27,
    30: 19,
    31: 22,
    32: 27,
    33: 33,
    34: 30,
    35: 39,
    36: 23,
    37: 28,
    38: 33,
    39: 28,
    40: 30,
    41: 29,
    42: 29,
    43: 26,
    44: 27,
    45: 26,
    46: 22,
    47: 16,
    48: 18,
    49: 21,
    50: 8,
    51: 11,
    52: 9,
    53: 14,
    54: 9,
    55: 7,
    56: 3,
    57: 5,
    58: 9,
    59: 11,
    60: 10,
    61: 4,
    62: 9,
    63: 5,
    64: 10,
    65: 6,
    66: 2,
    67: 2,
    68: 3,
    69: 7,
    70: 5,
    71: 3,
    72: 4,
    73: 3,
    74: 2,
    75: 1,
    76: 1,
    77: 2,
    78: 1,
    87: 1,
}
FIXED_LENGTH = 128


@dataclass(frozen=True)
class Example:
    """Token ids of one pair, special tokens included, and the number of them that belong to the first sentence."""

    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Work:
    """One scenario at one batch size: its batches (int64 tensors, batch x sequence) in the order of a pass."""

    scenario: str
    batch_size: int
    examples: int
    whole_pass: bool  # time passes in one go rather than calls
    batches: tuple[Batch, ...]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each batch."""
        return [tuple(batch["input_ids"].shape) for batch in self.batches]

    @property
    def longest(self) -> int:
        """Tokens of the longest batch, padding included."""
        return max(length for _, length in self.shapes)

    @property
    def largest(self) -> int:
        """Index of the batch with the most tokens, padding included."""
        return max(range(len(self.batches)), key=lambda i: self.batches[i]["input_ids"].numel())


def stsb_examples(parquet: Path, tokenizer: Any, max_length: int) -> list[Example]:
    """The dev pairs in their order, cut to `max_length` tokens (longest sentence first)."""
    pairs = pd.read_parquet(parquet, columns=["sentence1", "sentence2"])
    return examples_of([list(pairs["sentence1"]), list(pairs["sentence2"])], tokenizer, max_length)


def examples_of(texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> list[Example]:
    """Examples of one column of texts, or of two for pairs, in their order, cut to `max_length` tokens."""
    encoded = encode(tokenizer, texts, max_length)
    ids = encoded.ids.tolist()
    types = [0] * len(ids) if encoded.types is None else encoded.types.tolist()
    bounds = pairwise(encoded.starts.tolist())
    return [Example(tuple(ids[start:end]), end - start - sum(types[start:end])) for start, end in bounds]


def stsb_lengths(max_length: int, seed: int) -> list[int]:
    """The lengths of the 1,500 dev pairs, none above `max_length`, shuffled."""
    lengths = [min(length, max_length) for length, count in STSB_DEV_LENGTHS.items() for _ in range(count)]
    random.Random(seed).shuffle(lengths)
    return lengths


def random_examples(lengths: Sequence[int], tokenizer: Any, seed: int) -> list[Example]:
    """Pairs of random ordinary tokens, [CLS] first [SEP] second [SEP], of these lengths."""
    generator = random.Random(seed)
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    examples = []
    for length in lengths:
        words = generator.choices(ordinary, k=max(length - 3, 0))
        half = len(words) // 2
        ids = (tokenizer.cls_token_id, *words[:half], tokenizer.sep_token_id, *words[half:], tokenizer.sep_token_id)
        examples.append(Example(ids[:length], min(half + 2, length)))
    return examples


def within_vocabulary(examples: Sequence[Example], vocabulary: int) -> list[Example]:
    """The same lengths with every id that a smaller vocabulary lacks replaced by its last entry."""
    return [Example(tuple(min(token, vocabulary - 1) for token in one.ids), one.first) for one in examples]


def check_batches(pool: Sequence[Example], pad: int) -> list[Batch]:
    """Batches on which two backends are compared: three rows with padding, and the longest pair alone."""
    by_length = sorted(pool, key=lambda example: len(example.ids))
    mixed = [by_length[0], by_length[len(by_length) // 2], by_length[-1]]
    return [padded(mixed, pad), padded(by_length[-1:], pad)]


def work_of(scenario: str, batch_sizes: Sequence[int], pool: Sequence[Example], settings: Mapping[str, Any],
            tokenizer: Any, vocabulary: int) -> list[Work]:  # fmt: skip
    """The scenario's work, one per batch size.

    stsb-pass: batch 1, the data set's order, passes timed whole, as in the paper (Sanh et al. 2019, section 3).
    throughput: batches of similar length, as a server would group them, padded to the longest of the batch.
    fixed-128: the same number of examples, each of 128 tokens, ids below `vocabulary`, the smallest of the models'. A
    model that takes fewer tokens cannot do it.
    `examples` of the settings caps a pass (0: all of the pool); a pass has whole batches only.
    """
    examples, seed = settings["examples"], settings["seed"]
    if scenario == "stsb-pass":
        drawn = draw(pool, examples or len(pool), 1, seed)
        return [_work(scenario, 1, True, drawn, tokenizer.pad_token_id)]
    works = []
    for batch_size in batch_sizes:
        drawn = draw(pool, examples or len(pool), batch_size, seed)
        if scenario == "fixed-128":
            lengths = [FIXED_LENGTH] * len(drawn)
            drawn = within_vocabulary(random_examples(lengths, tokenizer, seed), vocabulary)
        by_length = sorted(drawn, key=lambda example: len(example.ids))
        works.append(_work(scenario, batch_size, False, by_length, tokenizer.pad_token_id))
    return works


def draw(pool: Sequence[Example], count: int, batch_size: int, seed: int) -> list[Example]:
    """`count` examples rounded down to whole batches (one at least), drawn without repeats in the pool's order; a batch
    larger than the pool repeats the pool."""
    wanted = max(1, min(count, len(pool)) // batch_size) * batch_size
    repeats, rest = divmod(wanted, len(pool))
    chosen = sorted(random.Random(seed).sample(range(len(pool)), rest))
    return [*(list(pool) * repeats), *(pool[i] for i in chosen)]


def _work(scenario: str, batch_size: int, whole_pass: bool, examples: Sequence[Example], pad: int) -> Work:
    groups = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
    return Work(scenario, batch_size, len(examples), whole_pass, tuple(padded(group, pad) for group in groups))


def padded(examples: Sequence[Example], pad: int) -> Batch:
    """input_ids, attention_mask and token_type_ids, padded on the right to the longest of the batch."""
    longest = max(len(example.ids) for example in examples)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "token_type_ids": []}
    for example in examples:
        missing = longest - len(example.ids)
        rows["input_ids"].append([*example.ids, *[pad] * missing])
        rows["attention_mask"].append([1] * len(example.ids) + [0] * missing)
        rows["token_type_ids"].append([0] * example.first + [1] * (len(example.ids) - example.first) + [0] * missing)
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in rows.items()}
