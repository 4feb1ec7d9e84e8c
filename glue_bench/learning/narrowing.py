"""Training only the word vectors that a task has: the same result as training all of them, for less memory traffic.

A task's training set has a few thousand of 30,522 words. The vectors of the others get zero gradients at every step, so
Adam without weight decay never moves them and the gradient norm does not see them; but it reads and writes their
moments each time. On CoLA with all-MiniLM-L6-v2 half of all parameters are such vectors.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from glue_bench.data.batching import Encoded

WORTH_IT = 0.75  # share of the vocabulary above which nothing is gained


@contextlib.contextmanager
def narrowed_vocabulary(model: PreTrainedModel, encoded: Encoded, *, wanted: bool) -> Iterator[Encoded]:
    """Within the block the model knows only the words of `encoded`; yields it with the words' new numbers.

    Afterwards the model has its whole table again, with what was learnt. Nothing is changed where it is not wanted
    (it is exact without weight decay only), where the table is shared or of an unusual kind, or most words occur.
    Words up to the padding's keep their number: families of the RoBERTa kind find positions by comparing with it.
    """
    table = model.get_input_embeddings()
    words = _words(encoded)
    if not wanted or not _is_plain(model, table) or len(words) > WORTH_IT * table.num_embeddings:
        yield encoded
        return
    small = nn.Embedding(len(words), table.embedding_dim, table.padding_idx, _weight=table.weight.detach()[words])
    numbers = torch.zeros(table.num_embeddings, dtype=encoded.ids.dtype, device=words.device)
    numbers[words] = torch.arange(len(words), dtype=encoded.ids.dtype, device=words.device)
    small.train(table.training)
    model.set_input_embeddings(small)
    try:
        yield replace(encoded, ids=numbers[encoded.ids.long()])
    finally:
        with torch.no_grad():
            table.weight[words] = small.weight
        model.set_input_embeddings(table)


def _words(encoded: Encoded) -> torch.Tensor:
    """The words that occur, ascending, and all up to the padding's number."""
    lowest = torch.arange(encoded.pad_id + 1, device=encoded.ids.device, dtype=encoded.ids.dtype)
    return torch.unique(torch.cat([encoded.ids, lowest])).long()


def _is_plain(model: PreTrainedModel, table: nn.Module) -> bool:
    """Whether the table is an ordinary one that no other module shares and nothing is hooked to."""
    if type(table) is not nn.Embedding or table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return False
    owners = [1 for _, one in model.named_parameters(remove_duplicate=False) if one is table.weight]
    return len(owners) == 1 and table.weight.requires_grad
