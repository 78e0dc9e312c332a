"""Normalised linear attention with several feature maps, in linear time.

Source: arXiv 2006.16236, sec. 3; its use for far fields arXiv 2108.02347,
sec. 3.2; rotary positions arXiv 2104.09864, sec. 3.3.
"""

from typing import Callable, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F

from ..common import without_autocast

# Positive, so that the weights of a query are a distribution.
FEATURE_MAPS = (
    lambda x: F.elu(x) + 1,
    lambda x: F.elu(-x) + 1,
    lambda x: x.tanh() + 1,
)

# Added to normalisers: a tanh feature may be 0.
EPS = 1e-6


class LinearState(NamedTuple):
    """Sums over the tokens read so far, for R feature maps.

    Attributes:
        products (Tensor): ``[R, B, heads, head_dim, head_dim]``, of key
            features, rotated where positions are, times values.
        norms (Tensor): ``[R, B, heads, head_dim]``, of key features.
    """
    products: torch.Tensor
    norms: torch.Tensor


def chunk_size(head_dim: int) -> int:
    """Tokens of a chunk: what chunks hold is then as large as the input."""
    return max(head_dim, 32)


def linear_macs(length: int, head_dim: int, causal: bool) -> int:
    """Multiply-adds per channel and feature map."""
    if not causal:
        return 2 * length * head_dim
    size = chunk_size(head_dim)
    return -(-length // size) * size * (2 * size + 2 * head_dim)


def linear_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    maps: int = 1,
    causal: bool = False,
    key_mask: Optional[torch.Tensor] = None,
    turn: Optional[Callable[[torch.Tensor], torch.Tensor]] = None,
    state: Optional[LinearState] = None
) -> Tuple[torch.Tensor, Optional[LinearState]]:
    """Attention with weights phi(q_i) . phi(k_j), divided by their sum.

    Where ``turn`` rotates features, only the numerator is turned, so that no
    normaliser gets near 0. Computed in float32 or wider.

    Args:
        query, key, value (Tensor): ``[B, N, heads, head_dim]``.
        maps (int): R, how many of ``FEATURE_MAPS``, each on its own.
        causal (bool): Attend to the left only.
        key_mask (Tensor, optional): bool ``[B, N]``, True = real. A query
            without a real key yields 0.
        turn (callable, optional): Rotates ``[R, B, N, heads, head_dim]``.
        state (LinearState, optional): Of earlier tokens, for ``causal``.

    Returns:
        tuple[Tensor, LinearState]: ``[R, B, N, heads, head_dim]`` in the
        dtype of ``value``, and for ``causal`` the state after.
    """
    dtype = value.dtype
    wide = torch.promote_types(dtype, torch.float32)
    # Sums over many tokens lose too much in half precision.
    with without_autocast(query.device):
        query, key, value = (x.to(wide) for x in (query, key, value))
        query, key = (
            torch.stack([phi(x) for phi in FEATURE_MAPS[:maps]])
            for x in (query, key))
        if key_mask is not None:
            key = key.masked_fill(~key_mask[..., None, None], 0)
        turned = (query, key) if turn is None else (turn(query), turn(key))
        if causal:
            before = None if state is None else state.norms[:, :, None]
            norms = _cumsum(key, before)  # [R, B, N, heads, head_dim]
            out, products = _causal_product(
                *turned, value, None if state is None else state.products)
            after = LinearState(products, norms[:, :, -1])
        else:
            norms, after = key.sum(2, keepdim=True), None
            products = torch.einsum('rbnhd,bnhe->rbhde', turned[1], value)
            out = torch.einsum('rbnhd,rbhde->rbnhe', turned[0], products)
        total = (query * norms).sum(-1, keepdim=True)
        return (out / (total + EPS)).to(dtype), after


def _cumsum(x: torch.Tensor, before: Optional[torch.Tensor]) -> torch.Tensor:
    """Sums along axis 2 that include ``before``."""
    x = x.cumsum(2)
    return x if before is None else x + before


def _causal_product(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        before: Optional[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sum of (q_i . k_j) v_j over j <= i, chunk by chunk.

    Inside a chunk by a masked product, before it by a running sum: O(N)
    memory, and nothing depends on a later token, not even its rounding.

    Args:
        query, key (Tensor): ``[R, B, N, heads, head_dim]``.
        value (Tensor): ``[B, N, heads, head_dim]``.
        before (Tensor, optional): ``[R, B, heads, head_dim, head_dim]``.

    Returns:
        tuple[Tensor, Tensor]: ``[R, B, N, heads, head_dim]`` and the sum
        over all tokens, like ``before``.
    """
    length, head_dim = query.shape[2], query.shape[-1]
    size = chunk_size(head_dim)
    pad = -length % size
    # [..., chunks, size, heads, head_dim]
    query, key, value = (
        F.pad(x, (0, 0, 0, 0, 0, pad)).unflatten(-3, (-1, size))
        for x in (query, key, value))
    sums = torch.einsum('rbcthd,bcthe->rbchde', key, value)
    first = torch.zeros_like(sums[:, :, 0]) if before is None else before
    sums = torch.cat([first[:, :, None], sums], 2).cumsum(2)
    out = torch.einsum('rbcthd,rbchde->rbcthe', query, sums[:, :, :-1])
    weights = torch.einsum('rbcthd,rbcshd->rbchts', query, key).tril()
    out = out + torch.einsum('rbchts,bcshe->rbcthe', weights, value)
    return out.flatten(2, 3)[:, :, :length], sums[:, :, -1]
