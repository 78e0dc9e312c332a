"""Causal attention of the next tokens of texts, from a state of the past.

What a state holds is the business of whoever streams
(``fma_vision/models/lm/multipole_state.py``); C reads it as it lies there.
"""
import ctypes
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .call import checked, run
from .library import chosen_isa

_int64, _pointer = ctypes.c_int64, ctypes.c_void_p
_MAX_LEVELS = 32


class Stream(ctypes.Structure):
    """``struct fma_stream`` of ``fma.h``."""
    _fields_ = [
        *((name, _int64)
          for name in ('batch', 'length', 'heads', 'dim', 'threads', 'isa',
                       'cell', 'rank', 'mass', 'limit', 'levels', 'cells',
                       'sums_levels')),
        ('scale', ctypes.c_float),
        *((name, _pointer)
          for name in ('start', 'count', 'qkv', 'angles', 'near', 'far', 'top',
                       'sums', 'state_angles')),
        ('taps', _pointer * _MAX_LEVELS * 2),
        ('own_keys', _pointer),
        ('own_values', _pointer),
        ('own_total', _int64),
        ('own_start', _int64 * _MAX_LEVELS),
        *((name, _pointer)
          for name in ('keys', 'state_keys', 'new_near', 'new_sums', 'out')),
    ]


class Own(NamedTuple):
    """Summaries of the new tokens alone, which begin with a cell.

    Attributes:
        keys, values: packed, ``[B, M, heads, head_dim]``, keys turned.
        starts: of the levels, in the packed axis.
    """
    keys: Tensor
    values: Tensor
    starts: Sequence[int]


Taps = Sequence[Sequence[Optional[Tensor]]]


def attend(qkv: Tensor, start: Tensor, count: Tensor, state: Sequence[Tensor],
           cells: Any, **options: Any) -> Tuple[Tensor, Tensor, Tensor]:
    """Attention of new tokens to the past and to each other.

    Args:
        qkv: float32 ``[B, T, 3, heads, head_dim]``, before rotation.
        start, count, state, cells, **options: see :func:`prepare`.

    Returns:
        ``out [B, T, heads, head_dim]`` (0 beyond the tokens that a text
        reads), and the new ``near`` and ``sums``.
    """
    qkv = checked('qkv', qkv, qkv.shape, torch.float32).contiguous()
    call, results, _held = prepare(qkv, start, count, state, cells, **options)
    run('fma_stream', call)
    return results


def prepare(
    qkv: Tensor,
    start: Tensor,
    count: Tensor,
    state: Sequence[Tensor],
    cells: Any,
    angles: Optional[Tuple[Tensor, Tensor]] = None,
    own: Optional[Own] = None,
    taps: Optional[Taps] = None
) -> Tuple[Stream, Tuple[Tensor, Tensor, Tensor], List[Tensor]]:
    """The arguments of a call.

    Args:
        qkv: contiguous float32 ``[B, T, 3, heads, head_dim]``, which may be
            filled later.
        start, count: int64 ``[B]``, tokens that a text has read before, and
            reads now.
        state: ``near`` ``[2, B, 2 m, heads, head_dim]``, keys turned, ``far``
            ``[2, B, levels, 3, rank, heads, head_dim]``, ``top`` ``[2, B,
            cells, rank, heads, head_dim]`` and ``sums`` ``[2, B, levels,
            rank, heads, head_dim]``, keys not turned.
        cells: of the layer: ``cell_size`` and ``rank`` as the ops take them,
            ``mass``, whether a summary weighs as much as its tokens, and
            ``limit``, the level that lists all of its cells, or None.
        angles: cosines and sines by which the new tokens are turned, ``[B, T,
            2, head_dim / 2]``, and the keys of far and top, ``[B, (3 levels +
            cells) rank, 2, head_dim / 2]``; None turns nothing.
        own: needed where the tokens of a text lie in several leaf cells; they
            then begin with one.
        taps: weights of the tokens in the sums beside those of a mean, for
            keys and for values by level, ``[rank, width, head_dim]`` or None;
            None leaves the sums as they are.

    Returns:
        The struct, the results of :func:`attend`, and what the pointers need
        alive.
    """
    batch, length, _, heads, dim = qkv.shape
    rank, row = cells.rank, (heads, dim)
    near, far, top, sums = state
    levels, top_cells = far.shape[2], top.shape[2]
    shapes = dict(
        near=(2, batch, 2 * cells.cell_size, *row),
        far=(2, batch, levels, 3, rank, *row),
        top=(2, batch, top_cells, rank, *row),
        sums=(2, batch, sums.shape[2], rank, *row))
    near, far, top, sums = (checked(name, x, shapes[name],
                                    torch.float32).contiguous()
                            for name, x in zip(shapes, state))
    rows = (3 * levels + top_cells) * rank
    out = qkv.new_zeros(batch, length, *row)
    # One block of scratch for keys of new tokens and of the state.
    scratch = qkv.new_empty(batch * (length + rows), *row)
    new_near = torch.empty_like(near)
    new_sums = sums if taps is None else torch.empty_like(sums)
    held = [near, far, top, sums, start, count, qkv, scratch, out, new_near]
    call = Stream(batch, length, heads, dim, torch.get_num_threads(),
                  chosen_isa(), cells.cell_size, rank, cells.mass, cells.limit
                  or 0, levels, top_cells, sums.shape[2], dim**-.5,
                  start.data_ptr(), count.data_ptr(), qkv.data_ptr(), None,
                  near.data_ptr(), far.data_ptr(), top.data_ptr(),
                  sums.data_ptr())
    if angles is not None:
        held += angles
        call.angles, call.state_angles = (x.data_ptr() for x in angles)
    if own is not None:
        held += own[:2]
        call.own_keys, call.own_values = (x.data_ptr() for x in own[:2])
        call.own_total = own.keys.shape[1]
        call.own_start[:len(own.starts)] = own.starts
    if taps is not None:
        call.new_sums = new_sums.data_ptr()
        for side, by_level in zip(call.taps, taps):
            for level, weights in enumerate(by_level):
                if weights is not None:
                    held.append(weights)
                    side[level] = weights.data_ptr()
    call.keys = scratch.data_ptr()
    call.state_keys = scratch[batch * length:].data_ptr()
    call.new_near, call.out = new_near.data_ptr(), out.data_ptr()
    return call, (out, new_near, new_sums), held
