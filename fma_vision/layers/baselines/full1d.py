"""Attention over all tokens of a sequence."""

from typing import Optional

import torch
import torch.nn.functional as F

from ..common import check_tokens, drop_masked
from .base import SequenceAttention


class FullAttention1D(SequenceAttention):
    """Softmax attention over a sequence, through PyTorch's fused op.

    The twin of :class:`~fma_vision.layers.FMAttention1D`: the same weights
    under the same names, every token one by one.

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        qkv_bias (bool): Bias in the query, key, value projection.
        attn_drop (float): Dropout on attention weights.
        proj_drop (float): Dropout on the output.
        causal (bool): Attend to the left only. Defaults to False.
        positions (str, optional): ``'rotary'`` rotates queries and keys by
            their position (arXiv 2104.09864); None leaves them.
        rotary_base (float): Base of the rotary angles.

    Raises:
        ValueError: If an argument is out of range.
    """

    def attention_macs(self, length: int) -> int:
        """Multiply-adds of one sequence outside the two linear layers."""
        pairs = length * (length + 1) // 2 if self.causal else length**2
        return 2 * pairs * self.dim

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None,
                offset: int = 0) -> torch.Tensor:
        """Attend from every token to every other, or to those before it.

        Args:
            x (Tensor): ``[B, N, dim]``.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real. A query
                without a real key yields the projection of 0.
            offset (int): Position of the first token.

        Returns:
            Tensor: ``[B, N, dim]``.
        """
        length, = check_tokens(x, self.dim, 1)
        x = drop_masked(x, key_mask)
        query, key, value = self.project(x)  # [B, N, heads, head_dim]
        at = torch.arange(offset, offset + length, device=x.device)
        query, key = self.turn(query, at), self.turn(key, at)
        mask = some = None
        if key_mask is not None:
            mask = key_mask[:, None, None]  # [B, 1, 1, N]
            if self.causal:
                mask = mask & mask.new_ones(length, length).tril()
            some = mask.any(-1, keepdim=True)  # [B, 1, N or 1, 1]
            mask = mask | ~some  # a softmax over nothing would be NaN
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=self.causal and mask is None,
            dropout_p=self.dropout_p)
        if some is not None:
            out = out.masked_fill(~some, 0)
        return self.finish(out.transpose(1, 2))
