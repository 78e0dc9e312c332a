"""Pooled queries: the far field of all sub-cells, the near field of tokens.

The far field is computed once per sub-cell; for a token, its sub-cell of
level 1 is then one key more beside the near tokens, which the kernels of
plain queries walk as ever.
"""
from dataclasses import replace
from typing import Optional, Tuple

import torch
from torch import Tensor

from ...geometry import Hierarchy
from ...options import Options
from .ancestors import add_tokens, add_up, merge_down
from .call import Call, on_device, unit_rows
from .keys import near_slopes
from .queries import walk
from .subcells import level_slopes, walk_levels

OutLse = Tuple[Tensor, Tensor]


def _like(x: Tensor, dtype: Optional[torch.dtype] = None) -> Tensor:
    """Contiguous memory of a shape, float32 if a dtype is not given."""
    return torch.empty(x.shape, dtype=dtype or torch.float32, device=x.device)


def far_forward(query: Tensor, key: Tensor, value: Tensor,
                key_mask: Optional[Tensor], seed: Optional[Tensor],
                hierarchy: Hierarchy, options: Options) -> OutLse:
    """What each sub-cell sees at its level and above.

    Args:
        query, key, value: packed summaries, ``[B, M, heads, D]``.
        key_mask: bool ``[B, *grid]`` or None.

    Returns:
        Output ``[B, M, heads, D]`` and lse ``[B, M, heads]``, float32.
    """
    query, key, value = (x.contiguous() for x in (query, key, value))
    out, lse = _like(query), _like(query[..., 0])
    with on_device(query):
        call = Call(query, key_mask, seed, hierarchy, options)
        walk_levels(call, options.scale, query, key, value, out, lse)
        if hierarchy.num_levels > 1:
            own, (out, lse) = (out, lse), (_like(out), _like(lse))
            merge_down(call, *own, out, lse)
    return out, lse


def far_backward(grad_out: Tensor, grad_lse: Tensor, query: Tensor,
                 key: Tensor, value: Tensor, key_mask: Optional[Tensor],
                 seed: Optional[Tensor], out: Tensor, lse: Tensor,
                 hierarchy: Hierarchy,
                 options: Options) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of packed queries, keys and values."""
    query, key, value = (x.contiguous() for x in (query, key, value))
    found = tuple(_like(x, x.dtype) for x in (query, key, value))
    grads = _like(out), _like(lse), _like(lse)
    with on_device(query):
        call = Call(query, key_mask, seed, hierarchy, options)
        add_up(call, grad_out.contiguous(), grad_lse.contiguous(), out, lse,
               *grads)
        walk_levels(
            call,
            options.scale,
            query,
            key,
            value,
            grads=grads,
            grad_query=found[0])
        level_slopes(call, options.scale, query, key, value, grads, *found[1:])
    return found


def _near_call(query: Tensor, key_mask: Optional[Tensor],
               seed: Optional[Tensor], hierarchy: Hierarchy,
               options: Options) -> Call:
    """Tiles and boxes of the near field; its summaries are not read."""
    return Call(query, key_mask, seed, replace(hierarchy, num_levels=None),
                replace(options, scale=abs(options.scale)))


def _images(x: Tensor) -> Tensor:
    """``x`` with every image contiguous: it may be the first rows of each."""
    return x if x[0].is_contiguous() else x.contiguous()


def near_forward(query: Tensor, key: Tensor, value: Tensor, far_out: Tensor,
                 far_lse: Tensor, key_mask: Optional[Tensor],
                 seed: Optional[Tensor], hierarchy: Hierarchy,
                 options: Options) -> OutLse:
    """One softmax over near tokens and what a token's sub-cell sees afar.

    Args:
        query, key, value: ``[B, *grid, heads, D]``.
        far_out, far_lse: of level 1, ``[B, M_1, heads, D]`` and ``[B, M_1,
            heads]``, float32.

    Returns:
        Output like ``query``, and lse ``[B, *grid, heads]`` in float32.
    """
    query, key, value = unit_rows(query), unit_rows(key), unit_rows(value)
    # Kernels take a scale of at least 0: the query bears its sign.
    query = -query if options.scale < 0 else query
    out, lse = _like(query, query.dtype), _like(query[..., 0])
    with on_device(query):
        walk(
            _near_call(query, key_mask, seed, hierarchy, options),
            query,
            key,
            value, (_images(far_out), _images(far_lse)),
            out,
            lse,
            pooled=True)
    return out, lse


def near_backward(grad_out: Tensor, grad_lse: Tensor, query: Tensor,
                  key: Tensor, value: Tensor, far_out: Tensor, far_lse: Tensor,
                  key_mask: Optional[Tensor], seed: Optional[Tensor],
                  out: Tensor, lse: Tensor, hierarchy: Hierarchy,
                  options: Options) -> Tuple[Tensor, ...]:
    """Gradients of query, key, value, far output and far lse."""
    inputs = query, key, value, far_out, far_lse
    grads = tuple(_like(x, x.dtype) for x in inputs)
    query, key, value = unit_rows(query), unit_rows(key), unit_rows(value)
    query = -query if options.scale < 0 else query
    grad_out, far = unit_rows(grad_out), (_images(far_out), _images(far_lse))
    logsum, delta = torch.empty_like(lse), torch.empty_like(lse)
    with on_device(query):
        call = _near_call(query, key_mask, seed, hierarchy, options)
        walk(
            call,
            query,
            key,
            value,
            far,
            out,
            lse,
            grad_out,
            grad_lse.contiguous(),
            logsum,
            delta,
            grads[0],
            pooled=True)
        near_slopes(call, query, key, value, logsum, grad_out, delta,
                    *grads[1:3])
        add_tokens(call, grad_out, logsum, delta, far, *grads[3:])
    return (-grads[0] if options.scale < 0 else grads[0], *grads[1:])
