"""Near field by a band, far field by linear attention (FMMformer).

Source: arXiv 2108.02347, sec. 3. Near: softmax attention inside a band (in
2D, a window). Far: for each of up to three feature maps, normalised linear
attention over all tokens, the near ones included. Both are weighed per
channel by learned numbers, near by 0 and each far map by 1 / R at the start
(as the authors' language model does), and added. Linear time and memory:
O(n (band + R head_dim)) per channel.
"""

from typing import Any, Optional

import torch
import torch.nn as nn

from ..checks import typed
from ..common import check_tokens, drop_masked
from .band import band_pairs, banded_attention
from .base import ProjectedAttention, SequenceAttention, check_at_least
from .linear import FEATURE_MAPS, linear_attention, linear_macs
from .neighborhood import (check_kernel_size, neighborhood_attention,
                           neighborhood_pairs)


class FieldWeights(nn.Module):
    """Learned weights of the near and the far fields, per channel.

    Args:
        maps (int): R, feature maps.
        num_heads (int): Heads.
        head_dim (int): Channels of a head.

    Raises:
        ValueError: If there are not so many feature maps.
    """

    def __init__(self, maps: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        if maps not in range(1, len(FEATURE_MAPS) + 1):
            raise ValueError('feature_maps must be in [1, '
                             f'{len(FEATURE_MAPS)}], got {maps!r}')
        self.near = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.far = nn.Parameter(
            torch.full((maps, num_heads, head_dim), 1 / maps))

    def no_weight_decay(self) -> set:
        """Names of parameters that should not decay."""
        return {'near', 'far'}

    def forward(self, near: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
        """Join ``[B, N, heads, head_dim]`` and ``[R, B, N, ...]``."""
        far = (self.far[:, None, None].to(far.dtype) * far).sum(0)
        return self.near.to(near.dtype) * near + far


class FMMformerAttention1D(SequenceAttention):
    """FMMformer attention over a sequence (arXiv 2108.02347, sec. 3).

    Near: 0 <= i - j <= ``band`` if causal, else |i - j| <= ``band``. With
    rotary positions, near queries and keys are turned, and so are the
    features of the far field, in its numerator (arXiv 2104.09864, sec. 3.3):
    the output depends on differences of positions alone.

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        band (int): Reach of the near field in tokens. Defaults to 20.
        feature_maps (int): R, how many of elu(x) + 1, elu(-x) + 1 and
            tanh(x) + 1. Defaults to 2.
        **common: ``qkv_bias``, ``attn_drop``, ``proj_drop``, ``causal``,
            ``positions`` and ``rotary_base`` of :class:`SequenceAttention`;
            dropout is that of the near field's weights.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 band: int = 20,
                 feature_maps: int = 2,
                 **common: Any) -> None:
        super().__init__(dim, num_heads, **common)
        self.band = check_at_least('band', band, 0)
        self.feature_maps = feature_maps
        self.field_weights = FieldWeights(feature_maps, num_heads,
                                          self.head_dim)

    def attention_macs(self, length: int) -> int:
        """Multiply-adds of one sequence outside the two linear layers."""
        near = 2 * band_pairs(length, self.band, self.causal)
        far = linear_macs(length, self.head_dim, self.causal)
        return (near + self.feature_maps * far) * self.dim

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
        query, key, value = self.project(drop_masked(x, key_mask))
        at = torch.arange(offset, offset + length, device=x.device)
        near = banded_attention(
            self.turn(query, at), self.turn(key, at), value, self.band,
            self.causal, key_mask, self.dropout_p)
        far, _ = linear_attention(
            query,
            key,
            value,
            self.feature_maps,
            self.causal,
            key_mask,
            turn=lambda features: self.turn(features, at))
        return self.finish(self.field_weights(near, far))

    def extra_repr(self) -> str:
        return (f'{super().extra_repr()}, band={self.band}, '
                f'feature_maps={self.feature_maps}')


class FMMformerAttention2D(ProjectedAttention):
    """FMMformer attention over a map (arXiv 2108.02347, sec. 3).

    The band is a window around the query, moved inside at borders as in
    :class:`NeighborhoodAttention`.

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        kernel_size (int): Odd side of the window. Defaults to 7.
        feature_maps (int): R, how many of elu(x) + 1, elu(-x) + 1 and
            tanh(x) + 1. Defaults to 2.
        **common: ``qkv_bias``, ``attn_drop`` and ``proj_drop`` of
            :class:`ProjectedAttention`; dropout is that of the near field's
            weights.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 kernel_size: int = 7,
                 feature_maps: int = 2,
                 **common: Any) -> None:
        super().__init__(dim, num_heads, **common)
        self.kernel_size = check_kernel_size(kernel_size)
        self.feature_maps = feature_maps
        self.field_weights = FieldWeights(feature_maps, num_heads,
                                          self.head_dim)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one image outside the two linear layers."""
        near = 2 * neighborhood_pairs(height, width, self.kernel_size)
        far = linear_macs(height * width, self.head_dim, causal=False)
        return (near + self.feature_maps * far) * self.dim

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
        grid = check_tokens(x, self.dim, 2)
        qkv = self.project(drop_masked(x, key_mask))
        near = neighborhood_attention(*qkv, self.kernel_size, key_mask,
                                      self.dropout_p)
        far, _ = linear_attention(
            *(t.flatten(1, 2) for t in qkv),
            self.feature_maps,
            key_mask=None if key_mask is None else key_mask.flatten(1))
        out = self.field_weights(near.flatten(1, 2), far)
        return self.finish(out.unflatten(1, grid))

    def extra_repr(self) -> str:
        return (f'heads={self.num_heads}, kernel_size={self.kernel_size}, '
                f'feature_maps={self.feature_maps}')
