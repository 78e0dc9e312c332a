"""The hierarchy of cells: who is near, who is far, and at which level.

Everything here is plain integers. One implementation serves 1D and 2D: a
*cell* is a tuple with one coordinate per axis, and all rules are Chebyshev
distances (section "Geometry" of ``kernels/README.md``).
"""
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import ceil, log2, prod
from operator import index
from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

try:
    from torch.fx.experimental.symbolic_shapes import has_static_value
except ImportError:  # older PyTorch: each size is compiled for itself

    def has_static_value(size: int) -> bool:
        return True


Cell = Tuple[int, ...]


class Summary(NamedTuple):
    """One summary that a query attends to.

    Attributes:
        level: 1 for the finest summaries, up to ``num_levels``.
        cell: coordinates on the level's grid.
        part: row-major index of the sub-cell, below ``rank ** ndim``.
        start, stop: the token box it covers, clipped to the grid.
        mass: number of tokens inside.
    """
    level: int
    cell: Cell
    part: int
    start: Cell
    stop: Cell
    mass: int


class Footprint(NamedTuple):
    """All that one query attends to: tokens one by one, then summaries."""
    query: Cell
    near: List[Cell]
    far: List[Summary]


# Tokens a side for which levels are made where a compiler leaves sizes free:
# a level that a grid does not need changes nothing.
SYMBOLIC_SIZE = 2**24


def _known(size: int) -> int:
    if not isinstance(size, (int, torch.SymInt)):  # NumPy's
        return index(size)
    return size if has_static_value(size) else SYMBOLIC_SIZE


