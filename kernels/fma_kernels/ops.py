"""The core ops: packed tensors and plain integers, opaque to the compiler.

``torch.compile`` and ``torch.export`` see one node with a known output
shape; autograd sees one function whose backward recomputes. Lists and a
:class:`Hierarchy` are not legal op arguments, hence the packed form.
"""
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor

from . import backends
from .geometry import Hierarchy, hierarchy
from .pooling import accumulation_dtype, packed_mass


def _geometry(shape: List[int], cell_size: int, num_levels: int, rank: int,
              causal: bool) -> Hierarchy:
    """From a shape ``[B, *grid, heads, head_dim]``."""
    # int() of a symbolic size fixes it: static shapes are promised.
    grid = tuple(int(size) for size in shape[1:-2])
    return hierarchy(grid, cell_size, num_levels, rank, causal)


# --------------------------------------------------------------- attention
def empty_outputs(query: Tensor) -> Tuple[Tensor, Tensor]:
    """Shapes, dtypes and strides of output and lse."""
    lse = query.new_empty(
        query.shape[:-1], dtype=accumulation_dtype(query.dtype))
    return query.new_empty(query.shape), lse


def empty_grads(*inputs: Tensor) -> Tuple[Tensor, ...]:
    """The same of gradients: contiguous, whatever the inputs."""
    return tuple(x.new_empty(x.shape) for x in inputs)


def _given(near_bias: Optional[Tensor],
           far_bias: Optional[Tensor]) -> Dict[str, Tensor]:
    """By name, for the backends that take them."""
    biases = dict(near_bias=near_bias, far_bias=far_bias)
    return {name: x for name, x in biases.items() if x is not None}


@torch.library.custom_op('fma_kernels::attention', mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, key_summaries: Tensor,
              value_summaries: Tensor, key_mask: Optional[Tensor],
              seed: Optional[Tensor], near_bias: Optional[Tensor],
              far_bias: Optional[Tensor], cell_size: int, num_levels: int,
              rank: int, causal: bool, use_mass: bool, scale: float,
              dropout_p: float, backend: str) -> Tuple[Tensor, Tensor]:
    """One softmax over near tokens and far summaries.

    Args:
        query, key, value: ``[B, *grid, heads, head_dim]``.
        key_summaries, value_summaries: ``[B, M_total, heads, head_dim]``,
            in the dtype of ``query``.
        key_mask: bool ``[B, *grid]``, True = real.
        seed: int64 scalar; required where ``dropout_p > 0``.
        near_bias: ``[heads, (4m - 1) ** d]``, by token offset.
        far_bias: ``[heads, num_levels, rank ** d, 7 ** d]``, by cell offset.
        backend: a module of ``fma_kernels.backends``.

    Returns:
        Output like ``query``, and lse ``[B, *grid, heads]`` in float32
        (float64 for float64).
    """
    if not query.shape[0]:  # nothing to tile
        return empty_outputs(query)
    geometry = _geometry(query.shape, cell_size, num_levels, rank, causal)
    if backend == 'torch':
        from .options import Inputs, Options
        return backends.load(backend).forward(Inputs(query, key, value, key_summaries, value_summaries, key_mask, seed, near_bias, far_bias), geometry, Options(backend, use_mass, scale, dropout_p))
    return backends.load(backend).forward(
        query, key, value, key_summaries, value_summaries,
        packed_mass(geometry, key_mask, query.device), key_mask, geometry,
        use_mass, scale, dropout_p, seed, **_given(near_bias, far_bias))


@attention.register_fake
def _(query, *args):
    return empty_outputs(query)


