"""pretrain: masked-language modelling of the teacher, from scratch or to give released weights an MLM head."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from glue_bench.learning.batches import MicroBatch
from glue_bench.learning.families import encode, mlm_head
from glue_bench.learning.heldout import HeldOut
from glue_bench.learning.loop import autocast
from glue_bench.learning.losses import Counts, LossTerms, LossWeights, mlm_loss
from glue_bench.learning.models import load_masked_lm, load_tokenizer, set_dropout
from glue_bench.learning.progress import encoder_flops, head_flops
from glue_bench.learning.saving import model_card, pooler_tensors, save_model
from glue_bench.learning.training import set_up, start, train_step, training_result
from glue_bench.plan import Step
from glue_bench.store import Store


@dataclass
class MaskedLanguageModelling:
    """The MLM loss: the mean over the masked positions of the cross-entropy with the true token."""

    model: PreTrainedModel
    measure: HeldOut
    precision: str
    compiled: bool
    weights: LossWeights = LossWeights(0.0, 1.0, 0.0)

    def share(self, batch: MicroBatch, counts: Counts) -> tuple[torch.Tensor, LossTerms]:
        """A micro-batch's share of the loss; only masked positions go through the head."""
        hidden = encode(self.model, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})
        share, total = mlm_loss(hidden, mlm_head(self.model), batch.positions, counts.mlm, compiled=self.compiled)
        nothing = torch.zeros_like(total)
        return share, LossTerms(nothing, total, nothing)

    def heldout(self) -> tuple[float, float, float | None]:
        """Held-out MLM loss and accuracy."""
        with autocast(next(self.model.parameters()).device, self.precision):
            return self.measure.measure(self.model)

    def flops(self, tokens: int, rows: int, length: int) -> float:
        """A backward pass costs twice the forward pass; none goes through a frozen encoder, half to a tied decoder."""
        frozen = not any(one.requires_grad for one in self.model.base_model.parameters())
        encoder_passes, head_passes = (1.0, 2.0) if frozen else (3.0, 3.0)
        return encoder_passes * encoder_flops(self.model, tokens, length) + head_passes * head_flops(self.model, rows)


def run(step: Step, store: Store, device: str) -> dict[str, Any]:
    """Train the teacher of step.settings["weights"] by MLM; writes model/, training.csv, heldout.csv."""
    settings, folder = step.settings, store.folder(step.name)
    place, group = start(settings, device)
    source = store.folder(settings["weights"]) / "model"
    tokenizer = load_tokenizer(source)
    model, has_head = load_masked_lm(source, seed=settings["seed"])
    set_dropout(model, settings["dropout"])
    model.to(place)
    frozen = settings.get("freeze_encoder")
    if frozen:
        model.base_model.requires_grad_(False)
    head_only = 0 if has_head or frozen else settings["head_only_steps"]
    setup = set_up(step, store, tokenizer, place, group, ce_positions="none", head_only_steps=head_only)
    compiled = place.type == "cuda"
    objective = MaskedLanguageModelling(model, HeldOut(setup.heldout, None), settings["precision"], compiled)
    curves = train_step(objective, setup, step, store)
    notes = [] if has_head else ["the MLM head is new"]
    if frozen:
        notes.append("only the MLM head was trained; the encoder is as released")
    elif not has_head:
        notes.append(f"the first {head_only} steps trained the head alone")
    result = training_result(curves, setup, settings, notes)
    result |= {"has_mlm_head": True, "head_was_new": not has_head}
    if group.records:
        after = result["heldout"]["after"]
        card = model_card(
            name=step.name.split("/")[1],
            teacher="",
            shape=f"{model.config.num_hidden_layers}-layer {model.config.model_type}, masked-language modelling",
            data=list(setup.corpus.manifest["texts"].values()),
            tokens=curves.tokens,
            loss={},
            scores={f"held-out {name}": value for name, value in after.items() if value is not None},
            notes=notes,
        )
        save_model(model, tokenizer, folder / "model", card, pooler_tensors(source, model))
    return result
