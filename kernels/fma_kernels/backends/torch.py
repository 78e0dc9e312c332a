"""FMA tile by tile in plain PyTorch: any device, bounded memory.

Tokens are copied once into cell order (``packing.py``), so that the keys of
a tile are gathered as whole contiguous cells. A *chunk* of tiles then runs
through matrix products into one logits buffer of bounded size: near tokens,
level-1 summaries and all higher levels side by side, under one softmax. The
backward pass recomputes the weights from lse, and adds the gradients of
gathered keys back row by row, always in the same order.
"""
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ..dropout import keep_mask
from ..geometry import Hierarchy
from ..pooling import accumulation_dtype
from .packing import (Keys, from_cells, pack_queries, pack_summaries,
                      pack_tokens, to_cells)
from .tiling import KeyList, Tiling, tiling

# Elements of a chunk's logits and gathered keys. Measured on two cores:
# smaller pays for launches, larger falls out of the caches.
CHUNK_ELEMENTS = 3 << 20


class Chunk(NamedTuple):
    """Some heads and groups, with the keys of their lists.

    ``keys[i]`` is ``[heads * tiles (or groups), length, channels]``.
    """
    heads: slice
    groups: slice
    indices: List[Tensor]
    keys: List[Tensor]
    values: List[Tensor]