@torch.library.custom_op('fma_kernels::attention_backward', mutates_args=())
def attention_backward(
    grad_out: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor,
    value: Tensor, key_summaries: Tensor, value_summaries: Tensor,
    key_mask: Optional[Tensor], seed: Optional[Tensor],
    near_bias: Optional[Tensor], far_bias: Optional[Tensor], out: Tensor,
    lse: Tensor, cell_size: int, num_levels: int, rank: int, causal: bool,
    use_mass: bool, scale: float, dropout_p: float, backend: str
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, key and value summaries, and biases.

    That of an absent bias is an empty tensor.
    """
    inputs = query, key, value, key_summaries, value_summaries
    if not query.shape[0]:
        tables = _empty_bias_grads(query, near_bias, far_bias)
        return (*empty_grads(*inputs), *(x.zero_() for x in tables))
    geometry = _geometry(query.shape, cell_size, num_levels, rank, causal)
    biases = _given(near_bias, far_bias)
    if backend == 'torch':
        from .options import Inputs, Options
        g= backends.load(backend).backward(grad_out, grad_lse, Inputs(query, key, value, key_summaries, value_summaries, key_mask, seed, near_bias, far_bias), out, lse, geometry, Options(backend, use_mass, scale, dropout_p))
        return tuple(query.new_empty(0) if x is None else x for x in g)
    grads = backends.load(backend).backward(
        grad_out, grad_lse, *inputs,
        packed_mass(geometry, key_mask, query.device), key_mask, geometry,
        use_mass, scale, dropout_p, seed, out, lse, **biases)
    found = dict(zip(biases, grads[5:]))
    tables = (
        found.get(name, query.new_empty(0))
        for name in ('near_bias', 'far_bias'))
    # The compiler relies on the strides that the fake kernel promises.
    return (*(grad.contiguous() for grad in grads[:5]), *tables)


def _empty_bias_grads(query: Tensor, *biases:
                      Optional[Tensor]) -> Tuple[Tensor, ...]:
    return empty_grads(*(query.new_empty(0) if x is None else x
                         for x in biases))


@attention_backward.register_fake
def _(grad_out, grad_lse, query, key, value, key_summaries, value_summaries,
      key_mask, seed, near_bias, far_bias, *args):
    return (*empty_grads(query, key, value, key_summaries, value_summaries),
            *_empty_bias_grads(query, near_bias, far_bias))


def _setup_attention(ctx, inputs, output) -> None:
    tensors, options = inputs[:9], inputs[9:]
    ctx.save_for_backward(*tensors, *output)
    ctx.options = options


def _attention_slopes(ctx, grad_out, grad_lse):
    *tensors, out, lse = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    if grad_lse is None:
        grad_lse = torch.zeros_like(lse)
    # A query without any key has no gradient, whatever arrives: the slope
    # of a log-sum-exp of nothing is NaN in many a caller's graph.
    grad_lse = grad_lse.masked_fill(lse == -torch.inf, 0)
    *grads, near, far = attention_backward(grad_out, grad_lse, *tensors, out,
                                           lse, *ctx.options)
    near_bias, far_bias = tensors[-2:]
    # Neither the mask nor the seed has any, nor a bias that is not given.
    return (*grads, None, None, None if near_bias is None else near,
            None if far_bias is None else far, *[None] * len(ctx.options))


attention.register_autograd(_attention_slopes, setup_context=_setup_attention)


# ----------------------------------------------------------------- pooling
@torch.library.custom_op('fma_kernels::pool', mutates_args=())
def pool(x: Tensor, key_mask: Optional[Tensor], cell_size: int,
         num_levels: int, rank: int, backend: str) -> Tensor:
    """Averages over the real tokens of all levels' sub-cells.

    Args:
        x: ``[B, *grid, heads, head_dim]``.
        key_mask: bool ``[B, *grid]``, True = real.
        num_levels: at least 1.
        backend: a module of ``fma_kernels.backends``.

    Returns:
        Packed ``[B, M_total, heads, head_dim]``; 0 where nothing is real.
    """
    geometry = _geometry(x.shape, cell_size, num_levels, rank, False)
    if not x.shape[0]:
        return x.new_empty((0, geometry.num_summaries, *x.shape[-2:]))
    mass = packed_mass(geometry, key_mask, x.device)
    if backend == 'torch':
        return backends.load(backend).pool(x, key_mask, geometry)
    return backends.load(backend).pool(x, key_mask, mass, geometry)


@pool.register_fake
def _(x, key_mask, cell_size, num_levels, rank, backend):
    geometry = _geometry(x.shape, cell_size, num_levels, rank, False)
    return x.new_empty((x.shape[0], geometry.num_summaries, *x.shape[-2:]))


@torch.library.custom_op('fma_kernels::pool_backward', mutates_args=())
def pool_backward(grad: Tensor, key_mask: Optional[Tensor], shape: List[int],
                  cell_size: int, num_levels: int, rank: int,
                  backend: str) -> Tensor:
    """Gradient of the tokens, ``shape = [B, *grid, heads, head_dim]``."""
    if not shape[0]:
        return grad.new_empty(shape)
    geometry = _geometry(shape, cell_size, num_levels, rank, False)
    mass = packed_mass(geometry, key_mask, grad.device)
    if backend == 'torch':
        return backends.load(backend).pool_backward(grad, key_mask, geometry).contiguous()
    return backends.load(backend).pool_backward(
        grad, key_mask, mass, geometry, torch.Size(shape)).contiguous()


@pool_backward.register_fake
def _(grad, key_mask, shape, cell_size, num_levels, rank, backend):
    return grad.new_empty(shape)


def _setup_pool(ctx, inputs, output) -> None:
    x, key_mask, *ctx.options = inputs
    ctx.save_for_backward(key_mask)
    ctx.shape = x.shape


def _pool_slopes(ctx, grad):
    key_mask, = ctx.saved_tensors
    grad = pool_backward(grad, key_mask, list(ctx.shape), *ctx.options)
    return (grad, *[None] * (1 + len(ctx.options)))


pool.register_autograd(_pool_slopes, setup_context=_setup_pool)
