"""The core ops: packed tensors and plain numbers, opaque to the compiler.

``torch.compile`` and ``torch.export`` see one node with a known output
shape; autograd sees one function whose backward recomputes. Lists, a
:class:`Hierarchy` and :class:`Options` are not legal op arguments, hence the
flat schemas, here and in :mod:`fma_kernels.pooled` alone.
"""
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from . import backends
from .autograd import CoreOp, differentiable
from .geometry import Hierarchy, hierarchy
from .options import Inputs, Options
from .pooling import accumulation_dtype, packed_size


def geometry_of(grid: Sequence[int], cell_size: int, num_levels: int,
                rank: int, causal: bool) -> Hierarchy:
    """From the plain numbers of a schema."""
    # int() would fix a symbolic size: for implementations, not for fakes.
    return hierarchy(
        tuple(int(size) for size in grid), int(cell_size), int(num_levels),
        int(rank), causal)


def empty_outputs(query: Tensor) -> Tuple[Tensor, Tensor]:
    """Shapes, dtypes and strides of output and lse."""
    lse = query.new_empty(
        query.shape[:-1], dtype=accumulation_dtype(query.dtype))
    return query.new_empty(query.shape), lse


def empty_grads(*inputs) -> List[Tensor]:
    """The same of gradients: contiguous, whatever the inputs."""
    return [
        x.new_empty(x.shape) for x in inputs
        if x is not None and x.is_floating_point()
    ]


# Where sizes are symbolic, a call is traced with levels that a small grid does
# not need: implementations leave them out when they know the size.
def shortened(x: Optional[Tensor], idle: int) -> Optional[Tensor]:
    """``[., levels or summaries, ...]`` without those of idle levels."""
    return x if x is None or not idle else x[:, :x.shape[1] - idle]


def lengthened(x: Tensor, size: int, value: float = 0.0) -> Tensor:
    """The inverse; contiguous, as the fake kernels promise."""
    if x.shape[1] == size:
        return x.contiguous()
    full = x.new_full((x.shape[0], size, *x.shape[2:]), value)
    full[:, :x.shape[1]] = x
    return full


def seen(grad_lse: Tensor, lse: Tensor) -> Tensor:
    """Slopes of a log-sum-exp, 0 where it is one of nothing.

    A query without any key has no gradient, whatever arrives: that slope is
    NaN in many a caller's graph.
    """
    return grad_lse.masked_fill(lse == -torch.inf, 0)


# --------------------------------------------------------------- attention
_ATTENTION = ('Tensor query, Tensor key, Tensor value, Tensor? key_summaries, '
              'Tensor? value_summaries, Tensor? key_mask, Tensor? seed, '
              'Tensor? near_bias, Tensor? far_bias, SymInt cell_size, '
              'SymInt num_levels, SymInt rank, bool causal, bool mass, '
              'float scale, float dropout_p, str backend')
_TENSORS = len(Inputs._fields)


def attend(inputs: Inputs, hierarchy: Hierarchy,
           options: Options) -> Tuple[Tensor, Tensor]:
    """One softmax over near tokens and far summaries, differentiable.

    Args:
        inputs: summaries may be None: the average over real tokens.
        hierarchy: of the summaries and the far bias. Levels that the grid
            does not need get a gradient of zero.

    Returns:
        Output like ``query``, and lse ``[B, *grid, heads]`` in float32
        (float64 for float64).
    """
    h = hierarchy
    return attention(*inputs, h.cell_size, h.num_levels, h.rank, h.causal,
                     options.mass, options.scale, options.dropout_p,
                     options.backend)


def _call(args: tuple) -> Tuple[Inputs, Hierarchy, Options]:
    """The arguments of the flat schema, put together again and trimmed."""
    inputs, sizes = Inputs(*args[:_TENSORS]), args[_TENSORS:-4]
    mass, scale, dropout_p, backend = args[-4:]
    asked = geometry_of(inputs.query.shape[1:-2], *sizes)
    h = asked.trimmed()
    idle = asked.num_summaries - h.num_summaries
    inputs = inputs._replace(
        key_summaries=shortened(inputs.key_summaries, idle),
        value_summaries=shortened(inputs.value_summaries, idle),
        far_bias=shortened(inputs.far_bias, asked.num_levels - h.num_levels))
    return inputs, h, Options(backend, mass, scale, dropout_p)


