"""FMA tile by tile in plain PyTorch: any device, bounded memory.

Some images and heads at a time, a *slab*, tokens are copied into cell order
(``packing.py``), so that the keys of a tile are gathered as whole contiguous
cells. A *chunk* of tiles then runs through batched matrix products into
logits of bounded size, one matrix per key list: near tokens and far
summaries. They share one softmax. The backward pass recomputes the weights
from lse, and adds the gradients of gathered keys back row by row, always in
the same order. Relative-position biases are looked up in ``biases.py``.
"""
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ..dropout import keep_mask
from ..geometry import Hierarchy
from ..options import Inputs, Options
from ..pooling import (accumulation_dtype, average_pyramid, pack, packed_mass,
                       spread)
from . import levels
from .biases import BIAS_OF, ListBias, entries
from .packing import (Rows, Workspace, add_rows, from_cells, pack_queries,
                      pack_summaries, pack_tokens, to_cells)
from .tiling import KeyList, tiling

# Elements of a slab's keys and values, and of a chunk's logits and gathered
# keys. Measured on two cores: smaller pays for launches, larger falls out of
# the caches and takes fresh pages from the system at every call.
SLAB_ELEMENTS = 8 << 20
CHUNK_ELEMENTS = 8 << 20


class Chunk(NamedTuple):
    """Some heads and groups, with the keys of their lists.

    Per list, ``indices`` holds the rows gathered and ``keys`` the result,
    ``[heads * tiles (or groups), 1, keys, channels]``.
    """
    heads: slice
    groups: slice
    indices: List[Tensor]
    keys: List[Rows]


class Slab(NamedTuple):
    """A range of images and of heads; ``total_heads`` counts all."""
    images: slice
    heads: slice
    total_heads: int

    def cut(self, x: Optional[Tensor]) -> Optional[Tensor]:
        """The slab's part of ``[B or 1, ..., heads, c]``."""
        return None if x is None else self.cut_images(x)[..., self.heads, :]

    def cut_images(self, x: Optional[Tensor]) -> Optional[Tensor]:
        """The slab's part of ``[B or 1, ...]``."""
        return x if x is None or x.shape[0] == 1 else x[self.images]


