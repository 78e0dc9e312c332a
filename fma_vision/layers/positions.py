"""Position encodings for feature maps of any size."""

from typing import Optional, Union

import torch
import torch.nn as nn


class _DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution whose weight gradient has the usual strides.

    For channels-last input the gradient of ``[C, 1, k, k]`` comes with other
    (equivalent) strides, about which DDP warns; two views restore them.
    """

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor,
                      bias: Optional[torch.Tensor]) -> torch.Tensor:
        return super()._conv_forward(x,
                                     weight.flatten(1).view_as(weight), bias)


class ConditionalPosition(nn.Module):
    """Position from a residual depthwise convolution (arXiv 2102.10882).

    The zero border of the convolution tells tokens where they are, the taps
    tell them their neighbours' offsets, so no table limits the resolution.

    Args:
        dim (int): Channels.
        kernel_size (int): Odd side of the kernel. Defaults to 3.
    """

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError('kernel_size must be odd and positive, got '
                             f'{kernel_size}')
        self.conv = _DepthwiseConv2d(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, H, W, dim]`` to the same shape."""
        # The permuted view is channels-last memory: no copy either way.
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


POSITIONS = {
    'ConditionalPosition': ConditionalPosition,
    'none': nn.Identity,
}


def build_position(cfg: Optional[Union[str, dict]], dim: int) -> nn.Module:
    """Build a position encoding for maps ``[B, H, W, dim]``.

    Args:
        cfg (str | dict, optional): ``'ConditionalPosition'``, ``'none'`` or
            a dict with ``type`` and the arguments. None means ``'none'``.
        dim (int): Channels.

    Raises:
        ValueError: If the type is unknown.
    """
    cfg = dict(type=cfg or 'none') if not isinstance(cfg, dict) else dict(cfg)
    name = cfg.pop('type', None)
    key = name[len('fma_vision.'):] if isinstance(
        name, str) and name.startswith('fma_vision.') else name
    if key not in POSITIONS:
        raise ValueError(f'position type {name!r} is unknown; allowed: '
                         f'{sorted(POSITIONS)}')
    return POSITIONS[key](dim, **cfg)
