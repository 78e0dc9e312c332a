"""Who asks whom, as tables of numbers: the lists of the PyTorch backend.

A *tile* is the queries that share all their keys: the tokens of a leaf cell,
or the sub-cells of a cell where queries are pooled. Tables are worked out for
some tiles at a time from their numbers alone. Tokens are numbered row by row,
summaries as they are packed; -1 stands for what lies off the grid or is not
seen.
"""
from math import prod
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..geometry import Cell, Hierarchy

# Cell offsets are clamped to +- this in the table of far biases.
_FAR_REACH = 3


class Keys(NamedTuple):
    """What tiles see of one source, tokens or summaries.

    Attributes:
        index: ``[tiles, keys]``.
        hidden: bool ``[tiles, rows, keys]``: not seen by some rows; or None.
        entries: where biases are found in their table, ``[tiles or 1, rows
            or 1, keys]``; or None.
    """
    index: Tensor
    hidden: Optional[Tensor] = None
    entries: Optional[Tensor] = None


class Tables(NamedTuple):
    """Some rows of some tiles.

    Attributes:
        queries: ``[tiles, rows]``.
        askers: the tokens in whose name dropout decides, ``[tiles, rows]``.
        keys: of each source.
        parents: packed sub-cells that stand for all that is farther,
            ``[tiles, rows]``; or None.
    """
    queries: Tensor
    askers: Tensor
    keys: List[Keys]
    parents: Optional[Tensor] = None


def coordinates(number: Tensor, grid: Cell) -> Tensor:
    """Of row-major numbers ``[...]`` on a grid, ``[..., d]``."""
    found = []
    for size in reversed(grid):
        found.append(number % size)
        number = number // size
    return torch.stack(found[::-1], dim=-1)


def grid_points(grid: Cell, device: Optional[torch.device] = None) -> Tensor:
    """All coordinates, row-major, ``[prod(grid), d]``."""
    return coordinates(torch.arange(prod(grid), device=device), grid)


def flatten(points: Tensor, grid: Cell) -> Tensor:
    """Row-major numbers of coordinates ``[..., d]``, wherever they lie."""
    number = torch.zeros_like(points[..., 0])
    for axis, size in enumerate(grid):
        number = number * size + points[..., axis]
    return number


def number_on(points: Tensor, grid: Cell) -> Tensor:
    """Row-major numbers of coordinates ``[..., d]``; -1 off the grid."""
    number, off = flatten(points, grid), torch.zeros_like(points[..., 0]) > 0
    for axis, size in enumerate(grid):
        place = points[..., axis]
        off = off | (place < 0) | (place >= size)
    return number.masked_fill(off, -1)


