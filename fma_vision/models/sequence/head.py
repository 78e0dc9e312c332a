"""From the last block to one class for the whole sequence."""

from typing import Optional

import torch
import torch.nn as nn

from ...layers.checks import check_rates, typed
from ...layers.common import drop_masked
from ...registry import MODELS


@MODELS.register_module()
class PooledHead(nn.Module):
    """Final norm, mean over the real tokens, and an MLP.

    Args:
        embed_dims (int): Channels.
        num_classes (int): Classes.
        hidden_dims (int, optional): Hidden width of the MLP. Defaults to
            None, ``embed_dims``.
        drop_rate (float): Dropout in the MLP.

    Raises:
        ValueError: If there is no class.
    """

    @typed
    def __init__(self,
                 embed_dims: int,
                 num_classes: int,
                 hidden_dims: Optional[int] = None,
                 drop_rate: float = 0.) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError('num_classes must be at least 1, got '
                             f'{num_classes}')
        check_rates(drop_rate=drop_rate)
        hidden_dims = embed_dims if hidden_dims is None else hidden_dims
        self.num_classes = num_classes
        self.norm = nn.LayerNorm(embed_dims)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dims, hidden_dims), nn.GELU(),
            nn.Dropout(drop_rate), nn.Linear(hidden_dims, num_classes))

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Logits of every sequence.

        Args:
            x (Tensor): ``[B, N, embed_dims]`` from the last block.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real. Others
                may hold anything. A row without a real token has the mean 0.

        Returns:
            Tensor: ``[B, num_classes]``.
        """
        x = self.norm(drop_masked(x, key_mask))
        if key_mask is None:
            return self.mlp(x.mean(1))
        # The norm gives its bias where a masked token was.
        total = drop_masked(x, key_mask).sum(1)
        return self.mlp(total / key_mask.sum(1, keepdim=True).clamp(min=1))
