"""Depthwise convolution of channels-last maps, opaque to the compiler.

The compiler for CPUs lays out whatever has four axes around a convolution as
if it were ``[B, C, H, W]``: what a norm over ``[B, H, W, C]`` or an attention
saves for its backward pass would be shuffled and shuffled back, and the
gradient of the convolution brought to channels first.
"""

from math import prod
from typing import Any, Dict, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fma_kernels.autograd import CoreOp, differentiable
from fma_kernels.flops import FLOPS_PER_MAC, register


def _forward(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """Convolves ``[B, H, W, C]`` with ``[C, 1, k, k]``, k odd."""
    out = F.conv2d(
        x.permute(0, 3, 1, 2),
        weight,
        bias,
        padding=weight.shape[-1] // 2,
        groups=len(weight))
    return out.permute(0, 2, 3, 1).contiguous()


def _backward(grad: Tensor, x: Tensor, weight: Tensor,
              bias: Optional[Tensor]) -> List[Tensor]:
    """Gradients of the map, the weight and the bias, if there is one."""
    channels, sides = len(weight), [weight.shape[-1] // 2] * 2
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2), x.permute(0, 3, 1,
                                            2), weight, [channels], [1, 1],
        sides, [1, 1], False, [0, 0], channels, [True, True, bias is not None])
    # Two views give an axis of one entry its usual stride.
    grads = [
        grad_x.permute(0, 2, 3, 1).contiguous(),
        grad_weight.contiguous().flatten(1).view_as(weight)
    ]
    return grads if bias is None else [*grads, grad_bias]


_depthwise = differentiable(
    CoreOp('depthwise', '(Tensor x, Tensor weight, Tensor? bias) -> Tensor',
           _forward, lambda x, *_: x.new_empty(x.shape)),
    CoreOp(
        'depthwise_backward',
        '(Tensor grad, Tensor x, Tensor weight, Tensor? bias) -> Tensor[]',
        _backward, lambda grad, *inputs:
        [x.new_empty(x.shape) for x in inputs if x is not None]),
    saved=lambda inputs, _: inputs)


def _flops(given: Dict[str, Any]) -> int:
    return FLOPS_PER_MAC * prod(given['x']) * prod(given['weight'][2:])


register('depthwise', _flops, 2)


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution of ``[B, C, H, W]`` in channels-last memory.

    Args:
        dim (int): Channels.
        kernel_size (int): Odd side of the kernel; the border is zero.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def _conv_forward(self, x: Tensor, weight: Tensor,
                      bias: Optional[Tensor]) -> Tensor:
        if x.device.type == 'cpu' and torch.compiler.is_compiling():
            tensors = [x.permute(0, 2, 3, 1), weight, bias]
            if torch.is_autocast_enabled('cpu'):
                dtype = torch.get_autocast_dtype('cpu')
                tensors = [t if t is None else t.to(dtype) for t in tensors]
            return _depthwise(*tensors).permute(0, 3, 1, 2)
        # For such input the gradient of the weight comes with other
        # (equivalent) strides, about which DDP warns; two views restore them.
        return super()._conv_forward(x,
                                     weight.flatten(1).view_as(weight), bias)
