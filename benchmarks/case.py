"""A problem for the op: its inputs, the calls, and checks before timing."""
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from typing import Callable, Dict, Iterable, Optional, Sequence, Tuple

import torch
from measure import Call
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate, scaled_dot_product_attention

from fma_kernels import Hierarchy, fma1d, fma2d

Tensors = Sequence[Tensor]
Op = Callable[[Tensors], Tensor]


@dataclass(frozen=True)
class Case:
    """One problem for the op."""
    grid: Tuple[int, ...]
    cell_size: int
    heads: int = 3
    head_dim: int = 32
    batch: int = 1
    causal: bool = False
    pool_queries: bool = False
    dtype: str = 'float32'
    backend: str = 'native'
    isa: Optional[str] = None
    device: str = 'cpu'

    @property
    def hierarchy(self) -> Hierarchy:
        return Hierarchy(self.grid, self.cell_size, causal=self.causal)

    def tensors(self) -> Tensors:
        """Views of one projection, ``[B, *grid, heads, head_dim]`` each.

        With structure at all scales: averages of white noise vanish, and with
        them every error made in the far field.
        """
        shape = (self.batch, *self.grid, 3, self.heads, self.head_dim)
        packed = torch.empty(
            shape, dtype=getattr(torch, self.dtype), device=self.device)
        for x in packed.unbind(-3):
            x.copy_(self._noise())
        return packed.unbind(-3)

    def _noise(self) -> Tensor:
        total, width = 0, 1
        while width == 1 or width < max(self.grid):
            size = [-(-x // width) for x in self.grid]
            # [B heads, head_dim, *grid]
            noise = torch.randn(
                (self.batch * self.heads, self.head_dim, *size),
                device=self.device)
            total = total + interpolate(noise, self.grid)
            width *= 4
        total = total.unflatten(0, (self.batch, self.heads))
        total = total.movedim((1, 2), (-2, -1))
        return total / total.square().mean().sqrt()

    def cast(self, tensors: Tensors) -> Tensors:
        """The same numbers in the dtype of this case."""
        dtype = getattr(torch, self.dtype)
        if tensors[0].dtype == dtype:
            return tensors
        return torch.stack(list(tensors), -3).to(dtype).unbind(-3)

    def fma(self,
            tensors: Tensors,
            return_lse: bool = False,
            **options: object) -> Tensor:
        """The op under test, or its rival; with its lse if wanted."""
        if self.backend == 'flex':
            from rivals.flex import flex  # needs torch 2.9
            found = flex(*tensors, self.hierarchy, return_lse=return_lse)
            return found if return_lse else found[0]
        if self.isa:
            os.environ['FMA_KERNELS_ISA'] = self.isa
        options.update(
            cell_size=self.cell_size,
            pool_queries=self.pool_queries,
            return_lse=return_lse,
            backend=self.backend)
        if len(self.grid) == 2:
            return fma2d(*tensors, **options)
        return fma1d(*tensors, causal=self.causal, **options)

    def sdpa(self, tensors: Tensors, kernel: Optional[str] = None) -> Tensor:
        """SDPA over all tokens, in the layout of the op.

        On a GPU by FlashAttention in 16 bits, which takes no others; else
        PyTorch chooses, if no kernel is named.
        """
        if tensors[0].is_cuda and tensors[0].dtype.itemsize == 2:
            kernel = kernel or 'FLASH_ATTENTION'
        # [B, heads, tokens, head_dim]
        heads_first = (x.flatten(1, -3).transpose(1, 2) for x in tensors)
        with (sdpa_kernel(SDPBackend.__members__[kernel])
              if kernel else nullcontext()):
            out = scaled_dot_product_attention(
                *heads_first, is_causal=self.causal)
        return out.transpose(1, 2).unflatten(1, self.grid)

    @property
    def all_pairs(self) -> int:
        """Pairs of one head over all tokens."""
        tokens = prod(self.grid)
        return tokens * (tokens + 1) // 2 if self.causal else tokens**2

    def row(self, **more: object) -> dict:
        """What identifies a row of results; pairs and FLOPs are an image's."""
        flops = self.hierarchy.flops(
            self.heads, self.head_dim, pool_queries=self.pool_queries)
        return dict(
            asdict(self),
            flops=flops,
            pairs=flops // (4 * self.heads * self.head_dim),
            all_pairs=self.all_pairs,
            **more)


def call(function: Op, tensors: Tensors, mode: str) -> Call:
    """``inference``, or ``training``: forward and backward."""
    if mode == 'inference':
        return partial(function, tensors)
    leaves = [x.detach().requires_grad_() for x in tensors]
    device = leaves[0].device
    same = torch.Generator(device).manual_seed(0)
    grad = torch.randn(leaves[0].shape, generator=same, device=device)
    grad = grad.to(leaves[0].dtype)

    @torch.enable_grad()
    def training() -> tuple:
        out = function(leaves)
        return out, *torch.autograd.grad(out, leaves, grad)

    return training


# ------------------------------------------------------------------ checks
# Of the norm of the reference, for results and for gradients: results are
# rounded once, and operands of the products, two in a row for gradients.
TOLERANCES = dict(
    bfloat16=(1e-2, 2e-2), float16=(2e-3, 4e-3), float32=(1e-5, 5e-5))
# The dense oracle holds tokens x keys.
SMALL = 2500
NAMES = 'out', 'lse', 'grad_query', 'grad_key', 'grad_value'


def check(case: Case,
          tensors: Tensors,
          exact: bool = False,
          **options: object) -> Dict[str, float]:
    """Errors relative to the norm of the reference; of lse, their mean.

    The reference is float64 on the very numbers that the op is given: the
    dense oracle at small sizes, else the PyTorch backend, for the last image
    and two of its heads, as attention mixes neither. ``exact`` also holds it
    against SDPA over all tokens, where that is equal.

    Raises:
        ArithmeticError: An error is more than rounding, or a number is not
            finite anywhere.
    """
    grad = torch.randn_like(tensors[0])
    heads = sorted({0, case.heads - 1})

    def picked(x: Tensor) -> Tensor:
        return x[-1:][..., heads, :].double()

    last = dict(options)
    if 'key_mask' in options:
        last['key_mask'] = options['key_mask'][-1:]
    reference = replace(
        case, backend='naive' if prod(case.grid) <= SMALL else 'torch')
    expected = run(reference, map(picked, tensors), picked(grad), **last)
    poison(16 * tensors[0].nbytes, case.device)
    found = run(case, tensors, grad, **options)
    errors = {}
    for name, x in found.items():
        if not torch.isfinite(x).all():
            raise ArithmeticError(f'the op is wrong: {name} is not finite')
        y = expected[name]
        if name == 'lse':  # its error is one relative to a sum
            x, y, size = x[..., None], y[..., None], y.numel()**.5
        else:
            size = y.norm()
        errors[name] = float((picked(x) - y).norm() / size)
        allow(name, errors[name],
              TOLERANCES[case.dtype][name.startswith('grad')])
    if exact:
        errors['sdpa'] = against_sdpa(case, tensors, **options)
    return errors


def allow(name: str, error: float, allowed: float) -> None:
    if not error <= allowed:
        raise ArithmeticError(
            f'the op is wrong: {name} is off by {error:.1e} of its norm, '
            f'allowed are {allowed:.0e}; nothing was timed')


@torch.enable_grad()
def run(case: Case, tensors: Iterable[Tensor], grad: Tensor,
        **options: object) -> Dict[str, Tensor]:
    """Output, lse and gradients of one call."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = case.fma(leaves, return_lse=True, **options)
    grads = torch.autograd.grad(out, leaves, grad)
    return dict(zip(NAMES, (out.detach(), lse.detach(), *grads)))


def poison(nbytes: int, device: str) -> None:
    """Leaves NaN in the memory of a GPU that the next tensors will get.

    PyTorch's allocator hands out freed blocks as they are: an element that a
    kernel forgets to write, or reads before it is written, is then NaN. The
    byte 255 repeated is NaN in every floating-point format.
    """
    if torch.device(device).type != 'cuda':
        return
    torch.cuda.empty_cache()
    nbytes = min(nbytes, torch.cuda.mem_get_info()[0] // 2)
    # Requests of up to 1 MiB come from a pool of their own.
    blocks = [
        torch.full((size, ), 255, dtype=torch.uint8, device=device)
        for size in [2**19] * 64 + [nbytes]
    ]
    del blocks


def against_sdpa(case: Case, tensors: Tensors, **options: object) -> float:
    """The error with keys constant on the coarsest cells.

    There FMA is full attention, whatever the values; with pooled queries, if
    these are constant as well.
    """
    query, key, value = tensors
    width = max(case.hierarchy.widths, default=1)
    key = coarse(key, width)
    if case.pool_queries:
        query = coarse(query, width)
    poison(8 * query.nbytes, case.device)
    found = case.fma((query, key, value), **options).float()
    full = case.sdpa((query, key, value)).float()
    error = float((found - full).norm() / full.norm())
    # Both round.
    allow('what equals SDPA', error, 2 * TOLERANCES[case.dtype][0])
    return error


def coarse(x: Tensor, width: int) -> Tensor:
    """The first token of each cell of a width, in all of the cell."""
    for axis, size in enumerate(x.shape[1:-2], 1):
        index = torch.arange(size, device=x.device) // width * width
        x = x.index_select(axis, index)
    return x
