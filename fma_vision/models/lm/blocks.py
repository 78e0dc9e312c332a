"""The block of the language model."""

from typing import Optional

import torch
import torch.nn as nn

from ...layers import build_attention
from ..backbones.blocks import Mlp


class LMBlock(nn.Module):
    """Attention and MLP, each normalised first, as residual branches.

    Args:
        dim (int): Channels.
        num_heads (int): Heads.
        attn (dict): Config of the attention layer.
        mlp_ratio (float): Hidden width of the MLP over ``dim``.
        drop (float): Dropout in the MLP and after the attention.
        block_index (int): Index of the block.
        **defaults: Arguments of the attention layer that ``attn`` may
            override.
    """

    def __init__(self, dim: int, num_heads: int, attn: dict, mlp_ratio: float,
                 drop: float, block_index: int, **defaults) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = build_attention(
            attn,
            dim,
            num_heads,
            block_index=block_index,
            proj_drop=drop,
            **defaults)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None,
                offset: int = 0) -> torch.Tensor:
        """Map ``[B, N, dim]`` to the same shape.

        Args:
            x (Tensor): ``[B, N, dim]``.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real.
            offset (int): Position of the first token.
        """
        # Layers without positions of their own need not know the offset.
        shift = dict(offset=offset) if offset else {}
        x = x + self.attn(self.norm1(x), key_mask, **shift)
        return x + self.mlp(self.norm2(x))
