"""distill: the student, cut from its teacher and trained by the triple loss (Sanh et al. 2019, section 3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from glue_bench.errors import UserError
from glue_bench.learning.batches import MicroBatch
from glue_bench.learning.distributed import Group
from glue_bench.learning.dropout import attention_in_products
from glue_bench.learning.families import encode, mlm_head
from glue_bench.learning.fused_linear import fused_linear
from glue_bench.learning.heldout import HeldOut
from glue_bench.learning.loop import autocast
from glue_bench.learning.losses import Counts, LossTerms, LossWeights, distillation_loss
from glue_bench.learning.models import load_masked_lm, load_tokenizer, set_dropout
from glue_bench.learning.progress import encoder_flops, head_flops
from glue_bench.learning.saving import model_card, pooler_tensors, save_model
from glue_bench.learning.students import freeze_positions, student_of
from glue_bench.learning.training import set_up, start, train_step, training_result
from glue_bench.plan import Step
from glue_bench.store import Store


@dataclass
class Distillation:
    """The triple loss of a student: its teacher sees the same masked tokens, without dropout."""

    model: PreTrainedModel
    teacher: PreTrainedModel
    measure: HeldOut
    weights: LossWeights
    temperature: float
    precision: str
    compiled: bool

    def share(self, batch: MicroBatch, counts: Counts) -> tuple[torch.Tensor, LossTerms]:
        """A micro-batch's share of the loss."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        hidden = encode(self.model, inputs)
        with torch.no_grad():
            needed = self.weights.soft or self.weights.cosine
            teacher_hidden = encode(self.teacher, inputs) if needed else hidden.detach()
        return distillation_loss(
            hidden,
            teacher_hidden,
            mlm_head(self.model),
            mlm_head(self.teacher),
            batch.positions,
            counts,
            temperature=self.temperature,
            weights=self.weights,
            compiled=self.compiled,
        )

    def heldout(self) -> tuple[float, float, float | None]:
        """Held-out MLM loss and accuracy of the student, KL to the teacher."""
        with autocast(next(self.model.parameters()).device, self.precision):
            return self.measure.measure(self.model)

    def flops(self, tokens: int, rows: int, length: int) -> float:
        """The student's forward and backward passes (twice the forward) and the teacher's forward pass."""
        student = encoder_flops(self.model, tokens, length) + head_flops(self.model, rows)
        return 3.0 * student + encoder_flops(self.teacher, tokens, length) + head_flops(self.teacher, rows)


def run(step: Step, store: Store, device: str) -> dict[str, Any]:
    """Build the student and distil it; writes model/ and, where it trains, training.csv and heldout.csv."""
    settings, folder = step.settings, store.folder(step.name)
    place, group = start(settings, device)
    source = store.folder(settings["teacher"]) / "model"
    tokenizer = load_tokenizer(source)
    teacher, has_head = load_masked_lm(source, seed=settings["seed"])
    trains = settings["tokens"] > 0 or settings["epochs"] > 0
    has_head = has_head and store.result(settings["teacher"]).get("has_mlm_head", True)
    if trains and not has_head:
        raise UserError(
            f"{step.name}: the teacher's weights have no trained MLM head, so their soft targets would be noise; "
            "set pretrain.tokens, and pretrain gives them one"
        )
    layers, student = student_of(teacher, settings)
    result: dict[str, Any] = {"layers": list(layers), "model_type": student.config.model_type}
    result["parameters"] = sum(parameter.numel() for parameter in student.base_model.parameters())
    data: list[str] = []
    if trains:
        data = _train(step, store, student, teacher, tokenizer, place, group, result)
    result["has_mlm_head"] = trains or has_head
    if group.records:
        for name in () if trains else ("training.csv", "heldout.csv"):
            (folder / name).unlink(missing_ok=True)
        more = pooler_tensors(source, student) if settings.get("keeps_pooler") else {}
        save_model(student, tokenizer, folder / "model", _card(step, student, layers, data, result), more)
    return result


def _train(
    step: Step,
    store: Store,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: Any,
    place: torch.device,
    group: Group,
    result: dict[str, Any],
) -> list[str]:
    """Distil in place, write the curves, add to the result; returns what text it was."""
    settings = step.settings
    if settings["freeze_positions"]:
        freeze_positions(student)
    set_dropout(student, settings["dropout"])
    student.to(place)
    # Autocast would cast the teacher's weights anew for every micro-batch: it remembers only those that train.
    teacher.to(place, torch.bfloat16 if settings["precision"] == "bf16" else torch.float32).requires_grad_(False)
    weights = LossWeights(settings["weight_ce"], settings["weight_mlm"], settings["weight_cos"])
    positions = settings["ce_positions"] if weights.soft else "masked"
    setup = set_up(step, store, tokenizer, place, group, ce_positions=positions, head_only_steps=0)
    objective = Distillation(
        model=student,
        teacher=teacher,
        measure=HeldOut(setup.heldout, teacher),
        weights=weights,
        temperature=settings["temperature"],
        precision=settings["precision"],
        compiled=place.type == "cuda",
    )
    with attention_in_products(teacher), fused_linear(teacher, settings["precision"]):
        curves = train_step(objective, setup, step, store)
    result |= training_result(curves, setup, settings, ())
    result["ce_positions"] = settings["ce_positions"]
    return list(setup.corpus.manifest["texts"].values())


def _card(
    step: Step, student: PreTrainedModel, layers: tuple[int, ...], data: list[str], result: Mapping[str, Any]
) -> str:
    settings = step.settings
    names = {"soft targets": "weight_ce", "masked-language modelling": "weight_mlm", "cosine": "weight_cos"}
    after = result["heldout"]["after"] if data else {}
    start_from = "random weights" if settings["initialisation"] == "random" else "the teacher's layers"
    return model_card(
        name=step.name.split("/")[1],
        teacher=settings["teacher"].split("/")[-1],
        shape=f"{len(layers)}-layer {student.config.model_type}",
        data=data,
        tokens=result["training"]["tokens"] if data else 0,
        loss={name: settings[key] for name, key in names.items()} if data else {},
        scores={f"held-out {name}": value for name, value in after.items() if value is not None},
        notes=[f"started from {start_from} {', '.join(map(str, layers))}"],
    )
