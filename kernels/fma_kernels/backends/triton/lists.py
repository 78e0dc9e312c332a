"""The far lists of tiles, as tables on the device.

A list is the same for all heads and images, and its places are irregular:
kernels read them, rather than work them out in every block.
"""
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ...geometry import Hierarchy
from .. import tiling
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


@lru_cache(maxsize=64)
def far_lists(hierarchy: Hierarchy, device: torch.device) -> FarLists:
    """The lists of a (trimmed) hierarchy, but a top level that lists all."""
    p = plan(hierarchy)
    tiles = tiling.grid_points(p.tiles[-hierarchy.ndim:])
    # A parent is a cell of level 2; level 1 is seen by its children apart.
    first = 2 if p.grouped else 1
    found = [torch.empty((len(tiles), 0), dtype=torch.int64)]
    for level in range(first, p.listed + 1):
        found.append(
            tiling.exact_list(hierarchy, level, tiles >> (level - first)))
    index = tiling.compress(torch.cat(found, dim=1))
    finest = torch.empty((len(tiles), 0), dtype=torch.int64)
    bits = torch.empty(0, dtype=torch.int64)
    if p.grouped and p.listed:
        finest, hidden = tiling.finest_list(hierarchy, tiles)
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
