"""Attention inside a window that slides with the query."""

from typing import List, Optional

import torch
import torch.nn.functional as F

from ..checks import typed
from ..common import check_tokens, drop_masked
from .base import ProjectedAttention

# Side of the square of queries that share their keys. Larger ones hide more
# of what they compute.
TILE = 4


class _Axis:
    """Tiles of queries along one axis, and the keys that each may see.

    Args:
        size (int): Tokens along the axis.
        kernel_size (int): Keys of a query along the axis, if there are so
            many.
        device (torch.device): Of ``keep``.

    Attributes:
        tile (int): Queries of a tile.
        starts (list[int]): First key of each tile.
        span (int): Keys of a tile.
        keep (Tensor): bool ``[tiles, tile, span]``, whether a query sees a
            key. Queries past the end see what the last one sees.
    """

    def __init__(self, size: int, kernel_size: int,
                 device: torch.device) -> None:
        width, radius = min(kernel_size, size), kernel_size // 2
        self.tile = min(TILE, size)
        self.span = min(self.tile + kernel_size - 1, size)
        firsts = range(0, size, self.tile)
        self.starts: List[int] = [
            min(max(i - radius, 0), size - self.span) for i in firsts
        ]
        self.pad = len(self.starts) * self.tile - size
        query = torch.arange(
            size + self.pad,
            device=device).clamp(max=size - 1).view(-1, self.tile, 1)
        window = (query - radius).clamp(0, size - width)  # its first key
        key = torch.arange(
            self.span, device=device) + torch.tensor(
                self.starts, device=device)[:, None, None]
        self.keep = (key >= window) & (key < window + width)


def neighborhood_pairs(height: int, width: int, kernel_size: int) -> int:
    """Pairs that :func:`neighborhood_attention` computes, hidden ones too."""
    pairs = 1
    for size in (height, width):
        axis = _Axis(size, kernel_size, torch.device('cpu'))
        pairs *= len(axis.starts) * axis.tile * axis.span
    return pairs


def neighborhood_attention(query: torch.Tensor,
                           key: torch.Tensor,
                           value: torch.Tensor,
                           kernel_size: int,
                           key_mask: Optional[torch.Tensor] = None,
                           dropout_p: float = 0.) -> torch.Tensor:
    """Softmax attention to the ``kernel_size**2`` tokens around each.

    At a border the window is moved inside, so that every query sees as many
    keys; along an axis with fewer tokens it sees them all. One row of tiles
    is computed at a time: beyond the result, memory is that of a row.

    Args:
        query, key, value (Tensor): ``[B, H, W, heads, head_dim]``.
        kernel_size (int): Odd side of the window.
        key_mask (Tensor, optional): bool ``[B, H, W]``, True = real. A query
            that sees no real token yields 0.
        dropout_p (float): Dropout on attention weights.

    Returns:
        Tensor: ``[B, H, W, heads, head_dim]``.
    """
    batch, height, width = query.shape[:3]
    rows, cols = (
        _Axis(size, kernel_size, query.device) for size in (height, width))
    count = len(cols.starts)
    query = F.pad(query, (0, 0, 0, 0, 0, cols.pad, 0, rows.pad))

    def windows(x: torch.Tensor, start: int) -> torch.Tensor:
        """``[B, H, W, ...]`` to ``[B, tiles, keys of a tile, ...]``."""
        x = x.narrow(1, start, rows.span)
        x = torch.stack([x.narrow(2, s, cols.span) for s in cols.starts], 1)
        return x.flatten(2, 3)

    def tokens(x: torch.Tensor) -> torch.Tensor:
        """``[B, tiles, N, heads, D]`` to ``[B * tiles, heads, N, D]``."""
        return x.flatten(0, 1).transpose(1, 2)

    bands = []
    for index, start in enumerate(rows.starts):
        tiles = query.narrow(1, index * rows.tile, rows.tile)
        # [B, tiles, tile, tile, heads, head_dim]
        tiles = tiles.unflatten(2, (count, cols.tile)).transpose(1, 2)
        keep = (rows.keep[index][None, :, None, :, None]
                & cols.keep[:, None, :, None]
                )  # [tiles, tile, tile, span, span]
        keep = keep.flatten(3, 4).flatten(1, 2)[None]
        some = None
        if key_mask is not None:
            keep = keep & windows(key_mask, start)[:, :, None]
            some = keep.any(-1, keepdim=True)
            keep = keep | ~some  # a softmax over nothing would be NaN
        keep = keep.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
        out = F.scaled_dot_product_attention(
            tokens(tiles.flatten(2, 3)),
            tokens(windows(key, start)),
            tokens(windows(value, start)),
            attn_mask=keep,
            dropout_p=dropout_p)
        # [B, tiles, tile * tile, heads, head_dim]
        out = out.transpose(1, 2).unflatten(0, (batch, count))
        if some is not None:
            out = out.masked_fill(~some[..., None], 0)
        out = out.unflatten(2, (rows.tile, cols.tile)).transpose(1, 2)
        bands.append(out.flatten(2, 3))  # [B, tile, W + pad, heads, head_dim]
    return torch.cat(bands, 1)[:, :height, :width]


def check_kernel_size(kernel_size: int) -> int:
    """Return ``kernel_size`` if it is odd and positive.

    Raises:
        ValueError: If it is not.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError('kernel_size must be an odd and positive int, got '
                         f'{kernel_size!r}')
    return kernel_size


class NeighborhoodAttention(ProjectedAttention):
    """Each token attends to the window around it (arXiv 2204.07143, sec. 3).

    As in the paper, and in its library NATTEN, the window of a token near a
    border is moved inside: every query sees exactly ``kernel_size**2`` keys
    where the map has so many. No relative position bias, as positions come
    from the backbone here. Time O(n kernel_size^2), memory O(n).

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        kernel_size (int): Odd side of the window. Defaults to 7.
        qkv_bias (bool): Bias in the query, key, value projection.
        attn_drop (float): Dropout on attention weights.
        proj_drop (float): Dropout on the output.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 kernel_size: int = 7,
                 qkv_bias: bool = True,
                 attn_drop: float = 0.,
                 proj_drop: float = 0.) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        self.kernel_size = check_kernel_size(kernel_size)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one image outside the two linear layers."""
        pairs = neighborhood_pairs(height, width, self.kernel_size)
        return 2 * pairs * self.dim

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Attend inside the window around each token.

        Args:
            x (Tensor): ``[B, H, W, dim]``.
            key_mask (Tensor, optional): bool ``[B, H, W]``, True = real. A
                query that sees no real token yields the projection of 0.

        Returns:
            Tensor: ``[B, H, W, dim]``.
        """
        check_tokens(x, self.dim, 2)
        query, key, value = self.project(drop_masked(x, key_mask))
        return self.finish(
            neighborhood_attention(query, key, value, self.kernel_size,
                                   key_mask, self.dropout_p))

    def extra_repr(self) -> str:
        return f'heads={self.num_heads}, kernel_size={self.kernel_size}'
