"""FMA in plain PyTorch: any device, any argument, short rather than fast.

Queries are taken tile by tile (``lists.py``). Their keys and values are
gathered by number from tokens and summaries, each source gives a matrix of
logits, and all share one softmax. A *chunk* is as many images and tiles, or
rows of one tile, as fit a budget of elements. The backward pass recomputes
the weights from lse, and adds what belongs to a gathered key back to it in a
fixed order.
"""
from dataclasses import dataclass
from functools import partial, reduce
from math import prod
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ..dropout import keep_mask
from ..geometry import Hierarchy
from ..options import Inputs, Options
from ..pooling import (accumulation_dtype, average_pyramid, constant, masses,
                       pack, spread)
from .lists import (Keys, Tables, leaf_tiles, level_tables, token_order,
                    token_tables)

# Elements of logits and gathered keys that a chunk holds.
CHUNK_ELEMENTS = 1 << 22

OutLse = Tuple[Tensor, Tensor]


class Source(NamedTuple):
    """Tokens or summaries, in the order of their numbers.

    Attributes:
        key, value: ``[B, count, heads, head_dim]``.
        bias: added to logits, -inf for what is absent and may hold
            anything, even NaN; ``[B or 1, count]``.
        first: what is added to the numbers for dropout.
        table: relative-position biases ``[heads, entries]``, or None.
    """
    key: Tensor
    value: Tensor
    bias: Tensor
    first: int = 0
    table: Optional[Tensor] = None


class Seen(NamedTuple):
    """What a chunk sees of a source.

    Attributes:
        index: numbers ``[tiles * keys]``; any valid one where hidden.
        key, value: ``[b, tiles, heads, keys, head_dim]``.
        bias: ``[b or 1, tiles, heads or 1, rows or 1, keys]``.
    """
    index: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor


class Chunk(NamedTuple):
    """Some images and whole tiles, or some rows of one tile.

    Attributes:
        images: of the batch.
        place: its rows among those of all tiles.
        tables: of its tiles and rows.
    """
    images: slice
    place: slice
    tables: Tables


def _gather(x: Tensor, images: slice, index: Tensor) -> Tensor:
    """``[B or 1, count, ...]`` at ``[tiles, n]`` -> ``[b, tiles, n, ...]``."""
    x = x if x.shape[0] == 1 else x[images]
    found = x.index_select(1, index.clamp(min=0).flatten())
    return found.reshape(found.shape[0], *index.shape, *x.shape[2:])


def _add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """``total[:, index] += rows``, in a fixed order on every device.

    Args:
        total: ``[a, count, ...]``.
        index: int64 ``[n]``.
        rows: ``[a, n, ...]``.
    """
    if total.is_cuda:  # index_add would use atomics there
        first = torch.arange(total.shape[0], device=total.device)[:, None]
        total.index_put_((first, index), rows, accumulate=True)
    else:
        total.index_add_(1, index, rows)


def _transposed(x: Tensor) -> Tensor:
    """The last two axes of a matrix."""
    return x.transpose(-1, -2)


