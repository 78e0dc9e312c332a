"""A window and a dynamic low-rank projection (Transformer-LS).

Source: arXiv 2107.02192, sec. 3. Short: tokens are cut into segments of
``window`` tokens, and each sees its segment and half a segment on either side
(cut off at the query if causal). Long: ``rank`` landmarks per head, each a
mean of all keys (and of all values) with softmax weights that a linear layer
draws from the tokens. Short keys and values and long ones go through a layer
norm of their own (dual layer norm), then under one softmax.
"""

from typing import Any, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..checks import typed
from ..common import check_tokens, drop_masked
from .band import halo
from .base import ProjectedAttention, SequenceAttention, check_at_least


class Landmarks(nn.Module):
    """The dynamic projection (arXiv 2107.02192, sec. 3.2).

    Args:
        dim (int): Channels.
        num_heads (int): Heads.
        rank (int): Landmarks of a group of tokens.
    """

    def __init__(self, dim: int, num_heads: int, rank: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rank = check_at_least('rank', rank, 1)
        self.weights = nn.Linear(dim, num_heads * rank)

    def forward(self, x: torch.Tensor, pair: torch.Tensor,
                real: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Project groups of T tokens.

        Args:
            x (Tensor): ``[B, G, T, dim]``, to draw weights from.
            pair (Tensor): Keys and values ``[2, B, G, T, heads, head_dim]``.
            real (Tensor): bool ``[B or 1, G, T]``.

        Returns:
            tuple[Tensor, Tensor]: ``[2, B, G * rank, heads, head_dim]`` and
            bool ``[B or 1, G * rank]``, which of them stand for anything.
        """
        # [B, G, T, heads, rank]
        logits = self.weights(x).unflatten(-1, (self.num_heads, self.rank))
        some = real.any(-1)  # [B or 1, G]
        absent = ~real[..., None, None]
        # Not -inf: a softmax over nothing would be NaN.
        logits = logits.masked_fill(absent, torch.finfo(logits.dtype).min)
        weights = logits.softmax(2).masked_fill(absent, 0).to(pair.dtype)
        out = torch.einsum('bgthr,zbgthd->zbgrhd', weights, pair)
        return out.flatten(2, 3), some.repeat_interleave(self.rank, -1)


class DualNorm(nn.Module):
    """Layer norms for short and for long keys and values (sec. 3.3).

    Args:
        dim (int): Channels of all heads.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.short = nn.LayerNorm(dim)
        self.long = nn.LayerNorm(dim)

    def forward(self, short: torch.Tensor,
                long: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Norm ``[..., heads, head_dim]`` over both last axes."""
        return tuple(
            norm(x.flatten(-2)).to(x.dtype).view_as(x)
            for norm, x in ((self.short, short), (self.long, long)))


def joint_attention(short_query: torch.Tensor, long_query: torch.Tensor,
                    short: torch.Tensor, long: torch.Tensor,
                    keep: torch.Tensor, dropout_p: float) -> torch.Tensor:
    """Softmax over a block's own keys and the landmarks of all.

    Args:
        short_query, long_query (Tensor): ``[B, blocks, T, heads, D]``, to
            meet short and long keys.
        short (Tensor): Keys and values ``[2, B, blocks, S, heads, D]``.
        long (Tensor): Keys and values ``[2, B, M, heads, D]``.
        keep (Tensor): bool, what broadcasts to ``[B, blocks, T, S + M]``.
        dropout_p (float): Dropout on attention weights.

    Returns:
        Tensor: ``[B, blocks, T, heads, D]``; 0 where nothing is kept.
    """
    scale = short_query.shape[-1]**-.5
    logits = torch.cat([
        torch.einsum('bnthd,bnshd->bnhts', short_query, short[0]),
        torch.einsum('bnthd,bmhd->bnhtm', long_query, long[0]),
    ], -1) * scale
    some = keep.any(-1, keepdim=True)
    # Not a softmax over nothing, which would be NaN.
    logits = logits.masked_fill(~(keep | ~some)[:, :, None], -torch.inf)
    weights = F.dropout(logits.softmax(-1), dropout_p).to(short.dtype)
    near, far = weights.split([short.shape[3], long.shape[2]], -1)
    out = torch.einsum('bnhts,bnshd->bnthd', near, short[1])
    out = out + torch.einsum('bnhtm,bmhd->bnthd', far, long[1])
    return out.masked_fill(~some[..., None], 0)


class LongShortAttention1D(SequenceAttention):
    """Long-short attention over a sequence (arXiv 2107.02192, sec. 3).

    Bidirectional: ``rank`` landmarks of the whole sequence, time and memory
    O(n (window + rank)). Causal: as in the paper, ``rank`` landmarks of each
    ``segment`` tokens, and a query sees those of segments that ended before
    its own: O(n (window + n rank / segment)).

    Rotary positions turn short queries and keys; landmarks, which come from
    many positions, are met by queries that are not turned.

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        window (int): Tokens of a segment of the short part. Defaults to 64.
        rank (int): Landmarks. Defaults to 8.
        segment (int): Tokens of a segment of the long part, if causal.
            Defaults to 128.
        **common: ``qkv_bias``, ``attn_drop``, ``proj_drop``, ``causal``,
            ``positions`` and ``rotary_base`` of :class:`SequenceAttention`.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 window: int = 64,
                 rank: int = 8,
                 segment: int = 128,
                 **common: Any) -> None:
        super().__init__(dim, num_heads, **common)
        self.window = check_at_least('window', window, 1)
        self.segment = check_at_least('segment', segment, 1)
        self.landmarks = Landmarks(dim, num_heads, rank)
        self.norms = DualNorm(dim)

    def _sizes(self, length: int) -> Tuple[int, int, int]:
        """Short keys of a segment, tokens of a group, number of groups."""
        sides = 1 if self.causal else 2
        group = self.segment if self.causal else length
        return (self.window + self.window // 2 * sides, group,
                -(-length // group))

    def attention_macs(self, length: int) -> int:
        """Multiply-adds of one sequence outside the two linear layers."""
        rank, (keys, group, groups) = self.landmarks.rank, self._sizes(length)
        padded = -(-length // self.window) * self.window
        macs = 2 * padded * (keys + groups * rank) * self.dim
        # Weights of the landmarks, and the two means.
        return macs + group * groups * rank * self.dim * (self.num_heads + 2)

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
        query, key, value = self.project(x)
        real = key_mask
        if real is None:
            real = torch.ones(1, length, dtype=torch.bool, device=x.device)
        pair = torch.stack([key, value])
        _, group, _ = self._sizes(length)
        long, exists = self.landmarks(
            halo(x, 1, group, 0, 0), halo(pair, 2, group, 0, 0),
            halo(real, 1, group, 0, 0))
        pair, long = self.norms(pair, long)
        at = torch.arange(offset, offset + length, device=x.device)
        pair = torch.stack([self.turn(pair[0], at), pair[1]])
        half = self.window // 2
        sides = (self.window, half, 0 if self.causal else half)
        alone = (self.window, 0, 0)
        out = joint_attention(
            halo(self.turn(query, at), 1, *alone), halo(query, 1, *alone),
            halo(pair, 2, *sides), long, self._keep(real, exists, sides),
            self.dropout_p)
        return self.finish(out.flatten(1, 2)[:, :length])

    def _keep(self, real: torch.Tensor, exists: torch.Tensor,
              sides: Tuple[int, int, int]) -> torch.Tensor:
        """What each query sees, bool ``[B or 1, blocks, window, S + M]``.

        Args:
            real (Tensor): bool ``[B or 1, N]``, of tokens.
            exists (Tensor): bool ``[B or 1, M]``, of landmarks.
            sides (tuple[int]): As of :func:`halo`.
        """
        short = halo(real, 1, *sides)[:, :, None]  # [B, blocks, 1, S]
        blocks = short.shape[1]
        at = torch.arange(blocks * self.window, device=real.device)
        at = at.view(1, blocks, self.window, 1)
        shape = (len(real), blocks, self.window, -1)
        long = exists[:, None, None].expand(*shape)
        if self.causal:
            key = torch.arange(short.shape[-1], device=real.device) - sides[1]
            query = torch.arange(self.window, device=real.device)
            short = short & (key <= query[:, None])
            number = torch.arange(exists.shape[1], device=real.device)
            number = number.div(self.landmarks.rank, rounding_mode='floor')
            own = at.div(self.segment, rounding_mode='floor')
            long = long & (number < own)
        return torch.cat([short.expand(*shape), long], -1)

    def extra_repr(self) -> str:
        return (f'{super().extra_repr()}, window={self.window}, '
                f'rank={self.landmarks.rank}, segment={self.segment}')


class LongShortAttention(ProjectedAttention):
    """Long-short attention over a map (arXiv 2107.02192, sec. 3 and 4.3).

    Segments are squares, which see half a segment more on each side. Time
    and memory O(n (4 window^2 + rank)).

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        window (int): Side of a segment of the short part. Defaults to 7.
        rank (int): Landmarks of the map. Defaults to 8.
        **common: ``qkv_bias``, ``attn_drop`` and ``proj_drop`` of
            :class:`ProjectedAttention`.

    Raises:
        ValueError: If an argument is out of range.
    """

    mask_is_border = True

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 window: int = 7,
                 rank: int = 8,
                 **common: Any) -> None:
        super().__init__(dim, num_heads, **common)
        self.window = check_at_least('window', window, 1)
        self.landmarks = Landmarks(dim, num_heads, rank)
        self.norms = DualNorm(dim)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one image outside the two linear layers."""
        rank, side = self.landmarks.rank, self.window
        padded = -(-height // side) * -(-width // side) * side**2
        keys = (side + side // 2 * 2)**2 + rank
        macs = 2 * padded * keys * self.dim
        # Weights of the landmarks, and the two means.
        return macs + height * width * rank * self.dim * (self.num_heads + 2)

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
        real = key_mask
        if real is None:
            real = torch.ones((1, height, width),
                              dtype=torch.bool,
                              device=x.device)
        pair = torch.stack([key, value])
        long, exists = self.landmarks(
            x.flatten(1, 2)[:, None],
            pair.flatten(2, 3)[:, :, None],
            real.flatten(1)[:, None])
        pair, long = self.norms(pair, long)
        query = self._squares(query, 1, 0)
        keep = self._squares(real, 1, self.window // 2)[:, :, None]
        exists = exists[:, None, None].expand(*keep.shape[:3], -1)
        out = joint_attention(query, query,
                              self._squares(pair, 2, self.window // 2), long,
                              torch.cat([keep, exists], -1), self.dropout_p)
        # [B, rows, cols, window, window, heads, head_dim]
        out = out.unflatten(1, (-(-height // self.window), -1))
        out = out.unflatten(3, (self.window, self.window)).transpose(2, 3)
        out = out.flatten(3, 4).flatten(1, 2)
        return self.finish(out[:, :height, :width])

    def _squares(self, x: torch.Tensor, axis: int, side: int) -> torch.Tensor:
        """``[..., H, W, ...]`` to ``[..., segments, tokens of each, ...]``.

        Args:
            x (Tensor): The map.
            axis (int): Of ``H``.
            side (int): Tokens beyond the segment on each side.
        """
        x = halo(x, axis, self.window, side, side)
        x = halo(x, axis + 2, self.window, side, side)
        x = x.transpose(axis + 1, axis + 2)
        return x.flatten(axis + 2, axis + 3).flatten(axis, axis + 1)

    def extra_repr(self) -> str:
        return (f'heads={self.num_heads}, window={self.window}, '
                f'rank={self.landmarks.rank}')