def _sides(sizes: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(sizes, dtype=like.dtype, device=like.device)


# ------------------------------------------------------------------ tokens
def leaf_tiles(h: Hierarchy) -> Tuple[Cell, Cell]:
    """Tiles and tokens of a tile, per axis: one tile where L = 0."""
    if h.num_levels:
        return h.leaf_grid, (h.cell_size, ) * h.ndim
    return (1, ) * h.ndim, h.shape


def token_tables(h: Hierarchy, tiles: Tensor, rows: Tensor, far: bool,
                 biased: bool) -> Tables:
    """The tokens of leaf cells.

    Args:
        tiles: numbers of leaf cells.
        rows: numbers of tokens in their cell.
        far: whether they ask all summaries; else they have parents.
        biased: whether the entries of biases are needed.
    """
    grid, sides = leaf_tiles(h)
    cells, places = coordinates(tiles, grid), coordinates(rows, sides)
    first = cells[:, None] * _sides(sides, cells)
    queries = number_on(first + places, h.shape)
    # The near field is one box of tokens around the cell.
    reach = h.cell_size if h.num_levels else 0
    size = tuple(side + (1 if h.causal else 2) * reach for side in sides)
    box = grid_points(size, tiles.device) - reach
    index, hidden, entries = number_on(first + box, h.shape), None, None
    if h.causal:
        hidden = index[:, None] > queries[..., None]
    if biased:
        widest = 2 * h.cell_size - 1
        offsets = box - places[:, None] + widest
        entries = flatten(offsets, (2 * widest + 1, ) * h.ndim)[None]
    keys = [Keys(index, hidden, entries)]
    if far and h.num_levels:
        found = [
            far_keys(h, level, cells // 2**(level - 1))
            for level in range(1, h.num_levels + 1)
        ]
        keys.append(
            Keys(
                torch.cat([x.index for x in found], dim=1),
                entries=torch.cat([x.entries for x in found], dim=2)))
    parents = None
    if not far:
        side = h.cell_size // h.rank
        parents = packed(h, 1, (first + places) // side)
    return Tables(queries, queries, keys, parents)


def token_order(h: Hierarchy, device: torch.device) -> Tensor:
    """Where each token is among the rows of all tiles, ``[tokens]``."""
    grid, sides = leaf_tiles(h)
    points = grid_points(h.shape, device)
    side = _sides(sides, points)
    return flatten(points // side, grid) * prod(sides) + flatten(
        points % side, sides)


# --------------------------------------------------------------- summaries
def packed(h: Hierarchy, level: int, points: Tensor) -> Tensor:
    """Packed numbers of a level's sub-cells, at ``points [..., d]``."""
    cell = flatten(points // h.rank, h.grids[level - 1])
    part = flatten(points % h.rank, (h.rank, ) * h.ndim)
    return h.level_starts[level - 1] + cell * h.num_parts + part


def with_parts(h: Hierarchy, level: int, cells: Tensor) -> Tensor:
    """Numbers of cells ``[tiles, n]`` -> of their summaries, packed."""
    part = torch.arange(h.num_parts, device=cells.device)
    cells = cells[..., None]
    index = h.level_starts[level - 1] + cells * h.num_parts + part
    return index.masked_fill(cells < 0, -1).flatten(1)


def far_keys(h: Hierarchy, level: int, cells: Tensor) -> Keys:
    """Summaries that cells ``[tiles, d]`` of a level see there.

    Returns:
        ``index [tiles, keys]`` and ``entries [tiles, 1, keys]`` of a bias
        table ``[levels, parts, 7 ** d]``.
    """
    grid, device = h.grids[level - 1], cells.device
    if level == h.num_levels:
        window = grid_points(grid, device).expand(len(cells), -1, -1)
    else:  # the children of all cells around the parent
        children = grid_points((6, ) * h.ndim, device) - 2
        window = (cells // 2 * 2)[:, None] + children
    offsets = window - cells[:, None]  # [tiles, cells, d]
    seen = offsets.abs().amax(-1) > 1
    if h.causal:
        seen = seen & (offsets[..., 0] < 0)
    index = with_parts(h, level,
                       number_on(window, grid).masked_fill(~seen, -1))
    part = torch.arange(h.num_parts, device=device)
    reach, size = _FAR_REACH, 2 * _FAR_REACH + 1
    offsets = offsets.clamp(-reach, reach) + reach
    entries = ((level - 1) * h.num_parts + part) * size**h.ndim
    entries = entries + flatten(offsets, (size, ) * h.ndim)[..., None]
    return Keys(index, entries=entries.flatten(1)[:, None])


def level_tables(h: Hierarchy, level: int, tiles: Tensor,
                 rows: Tensor) -> Tables:
    """The sub-cells of a level's cells, where queries are pooled.

    Args:
        tiles: numbers of cells.
        rows: numbers of sub-cells in their cell.
    """
    cells = coordinates(tiles, h.grids[level - 1])
    parts = coordinates(rows, (h.rank, ) * h.ndim)
    points = cells[:, None] * h.rank + parts  # [tiles, rows, d]
    side = h.widths[level - 1] // h.rank
    parents = None
    if level < h.num_levels:
        parents = packed(h, level + 1, points // 2)
    return Tables(
        packed(h, level, points), flatten(points * side, h.shape),
        [far_keys(h, level, cells)], parents)
