"""Checkpoints of one training: all that is needed to go on as if nothing had happened.

A checkpoint is a folder step-NNNNNNNN of one safetensors file (weights and optimiser moments) and one JSON file (step,
curves, fingerprint, hash of the tensors). It appears whole or not at all; the last two are kept, and a damaged one is
passed over for the one before it. Masks, dropout and order are seeded by position, so no random state is stored.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from glue_bench.errors import StepError
from glue_bench.records import seal_holds, sealed
from glue_bench.store import UNREADABLE, atomic_folder, sha256_file, write_atomic

KEPT = 2
TENSORS = "state.safetensors"
STATE = "state.json"


def save_checkpoint(
    folder: Path, step: int, fingerprint: str, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> None:
    """Write folder/step-NNNNNNNN and remove all but the last KEPT checkpoints.

    `state` is JSON-ready. Raises StepError where a tensor holds NaN or infinity (the older checkpoints stay), or where
    the disk refuses.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise StepError(f"step {step}: {name} is no longer finite; the checkpoint before it is kept in {folder}")
    with atomic_folder(folder / f"step-{step:08d}") as temporary:
        path = temporary / TENSORS
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        content = {"step": step, "fingerprint": fingerprint, "sha256": sha256_file(path)}
        write_atomic(temporary / STATE, json.dumps(sealed(content | {"state": state}), allow_nan=False))
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, fingerprint: str) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
    """The newest intact checkpoint with this fingerprint as (step, tensors on the CPU, state), or None."""
    for path in _newest_first(folder):
        try:
            content = json.loads((path / STATE).read_text(encoding="utf-8"))
            tensors_path = path / TENSORS
            intact = content["fingerprint"] == fingerprint and seal_holds(content)
            intact = intact and sha256_file(tensors_path) == content["sha256"]
            if intact:
                return int(content["step"]), load_file(tensors_path), content["state"]
        except (*UNREADABLE, KeyError, TypeError, SafetensorError):
            continue
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True) if folder.is_dir() else []
