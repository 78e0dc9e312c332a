"""The arguments of the C entry points: twins of the structs in ``fma.h``."""
import ctypes
from functools import lru_cache
from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

from ...geometry import Hierarchy
from ...pooling import packed_mass
from .library import chosen_isa, library, unavailable

_int64, _pointer = ctypes.c_int64, ctypes.c_void_p
_MAX_LEVELS = 32
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Tokens of a tile where every token is near, by the number of axes.
_TILE = {1: (64, 1), 2: (8, 8)}


class Rows(ctypes.Structure):
    """``struct fma_rows``."""
    _fields_ = [('data', _pointer), ('stride', _int64 * 4)]

    @classmethod
    def of(cls, x: Tensor) -> 'Rows':
        """Of ``[B, *grid, heads, head_dim]`` or ``[B, M, heads, head_dim]``,
        the last axis contiguous."""
        batch, *grid, head, _ = x.stride()
        return cls(x.data_ptr(),
                   (batch, *grid, *(0, ) * (2 - len(grid)), head))


def usable(x: Tensor) -> bool:
    """Whether entry points that read float32 alone take this tensor."""
    return (x.device.type == 'cpu' and x.dtype == torch.float32
            and unavailable() is None)


def unit_rows(x: Tensor) -> Tensor:
    """The same numbers with a contiguous last axis, mostly without a copy."""
    if x.data_ptr() % x.element_size():  # of a buffer of something else
        return x.clone()
    return x if x.stride(-1) == 1 else x.contiguous()


