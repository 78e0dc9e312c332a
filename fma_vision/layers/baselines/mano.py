"""One windowed attention for all scales of a map (MANO)."""

from typing import List, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..checks import typed
from ..common import check_tokens, drop_masked
from .base import check_at_least
from .window import WindowAttention


class MANOAttention(nn.Module):
    """Windowed attention on a map and its smaller copies, then summed.

    Source: arXiv 2507.02748, sec. 4. Scale 0 is the map, scale l + 1 is
    scale l smaller by ``ratio`` along each axis. The same
    :class:`WindowAttention` (one set of weights) acts on each. From coarse
    to fine, result <- output of the scale + enlarged result / (i + 1) with i
    = 0, 1, ... counting the steps. Near tokens are seen at full resolution,
    distant ones through windows of coarser scales. Time and memory O(n
    window_size^2).

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        window_size (int): Side of a window, at each scale. Defaults to 7.
        ratio (int): Side of the tokens that become one. Defaults to 2.
        num_scales (int, optional): Most scales, the map itself included.
            None (the default) takes as many as it needs until the map fits
            into one window; further ones would see nothing new.
        downsample (str): ``'avg'``, the mean over real tokens, or
            ``'conv'``, a strided convolution that all scales share.
        shift (bool, optional): Move the windows by half their side. None
            (the default) shifts in every second block.
        block_index (int): Index of the block in its stage, for ``shift``.
        qkv_bias (bool): Bias in the query, key, value projection.
        attn_drop (float): Dropout on attention weights.
        proj_drop (float): Dropout on the output of each scale.

    Raises:
        ValueError: If an argument is out of range.
    """

    uses_block_index = True

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 window_size: int = 7,
                 ratio: int = 2,
                 num_scales: Optional[int] = None,
                 downsample: str = 'avg',
                 shift: Optional[bool] = None,
                 block_index: int = 0,
                 qkv_bias: bool = True,
                 attn_drop: float = 0.,
                 proj_drop: float = 0.) -> None:
        super().__init__()
        if downsample not in ('avg', 'conv'):
            raise ValueError("downsample must be 'avg' or 'conv', got "
                             f'{downsample!r}')
        self.dim = dim
        self.num_heads = num_heads
        self.ratio = check_at_least('ratio', ratio, 2)
        if num_scales is not None:
            check_at_least('num_scales', num_scales, 1)
        self.num_scales = num_scales
        self.window = WindowAttention(
            dim,
            num_heads,
            window_size,
            shift=shift,
            block_index=block_index,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop)
        self.down = (
            nn.Conv2d(dim, dim, ratio, ratio)
            if downsample == 'conv' else None)

    def grids(self, height: int, width: int) -> List[Tuple[int, int]]:
        """Height and width of each scale."""
        grids = [(height, width)]
        while max(grids[-1]) > self.window.window_size and len(
                grids) != self.num_scales:
            a, b = grids[-1]
            grids.append((-(-a // self.ratio), -(-b // self.ratio)))
        return grids

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one image outside its two linear layers.

        The linear layers of the copies and the convolution belong here.
        """
        first, *copies = self.grids(height, width)
        macs = self.window.attention_macs(*first)
        for a, b in copies:
            macs += self.window.attention_macs(a, b) + 4 * a * b * self.dim**2
            if self.down is not None:
                macs += a * b * (self.ratio * self.dim)**2
        return macs

    def _smaller(
        self, x: torch.Tensor, mask: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """The next scale of tokens ``[B, H, W, dim]`` and of their mask.

        Where tokens are missing, the others stand for them: the mean is over
        real ones, the sum of a convolution is scaled up.
        """
        x = drop_masked(x, mask)
        ratio, grid = self.ratio, x.shape[1:3]
        pad_h, pad_w = -grid[0] % ratio, -grid[1] % ratio
        real = x.new_ones(1, *grid) if mask is None else mask.to(x.dtype)
        if pad_h or pad_w:
            real = F.pad(real, (0, pad_w, 0, pad_h))
            x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        share = F.avg_pool2d(real[:, None], ratio)  # [B or 1, 1, H', W']
        x = x.permute(0, 3, 1, 2)
        if self.down is None:
            x = F.avg_pool2d(x, ratio) / share.clamp(min=ratio**-2)
        else:
            x = self.down(x)
            bias = self.down.bias.to(x.dtype)[:, None, None]
            x = (x - bias) / share.clamp(min=ratio**-2).to(x.dtype) + bias
        if mask is not None:
            mask = share[:, 0] > 0
        return x.permute(0, 2, 3, 1), mask

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Attend at every scale.

        Args:
            x (Tensor): ``[B, H, W, dim]``.
            key_mask (Tensor, optional): bool ``[B, H, W]``, True = real. A
                coarse token is real if any that it stands for is. A query
                that sees no real token yields the projection of 0, at its
                scale.

        Returns:
            Tensor: ``[B, H, W, dim]``.
        """
        grids = self.grids(*check_tokens(x, self.dim, 2))
        mask = key_mask
        outs = [self.window(x, mask)]
        for _ in grids[1:]:
            x, mask = self._smaller(x, mask)
            outs.append(self.window(x, mask))
        result = outs.pop()
        for step, out in enumerate(reversed(outs), 1):
            height, width = out.shape[1:3]
            for axis in (1, 2):
                result = result.repeat_interleave(self.ratio, axis)
            result = out + result[:, :height, :width] / step
        if self.down is not None and len(grids) == 1:
            # Trainers on several devices want a gradient of every weight.
            result = result + 0 * sum(p.sum() for p in self.down.parameters())
        return result

    def extra_repr(self) -> str:
        return f'ratio={self.ratio}, num_scales={self.num_scales}'
