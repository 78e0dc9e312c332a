"""Pooled queries level by level, from the coarsest down to the tokens.

At a level, every sub-cell asks the summaries of its interaction list and, as
if it were one summary more, its parent sub-cell, which stands for all coarser
levels: the logit is the parent's lse, the value its output. At last the
tokens do so, with their near field for a list. All levels together hold O(n)
sub-cells, hence O(n) in all.

The sub-cells of a level (or the tokens) are points of a *lattice*. A *tile*
of points shares a *window* of keys, in which each point sees its own list.
Plain PyTorch for any device, in blocks of bounded memory, deterministic.
"""
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dropout import keep_mask
from ..geometry import Cell, Hierarchy
from ..pooling import (accumulation_dtype, block_sum, cells_to_lattice,
                       lattice_to_cells, pack, repeat, unpack)
from .tiling import distance, grid_points

# Cells of a tile and axis, by the number of axes; even, so that the children
# of a parent stay together. Fewer are too thin for a product.
_TILE_CELLS = {1: 8, 2: 4}
# A tile of tokens has about so many, from whole leaf cells.
_TILE_TOKENS = 16
# Elements of logits and gathered keys that are held at once: they should
# stay in the caches.
BLOCK_ELEMENTS = 1 << 20

OutLse = Tuple[Tensor, Tensor]


class Cut(NamedTuple):
    """How a lattice is cut into tiles.

    Attributes:
        points: of the lattice, per axis.
        tiles: per axis.
        side: points of a tile, per axis.
        halo: points by which a window exceeds its tile, on either side.
        unit: points of a cell, per axis.
        rule: who is seen: 'near' cells, far 'siblings', or 'far' cells.
    """
    points: Cell
    tiles: Cell
    side: Cell
    halo: int
    unit: int
    rule: str

    @property
    def queries(self) -> int:
        """Points of a tile."""
        return prod(self.side)

    @property
    def keys(self) -> int:
        """Points of a window."""
        return prod(side + 2 * self.halo for side in self.side)

    def hidden(self, rows: slice, device: torch.device) -> Tensor:
        """What some points of a tile do not see, bool ``[rows, keys]``."""
        window = tuple(side + 2 * self.halo for side in self.side)
        queries = grid_points(self.side)[rows, None].to(device) // self.unit
        keys = grid_points(window).to(device) - self.halo
        keys = torch.div(keys, self.unit, rounding_mode='floor')
        near = distance(queries, keys) <= 1
        if self.rule == 'near':
            return ~near
        if self.rule == 'siblings':  # >> 1 rounds down
            return near | (distance(queries >> 1, keys >> 1) > 1)
        return near


