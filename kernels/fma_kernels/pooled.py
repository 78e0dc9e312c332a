"""The core ops of pooled queries: the far field, then the near field.

``far_field`` gives every sub-cell of every level one output and lse; those of
level 1 enter ``near_field`` as summaries of all that is far. Opaque to the
compiler and recomputed in the backward pass, as :mod:`fma_kernels.ops`.
"""
from types import ModuleType
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from . import backends
from .geometry import Hierarchy, hierarchy
from .ops import empty_grads, empty_outputs
from .pooling import accumulation_dtype, packed_mass


def _geometry(grid: List[int], *sizes: int) -> Hierarchy:
    """From the grid, cell_size, num_levels and rank."""
    # int() of a symbolic size fixes it: static shapes are promised.
    return hierarchy(tuple(int(size) for size in grid), *sizes, False)


def _module(backend: str) -> ModuleType:
    """Where a backend has the forward and backward of both ops."""
    return backends.load(backend)


def _zeros_for(grads: Tuple[Optional[Tensor], ...],
               results: Tuple[Tensor, Tensor]) -> Tuple[Tensor, Tensor]:
    """Gradients of (out, lse), zero where none arrives or nothing is seen."""
    grad_out, grad_lse = (torch.zeros_like(x) if grad is None else grad
                          for grad, x in zip(grads, results))
    return grad_out, grad_lse.masked_fill(results[1] == -torch.inf, 0)


# --------------------------------------------------------------- far field
@torch.library.custom_op('fma_kernels::far_field', mutates_args=())
def far_field(query_summaries: Tensor, key_summaries: Tensor,
              value_summaries: Tensor, key_mask: Optional[Tensor],
              seed: Optional[Tensor], grid: List[int], cell_size: int,
              num_levels: int, rank: int, use_mass: bool, scale: float,
              dropout_p: float, backend: str) -> Tuple[Tensor, Tensor]:
    """What each sub-cell sees at its own level and at all above.

    Args:
        query_summaries, key_summaries, value_summaries: packed,
            ``[B, M_total, heads, head_dim]``, of one dtype.
        key_mask: bool ``[B, *grid]``, True = real.
        seed: int64 scalar; required where ``dropout_p > 0``.
        grid: of tokens.
        num_levels: at least 1.
        backend: 'torch' or 'triton'.

    Returns:
        Output ``[B, M_total, heads, head_dim]`` and lse ``[B, M_total,
        heads]`` in float32 (float64 for float64).
    """
    if not query_summaries.shape[0]:
        return _empty_far(query_summaries)
    geometry = _geometry(grid, cell_size, num_levels, rank)
    if backend == 'torch':
        from .options import Options
        return _module(backend).far_forward(query_summaries, key_summaries, value_summaries, key_mask, seed, geometry, Options(backend, use_mass, scale, dropout_p))
    return _module(backend).far_forward(
        query_summaries, key_summaries, value_summaries,
        packed_mass(geometry, key_mask, query_summaries.device), geometry,
        use_mass, scale, dropout_p, seed)


def _empty_far(query: Tensor) -> Tuple[Tensor, Tensor]:
    acc = accumulation_dtype(query.dtype)
    return (query.new_empty(query.shape, dtype=acc),
            query.new_empty(query.shape[:-1], dtype=acc))


@far_field.register_fake
def _(query_summaries, *args):
    return _empty_far(query_summaries)