def checked(name: str,
            x: Tensor,
            shape: Sequence[int],
            dtype: Optional[torch.dtype] = None) -> Tensor:
    """The tensor, if it is what C expects: a core op may be called directly.

    Args:
        dtype: None for any floating one, where it will be converted.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if x.device.type != 'cpu' or x.layout != torch.strided:
        raise ValueError(f'{name} must be a strided tensor on the CPU, got '
                         f'{x.layout} on {x.device}')
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f'{name} must have shape {tuple(shape)}, got '
                         f'{tuple(x.shape)}')
    if x.dtype != dtype and (dtype or not x.is_floating_point()):
        raise TypeError(f'{name} must be {dtype or "floating point"}, got '
                        f'{x.dtype}')
    return x


class Call(ctypes.Structure):
    """``struct fma_call``."""
    _fields_ = [
        *((name, _int64) for name in ('batch', 'heads', 'dim', 'dtype',
                                      'threads', 'isa', 'ndim')),
        *((name, _int64 * 2) for name in ('grid', 'cell', 'tile', 'rank')),
        *((name, _int64)
          for name in ('levels', 'everything', 'causal', 'total')),
        ('level_grid', _int64 * 2 * _MAX_LEVELS),
        ('level_start', _int64 * _MAX_LEVELS),
        *((name, _int64) for name in ('level', 'has_parents', 'top')),
        ('scale', ctypes.c_float),
        *((name, Rows) for name in ('query', 'key', 'value', 'query_summaries',
                                    'key_summaries', 'value_summaries')),
        ('mask', _pointer),
        ('log_mass', _pointer),
        ('log_mass_stride', _int64),
        ('near_bias', _pointer),
        ('far_bias', _pointer),
        ('near_entries', _int64),
        ('far_entries', _int64),
        ('dropout', _int64),
        ('seed', ctypes.c_uint64),
        ('threshold', ctypes.c_uint32),
        ('keep_scale', ctypes.c_float),
        *((name, _pointer)
          for name in ('out', 'lse', 'parent_out', 'parent_lse')),
        ('parent_total', _int64),
        ('grad_out', Rows),
        *((name, _pointer)
          for name in ('grad_lse', 'grad_query', 'grad_key', 'grad_value',
                       'grad_key_summaries', 'grad_value_summaries',
                       'grad_near_bias', 'grad_far_bias', 'grad_parent_out',
                       'grad_parent_lse')),
    ]


class Pooling(ctypes.Structure):
    """``struct fma_pooling``."""
    _fields_ = [
        *((name, _int64) for name in ('batch', 'heads', 'dim', 'dtype',
                                      'threads', 'levels', 'total', 'add')),
        *((name, _int64 * 2) for name in ('grid', 'cell', 'rank')),
        ('level_grid', _int64 * 2 * _MAX_LEVELS),
        ('level_start', _int64 * _MAX_LEVELS),
        ('tokens', Rows),
        ('mask', _pointer),
        ('scale', _pointer),
        ('scale_stride', _int64),
        ('packed', _pointer),
        ('grad', _pointer),
    ]


class Weighing(ctypes.Structure):
    """``struct fma_weighing``."""
    _fields_ = [
        *((name, _int64)
          for name in ('batch', 'heads', 'dim', 'threads', 'parts')),
        *((name, _int64 * 2) for name in ('grid', 'cells', 'width')),
        ('tokens', Rows),
        ('taps', _pointer),
        ('out', _pointer),
    ]


def pair(sides: Sequence[int]) -> Tuple[int, int]:
    """A sequence is an image of one column."""
    return tuple(sides) if len(sides) == 2 else (sides[0], 1)


@lru_cache(maxsize=256)
def _levels(hierarchy: Hierarchy) -> Tuple[ctypes.Array, ctypes.Array]:
    """``level_grid`` and ``level_start``."""
    grids = [(_int64 * 2)(*pair(grid)) for grid in hierarchy.grids]
    return ((_int64 * 2 * _MAX_LEVELS)(*grids),
            (_int64 * _MAX_LEVELS)(*hierarchy.level_starts))


def fill_geometry(call: ctypes.Structure, query: Tensor,
                  hierarchy: Hierarchy) -> None:
    """Sizes, levels, dtype and threads; ``query`` has heads and channels."""
    if query.dtype not in _DTYPES:
        raise TypeError('the native kernels take '
                        f'{[str(x) for x in _DTYPES]}, got {query.dtype}')
    sides = (hierarchy.ndim * (hierarchy.cell_size, ),
             hierarchy.ndim * (hierarchy.rank, ))
    call.batch, call.heads, call.dim = (query.shape[0], query.shape[-2],
                                        query.shape[-1])
    call.dtype = _DTYPES[query.dtype]
    call.threads = torch.get_num_threads()
    call.grid = pair(hierarchy.shape)
    call.cell, call.rank = (pair(x) for x in sides)
    call.levels = hierarchy.num_levels
    call.total = hierarchy.num_summaries
    call.level_grid, call.level_start = _levels(hierarchy)


@lru_cache(maxsize=64)
def _log_mass_of_grid(hierarchy: Hierarchy, use_mass: bool) -> Tensor:
    with torch.inference_mode(False):
        return _log_mass(packed_mass(hierarchy), use_mass)


def _log_mass(mass: Tensor, use_mass: bool) -> Tensor:
    """float32 log2 of int64 masses; -inf where there is none."""
    mass = mass.contiguous() if use_mass else mass.clamp(max=1)
    bias = mass.new_empty(mass.shape, dtype=torch.float32)
    library().fma_log2(
        _int64(mass.numel()), _pointer(mass.data_ptr()),
        _pointer(bias.data_ptr()))
    return bias


def log_mass(hierarchy: Hierarchy, key_mask: Optional[Tensor],
             use_mass: bool) -> Tensor:
    """float32 ``[B or 1, M_total]``."""
    if key_mask is None:
        return _log_mass_of_grid(hierarchy, use_mass)
    return _log_mass(packed_mass(hierarchy, key_mask), use_mass)


@lru_cache(maxsize=64)
def _shares_of_grid(hierarchy: Hierarchy) -> Tensor:
    with torch.inference_mode(False):
        return 1 / packed_mass(hierarchy).clamp(min=1).to(torch.float32)


def shares(hierarchy: Hierarchy, key_mask: Optional[Tensor]) -> Tensor:
    """1 / mass, float32 ``[B or 1, M_total]``."""
    if key_mask is None:
        return _shares_of_grid(hierarchy)
    mass = packed_mass(hierarchy, key_mask)
    return 1 / mass.clamp(min=1).to(torch.float32)


def batch_stride(x: Tensor) -> int:
    """Of ``[B or 1, M]``: 0 where it is shared."""
    return 0 if x.shape[0] == 1 else x.stride(0)


def new_call(query: Tensor, hierarchy: Hierarchy, scale: float) -> Call:
    """What all calls share; rows and results are left to the caller."""
    call = Call()
    fill_geometry(call, query, hierarchy)
    call.isa, call.ndim = chosen_isa(), hierarchy.ndim
    call.scale, call.causal = scale, hierarchy.causal
    call.everything = not hierarchy.num_levels
    call.tile = call.cell if hierarchy.num_levels else _TILE[hierarchy.ndim]
    return call


def set_dropout(call: Call, dropout_p: float, seed: Optional[Tensor]) -> None:
    if dropout_p:
        if not 0 < dropout_p < 1:
            raise ValueError(f'dropout_p must be in [0, 1), got {dropout_p}')
        if seed is None:
            raise ValueError('seed must be given where dropout_p > 0')
        call.dropout = 1
        call.seed = int(seed) & (2**64 - 1)
        call.threshold = int(dropout_p * 2.0**32)
        call.keep_scale = 1 / (1 - dropout_p)


def run(entry: str, call: ctypes.Structure) -> None:
    """Calls C, which releases the interpreter.

    Raises:
        MemoryError: if there is none left for scratch.
    """
    if getattr(library(), entry)(ctypes.byref(call)):
        raise MemoryError(f'{entry} of the native kernels found no memory')