@lru_cache(maxsize=256)
def cut_tokens(hierarchy: Hierarchy) -> Cut:
    """The tiles of tokens: some leaf cells, with a halo of one."""
    m, d = hierarchy.cell_size, hierarchy.ndim
    cells = 1
    while (cells * m)**d < _TILE_TOKENS:
        cells += 1
    return Cut(hierarchy.shape,
               tuple(-(-size // (cells * m)) for size in hierarchy.shape),
               (cells * m, ) * d, m, m, 'near')


@lru_cache(maxsize=256)
def cut_level(hierarchy: Hierarchy, level: int) -> Cut:
    """The tiles of a level's sub-cells."""
    rank, grid = hierarchy.rank, hierarchy.grids[level - 1]
    points = tuple(size * rank for size in grid)
    if level == hierarchy.num_levels and max(grid) > 4:
        # Too few levels leave a long list: one tile sees the grid.
        return Cut(points, (1, ) * len(grid), points, 0, rank, 'far')
    # At most two parents a side: the top is as any other level.
    cells = _TILE_CELLS[hierarchy.ndim]
    return Cut(points, tuple(-(-size // cells) for size in grid),
               (cells * rank, ) * len(grid), 2 * rank, rank, 'siblings')


class Block(NamedTuple):
    """Some images, heads and tiles, the latter along the first axis."""
    cut: Cut
    images: slice
    heads: slice
    band: slice

    def span(self, halo: int = 0) -> Tuple[slice, int, int]:
        """Points of the first axis, and how many lie off the grid."""
        low = self.band.start * self.cut.side[0] - halo
        high = self.band.stop * self.cut.side[0] + halo
        inside = slice(max(low, 0), min(high, self.cut.points[0]))
        return inside, inside.start - low, high - inside.stop

    def part(self, x: Tensor, halo: int = 0) -> Tensor:
        """Its points of ``[B or 1, *lattice, heads or 1, c]``: a view."""
        images = slice(None) if x.shape[0] == 1 else self.images
        heads = slice(None) if x.shape[-2] == 1 else self.heads
        return x[images, self.span(halo)[0], ..., heads, :]

    def tiles(self, x: Tensor) -> Tensor:
        """``[B, *lattice, heads, c]`` -> ``[b, h, tiles, queries, c]``."""
        return self.part_tiles(self.part(x))

    def part_tiles(self, part: Tensor) -> Tensor:
        """Tiles ``[b, h, tiles, queries, c]`` of a :meth:`part`."""
        return self._gather(part, 0, 0)

    def windows(self, part: Tensor, fill: float = 0) -> Tensor:
        """Windows ``[b, h, tiles, keys, c]`` of a :meth:`part` with halo."""
        return self._gather(part, self.cut.halo, fill)

    def _gather(self, x: Tensor, halo: int, fill: float) -> Tensor:
        """A view where nothing is missing and windows are plain runs."""
        cut, d = self.cut, len(self.cut.side)
        spec = [0, 0, 0, 0]  # of channels and heads, the last axis first
        for axis in range(d - 1, 0, -1):
            whole = cut.tiles[axis] * cut.side[axis]
            spec += [halo, halo + whole - cut.points[axis]]
        spec += self.span(halo)[1:]
        if any(spec):
            x = F.pad(x, spec, value=fill)
        for axis, side in enumerate(cut.side, 1):
            x = x.unfold(axis, side + 2 * halo, side)
        # [b, *tiles, h, c, *window] -> [b, h, *tiles, *window, c]
        x = x.permute(0, 1 + d, *range(1, 1 + d), *range(3 + d, 3 + 2 * d),
                      2 + d)
        return x.flatten(2 + d, 1 + 2 * d).flatten(2, 1 + d)

    def from_tiles(self, x: Tensor) -> Tensor:
        """Points ``[b, *part, h, c]`` of ``[b, h, tiles, queries, c]``."""
        return self._scatter(x, 0)

    def from_windows(self, x: Tensor) -> Tensor:
        """The transpose of :meth:`windows`: adds what overlaps."""
        return self._scatter(x, self.cut.halo)

    def _scatter(self, x: Tensor, halo: int) -> Tensor:
        cut, d = self.cut, len(self.cut.side)
        inside, below, _ = self.span(halo)
        tiles = (self.band.stop - self.band.start, *cut.tiles[1:])
        window = [side + 2 * halo for side in cut.side]
        x = x.reshape(*x.shape[:2], *tiles, *window, x.shape[-1])
        for axis in range(d):
            # [b, h, *points, tiles, *tiles, window, *windows, c]
            at = 2 + axis
            x = x.movedim(2 + d, at + 1)
            if halo:
                x = _overlapped(x, at, cut.side[axis])
            x = x.flatten(at, at + 1)
            if axis == 0:
                x = x.narrow(at, below, inside.stop - inside.start)
            else:
                x = x.narrow(at, halo, cut.points[axis])
        return x.movedim(1, -2)


def _overlapped(x: Tensor, axis: int, side: int) -> Tensor:
    """Windows that begin ``side`` apart, as disjoint blocks of their sum.

    ``[..., n, extent, ...]`` -> ``[..., n + extra, side, ...]``. Always in
    the same order: the first block of every window, then the second.
    """
    count, extent = x.shape[axis:axis + 2]
    blocks = -(-extent // side)
    shape = list(x.shape)
    shape[axis:axis + 2] = count + blocks - 1, side
    total = x.new_zeros(shape)
    for block in range(blocks):
        length = min(side, extent - block * side)
        place = total.narrow(axis, block, count).narrow(axis + 1, 0, length)
        place += x.narrow(axis + 1, block * side, length)
    return total


class Options(NamedTuple):
    """What all levels share.

    Attributes:
        seed: int64 scalar tensor, used where ``dropout_p > 0``.
        tokens: of an image, to number what dropout decides about.
    """
    scale: float
    dropout_p: float
    seed: Optional[Tensor]
    tokens: int


class Level:
    """Attention of the points of a lattice to their lists and parents.

    Args:
        cut: the tiles.
        query, key, value: ``[B, *lattice, heads, head_dim]``.
        bias: logits of the keys, ``[B or 1, *lattice, 1, 1]``, -inf where
            there is none; or None: 0.
        absent: keys that may hold anything, even NaN, bool ``[B or 1,
            *lattice, 1, 1]``; or None.
        silent: as ``absent`` for queries, which then ask with zeros.
        parents: output and lse of the level above, on its lattice.
        factor: points of a parent, per axis.
        numbers: int64 numbers of queries and of keys, ``[*lattice]``, by
            which dropout decides.
    """

    def __init__(self, cut: Cut, query: Tensor, key: Tensor, value: Tensor,
                 bias: Optional[Tensor], absent: Optional[Tensor],
                 silent: Optional[Tensor], parents: Optional[OutLse],
                 factor: int, numbers: Optional[Tuple[Tensor, Tensor]],
                 options: Options) -> None:
        self.cut, self.options, self.numbers = cut, options, numbers
        self.query, self.key, self.value = query, key, value
        self.bias, self.absent, self.silent = bias, absent, silent
        self.parents, self.factor = parents, factor
        self.acc = accumulation_dtype(query.dtype)
        self.device = query.device
        self._seen: Dict[int, Tensor] = {}

    # ------------------------------------------------------------- blocks
    def blocks(self, passes: int) -> Iterator[List[Block]]:
        """Per range of images and heads, its bands of tiles.

        Args:
            passes: logits-sized tensors that are held.
        """
        cut, (batch, heads, dim) = self.cut, self._sizes()
        tile = cut.keys * (passes * cut.queries + 2 * dim)
        row = tile * prod(cut.tiles[1:])
        total = cut.tiles[0]
        step = min(max(BLOCK_ELEMENTS // (row * total), 1), heads)
        images = max(BLOCK_ELEMENTS // (row * total * step), 1)
        band = max(BLOCK_ELEMENTS // row, 1)
        for b in range(0, batch, images):
            for h in range(0, heads, step):
                yield [
                    Block(cut, slice(b, min(b + images, batch)),
                          slice(h, min(h + step, heads)),
                          slice(t, min(t + band, total)))
                    for t in range(0, total, band)
                ]

    def _sizes(self) -> Tuple[int, int, int]:
        return self.query.shape[0], self.query.shape[-2], self.query.shape[-1]

    def rows(self) -> Iterator[slice]:
        """Points of a tile, all at once where their logits fit."""
        total = self.cut.queries
        step = max(BLOCK_ELEMENTS // self.cut.keys, 1)
        for start in range(0, total, step):
            yield slice(start, min(start + step, total))

    # ----------------------------------------------------------- gathering
    def _queries(self, block: Block) -> Tensor:
        return block.part_tiles(self._part(block, self.query, self.silent))

    def _windows(self, block: Block, x: Tensor) -> Tensor:
        return block.windows(self._part(block, x, self.absent, self.cut.halo))

    def _part(self,
              block: Block,
              x: Tensor,
              absent: Optional[Tensor],
              halo: int = 0) -> Tensor:
        """A :meth:`Block.part` to compute with, 0 where absent.

        Block by block, since a copy of all would take more memory than the
        rest, and more time than its arithmetic once it leaves the caches.
        """
        part = block.part(x, halo).to(self.acc)
        if absent is not None:
            part = part.masked_fill(block.part(absent, halo), 0)
        return part

    def _biases(self, block: Block) -> Optional[Tensor]:
        """``[b or 1, 1, tiles, 1, keys]``, -inf off the grid, or None."""
        bias = self.bias
        if bias is None:
            _, below, above = block.span(self.cut.halo)
            if len(self.cut.points) == 1 and not below + above:
                return None
            bias = self.query.new_zeros(
                (), dtype=self.acc).expand(1, *self.cut.points, 1, 1)
        part = block.part(bias, self.cut.halo)
        return block.windows(part, -torch.inf).transpose(-1, -2)

    def _visible(self, rows: slice) -> Tensor:
        """0 where a tile's points see a key, -inf elsewhere."""
        if rows.start not in self._seen:
            hidden = self.cut.hidden(rows, self.device)
            zeros = torch.zeros((), dtype=self.acc, device=self.device)
            self._seen.clear()
            self._seen[rows.start] = zeros.expand(hidden.shape).masked_fill(
                hidden, -torch.inf)
        return self._seen[rows.start]

    def _coarse(self, block: Block) -> Optional[OutLse]:
        """What the parents of a block's points know, for each point."""
        if self.parents is None:
            return None
        span = block.span()[0]
        points = (span.stop - span.start, *self.cut.points[1:])
        out, lse = (
            block.part_tiles(
                repeat(self._of_parents(block, x), self.factor, points))
            for x in self.parents)
        return out, lse

    def _of_parents(self, block: Block, x: Tensor) -> Tensor:
        """The parents of a block's points, from the lattice above: a view."""
        span = block.span()[0]
        x = x[block.images,
              span.start // self.factor:-(-span.stop // self.factor), ...,
              block.heads, :]
        for axis, points in enumerate(self.cut.points[1:], 2):
            x = x.narrow(axis, 0, -(-points // self.factor))
        return x

    def _logits(self, query: Tensor, key: Tensor, bias: Optional[Tensor],
                rows: slice) -> Tensor:
        """``[b, h, tiles, rows, keys]``, -inf where nothing is seen."""
        found = query[..., rows, :] @ key.transpose(-1, -2)
        seen = self._visible(rows)
        if bias is not None:
            seen = seen + bias
        return torch.add(seen, found, alpha=self.options.scale, out=found)

    def _keep(self, block: Block, rows: slice) -> Optional[Tensor]:
        """Factors of the weights: 0 where dropped, 1 / (1 - p) elsewhere."""
        options = self.options
        if not options.dropout_p:
            return None
        query, key = (x[None, ..., None, None] for x in self.numbers)
        image, head = (
            torch.arange(part.start, part.stop, device=self.device)
            for part in (block.images, block.heads))
        row = (image[:, None] * self._sizes()[1] + head) * options.tokens
        row = row[..., None, None, None] + block.tiles(query)[..., rows, :]
        key = block.windows(block.part(key, self.cut.halo)).transpose(-1, -2)
        keep = keep_mask(options.seed, options.dropout_p, row, key)
        return keep.to(self.acc) / (1 - options.dropout_p)

    # ----------------------------------------------------------- attention
    def attend(self, out: Tensor, lse: Tensor) -> None:
        """Writes output and lse of every point.

        Args:
            out: like ``query``, in any dtype.
            lse: ``[B, *lattice, heads, 1]`` in the accumulation dtype.
        """
        for bands in self.blocks(1):
            for block in bands:
                found = self._attend(block)
                for x, total in zip(found, (out, lse)):
                    block.part(total).copy_(block.from_tiles(x))

    def _attend(self, block: Block) -> OutLse:
        query, coarse = self._queries(block), self._coarse(block)
        key = self._windows(block, self.key)
        value = self._windows(block, self.value)
        bias, found = self._biases(block), []
        for rows in self.rows():
            weights = self._logits(query, key, bias, rows)
            # Finite: no key must not become NaN.
            pivot = weights.amax(-1, keepdim=True)
            pivot.clamp_(min=torch.finfo(pivot.dtype).min)
            if coarse:
                coarse_out, coarse_lse = (x[..., rows, :] for x in coarse)
                pivot = torch.maximum(pivot, coarse_lse)
            weights.sub_(pivot).exp_()
            total = weights.sum(-1, keepdim=True)
            keep = self._keep(block, rows)
            if keep is not None:
                weights *= keep
            out = weights @ value
            if coarse:
                share = (coarse_lse - pivot).exp_()
                total += share
                out.addcmul_(share, coarse_out)
            out /= total.masked_fill(total == 0, 1)
            found.append((out, total.log_() + pivot))
        if len(found) == 1:
            return found[0]
        out, lse = (torch.cat(x, dim=-2) for x in zip(*found))
        return out, lse

    def slopes(self, results: OutLse, grads: OutLse) -> Tuple[Tensor, ...]:
        """Gradients on the lattice.

        Args:
            results, grads: output and lse of :meth:`attend`, and what
                arrives for them.

        Returns:
            Of query, key and value in their dtypes; with parents, also of
            their output and lse.
        """
        inputs = self.query, self.key, self.value
        totals = [
            torch.empty(x.shape, dtype=x.dtype, device=x.device)
            for x in inputs
        ]
        # Parents may have children off the grid only.
        totals += [torch.zeros_like(x) for x in self.parents or ()]
        for bands in self.blocks(2):
            first = bands[0]
            everything = first._replace(band=slice(0, self.cut.tiles[0]))
            sums = [
                torch.zeros_like(everything.part(x), dtype=self.acc)
                for x in inputs[1:]
            ]
            for block in bands:
                query, key, value, *upper = self._slopes(block, results, grads)
                block.part(totals[0]).copy_(query)
                if self.silent is not None:
                    block.part(totals[0]).masked_fill_(
                        block.part(self.silent), 0)
                span = block.span(self.cut.halo)[0]
                for total, x in zip(sums, (key, value)):
                    total[:, span] += x
                for total, x in zip(totals[3:], upper):
                    self._of_parents(block, total).copy_(x)
            for total, x in zip(totals[1:], sums):
                everything.part(total).copy_(x)
        return tuple(totals)

    def _slopes(self, block: Block, results: OutLse,
                grads: OutLse) -> Tuple[Tensor, ...]:
        """Gradients of a block: queries, keys with halo, parents."""
        queries, coarse = self._queries(block), self._coarse(block)
        key = self._windows(block, self.key)
        value = self._windows(block, self.value)
        bias = self._biases(block)
        out, lse, grad, grad_lse = (
            block.tiles(x).to(self.acc) for x in (*results, *grads))
        # A point without any key: its weights must become 0.
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)
        delta = (grad * out).sum(-1, keepdim=True) - grad_lse
        query, key_grad, value_grad = [], 0, 0
        for rows in self.rows():
            weights = self._logits(queries, key, bias, rows)
            weights.sub_(lse[..., rows, :]).exp_()
            slope = grad[..., rows, :] @ value.transpose(-1, -2)
            keep, dropped = self._keep(block, rows), weights
            if keep is not None:
                slope *= keep
                dropped = weights * keep
            part = dropped.transpose(-1, -2) @ grad[..., rows, :]
            value_grad = part if rows.start == 0 else value_grad.add_(part)
            slope.sub_(delta[..., rows, :]).mul_(weights)
            slope *= self.options.scale
            query.append(slope @ key)
            part = slope.transpose(-1, -2) @ queries[..., rows, :]
            key_grad = part if rows.start == 0 else key_grad.add_(part)
        found = (block.from_tiles(torch.cat(query, dim=-2)),
                 block.from_windows(key_grad), block.from_windows(value_grad))
        if not coarse:
            return found
        coarse_out, coarse_lse = coarse
        share = (coarse_lse - lse).exp_()
        slope = ((grad * coarse_out).sum(-1, keepdim=True) - delta) * share
        return (*found, *(self._to_parents(block, x)
                          for x in (grad * share, slope)))

    def _to_parents(self, block: Block, x: Tensor) -> Tensor:
        """Sums over the points of each parent, on its lattice."""
        x = block.from_tiles(x)
        sizes = tuple(-(-size // self.factor) for size in x.shape[1:-2])
        return block_sum(x, (self.factor, ) * len(sizes), sizes)


# ------------------------------------------------------------- all levels
def _lattices(packed: Tensor, hierarchy: Hierarchy) -> List[Tensor]:
    """``[B, M, heads, c]`` -> per level ``[B, *lattice, heads, c]``."""
    return [
        cells_to_lattice(level, hierarchy.rank, hierarchy.ndim)
        for level in unpack(packed, hierarchy)
    ]


def _packed(levels: List[Tensor], hierarchy: Hierarchy) -> Tensor:
    """The inverse of :func:`_lattices`."""
    return pack([
        lattice_to_cells(x, grid, hierarchy.rank)
        for x, grid in zip(levels, hierarchy.grids)
    ], hierarchy.ndim)


class FarField:
    """The levels of summaries.

    Args:
        query, key, value: packed, ``[B, M, heads, head_dim]``.
        mass: int64 ``[B or 1, M]``.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, mass: Tensor,
                 hierarchy: Hierarchy, use_mass: bool, scale: float,
                 dropout_p: float, seed: Optional[Tensor]) -> None:
        self.hierarchy = hierarchy
        self.options = Options(scale, dropout_p, seed, hierarchy.num_tokens)
        self.inputs = [_lattices(x, hierarchy) for x in (query, key, value)]
        bias = mass.to(accumulation_dtype(query.dtype)).log()
        if not use_mass:
            bias = bias.clamp(max=0)
        self.bias = _lattices(bias[..., None, None], hierarchy)
        # What is absent may hold anything, even NaN.
        self.absent = _lattices(mass[..., None, None] == 0, hierarchy)

    def level(self, level: int, parents: Optional[OutLse]) -> Level:
        """One level, from 1; ``parents`` as :class:`Level` takes them."""
        numbers = None
        if self.options.dropout_p:
            numbers = self._numbers(level)
        absent = self.absent[level - 1]
        return Level(
            cut_level(self.hierarchy, level),
            *(x[level - 1] for x in self.inputs), self.bias[level - 1], absent,
            absent, parents, 2, numbers, self.options)

    def _numbers(self, level: int) -> Tuple[Tensor, Tensor]:
        """A sub-cell decides as its first token would."""
        h, device = self.hierarchy, self.bias[0].device
        side = h.widths[level - 1] // h.rank
        first = torch.zeros((), dtype=torch.int64, device=device)
        for cells, size in zip(h.grids[level - 1], h.shape):
            start = torch.arange(cells * h.rank, device=device) * side
            first = first[..., None] * size + start
        key = torch.arange(h.level_sizes[level - 1], device=device)
        key += h.num_tokens + h.level_starts[level - 1]
        key = key.view(1, *h.grids[level - 1], h.num_parts)
        return first, cells_to_lattice(key, h.rank, h.ndim)[0]


def far_forward(query: Tensor, *args) -> OutLse:
    """What each sub-cell sees at its level and above.

    Takes the arguments of :class:`FarField`.

    Returns:
        Output ``[B, M, heads, head_dim]`` and lse ``[B, M, heads]`` in the
        accumulation dtype.
    """
    far = FarField(query, *args)
    acc = accumulation_dtype(query.dtype)
    out, lse = (
        torch.empty((*query.shape[:-1], size), dtype=acc, device=query.device)
        for size in (query.shape[-1], 1))
    h, parents = far.hierarchy, None
    # Levels write to where they belong, unless a lattice is a copy.
    found = list(zip(_lattices(out, h), _lattices(lse, h)))
    for level in range(h.num_levels, 0, -1):
        results = found[level - 1]
        far.level(level, parents).attend(*results)
        parents = results
    if h.rank > 1 and h.ndim > 1:
        out, lse = (_packed(list(x), h) for x in zip(*found))
    return out, lse.squeeze(-1)


def far_backward(grad_out: Tensor, grad_lse: Tensor,
                 *args) -> Tuple[Tensor, ...]:
    """Gradients of query, key and value.

    Takes two gradients, the arguments of :class:`FarField` and the results
    of :func:`far_forward`.
    """
    *inputs, out, lse = args
    far = FarField(*inputs)
    h, found = far.hierarchy, []
    results, grads = (list(zip(_lattices(x, h), _lattices(y[..., None], h)))
                      for x, y in ((out, lse), (grad_out, grad_lse)))
    for level, (result, arrived) in enumerate(zip(results, grads), 1):
        parents = None if level == h.num_levels else results[level]
        *slopes, = far.level(level, parents).slopes(result, arrived)
        found.append(slopes[:3])
        if parents:
            grads[level] = tuple(map(torch.add, grads[level], slopes[3:]))
    query, key, value = (_packed(list(x), h).to(given.dtype)
                         for x, given in zip(zip(*found), inputs))
    return query, key, value


def _near_level(query: Tensor, key: Tensor, value: Tensor, far_out: Tensor,
                far_lse: Tensor, key_mask: Optional[Tensor],
                hierarchy: Hierarchy, scale: float, dropout_p: float,
                seed: Optional[Tensor]) -> Level:
    """The tokens and what is near, with level 1 for parents."""
    first = replace(hierarchy, num_levels=1)
    parents = tuple(
        _lattices(x, first)[0] for x in (far_out, far_lse[..., None]))
    bias = absent = numbers = None
    if key_mask is not None:
        absent = ~key_mask[..., None, None]
        bias = torch.zeros(
            absent.shape,
            dtype=accumulation_dtype(query.dtype),
            device=query.device).masked_fill(absent, -torch.inf)
    if dropout_p:
        number = torch.arange(hierarchy.num_tokens, device=query.device)
        numbers = (number.view(hierarchy.shape), ) * 2
    options = Options(scale, dropout_p, seed, hierarchy.num_tokens)
    return Level(
        cut_tokens(hierarchy), query, key, value, bias, absent, None, parents,
        hierarchy.cell_size // hierarchy.rank, numbers, options)


def near_forward(*args) -> OutLse:
    """Output ``[B, *grid, heads, head_dim]`` and lse ``[B, *grid, heads]``.

    Takes query, key, value, the far field's output and lse at level 1, the
    mask, the hierarchy, scale, dropout_p and seed.
    """
    query = args[0]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty((*query.shape[:-1], 1),
                      dtype=accumulation_dtype(query.dtype),
                      device=query.device)
    _near_level(*args).attend(out, lse)
    return out, lse.squeeze(-1)


def near_backward(grad_out: Tensor, grad_lse: Tensor,
                  *args) -> Tuple[Tensor, ...]:
    """Gradients of query, key, value, and of the far output and lse.

    Takes two gradients, the arguments and the results of
    :func:`near_forward`.
    """
    *inputs, out, lse = args
    hierarchy = inputs[6]
    query, key, value, *upper = _near_level(*inputs).slopes(
        (out, lse[..., None]), (grad_out, grad_lse[..., None]))
    grid = replace(hierarchy, num_levels=1).grids[0]
    far_out, far_lse = (
        lattice_to_cells(x, grid,
                         hierarchy.rank).flatten(1, 1 + hierarchy.ndim)
        for x in upper)
    return query, key, value, far_out, far_lse.squeeze(-1)
