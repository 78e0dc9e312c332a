"""What tests and benchmarks share: tolerances, skips and random inputs.

Needs torch only, so that a benchmark can check its op before timing it.
"""
import shutil
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .geometry import Hierarchy


class Tolerance(NamedTuple):
    """``|actual - expected| <= atol + rtol * |expected|``."""
    rtol: float
    atol: float


# Both sides accumulate in float32 (float64): what is left is the order of
# sums, and for half precision one rounding of summaries and of the result.
FORWARD = {
    torch.float64: Tolerance(1e-10, 1e-10),
    torch.float32: Tolerance(1e-4, 1e-5),
    torch.bfloat16: Tolerance(2e-2, 2e-2),
    torch.float16: Tolerance(2e-3, 2e-3),
}
# Gradients of keys sum over many queries: an error grows with the sum, not
# with the entry.
BACKWARD = {
    torch.float64: Tolerance(1e-9, 1e-9),
    torch.float32: Tolerance(1e-3, 1e-4),
    torch.bfloat16: Tolerance(5e-2, 8e-2),
    torch.float16: Tolerance(5e-3, 1e-2),
}


def assert_close(actual: Tensor,
                 expected: Tensor,
                 dtype: Optional[torch.dtype] = None,
                 grad: bool = False,
                 what: str = 'tensor') -> None:
    """Compares in float64 within the tolerance of a dtype.

    Args:
        actual, expected: tensors of one shape; infinities must agree.
        dtype: which tolerance; that of ``actual`` by default.
        grad: whether these are gradients.
        what: named in the failure.

    Raises:
        AssertionError: if they differ, or hold NaN.
    """
    rtol, atol = (BACKWARD if grad else FORWARD)[dtype or actual.dtype]
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=rtol,
        atol=atol,
        msg=lambda text: f'{what}: {text}')


def missing_compiler() -> Optional[str]:
    """Why ``torch.compile`` cannot run on this CPU, or None."""
    if any(shutil.which(name) for name in ('c++', 'g++', 'clang++', 'cl')):
        return None
    return 'torch.compile on a CPU needs a C++ compiler'


def random_qkv(shape: Tuple[int, ...],
               heads: int = 2,
               head_dim: int = 4,
               batch: int = 1,
               seed: int = 0,
               **place: Any) -> Tuple[Tensor, Tensor, Tensor]:
    """Query, key and value ``[batch, *shape, heads, head_dim]``.

    The same numbers for every ``dtype`` and ``device`` (in ``place``;
    float64 on a CPU by default), up to rounding; leaves that require
    gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    full = (3, batch, *shape, heads, head_dim)
    data = torch.randn(full, generator=generator, dtype=torch.float64)
    return tuple(x.to(**place).requires_grad_() for x in data)


def random_mask(shape: Tuple[int, ...],
                batch: int = 1,
                real: float = 0.7,
                device: str = 'cpu',
                seed: int = 0) -> Tensor:
    """bool ``[batch, *shape]``, True with probability ``real``."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((batch, *shape), generator=generator) < real).to(device)


def random_summaries(hierarchy: Hierarchy,
                     heads: int = 2,
                     head_dim: int = 4,
                     batch: int = 1,
                     seed: int = 1,
                     **place: Any) -> List[Tensor]:
    """Per level ``[batch, *grid_l, rank ** d, heads, head_dim]``, leaves.

    ``place`` is as for :func:`random_qkv`.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for grid in hierarchy.grids:
        full = (batch, *grid, hierarchy.num_parts, heads, head_dim)
        data = torch.randn(full, generator=generator, dtype=torch.float64)
        found.append(data.to(**place).requires_grad_())
    return found


def random_biases(hierarchy: Hierarchy,
                  heads: int = 2,
                  dtype: torch.dtype = torch.float64,
                  device: str = 'cpu',
                  seed: int = 4) -> Tuple[Optional[Tensor], List[Tensor]]:
    """``near_bias``, None where it is not allowed, and ``far_bias``; leaves.
    """
    generator = torch.Generator().manual_seed(seed)

    def table(*shape: int) -> Tensor:
        data = torch.randn(shape, generator=generator, dtype=torch.float64)
        return data.to(device, dtype).requires_grad_()

    d, near = hierarchy.ndim, None
    if hierarchy.num_levels or max(hierarchy.leaf_grid) <= 2:
        near = table(heads, (4 * hierarchy.cell_size - 1)**d)
    return near, [
        table(heads, hierarchy.num_parts, 7**d) for _ in hierarchy.grids
    ]
