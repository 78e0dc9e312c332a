"""Counter-based dropout: the same decision in every backend.

Whether the weight of (batch, head, query, key) is dropped depends on these
four numbers and the seed alone, so a backward pass or another backend
recomputes it instead of storing it. ``key`` counts the tokens of the grid in
row-major order, then the packed summaries.

The mixing steps are the public-domain 32-bit finaliser of MurmurHash3.
"""
from typing import Union

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers, held in int64."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _MASK
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def keep_mask(seed: Union[int, Tensor], p: float, row: Tensor,
              key: Tensor) -> Tensor:
    """Which weights survive.

    Args:
        seed: an integer below 2 ** 63 (or an int64 scalar tensor).
        p: probability of dropping, in [0, 1).
        row: int64, ``(batch * heads + head) * num_tokens + query``.
        key: int64, token or ``num_tokens`` + packed summary; broadcasts
            against ``row``.

    Returns:
        bool tensor of the broadcast shape, True = kept.
    """
    low, high = seed & _MASK, (seed >> 32) & _MASK
    # A row number may exceed 32 bits: both halves are mixed in.
    state = _mix((row & _MASK) ^ low)
    state = _mix(state ^ ((row >> 32) & _MASK) ^ high)
    threshold = int(p * 2.0**32)
    return _mix(state ^ _mix((key + 0x9E3779B9) & _MASK)) >= threshold


def draw_seed() -> int:
    """A fresh seed from PyTorch's default generator (``manual_seed``)."""
    return int(torch.randint(0, 2**31 - 1, ()))
