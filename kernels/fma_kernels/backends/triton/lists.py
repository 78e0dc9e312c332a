"""The far lists of tiles, as tables on the device.

A list is the same for all heads and images, and its places are irregular:
kernels read them, rather than work them out in every block.
"""
from dataclasses import dataclass
from functools import lru_cache
from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...geometry import Hierarchy
from ..lists import far_keys, grid_points, number_on, with_parts
from .plan import plan


@dataclass(frozen=True)
class FarLists:
    """Packed summaries that tiles read, int32, -1 for none.

    Attributes:
        index: ``[tiles, length]``: what all queries of a tile see.
        finest: ``[tiles, F]``: level 1 around tiles that are parents.
        bits: int32 ``[F]``: which children of a tile see an entry.
        block: entries that a step takes; divides both lengths.
    """
    index: Tensor
    finest: Tensor
    bits: Tensor
    block: int


def _padded(index: Tensor, block: int) -> Tensor:
    return F.pad(index, (0, -index.shape[1] % block), value=-1)


def _compressed(index: Tensor) -> Tensor:
    """Moves the -1 of each row to its end and cuts the common tail."""
    order = (index < 0).to(torch.uint8).argsort(dim=1, stable=True)
    length = int((index >= 0).sum(1).max()) if index.numel() else 0
    return index.gather(1, order)[:, :length]


def _finest(hierarchy: Hierarchy, parents: Tensor) -> Tuple[Tensor, Tensor]:
    """Level-1 summaries around parents of 2 ** d leaves.

    Returns:
        Packed summaries ``[parents, F]``, -1 off the grid, and bool
        ``[2 ** d, F]``: which of them a child of the parent sees finer.
    """
    d = hierarchy.ndim
    children = grid_points((2, ) * d)
    window = grid_points((6, ) * d) - 2  # from the first child
    finer = (window - children[:, None]).abs().amax(-1) <= 1
    if hierarchy.causal:
        finer |= window[:, 0] >= children
    # What no child sees need not be read.
    window, finer = window[~finer.all(0)], finer[:, ~finer.all(0)]
    cells = number_on(2 * parents[:, None] + window, hierarchy.leaf_grid)
    return (with_parts(hierarchy, 1,
                       cells), finer.repeat_interleave(hierarchy.num_parts, 1))


@lru_cache(maxsize=64)
def far_lists(hierarchy: Hierarchy, device: torch.device) -> FarLists:
    """The lists of a (trimmed) hierarchy, but a top level that lists all."""
    p = plan(hierarchy)
    tiles = grid_points(p.tiles[-hierarchy.ndim:])
    # A parent is a cell of level 2; level 1 is seen by its children apart.
    first = 2 if p.grouped else 1
    found = [torch.empty((len(tiles), 0), dtype=torch.int64)]
    for level in range(first, p.listed + 1):
        found.append(
            far_keys(hierarchy, level, tiles >> (level - first)).index)
    index = _compressed(torch.cat(found, dim=1))
    finest = torch.empty((len(tiles), 0), dtype=torch.int64)
    bits = torch.empty(0, dtype=torch.int64)
    if p.grouped and p.listed:
        finest, hidden = _finest(hierarchy, tiles)
        bits = (~hidden * (1 << torch.arange(len(hidden)))[:, None]).sum(0)
    # Wide steps cost less each; narrow ones waste less on the last.
    length = max(index.shape[1], 1)
    block = 64 if -length % 64 < 32 else 32
    finest = _padded(finest, block)
    bits = F.pad(bits, (0, finest.shape[1] - len(bits)))
    tables = (_padded(index, block), finest, bits)
    index, finest, bits = (x.to(device, torch.int32) for x in tables)
    return FarLists(index, finest, bits, block)


@lru_cache(maxsize=8)
def no_lists(device: torch.device) -> FarLists:
    """For pooled queries, whose far lists are walked apart."""
    nothing = torch.empty((1, 0), dtype=torch.int32, device=device)
    return FarLists(nothing, nothing, nothing[0], 16)