def slabs(query: Tensor) -> Iterator[Slab]:
    """Cuts ``[B, *grid, heads, head_dim]`` by heads, then by images."""
    batch, heads, dim = query.shape[0], query.shape[-2], query.shape[-1]
    per_head = query[0, ..., 0, 0].numel() * (2 * dim + 1)
    step = min(max(SLAB_ELEMENTS // per_head, 1), heads)
    images = max(SLAB_ELEMENTS // (per_head * step), 1)
    for b in range(0, batch, images):
        for h in range(0, heads, step):
            yield Slab(
                slice(b, min(b + images, batch)),
                slice(h, min(h + step, heads)), heads)


class Problem:
    """A slab in packed tensors, cut into chunks of bounded memory.

    Args:
        slab: what to take of the tensors that follow.
        query, key, value: ``[B, *grid, heads, head_dim]``.
        key_summaries, value_summaries: ``[B, M_total, heads, head_dim]``.
        mass: int64 ``[B or 1, M_total]``.
        key_mask: bool ``[B, *grid]`` or None.
        seed: int64 scalar tensor, used where ``dropout_p > 0``.
        buffers: logits-sized buffers that the pass holds, for the budget.
        space: scratch memory, in the accumulation dtype; a slab's own until
            the next one is packed.
        biases: where given, ``near_bias [heads, (4m - 1) ** d]`` and
            ``far_bias [heads, levels, parts, 7 ** d]``.
    """

    def __init__(self, slab: Slab, query: Tensor, key: Tensor, value: Tensor,
                 key_summaries: Tensor, value_summaries: Tensor, mass: Tensor,
                 key_mask: Optional[Tensor], hierarchy: Hierarchy,
                 use_mass: bool, scale: float, dropout_p: float,
                 seed: Optional[Tensor], buffers: int, space: Workspace,
                 **biases: Tensor) -> None:
        self.slab, self.hierarchy = slab, hierarchy
        self.plan = tiling(hierarchy)
        query, key, value = (slab.cut(x) for x in (query, key, value))
        self.batch, self.heads, self.dim = (query.shape[0], query.shape[-2],
                                            query.shape[-1])
        self.device = query.device
        self.space, self.acc = space, space.dtype
        self.scale, self.dropout_p, self.seed = scale, dropout_p, seed
        self.buffers = buffers
        self.query = pack_queries(query, self.plan, scale, space)
        self.sources: Dict[str, Rows] = {
            'tokens':
            pack_tokens(key, value, slab.cut_images(key_mask), self.plan,
                        space),
            'summaries':
            pack_summaries(
                slab.cut(key_summaries), slab.cut(value_summaries),
                slab.cut_images(mass), use_mass, space)
        }
        self.lists = self.plan.lists
        self.lengths = [
            part.index.shape[1] * self.sources[part.source].tokens
            for part in self.lists
        ]
        self.indices = [self._batched(part) for part in self.lists]
        self.hidden = [
            None if part.hidden is None else part.hidden.to(self.device)
            for part in self.lists
        ]
        self.biases = {
            source:
            ListBias(
                entries(hierarchy, source), biases[name][slab.heads], space)
            for source, name in BIAS_OF.items()
            if name in biases and any(x.source == source for x in self.lists)
        }
        # What dropout hashes: the same for all chunks.
        self.numbers = self._numbers() if dropout_p else None

    def _batched(self, part: KeyList) -> Tensor:
        """Rows to gather for every tile (or group) of the whole batch."""
        index = part.index.to(self.device)
        rows = self.sources[part.source].count
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

    # ------------------------------------------------------------ chunks
    def _cut(self) -> Tuple[int, int, int]:
        """Heads, groups and rows of a tile that fit the budget at once."""
        plan, total = self.plan, max(sum(self.lengths), 1)
        gathered = 2 * self.dim * (self.buffers + 1) // 2
        per_row = self.buffers * plan.tiles_per_group * total
        per_group = (
            plan.tile_tokens * per_row +
            plan.tiles_per_group * total * gathered)
        groups = self.batch * plan.num_groups
        # What a tile looks up: int64 entries for all heads, and the biases.
        biased = sum(bias.per_row for bias in self.biases.values())
        per_head = per_group * groups + plan.tile_tokens * biased
        budget = CHUNK_ELEMENTS - 2 * plan.tile_tokens * biased
        if per_head <= budget:
            return min(budget // per_head,
                       self.heads), groups, plan.tile_tokens
        # The groups of one head lie together: a chunk of them is no copy.
        rows = CHUNK_ELEMENTS // (per_row + 3 * biased)
        rows = min(max(rows, 1), plan.tile_tokens)
        budget -= plan.tile_tokens * biased
        return 1, max(budget // per_group, 1), rows

    def chunks(self) -> Iterator[Chunk]:
        heads, groups, _ = self._cut()
        tiles = self.plan.tiles_per_group
        for h in range(0, self.heads, heads):
            head = slice(h, min(h + heads, self.heads))
            for g in range(0, self.batch * self.plan.num_groups, groups):
                stop = min(g + groups, self.batch * self.plan.num_groups)
                indices, keys = [], []
                for i, part in enumerate(self.lists):
                    step = 1 if part.per_group else tiles
                    index = self.indices[i][g * step:stop * step]
                    rows = self.sources[part.source].data[head]
                    indices.append(index.reshape(-1))
                    keys.append(self._gather(f'keys{i}', rows, index))
                    if part.source in self.biases:
                        self.biases[part.source].add_to_keys(
                            keys[i], head, slice(g, stop))
                yield Chunk(head, slice(g, stop), indices, keys)

    def _gather(self, name: str, rows: Tensor, index: Tensor) -> Rows:
        """``[heads, rows, t, c]`` -> ``[heads * n, 1, length * t, c]``."""
        heads, _, tokens, channels = rows.shape
        count, length = index.shape
        out = self.space.take(name, heads, count * length, tokens, channels)
        torch.index_select(rows, 1, index.reshape(-1), out=out)
        return Rows(out.view(heads * count, 1, length * tokens, channels))

    def row_blocks(self) -> Iterator[slice]:
        """Queries of a tile, all at once where they fit."""
        rows, total = self._cut()[2], self.plan.tile_tokens
        for start in range(0, total, rows):
            yield slice(start, min(start + rows, total))

    # -------------------------------------------------------- the products
    def _batches(self, part: KeyList, x: Tensor) -> Tensor:
        """Rows of tiles, or of whole groups: ``[batches, rows, columns]``.

        ``x``: ``[heads * groups * tiles, rows, columns]``.
        """
        if not part.per_group:
            return x
        rows = self.plan.tiles_per_group * x.shape[1]
        return x.reshape(-1, rows, x.shape[2])

    def products(self, name: str, left: Tensor,
                 right: List[Tensor]) -> List[Tensor]:
        """``left @ right.T`` for every list.

        Each is a contiguous buffer of its own: a batched product into
        columns of a wider one would fall back to a loop over the batch.

        Args:
            left: ``[batches, rows, channels]``, a batch for every tile.
            right: per list ``[batches, 1, keys, channels]``.

        Returns:
            Per list ``[batches, rows, keys]``, scratch memory.
        """
        found = []
        for i, (part, x) in enumerate(zip(self.lists, right)):
            out = self.space.take(f'{name}{i}', *left.shape[:2], x.shape[2])
            torch.bmm(
                self._batches(part, left),
                x[:, 0].transpose(1, 2),
                out=self._batches(part, out))
            found.append(out)
        return found

    def logits(self, query: Tensor, chunk: Chunk, rows: slice) -> List[Tensor]:
        """Logits of some rows of a chunk's tiles; -inf where hidden."""
        found = self.products('logits', query,
                              [keys.biased_key for keys in chunk.keys])
        for part, hidden, out in zip(self.lists, self.hidden, found):
            if part.source in self.biases:
                self.biases[part.source].add_to_logits(out, chunk.heads, rows)
            if hidden is not None:
                # [queries, keys] -> the rows at hand, as in ``out``
                mask = hidden.view(-1, self.plan.tile_tokens,
                                   hidden.shape[1])[:, rows]
                seen = out.view(-1, mask.shape[0], *out.shape[1:])
                seen[..., :mask.shape[2]].masked_fill_(mask, -torch.inf)
            if part.diagonal is not None:
                row = torch.arange(rows.start, rows.stop, device=self.device)
                place = torch.arange(out.shape[-1], device=self.device)
                out.masked_fill_(place + part.diagonal > row[:, None],
                                 -torch.inf)
        return found

    def weighted(self, weights: List[Tensor], keys: List[Tensor],
                 out: Tensor) -> Tensor:
        """``out = weights @ keys`` summed over the lists.

        ``weights`` per list ``[batches, rows, keys]``, ``keys`` per list
        ``[batches, 1, keys, c]``, ``out [batches, rows, c]``.
        """
        for i, (part, left, x) in enumerate(zip(self.lists, weights, keys)):
            target = self._batches(part, out)
            if i == 0:
                torch.bmm(self._batches(part, left), x[:, 0], out=target)
            else:
                target.baddbmm_(self._batches(part, left), x[:, 0])
        return out

    # ------------------------------------------------------------ dropout
    def keep(self, chunk: Chunk, rows: slice) -> Optional[List[Tensor]]:
        """Factors of the weights: 0 where dropped, 1 / (1 - p) elsewhere.

        Returns:
            Per list ``[batches, rows, keys]``; None without dropout.
        """
        if not self.dropout_p:
            return None
        query, columns = self.numbers
        plan, count = self.plan, self.hierarchy.num_tokens
        group = torch.arange(
            chunk.groups.start, chunk.groups.stop, device=self.device)
        image, place = group // plan.num_groups, group % plan.num_groups
        head = torch.arange(
            chunk.heads.start, chunk.heads.stop, device=self.device)
        # [heads, groups, tiles, rows]
        image += self.slab.images.start
        head += self.slab.heads.start
        row = ((image * self.slab.total_heads + head[:, None]) *
               count)[..., None, None] + query[place][..., rows]
        factors = []
        for column in columns:  # [groups, 1 or tiles, keys]
            keep = keep_mask(self.seed, self.dropout_p, row[..., None],
                             column[place][..., None, :])
            factors.append(
                keep.flatten(0, 2).to(self.acc) / (1 - self.dropout_p))
        return factors

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
                            dtype=torch.int64,
                            device=self.device)
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
                plan.num_groups, -1,
                part.index.shape[1] * numbers[part.source].shape[1]))
        return query, columns


def _problem(inputs: Inputs, hierarchy: Hierarchy,
             options: Options) -> Tuple[tuple, Dict[str, Tensor]]:
    """The arguments of :class:`Problem`, from query to seed, and biases."""
    mask = inputs.key_mask
    mass = packed_mass(hierarchy, mask, inputs.query.device)
    biases = dict(near_bias=inputs.near_bias, far_bias=inputs.far_bias)
    biases = {name: x for name, x in biases.items() if x is not None}
    return (*inputs[:5], mass, mask, hierarchy, options.mass, options.scale,
            options.dropout_p, inputs.seed), biases


def forward(inputs: Inputs, hierarchy: Hierarchy,
            options: Options) -> Tuple[Tensor, Tensor]:
    """Output ``[B, *grid, heads, head_dim]`` and lse ``[B, *grid, heads]``."""
    args, biases = _problem(inputs, hierarchy, options)
    return _forward_slabs(*args, **biases)


def backward(grad_out: Tensor, grad_lse: Tensor, inputs: Inputs, out: Tensor,
             lse: Tensor, hierarchy: Hierarchy,
             options: Options) -> Tuple[Optional[Tensor], ...]:
    """Gradients of query, key, value, summaries of both, and the biases."""
    args, biases = _problem(inputs, hierarchy, options)
    grads = _backward_slabs(grad_out, grad_lse, *args, out, lse, **biases)
    found = dict(zip(biases, grads[5:]))
    return *grads[:5], found.get('near_bias'), found.get('far_bias')


def _far(query: Tensor, key: Tensor, value: Tensor, key_mask: Optional[Tensor],
         seed: Optional[Tensor], hierarchy: Hierarchy,
         options: Options) -> tuple:
    """The arguments of :class:`levels.FarField`."""
    mass = packed_mass(hierarchy, key_mask, query.device)
    return (query, key, value, mass, hierarchy, options.mass, options.scale,
            options.dropout_p, seed)


def far_forward(*args) -> Tuple[Tensor, Tensor]:
    return levels.far_forward(*_far(*args))


def far_backward(grad_out: Tensor, grad_lse: Tensor,
                 *args) -> Tuple[Tensor, ...]:
    *tensors, out, lse, hierarchy, options = args
    return levels.far_backward(grad_out, grad_lse,
                               *_far(*tensors, hierarchy, options), out, lse)


def near_forward(*args) -> Tuple[Tensor, Tensor]:
    *tensors, seed, hierarchy, options = args
    return levels.near_forward(*tensors, hierarchy, options.scale,
                               options.dropout_p, seed)


def near_backward(grad_out: Tensor, grad_lse: Tensor,
                  *args) -> Tuple[Tensor, ...]:
    *tensors, seed, out, lse, hierarchy, options = args
    return levels.near_backward(grad_out, grad_lse, *tensors, hierarchy,
                                options.scale, options.dropout_p, seed, out,
                                lse)


def _forward_slabs(query: Tensor, *args, **biases) -> Tuple[Tensor, Tensor]:
    """Output ``[B, *grid, heads, head_dim]`` and lse ``[B, *grid, heads]``.

    Takes the arguments of :class:`Problem` from its second to ``seed``, and
    the biases by name.
    """
    space = Workspace(accumulation_dtype(query.dtype), query.device)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty((*query.shape[:-1], 1),
                      dtype=space.dtype,
                      device=query.device)
    for slab in slabs(query):
        _forward(
            Problem(slab, query, *args, **biases, buffers=1, space=space),
            slab.cut(out), slab.cut(lse))
    return out, lse.squeeze(-1)


def _forward(p: Problem, out: Tensor, lse: Tensor) -> None:
    """Fills the slab's ``[B, *grid, heads, head_dim]`` and ``[..., 1]``."""
    queries = p.tiles(p.query)
    row_lse = p.space.take('lse', *queries.shape[:-1], 1)
    for chunk in p.chunks():
        for rows in p.row_blocks():
            place = (chunk.heads, chunk.groups, slice(None), rows)
            query = queries[place].flatten(0, 2)
            weights = p.logits(query, chunk, rows)
            pivot = _row_max(weights)
            total = torch.zeros_like(pivot)
            for weight in weights:
                total += weight.sub_(pivot).exp_().sum(-1, keepdim=True)
            for weight, keep in zip(weights, p.keep(chunk, rows) or ()):
                weight *= keep
            found = p.space.take('out', *query.shape[:2], p.dim)
            p.weighted(weights, [keys.value for keys in chunk.keys], found)
            # The output takes the place of the queries, row by row.
            shape = queries[place].shape[:-1]
            torch.div(
                found.view(*shape, p.dim),
                total.masked_fill(total == 0, 1).view(*shape, 1),
                out=queries[place][..., :p.dim])
            row_lse[place] = (total.log_() + pivot).view(*shape, 1)
    from_cells(p.query[..., :p.dim], p.plan, out)
    from_cells(row_lse.view(*p.query.shape[:-1], 1), p.plan, lse)


def _row_max(logits: List[Tensor]) -> Tensor:
    """Largest logit of each row, finite: no key must not become NaN."""
    pivot = logits[0].amax(-1, keepdim=True)
    for more in logits[1:]:
        pivot = torch.maximum(pivot, more.amax(-1, keepdim=True))
    return pivot.clamp_(min=torch.finfo(pivot.dtype).min)


def _backward_slabs(grad_out: Tensor, grad_lse: Tensor, query: Tensor,
                    key: Tensor, value: Tensor, key_summaries: Tensor,
                    value_summaries: Tensor, *args,
                    **biases) -> Tuple[Tensor, ...]:
    """Gradients of query, key, value, key and value summaries, then biases.

    Takes two gradients, the arguments of :class:`Problem` from its second to
    ``seed``, and output and lse; and the biases by name, as far as there are
    any.
    """
    *args, out, lse = args
    inputs = (query, key, value, key_summaries, value_summaries)
    grads = tuple(
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    space = Workspace(accumulation_dtype(query.dtype), query.device)
    # A table's gradient is summed over all slabs before it is rounded.
    totals = {
        name: torch.zeros(x.shape, dtype=space.dtype, device=x.device)
        for name, x in biases.items()
    }
    for slab in slabs(query):
        problem = Problem(
            slab, *inputs, *args, **biases, buffers=2, space=space)
        # Softmax: w * (slope - sum(w * slope)), the sum is grad_out . out;
        # lse adds w * grad_lse.
        delta = slab.cut(grad_out).to(problem.acc) * slab.cut(out)
        delta = delta.sum(-1, keepdim=True) - slab.cut(grad_lse[..., None])
        _backward(problem, slab.cut(grad_out), delta, slab.cut(lse[..., None]),
                  [slab.cut(x) for x in grads])
        for source, bias in problem.biases.items():
            total = totals[BIAS_OF[source]][slab.heads]
            total += bias.slopes.view(total.shape)
    return (*grads, *(totals[name].to(x.dtype) for name, x in biases.items()))


def pool(x: Tensor, key_mask: Optional[Tensor],
         hierarchy: Hierarchy) -> Tensor:
    """Averages over real tokens, packed ``[B, M, heads, D]``."""
    return pack(average_pyramid(x, hierarchy, key_mask), hierarchy.ndim)


def pool_backward(grad: Tensor,
                  key_mask: Optional[Tensor],
                  hierarchy: Hierarchy,
                  total: Optional[Tensor] = None) -> Tensor:
    """Gradient of the tokens of :func:`pool`, or added to ``total``."""
    mass = packed_mass(hierarchy, key_mask, grad.device)
    found = spread(grad, hierarchy, key_mask, mass)
    return found if total is None else total.add_(found)


def _backward(p: Problem, grad_out: Tensor, delta: Tensor, lse: Tensor,
              results: List[Tensor]) -> None:
    """Fills the slab's part of the five gradients, and adds to its biases'.
    """
    dim = p.dim
    queries = p.tiles(p.query)
    grads = _packed(p, 'grads', grad_out)
    # A query without any key has lse = -inf: its weights must become 0.
    lse = _packed(p, 'lse', lse.masked_fill(lse == -torch.inf, torch.inf))
    delta = _packed(p, 'delta', delta)
    sums = {
        name:
        tuple(
            p.space.take(f'{name} {part}', *source.key.shape).zero_()
            for part in ('keys', 'values'))
        for name, source in p.sources.items()
    }
    for chunk in p.chunks():
        keys = [rows.key for rows in chunk.keys]
        values = [rows.value for rows in chunk.keys]
        for rows in p.row_blocks():
            place = (chunk.heads, chunk.groups, slice(None), rows)
            query = queries[place].flatten(0, 2)
            grad = grads[place].flatten(0, 2)
            row_lse = lse[place].flatten(0, 2)
            weights = p.logits(query, chunk, rows)
            slopes = p.products('slopes', grad, values)
            row_delta = delta[place].flatten(0, 2)
            keeps = p.keep(chunk, rows) or [None] * len(weights)
            for i, (weight, slope,
                    keep) in enumerate(zip(weights, slopes, keeps)):
                weight.sub_(row_lse).exp_()
                dropped = weight
                if keep is not None:
                    slope *= keep
                    dropped = weight * keep
                _add_keys(p, chunk, i, 1, dropped, grad, sums)
                slope.sub_(row_delta).mul_(weight)
                bias = p.biases.get(p.lists[i].source)
                if bias is not None:
                    bias.add_slopes(slope, chunk.heads, chunk.groups, rows)
                _add_keys(p, chunk, i, 0, slope, query[..., :dim], sums)
            out = p.space.take('out', *query.shape[:2], dim)
            p.weighted(slopes, keys, out)
            shape = queries[place].shape[:-1]
            queries[place][..., :dim] = out.mul_(p.scale).view(*shape, dim)
    query, key, value, key_summaries, value_summaries = results
    from_cells(p.query[..., :dim], p.plan, query)
    for out, total in zip((key, value), sums['tokens']):
        from_cells(total[:, :-1], p.plan, out)
    for out, total in zip((key_summaries, value_summaries), sums['summaries']):
        # [heads, B * M, 1, c] -> [B, M, heads, c]
        total = total[:, :-1,
                      0].unflatten(1,
                                   (p.batch,
                                    -1)) if out.numel() else total[:, :0].view(
                                        p.heads, p.batch, 0, dim)
        out.copy_(total.permute(1, 2, 0, 3))


def _packed(p: Problem, name: str, x: Tensor) -> Tensor:
    """``[B, *grid, heads, c]`` -> ``[heads, groups, tiles, rows, c]``."""
    out = p.space.take(name, *p.query.shape[:-1], x.shape[-1])
    to_cells(x, p.plan, out)
    return p.tiles(out)


def _add_keys(p: Problem, chunk: Chunk, i: int, which: int, weights: Tensor,
              rows: Tensor, sums: Dict[str, Tuple[Tensor, Tensor]]) -> None:
    """Adds ``weights.T @ rows`` to the keys (0) or values (1) of list i."""
    part, index = p.lists[i], chunk.indices[i]
    left, right = p._batches(part, weights), p._batches(part, rows)
    grad = p.space.take('grad', left.shape[0], left.shape[2], p.dim)
    torch.bmm(left.transpose(1, 2), right, out=grad)
    total = sums[part.source][which][chunk.heads]
    add_rows(total, index,
             grad.view(total.shape[0], index.numel(), total.shape[2], p.dim))
