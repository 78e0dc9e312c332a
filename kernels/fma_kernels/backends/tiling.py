"""Query tiles and their key lists, as index tables for the blocked backend.

A *tile* is the queries that share their near field: one leaf cell, or one
parent cell where leaves are too small to keep matrix products busy. The
tiles of one parent form a *group*, which shares one list of summaries: those
of level 1 are the union over its leaves, hidden where a leaf keeps them
finer; those above are the same for all. Cells are numbered group by group,
so that the tokens of a group are contiguous.
"""
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Callable, Optional, Tuple

import torch
from torch import Tensor

from ..geometry import Hierarchy

# A leaf cell of fewer queries is too thin for a matrix product.
_MIN_TILE = 16


@dataclass(frozen=True)
class KeyList:
    """The keys of every tile (or group) from one source.

    Attributes:
        source: 'tokens' (rows are leaf cells) or 'summaries'.
        per_group: whether the rows of ``index`` are groups, not tiles.
        index: int64 ``[tiles or groups, length]``, -1 where a list is
            shorter than the longest.
        hidden: bool ``[queries, keys]`` of a tile or group: the first keys
            of the list that only some of its queries see; or None.
        diagonal: for causal tokens, the place of the first key relative to
            the tile's first query; keys right of a query are hidden.
    """
    source: str
    per_group: bool
    index: Tensor
    hidden: Optional[Tensor] = None
    diagonal: Optional[int] = None


@dataclass(frozen=True)
class Tiling:
    """How tokens are laid out and which lists each tile reads.

    Attributes:
        cell: sides of a gathered cell in tokens.
        grid: cells per axis, padded so that groups are whole.
        group: cells per axis of a group, 1 or 2.
        tile_cells: cells of a tile: 1, or all of its group.
        lists: the keys, near field first.
    """
    cell: Tuple[int, ...]
    grid: Tuple[int, ...]
    group: Tuple[int, ...]
    tile_cells: int
    lists: Tuple[KeyList, ...]

    @property
    def num_cells(self) -> int:
        return prod(self.grid)

    @property
    def cell_tokens(self) -> int:
        return prod(self.cell)

    @property
    def num_groups(self) -> int:
        return self.num_cells // prod(self.group)

    @property
    def tiles_per_group(self) -> int:
        return prod(self.group) // self.tile_cells

    @property
    def tile_tokens(self) -> int:
        return self.tile_cells * self.cell_tokens


def grid_points(grid: Tuple[int, ...]) -> Tensor:
    """Row-major coordinates, ``[prod(grid), d]``."""
    axes = [torch.arange(size) for size in grid]
    return torch.cartesian_prod(*axes).reshape(-1, len(grid))


def flatten(points: Tensor, grid: Tuple[int, ...]) -> Tensor:
    """Row-major number of coordinates ``[..., d]``."""
    number = torch.zeros_like(points[..., 0])
    for axis, size in enumerate(grid):
        number = number * size + points[..., axis]
    return number