def _summarized(inputs: Inputs, hierarchy: Hierarchy,
                options: Options) -> Inputs:
    """With averages where no summaries are given."""
    backend = backends.load(options.backend)

    def summaries(given: Tensor, x: Tensor) -> Tensor:
        if given is not None:
            return given
        if not hierarchy.num_levels:
            return x.new_empty((x.shape[0], 0, *x.shape[-2:]))
        return backend.pool(x, inputs.key_mask, hierarchy)

    return inputs._replace(
        key_summaries=summaries(inputs.key_summaries, inputs.key),
        value_summaries=summaries(inputs.value_summaries, inputs.value))


def _forward(*args) -> Tuple[Tensor, Tensor]:
    """:func:`attend` by its flat schema."""
    inputs, hierarchy, options = _call(args)
    if not inputs.query.shape[0]:  # nothing to tile
        return empty_outputs(inputs.query)
    return backends.load(options.backend).forward(
        _summarized(inputs, hierarchy, options), hierarchy, options)


def _backward(grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor,
              *args) -> List[Tensor]:
    """Gradients of the floating tensors that are given, in their order."""
    inputs, hierarchy, options = _call(args)
    if not inputs.query.shape[0]:
        # Of a table, a sum over nothing.
        return [x.zero_() for x in empty_grads(*args[:_TENSORS])]
    backend = backends.load(options.backend)
    # Averages are pooled again: nothing of them was saved.
    grads = list(
        backend.backward(grad_out, seen(grad_lse, lse),
                         _summarized(inputs, hierarchy, options), out, lse,
                         hierarchy, options))
    for tokens, name in ((1, 'key_summaries'), (2, 'value_summaries')):
        if getattr(inputs, name) is None:
            average, grads[tokens + 2] = grads[tokens + 2], None
            if hierarchy.num_levels:
                grads[tokens] = backend.pool_backward(
                    average, inputs.key_mask, hierarchy, total=grads[tokens])
    given = Inputs(*args[:_TENSORS])
    given = *given[:5], given.near_bias, given.far_bias
    return [
        lengthened(grad, x.shape[1]) for grad, x in zip(grads, given)
        if grad is not None
    ]


attention = differentiable(
    CoreOp('attention', f'({_ATTENTION}) -> (Tensor, Tensor)', _forward,
           lambda query, *_: empty_outputs(query)),
    CoreOp(
        'attention_backward', '(Tensor grad_out, Tensor grad_lse, Tensor out, '
        f'Tensor lse, {_ATTENTION}) -> Tensor[]', _backward,
        lambda *args: empty_grads(*args[4:4 + _TENSORS])))

# ----------------------------------------------------------------- pooling
_POOL = ('Tensor? key_mask, {}SymInt cell_size, SymInt num_levels, '
         'SymInt rank, str backend')


def _pool(x: Tensor, key_mask, cell_size: int, num_levels: int, rank: int,
          backend: str) -> Tensor:
    """Averages over the real tokens of all levels' sub-cells.

    Args:
        x: ``[B, *grid, heads, head_dim]``.
        key_mask: bool ``[B, *grid]``, True = real.
        num_levels: at least 1.
        backend: a module of ``fma_kernels.backends``.

    Returns:
        Packed ``[B, M_total, heads, head_dim]``; 0 where nothing is real.
    """
    geometry = geometry_of(x.shape[1:-2], cell_size, num_levels, rank, False)
    if not x.shape[0]:
        return x.new_empty((0, geometry.num_summaries, *x.shape[-2:]))
    return backends.load(backend).pool(x, key_mask, geometry)


def _empty_pool(x: Tensor, key_mask, *args) -> Tensor:
    total = packed_size(x.shape[1:-2], *args[:3])
    return x.new_empty((x.shape[0], total, *x.shape[-2:]))


def _pool_backward(grad: Tensor, key_mask, shape: List[int], *args) -> list:
    """Gradient of the tokens, ``shape = [B, *grid, heads, head_dim]``."""
    if not shape[0]:
        return [grad.new_empty(shape)]
    geometry = geometry_of(shape[1:-2], *args[:3], False)
    found = backends.load(args[3]).pool_backward(grad, key_mask, geometry)
    return [found.contiguous()]


pool = differentiable(
    CoreOp('pool', f'(Tensor x, {_POOL.format("")}) -> Tensor', _pool,
           _empty_pool),
    CoreOp('pool_backward',
           f'(Tensor grad, {_POOL.format("SymInt[] shape, ")}) -> Tensor[]',
           _pool_backward,
           lambda grad, key_mask, shape, *_: [grad.new_empty(shape)]),
    # Neither the tokens nor the averages: their shape is enough.
    saved=lambda inputs, _: (inputs[1], list(inputs[0].shape), *inputs[2:]))