@dataclass(frozen=True)
class Attention:
    """Attention of the queries of all tiles.

    Attributes:
        query: ``[B, count, heads, head_dim]``.
        sources: the keys, as :class:`Tables` lists them.
        tables: of numbers of tiles and rows.
        first: where results begin among the rows that are written.
        num_tiles, num_rows: how many there are.
        tokens: of an image, to number what dropout decides about.
        seed: int64 scalar, used where ``dropout_p > 0``.
        silent: queries that ask with zeros, bool ``[B or 1, count]``.
        parents: output ``[B, M, heads, head_dim]`` and lse ``[B, M, heads]``
            of all packed sub-cells, where the tables have parents.
    """

    query: Tensor
    sources: List[Source]
    tables: Callable[[Tensor, Tensor], Tables]
    first: int
    num_tiles: int
    num_rows: int
    tokens: int
    options: Options
    seed: Optional[Tensor] = None
    silent: Optional[Tensor] = None
    parents: Optional[OutLse] = None

    @property
    def acc(self) -> torch.dtype:
        return accumulation_dtype(self.query.dtype)

    # -------------------------------------------------------------- chunks
    def _range(self, part: slice) -> Tensor:
        return torch.arange(part.start, part.stop, device=self.query.device)

    def _tables(self, tiles: slice, rows: slice) -> Tables:
        return constant(
            lambda: self.tables(self._range(tiles), self._range(rows)))

    def chunks(self, passes: int) -> Iterator[Chunk]:
        """In a fixed order; ``passes`` matrices of logits are held at once.
        """
        one = slice(0, 1)
        keys = sum(x.index.shape[1] for x in self._tables(one, one).keys)
        batch, _, heads, dim = self.query.shape
        row = passes * heads * keys
        tile = row * self.num_rows + 2 * heads * keys * dim
        images = min(max(CHUNK_ELEMENTS // tile, 1), batch)
        tiles = max(CHUNK_ELEMENTS // (tile * images), 1)
        rows = self.num_rows
        if tile > CHUNK_ELEMENTS:
            rows = min(max(CHUNK_ELEMENTS // row, 1), rows)
        for b in range(0, batch, images):
            for t in range(0, self.num_tiles, tiles):
                for r in range(0, self.num_rows, rows):
                    yield self._chunk(
                        slice(b, min(b + images, batch)),
                        slice(t, min(t + tiles, self.num_tiles)),
                        slice(r, min(r + rows, self.num_rows)))

    def _chunk(self, images: slice, tiles: slice, rows: slice) -> Chunk:
        start = self.first + tiles.start * self.num_rows + rows.start
        count = (tiles.stop - tiles.start) * (rows.stop - rows.start)
        return Chunk(images, slice(start, start + count),
                     self._tables(tiles, rows))

    def _queries(self, chunk: Chunk) -> Tensor:
        """``[b, tiles, heads, rows, head_dim]``, not scaled."""
        index = chunk.tables.queries
        found = _gather(self.query, chunk.images, index).to(self.acc)
        if self.silent is not None:
            silent = _gather(self.silent, chunk.images, index)
            found = found.masked_fill(silent[..., None, None], 0)
        return found.transpose(2, 3)

    def _seen(self, chunk: Chunk) -> List[Seen]:
        return [
            self._seen_of(source, keys, chunk.images)
            for source, keys in zip(self.sources, chunk.tables.keys)
        ]

    def _seen_of(self, source: Source, keys: Keys, images: slice) -> Seen:
        # [b or 1, tiles, keys]
        bias = _gather(source.bias, images, keys.index)
        bias = bias.masked_fill(keys.index < 0, -torch.inf)
        absent = (bias == -torch.inf)[..., None, None]

        def present(x: Tensor) -> Tensor:
            x = _gather(x, images, keys.index).to(self.acc)
            return x.masked_fill_(absent, 0).transpose(2, 3)

        bias = bias[:, :, None, None]
        if source.table is not None:
            # [heads, tiles or 1, rows or 1, keys]
            table = source.table.to(self.acc)[:, keys.entries.flatten()]
            table = table.reshape(-1, *keys.entries.shape)
            bias = bias + table.transpose(0, 1)
        if keys.hidden is not None:
            bias = bias.masked_fill(keys.hidden[:, None], -torch.inf)
        return Seen(
            keys.index.clamp(min=0).flatten(), present(source.key),
            present(source.value), bias)

    def _logits(self, query: Tensor, seen: Seen) -> Tensor:
        """``[b, tiles, heads, rows, keys]``, -inf where nothing is seen."""
        query = query * self.options.scale
        return (query @ _transposed(seen.key)).add_(seen.bias)

    def _keep(self, chunk: Chunk, which: int) -> Optional[Tensor]:
        """Factors of the weights: 0 where dropped, 1 / (1 - p) elsewhere."""
        p, heads = self.options.dropout_p, self.query.shape[2]
        if not p:
            return None
        # [b, 1, heads, 1, 1], [tiles, 1, rows, 1] and [tiles, 1, 1, keys]
        image = self._range(chunk.images)[:, None, None, None, None]
        head = torch.arange(heads, device=image.device)[:, None, None]
        asker = chunk.tables.askers[:, None, :, None]
        row = (image * heads + head) * self.tokens + asker
        key = chunk.tables.keys[which].index[:, None, None]
        keep = keep_mask(self.seed, p, row, key + self.sources[which].first)
        return keep.to(self.acc) / (1 - p)

    def _parents(self, chunk: Chunk) -> Optional[OutLse]:
        """Their output and lse, ``[b, tiles, heads, rows, c]``."""
        if self.parents is None:
            return None
        out, lse = (
            _gather(x, chunk.images, chunk.tables.parents).transpose(2, 3)
            for x in self.parents)
        return out, lse[..., None]

    # ------------------------------------------------------------- forward
    def forward(self, out: Tensor, lse: Tensor) -> None:
        """Writes to ``[B, rows of all tiles, heads, head_dim]``, and without
        head_dim, from ``first``.
        """
        for chunk in self.chunks(1):
            for total, x in zip((out, lse), self._forward(chunk)):
                self._write(total, chunk, x)

    @staticmethod
    def _write(total: Tensor, chunk: Chunk, x: Tensor) -> None:
        """``[b, tiles, heads, rows, ...]`` to where it belongs."""
        x = x.transpose(2, 3).flatten(1, 2).to(total.dtype)
        total[chunk.images, chunk.place] = x

    def _forward(self, chunk: Chunk) -> OutLse:
        query, seen = self._queries(chunk), self._seen(chunk)
        parents = self._parents(chunk)
        logits = [self._logits(query, x) for x in seen]
        tops = [x.amax(-1, keepdim=True) for x in logits]
        if parents:
            tops.append(parents[1])
        # Finite: no key must not become NaN.
        pivot = reduce(torch.maximum, tops)
        pivot = pivot.clamp(min=torch.finfo(pivot.dtype).min)
        weights = [x.sub_(pivot).exp_() for x in logits]
        total = sum(x.sum(-1, keepdim=True) for x in weights)
        out = 0
        for which, (weight, keys) in enumerate(zip(weights, seen)):
            keep = self._keep(chunk, which)
            if keep is not None:
                weight = weight * keep
            out = out + weight @ keys.value
        if parents:
            # One key more: its logit is an lse, its value an output.
            share = (parents[1] - pivot).exp()
            total = total + share
            out = out + share * parents[0]
        out = out / total.masked_fill(total == 0, 1)
        return out, (total.log() + pivot).squeeze(-1)

    # ------------------------------------------------------------ backward
    def totals(self) -> List[List[Tensor]]:
        """Zeros to add gradients to, in the accumulation dtype.

        Of key, value and, where it is given, table of each source.
        """
        return [[
            torch.zeros(x.shape, dtype=self.acc, device=x.device)
            for x in (source.key, source.value, source.table) if x is not None
        ] for source in self.sources]

    def backward(self,
                 grads: OutLse,
                 results: OutLse,
                 slopes: Tensor,
                 totals: List[List[Tensor]],
                 upper: Optional[OutLse] = None) -> None:
        """Adds gradients.

        Args:
            grads, results: of output and lse, numbered as the queries:
                ``[B, count, heads, head_dim]`` and ``[B, count, heads]``.
            slopes: where that of queries is written, as in
                :meth:`forward`.
            totals: to which those of the sources are added, as
                :meth:`totals`.
            upper: to which those of the parents are added.
        """
        for chunk in self.chunks(2):
            found = self._backward(chunk, grads, results, totals, upper)
            self._write(slopes, chunk, found)

    def _backward(self, chunk: Chunk, grads: OutLse, results: OutLse,
                  totals: List[List[Tensor]],
                  upper: Optional[OutLse]) -> Tensor:
        query, rows = self._queries(chunk), chunk.tables.queries
        out, grad = (
            _gather(x, chunk.images, rows).to(self.acc).transpose(2, 3)
            for x in (results[0], grads[0]))
        lse, grad_lse = (
            _gather(x, chunk.images, rows).transpose(2, 3)[..., None]
            for x in (results[1], grads[1]))
        # No weights for rows without any key, nor for those off the grid.
        off = (rows < 0)[:, None, :, None]
        lse = lse.masked_fill((lse == -torch.inf) | off, torch.inf)
        delta = (grad * out).sum(-1, keepdim=True) - grad_lse
        slopes = torch.zeros_like(query)
        for which, keys in enumerate(self._seen(chunk)):
            weight = self._logits(query, keys).sub_(lse).exp_()
            slope, dropped = grad @ _transposed(keys.value), weight
            keep = self._keep(chunk, which)
            if keep is not None:
                slope, dropped = slope * keep, weight * keep
            slope = slope.sub_(delta).mul_(weight)
            key, value, *table = (x[chunk.images] if i < 2 else x
                                  for i, x in enumerate(totals[which]))
            self._add_keys(value, keys.index, _transposed(dropped) @ grad)
            if table:
                entries = chunk.tables.keys[which].entries
                self._add_entries(table[0], entries, slope)
            slope = slope * self.options.scale
            self._add_keys(key, keys.index, _transposed(slope) @ query)
            slopes = slopes + slope @ keys.key
        parents = self._parents(chunk)
        if parents:
            share = (parents[1] - lse).exp()
            slope = (grad * parents[0]).sum(-1, keepdim=True) - delta
            index = chunk.tables.parents.flatten()
            for total, x in zip(upper,
                                (share * grad, (share * slope)[..., 0])):
                self._add_keys(total[chunk.images], index, x)
        if self.silent is not None:
            silent = _gather(self.silent, chunk.images, rows)
            slopes = slopes.masked_fill(silent[:, :, None, :, None], 0)
        return slopes

    @staticmethod
    def _add_keys(total: Tensor, index: Tensor, x: Tensor) -> None:
        """``[b, tiles, heads, keys, ...]`` into ``[b, count, heads, ...]``."""
        _add_rows(total, index, x.transpose(2, 3).flatten(1, 2))

    @staticmethod
    def _add_entries(total: Tensor, entries: Tensor, slope: Tensor) -> None:
        """``[b, tiles, heads, rows, keys]`` into ``[heads, entries]``."""
        slope = slope.sum(0)
        for axis, size in ((0, entries.shape[0]), (2, entries.shape[1])):
            if size == 1:
                slope = slope.sum(axis, keepdim=True)
        slope = slope.transpose(0, 1)  # [heads, tiles or 1, rows or 1, keys]
        _add_rows(total, entries.flatten(), slope.flatten(1))


# ------------------------------------------------------------ entry points
def _tokens(key: Tensor,
            value: Tensor,
            key_mask: Optional[Tensor],
            table: Optional[Tensor] = None) -> Source:
    """From ``[B, *grid, heads, head_dim]`` and bool ``[B, *grid]``."""
    key, value = key.flatten(1, -3), value.flatten(1, -3)
    bias = torch.zeros((1, key.shape[1]),
                       dtype=accumulation_dtype(key.dtype),
                       device=key.device)
    if key_mask is not None:
        bias = bias.masked_fill(~key_mask.flatten(1), -torch.inf)
    return Source(key, value, bias, 0, table)


def _mass(h: Hierarchy, key_mask: Optional[Tensor],
          device: torch.device) -> Tensor:
    """Of packed summaries, ``[B or 1, M]``."""
    return pack(masses(h, key_mask, device), h.ndim)


def _summaries(key: Tensor,
               value: Tensor,
               mass: Tensor,
               h: Hierarchy,
               options: Options,
               table: Optional[Tensor] = None) -> Source:
    """From packed ``[B, M, heads, head_dim]`` and ``[B or 1, M]``."""
    bias = mass.to(accumulation_dtype(key.dtype)).log()
    if not options.mass:
        bias = bias.clamp(max=0)
    if table is not None:
        table = table.flatten(1)
    return Source(key, value, bias, h.num_tokens, table)


def _plain(inputs: Inputs, h: Hierarchy, options: Options) -> Attention:
    """Tokens that ask for tokens and all summaries themselves."""
    sources = [
        _tokens(inputs.key, inputs.value, inputs.key_mask, inputs.near_bias)
    ]
    if h.num_levels:
        mass = _mass(h, inputs.key_mask, inputs.query.device)
        sources.append(
            _summaries(inputs.key_summaries, inputs.value_summaries, mass, h,
                       options, inputs.far_bias))
    biased = inputs.near_bias is not None
    return _of_tokens(inputs.query, sources, h, options, inputs.seed, True,
                      biased)


def _of_tokens(query: Tensor, sources: List[Source], h: Hierarchy,
               options: Options, seed: Optional[Tensor], far: bool,
               biased: bool, **given) -> Attention:
    grid, sides = leaf_tiles(h)
    tables = partial(token_tables, h, far=far, biased=biased)
    return Attention(
        query.flatten(1, -3), sources, tables, 0, prod(grid), prod(sides),
        h.num_tokens, options, seed, **given)


def _to_grid(x: Tensor, h: Hierarchy) -> Tensor:
    """``[B, rows of all tiles, ...]`` -> ``[B, *grid, ...]``."""
    x = x.index_select(1, constant(lambda: token_order(h, x.device)))
    return x.reshape(x.shape[0], *h.shape, *x.shape[2:])


def _rows(attention: Attention, dtype: torch.dtype, *tail: int) -> Tensor:
    """Memory for results, ``[B, rows of all tiles, heads, *tail]``."""
    batch, _, heads, _ = attention.query.shape
    count = attention.num_tiles * attention.num_rows
    return torch.empty((batch, count, heads, *tail),
                       dtype=dtype,
                       device=attention.query.device)


def _forward_tokens(attention: Attention, h: Hierarchy) -> OutLse:
    query = attention.query
    out = _rows(attention, query.dtype, query.shape[-1])
    lse = _rows(attention, attention.acc)
    attention.forward(out, lse)
    return _to_grid(out, h), _to_grid(lse, h)


def _backward_tokens(attention: Attention, h: Hierarchy, grads: OutLse,
                     results: OutLse, **upper) -> Tuple[Tensor, ...]:
    """Gradients of the query, then of the sources."""
    query = attention.query
    slopes = _rows(attention, query.dtype, query.shape[-1])
    grads, results = ((x.flatten(1, h.ndim), y.flatten(1, h.ndim))
                      for x, y in (grads, results))
    totals = attention.totals()
    attention.backward(grads, results, slopes, totals, **upper)
    return _to_grid(slopes, h), *(x for total in totals for x in total)


def forward(inputs: Inputs, hierarchy: Hierarchy, options: Options) -> OutLse:
    """Output ``[B, *grid, heads, head_dim]`` and lse ``[B, *grid, heads]``."""
    return _forward_tokens(_plain(inputs, hierarchy, options), hierarchy)


def backward(grad_out: Tensor, grad_lse: Tensor, inputs: Inputs, out: Tensor,
             lse: Tensor, hierarchy: Hierarchy,
             options: Options) -> Tuple[Optional[Tensor], ...]:
    """Gradients of query, key, value, both summaries and both biases."""
    query, *found = _backward_tokens(
        _plain(inputs, hierarchy, options), hierarchy, (grad_out, grad_lse),
        (out, lse))
    names = ['key', 'value'] + ['near_bias'] * (inputs.near_bias is not None)
    if hierarchy.num_levels:
        names += ['key_summaries', 'value_summaries', 'far_bias']
    grads = dict(zip(names, found), query=query)

    def of(name: str) -> Optional[Tensor]:
        x = getattr(inputs, name)
        if x is None:
            return None
        if name not in grads:  # L = 0: there are no summaries
            return torch.zeros_like(x)
        return grads[name].reshape(x.shape).to(x.dtype)

    return tuple(
        of(name) for name in ('query', 'key', 'value', 'key_summaries',
                              'value_summaries', 'near_bias', 'far_bias'))


def pool(x: Tensor, key_mask: Optional[Tensor],
         hierarchy: Hierarchy) -> Tensor:
    """Averages over real tokens, packed ``[B, M, heads, head_dim]``."""
    return pack(average_pyramid(x, hierarchy, key_mask), hierarchy.ndim)


def pool_backward(grad: Tensor,
                  key_mask: Optional[Tensor],
                  hierarchy: Hierarchy,
                  total: Optional[Tensor] = None) -> Tensor:
    """Gradient of the tokens of :func:`pool`; added to ``total`` if given."""
    found = spread(grad, hierarchy, key_mask,
                   _mass(hierarchy, key_mask, grad.device))
    return found if total is None else total.add_(found)


# ---------------------------------------------------------- pooled queries
def _levels(query: Tensor, key: Tensor, value: Tensor,
            key_mask: Optional[Tensor], seed: Optional[Tensor], h: Hierarchy,
            options: Options, results: OutLse) -> List[Attention]:
    """The sub-cells of every level, whose parents are among ``results``."""
    mass = _mass(h, key_mask, query.device)
    source = _summaries(key, value, mass, h, options)
    return [
        Attention(
            query, [source],
            partial(level_tables, h, level),
            h.level_starts[level - 1],
            prod(h.grids[level - 1]),
            h.num_parts,
            h.num_tokens,
            options,
            seed,
            silent=mass == 0,
            parents=results if level < h.num_levels else None)
        for level in range(1, h.num_levels + 1)
    ]


def far_forward(query: Tensor, key: Tensor, value: Tensor,
                key_mask: Optional[Tensor], seed: Optional[Tensor],
                hierarchy: Hierarchy, options: Options) -> OutLse:
    """What each sub-cell sees at its level and above.

    From the coarsest level down: the parent of a sub-cell, which stands for
    all coarser levels, is one key more.

    Args:
        query, key, value: packed, ``[B, M, heads, head_dim]``.

    Returns:
        Output ``[B, M, heads, head_dim]`` and lse ``[B, M, heads]`` in the
        accumulation dtype.
    """
    acc = accumulation_dtype(query.dtype)
    out = torch.empty(query.shape, dtype=acc, device=query.device)
    results = out, torch.empty(
        query.shape[:-1], dtype=acc, device=query.device)
    levels = _levels(query, key, value, key_mask, seed, hierarchy, options,
                     results)
    for level in range(hierarchy.num_levels, 0, -1):
        levels[level - 1].forward(*results)
    return results


def far_backward(grad_out: Tensor, grad_lse: Tensor, query: Tensor,
                 key: Tensor, value: Tensor, key_mask: Optional[Tensor],
                 seed: Optional[Tensor], out: Tensor, lse: Tensor,
                 hierarchy: Hierarchy, options: Options) -> Tuple[Tensor, ...]:
    """Gradients of query, key and value."""
    levels = _levels(query, key, value, key_mask, seed, hierarchy, options,
                     (out, lse))
    # Each level adds to what arrives at the next.
    grads = grad_out.to(out.dtype, copy=True), grad_lse.clone()
    slopes = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    totals = levels[0].totals()
    for attention in levels:
        attention.backward(grads, (out, lse), slopes, totals, grads)
    return slopes, *(x.to(query.dtype) for x in totals[0])


def _near(query: Tensor, key: Tensor, value: Tensor, far_out: Tensor,
          far_lse: Tensor, key_mask: Optional[Tensor], seed: Optional[Tensor],
          h: Hierarchy, options: Options) -> Attention:
    """Tokens that ask for tokens, with level 1 for parents."""
    return _of_tokens(
        query, [_tokens(key, value, key_mask)],
        h,
        options,
        seed,
        False,
        False,
        parents=(far_out, far_lse))


def near_forward(*args) -> OutLse:
    """Output ``[B, *grid, heads, head_dim]`` and lse ``[B, *grid, heads]``.

    Takes query, key, value, far output ``[B, M_1, heads, head_dim]`` and lse
    ``[B, M_1, heads]`` of level 1 in the accumulation dtype, the mask, the
    seed, a hierarchy of one level and the options.
    """
    return _forward_tokens(_near(*args), args[-2])


def near_backward(grad_out: Tensor, grad_lse: Tensor, query: Tensor,
                  key: Tensor, value: Tensor, far_out: Tensor, far_lse: Tensor,
                  key_mask: Optional[Tensor], seed: Optional[Tensor],
                  out: Tensor, lse: Tensor, hierarchy: Hierarchy,
                  options: Options) -> Tuple[Tensor, ...]:
    """Gradients of query, key, value, and of the far output and lse."""
    upper = tuple(x.new_zeros(x.shape) for x in (far_out, far_lse))
    attention = _near(query, key, value, far_out, far_lse, key_mask, seed,
                      hierarchy, options)
    slopes, *found = _backward_tokens(
        attention, hierarchy, (grad_out, grad_lse), (out, lse), upper=upper)
    found = (x.reshape(query.shape).to(query.dtype) for x in found)
    return slopes, *found, *upper