class Problem:
    """One call on packed tensors, cut into chunks of bounded memory.

    Args:
        query, key, value: ``[B, *grid, heads, head_dim]``.
        key_summaries, value_summaries: ``[B, M_total, heads, head_dim]``.
        mass: int64 ``[B or 1, M_total]``.
        key_mask: bool ``[B, *grid]`` or None.
        seed: int64 scalar tensor, used where ``dropout_p > 0``.
        buffers: logits-sized buffers that the pass holds, for the budget.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor,
                 key_summaries: Tensor, value_summaries: Tensor,
                 mass: Tensor, key_mask: Optional[Tensor],
                 hierarchy: Hierarchy, use_mass: bool, scale: float,
                 dropout_p: float, seed: Optional[Tensor],
                 buffers: int) -> None:
        self.hierarchy, self.plan = hierarchy, tiling(hierarchy)
        self.batch, self.heads, self.dim = (query.shape[0], query.shape[-2],
                                            query.shape[-1])
        self.dtype, self.device = query.dtype, query.device
        self.acc = accumulation_dtype(query.dtype)
        self.scale, self.dropout_p, self.seed = scale, dropout_p, seed
        self.buffers = buffers
        self.query = pack_queries(query, self.plan, scale, self.acc)
        self.sources: Dict[str, Keys] = {
            'tokens':
            pack_tokens(key, value, key_mask, self.plan, self.acc),
            'summaries':
            pack_summaries(key_summaries, value_summaries, mass, use_mass,
                           self.acc)
        }
        self.lists = self.plan.lists
        # Where the keys of each list stand among the logits' columns.
        self.lengths = [
            part.index.shape[1] * self.sources[part.source].key.shape[2]
            for part in self.lists
        ]
        self.columns = []
        for length in self.lengths:
            start = self.columns[-1].stop if self.columns else 0
            self.columns.append(slice(start, start + length))
        self.indices = [self._batched(part) for part in self.lists]
        self.hidden = [
            None if part.hidden is None else part.hidden.to(self.device)
            for part in self.lists
        ]
        self.workspace: Dict[str, Tensor] = {}

    def _batched(self, part: KeyList) -> Tensor:
        """Rows to gather for every tile (or group) of the whole batch."""
        index = part.index.to(self.device)
        rows = self.sources[part.source].key.shape[1] - 1
        steps = torch.arange(self.batch, device=self.device)
        steps = steps * (rows // self.batch)
        batched = index + steps[:, None, None]
        return batched.masked_fill(index < 0, rows).flatten(0, 1)

    def tiles(self, x: Tensor) -> Tensor:
        """``[heads, B * cells, t, c]`` -> ``[heads, groups, tiles, t', c]``.
        """
        plan = self.plan
        return x.view(x.shape[0], self.batch * plan.num_groups,
                      plan.tiles_per_group, plan.tile_tokens, x.shape[-1])

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Scratch memory that chunks share: no allocation in the loop."""
        size = 1
        for n in shape:
            size *= n
        held = self.workspace.get(name)
        if held is None or held.numel() < size:
            held = torch.empty(size, dtype=self.acc, device=self.device)
            self.workspace[name] = held
        return held[:size].view(shape)

    # ------------------------------------------------------------ chunks
    def _cut(self) -> Tuple[int, int, int]:
        """Heads, groups and rows of a tile that fit the budget at once."""
        plan, total = self.plan, max(sum(self.lengths), 1)
        gathered = 2 * self.dim * (self.buffers + 1) // 2
        per_row = self.buffers * plan.tiles_per_group * total
        per_group = (plan.tile_tokens * per_row +
                     plan.tiles_per_group * total * gathered)
        if per_group * self.heads <= CHUNK_ELEMENTS:
            groups = CHUNK_ELEMENTS // (per_group * self.heads)
            return self.heads, groups, plan.tile_tokens
        heads = max(CHUNK_ELEMENTS // per_group, 1)
        rows = max(CHUNK_ELEMENTS // per_row, 1)
        return heads, 1, min(rows, plan.tile_tokens)

    def chunks(self) -> Iterator[Chunk]:
        heads, groups, _ = self._cut()
        tiles = self.plan.tiles_per_group
        for h in range(0, self.heads, heads):
            head = slice(h, min(h + heads, self.heads))
            for g in range(0, self.batch * self.plan.num_groups, groups):
                stop = min(g + groups, self.batch * self.plan.num_groups)
                indices, keys, values = [], [], []
                for i, part in enumerate(self.lists):
                    step = 1 if part.per_group else tiles
                    index = self.indices[i][g * step:stop * step]
                    source = self.sources[part.source]
                    indices.append(index.reshape(-1))
                    keys.append(self._gather(f'key{i}', source.key[head],
                                             index))
                    values.append(
                        self._gather(f'value{i}', source.value[head], index))
                yield Chunk(head, slice(g, stop), indices, keys, values)

    def _gather(self, name: str, rows: Tensor, index: Tensor) -> Tensor:
        """``[heads, rows, t, c]`` at ``[n, length]`` -> ``[heads * n, keys, c]``
        """
        heads, _, tokens, channels = rows.shape
        count, length = index.shape
        out = self.buffer(name, heads, count * length, tokens, channels)
        torch.index_select(rows, 1, index.reshape(-1), out=out)
        return out.view(heads * count, length * tokens, channels)

    def row_blocks(self) -> Iterator[slice]:
        """Queries of a tile, all at once where they fit."""
        rows, total = self._cut()[2], self.plan.tile_tokens
        for start in range(0, total, rows):
            yield slice(start, min(start + rows, total))

    # -------------------------------------------------------- the products
    def _batches(self, part: KeyList, x: Tensor, groups: int) -> Tensor:
        """Rows of tiles, or of whole groups: ``[batches, rows, columns]``.

        ``x``: ``[heads * groups * tiles, rows, columns]``.
        """
        if not part.per_group:
            return x
        return x.view(-1, self.plan.tiles_per_group * x.shape[1], x.shape[2])

    def products(self, name: str, left: Tensor, right: List[Tensor],
                 groups: int) -> Tensor:
        """``left @ right.T`` for every list, side by side.

        Args:
            left: ``[batches, rows, channels]``, a batch for every tile.
            right: per list ``[batches, keys, channels]``.

        Returns:
            ``[batches, rows, all keys]``, scratch memory.
        """
        out = self.buffer(name, *left.shape[:2], sum(self.lengths))
        for part, columns, x in zip(self.lists, self.columns, right):
            torch.bmm(self._batches(part, left, groups), x.transpose(1, 2),
                      out=self._batches(part, out, groups)[..., columns])
        return out

    def logits(self, query: Tensor, chunk: Chunk, rows: slice) -> Tensor:
        """All logits of some rows of a chunk's tiles; -inf where hidden."""
        groups = chunk.groups.stop - chunk.groups.start
        out = self.products('logits', query, chunk.keys, groups)
        for part, columns, hidden in zip(self.lists, self.columns,
                                         self.hidden):
            if hidden is not None:
                out[..., columns].masked_fill_(hidden[rows], -torch.inf)
            if part.diagonal is not None:
                row = torch.arange(rows.start, rows.stop, device=self.device)
                place = torch.arange(columns.stop - columns.start,
                                     device=self.device) + part.diagonal
                out[..., columns].masked_fill_(place > row[:, None],
                                               -torch.inf)
        return out

    def weighted(self, weights: Tensor, keys: List[Tensor], out: Tensor,
                 groups: int) -> Tensor:
        """``out = weights @ keys`` summed over the lists.

        ``weights [batches, rows, all keys]``, ``keys`` per list
        ``[batches, keys, c]``, ``out [batches, rows, c]``.
        """
        for i, (part, columns, x) in enumerate(
                zip(self.lists, self.columns, keys)):
            left = self._batches(part, weights, groups)[..., columns]
            target = self._batches(part, out, groups)
            if i == 0:
                torch.bmm(left, x, out=target)
            else:
                target.baddbmm_(left, x)
        return out

    # ------------------------------------------------------------ dropout
    def keep(self, chunk: Chunk, rows: slice) -> Optional[Tensor]:
        """Surviving weights, bool ``[batches, rows, all keys]``."""
        if not self.dropout_p:
            return None
        query, columns = self._numbers()
        plan, count = self.plan, self.hierarchy.num_tokens
        group = torch.arange(chunk.groups.start, chunk.groups.stop,
                             device=self.device)
        image, place = group // plan.num_groups, group % plan.num_groups
        head = torch.arange(chunk.heads.start, chunk.heads.stop,
                            device=self.device)
        # [heads, groups, tiles, rows]
        row = ((image * self.heads + head[:, None]) *
               count)[..., None, None] + query[place][..., rows]
        keys = []
        for part, column in zip(self.lists, columns):
            number = column[place]
            if part.per_group:
                number = number.expand(-1, plan.tiles_per_group, -1)
            keys.append(number)
        key = torch.cat(keys, dim=-1)  # [groups, tiles, all keys]
        keep = keep_mask(self.seed, self.dropout_p, row[..., None],
                         key[..., None, :])
        return keep.flatten(0, 2)

    def _numbers(self) -> Tuple[Tensor, List[Tensor]]:
        """Numbers of queries and keys that the dropout decision hashes.

        Returns:
            ``[groups, tiles, rows]``, and per list ``[groups, 1 or tiles,
            keys]``, for one image.
        """
        plan, shape = self.plan, self.hierarchy.shape
        count = self.hierarchy.num_tokens
        token = torch.arange(count, device=self.device).view(1, *shape, 1, 1)
        cells = torch.empty((1, plan.num_cells, plan.cell_tokens, 1),
                            dtype=torch.int64, device=self.device)
        to_cells(token, plan, cells)
        numbers = {'tokens': cells[0, :, :, 0]}  # [cells, t]
        numbers['summaries'] = count + torch.arange(
            self.hierarchy.num_summaries, device=self.device)[:, None]
        query = numbers['tokens'].view(plan.num_groups, plan.tiles_per_group,
                                       plan.tile_tokens)
        columns = []
        for part in self.lists:
            # What -1 stands for is never attended: any number will do.
            index = part.index.to(self.device).clamp(min=0)
            columns.append(numbers[part.source][index].view(
                plan.num_groups, -1, part.index.shape[1] *
                numbers[part.source].shape[1]))
        return query, columns


def forward(*args) -> Tuple[Tensor, Tensor]:
    """Output ``[B, *grid, heads, head_dim]`` and lse ``[B, *grid, heads]``.

    Takes the arguments of :class:`Problem` but the last.
    """
    p = Problem(*args, buffers=1)
    queries = p.tiles(p.query)
    # The output takes the place of the queries, row by row.
    lse = torch.empty((*queries.shape[:-1], 1), dtype=p.acc, device=p.device)
    for chunk in p.chunks():
        groups = chunk.groups.stop - chunk.groups.start
        for rows in p.row_blocks():
            place = (chunk.heads, chunk.groups, slice(None), rows)
            query = queries[place].flatten(0, 2)
            weights = p.logits(query, chunk, rows)
            # A finite pivot: rows without any key must not become NaN.
            pivot = weights.amax(-1, keepdim=True).clamp_(
                min=torch.finfo(p.acc).min)
            weights.sub_(pivot).exp_()
            total = weights.sum(-1, keepdim=True)
            keep = p.keep(chunk, rows)
            if keep is not None:
                weights.mul_(keep).mul_(1 / (1 - p.dropout_p))
            out = p.buffer('out', *query.shape[:2], p.dim)
            p.weighted(weights, chunk.values, out, groups)
            out /= total.masked_fill(total == 0, 1)
            shape = queries[place].shape[:-1]
            queries[place][..., :p.dim] = out.view(*shape, p.dim)
            lse[place] = (total.log() + pivot).view(*shape, 1)
    batch, shape = p.batch, p.hierarchy.shape
    out = from_cells(p.query[..., :p.dim], p.plan, batch, shape, p.dtype)
    lse = lse.view(*p.query.shape[:-1], 1)
    return out, from_cells(lse, p.plan, batch, shape, p.acc).squeeze(-1)


def backward(grad_out: Tensor, grad_lse: Tensor,
             *args) -> Tuple[Tensor, ...]:
    """Gradients of query, key, value, key and value summaries.

    Takes the arguments of :class:`Problem` but the last, then lse.
    """
    *args, lse = args
    p = Problem(*args, buffers=2)
    dim = p.dim
    queries = p.tiles(p.query)
    grads = _packed(p, grad_out)
    # A query without any key has lse = -inf: its weights must become 0.
    lse = _packed(p, lse.masked_fill(lse == -torch.inf, torch.inf)[..., None])
    grad_lse = _packed(p, grad_lse[..., None])
    sums = {
        name: (torch.zeros_like(source.value), torch.zeros_like(source.value))
        for name, source in p.sources.items()
    }
    for chunk in p.chunks():
        groups = chunk.groups.stop - chunk.groups.start
        bare = [key[..., :dim] for key in chunk.keys]
        for rows in p.row_blocks():
            place = (chunk.heads, chunk.groups, slice(None), rows)
            query, grad = queries[place].flatten(0, 2), grads[place].flatten(
                0, 2)
            weights = p.logits(query, chunk, rows)
            weights.sub_(lse[place].flatten(0, 2)).exp_()
            slope = p.products('slope', grad, chunk.values, groups)
            keep = p.keep(chunk, rows)
            dropped = weights
            if keep is not None:
                keep = keep.to(p.acc) / (1 - p.dropout_p)
                slope *= keep
                dropped = weights * keep
            _scatter(p, chunk, 1, dropped, grad, sums, groups)
            # softmax: w * (slope - sum(w * slope)), and lse adds w * grad
            slope *= weights
            centre = slope.sum(-1, keepdim=True)
            centre -= grad_lse[place].flatten(0, 2)
            slope.addcmul_(weights, centre, value=-1)
            _scatter(p, chunk, 0, slope, query[..., :dim], sums, groups)
            out = p.buffer('out', *query.shape[:2], dim)
            p.weighted(slope, bare, out, groups)
            shape = queries[place].shape[:-1]
            queries[place][..., :dim] = out.mul_(p.scale).view(*shape, dim)
    return _unpacked(p, sums)


def _packed(p: Problem, x: Tensor) -> Tensor:
    """``[B, *grid, heads, c]`` -> ``[heads, groups, tiles, rows, c]``."""
    out = torch.empty((*p.query.shape[:-1], x.shape[-1]), dtype=p.acc,
                      device=p.device)
    to_cells(x, p.plan, out)
    return p.tiles(out)


def _scatter(p: Problem, chunk: Chunk, which: int, weights: Tensor,
             rows: Tensor, sums: Dict[str, Tuple[Tensor, Tensor]],
             groups: int) -> None:
    """Adds ``weights.T @ rows`` to the gathered keys (0) or values (1)."""
    for part, columns, index in zip(p.lists, p.columns, chunk.indices):
        left = p._batches(part, weights, groups)[..., columns]
        right = p._batches(part, rows, groups)
        grad = p.buffer('grad', left.shape[0], left.shape[2], p.dim)
        torch.bmm(left.transpose(1, 2), right, out=grad)
        total = sums[part.source][which][chunk.heads]
        _add_rows(total, index, grad.view(total.shape[0], index.numel(),
                                          total.shape[2], p.dim))


def _add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """``total[:, index] += rows``, in a fixed order on every device."""
    if total.is_cuda:  # index_add would use atomics there
        total.index_put_((torch.arange(total.shape[0],
                                       device=total.device)[:, None], index),
                         rows, accumulate=True)
    else:
        total.index_add_(1, index, rows)


def _unpacked(p: Problem,
              sums: Dict[str, Tuple[Tensor, Tensor]]) -> Tuple[Tensor, ...]:
    """Gradients in the layout and dtype of the inputs."""
    batch, shape = p.batch, p.hierarchy.shape
    query = from_cells(p.query[..., :p.dim], p.plan, batch, shape, p.dtype)
    key, value = (from_cells(x[:, :-1], p.plan, batch, shape, p.dtype)
                  for x in sums['tokens'])
    key_summaries, value_summaries = (x[:, :-1, 0].transpose(0, 1).reshape(
        batch, -1, p.heads, p.dim).to(p.dtype) for x in sums['summaries'])
    return query, key, value, key_summaries, value_summaries
