"""Attention by its definition: one dense matrix over real tokens only."""

from typing import Optional, Tuple

import torch

from fma_kernels.geometry import hierarchy
from fma_kernels.naive import naive
from fma_vision.layers import (FMAttention1D, FMAttention2D, FullAttention,
                               WindowAttention)


def _qkv(layer, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    """Query, key, value ``[B, *grid, heads, head_dim]``."""
    shape = (*x.shape[:-1], 3, layer.num_heads, layer.head_dim)
    return layer.qkv(x).reshape(shape).unbind(-3)


def _dense(layer, x: torch.Tensor, logits_bias: torch.Tensor,
           key_mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Softmax attention with a bias ``[heads, N, N]``; -inf forbids."""
    query, key, value = (
        t.flatten(1, 2).transpose(1, 2) for t in _qkv(layer, x))
    logits = query @ key.transpose(-2, -1) * layer.head_dim**-0.5
    logits = logits + logits_bias
    if key_mask is not None:
        absent = ~key_mask.flatten(1)[:, None, None]
        logits = logits.masked_fill(absent, float('-inf'))
    weights = logits.softmax(-1).nan_to_num(0.)  # no real key: all zero
    out = (weights @ value).transpose(1, 2).reshape(x.shape)
    return layer.proj(out)


def full(layer: FullAttention, x, key_mask=None) -> torch.Tensor:
    tokens = x.shape[1] * x.shape[2]
    return _dense(layer, x, torch.zeros(1, tokens, tokens), key_mask)


def window(layer: WindowAttention, x, key_mask=None) -> torch.Tensor:
    """Tokens attend where floor((i - shift) / side) agrees on both axes."""
    size, heads = layer.window_size, layer.num_heads
    same, offset = [], []
    for n in x.shape[1:3]:
        side = min(size, n)
        shift = size // 2 if layer.shift and n > side else 0
        at = torch.arange(n)
        label = torch.div(at - shift, side, rounding_mode='floor')
        same.append(label[:, None] == label)
        offset.append((at[:, None] - at).clamp(1 - size, size - 1) + size - 1)
    table = layer.relative_position_bias_table.view(2 * size - 1, 2 * size - 1,
                                                    heads)
    # [H, W, H, W, heads]
    bias = table[offset[0][:, None, :, None], offset[1][None, :, None]]
    together = same[0][:, None, :, None] & same[1][None, :, None]
    bias = bias.masked_fill(~together[..., None], float('-inf'))
    tokens = x.shape[1] * x.shape[2]
    bias = bias.reshape(tokens, tokens, heads).permute(2, 0, 1)
    return _dense(layer, x, bias, key_mask)


def multipole(layer, x, key_mask=None) -> torch.Tensor:
    """The op by its definition, with the average as summaries."""
    tree = hierarchy(
        tuple(x.shape[1:-1]), layer.cell_size, layer.num_levels, layer.rank,
        layer.causal)
    out, _ = naive(*_qkv(layer, x), tree, mass=layer.mass, key_mask=key_mask)
    return layer.proj(out.flatten(-2))


ORACLES = {
    FMAttention1D: multipole,
    FMAttention2D: multipole,
    FullAttention: full,
    WindowAttention: window,
}


def definition(layer, x, key_mask=None) -> torch.Tensor:
    """What ``layer(x, key_mask)`` must return."""
    return ORACLES[type(layer)](layer, x, key_mask)
