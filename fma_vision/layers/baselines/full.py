"""Attention over all tokens of a map."""

from typing import Optional

import torch
import torch.nn.functional as F

from ..common import check_tokens, drop_masked
from .base import MapAttention


class FullAttention(MapAttention):
    """Softmax attention over all tokens, through PyTorch's fused op.

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        qkv_bias (bool): Bias in the query, key, value projection.
        attn_drop (float): Dropout on attention weights.
        proj_drop (float): Dropout on the output.
        positions (str, optional): ``'rotary'`` or None.
        rotary_base (float): Base of the rotary angles. Defaults to 100.

    Raises:
        ValueError: If an argument is out of range.
    """

    mask_is_border = True

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
        query, key, value = self.project(x)
        # [B, heads, H*W, head_dim]
        query, key, value = (
            t.flatten(1, 2).transpose(1, 2)
            for t in (self.turn(query), self.turn(key), value))
        mask = None
        if key_mask is not None:
            mask = key_mask.flatten(1)[:, None, None]  # [B, 1, 1, H*W]
            some = mask.any(-1, keepdim=True)
            mask = mask | ~some  # a softmax over nothing would be NaN
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout_p)
        if key_mask is not None:
            out = out.masked_fill(~some, 0)
        return self.finish(out.transpose(1, 2).unflatten(1, (height, width)))
