"""Additive attention over a sequence (Fastformer)."""

from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..checks import typed
from ..common import check_tokens, drop_masked
from .base import SequenceAttention


class HeadScores(nn.Module):
    """One number for each token and head, from one vector per head.

    Args:
        num_heads (int): Heads.
        head_dim (int): Channels of a head.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim))
        nn.init.normal_(self.weight, std=.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, N, heads, head_dim]`` to ``[B, heads, N]``."""
        return torch.einsum('bnhd,hd->bhn', x, self.weight.to(x.dtype))


class Fastformer(SequenceAttention):
    """Additive attention through one global query and key.

    Source: arXiv 2108.09084, sec. 3.1. Per head: a global query is the mean
    of all queries with softmax weights, which each key is multiplied by; a
    global key is the mean of the products with softmax weights again, which
    each value is multiplied by. The output is the projection of that plus
    the token's own query. The paper shares the projections of queries and
    values; here they are apart, as in the layers that this one is compared
    with. Time and memory O(n).

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        qkv_bias (bool): Bias in the query, key, value projection.
        attn_drop (float): Dropout on the weights of both means.
        proj_drop (float): Dropout on the output.
        causal (bool): Only False: both means are over all tokens.
        positions (None): Only None: no pair of tokens meets in a product
            that could tell their distance.
        rotary_base (float): Not used.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 qkv_bias: bool = True,
                 attn_drop: float = 0.,
                 proj_drop: float = 0.,
                 causal: bool = False,
                 positions: Optional[str] = None,
                 rotary_base: float = 10000.) -> None:
        if causal:
            raise ValueError('Fastformer sees all tokens through global means '
                             'and has no causal form: causal must be False, '
                             'got True')
        if positions:
            raise ValueError('Fastformer has no positions of its own: '
                             f'positions must be None, got {positions!r}; a '
                             "language model may add 'learned' ones")
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        self.query_score = HeadScores(num_heads, self.head_dim)
        self.key_score = HeadScores(num_heads, self.head_dim)

    def attention_macs(self, length: int) -> int:
        """Multiply-adds of one sequence outside the two linear layers."""
        return 4 * length * self.dim

    def _mean(self, x: torch.Tensor, score: HeadScores,
              key_mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Mean of ``[B, N, heads, head_dim]``, weighted: one per head."""
        logits = score(x) * self.head_dim**-.5
        if key_mask is not None:
            absent = ~key_mask[:, None]  # [B, 1, N]
            # Not -inf: a softmax over nothing would be NaN.
            logits = logits.masked_fill(absent, torch.finfo(logits.dtype).min)
        weights = logits.softmax(-1)
        if key_mask is not None:
            weights = weights.masked_fill(absent, 0)
        weights = F.dropout(weights, self.dropout_p)
        return torch.einsum('bhn,bnhd->bhd', weights.to(x.dtype), x)[:, None]

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None,
                offset: int = 0) -> torch.Tensor:
        """Attend from every token to every other, through two means.

        Args:
            x (Tensor): ``[B, N, dim]``.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real.
            offset (int): Position of the first token; without effect.

        Returns:
            Tensor: ``[B, N, dim]``.
        """
        check_tokens(x, self.dim, 1)
        query, key, value = self.project(drop_masked(x, key_mask))
        key = key * self._mean(query, self.query_score, key_mask)
        value = value * self._mean(key, self.key_score, key_mask)
        out = self.proj(value.flatten(-2)) + query.flatten(-2)
        return self.proj_drop(out)
