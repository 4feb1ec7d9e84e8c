"""Masking: how many, which, what stands there instead; and that it depends on (seed, epoch, example) alone."""

import math

import numpy as np
import pytest
from scipy import stats

from glue_bench.data import masking
from glue_bench.data.masking import mask_batch, token_weights

WORDS, PAD, CLS, SEP, MASK = 1000, 0, 1, 2, 3
SPECIAL = (PAD, CLS, SEP, MASK)
EQUAL = token_weights(np.ones(WORDS), smoothing=0.7, special_ids=SPECIAL)


def batch(rows: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random words between [CLS] and [SEP]; every third row is 5 tokens shorter and padded."""
    ids = np.random.default_rng(seed).integers(4, WORDS, (rows, length), dtype=np.int32)
    lengths = np.where(np.arange(rows) % 3 == 0, length - 5, length)
    attention = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids[:, 0] = CLS
    ids[np.arange(rows), lengths - 1] = SEP
    return np.where(attention, ids, PAD), attention


def masked(
    ids: np.ndarray, attention: np.ndarray, examples: np.ndarray | None = None, **changes: object
) -> tuple[np.ndarray, np.ndarray]:
    settings = {"seed": 1, "epoch": 0, "weights": EQUAL, "mask_id": MASK, "probability": 0.15} | changes
    return mask_batch(ids, attention, np.arange(len(ids)) if examples is None else examples, **settings)


def test_token_weights_are_smoothed_counts_and_zero_for_special_tokens() -> None:
    weights = token_weights(np.array([9, 0, 1, 8, 10_000]), smoothing=0.5, special_ids=[0])
    assert weights.tolist() == pytest.approx([0.0, 1.0, 1.0, 8**-0.5, 0.01])


@pytest.mark.parametrize("probability", [0.15, 0.4])
@pytest.mark.parametrize("rows", [1, 7, 50])
def test_the_number_counts_special_tokens_and_no_padding(rows: int, probability: float) -> None:
    ids, attention = batch(rows, 23, 0)
    _, labels = masked(ids, attention, probability=probability)
    assert (labels != -100).sum() == math.ceil(probability * attention.sum())


def test_special_tokens_and_padding_are_never_chosen() -> None:
    ids, attention = batch(200, 16, 1)
    for epoch in range(5):
        out, labels = masked(ids, attention, epoch=epoch, probability=0.6)
        chosen = labels != -100
        assert not np.isin(ids[chosen], SPECIAL).any()
        assert not chosen[attention == 0].any()
        assert (labels[chosen] == ids[chosen]).all()
        assert (out[~chosen] == ids[~chosen]).all()


def test_all_eligible_positions_where_there_are_too_few() -> None:
    ids = np.array([[CLS, 7, SEP, PAD], [CLS, SEP, PAD, PAD]])
    _, labels = masked(ids, (ids != PAD).astype(int), probability=0.9)
    assert labels.tolist() == [[-100, 7, -100, -100], [-100, -100, -100, -100]]
    _, nothing = masked(ids[1:], (ids[1:] != PAD).astype(int))
    assert (nothing == -100).all()


def test_the_inputs_are_left_alone_and_types_kept() -> None:
    ids, attention = batch(9, 20, 2)
    before = ids.copy()
    ids.flags.writeable = False
    out, labels = masked(ids, attention)
    assert (ids == before).all() and out.dtype == ids.dtype and labels.dtype == np.int64


def test_80_10_10() -> None:
    ids, attention = batch(4000, 64, 3)
    out, labels = masked(ids, attention)
    chosen = labels != -100
    became, was = out[chosen], ids[chosen]
    counts = [(became == MASK).sum(), ((became != MASK) & (became != was)).sum(), (became == was).sum()]
    # a random word is the old one in 1 of 996 cases
    assert stats.chisquare(counts, np.array([0.8, 0.1 * 995 / 996, 0.1 + 0.1 / 996]) * chosen.sum()).pvalue > 1e-4


def test_replacements_are_uniform_over_words_that_are_not_special() -> None:
    ids, attention = batch(4000, 64, 4)
    ids[ids > 3] = 5
    out, labels = masked(ids, attention, probability=0.5)
    random = out[(labels != -100) & (out != MASK) & (out != 5)]
    found = np.bincount(random, minlength=WORDS)
    assert found[list(SPECIAL)].sum() == 0
    assert stats.chisquare(np.delete(found, [*SPECIAL, 5])).pvalue > 1e-4


def test_positions_are_uniform_where_weights_are_equal() -> None:
    ids, attention = batch(3000, 32, 5)
    attention[:] = 1
    found = sum((masked(ids, attention, epoch=epoch)[1] != -100).sum(axis=0) for epoch in range(4))
    inner = found[1:26]  # without [CLS], [SEP] and the columns that are padding in every third row
    assert stats.chisquare(inner).pvalue > 1e-4


def test_rare_tokens_are_chosen_in_proportion_to_their_weight() -> None:
    """With one draw from a row of a frequent and a rare word the odds are exactly those of the weights."""
    counts = np.ones(WORDS)
    counts[4], counts[5] = 1000, 10
    weights = token_weights(counts, smoothing=0.7, special_ids=SPECIAL)
    ids = np.array([[CLS, 4, 4, 5, SEP]])
    trials = 3_000
    rare = sum(
        masked(ids, np.ones_like(ids), np.array([example]), weights=weights)[1][0, 3] == 5 for example in range(trials)
    )
    expected = 10**-0.7 / (2 * 1000**-0.7 + 10**-0.7)
    assert stats.binomtest(int(rare), trials, expected).pvalue > 1e-4


def test_draws_without_replacement_follow_the_weights() -> None:
    """Two of three with weights 1, 1/2, 1/4: the chance of each pair is the sum over both orders of drawing it."""
    weights = np.zeros(WORDS)
    weights[[4, 5, 6]] = 1.0, 0.5, 0.25
    ids = np.array([[4, 5, 6]])
    trials, left_out = 3_000, np.zeros(3)
    for example in range(trials):
        labels = masked(ids, np.ones_like(ids), np.array([example]), weights=weights, probability=0.5)[1]
        left_out += labels[0] == -100
    w, total = weights[[4, 5, 6]], 1.75
    chance = [sum(w[a] / total * w[3 - c - a] / (total - w[a]) for a in range(3) if a != c) for c in range(3)]
    assert sum(chance) == pytest.approx(1.0)
    assert stats.chisquare(left_out, np.array(chance) * trials).pvalue > 1e-4


def test_new_each_epoch_and_seed_the_same_when_repeated() -> None:
    ids, attention = batch(64, 32, 6)
    first = masked(ids, attention)
    again = masked(ids, attention)
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    chosen = first[1] != -100
    for other in (masked(ids, attention, epoch=1), masked(ids, attention, seed=2)):
        both = chosen & (other[1] != -100)
        # independent choices of k out of n eligible ones meet in k * k / n positions
        k, n = chosen.sum(), np.isin(ids, SPECIAL, invert=True).sum()
        assert abs(both.sum() - k * k / n) < 5 * math.sqrt(k * k / n)


def test_epochs_and_seeds_do_not_stand_in_for_each_other() -> None:
    ids, attention = batch(8, 32, 7)
    drawn = {
        masked(ids, attention, ids_shift + np.arange(8), seed=seed, epoch=epoch)[1].tobytes()
        for seed in range(3)
        for epoch in range(3)
        for ids_shift in (0, 8)
    }
    assert len(drawn) == 18


def test_order_of_the_rows_and_padding_do_not_matter() -> None:
    """A batch is masked whole; how its rows are ordered and how far they are padded is nobody's business."""
    ids, attention = batch(40, 32, 8)
    out, labels = masked(ids, attention)
    shuffled = np.random.default_rng(0).permutation(40)
    assert (masked(ids[shuffled], attention[shuffled], shuffled)[1] == labels[shuffled]).all()
    wider = [np.pad(array, ((0, 0), (0, 9))) for array in (ids, attention)]
    wide_out, wide_labels = masked(*wider)
    assert (wide_labels[:, :32] == labels).all() and (wide_out[:, :32] == out).all()
    assert (wide_labels[:, 32:] == -100).all()


def test_a_known_answer() -> None:
    """Pins the bits: a changed hash would change every run's masks, and resumed runs would mix both."""
    ids = np.arange(4, 24).reshape(2, 10)
    out, labels = masked(ids, np.ones_like(ids), np.array([0, 1]), probability=0.3)
    assert np.flatnonzero(labels != -100).tolist() == [0, 4, 5, 12, 14, 18]
    assert out.reshape(-1)[labels.reshape(-1) != -100].tolist() == [3, 3, 3, 3, 3, 814]


def test_the_hash_is_splitmix64() -> None:
    """The generator's first outputs from the states 0 and 1234567, as its authors' C code prints them."""
    mixed = masking._mixed(np.array([0, 1234567], dtype=np.uint64))
    assert mixed.tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]
