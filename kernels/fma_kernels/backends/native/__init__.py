"""FMA fused in C for CPUs: nothing is gathered, packed or materialised.

A tile of queries walks a list of pointers to its keys and values; the list is
made from the geometry (``lists.c``), the arithmetic is in ``tile.h``.
"""
from math import prod
from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

from ...geometry import Hierarchy
from ...options import Inputs, Options
from .call import (Call, Pooling, Rows, Weighing, batch_stride, checked,
                   fill_geometry, log_mass, new_call, pair, run, set_dropout,
                   shares, unit_rows, usable)

__all__ = [
    'forward', 'backward', 'pool', 'pool_backward', 'weigh', 'far_forward',
    'far_backward', 'near_forward', 'near_backward', 'usable'
]

OutLse = Tuple[Tensor, Tensor]


def _float32(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


def _empty(x: Tensor) -> Tensor:
    """Contiguous float32 for a result of the shape of ``x``."""
    return x.new_empty(x.shape, dtype=torch.float32)


def _zeros(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape, dtype=torch.float32)


class _Held:
    """A call, and the tensors that its pointers need alive.

    Attributes:
        tokens, packed: shapes ``[B, *grid, heads, head_dim]`` and ``[B, M,
            heads, head_dim]``.
    """

    def __init__(self, query: Tensor, hierarchy: Hierarchy, options: Options,
                 seed: Optional[Tensor]) -> None:
        self.call = new_call(query, hierarchy, options.scale)
        set_dropout(self.call, options.dropout_p, seed)
        self.dtype, self.tensors = query.dtype, []
        batch, *_, heads, dim = query.shape
        self.tokens = batch, *hierarchy.shape, heads, dim
        self.packed = batch, hierarchy.num_summaries, heads, dim

    def rows(self,
             shape: Sequence[int],
             dtype: Optional[torch.dtype] = None,
             **tensors: Tensor) -> None:
        """Sets inputs ``[..., heads, head_dim]`` by name.

        Args:
            dtype: that of the query by default.
        """
        for name, x in tensors.items():
            x = unit_rows(checked(name, x, shape, dtype or self.dtype))
            self.tensors.append(x)
            setattr(self.call, name, Rows.of(x))

    def floats(self, shape: Sequence[int], **tensors: Tensor) -> None:
        """Sets inputs that C reads as contiguous float32."""
        for name, x in tensors.items():
            self.plain(**{name: _float32(checked(name, x, shape))})

    def plain(self, **tensors: Optional[Tensor]) -> None:
        """Sets contiguous tensors by name; None is a null pointer."""
        for name, x in tensors.items():
            if x is not None:
                assert x.is_contiguous()
                self.tensors.append(x)
                setattr(self.call, name, x.data_ptr())

    def masses(self, hierarchy: Hierarchy, key_mask: Optional[Tensor],
               use_mass: bool) -> None:
        self.mask(key_mask)
        x = log_mass(hierarchy, key_mask, use_mass).contiguous()
        self.plain(log_mass=x)
        self.call.log_mass_stride = batch_stride(x)

    def mask(self, key_mask: Optional[Tensor]) -> None:
        if key_mask is not None:
            checked('key_mask', key_mask, self.tokens[:-2], torch.bool)
            self.plain(mask=key_mask.contiguous())

    def run(self, entry: str) -> None:
        run(entry, self.call)


# --------------------------------------------------------------- attention
def _attention(inputs: Inputs, hierarchy: Hierarchy,
               options: Options) -> _Held:
    held = _Held(inputs.query, hierarchy, options, inputs.seed)
    held.rows(
        held.tokens, query=inputs.query, key=inputs.key, value=inputs.value)
    held.rows(
        held.packed,
        key_summaries=inputs.key_summaries,
        value_summaries=inputs.value_summaries)
    held.masses(hierarchy, inputs.key_mask, options.mass)
    d, heads = hierarchy.ndim, inputs.query.shape[-2]
    if inputs.near_bias is not None:
        if held.call.everything and max(hierarchy.leaf_grid) > 2:
            raise ValueError('near_bias covers neighbouring cells only, got '
                             f'num_levels=0 and {hierarchy.leaf_grid} cells')
        held.call.near_entries = (4 * hierarchy.cell_size - 1)**d
        held.floats((heads, held.call.near_entries),
                    near_bias=inputs.near_bias)
    if inputs.far_bias is not None:
        shape = hierarchy.num_levels, hierarchy.num_parts, 7**d
        held.call.far_entries = prod(shape)
        held.floats((heads, *shape), far_bias=inputs.far_bias)
    return held


def forward(inputs: Inputs, hierarchy: Hierarchy, options: Options) -> OutLse:
    """Output ``[B, *grid, heads, head_dim]`` and lse ``[B, *grid, heads]``."""
    held = _attention(inputs, hierarchy, options)
    out, lse = _empty(inputs.query), _empty(inputs.query[..., 0])
    held.plain(out=out, lse=lse)
    held.run('fma_forward')
    return out.to(inputs.query.dtype), lse


def backward(grad_out: Tensor, grad_lse: Tensor, inputs: Inputs, out: Tensor,
             lse: Tensor, hierarchy: Hierarchy,
             options: Options) -> Tuple[Optional[Tensor], ...]:
    """Gradients of the first five inputs and of the biases, or None."""
    held = _attention(inputs, hierarchy, options)
    held.rows(held.tokens, grad_out=grad_out)
    held.floats(held.tokens, out=out)
    held.floats(held.tokens[:-1], lse=lse, grad_lse=grad_lse)
    named = inputs._asdict()
    grads = {
        name:
        None if named[name] is None else
        (_empty if name == 'query' else _zeros)(named[name])
        for name in ('query', 'key', 'value', 'key_summaries',
                     'value_summaries', 'near_bias', 'far_bias')
    }
    held.plain(**{f'grad_{name}': x for name, x in grads.items()})
    held.run('fma_backward')
    return tuple(None if x is None else x.to(named[name].dtype)
                 for name, x in grads.items())


# ----------------------------------------------------------------- pooling
def _pooling(x: Tensor, key_mask: Optional[Tensor],
             hierarchy: Hierarchy) -> Tuple[Pooling, list]:
    """``x [B, *grid, heads, head_dim]``, whose data may be read or not."""
    call = Pooling()
    fill_geometry(call, x, hierarchy)
    if key_mask is not None:
        checked('key_mask', key_mask, x.shape[:-2], torch.bool)
    share = shares(hierarchy, key_mask).contiguous()
    call.scale, call.scale_stride = share.data_ptr(), batch_stride(share)
    held = [share]
    if key_mask is not None:
        held.append(key_mask.contiguous())
        call.mask = held[-1].data_ptr()
    return call, held


def pool(x: Tensor, key_mask: Optional[Tensor],
         hierarchy: Hierarchy) -> Tensor:
    """Averages over real tokens, packed ``[B, M_total, heads, head_dim]``."""
    x = unit_rows(
        checked('x', x, (x.shape[0], *hierarchy.shape, *x.shape[-2:])))
    call, held = _pooling(x, key_mask, hierarchy)
    packed = torch.empty((x.shape[0], hierarchy.num_summaries, *x.shape[-2:]),
                         dtype=torch.float32)
    call.tokens, call.packed = Rows.of(x), packed.data_ptr()
    run('fma_pool', call)
    return packed.to(x.dtype)


def pool_backward(grad: Tensor,
                  key_mask: Optional[Tensor],
                  hierarchy: Hierarchy,
                  total: Optional[Tensor] = None) -> Tensor:
    """Gradient ``[B, *grid, heads, head_dim]`` of the tokens.

    Args:
        total: added to in place, and returned, where given.
    """
    batch, *_, heads, dim = grad.shape
    checked('grad', grad, (batch, hierarchy.num_summaries, heads, dim))
    shape = batch, *hierarchy.shape, heads, dim
    if total is not None:
        checked('total', total, shape)
    direct = total is not None and (total.dtype == torch.float32
                                    and total.is_contiguous())
    result = total if direct else grad.new_empty(shape, dtype=torch.float32)
    call, held = _pooling(result, key_mask, hierarchy)
    # C carries sums down in place.
    packed = grad.to(torch.float32, copy=True).contiguous()
    call.add = direct
    call.packed, call.grad = packed.data_ptr(), result.data_ptr()
    run('fma_pool_backward', call)
    if total is None:
        return result.to(grad.dtype)
    return total if direct else total.add_(result)


def weigh(x: Tensor, taps: Tensor, hierarchy: Hierarchy, level: int) -> Tensor:
    """Weighted sums over the cells of a level.

    Args:
        x: float32 ``[B, *grid, heads, head_dim]``, 0 where masked.
        taps: float32 ``[parts, width ** d, head_dim]``.
        hierarchy: the cells.
        level: from 1.

    Returns:
        float32 ``[B, *grid_l, parts, heads, head_dim]``.
    """
    cells, width = hierarchy.grids[level - 1], hierarchy.widths[level - 1]
    batch, *grid, heads, dim = x.shape
    taps = _float32(
        checked('taps', taps, (len(taps), width**hierarchy.ndim, dim)))
    x = unit_rows(checked('x', x, x.shape, torch.float32))
    out = x.new_empty(batch, *cells, len(taps), heads, dim)
    run(
        'fma_weigh',
        Weighing(batch, heads, dim, torch.get_num_threads(), len(taps),
                 pair(grid), pair(cells), pair((width, ) * hierarchy.ndim),
                 Rows.of(x), taps.data_ptr(), out.data_ptr()))
    return out


# ---------------------------------------------------------- pooled queries
def _level(held: _Held, hierarchy: Hierarchy, level: int) -> Call:
    call = held.call
    call.level = level
    call.top = level == hierarchy.num_levels
    call.has_parents = not call.top
    call.parent_total = hierarchy.num_summaries
    return call


def _far(query: Tensor, key: Tensor, value: Tensor, key_mask: Optional[Tensor],
         seed: Optional[Tensor], out: Tensor, lse: Tensor,
         hierarchy: Hierarchy, options: Options) -> _Held:
    held = _Held(query, hierarchy, options, seed)
    held.rows(
        held.packed,
        query_summaries=query,
        key_summaries=key,
        value_summaries=value)
    held.masses(hierarchy, key_mask, options.mass)
    # The level above writes where the level below reads.
    for prefix in ('', 'parent_'):
        held.floats(held.packed, **{f'{prefix}out': out})
        held.floats(held.packed[:-1], **{f'{prefix}lse': lse})
    return held


def far_forward(query: Tensor, key: Tensor, value: Tensor,
                key_mask: Optional[Tensor], seed: Optional[Tensor],
                hierarchy: Hierarchy, options: Options) -> OutLse:
    """What each sub-cell sees at its level and above.

    Args:
        query, key, value: packed, ``[B, M, heads, head_dim]``.

    Returns:
        float32 output ``[B, M, heads, head_dim]`` and lse ``[B, M, heads]``.
    """
    out, lse = _empty(query), _empty(query[..., 0])
    held = _far(query, key, value, key_mask, seed, out, lse, hierarchy,
                options)
    for level in range(hierarchy.num_levels, 0, -1):
        _level(held, hierarchy, level)
        held.run('fma_forward')
    return out, lse


def far_backward(grad_out: Tensor, grad_lse: Tensor, query: Tensor,
                 key: Tensor, value: Tensor, key_mask: Optional[Tensor],
                 seed: Optional[Tensor], out: Tensor, lse: Tensor,
                 hierarchy: Hierarchy, options: Options) -> Tuple[Tensor, ...]:
    """Gradients of query, key and value."""
    held = _far(query, key, value, key_mask, seed, out, lse, hierarchy,
                options)
    # A level adds to what arrives at the one above.
    grad_out = grad_out.to(torch.float32, copy=True).contiguous()
    grad_lse = grad_lse.to(torch.float32, copy=True).contiguous()
    grads = [_zeros(x) for x in (query, key, value)]
    held.rows(held.packed, torch.float32, grad_out=grad_out)
    held.floats(held.packed[:-1], grad_lse=grad_lse)
    held.plain(
        grad_query=grads[0],
        grad_key_summaries=grads[1],
        grad_value_summaries=grads[2],
        grad_parent_out=grad_out,
        grad_parent_lse=grad_lse)
    for level in range(1, hierarchy.num_levels + 1):
        _level(held, hierarchy, level)
        held.run('fma_backward')
    return tuple(
        grad.to(x.dtype) for grad, x in zip(grads, (query, key, value)))


def _near(query: Tensor, key: Tensor, value: Tensor, far_out: Tensor,
          far_lse: Tensor, key_mask: Optional[Tensor], seed: Optional[Tensor],
          hierarchy: Hierarchy, options: Options) -> _Held:
    held = _Held(query, hierarchy, options, seed)
    call = held.call
    # Level 1 is no list of keys, but a parent.
    call.levels, call.has_parents = 0, 1
    call.parent_total = hierarchy.level_sizes[0]
    held.rows(held.tokens, query=query, key=key, value=value)
    held.mask(key_mask)
    held.floats(held.packed, parent_out=far_out)
    held.floats(held.packed[:-1], parent_lse=far_lse)
    return held


def near_forward(query: Tensor, key: Tensor, value: Tensor, far_out: Tensor,
                 far_lse: Tensor, key_mask: Optional[Tensor],
                 seed: Optional[Tensor], hierarchy: Hierarchy,
                 options: Options) -> OutLse:
    """One softmax over near tokens and what level 1 knows of the rest."""
    held = _near(query, key, value, far_out, far_lse, key_mask, seed,
                 hierarchy, options)
    out, lse = _empty(query), _empty(query[..., 0])
    held.plain(out=out, lse=lse)
    held.run('fma_forward')
    return out.to(query.dtype), lse


def near_backward(grad_out: Tensor, grad_lse: Tensor, query: Tensor,
                  key: Tensor, value: Tensor, far_out: Tensor, far_lse: Tensor,
                  key_mask: Optional[Tensor], seed: Optional[Tensor],
                  out: Tensor, lse: Tensor, hierarchy: Hierarchy,
                  options: Options) -> Tuple[Tensor, ...]:
    """Gradients of query, key, value, far output and far lse."""
    held = _near(query, key, value, far_out, far_lse, key_mask, seed,
                 hierarchy, options)
    held.rows(held.tokens, grad_out=grad_out)
    held.floats(held.tokens, out=out)
    held.floats(held.tokens[:-1], lse=lse, grad_lse=grad_lse)
    inputs = query, key, value, far_out, far_lse
    grads = [_zeros(x) for x in inputs]
    names = 'query', 'key', 'value', 'parent_out', 'parent_lse'
    held.plain(**{f'grad_{name}': x for name, x in zip(names, grads)})
    held.run('fma_backward')
    return tuple(grad.to(x.dtype) for grad, x in zip(grads, inputs))
