"""The pyramid of averages: what every far-field summary starts from.

A sub-cell of level ``l + 1`` is exactly ``2 ** d`` sub-cells of level ``l``,
so sums and masses are carried upwards and divided once per level: the mean
is that of the real tokens, on ragged and masked grids too.
"""
from functools import lru_cache
from math import prod
from typing import Callable, List, Optional, Sequence, Tuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from .geometry import Hierarchy, has_static_value

T = TypeVar('T')


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64, everything else accumulates in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def constant(make: Callable[[], T]) -> T:
    """What follows from the geometry alone, as numbers in an ONNX file.

    An exporter that saw how they are worked out would hold thousands of
    nodes, and be at it for minutes.
    """
    if not torch.onnx.is_in_onnx_export():
        return make()
    with _disable_current_modes():
        return make()


def shape_of(x: Tensor) -> Sequence[int]:
    """``x.shape`` to calculate with.

    In a trace it holds tensors, of which ONNX rounds quotients to zero.
    """
    if torch.jit.is_tracing():
        return [int(size) for size in x.shape]
    return x.shape


def filled(x: Tensor, sizes: Sequence[int], first: int = 1) -> Tensor:
    """Zero-pads the ends of axes, up to sizes that may be symbolic.

    Args:
        x: any tensor; returned as it is where nothing is padded.
        sizes: of the axes from ``first`` on, at least those of ``x``.
        first: the first of these axes.
    """
    pads = [size - own for size, own in zip(sizes, shape_of(x)[first:])]
    # Whether a symbolic number is 0 would be asked for each size anew.
    if all(has_static_value(pad) and not pad for pad in pads):
        return x
    # F.pad counts from the last axis.
    spec = [0, 0] * (x.dim() - first - len(pads))
    for pad in reversed(pads):
        spec += [0, pad]
    return F.pad(x, spec)


def blocks_of(x: Tensor, sizes: Tuple[int, ...], blocks: Tuple[int,
                                                               ...]) -> Tensor:
    """Cuts a grid into blocks.

    Args:
        x: ``[B, *grid, ...]``, zero-padded here up to ``sizes * blocks``.
        sizes: number of blocks, per axis.
        blocks: side of a block, per axis.

    Returns:
        ``[B, size0, block0, (size1, block1), ...]``; a view where nothing is
        padded.
    """
    ndim = len(sizes)
    tail = x.shape[1 + ndim:]
    x = filled(x, [size * block for size, block in zip(sizes, blocks)])
    split = [n for size, block in zip(sizes, blocks) for n in (size, block)]
    return x.reshape(x.shape[0], *split, *tail)


def block_sum(x: Tensor, blocks: Tuple[int, ...], sizes: Tuple[int,
                                                               ...]) -> Tensor:
    """Sums the blocks of :func:`blocks_of`, to ``[B, *sizes, ...]``."""
    ndim = len(sizes)
    x = blocks_of(x, sizes, blocks)
    # One axis at a time, the last first: several at once take a path that is
    # seven times slower on a CPU.
    for axis in reversed(range(ndim)):
        x = x.sum(dim=2 + 2 * axis)
    return x


def lattice_to_cells(x: Tensor, grid: Tuple[int, ...], rank: int) -> Tensor:
    """``[B, *lattice, ...]`` -> ``[B, *grid, rank ** d, ...]``.

    The lattice is zero-padded up to ``grid * rank``.
    """
    ndim = len(grid)
    # [B, size0, rank, (size1, rank), ...]
    x = blocks_of(x, grid, (rank, ) * ndim)
    if ndim == 2:
        x = x.transpose(2, 3)
    return x.flatten(1 + ndim, 2 * ndim)


def cells_to_lattice(x: Tensor, rank: int, ndim: int) -> Tensor:
    """The inverse of :func:`lattice_to_cells`."""
    grid, tail = x.shape[1:1 + ndim], x.shape[2 + ndim:]
    x = x.reshape(x.shape[0], *grid, *(rank, ) * ndim, *tail)
    pairs = [axis for i in range(1, ndim + 1) for axis in (i, i + ndim)]
    x = x.permute(0, *pairs, *range(1 + 2 * ndim, x.dim()))
    return x.reshape(x.shape[0], *(size * rank for size in grid), *tail)


