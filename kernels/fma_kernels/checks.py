"""Argument checks of the public ops, and what each backend can run."""
import os
from importlib.util import find_spec
from typing import List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from .backends.native.library import unavailable
from .geometry import Hierarchy
from .pooling import accumulation_dtype

_HAS_TRITON = find_spec('triton') is not None
# Triton's interpreter runs kernels on a CPU; it is chosen at import.
_INTERPRETED = os.environ.get('TRITON_INTERPRET', '0') == '1'
_NO_EXPORT = "ONNX export takes PyTorch's operators: backend='torch'"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _check_tensor(name: str, value) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f'{name} must be a torch.Tensor, got '
                        f'{type(value).__name__}')


def check_qkv(query: Tensor, key: Tensor, value: Tensor, ndim: int) -> None:
    """``query``, ``key``, ``value``: ``[B, *grid, heads, head_dim]``."""
    layout = {1: '[B, N, heads, head_dim]', 2: '[B, H, W, heads, head_dim]'}
    for name, x in (('query', query), ('key', key), ('value', value)):
        _check_tensor(name, x)
        if x.dim() != ndim + 3:
            raise ValueError(f'{name} must be {layout[ndim]}, got shape '
                             f'{tuple(x.shape)}')
        if x.dtype not in DTYPES:
            raise TypeError(f'{name} must have one of the dtypes '
                            f'{[str(d) for d in DTYPES]}, got {x.dtype}')
        if any(size < 1 for size in x.shape[1:]):
            raise ValueError(f'{name} must have no empty axis but the '
                             f'batch, got shape {tuple(x.shape)}')
    for name, x in (('key', key), ('value', value)):
        if x.shape != query.shape:
            raise ValueError(f'{name} must have the shape of query '
                             f'{tuple(query.shape)}, got {tuple(x.shape)}')
        if x.dtype != query.dtype:
            raise TypeError(f'{name} must have the dtype of query '
                            f'{query.dtype}, got {x.dtype}')
        if x.device != query.device:
            raise ValueError(f'{name} must be on the device of query '
                             f'{query.device}, got {x.device}')


