"""The pyramid of averages: what every far-field summary starts from.

A sub-cell of level ``l + 1`` is exactly ``2 ** d`` sub-cells of level ``l``,
so sums and masses are carried upwards and divided once per level: the mean
is that of the real tokens, on ragged and masked grids too.
"""
from typing import List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import Hierarchy


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64, everything else accumulates in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _block_sum(x: Tensor, blocks: Tuple[int, ...],
               sizes: Tuple[int, ...]) -> Tensor:
    """Sums blocks of a grid.

    Args:
        x: ``[B, *grid, ...]``, zero-padded here up to ``sizes * blocks``.
        blocks: side of a block, per axis.
        sizes: number of blocks, per axis.

    Returns:
        ``[B, *sizes, ...]``.
    """
    ndim = len(sizes)
    tail = x.shape[1 + ndim:]
    pad = [
        size * block - x.shape[1 + axis]
        for axis, (size, block) in enumerate(zip(sizes, blocks))
    ]
    if any(pad):
        # F.pad counts from the last axis.
        spec = [0, 0] * len(tail)
        for extra in reversed(pad):
            spec += [0, extra]
        x = F.pad(x, spec)
    split = [n for size, block in zip(sizes, blocks) for n in (size, block)]
    # [B, size0, block0, (size1, block1), ...] -> sum over the blocks
    x = x.reshape(x.shape[0], *split, *tail)
    # One axis at a time, the last first: several at once take a path that is
    # seven times slower on a CPU.
    for axis in reversed(range(ndim)):
        x = x.sum(dim=2 + 2 * axis)
    return x


def lattice_to_cells(x: Tensor, grid: Tuple[int, ...], rank: int) -> Tensor:
    """``[B, *(grid * rank), ...]`` -> ``[B, *grid, rank ** d, ...]``."""
    ndim = len(grid)
    tail = x.shape[1 + ndim:]
    split = [n for size in grid for n in (size, rank)]
    x = x.reshape(x.shape[0], *split, *tail)
    order = [
        0, *range(1, 2 * ndim, 2), *range(2, 2 * ndim + 1, 2),
        *range(1 + 2 * ndim, x.dim())
    ]
    return x.permute(order).reshape(x.shape[0], *grid, rank**ndim, *tail)


def _sums(x: Tensor, hierarchy: Hierarchy) -> List[Tensor]:
    """Sub-cell sums of every level, ``[B, *grid_l, rank ** d, ...]``."""
    found = []
    side = (hierarchy.cell_size // hierarchy.rank, ) * hierarchy.ndim
    for grid in hierarchy.grids:
        lattice = tuple(size * hierarchy.rank for size in grid)
        x = _block_sum(x, side, lattice)
        found.append(lattice_to_cells(x, grid, hierarchy.rank))
        side = (2, ) * hierarchy.ndim
    return found


def masses(hierarchy: Hierarchy,
           key_mask: Optional[Tensor] = None,
           device: Optional[torch.device] = None) -> List[Tensor]:
    """Number of real tokens behind every summary.

    Args:
        hierarchy: the geometry.
        key_mask: bool ``[B, *grid]``, True = real; None means all real.
        device: where to put the result; that of ``key_mask`` by default.

    Returns:
        Per level an int64 tensor ``[B, *grid_l, rank ** d]``, with ``B = 1``
        without a mask.
    """
    if key_mask is None:
        return _masses_of_grid(hierarchy, device)
    # float64 counts exactly, and reduces faster than integers on a CPU.
    sums = _sums(key_mask.to(torch.float64), hierarchy)
    return [level.to(torch.int64) for level in sums]


def _masses_of_grid(hierarchy: Hierarchy,
                    device: Optional[torch.device]) -> List[Tensor]:
    """Masses where all tokens are real: a product over the axes."""
    found = []
    for grid, width in zip(hierarchy.grids, hierarchy.widths):
        side = width // hierarchy.rank
        lattice = torch.ones((1, ), dtype=torch.int64, device=device)
        for cells, size in zip(grid, hierarchy.shape):
            starts = torch.arange(0, cells * width, side, device=device)
            lattice = lattice[..., None] * (size - starts).clamp(0, side)
        found.append(lattice_to_cells(lattice, grid, hierarchy.rank))
    return found


def average_pyramid(x: Tensor,
                    hierarchy: Hierarchy,
                    key_mask: Optional[Tensor] = None,
                    counts: Optional[List[Tensor]] = None) -> List[Tensor]:
    """Means over the real tokens of every sub-cell, level 1 first.

    Args:
        x: ``[B, *grid, heads, head_dim]``, any floating dtype; sums are
            taken in float32 (float64 for float64).
        hierarchy: the geometry; its ``shape`` equals ``grid``.
        key_mask: bool ``[B, *grid]``, True = real. Masked tokens may hold
            NaN, and get a zero gradient.
        counts: what :func:`masses` gives for these, where it is known.

    Returns:
        Per level ``[B, *grid_l, rank ** d, heads, head_dim]`` in the dtype
        of ``x``; 0 where the mass is 0.
    """
    dtype = x.dtype
    if not hierarchy.num_levels:
        return []
    if key_mask is not None:
        x = x.masked_fill(~key_mask[..., None, None], 0)
    sums = _sums(x.to(accumulation_dtype(dtype)), hierarchy)
    if counts is None:
        counts = masses(hierarchy, key_mask, x.device)
    return [(total / count.clamp(min=1)[..., None, None]).to(dtype)
            for total, count in zip(sums, counts)]


def pack(levels: List[Tensor], ndim: int) -> Tensor:
    """Per-level ``[B, *grid_l, rank ** d, ...]`` -> ``[B, M_total, ...]``."""
    return torch.cat([level.flatten(1, 1 + ndim) for level in levels], dim=1)
