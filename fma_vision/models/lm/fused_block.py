"""When a block may be one native call for a few new tokens."""

from typing import Optional

import torch
import torch.nn as nn
from torch.nn.modules import module as torch_module

from fma_kernels.backends.native.block import MOST_ROWS, Weights

from ..backbones.blocks import Mlp
from .blocks import LMBlock


def _plain(layer: nn.Module, kind: type) -> bool:
    """Whether it does what its class says, on the CPU, and nobody looks on."""
    if (type(layer) is not kind or layer._forward_hooks
            or layer._forward_pre_hooks or 'forward' in vars(layer)):
        return False
    for x in layer._parameters.values():
        # A subclass may keep its numbers elsewhere, as quantised ones do.
        if x is not None and not (type(x) in (torch.Tensor, nn.Parameter)
                                  and x.dtype == torch.float32 and x.is_cpu
                                  and x.is_contiguous()):
            return False
    return True


def weights_of(block: LMBlock, x: torch.Tensor) -> Optional[Weights]:
    """The weights of a block for one call, or None if its layers are called.

    Adapters, hooks, quantised layers and autocast have their way so.

    Args:
        block (LMBlock): In eval mode.
        x (Tensor): ``[B, T, dim]``, what it is given.
    """
    if (x.shape[0] * x.shape[1] > MOST_ROWS or torch.is_grad_enabled()
            or torch.is_autocast_enabled('cpu')
            or torch_module._has_any_global_hook()):
        return None
    mlp, attn = block.mlp, block.attn
    norms = block.norm1, block.norm2
    if not _plain(mlp, Mlp) or not _plain(mlp.act, nn.GELU):
        return None
    layers = attn.qkv, attn.proj, mlp.fc1, mlp.fc2
    if (mlp.act.approximate != 'none'
            or not all(_plain(norm, nn.LayerNorm) for norm in norms)
            or not all(_plain(layer, nn.Linear) for layer in layers)):
        return None
    # Of other shapes, the layers themselves say what does not fit.
    dim, hidden = x.shape[2], len(mlp.fc1.weight)
    shapes = (3 * dim, dim), (dim, dim), (hidden, dim), (dim, hidden)
    fits = all(
        x.weight.shape == shape and (x.bias is None or len(x.bias) == shape[0])
        for x, shape in zip(layers, shapes))
    if not fits or any(x.bias is None or x.bias.shape != (dim, )
                       for x in norms):
        return None
    return Weights(norms, layers)
