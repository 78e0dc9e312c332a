"""Shifted window attention with relative position bias."""

from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import trunc_normal_

from ..checks import typed
from ..common import check_tokens, drop_masked
from .base import MapAttention, check_at_least


class WindowAttention(MapAttention):
    """Attention inside (shifted) windows, as in Swin (arXiv 2103.14030).

    Maps of any size are padded inside; padded tokens are never attended.
    Where a map is no larger than the window along an axis, that axis is not
    shifted and its window is the map.

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        window_size (int): Side of a window in tokens. Defaults to 7.
        shift (bool, optional): Move the windows by half their side. None
            (the default) shifts in every second block.
        block_index (int): Index of the block in its stage, for ``shift``.
        qkv_bias (bool): Bias in the query, key, value projection.
        attn_drop (float): Dropout on attention weights.
        proj_drop (float): Dropout on the output.
        positions (str, optional): ``'rotary'``, beside the bias, or None.
        rotary_base (float): Base of the rotary angles. Defaults to 100.

    Raises:
        ValueError: If an argument is out of range.
    """

    uses_block_index = True

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 window_size: int = 7,
                 shift: Optional[bool] = None,
                 block_index: int = 0,
                 qkv_bias: bool = True,
                 attn_drop: float = 0.,
                 proj_drop: float = 0.,
                 positions: Optional[str] = None,
                 rotary_base: float = 100.) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop,
                         positions, rotary_base)
        self.window_size = check_at_least('window_size', window_size, 1)
        self.shift = block_index % 2 == 1 if shift is None else shift
        # One row per (vertical, horizontal) offset, row-major.
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1)**2, num_heads))
        trunc_normal_(self.relative_position_bias_table, std=.02)

    def no_weight_decay(self) -> set:
        """Names of parameters that should not decay."""
        return {'relative_position_bias_table'}

    def _layout(self, size: int) -> Tuple[int, int, int]:
        """Window side, number of windows and shift along an axis."""
        side = min(self.window_size, size)
        shift = self.window_size // 2 if self.shift and size > side else 0
        return side, -(-size // side), shift

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one image outside the two linear layers."""
        (a, rows, _), (b, cols, _) = self._layout(height), self._layout(width)
        return 2 * rows * cols * (a * b)**2 * self.dim

    def _bias(self, side: Tuple[int, int]) -> torch.Tensor:
        """Relative bias ``[heads, N, N]`` of a window of N tokens."""
        span = 2 * self.window_size - 1
        table = self.relative_position_bias_table
        offset = []
        for s in side:
            at = torch.arange(s, device=table.device)
            offset.append(at[:, None] - at[None] + self.window_size - 1)
        index = (offset[0][:, None, :, None] * span +
                 offset[1][None, :, None, :])  # [a, b, a, b]
        index = index.reshape(side[0] * side[1], -1)
        return table[index].permute(2, 0, 1)

    @staticmethod
    def _regions(size: int, side: int, count: int, shift: int,
                 device: torch.device) -> torch.Tensor:
        """Label ``[count, side]`` of the window each rolled row came from.

        Rows attend each other where labels agree; padding has its own label,
        so that it attends itself only and no softmax is over nothing.
        """
        at = torch.arange(count * side, device=device)
        label = (at - shift).div(side, rounding_mode='floor')
        label = label.masked_fill(at >= size, -2)
        return label.roll(-shift).view(count, side)

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Attend inside windows.

        Args:
            x (Tensor): ``[B, H, W, dim]``.
            key_mask (Tensor, optional): bool ``[B, H, W]``, True = real. A
                query that sees no real token yields the projection of 0.

        Returns:
            Tensor: ``[B, H, W, dim]``.
        """
        height, width = check_tokens(x, self.dim, 2)
        x = drop_masked(x, key_mask)
        a, rows, shift_h = self._layout(height)
        b, cols, shift_w = self._layout(width)
        pad_h, pad_w = rows * a - height, cols * b - width
        batch, windows, tokens = x.shape[0], rows * cols, a * b

        def partition(t: torch.Tensor) -> torch.Tensor:
            """``[B, H, W, C]`` to ``[B, rows, cols, a, b, C]``."""
            if pad_h or pad_w:
                t = F.pad(t, (0, 0, 0, pad_w, 0, pad_h))
            if shift_h or shift_w:
                t = t.roll((-shift_h, -shift_w), (1, 2))
            t = t.reshape(batch, rows, a, cols, b, t.shape[-1])
            return t.transpose(2, 3)

        # Places in the window do: logits know differences of places only.
        query, key, value = self.project(partition(x))
        # [B*windows, heads, N, head_dim]; padding is masked below
        query, key, value = (
            t.reshape(batch * windows, tokens, *t.shape[-2:]).transpose(1, 2)
            for t in (self.turn(query), self.turn(key), value))
        bias = self._bias((a, b)).to(query.dtype)[None]  # [1, heads, N, N]
        keep = None  # bool [1 or B, windows, N, N]
        if pad_h or pad_w or shift_h or shift_w:
            row = self._regions(height, a, rows, shift_h, x.device)
            col = self._regions(width, b, cols, shift_w, x.device)
            row = row[:, :, None] == row[:, None]  # [rows, a, a]
            col = col[:, :, None] == col[:, None]  # [cols, b, b]
            keep = (
                row[:, None, :, None, :, None]
                & col[None, :, None, :, None, :])
            keep = keep.reshape(1, windows, tokens, tokens)
        some = None
        if key_mask is not None:
            real = partition(key_mask[...,
                                      None]).reshape(batch, windows, 1, tokens)
            keep = real & keep if keep is not None else real.expand(
                -1, -1, tokens, -1)
            some = keep.any(-1, keepdim=True)
            keep = keep | ~some  # a softmax over nothing would be NaN
            some = some.flatten(0, 1)[:, None]  # [B*windows, 1, N, 1]
        if keep is not None:
            keep = keep.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
            bias = bias.masked_fill(~keep, float('-inf'))
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.expand(batch * windows, -1, -1, -1),
            dropout_p=self.dropout_p)
        if some is not None:
            out = out.masked_fill(~some, 0)
        heads = self.num_heads, self.head_dim
        out = out.transpose(1, 2).reshape(batch, rows, cols, a, b, *heads)
        out = out.transpose(2, 3).reshape(batch, rows * a, cols * b, *heads)
        if shift_h or shift_w:
            out = out.roll((shift_h, shift_w), (1, 2))
        return self.finish(out[:, :height, :width])