def auto_num_levels(shape: Tuple[int, ...], cell_size: int) -> int:
    """The number of far-field levels that leaves at most 4 top cells a side.

    Returns 0 where the near field alone covers the grid. A symbolic size
    counts as ``SYMBOLIC_SIZE``.
    """
    side = max(-(-_known(size) // cell_size) for size in shape)
    if side <= 2:
        return 0
    return max(ceil(log2(side / 4)), 0) + 1


# Cells beyond 2 ** 31 leaf cells a side would overflow 64-bit coordinates.
_MAX_LEVELS = 32


def _check_int(name: str, value, low: int) -> int:
    if isinstance(value, bool) or not hasattr(value, '__index__'):
        raise TypeError(f'{name} must be an int, got {value!r} of type '
                        f'{type(value).__name__}')
    value = index(value)
    if value < low:
        raise ValueError(f'{name} must be at least {low}, got {value}')
    return value


@dataclass(frozen=True)
class Hierarchy:
    """Cells, levels and interaction lists of a token grid.

    Args:
        shape: token grid, ``(n,)`` or ``(H, W)``.
        cell_size: side ``m`` of a leaf cell in tokens.
        num_levels: far-field levels ``L``; None picks
            :func:`auto_num_levels`. 0 means full attention.
        rank: sub-cells per cell and axis; divides ``cell_size``.
        causal: 1D only; a query sees itself and what lies to its left.

    Raises:
        TypeError, ValueError: naming the argument that is not allowed.
    """
    shape: Tuple[int, ...]
    cell_size: int
    num_levels: Optional[int] = None
    rank: int = 1
    causal: bool = False

    def __post_init__(self) -> None:
        try:
            # index() takes NumPy's integers, but no floats; it would fix a
            # symbolic size.
            shape = tuple(
                size if isinstance(size, (int, torch.SymInt)) else index(size)
                for size in self.shape)
        except TypeError:
            raise TypeError('shape must be a tuple of ints, (n,) or (H, W), '
                            f'got {self.shape!r}') from None
        if len(shape) not in (1, 2) or any(size < 1 for size in shape):
            raise ValueError('shape must be (n,) or (H, W) with positive '
                             f'sizes, got {shape}')
        object.__setattr__(self, 'shape', shape)
        for name in ('cell_size', 'rank'):
            value = _check_int(name, getattr(self, name), 1)
            if value >= 2**31:
                raise ValueError(f'{name} must be below 2 ** 31, got {value}')
            object.__setattr__(self, name, value)
        if self.cell_size % self.rank:
            raise ValueError(f'rank must divide cell_size={self.cell_size}, '
                             f'got {self.rank}')
        if self.num_levels is None:
            object.__setattr__(self, 'num_levels',
                               auto_num_levels(shape, self.cell_size))
        else:
            object.__setattr__(self, 'num_levels',
                               _check_int('num_levels', self.num_levels, 0))
            if self.num_levels > _MAX_LEVELS:
                raise ValueError(f'num_levels must be at most {_MAX_LEVELS}, '
                                 f'got {self.num_levels}')
        if self.causal and len(shape) != 1:
            raise ValueError('causal is defined for 1D grids only, got shape '
                             f'{shape}')

    # ------------------------------------------------------------- sizes
    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def num_tokens(self) -> int:
        return prod(self.shape)

    @property
    def num_parts(self) -> int:
        """Summaries of one cell, ``rank ** ndim``."""
        return self.rank**self.ndim

    @property
    def widths(self) -> Tuple[int, ...]:
        """Side of a cell in tokens, level 1 first."""
        return tuple(self.cell_size << level
                     for level in range(self.num_levels))

    @property
    def leaf_grid(self) -> Cell:
        return tuple(-(-size // self.cell_size) for size in self.shape)

    @property
    def grids(self) -> Tuple[Cell, ...]:
        """Cells per axis, level 1 first."""
        return tuple(
            tuple(-(-size // width) for size in self.shape)
            for width in self.widths)

    @property
    def level_sizes(self) -> Tuple[int, ...]:
        """Number of summaries of each level."""
        return tuple(prod(grid) * self.num_parts for grid in self.grids)

    @property
    def level_starts(self) -> Tuple[int, ...]:
        """Where each level begins in the packed axis of all summaries."""
        return tuple(
            sum(self.level_sizes[:level]) for level in range(self.num_levels))

    @property
    def num_summaries(self) -> int:
        return sum(self.level_sizes)

    def trimmed(self) -> 'Hierarchy':
        """The same lists without the empty levels above the automatic L.

        A level that the grid does not need costs padding up to whole cells.
        Where a size is symbolic, the core ops trim when they know it.
        """
        needed = auto_num_levels(self.shape, self.cell_size)
        if self.num_levels <= needed:
            return self
        return replace(self, num_levels=needed)

    # ------------------------------------------------------------- lists
    def neighbours(self, cell: Cell) -> List[Cell]:
        """Leaf cells whose tokens a query in leaf ``cell`` sees one by one.

        With ``num_levels=0`` these are all cells (full attention).
        """
        reach = None if self.num_levels == 0 else 1
        return [
            other
            for other in product(*self._window(cell, self.leaf_grid, reach))
            if not self.causal or other <= cell
        ]

    def interaction_list(self, level: int, cell: Cell) -> List[Cell]:
        """Cells of ``level`` whose summaries a query in ``cell`` sees."""
        grid = self.grids[level - 1]
        if level == self.num_levels:
            window = [range(size) for size in grid]
        else:
            parents = tuple(-(-size // 2) for size in grid)
            parent = tuple(c // 2 for c in cell)
            window = [
                range(2 * axis.start, min(2 * axis.stop, size))
                for axis, size in zip(self._window(parent, parents, 1), grid)
            ]
        return [
            other for other in product(*window)
            if max(abs(a - b) for a, b in zip(cell, other)) > 1 and (
                not self.causal or other < cell)
        ]

    @staticmethod
    def _window(cell: Cell, grid: Cell, reach: Optional[int]) -> List[range]:
        if reach is None:
            return [range(size) for size in grid]
        return [
            range(max(c - reach, 0), min(c + reach + 1, size))
            for c, size in zip(cell, grid)
        ]

    def footprint(self, query) -> Footprint:
        """Tokens and summaries that one query attends to.

        Args:
            query: token coordinates, a tuple with one int per axis (a bare
                int is accepted in 1D); negative indices count from the end.

        Raises:
            ValueError: if the query lies outside the grid.
        """
        given = query
        query = (query, ) if isinstance(query, int) else tuple(query)
        if len(query) != self.ndim or any(
                not -size <= q < size for q, size in zip(query, self.shape)):
            raise ValueError(f'query must lie in the grid {self.shape}, got '
                             f'{given!r}')
        query = tuple(q % size for q, size in zip(query, self.shape))
        leaf = tuple(q // self.cell_size for q in query)
        near = [
            token for cell in self.neighbours(leaf) for token in product(
                *(range(c * self.cell_size, min((c + 1) *
                                                self.cell_size, size))
                  for c, size in zip(cell, self.shape)))
            if not self.causal or token <= query
        ]
        far = []
        for level, width in enumerate(self.widths, 1):
            here = tuple(q // width for q in query)
            for cell in self.interaction_list(level, here):
                far += self._summaries(level, cell)
        return Footprint(query, near, far)

    def _summaries(self, level: int, cell: Cell) -> List[Summary]:
        """The non-empty summaries of one cell."""
        width = self.widths[level - 1]
        side = width // self.rank
        found = []
        for part, sub in enumerate(
                product(range(self.rank), repeat=self.ndim)):
            start = tuple(c * width + s * side for c, s in zip(cell, sub))
            stop = tuple(
                min(low + side, size) for low, size in zip(start, self.shape))
            mass = prod(max(high - low, 0) for low, high in zip(start, stop))
            if mass:
                found.append(Summary(level, cell, part, start, stop, mass))
        return found

    # ------------------------------------------------------------ counts
    @property
    def visited_pairs(self) -> int:
        """(query, key) and (query, summary) pairs by the definition."""
        return self.near_pairs + self._all_far_pairs(pooled=False)

    @property
    def pooled_pairs(self) -> int:
        """(query sub-cell, summary) pairs of the far field of pooled queries.

        Every level is computed once per sub-cell: O(n) over all levels.
        """
        return self._all_far_pairs(pooled=True)

    def _all_far_pairs(self, pooled: bool) -> int:
        return sum(
            self._far_pairs(level, pooled)
            for level in range(1, self.num_levels + 1))

    def key_count(self) -> float:
        """Mean number of keys and summaries per query."""
        return self.visited_pairs / self.num_tokens

    def _axis_tokens(self, axis: int, width: int) -> Tensor:
        """Tokens in each cell of side ``width`` along one axis."""
        size = self.shape[axis]
        starts = torch.arange(-(-size // width)) * width
        return (size - starts).clamp(max=width)

    @property
    def near_pairs(self) -> int:
        """(query, token) pairs of the near field."""
        if self.num_levels == 0:
            n = self.num_tokens
            return n * (n + 1) // 2 if self.causal else n * n
        if self.causal:
            token = torch.arange(self.shape[0])
            first = (token // self.cell_size - 1).clamp(min=0)
            return int((token - first * self.cell_size + 1).sum())
        # A box of cells is a product over axes, and so is its count.
        return prod(
            int((tokens * _windowed(tokens, 1)).sum())
            for tokens in (self._axis_tokens(axis, self.cell_size)
                           for axis in range(self.ndim)))

    def _far_pairs(self, level: int, pooled: bool) -> int:
        """Pairs = (all of the window) - (the 3 ** d cells left finer).

        With ``pooled``, the sub-cells that hold a token ask, not the tokens.
        """
        width = self.widths[level - 1]
        inside, finer = [], []
        for axis, size in enumerate(self.shape):
            tokens = self._axis_tokens(axis, width)
            starts = torch.arange(tokens.numel() * self.rank)
            starts = starts * (width // self.rank)
            full = (starts < size).view(-1, self.rank).sum(1)
            queries = full if pooled else tokens
            cell = torch.arange(queries.numel())
            ends = [_cumulative(full, limit) for limit in (cell - 1, cell + 2)]
            if level == self.num_levels:
                low, high = cell * 0, cell * 0 + cell.numel()
            else:
                low, high = (cell // 2 - 1) * 2, (cell // 2 + 2) * 2
            if self.causal:
                high = cell
                ends[1] = _cumulative(full, cell)
            window = _cumulative(full, high) - _cumulative(full, low)
            inside.append(int((queries * window).sum()))
            finer.append(int((queries * (ends[1] - ends[0])).sum()))
        return prod(inside) - prod(finer)

    def flops(self,
              heads: int,
              head_dim: int,
              batch: int = 1,
              pool_queries: bool = False) -> int:
        """Floating-point operations of the two products, 2 per MAC.

        Counts the pairs of the definition: ``q . k`` and ``weight * v``,
        ``4 * head_dim`` each pair and head. Pooling, softmax and the merging
        of levels are left out, as is usual for attention.

        Raises:
            ValueError: with ``pool_queries``, if the hierarchy is causal.
        """
        if pool_queries and self.causal:
            raise ValueError('pool_queries must be False when causal=True, '
                             'got True')
        pairs = self.near_pairs + self._all_far_pairs(pooled=pool_queries)
        return 4 * head_dim * heads * batch * pairs


def _cumulative(counts: Tensor, end: Tensor) -> Tensor:
    """Sum of ``counts[:end]`` for every (clipped) end."""
    total = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return total[end.clamp(0, counts.numel())]


def _windowed(counts: Tensor, reach: int) -> Tensor:
    cell = torch.arange(counts.numel())
    return _cumulative(counts, cell + reach + 1) - _cumulative(
        counts, cell - reach)


@lru_cache(maxsize=256)
def hierarchy(shape: Tuple[int, ...], cell_size: int,
              num_levels: Optional[int], rank: int, causal: bool) -> Hierarchy:
    """A shared :class:`Hierarchy`: the same geometry is built once."""
    return Hierarchy(shape, cell_size, num_levels, rank, causal)
