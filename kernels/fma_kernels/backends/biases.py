"""Relative-position biases of the blocked backend: entries and their sums.

A logit reads its bias from a table ``[heads, entries]``, by the offset from
query to key. The keys of a list that lie at fixed places around a tile have
the same entries for all tiles: their biases are added to the logits. Those
of a list that was compressed depend on the group, but not on the query: they
are added to the bias channel of the gathered keys, once for all queries.
"""
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..geometry import Hierarchy
from .packing import Rows, Workspace, add_rows
from .tiling import (Tiling, child_window, finest_window, flatten, grid_points,
                     near_window, tiling)

# The table that the keys of a list read, by their source.
BIAS_OF = {'tokens': 'near_bias', 'summaries': 'far_bias'}
# Cell offsets are clamped to +- this.
_FAR_REACH = 3


@dataclass(frozen=True)
class Entries:
    """Where the keys of a list find their biases in a table.

    Attributes:
        queries: int64 ``[tiles of a group or 1, tile tokens or 1]``.
        keys: int64 ``[first keys]``: those at fixed places around a tile.
            Their entries are ``keys - queries``.
        cells: int64 ``[groups, other keys]``: entries of the keys after
            them, whatever the query.
    """
    queries: Tensor
    keys: Tensor
    cells: Tensor

    def to(self, device: torch.device) -> 'Entries':
        return Entries(*(x.to(device)
                         for x in (self.queries, self.keys, self.cells)))


@lru_cache(maxsize=64)
def entries(hierarchy: Hierarchy, source: str) -> Entries:
    """Of the list of 'tokens' or of 'summaries', on the CPU (cached)."""
    plan = tiling(hierarchy)
    return (_near_entries if source == 'tokens' else _far_entries)(hierarchy,
                                                                   plan)


def _near_entries(hierarchy: Hierarchy, plan: Tiling) -> Entries:
    """In ``[(4m - 1) ** d]``: offsets of tokens, row-major.

    A key of a parent tile may be further than that from some queries: these
    do not see it, and whatever entry they read is hidden.
    """
    d, reach = hierarchy.ndim, 2 * hierarchy.cell_size - 1
    offsets = (2 * reach + 1, ) * d

    def tokens(cells: Tensor) -> Tensor:
        # [cells, 1, d] * sides + [cell tokens, d]
        sides = torch.tensor(plan.cell)
        return ((cells * sides)[:, None] + grid_points(plan.cell)).flatten(
            0, 1)

    here = grid_points((1, ) * d)
    if hierarchy.num_levels:
        window = near_window(hierarchy, plan.tile_cells > 1)
    else:
        window = here
    if plan.tile_cells > 1:
        here = child_window(d)
    return Entries(
        flatten(tokens(here), offsets)[None],
        flatten(tokens(window) + reach, offsets),
        torch.zeros((plan.num_groups, 0), dtype=torch.int64))


