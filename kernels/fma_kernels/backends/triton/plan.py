"""What the kernels must know of a hierarchy: plain numbers, from the host.

A sequence is an image of one row here, so that every kernel is written once:
``(n,)`` becomes ``(1, n)``, with cells of one row.
"""
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Tuple

import torch
from torch import Tensor

from ...geometry import Hierarchy, auto_num_levels

# A tile is one leaf cell, or the 2 ** d leaves of a parent where a leaf has
# at most this many tokens: too thin for a matrix unit.
THIN_LEAF = 32
# Queries that one program of the backward of summaries walks through.
CHUNK = 1024


@dataclass(frozen=True)
class Plan:
    """Tiles, windows and lists of a hierarchy.

    Attributes:
        ndim: 1 or 2 token axes.
        height, width: the grid, with ``height = 1`` in 1D.
        cell: side of a leaf cell.
        grouped: whether tiles are parents, not leaves.
        tile: rows and columns of a tile in tokens.
        window: rows and columns of the box of near keys of a tile.
        margin: rows and columns by which that box begins before the tile.
        query_margin: the same for the box of queries that see a tile.
        rank: sub-cells per cell and axis.
        listed: levels whose lists are the children of near parents.
        top: whether one level more has the whole grid as its list.
    """
    ndim: int
    height: int
    width: int
    cell: int
    grouped: bool
    tile: Tuple[int, int]
    window: Tuple[int, int]
    margin: Tuple[int, int]
    query_margin: Tuple[int, int]
    rank: int
    causal: bool
    listed: int
    top: bool

    @property
    def tiles(self) -> Tuple[int, int]:
        """Rows and columns of tiles."""
        return (-(-self.height // self.tile[0]),
                -(-self.width // self.tile[1]))

    @property
    def tile_tokens(self) -> int:
        return prod(self.tile)

    @property
    def parts(self) -> int:
        """Summaries of a cell."""
        return self.rank**self.ndim


@lru_cache(maxsize=256)
def plan(hierarchy: Hierarchy) -> Plan:
    """The plan of a (trimmed) hierarchy."""
    ndim, cell = hierarchy.ndim, hierarchy.cell_size
    height, width = (1, *hierarchy.shape)[-2:]
    levels = hierarchy.num_levels
    # Where the top grid has at most 4 cells a side, its list is that of any
    # other level (kernels/README.md, "How many levels").
    top = levels > 0 and levels < auto_num_levels(hierarchy.shape, cell)
    if levels == 0:
        # Whole cells, so that a new length need not be a new kernel.
        rows = -(-height // cell) * cell if ndim == 2 else 1
        tile = window = (rows, -(-width // cell) * cell)
        grouped, margin, query_margin = False, (0, 0), (0, 0)
    else:
        # A top list is that of a leaf where there is no other level.
        grouped = cell**ndim <= THIN_LEAF and not (top and levels == 1)
        side = cell * (2 if grouped else 1)
        # Causal: no key right of the tile, no query left of it.
        reach = side + (1 if hierarchy.causal else 2) * cell
        tile, window, margin = (side, side), (reach, reach), (cell, cell)
        query_margin = (0, 0) if hierarchy.causal else margin
        if ndim == 1:
            tile, window, margin, query_margin = ((1, tile[1]), (1, window[1]),
                                                  (0, margin[1]),
                                                  (0, query_margin[1]))
    return Plan(ndim, height, width, cell, grouped, tile, window, margin,
                query_margin, hierarchy.rank, hierarchy.causal,
                levels - int(top), top)


@lru_cache(maxsize=256)
def level_table(hierarchy: Hierarchy, device: torch.device) -> Tensor:
    """int32 ``[max(L, 1), 3]``: where a level starts, its grid's sides."""
    rows = [(start, *(1, *grid)[-2:])
            for start, grid in zip(hierarchy.level_starts, hierarchy.grids)]
    return torch.tensor(rows or [(0, 0, 0)], dtype=torch.int32, device=device)
