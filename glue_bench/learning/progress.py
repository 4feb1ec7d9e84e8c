"""The progress line of a training, on stderr and only at a terminal: tokens, speed, loss terms, time left."""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from glue_bench.machine import is_terminal

RATE_SIZE = 1024  # of the product that measures a device's matrix rate: 2 GFLOP
TERMS = ("soft", "mlm", "cosine")
LINE = "{n_fmt}/{total_fmt} steps, {remaining} left{postfix}"  # no bar: the figures alone fill a terminal's width


class Progress:
    """A line over optimiser steps, or nothing where no one looks; `matrix_rate()`: FLOP/s that all devices can do."""

    def __init__(self, steps: int, done: int, wanted: bool, matrix_rate: Callable[[], float]) -> None:
        self.bar = None
        if wanted and is_terminal():
            self.rate = matrix_rate()
            self.bar = tqdm(total=steps, initial=done, leave=False, bar_format=LINE)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, step: int, row: dict[str, float], flops: float) -> None:
        """Move to a step; row has the columns of training.csv, flops those computed in row["seconds"]."""
        if self.bar is None:
            return
        share = flops / max(row["seconds"], 1e-9) / self.rate
        speed = f"{row['tokens_per_second']:,.0f}/s, {share:.0%} of {self.rate / 1e12:.3g} TFLOP/s"
        terms = ", ".join(f"{name} {row[name]:.3f}" for name in TERMS if row[name])
        self.bar.set_postfix_str(
            f"{_thousands(row['tokens'])} tokens, {speed}, loss {row['loss']:.3f} ({terms})", refresh=False
        )
        self.bar.update(step - self.bar.n)


def _thousands(number: float) -> str:
    return tqdm.format_sizeof(number)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large matrix product, the best of five: what the device can do.

    Measured once by each process for a device, a precision and a number of threads.
    """
    return _measured_rate(device, precision, torch.get_num_threads())


@functools.cache
def _measured_rate(device: torch.device, precision: str, threads: int) -> float:
    size = RATE_SIZE * (8 if device.type == "cuda" else 1)
    return 2.0 * size**3 / min(product_seconds(device, precision, (size, size, size), 5))


def product_seconds(device: torch.device, precision: str, shape: tuple[int, int, int], repeats: int) -> list[float]:
    """Seconds of each of so many products (rows, inner) x (inner, columns) in fp32 or bf16; shape is these three."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows, inner, columns = shape
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(inner, columns, dtype=dtype, device=device)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        product = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        del product
    return seconds


def encoder_flops(model: torch.nn.Module, tokens: int, length: int) -> float:
    """Operations of one forward pass of an encoder over `tokens` tokens in sequences of `length`, without its head."""
    base = model.base_model
    linear = sum(m.weight.numel() for m in base.modules() if isinstance(m, torch.nn.Linear))
    config = model.config
    layers, width = config.num_hidden_layers, config.hidden_size
    return tokens * (2.0 * linear + 4.0 * layers * length * width)


def head_flops(model: torch.nn.Module, rows: int) -> float:
    """Operations of one forward pass of an MLM head over `rows` positions."""
    width, vocabulary = model.config.hidden_size, model.config.vocab_size
    return rows * 2.0 * (width * vocabulary + width * width)