def _far_entries(hierarchy: Hierarchy, plan: Tiling) -> Entries:
    """In ``[levels * parts * 7 ** d]``: offsets of cells, row-major."""
    d, parts = hierarchy.ndim, hierarchy.num_parts
    offsets = (2 * _FAR_REACH + 1, ) * d
    size = offsets[0]**d
    index = next(x.index for x in plan.lists if x.source == 'summaries')
    queries = torch.zeros((1, 1), dtype=torch.int64)
    keys = torch.zeros(0, dtype=torch.int64)
    if hierarchy.num_levels > 1:
        # Level 1 around a parent: no offset is beyond the reach.
        queries = flatten(child_window(d), offsets)
        if plan.tile_cells > 1:
            queries = queries.repeat_interleave(plan.cell_tokens)[None]
        else:
            queries = queries[:, None]
        keys = flatten(finest_window(hierarchy)[0] + _FAR_REACH, offsets)
        # [cells, parts] -> as the list
        keys = (keys[:, None] + size * torch.arange(parts)).flatten()

    index = index[:, len(keys):]
    sides = torch.tensor(plan.group)
    leaf = sides * grid_points(
        tuple(size // side for size, side in zip(plan.grid, plan.group)))
    cells = torch.zeros_like(index)
    for level, (start, grid) in enumerate(
            zip(hierarchy.level_starts, hierarchy.grids)):
        stop = start + hierarchy.level_sizes[level]
        here = (index >= start) & (index < stop)
        number = (index - start).masked_fill(~here, 0)
        cell = torch.stack(torch.unravel_index(number // parts, grid), -1)
        offset = cell - (leaf >> level)[:, None]
        offset = offset.clamp(-_FAR_REACH, _FAR_REACH) + _FAR_REACH
        found = (level * parts + number % parts) * size + flatten(
            offset, offsets)
        # What -1 stands for is never attended: any entry will do.
        cells = found.where(here, cells)
    return Entries(queries, keys, cells)


class ListBias:
    """What some heads add to the logits of a list's keys.

    Args:
        where: the list's entries.
        table: ``[heads, *shape of a table]``, read in the accumulation
            dtype.
        space: scratch memory.

    Attributes:
        slopes: gradient of the table, ``[heads, entries]``.
    """

    def __init__(self, where: Entries, table: Tensor,
                 space: Workspace) -> None:
        self.where, self.space = where.to(table.device), space
        self.table = table.flatten(1).to(space.dtype)
        self.slopes = torch.zeros_like(self.table)

    @property
    def per_row(self) -> int:
        """Entries that are looked up for each row of a tile."""
        queries, keys = self.where.queries, self.where.keys
        return len(keys) if queries.shape[1] > 1 else 0

    def _read(self, heads: slice, index: Tensor) -> Tensor:
        """``[heads, *index.shape]``, scratch memory."""
        table = self.table[heads]
        out = self.space.take('bias', table.shape[0], index.numel())
        every = index.reshape(1, -1).expand(table.shape[0], -1)
        torch.gather(table, 1, every, out=out)
        return out.view(-1, *index.shape)

    def _add(self, heads: slice, index: Tensor, slopes: Tensor) -> None:
        """Adds ``slopes [heads, *index.shape]`` to the gradient."""
        total = self.slopes[heads]
        add_rows(total, index.flatten(), slopes.reshape(total.shape[0], -1))

    # ------------------------------------- keys at fixed places: the logits
    def _window(self, rows: slice) -> Tensor:
        """Entries of a tile's rows, ``[tiles or 1, rows or 1, keys]``."""
        queries = self.where.queries
        if queries.shape[1] > 1:
            queries = queries[:, rows]
        index = self.where.keys - queries[..., None]
        return index.clamp_(0, self.table.shape[1] - 1)

    def _fixed(self, x: Tensor, heads: slice) -> Tensor:
        """``[batches, rows, keys]`` -> ``[heads, n, tiles or 1, rows, k]``."""
        x = x.view(heads.stop - heads.start, -1, self.where.queries.shape[0],
                   *x.shape[1:])
        return x[..., :len(self.where.keys)]

    def add_to_logits(self, logits: Tensor, heads: slice, rows: slice) -> None:
        """``logits``: ``[heads * groups * tiles, rows, keys]``."""
        if len(self.where.keys):
            bias = self._read(heads, self._window(rows))
            self._fixed(logits, heads).add_(bias[:, None])

    # --------------------------------- keys of a group: their bias channel
    def _group(self, groups: slice) -> Tensor:
        """Entries ``[groups, keys]`` of groups counted over all images."""
        cells = self.where.cells
        number = torch.arange(groups.start, groups.stop, device=cells.device)
        return cells[number % cells.shape[0]]

    def add_to_keys(self, keys: Rows, heads: slice, groups: slice) -> None:
        """``keys``: of the groups' lists."""
        if self.where.cells.shape[1]:
            bias = self._read(heads, self._group(groups))
            # [heads * groups, 1, keys]
            channel = keys.biased_key[:, 0, len(self.where.keys):, -1]
            channel += bias.flatten(0, 1)

    # ---------------------------------------------------------- gradients
    def add_slopes(self, slopes: Tensor, heads: slice, groups: slice,
                   rows: slice) -> None:
        """Sums ``[heads * groups * tiles, rows, keys]`` by table entry."""
        if len(self.where.keys):
            index = self._window(rows)
            fixed = self._fixed(slopes, heads)
            total = self.space.take('bias', fixed.shape[0], *fixed.shape[2:])
            torch.sum(fixed, 1, out=total)
            if index.shape[1] == 1:
                total = total.sum(2)
            self._add(heads, index, total)
        if self.where.cells.shape[1]:
            index = self._group(groups)
            # [heads, groups, tiles * rows, keys]
            count = heads.stop - heads.start
            total = slopes.view(count, len(index), -1, slopes.shape[-1])
            total = total[..., len(self.where.keys):].sum(2)
            self._add(heads, index, total)
