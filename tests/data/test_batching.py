"""Batches: every example once, little padding, and exactly what the tokenizer says."""

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from glue_bench.data.batching import (
    Batch,
    Encoded,
    batches_grouped,
    encode,
    gather,
    prediction_batches,
    training_batches,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(50))]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_input_names=names
    )


def texts(count: int, longest: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.integers(0, 50, rng.integers(1, longest + 1))) for _ in range(count)]


def encoded_with(lengths: list[int] | np.ndarray, max_length: int = 64) -> Encoded:
    """Examples of given lengths; token values are the examples' numbers + 1."""
    lengths = np.asarray(lengths, dtype=np.int64)
    ids = np.concatenate([np.repeat(np.arange(len(lengths)) + 1, lengths), np.zeros(max_length)]).astype(np.int32)
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    return Encoded(torch.from_numpy(ids), None, starts, lengths, 0, max_length, 0)


def batch_of(*examples: int) -> Batch:
    return Batch(np.array(examples), torch.tensor(examples))


def test_gathered_batches_equal_the_tokenizers_own_padding(tokenizer: Any) -> None:
    pairs = [texts(40, 9, seed=1), texts(40, 9, seed=2)]
    encoded = encode(tokenizer, pairs, 18)
    chosen = [3, 17, 0, 39, 8]
    wanted = tokenizer(
        *([column[i] for i in chosen] for column in pairs),
        truncation="longest_first",
        max_length=18,
        padding=True,
        return_tensors="pt",
    )
    inputs = gather(encoded, batch_of(*chosen), 1)
    assert set(inputs) == set(wanted)
    for name, values in wanted.items():
        assert torch.equal(inputs[name].long(), values), name


def test_truncation_is_longest_first_and_counted(tokenizer: Any) -> None:
    pairs = [["w1 w2", "w1"], [" ".join(["w5"] * 20), "w2"]]
    encoded = encode(tokenizer, pairs, 10)
    assert encoded.truncated == 1
    assert encoded.lengths.tolist() == [10, 5]
    first = encoded.ids[:10].tolist()
    assert first == [2, WORDS.index("w1"), WORDS.index("w2"), 3, *[WORDS.index("w5")] * 5, 3]
    assert encode(tokenizer, [["w1 " * 8]], 10).truncated == 0  # exactly full is not cut


def test_the_tokenizer_is_left_without_truncation(tokenizer: Any) -> None:
    """It is saved beside the fine-tuned model: the first seed's file must be the second one's."""
    encode(tokenizer, [["w1 w2 w3 w4 w5"]], 4)
    assert tokenizer.backend_tokenizer.truncation is None


def test_encoding_in_parts_changes_nothing(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    column = texts(50, 12)
    whole = encode(tokenizer, [column], 16)
    monkeypatch.setattr("glue_bench.data.batching.TOKENISED_AT_ONCE", 7)
    parts = encode(tokenizer, [column], 16)
    assert torch.equal(whole.ids, parts.ids) and torch.equal(whole.starts, parts.starts)
    assert whole.tokens == int(whole.starts[-1])


def test_no_mask_where_nothing_is_padding() -> None:
    encoded = encoded_with([5, 5, 3])
    assert "attention_mask" not in gather(encoded, batch_of(0, 1), 1)
    inputs = gather(encoded, batch_of(1, 2), 1)
    assert inputs["attention_mask"].tolist() == [[True] * 5, [True, True, True, False, False]]
    assert inputs["input_ids"].tolist() == [[2] * 5, [3, 3, 3, 0, 0]]


def test_width_is_rounded_up_but_never_over_the_limit() -> None:
    encoded = encoded_with([5, 19, 20], max_length=20)
    assert gather(encoded, batch_of(0), 8)["input_ids"].shape == (1, 8)
    assert gather(encoded, batch_of(1), 8)["input_ids"].shape == (1, 20)
    assert "attention_mask" not in gather(encoded, batch_of(2), 8)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 600])
def test_an_epoch_holds_every_example_once(count: int) -> None:
    encoded = encoded_with(np.random.default_rng(0).integers(3, 40, count))
    batches = training_batches(encoded, 32, seed=1, epoch=0)
    assert sorted(np.concatenate([one.index for one in batches])) == list(range(count))
    assert len(batches) == -(-count // 32)
    assert sorted(len(one.index) for one in batches)[:-1] == [count % 32 or 32, *[32] * (len(batches) - 1)][:-1]
    assert all(torch.equal(one.rows, torch.from_numpy(one.index)) for one in batches)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    encoded = encoded_with(np.random.default_rng(0).integers(3, 40, 200))

    def order(seed: int, epoch: int) -> list[int]:
        batches = training_batches(encoded, 16, seed=seed, epoch=epoch)
        return np.concatenate([one.index for one in batches]).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


def test_batches_are_of_like_length_and_still_random() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 3200)
    encoded = encoded_with(lengths)

    def padded(batches: list[Batch]) -> float:
        return sum(lengths[one.index].max() * len(one.index) for one in batches) / lengths.sum()

    epochs = [training_batches(encoded, 32, seed=0, epoch=epoch) for epoch in range(2)]
    assert padded(epochs[0]) < 1.1
    first = np.array([lengths[one.index].mean() for one in epochs[0]])
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.4  # long batches stand anywhere in the epoch
    partners = [{i: set(one.index) for one in epoch for i in one.index} for epoch in epochs]
    shared = np.mean([len(partners[0][i] & partners[1][i]) for i in range(len(lengths))])
    assert shared < 8  # itself, and 31 others of which few are the same in the next epoch


@pytest.mark.parametrize(
    ("examples", "batch_size", "wanted"), [(1, 32, 16), (1280, 32, 16), (3668, 32, 28), (3668, 16, 50), (67349, 32, 50)]
)
def test_a_quarter_of_an_epoch_is_sorted_together_within_bounds(examples: int, batch_size: int, wanted: int) -> None:
    assert batches_grouped(examples, batch_size) == wanted


def test_many_examples_have_less_padding_than_few() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 6400)

    def padded(count: int) -> float:
        batches = training_batches(encoded_with(lengths[:count]), 32, seed=0, epoch=0)
        return sum(lengths[one.index].max() * len(one.index) for one in batches) / lengths[:count].sum()

    assert 1.0 < padded(6400) < 1.03 < padded(1600) < 1.1


def test_prediction_takes_all_examples_the_longest_first_within_the_tokens() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 500)
    batches = prediction_batches(encoded_with(lengths), 256)
    assert sorted(np.concatenate([one.index for one in batches])) == list(range(500))
    assert all(len(one.index) * lengths[one.index].max() <= 256 for one in batches)
    assert lengths[batches[0].index[0]] == lengths.max()
    assert len(prediction_batches(encoded_with([50, 50]), 10)) == 2  # an example too long for the budget goes alone
    assert prediction_batches(encoded_with([]), 10) == []


def test_pieces_are_the_batch() -> None:
    parts = list(batch_of(4, 2, 7, 1, 5).pieces(2))
    assert [one.index.tolist() for one in parts] == [[4, 2], [7, 1], [5]]
    assert torch.cat([one.rows for one in parts]).tolist() == [4, 2, 7, 1, 5]