def subcell_sums(x: Tensor, hierarchy: Hierarchy) -> List[Tensor]:
    """Sub-cell sums of every level, ``[B, *grid_l, rank ** d, ...]``."""
    found = []
    side = (hierarchy.cell_size // hierarchy.rank, ) * hierarchy.ndim
    for grid in hierarchy.grids:
        lattice = tuple(size * hierarchy.rank for size in grid)
        x = block_sum(x, side, lattice)
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
        return constant(lambda: _masses_of_grid(hierarchy, device))
    # float64 counts exactly, and reduces faster than integers on a CPU.
    sums = subcell_sums(key_mask.to(torch.float64), hierarchy)
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
                    mass: Optional[Tensor] = None) -> List[Tensor]:
    """Means over the real tokens of every sub-cell, level 1 first.

    Plain differentiable PyTorch on any device; the public ops pool with
    ``fma_kernels::pool``, the same in one pass.

    Args:
        x: ``[B, *grid, heads, head_dim]``, any floating dtype; sums are
            taken in float32 (float64 for float64).
        hierarchy: the geometry; its ``shape`` equals ``grid``.
        key_mask: bool ``[B, *grid]``, True = real. Masked tokens may hold
            NaN, and get a zero gradient.
        mass: what :func:`packed_mass` gives for these, where it is known.

    Returns:
        Per level ``[B, *grid_l, rank ** d, heads, head_dim]`` in the dtype
        of ``x``; 0 where the mass is 0.
    """
    dtype = x.dtype
    if not hierarchy.num_levels:
        return []
    if key_mask is not None:
        x = x.masked_fill(~key_mask[..., None, None], 0)
    sums = subcell_sums(x.to(accumulation_dtype(dtype)), hierarchy)
    if mass is None:
        counts = masses(hierarchy, key_mask, x.device)
    else:
        counts = unpack(mass, hierarchy)
    return [(total / count.clamp(min=1)[..., None, None]).to(dtype)
            for total, count in zip(sums, counts)]


def spread(grad: Tensor, hierarchy: Hierarchy, key_mask: Optional[Tensor],
           mass: Tensor) -> Tensor:
    """The transpose of packed averages: each sub-cell's share, to its tokens.

    Args:
        grad: ``[B, M_total, heads, head_dim]``.
        mass: int64 ``[B or 1, M_total]``, as :func:`packed_mass`.

    Returns:
        ``[B, *grid, heads, head_dim]`` in the dtype of ``grad``; 0 where
        masked.
    """
    ndim = hierarchy.ndim
    share = grad.to(accumulation_dtype(grad.dtype))
    share = share / mass.clamp(min=1)[..., None, None]
    total = None
    # From the coarsest level down: a sub-cell hands its sum to its parts.
    for level in reversed(unpack(share, hierarchy)):
        lattice = cells_to_lattice(level, hierarchy.rank, ndim)
        if total is not None:
            lattice = lattice + repeat(total, 2, lattice.shape[1:1 + ndim])
        total = lattice
    side = hierarchy.cell_size // hierarchy.rank
    total = repeat(total, side, hierarchy.shape).to(grad.dtype)
    if key_mask is not None:
        total = total.masked_fill(~key_mask[..., None, None], 0)
    return total


def repeat(x: Tensor, times: int, sizes: Tuple[int, ...]) -> Tensor:
    """Every point of a grid ``times`` along each axis, cut to ``sizes``."""
    for axis, size in enumerate(sizes, 1):
        # A copy of a view: repeat_interleave builds and reads an index.
        shape = *x.shape[:axis + 1], times, *x.shape[axis + 1:]
        x = x.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)
        x = x.narrow(axis, 0, size)
    return x


def pack(levels: List[Tensor], ndim: int) -> Tensor:
    """Per-level ``[B, *grid_l, rank ** d, ...]`` -> ``[B, M_total, ...]``."""
    return torch.cat([level.flatten(1, 1 + ndim) for level in levels], dim=1)


def unpack(packed: Tensor, hierarchy: Hierarchy) -> List[Tensor]:
    """The inverse of :func:`pack`: views of ``[B, M_total, ...]``."""
    return [
        level.unflatten(1, (*grid, hierarchy.num_parts))
        for level, grid in zip(
            packed.split(hierarchy.level_sizes, dim=1), hierarchy.grids)
    ]


def packed_size(grid: Sequence[int], cell_size: int, num_levels: int,
                rank: int) -> int:
    """``M_total`` on a grid whose sizes may be symbolic."""
    total = 0
    for level in range(num_levels):
        cells = [-(-size // (cell_size << level)) for size in grid]
        total = total + prod(cells) * rank**len(grid)
    return total


def packed_mass(hierarchy: Hierarchy,
                key_mask: Optional[Tensor] = None,
                device: Optional[torch.device] = None) -> Tensor:
    """:func:`masses` as one int64 tensor ``[B or 1, M_total]``.

    Without a mask the result is shared between calls: do not write to it.
    """
    if key_mask is None:
        return constant(lambda: _packed_mass_of_grid(hierarchy, device))
    return _packed(masses(hierarchy, key_mask), hierarchy, key_mask.device)


@lru_cache(maxsize=64)
def _packed_mass_of_grid(hierarchy: Hierarchy,
                         device: Optional[torch.device]) -> Tensor:
    # Counted on the CPU and sent at once: many small steps. A table that
    # outlives this call must not be one of inference mode.
    with torch.inference_mode(False):
        return _packed(masses(hierarchy), hierarchy, device)


def _packed(levels: List[Tensor], hierarchy: Hierarchy,
            device: Optional[torch.device]) -> Tensor:
    if not levels:
        return torch.zeros((1, 0), dtype=torch.int64, device=device)
    return pack(levels, hierarchy.ndim).to(device)
