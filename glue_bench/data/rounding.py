"""Rounding of sizes, apart from batching.py so that reading text does not import torch."""


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not smaller."""
    return -(-value // multiple) * multiple
