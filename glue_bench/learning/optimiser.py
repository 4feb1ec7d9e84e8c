"""How a training steps: AdamW with its parameter groups, the learning rates over the steps, the number of steps.

Source: Sanh et al. 2019 and the authors' code: linear warm-up, then linear decay to 0; biases and norms never decay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


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
