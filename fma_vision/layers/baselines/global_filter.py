"""Mixing of tokens by a learned filter over frequencies (GFNet)."""

from typing import Optional, Tuple, Union

import torch
import torch.nn as nn

from ..checks import check_rates, typed
from ..common import check_tokens, drop_masked, head_dim_of, without_autocast
from .base import check_at_least


def resize_matrix(old: int, new: int, half: bool,
                  like: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of a filter between grids of frequencies.

    Frequencies are taken in cycles per token, so that a filter does to a
    larger map what it did to a smaller one.

    Args:
        old, new (int): Tokens along the axis.
        half (bool): Frequencies from 0 to 1/2, as of a real transform; else
            the whole circle, periodic.
        like (Tensor): Gives dtype and device.

    Returns:
        Tensor: ``[new frequencies, old frequencies]``, rows summing to 1;
        the identity where ``old`` equals ``new``.
    """
    sizes = (old // 2 + 1, new // 2 + 1) if half else (old, new)
    options = dict(dtype=like.dtype, device=like.device)
    at = torch.arange(sizes[1], **options) * old / new
    if half:  # an odd size stops before 1/2
        at = at.clamp(max=sizes[0] - 1)
    away = (at[:, None] - torch.arange(sizes[0], **options)).abs()
    if not half:
        away = torch.minimum(away, old - away)
    near = (1 - away).clamp(min=0)
    return near / near.sum(-1, keepdim=True)  # a lone frequency meets itself


class GlobalFilter(nn.Module):
    """A filter over all frequencies of a map, one per channel.

    Source: arXiv 2107.00645, sec. 3.2: a 2D Fourier transform, a learned
    complex number per frequency and channel, the inverse transform; a
    circular convolution as large as the map. No projections and no heads.
    On a map of another size than the filter was made for, the filter is
    interpolated linearly over frequencies in cycles per token. Time O(n log
    n), memory O(n).

    Args:
        dim (int): Channels.
        num_heads (int): Heads, for the shared interface: only checked.
        size (int | tuple[int, int]): Height and width, in tokens, that the
            filter has a number for each frequency of. Defaults to 14.
        qkv_bias (bool): Not used: there is no such projection.
        proj_drop (float): Dropout on the output.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 size: Union[int, Tuple[int, int]] = 14,
                 qkv_bias: bool = True,
                 proj_drop: float = 0.) -> None:
        super().__init__()
        head_dim_of(dim, num_heads)
        check_rates(proj_drop=proj_drop)
        size = (size, size) if isinstance(size, int) else size
        self.dim = dim
        self.num_heads = num_heads
        self.size = tuple(check_at_least('size', s, 1) for s in size)
        # The last axis holds the real and the imaginary part.
        self.filter = nn.Parameter(
            .02 * torch.randn(self.size[0], self.size[1] // 2 + 1, dim, 2))
        self.proj_drop = nn.Dropout(proj_drop)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one image: 4 real ones per kept frequency.

        As usual, the transforms themselves (about 5 n log2 n operations per
        channel for both) are not counted; interpolating the filter is.
        """
        macs = 4 * height * (width // 2 + 1) * self.dim
        if (height, width) != self.size:
            half = self.size[1] // 2 + 1
            macs += 2 * height * self.size[0] * half * self.dim
            macs += 2 * height * half * (width // 2 + 1) * self.dim
        return macs

    def filter_for(self, height: int, width: int) -> torch.Tensor:
        """The filter of a size, complex ``[H, W // 2 + 1, dim]``."""
        weight = self.filter
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if (height, width) != self.size:
            rows = resize_matrix(self.size[0], height, False, weight)
            cols = resize_matrix(self.size[1], width, True, weight)
            weight = torch.einsum('ih,hwcz->iwcz', rows, weight)
            weight = torch.einsum('jw,iwcz->ijcz', cols, weight)
        return torch.view_as_complex(weight.contiguous())

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Filter each channel.

        Args:
            x (Tensor): ``[B, H, W, dim]``.
            key_mask (Tensor, optional): bool ``[B, H, W]``, True = real.
                Others enter as 0.

        Returns:
            Tensor: ``[B, H, W, dim]``.
        """
        grid = check_tokens(x, self.dim, 2)
        dtype = x.dtype
        x = drop_masked(x, key_mask)
        # Transforms know no bfloat16.
        with without_autocast(x.device):
            x = x.to(torch.promote_types(dtype, torch.float32))
            x = torch.fft.rfft2(x, dim=(1, 2), norm='ortho')
            x = x * self.filter_for(*grid)
            x = torch.fft.irfft2(x, s=grid, dim=(1, 2), norm='ortho')
        return self.proj_drop(x.to(dtype))

    def extra_repr(self) -> str:
        return f'dim={self.dim}, size={self.size}'
