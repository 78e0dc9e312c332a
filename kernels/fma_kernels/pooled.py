"""The core ops of pooled queries: the far field, then the near field.

``far_field`` gives every sub-cell of every level one output and lse; those of
level 1 enter ``near_field`` as summaries of all that is far. Opaque to the
compiler and recomputed in the backward pass, as :mod:`fma_kernels.ops`.
"""
from dataclasses import replace
from typing import List, Optional, Sequence, Tuple

from torch import Tensor, inf

from . import backends
from .autograd import CoreOp, differentiable
from .geometry import Hierarchy
from .ops import (empty_grads, empty_outputs, geometry_of, lengthened, seen,
                  shortened)
from .options import Inputs, Options
from .pooling import accumulation_dtype


def attend_pooled(inputs: Inputs, query_summaries: Tensor,
                  hierarchy: Hierarchy,
                  options: Options) -> Tuple[Tensor, Tensor]:
    """One softmax, where sub-cells ask what is far; differentiable.

    Args:
        inputs: with summaries, without biases.
        query_summaries: packed ``[B, M_total, heads, head_dim]``.
        hierarchy: of the summaries; of at least one level.

    Returns:
        Output like ``query``, and lse ``[B, *grid, heads]`` in float32
        (float64 for float64).
    """
    h, shared = hierarchy, (inputs.key_mask, inputs.seed)
    sizes = h.cell_size, h.num_levels, h.rank
    scalars = options.scale, options.dropout_p, options.backend
    far = far_field(query_summaries, *inputs[3:5], *shared, list(h.shape),
                    *sizes, options.mass, *scalars)
    return near_field(*inputs[:3], *far, *shared, h.cell_size, h.rank,
                      *scalars)


# --------------------------------------------------------------- far field
_FAR = ('Tensor query_summaries, Tensor key_summaries, '
        'Tensor value_summaries, Tensor? key_mask, Tensor? seed, '
        'SymInt[] grid, SymInt cell_size, SymInt num_levels, SymInt rank, '
        'bool mass, float scale, float dropout_p, str backend')


def _far_call(scalars: Sequence) -> Tuple[Hierarchy, int, Options]:
    """Trimmed, to one level at least; the number of summaries left out.

    Args:
        scalars: what an op is given behind its tensors.
    """
    *sizes, mass, scale, dropout_p, backend = scalars
    asked = geometry_of(*sizes, False)
    h = asked.trimmed()
    h = h if h.num_levels else replace(h, num_levels=1)
    idle = asked.num_summaries - h.num_summaries
    return h, idle, Options(backend, mass, scale, dropout_p)


def _far_forward(query_summaries: Tensor, key_summaries: Tensor,
                 value_summaries: Tensor, key_mask: Optional[Tensor],
                 seed: Optional[Tensor], *scalars) -> Tuple[Tensor, Tensor]:
    """What each sub-cell sees at its own level and at all above.

    Args:
        query_summaries, key_summaries, value_summaries: packed,
            ``[B, M_total, heads, head_dim]``, of one dtype.
        key_mask: bool ``[B, *grid]``, True = real.
        seed: int64 scalar; required where ``dropout_p > 0``.
        scalars: grid of tokens, cell_size, num_levels (at least 1), rank,
            mass, scale, dropout_p, backend.

    Returns:
        Output ``[B, M_total, heads, head_dim]`` and lse ``[B, M_total,
        heads]`` in float32 (float64 for float64).
    """
    if not query_summaries.shape[0]:
        return _empty_far(query_summaries)
    geometry, idle, options = _far_call(scalars)
    packed = (
        shortened(x, idle)
        for x in (query_summaries, key_summaries, value_summaries))
    out, lse = backends.load(options.backend).far_forward(
        *packed, key_mask, seed, geometry, options)
    size = query_summaries.shape[1]
    return lengthened(out, size), lengthened(lse, size, -inf)


def _empty_far(query: Tensor, *_) -> Tuple[Tensor, Tensor]:
    acc = accumulation_dtype(query.dtype)
    return (query.new_empty(query.shape, dtype=acc),
            query.new_empty(query.shape[:-1], dtype=acc))