@torch.library.custom_op('fma_kernels::far_field_backward', mutates_args=())
def far_field_backward(grad_out: Tensor, grad_lse: Tensor,
                       query_summaries: Tensor, key_summaries: Tensor,
                       value_summaries: Tensor, key_mask: Optional[Tensor],
                       seed: Optional[Tensor], out: Tensor, lse: Tensor,
                       grid: List[int], cell_size: int, num_levels: int,
                       rank: int, use_mass: bool, scale: float,
                       dropout_p: float,
                       backend: str) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value summaries."""
    inputs = query_summaries, key_summaries, value_summaries
    if not query_summaries.shape[0]:
        return empty_grads(*inputs)
    geometry = _geometry(grid, cell_size, num_levels, rank)
    if backend == 'torch':
        from .options import Options
        return _module(backend).far_backward(grad_out, grad_lse, *inputs, key_mask, seed, out, lse, geometry, Options(backend, use_mass, scale, dropout_p))
    return _module(backend).far_backward(
        grad_out, grad_lse, *inputs,
        packed_mass(geometry, key_mask, query_summaries.device), geometry,
        use_mass, scale, dropout_p, seed, out, lse)


@far_field_backward.register_fake
def _(grad_out, grad_lse, query_summaries, key_summaries, value_summaries,
      *args):
    return empty_grads(query_summaries, key_summaries, value_summaries)


def _setup_far(ctx, inputs, output) -> None:
    tensors, ctx.options = inputs[:5], inputs[5:]
    ctx.save_for_backward(*tensors, *output)


def _far_slopes(ctx, *grads):
    *tensors, out, lse = ctx.saved_tensors
    found = far_field_backward(*_zeros_for(grads, (out, lse)), *tensors, out,
                               lse, *ctx.options)
    return (*found, *[None] * (2 + len(ctx.options)))


far_field.register_autograd(_far_slopes, setup_context=_setup_far)


# -------------------------------------------------------------- near field
@torch.library.custom_op('fma_kernels::near_field', mutates_args=())
def near_field(query: Tensor, key: Tensor, value: Tensor, far_out: Tensor,
               far_lse: Tensor, key_mask: Optional[Tensor],
               seed: Optional[Tensor], cell_size: int, rank: int, scale: float,
               dropout_p: float, backend: str) -> Tuple[Tensor, Tensor]:
    """One softmax over near tokens and what a token's sub-cell sees afar.

    Args:
        query, key, value: ``[B, *grid, heads, head_dim]``.
        far_out, far_lse: of level 1, ``[B, M_1, heads, head_dim]`` and
            ``[B, M_1, heads]`` in float32 (float64 for float64).
        key_mask: bool ``[B, *grid]``, True = real.
        seed: int64 scalar; required where ``dropout_p > 0``.
        backend: 'torch' or 'triton'.

    Returns:
        Output like ``query``, and lse ``[B, *grid, heads]`` in float32
        (float64 for float64).
    """
    if not query.shape[0]:
        return empty_outputs(query)
    geometry = _geometry(query.shape[1:-2], cell_size, 1, rank)
    if backend == 'torch':
        from .options import Options
        return _module(backend).near_forward(query, key, value, far_out, far_lse, key_mask, seed, geometry, Options(backend, True, scale, dropout_p))
    return _module(backend).near_forward(query, key, value, far_out, far_lse,
                                         key_mask, geometry, scale, dropout_p,
                                         seed)


@near_field.register_fake
def _(query, *args):
    return empty_outputs(query)


@torch.library.custom_op('fma_kernels::near_field_backward', mutates_args=())
def near_field_backward(
        grad_out: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor,
        value: Tensor, far_out: Tensor, far_lse: Tensor,
        key_mask: Optional[Tensor], seed: Optional[Tensor], out: Tensor,
        lse: Tensor, cell_size: int, rank: int, scale: float, dropout_p: float,
        backend: str) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, far output and far lse."""
    inputs = query, key, value, far_out, far_lse
    if not query.shape[0]:
        return empty_grads(*inputs)
    geometry = _geometry(query.shape[1:-2], cell_size, 1, rank)
    if backend == 'torch':
        from .options import Options
        return _module(backend).near_backward(grad_out, grad_lse, *inputs, key_mask, seed, out, lse, geometry, Options(backend, True, scale, dropout_p))
    return _module(backend).near_backward(grad_out, grad_lse, *inputs,
                                          key_mask, geometry, scale, dropout_p,
                                          seed, out, lse)


@near_field_backward.register_fake
def _(grad_out, grad_lse, query, key, value, far_out, far_lse, *args):
    return empty_grads(query, key, value, far_out, far_lse)


def _setup_near(ctx, inputs, output) -> None:
    tensors, ctx.options = inputs[:7], inputs[7:]
    ctx.save_for_backward(*tensors, *output)


def _near_slopes(ctx, *grads):
    *tensors, out, lse = ctx.saved_tensors
    found = near_field_backward(*_zeros_for(grads, (out, lse)), *tensors, out,
                                lse, *ctx.options)
    return (*found, *[None] * (2 + len(ctx.options)))


near_field.register_autograd(_near_slopes, setup_context=_setup_near)
