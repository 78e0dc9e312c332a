"""Attention over all tokens of a map."""

from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..common import check_tokens, drop_masked, head_dim_of


class FullAttention(nn.Module):
    """Softmax attention over all tokens, through PyTorch's fused op.

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        qkv_bias (bool): Bias in the query, key, value projection.
        attn_drop (float): Dropout on attention weights.
        proj_drop (float): Dropout on the output.
    """

    def __init__(self,
                 dim: int,
                 num_heads: int,
                 qkv_bias: bool = True,
                 attn_drop: float = 0.,
                 proj_drop: float = 0.) -> None:
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads)
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one image outside the two linear layers."""
        return 2 * (height * width)**2 * self.dim

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Attend from every token to every other.

        Args:
            x (Tensor): ``[B, H, W, dim]``.
            key_mask (Tensor, optional): bool ``[B, H, W]``, True = real. An
                image without a real token yields the projection of 0.

        Returns:
            Tensor: ``[B, H, W, dim]``.
        """
        height, width = check_tokens(x, self.dim, 2)
        x = drop_masked(x, key_mask)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        # [3, B, heads, H*W, head_dim]
        query, key, value = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)
        mask = None
        if key_mask is not None:
            mask = key_mask.flatten(1)[:, None, None]  # [B, 1, 1, H*W]
            some = mask.any(-1, keepdim=True)
            mask = mask | ~some  # a softmax over nothing would be NaN
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.attn_drop if self.training else 0.)
        if key_mask is not None:
            out = out.masked_fill(~some, 0)
        out = out.transpose(1, 2).flatten(2).unflatten(1, (height, width))
        return self.proj_drop(self.proj(out))