def _far_backward(grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor,
                  *args) -> List[Tensor]:
    """Gradients of query, key and value summaries."""
    tensors = args[:5]
    if not out.shape[0]:
        return empty_grads(*tensors)
    geometry, idle, options = _far_call(args[5:])
    backend, grad_lse = backends.load(options.backend), seen(grad_lse, lse)
    grad_out, grad_lse, *packed, out, lse = (
        shortened(x, idle)
        for x in (grad_out, grad_lse, *tensors[:3], out, lse))
    grads = backend.far_backward(grad_out, grad_lse, *packed, *tensors[3:],
                                 out, lse, geometry, options)
    return [lengthened(x, tensors[0].shape[1]) for x in grads]


far_field = differentiable(
    CoreOp('far_field', f'({_FAR}) -> (Tensor, Tensor)', _far_forward,
           _empty_far),
    CoreOp(
        'far_field_backward', '(Tensor grad_out, Tensor grad_lse, Tensor out, '
        f'Tensor lse, {_FAR}) -> Tensor[]', _far_backward,
        lambda *args: empty_grads(*args[4:9])))

# -------------------------------------------------------------- near field
_NEAR = ('Tensor query, Tensor key, Tensor value, Tensor far_out, '
         'Tensor far_lse, Tensor? key_mask, Tensor? seed, SymInt cell_size, '
         'SymInt rank, float scale, float dropout_p, str backend')


def _near_call(query: Tensor, cell_size: int, rank: int, scale: float,
               dropout_p: float, backend: str) -> Tuple[Hierarchy, Options]:
    h = geometry_of(query.shape[1:-2], cell_size, 1, rank, False)
    return h, Options(backend, scale=scale, dropout_p=dropout_p)


def _near_forward(query: Tensor, key: Tensor, value: Tensor, far_out: Tensor,
                  far_lse: Tensor, key_mask: Optional[Tensor],
                  seed: Optional[Tensor], *scalars) -> Tuple[Tensor, Tensor]:
    """One softmax over near tokens and what a token's sub-cell sees afar.

    Args:
        query, key, value: ``[B, *grid, heads, head_dim]``.
        far_out, far_lse: ``[B, M, heads, head_dim]`` and ``[B, M, heads]``
            in float32 (float64 for float64). Level 1 is read; a compiler
            that knows its length would make guards on the grid.
        key_mask: bool ``[B, *grid]``, True = real.
        seed: int64 scalar; required where ``dropout_p > 0``.
        scalars: cell_size, rank, scale, dropout_p, backend.

    Returns:
        Output like ``query``, and lse ``[B, *grid, heads]`` in float32
        (float64 for float64).
    """
    if not query.shape[0]:
        return empty_outputs(query)
    geometry, options = _near_call(query, *scalars)
    backend = backends.load(options.backend)
    far = (x[:, :geometry.num_summaries] for x in (far_out, far_lse))
    return backend.near_forward(query, key, value, *far, key_mask, seed,
                                geometry, options)


def _near_backward(grad_out: Tensor, grad_lse: Tensor, out: Tensor,
                   lse: Tensor, *args) -> List[Tensor]:
    """Gradients of query, key, value, far output and far lse."""
    tensors = args[:7]
    if not out.shape[0]:
        return empty_grads(*tensors)
    geometry, options = _near_call(out, *args[7:])
    backend, grad_lse = backends.load(options.backend), seen(grad_lse, lse)
    far = (x[:, :geometry.num_summaries] for x in tensors[3:5])
    grads = backend.near_backward(grad_out, grad_lse, *tensors[:3], *far,
                                  *tensors[5:], out, lse, geometry, options)
    return [lengthened(grad, x.shape[1]) for grad, x in zip(grads, tensors)]


near_field = differentiable(
    CoreOp('near_field', f'({_NEAR}) -> (Tensor, Tensor)', _near_forward,
           lambda query, *_: empty_outputs(query)),
    CoreOp(
        'near_field_backward',
        '(Tensor grad_out, Tensor grad_lse, Tensor out, '
        f'Tensor lse, {_NEAR}) -> Tensor[]', _near_backward,
        lambda *args: empty_grads(*args[4:11])))
