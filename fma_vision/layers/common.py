"""Argument checks, masking and names shared by layers and models."""

from contextlib import nullcontext
from typing import ContextManager, Optional, Set, Tuple

import torch
import torch.nn as nn


def head_dim_of(dim: int, num_heads: int) -> int:
    """Channels per head.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(f'dim={dim} must be a positive multiple of '
                         f'num_heads={num_heads}')
    return dim // num_heads


def check_tokens(x: torch.Tensor, dim: int, ndim: int) -> Tuple[int, ...]:
    """Check tokens ``[B, *grid, dim]`` and return their grid.

    Raises:
        ValueError: If ``x`` has another rank, channel count or an empty grid.
    """
    grid = tuple(x.shape[1:-1])
    if x.ndim != ndim + 2 or x.shape[-1] != dim or 0 in grid:
        axes = 'N' if ndim == 1 else 'H, W'
        raise ValueError(f'x must be [B, {axes}, {dim}] with a non-empty '
                         f'grid, got {tuple(x.shape)}')
    return grid


def drop_masked(x: torch.Tensor,
                key_mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Zero the tokens that ``key_mask`` calls absent.

    Done before any product, since 0 * NaN is NaN: a masked token may then
    hold anything without reaching an output or a weight gradient.

    Args:
        x (Tensor): ``[B, *grid, C]``.
        key_mask (Tensor, optional): bool ``[B, *grid]``, True = real.

    Returns:
        Tensor: ``x`` with masked tokens set to 0.

    Raises:
        ValueError: If the mask has another shape or dtype.
    """
    if key_mask is None:
        return x
    if key_mask.dtype != torch.bool or key_mask.shape != x.shape[:-1]:
        raise ValueError(f'key_mask must be bool {tuple(x.shape[:-1])}, got '
                         f'{key_mask.dtype} {tuple(key_mask.shape)}')
    return x.masked_fill(~key_mask.unsqueeze(-1), 0)


def without_autocast(device: torch.device) -> ContextManager:
    """The context in which no product is rounded to half precision."""
    # The meta device knows no autocast, not even how to turn it off.
    if device.type == 'meta':
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def undecayed_parameters(model: nn.Module) -> Set[str]:
    """What the parts of a model name in their ``no_weight_decay``.

    Returns:
        set[str]: Names of parameters of ``model``.
    """
    names = set()
    for prefix, module in model.named_modules():
        if module is not model and hasattr(module, 'no_weight_decay'):
            names |= {f'{prefix}.{n}' for n in module.no_weight_decay()}
    return names
