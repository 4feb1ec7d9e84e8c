"""A classifier's forward pass on a batch of tokenised examples: how wide it is padded, which inputs the model takes.

Training, prediction and the recorded steps of a GPU share it: what it calls the shape is what a graph is recorded for.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from glue_bench.data.batching import WIDTH_MULTIPLE, Batch, Encoded, gather, width_and_padding
from glue_bench.learning.dropout import ATTENTION
from glue_bench.learning.models import forward_inputs

# Batches are padded to a multiple of 8 tokens where products are those of tensor cores, of 4 where they are a CPU's in
# bf16: there each new width has kernels of its own compiled (some forty, 2 ms each; machine.use_threads says how many
# are kept). When 1,024 were, MRPC's training set, then 58.5 tokens wide on average, with 8 60.8 and without 56.5,
# trained at 113, 108 and 105 examples/s (AMX). Up to the widths below, which are few, and which padding would lengthen
# most, batches stay exact.
MULTIPLES = {"cpu": 4, "cuda": WIDTH_MULTIPLE}
EXACT_WIDTHS = {"cpu": 32, "cuda": 0}
# Families that build their attention mask through transformers' masking_utils and take a finished one.
TAKE_READY_MASK = frozenset({"bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra"})


class Forward:
    """A model's forward pass on a batch, with only the inputs that it takes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        names = dict.fromkeys(("input_ids", "token_type_ids", "attention_mask"), torch.empty(0))
        self.taken = frozenset(forward_inputs(model, names))
        self.kind = model.device.type
        # A finished mask spares a look at its values, for which a GPU would have to be waited for.
        sdpa = model.config._attn_implementation in ("sdpa", ATTENTION)
        self.ready_mask = sdpa and model.config.model_type in TAKE_READY_MASK

    def __call__(self, encoded: Encoded, batch: Batch) -> Tensor:
        """Logits (examples, outputs)."""
        return self.model(**self.inputs(encoded, batch)).logits

    def inputs(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """What the model takes of a batch."""
        gathered = gather(encoded, batch, self._multiple(encoded, batch))
        inputs = {name: one for name, one in gathered.items() if name in self.taken}
        if (mask := inputs.get("attention_mask")) is not None:
            inputs["attention_mask"] = mask[:, None, None, :] if self.ready_mask else mask.long()
        return inputs

    def shape(self, encoded: Encoded, batch: Batch) -> tuple[int, bool]:
        """The width of a batch, and whether it has padding: all that the kernels of a forward pass depend on."""
        return width_and_padding(encoded, batch, self._multiple(encoded, batch))

    def _multiple(self, encoded: Encoded, batch: Batch) -> int:
        """What a batch's width is rounded up to a multiple of."""
        low = self.kind == "cuda" or torch.is_autocast_enabled(self.kind)
        return MULTIPLES[self.kind] if low and encoded.lengths[batch.index].max() > EXACT_WIDTHS[self.kind] else 1
