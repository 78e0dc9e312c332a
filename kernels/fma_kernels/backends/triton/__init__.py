"""Fused kernels in Triton: forward, backward and the pyramid of averages."""
from dataclasses import replace
from typing import Optional, Tuple

import torch
from torch import Tensor

from ...geometry import Hierarchy
from ...options import Inputs, Options
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


def _prepared(inputs: Inputs, options: Options) -> Tuple[Inputs, Options]:
    """Strides as kernels take them, and a scale of at least 0."""
    query, key, value = (unit_rows(x) for x in inputs[:3])
    summaries = (x.contiguous() for x in inputs[3:5])
    if options.scale < 0:  # the query bears its sign
        query, options = -query, replace(options, scale=-options.scale)
    return Inputs(query, key, value, *summaries, *inputs[5:]), options


def forward(inputs: Inputs, hierarchy: Hierarchy,
            options: Options) -> Tuple[Tensor, Tensor]:
    """Output ``[B, *grid, heads, D]`` and lse ``[B, *grid, heads]``."""
    inputs, options = _prepared(inputs, options)
    query, key, value, *summaries = inputs[:5]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(
        query.shape[:-1], dtype=torch.float32, device=query.device)
    with on_device(query):
        call = Call(query, inputs.key_mask, inputs.seed, hierarchy, options)
        walk(call, query, key, value, tuple(summaries), out, lse)
    return out, lse


def backward(grad_out: Tensor, grad_lse: Tensor, inputs: Inputs, out: Tensor,
             lse: Tensor, hierarchy: Hierarchy,
             options: Options) -> Tuple[Optional[Tensor], ...]:
    """Gradients of query, key, value, key and value summaries; no biases'."""
    flipped = options.scale < 0
    inputs, options = _prepared(inputs, options)
    query, key, value, *summaries = inputs[:5]
    grad_out = unit_rows(grad_out)
    grads = tuple(
        torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in inputs[:5])
    logsum, delta = torch.empty_like(lse), torch.empty_like(lse)
    with on_device(query):
        call = Call(query, inputs.key_mask, inputs.seed, hierarchy, options)
        walk(call, query, key, value, tuple(summaries), out, lse, grad_out,
             grad_lse.contiguous(), logsum, delta, grads[0])
        near_slopes(call, query, key, value, logsum, grad_out, delta,
                    *grads[1:3])
        if hierarchy.num_levels:
            far_slopes(call, query, *summaries, logsum, grad_out, delta,
                       *grads[3:])
    return (-grads[0] if flipped else grads[0], *grads[1:], None, None)
