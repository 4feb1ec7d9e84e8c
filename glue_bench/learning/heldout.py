"""The held-out measure of a masked-language model: loss, accuracy of the masked words, KL to the teacher."""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from glue_bench.learning.batches import MicroBatch
from glue_bench.learning.families import encode, mlm_head
from glue_bench.learning.losses import heldout_sums

KEPT_BYTES = 256 << 20  # the teacher's hidden states are computed once where they fit into this


@dataclass
class HeldOut:
    """Held-out text, masked once for all, and the teacher to compare with (None: none)."""

    batches: list[MicroBatch]
    teacher: PreTrainedModel | None
    teacher_hidden: dict[int, torch.Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> tuple[float, float, float | None]:
        """(MLM loss, share of masked words predicted right, KL(teacher || model) at temperature 1), means over these.

        The model is put into eval mode and stays there.
        """
        model.eval()
        sums = [0.0, 0.0, 0.0]
        masked = 0
        head = mlm_head(model)
        teacher_head = mlm_head(self.teacher) if self.teacher is not None else None
        for batch in self.batches:
            hidden = encode(model, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})
            found = heldout_sums(hidden, head, self._teacher_hidden(batch), teacher_head, batch.positions)
            sums = [total + float(value) for total, value in zip(sums, found, strict=True)]
            masked += batch.positions.counts.mlm
        loss, right, kl = (total / max(masked, 1) for total in sums)
        return loss, right, kl if self.teacher is not None else None

    def _teacher_hidden(self, batch: MicroBatch) -> torch.Tensor | None:
        if self.teacher is None:
            return None
        if batch.number in self.teacher_hidden:
            return self.teacher_hidden[batch.number]
        hidden = encode(self.teacher, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})
        if hidden.nbytes * len(self.batches) <= KEPT_BYTES:
            self.teacher_hidden[batch.number] = hidden
        return hidden
