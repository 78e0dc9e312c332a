"""Fused kernels in Triton: forward, backward and the pyramid of averages."""
from typing import Sequence, Tuple

import torch
from torch import Tensor

from .call import Call, on_device, unit_rows
from .keys import near_slopes
from .pooled import far_backward, far_forward, near_backward, near_forward
from .pooling import pool, pool_backward
from .queries import walk
from .summaries import far_slopes

__all__ = [
    'forward', 'backward', 'pool', 'pool_backward', 'far_forward',
    'far_backward', 'near_forward', 'near_backward'
]


def _positive_scale(query: Tensor, options: Sequence) -> Tuple[Tensor, tuple]:
    """Kernels take a scale of at least 0: the query bears its sign."""
    mass, key_mask, hierarchy, use_mass, scale, *rest = options
    if scale < 0:
        query, scale = -query, -scale
    return query, (mass, key_mask, hierarchy, use_mass, scale, *rest)


def forward(query: Tensor, key: Tensor, value: Tensor, key_summaries: Tensor,
            value_summaries: Tensor, *options) -> Tuple[Tensor, Tensor]:
    """Output ``[B, *grid, heads, D]`` and lse ``[B, *grid, heads]``.

    ``options`` are those of :class:`Call`.
    """
    query, key, value = unit_rows(query), unit_rows(key), unit_rows(value)
    query, options = _positive_scale(query, options)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(
        query.shape[:-1], dtype=torch.float32, device=query.device)
    with on_device(query):
        walk(
            Call(query, *options), query, key, value,
            (key_summaries.contiguous(), value_summaries.contiguous()), out,
            lse)
    return out, lse


def backward(grad_out: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor,
             value: Tensor, key_summaries: Tensor, value_summaries: Tensor,
             *options) -> Tuple[Tensor, ...]:
    """Gradients of query, key, value, key and value summaries.

    ``options`` are those of :class:`Call`, then the forward's results.
    """
    *options, out, lse = options
    query, key, value = unit_rows(query), unit_rows(key), unit_rows(value)
    flipped = options[4] < 0
    query, options = _positive_scale(query, options)
    grad_out = unit_rows(grad_out)
    key_summaries = key_summaries.contiguous()
    value_summaries = value_summaries.contiguous()
    grads = tuple(
        torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in (query, key, value, key_summaries, value_summaries))
    logsum, delta = torch.empty_like(lse), torch.empty_like(lse)
    with on_device(query):
        call = Call(query, *options)
        walk(call, query, key, value, (key_summaries, value_summaries), out,
             lse, grad_out, grad_lse.contiguous(), logsum, delta, grads[0])
        near_slopes(call, query, key, value, logsum, grad_out, delta,
                    *grads[1:3])
        if call.hierarchy.num_levels:
            far_slopes(call, query, key_summaries, value_summaries, logsum,
                       grad_out, delta, *grads[3:])
    return (-grads[0] if flipped else grads[0], *grads[1:])