def check_options(dtype: torch.dtype, scale, dropout_p, dropout_seed,
                  **flags) -> None:
    """Scalars: scale of logits of a dtype, dropout, boolean switches."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f'{name} must be a bool, got {value!r}')
    if scale is not None and (isinstance(scale, bool)
                              or not isinstance(scale, (int, float))):
        raise TypeError(f'scale must be a number or None, got {scale!r}')
    dtype = accumulation_dtype(dtype)
    # False for NaN; Python compares integers of any size with a float.
    if scale is not None and not abs(scale) <= torch.finfo(dtype).max:
        raise ValueError(f'scale must be finite in {dtype}, got {scale!r}')
    if isinstance(dropout_p, bool) or not isinstance(dropout_p, (int, float)):
        raise TypeError(f'dropout_p must be a number, got {dropout_p!r}')
    if not 0 <= dropout_p < 1:
        raise ValueError(f'dropout_p must be in [0, 1), got {dropout_p}')
    if dropout_seed is not None and (isinstance(dropout_seed, bool)
                                     or not isinstance(dropout_seed, int)):
        raise TypeError('dropout_seed must be an int or None, got '
                        f'{dropout_seed!r}')


def check_pooled_queries(pool_queries: bool,
                         query_summaries: Union[None, Tensor, List[Tensor]],
                         causal: bool) -> None:
    """What does not go with, or without, ``pool_queries``."""
    if pool_queries and causal:
        raise ValueError('pool_queries must be False when causal=True, got '
                         'True: a pooled query mixes later tokens into '
                         'earlier outputs')
    if query_summaries is not None and not pool_queries:
        raise ValueError('query_summaries must be None unless '
                         'pool_queries=True, got '
                         f'{type(query_summaries).__name__}')


def check_key_mask(key_mask: Optional[Tensor], query: Tensor) -> None:
    if key_mask is None:
        return
    _check_tensor('key_mask', key_mask)
    if key_mask.dtype != torch.bool:
        raise TypeError('key_mask must be a bool tensor (True = real), got '
                        f'{key_mask.dtype}')
    if key_mask.shape != query.shape[:-2]:
        raise ValueError('key_mask must be [B, *grid] = '
                         f'{tuple(query.shape[:-2])}, got '
                         f'{tuple(key_mask.shape)}')
    if key_mask.device != query.device:
        raise ValueError(f'key_mask must be on the device of query '
                         f'{query.device}, got {key_mask.device}')


def _check_floating(name: str, x: Tensor, layout: str, shape: Tuple[int, ...],
                    query: Tensor) -> None:
    _check_tensor(name, x)
    if x.shape != shape:
        raise ValueError(f'{name} must be {layout} = {shape}, got '
                         f'{tuple(x.shape)}')
    if not x.dtype.is_floating_point:
        raise TypeError(f'{name} must be floating point, got {x.dtype}')
    if x.device != query.device:
        raise ValueError(f'{name} must be on the device of query '
                         f'{query.device}, got {x.device}')


def check_summaries(name: str, summaries: Union[None, Tensor, List[Tensor]],
                    query: Tensor, hierarchy: Hierarchy) -> None:
    """Per level ``[B, *grid_l, rank ** d, heads, head_dim]``, or packed.

    Packed are all levels in one tensor ``[B, M_total, heads, head_dim]``.
    """
    if summaries is None:
        return
    batch, heads, dim = query.shape[0], *query.shape[-2:]
    if isinstance(summaries, Tensor) and summaries.dim() == 4:
        _check_floating(f'{name}, packed,', summaries,
                        '[B, M_total, heads, head_dim]',
                        (batch, hierarchy.num_summaries, heads, dim), query)
        return
    if not isinstance(summaries, (list, tuple)):
        found = type(summaries).__name__
        if isinstance(summaries, Tensor):
            found += f' of shape {tuple(summaries.shape)}'
        raise TypeError(f'{name} must be a list with one tensor per level, or '
                        'packed in one tensor [B, M_total, heads, head_dim], '
                        f'got {found}')
    if len(summaries) != hierarchy.num_levels:
        raise ValueError(f'{name} must hold one tensor for each of the '
                         f'{hierarchy.num_levels} levels, got '
                         f'{len(summaries)}')
    for level, (x, grid) in enumerate(zip(summaries, hierarchy.grids), 1):
        _check_floating(f'{name} of level {level}', x,
                        '[B, *grid_l, rank ** d, heads, head_dim]',
                        (batch, *grid, hierarchy.num_parts, heads, dim), query)


def check_biases(near_bias: Optional[Tensor], far_bias: Optional[List[Tensor]],
                 query: Tensor, hierarchy: Hierarchy) -> None:
    """``near_bias [heads, (4m-1)^d]``; ``far_bias [heads, rank^d, 7^d]``."""
    d, m, heads = hierarchy.ndim, hierarchy.cell_size, query.shape[-2]
    if near_bias is not None:
        shape = (heads, (4 * m - 1)**d)
        _check_floating('near_bias', near_bias, '[heads, (4m-1)^d]', shape,
                        query)
        if hierarchy.num_levels == 0 and max(hierarchy.leaf_grid) > 2:
            raise ValueError('near_bias covers neighbouring cells only; it '
                             'must be None when num_levels=0 on a grid of '
                             f'{hierarchy.leaf_grid} cells')
    if far_bias is not None:
        if not isinstance(far_bias, (list, tuple)):
            raise TypeError('far_bias must be a list with one tensor per '
                            f'level, got {type(far_bias).__name__}')
        if len(far_bias) != hierarchy.num_levels:
            raise ValueError('far_bias must hold one tensor for each of the '
                             f'{hierarchy.num_levels} levels, got '
                             f'{len(far_bias)}')
        shape = (heads, hierarchy.num_parts, 7**d)
        for level, bias in enumerate(far_bias, 1):
            _check_floating(f'far_bias of level {level}', bias,
                            '[heads, rank^d, 7^d]', shape, query)


class Request(NamedTuple):
    """What a backend must know to say whether it can run.

    Attributes:
        device, dtype, head_dim: of the query.
        near_bias, far_bias, pool_queries: whether these are asked for.
    """
    device: torch.device
    dtype: torch.dtype
    head_dim: int
    near_bias: bool = False
    far_bias: bool = False
    pool_queries: bool = False

    @classmethod
    def of(cls,
           query: Tensor,
           near_bias: Optional[Tensor] = None,
           far_bias: Optional[Sequence[Tensor]] = None,
           pool_queries: bool = False) -> 'Request':
        """From the arguments of the public ops."""
        return cls(query.device, query.dtype, query.shape[-1], near_bias
                   is not None, far_bias is not None, pool_queries)


def _refuse_biases(request: Request) -> Optional[str]:
    for name in ('near_bias', 'far_bias'):
        if getattr(request, name):
            if request.pool_queries:
                return (f"it has no {name} for pool_queries yet; "
                        "backend='naive' has, at quadratic memory")
            return f"it has no {name} yet; backend='torch' has"
    return None


@torch.compiler.assume_constant_result
def _capability(device: int) -> Tuple[int, int]:
    """Of a CUDA device; the compiler asks once and keeps the answer."""
    return torch.cuda.get_device_capability(device)


def refuse_triton(request: Request) -> Optional[str]:
    """Why the fused kernels cannot run, or None."""
    if not _HAS_TRITON:
        return 'the package triton is not installed'
    if request.device.type != 'cuda':
        if request.device.type != 'cpu' or not _INTERPRETED:
            return f'it needs a CUDA device, not {request.device}'
    elif torch.version.hip:
        return 'it is for NVIDIA GPUs'
    else:
        capability = _capability(request.device.index or 0)
        if capability < (7, 5):
            return 'it needs compute capability 7.5 or newer'
        if request.dtype == torch.bfloat16 and capability < (8, 0):
            return 'bfloat16 needs compute capability 8.0 or newer'
    if torch.onnx.is_in_onnx_export():
        return _NO_EXPORT
    if request.dtype == torch.float64:
        return 'it has no float64'
    if request.head_dim > 128:
        return f'head_dim must be at most 128, got {request.head_dim}'
    return _refuse_biases(request)


def refuse_torch(request: Request) -> Optional[str]:
    """Why the PyTorch backend cannot run, or None."""
    return _refuse_biases(request) if request.pool_queries else None


def refuse_native(request: Request) -> Optional[str]:
    """Why the fused kernels in C cannot run, or None."""
    if request.device.type != 'cpu':
        return f'it needs a CPU, not {request.device}'
    if torch.onnx.is_in_onnx_export():
        return _NO_EXPORT
    if request.dtype == torch.float64:
        return "it has no float64; backend='torch' has"
    if request.pool_queries:
        reason = _refuse_biases(request)
        if reason is not None:
            return reason
    return unavailable()


def refuse_naive(request: Request) -> Optional[str]:
    """The oracle runs everything: None."""
    return None


REFUSALS = {
    'triton': refuse_triton,
    'native': refuse_native,
    'torch': refuse_torch,
    'naive': refuse_naive
}
# Best first: 'auto' takes the first that does not refuse.
AUTO = ('triton', 'native', 'torch', 'naive')


def refusal(backend: str, request: Request) -> Optional[str]:
    """Why ``'auto'`` passes a backend over, or None."""
    if backend == 'triton' and request.device.type == 'cpu':
        # Not even interpreted, which is for tests.
        return 'it needs a CUDA device, not cpu'
    return REFUSALS[backend](request)


def can_run(backend: str, request: Request, raise_error: bool = False) -> bool:
    """Whether a backend takes such arguments.

    Raises:
        ValueError: if there is no such backend; with the reason, if it
            cannot run and ``raise_error`` is set.
    """
    if not isinstance(backend, str) or backend not in REFUSALS:
        raise ValueError(f"backend must be 'auto' or one of {list(REFUSALS)}, "
                         f'got {backend!r}')
    reason = REFUSALS[backend](request)
    if reason is not None and raise_error:
        raise ValueError(f'backend={backend!r} cannot run: {reason}')
    return reason is None
