"""The core op: packed tensors and plain integers, opaque to the compiler.

``torch.compile`` and ``torch.export`` see one node with a known output
shape; autograd sees one function whose backward recomputes. Lists and a
:class:`Hierarchy` are not legal op arguments, hence the packed form.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor

from .backends import BACKENDS
from .geometry import Hierarchy, hierarchy
from .pooling import accumulation_dtype


def _hierarchy(query: Tensor, cell_size: int, num_levels: int, rank: int,
               causal: bool) -> Hierarchy:
    shape = tuple(query.shape[1:-2])
    return hierarchy(shape, cell_size, num_levels, rank, causal)


def _empty_outputs(query: Tensor) -> Tuple[Tensor, Tensor]:
    lse = query.new_empty(
        query.shape[:-1], dtype=accumulation_dtype(query.dtype))
    return query.new_empty(query.shape), lse


def _empty_grads(*inputs: Tensor) -> Tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs)


@torch.library.custom_op('fma_kernels::attention', mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, key_summaries: Tensor,
              value_summaries: Tensor, mass: Tensor,
              key_mask: Optional[Tensor], seed: Optional[Tensor],
              cell_size: int, num_levels: int, rank: int, causal: bool,
              use_mass: bool, scale: float, dropout_p: float,
              backend: str) -> Tuple[Tensor, Tensor]:
    """One softmax over near tokens and far summaries.

    Args:
        query, key, value: ``[B, *grid, heads, head_dim]``.
        key_summaries, value_summaries: ``[B, M_total, heads, head_dim]``,
            in the dtype of ``query``.
        mass: int64 ``[B or 1, M_total]``, real tokens of each summary.
        key_mask: bool ``[B, *grid]``, True = real.
        seed: int64 scalar; required where ``dropout_p > 0``.
        backend: a name in ``fma_kernels.backends.BACKENDS``.

    Returns:
        Output like ``query``, and lse ``[B, *grid, heads]`` in float32
        (float64 for float64).
    """
    if not query.shape[0]:  # nothing to tile
        return _empty_outputs(query)
    return BACKENDS[backend].forward(
        query, key, value, key_summaries, value_summaries, mass, key_mask,
        _hierarchy(query, cell_size, num_levels, rank, causal), use_mass,
        scale, dropout_p, seed)


@attention.register_fake
def _(query, key, value, key_summaries, value_summaries, mass, key_mask, seed,
      cell_size, num_levels, rank, causal, use_mass, scale, dropout_p,
      backend):
    return _empty_outputs(query)


@torch.library.custom_op('fma_kernels::attention_backward', mutates_args=())
def attention_backward(
        grad_out: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor,
        value: Tensor, key_summaries: Tensor, value_summaries: Tensor,
        mass: Tensor, key_mask: Optional[Tensor], seed: Optional[Tensor],
        lse: Tensor, cell_size: int, num_levels: int, rank: int, causal: bool,
        use_mass: bool, scale: float, dropout_p: float,
        backend: str) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, key and value summaries."""
    if not query.shape[0]:
        return _empty_grads(query, key, value, key_summaries, value_summaries)
    grads = BACKENDS[backend].backward(
        grad_out, grad_lse, query, key, value, key_summaries,
        value_summaries, mass, key_mask,
        _hierarchy(query, cell_size, num_levels, rank,
                   causal), use_mass, scale, dropout_p, seed, lse)
    # The compiler relies on the strides that the fake kernel promises.
    return tuple(grad.contiguous() for grad in grads)


@attention_backward.register_fake
def _(grad_out, grad_lse, query, key, value, key_summaries, value_summaries,
      mass, key_mask, seed, lse, cell_size, num_levels, rank, causal, use_mass,
      scale, dropout_p, backend):
    return _empty_grads(query, key, value, key_summaries, value_summaries)


def _setup_context(ctx, inputs, output) -> None:
    tensors, options = inputs[:8], inputs[8:]
    ctx.save_for_backward(*tensors, output[1])
    ctx.options = options


def _backward(ctx, grad_out, grad_lse):
    *tensors, lse = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    if grad_lse is None:
        grad_lse = torch.zeros_like(lse)
    # A query without any key has no gradient, whatever arrives: the slope
    # of a log-sum-exp of nothing is NaN in many a caller's graph.
    grad_lse = grad_lse.masked_fill(lse == -torch.inf, 0)
    grads = attention_backward(grad_out, grad_lse, *tensors, lse, *ctx.options)
    return (*grads, *[None] * (3 + len(ctx.options)))


attention.register_autograd(_backward, setup_context=_setup_context)
