"""A block of a transformer for a few new tokens, in one call.

Its linear layers read their weights once, however many rows there are: for a
few rows that is faster than matrix products one by one.
"""
import ctypes
from itertools import accumulate
from typing import Any, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from .call import run
from .stream import Stream, prepare

# Beyond so many rows matrix products are faster.
MOST_ROWS = 8

_pointer = ctypes.c_void_p


class _Norm(ctypes.Structure):
    """``struct fma_norm`` of ``fma.h``."""
    _fields_ = [('weight', _pointer), ('bias', _pointer),
                ('epsilon', ctypes.c_double)]


class _Layer(ctypes.Structure):
    """``struct fma_layer``."""
    _fields_ = [('weight', _pointer), ('bias', _pointer)]


class _Block(ctypes.Structure):
    """``struct fma_block``."""
    _fields_ = [
        ('attention', ctypes.POINTER(Stream)),
        ('hidden', ctypes.c_int64),
        *((name, _Norm) for name in ('norm1', 'norm2')),
        *((name, _Layer) for name in ('qkv', 'proj', 'fc1', 'fc2')),
        *((name, _pointer)
          for name in ('x', 'y', 'normal', 'after', 'projected', 'between')),
    ]


class Weights(NamedTuple):
    """Of a block, float32 and contiguous, as modules of PyTorch.

    Attributes:
        norms: two of ``nn.LayerNorm``, before attention and MLP.
        layers: four of ``nn.Linear``: to query, key and value, after
            attention, and the two of the MLP, with the exact GELU between.
    """
    norms: Sequence[Any]
    layers: Sequence[Any]


def block(x: Tensor, weights: Weights, heads: int, start: Tensor,
          count: Tensor, state: Sequence[Tensor], cells: Any,
          **options: Any) -> Tuple[Tensor, Tensor, Tensor]:
    """``x + attention(norm(x))``, then the same with the MLP.

    Args:
        x: float32 ``[B, T, dim]``.
        weights: of the block.
        heads: of attention.
        start, count, state, cells, **options: see
            :func:`~fma_kernels.backends.native.stream.prepare`.

    Returns:
        ``[B, T, dim]``, and the new ``near`` and ``sums`` of the state.
    """
    x = x.contiguous()
    batch, length, dim = x.shape
    hidden = len(weights.layers[2].weight)
    rows = batch * length
    # One block of scratch for all that lies between the layers.
    sizes = 3 * rows * dim, rows * dim, rows * dim, rows * hidden
    scratch = x.new_empty(sum(sizes))
    qkv = scratch[:sizes[0]].view(batch, length, 3, heads, dim // heads)
    projected, normal, after, between = (
        scratch.data_ptr() + 4 * at for at in accumulate((0, *sizes[:-1])))
    stream, (_, near, sums), held = prepare(qkv, start, count, state, cells,
                                            **options)
    y = torch.empty_like(x)
    held += [x, scratch]
    run(
        'fma_block',
        _Block(
            ctypes.pointer(stream), hidden,
            *(_Norm(norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps)
              for norm in weights.norms),
            *(_Layer(layer.weight.data_ptr(),
                     None if layer.bias is None else layer.bias.data_ptr())
              for layer in weights.layers), x.data_ptr(), y.data_ptr(), normal,
            after, projected, between))
    return y, near, sums
