"""Dynamic masking for masked-language modelling: which tokens are hidden, and what stands in their place.

Rare tokens are chosen more often, and the choice is new each epoch. It is a pure function of (seed, epoch, example), so
that a resumed run needs no stored random state and no process needs to know what another one drew.

The authors' code chooses within each micro-batch. Here the choice is made once over the whole optimiser batch, before
it is split into micro-batches and processes: a stated deviation, without which the same batch would be masked
differently on one GPU and on eight.
"""

import math
from collections.abc import Sequence

import numpy as np

IGNORED = -100  # label of a position that is not predicted
MASK_SHARE = 0.8  # of the chosen positions: [MASK] instead of the token (Devlin et al. 2019, section 3.1)
RANDOM_SHARE = 0.1  # a random token; the rest keep their own

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHOICE, _KIND, _REPLACEMENT = (np.uint64(stream) for stream in (1, 2, 3))


def token_weights(counts: np.ndarray, *, smoothing: float, special_ids: Sequence[int]) -> np.ndarray:
    """Weight of each token in the choice of positions, (vocabulary,) float64: max(count, 1) ** -smoothing.

    `counts` (vocabulary,) are the token frequencies of the training text. Special tokens get weight 0: they are neither
    chosen nor drawn as replacements. Source: `token_probs` of the authors' distillation code.
    """
    weights = np.maximum(np.asarray(counts, dtype=np.float64), 1.0) ** -smoothing
    weights[np.asarray(special_ids, dtype=np.int64)] = 0.0
    return weights


def mask_batch(
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    example_ids: np.ndarray,
    *,
    seed: int,
    epoch: int,
    weights: np.ndarray,
    mask_id: int,
    probability: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one whole optimiser batch; return (masked input_ids, labels), both (examples, length).

    `input_ids` and `attention_mask` are (examples, length), padded on the right; `example_ids` (examples,) number the
    sequences within the whole text; `weights` come from `token_weights`. ceil(probability x attended tokens) positions
    are drawn without replacement from the attended ones of positive weight (all of these where there are fewer), with
    odds proportional to their weight; 80 % become `mask_id`, 10 % a uniformly drawn non-special token, 10 % stay.
    labels hold the true token there and -100 elsewhere; the inputs are left unchanged.

    Call it before the batch is split: rows are drawn against each other. Neither their order nor the padded length
    matters. Drawing without replacement in proportion to weights is the k largest of u ** (1 / w), here as the k
    smallest of -log(u) / w (Efraimidis and Spirakis, Information Processing Letters 97, 2006).
    """
    flat_ids = input_ids.reshape(-1)
    odds = weights[flat_ids]
    eligible = np.flatnonzero((attention_mask.reshape(-1) != 0) & (odds > 0))
    wanted = min(math.ceil(probability * np.count_nonzero(attention_mask)), eligible.size)

    rows, columns = np.divmod(eligible, input_ids.shape[1])
    keys = _row_keys(seed, epoch, example_ids)[rows] + columns.astype(np.uint64) * _GOLDEN
    order = -np.log(_uniform(keys, _CHOICE)) / odds[eligible]
    chosen = np.argpartition(order, wanted - 1)[:wanted] if 0 < wanted < eligible.size else np.arange(wanted)
    keys, positions = keys[chosen], eligible[chosen]

    kind = _uniform(keys, _KIND)
    ordinary = np.flatnonzero(weights > 0)
    random_ids = ordinary[(_uniform(keys, _REPLACEMENT) * ordinary.size).astype(np.int64)]
    masked, labels = flat_ids.copy(), np.full(flat_ids.shape, IGNORED, dtype=np.int64)
    labels[positions] = flat_ids[positions]
    masked[positions] = np.where(
        kind < MASK_SHARE, mask_id, np.where(kind < MASK_SHARE + RANDOM_SHARE, random_ids, flat_ids[positions])
    )
    return masked.reshape(input_ids.shape), labels.reshape(input_ids.shape)


def _row_keys(seed: int, epoch: int, example_ids: np.ndarray) -> np.ndarray:
    """One 64-bit key per (seed, epoch, example)."""
    key = _mixed(_mixed(np.array([seed], dtype=np.uint64)) + np.array([epoch], dtype=np.uint64) * _GOLDEN)
    return _mixed(_mixed(key + np.asarray(example_ids).astype(np.uint64) * _GOLDEN))


def _uniform(keys: np.ndarray, stream: np.uint64) -> np.ndarray:
    """Numbers in (0, 1), never 0 or 1, one per key; streams are independent of each other."""
    bits = _mixed(keys ^ _mixed(np.array([stream], dtype=np.uint64)))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(values: np.ndarray) -> np.ndarray:
    """The SplitMix64 output function (Steele, Lea and Flood, OOPSLA 2014): every input bit reaches every output bit."""
    values = (values + _GOLDEN).astype(np.uint64)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