def _cell_number(points: Tensor, grid: Tuple[int, ...],
                 group: Tuple[int, ...]) -> Tensor:
    """Group-major number of cell coordinates ``[..., d]``."""
    sides = torch.tensor(group)
    groups = tuple(size // side for size, side in zip(grid, group))
    return (flatten(points // sides, groups) * prod(group) +
            flatten(points % sides, group))


def _inside(points: Tensor, grid: Tuple[int, ...]) -> Tensor:
    return ((points >= 0) & (points < torch.tensor(grid))).all(-1)


def distance(points: Tensor, centre: Tensor) -> Tensor:
    """Chebyshev distance of coordinates ``[..., d]``."""
    return (points - centre).abs().amax(-1)


def compress(index: Tensor) -> Tensor:
    """Moves the -1 of each row to its end and cuts the common tail."""
    order = (index < 0).to(torch.uint8).argsort(dim=1, stable=True)
    length = int((index >= 0).sum(1).max()) if index.numel() else 0
    return index.gather(1, order)[:, :length]


def _window(low: int, high: int, ndim: int) -> Tensor:
    """All offsets in ``[low, high)``, ``[(high - low) ** d, d]``."""
    return torch.tensor(list(product(range(low, high), repeat=ndim)))


def child_window(ndim: int) -> Tensor:
    """Leaves of a parent, as offsets from its first, ``[2 ** d, d]``."""
    return _window(0, 2, ndim)


def near_window(hierarchy: Hierarchy, as_parent: bool) -> Tensor:
    """Near leaves, as offsets from the (first) leaf of a tile."""
    # Causal: nothing right of the tile.
    return _window(-1, (3 if as_parent else 2) - hierarchy.causal,
                   hierarchy.ndim)


def exact_list(hierarchy: Hierarchy, level: int, cells: Tensor) -> Tensor:
    """Interaction lists of ``cells [T, d]``, packed summaries ``[T, F]``."""
    grid = hierarchy.grids[level - 1]
    if level == hierarchy.num_levels:
        window = grid_points(grid)[None]  # the same for every cell
    else:
        window = (cells // 2 * 2)[:, None] + _window(-2, 4, hierarchy.ndim)
    far = _inside(window, grid) & (distance(window, cells[:, None]) > 1)
    if hierarchy.causal:
        far &= window[..., 0] < cells[:, None, 0]
    number = flatten(window, grid).masked_fill(~far, -1)
    return _expand_parts(compress(number), hierarchy, level)


def _expand_parts(cells: Tensor, hierarchy: Hierarchy, level: int) -> Tensor:
    """Cell numbers ``[T, F]`` -> packed summaries ``[T, F * parts]``."""
    parts = torch.arange(hierarchy.num_parts)
    start = hierarchy.level_starts[level - 1]
    packed = start + cells[..., None] * hierarchy.num_parts + parts
    return packed.masked_fill(cells[..., None] < 0, -1).flatten(1)


def _full_attention(hierarchy: Hierarchy) -> Tiling:
    """L = 0: the whole grid is one cell."""
    index = torch.zeros((1, 1), dtype=torch.int64)
    tokens = KeyList(
        'tokens', False, index, diagonal=0 if hierarchy.causal else None)
    ones = (1, ) * hierarchy.ndim
    return Tiling(hierarchy.shape, ones, ones, 1, (tokens, ))


def _near_list(hierarchy: Hierarchy, leaves: Tensor, groups: Tensor,
               number: Callable[[Tensor], Tensor], as_parent: bool) -> KeyList:
    """Tokens around tiles that are leaves, or whole groups of leaves."""
    m, d, causal = hierarchy.cell_size, hierarchy.ndim, hierarchy.causal
    window = near_window(hierarchy, as_parent)
    first = 2 * groups if as_parent else leaves
    cells = first[:, None] + window
    index = number(cells).masked_fill(~_inside(cells, hierarchy.leaf_grid), -1)
    hidden = None
    if as_parent:
        far = distance(window, child_window(d)[:, None]) > 1
        hidden = far.repeat_interleave(m**d, 0).repeat_interleave(m**d, 1)
    return KeyList('tokens', False, index, hidden, -m if causal else None)


def finest_window(hierarchy: Hierarchy) -> Tuple[Tensor, Tensor]:
    """Level-1 cells around a group of 2 ** d leaves.

    Returns:
        Offsets from the group's first leaf, ``[cells, d]``, and bool
        ``[2 ** d, cells]``: which of them a child of the group sees finer.
    """
    children, window = child_window(hierarchy.ndim), _window(
        -2, 4, hierarchy.ndim)
    finer = distance(window, children[:, None]) <= 1  # [children, cells]
    if hierarchy.causal:
        finer |= window[:, 0] >= children
    # What no child sees need not be gathered.
    return window[~finer.all(0)], finer[:, ~finer.all(0)]


def finest_list(hierarchy: Hierarchy, groups: Tensor) -> Tuple[Tensor, Tensor]:
    """Level-1 summaries around groups of 2 ** d leaves.

    Returns:
        Packed summaries ``[groups, F]``, -1 off the grid, and bool
        ``[2 ** d, F]``: which of them a child of the group sees finer.
    """
    window, finer = finest_window(hierarchy)
    cells = 2 * groups[:, None] + window
    first = flatten(cells, hierarchy.leaf_grid).masked_fill(
        ~_inside(cells, hierarchy.leaf_grid), -1)
    return (_expand_parts(first, hierarchy,
                          1), finer.repeat_interleave(hierarchy.num_parts, 1))


def _far_list(hierarchy: Hierarchy, groups: Tensor) -> KeyList:
    """Summaries of every level around groups of 2 ** d leaves."""
    first, hidden = finest_list(hierarchy, groups)
    hidden = hidden.repeat_interleave(hierarchy.cell_size**hierarchy.ndim, 0)
    upper = [
        exact_list(hierarchy, level, groups >> (level - 2))
        for level in range(2, hierarchy.num_levels + 1)
    ]
    index = torch.cat([first, compress(torch.cat(upper, dim=1))], dim=1)
    return KeyList('summaries', True, index, hidden)


@lru_cache(maxsize=64)
def tiling(hierarchy: Hierarchy) -> Tiling:
    """The tiles and lists of a hierarchy, on the CPU (cached)."""
    levels, d = hierarchy.num_levels, hierarchy.ndim
    if levels == 0:
        return _full_attention(hierarchy)
    # With one level only, the top list depends on the leaf: no parents.
    side = 2 if levels > 1 else 1
    group = (side, ) * d
    grid = tuple(-(-size // side) * side for size in hierarchy.leaf_grid)
    groups = grid_points(tuple(size // side for size in grid))
    # [groups, 1, d] * side + [children, d] -> leaves in group order
    leaves = (groups[:, None] * side + _window(0, side, d)).flatten(0, 1)
    as_parent = levels > 1 and hierarchy.cell_size**d < _MIN_TILE

    def number(cells: Tensor) -> Tensor:
        return _cell_number(cells, grid, group)

    near = _near_list(hierarchy, leaves, groups, number, as_parent)
    if levels == 1:
        far = KeyList('summaries', True, exact_list(hierarchy, 1, leaves))
    else:
        far = _far_list(hierarchy, groups)
    return Tiling((hierarchy.cell_size, ) * d, grid, group,
                  side**d if as_parent else 1,
                  tuple(x for x in (near, far) if x.index.shape[1]))
