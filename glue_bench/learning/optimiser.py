"""How a training steps: AdamW with its parameter groups, the learning rates over the steps, the number of steps.

Source: Sanh et al. 2019 and the authors' code: linear warm-up, then linear decay to 0; biases and norms never decay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

FADED = 1e-20  # a first moment below it moves a weight by less than 1e-12 of the learning rate
STEPS_TO_FADE = 100  # from it to numbers that are denormal, 1e-38, there are four times as many: 0.9^393


@dataclass(frozen=True)
class Schedule:
    """Learning rates: linear warm-up over `warmup` steps, then linear decay to 0 at `steps`.

    The encoder stands still for the first `head_only` steps and then has a warm-up of its own.
    """

    steps: int
    warmup: int
    peak: float
    head_only: int = 0

    def rate(self, step: int) -> float:
        """Of everything that trains from the first step (0) on."""
        return self.peak * min(self._warm(step), (self.steps - step) / max(1, self.steps - self.warmup))

    def encoder_rate(self, step: int) -> float:
        """Of the encoder."""
        return 0.0 if step < self.head_only else self.rate(step) * self._warm(step - self.head_only)

    def _warm(self, step: int) -> float:
        return min(1.0, (step + 1) / max(1, self.warmup))


def total_steps(tokens: int, epochs: float, per_epoch: int, batch_size: int, tokens_per_sequence: float) -> int:
    """Optimiser steps of a budget in tokens, in epochs, or the smaller of both; at least 1. 0 means no limit."""
    limits = [tokens / (batch_size * tokens_per_sequence)] if tokens else []
    limits += [epochs * per_epoch] if epochs else []
    return max(1, int(min(limits) + 1e-9))


def adamw(model: torch.nn.Module, settings: Mapping[str, Any]) -> torch.optim.AdamW:
    """AdamW over what trains: four groups, encoder or head, with weight decay (matrices) or without (biases, norms)."""
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    groups = []
    for of_encoder in (True, False):
        for decays in (True, False):
            chosen = [
                one
                for one in model.parameters()
                if one.requires_grad and (id(one) in encoder) == of_encoder and (one.ndim > 1) == decays
            ]
            decay = settings["weight_decay"] if decays else 0.0
            if chosen:
                groups.append({"params": chosen, "encoder": of_encoder, "weight_decay": decay})
    return torch.optim.AdamW(
        groups,
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["epsilon"],
        fused=True,
    )


def tuning_adamw(
    trained: list[torch.nn.Parameter], learning_rate: float, weight_decay: float, device: torch.device
) -> torch.optim.AdamW:
    """AdamW for fine-tuning, in one group or, with weight decay, two: matrices with it, biases and norms without.

    On a GPU the learning rate lies there, where a recorded step reads it. Source: Devlin et al. 2019.
    """
    on_gpu = device.type == "cuda"
    rate = torch.tensor(learning_rate, device=device) if on_gpu else learning_rate
    groups = [{"params": trained, "weight_decay": 0.0}]
    if weight_decay:
        vectors = [one for one in trained if one.ndim <= 1]
        groups = [{"params": [one for one in trained if one.ndim > 1], "weight_decay": weight_decay}]
        groups.append({"params": vectors, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=on_gpu)


def clipped_step(
    optimiser: torch.optim.Optimizer, trained: list[torch.nn.Parameter], max_norm: float, *, within: bool
) -> None:
    """A step on gradients that are scaled down to a norm of max_norm where theirs is greater.

    within: the optimiser's fused kernel scales them, as it reads them for torch's GradScaler. That spares a pass, and
    with the norm as dot products a training step in bf16 is 2 % shorter (AMX); the last bits differ.
    """
    if within:
        gradients = [one.grad.flatten() for one in trained if one.grad is not None]
        norm = torch.stack([torch.dot(one, one) for one in gradients]).sum().sqrt()
        optimiser.grad_scale = (norm / max_norm).clamp(min=1.0)
        optimiser.found_inf = torch.zeros(())
    else:
        torch.nn.utils.clip_grad_norm_(trained, max_norm)
    optimiser.step()


def clear_faded_moments(optimiser: torch.optim.Optimizer) -> None:
    """Set first moments of Adam to 0 that nothing has been added to for long; to be called every STEPS_TO_FADE steps.

    That of a word which is not met again shrinks by a tenth at every step. Some 750 steps later it is denormal, where a
    CPU computes ten times as slowly, and as rounding keeps it from 0, it stays so: in an epoch of SST-2 (60,000 rows,
    all-MiniLM-L6-v2) a quarter of the optimiser's time from step 800 on. No weight changes by it. torch's flush mode
    would do the same, but to all that the process computes.
    """
    for state in optimiser.state.values():
        state["exp_avg"].copy_(F.hardshrink(state["exp_avg"], FADED))
