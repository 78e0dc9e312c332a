"""Query tiles and their key lists, as index tables for the blocked backend.

A *tile* is the queries that share their lists: one leaf cell, or one parent
cell where leaves are too small to keep matrix products busy. Tiles that
belong to one parent form a *group*, which shares the lists of levels 2 and
up. Cells are numbered group by group, so that the tokens of a group are
contiguous.
"""
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Optional, Tuple

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
        hidden: bool ``[queries of a tile, keys]`` that a tile of several
            cells hides from some of its queries; or None.
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


def _grid_points(grid: Tuple[int, ...]) -> Tensor:
    """Row-major coordinates, ``[prod(grid), d]``."""
    axes = [torch.arange(size) for size in grid]
    return torch.cartesian_prod(*axes).reshape(-1, len(grid))


def _flatten(points: Tensor, grid: Tuple[int, ...]) -> Tensor:
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
    return (_flatten(points // sides, groups) * prod(group) +
            _flatten(points % sides, group))


def _inside(points: Tensor, grid: Tuple[int, ...]) -> Tensor:
    return ((points >= 0) & (points < torch.tensor(grid))).all(-1)


def _distance(points: Tensor, centre: Tensor) -> Tensor:
    return (points - centre).abs().amax(-1)


def _compress(index: Tensor) -> Tensor:
    """Moves the -1 of each row to its end and cuts the common tail."""
    order = (index < 0).to(torch.uint8).argsort(dim=1, stable=True)
    length = int((index >= 0).sum(1).max()) if index.numel() else 0
    return index.gather(1, order)[:, :length]


def _window(low: int, high: int, ndim: int) -> Tensor:
    """All offsets in ``[low, high)``, ``[(high - low) ** d, d]``."""
    return torch.tensor(list(product(range(low, high), repeat=ndim)))


def _exact_list(hierarchy: Hierarchy, level: int, cells: Tensor) -> Tensor:
    """Interaction lists of ``cells [T, d]``, packed summaries ``[T, F]``."""
    grid = hierarchy.grids[level - 1]
    if level == hierarchy.num_levels:
        window = _grid_points(grid)[None]  # the same for every cell
    else:
        window = (cells // 2 * 2)[:, None] + _window(-2, 4, hierarchy.ndim)
    far = _inside(window, grid) & (_distance(window, cells[:, None]) > 1)
    if hierarchy.causal:
        far &= window[..., 0] < cells[:, None, 0]
    number = _flatten(window, grid).masked_fill(~far, -1)
    return _expand_parts(_compress(number), hierarchy, level)


def _expand_parts(cells: Tensor, hierarchy: Hierarchy,
                  level: int) -> Tensor:
    """Cell numbers ``[T, F]`` -> packed summaries ``[T, F * parts]``."""
    parts = torch.arange(hierarchy.num_parts)
    start = hierarchy.level_starts[level - 1]
    packed = start + cells[..., None] * hierarchy.num_parts + parts
    return packed.masked_fill(cells[..., None] < 0, -1).flatten(1)


def _full_attention(hierarchy: Hierarchy) -> Tiling:
    """L = 0: the whole grid is one cell."""
    index = torch.zeros((1, 1), dtype=torch.int64)
    tokens = KeyList('tokens', False, index,
                     diagonal=0 if hierarchy.causal else None)
    ones = (1, ) * hierarchy.ndim
    return Tiling(hierarchy.shape, ones, ones, 1, (tokens, ))


def _leaf_lists(hierarchy: Hierarchy, cells: Tensor,
                number) -> Tuple[KeyList, KeyList]:
    """Tokens and level-1 summaries of tiles that are leaf cells."""
    causal = hierarchy.causal
    # Causal: the cell to the left, then the own one up to the diagonal.
    near = cells[:, None] + _window(-1, 1 if causal else 2, hierarchy.ndim)
    index = number(near).masked_fill(~_inside(near, hierarchy.leaf_grid), -1)
    diagonal = -hierarchy.cell_size if causal else None
    return (KeyList('tokens', False, index, diagonal=diagonal),
            KeyList('summaries', False, _exact_list(hierarchy, 1, cells)))


def _parent_lists(hierarchy: Hierarchy, parents: Tensor,
                  number) -> Tuple[KeyList, KeyList]:
    """The same for tiles that are parent cells: unions, partly hidden."""
    d, m = hierarchy.ndim, hierarchy.cell_size
    grid = hierarchy.leaf_grid
    children = _window(0, 2, d)  # offsets from the tile's first leaf
    near_window, far_window = _window(-1, 3, d), _window(-2, 4, d)

    def index_of(window: Tensor, numbering) -> Tensor:
        cells = 2 * parents[:, None] + window
        return numbering(cells).masked_fill(~_inside(cells, grid), -1)

    def hide(window: Tensor, wrong, keys_per_cell: int) -> Tensor:
        """[children, cells] -> [queries of the tile, keys]"""
        hidden = wrong(_distance(window, children[:, None]))
        return hidden.repeat_interleave(m**d, 0).repeat_interleave(
            keys_per_cell, 1)

    near_hidden = hide(near_window, lambda gap: gap > 1, m**d)
    far_hidden = hide(far_window, lambda gap: gap <= 1, hierarchy.num_parts)
    if hierarchy.causal:
        right = far_window[:, 0] >= children
        far_hidden |= right.repeat_interleave(m, 0).repeat_interleave(
            hierarchy.num_parts, 1)
    far = _expand_parts(
        index_of(far_window, lambda cells: _flatten(cells, grid)), hierarchy,
        1)
    return (KeyList('tokens', False, index_of(near_window, number),
                    near_hidden, -m if hierarchy.causal else None),
            KeyList('summaries', False, far, far_hidden))


@lru_cache(maxsize=64)
def tiling(hierarchy: Hierarchy) -> Tiling:
    """The tiles and lists of a hierarchy, on the CPU (cached)."""
    levels, d = hierarchy.num_levels, hierarchy.ndim
    if levels == 0:
        return _full_attention(hierarchy)
    side = 2 if levels > 1 else 1
    group = (side, ) * d
    grid = tuple(-(-size // side) * side for size in hierarchy.leaf_grid)
    groups = _grid_points(tuple(size // side for size in grid))

    def number(cells: Tensor) -> Tensor:
        return _cell_number(cells, grid, group)

    # With one level only, the top list depends on the leaf: no parents.
    as_parent = levels > 1 and hierarchy.cell_size**d < _MIN_TILE
    if as_parent:
        lists = _parent_lists(hierarchy, groups, number)
    else:
        # [groups, 1, d] * side + [children, d] -> leaves in group order
        leaves = (groups[:, None] * side + _window(0, side, d)).flatten(0, 1)
        lists = _leaf_lists(hierarchy, leaves, number)
    upper = [
        _exact_list(hierarchy, level, groups >> (level - 2))
        for level in range(2, levels + 1)
    ]
    if upper:
        index = _compress(torch.cat(upper, dim=1))
        lists += (KeyList('summaries', True, index), )
    return Tiling((hierarchy.cell_size, ) * d, grid, group,
                  side**d if as_parent else 1,
                  tuple(part for part in lists if part.index.shape[1]))
