"""Attention to near tokens alone: what FMA's near field costs elsewhere."""
from typing import Callable, Sequence

from case import Case
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def windows(tensors: Sequence[Tensor], side: int = 8) -> Tensor:
    """Attention inside windows, as in Swin without shift and bias.

    Args:
        tensors: ``[B, H, W, heads, head_dim]`` each, H and W multiples of
            ``side``.
    """
    batch, height, width, heads, head_dim = tensors[0].shape
    split = (batch, height // side, side, width // side, side)
    # [B, rows, columns, heads, side, side, head_dim], then one image a window
    parts = (
        x.unflatten(2, split[3:]).unflatten(1, split[1:3]).permute(
            0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, side**2, head_dim)
        for x in tensors)
    out = scaled_dot_product_attention(*parts)
    out = out.view(batch, split[1], split[3], heads, side, side, head_dim)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(tensors[0].shape)


def natten(case: Case) -> Callable[[Sequence[Tensor]], Tensor]:
    """NATTEN with about the near field of a cell: a window of 3 cells.

    Raises:
        ImportError: It is not installed.
    """
    import natten as package
    cell = case.cell_size
    if case.causal:
        return lambda x: package.na1d(*x, kernel_size=2 * cell, is_causal=True)
    # Odd, as all its versions allow.
    return lambda x: package.na2d(*x, kernel_size=3 * cell - 1)
