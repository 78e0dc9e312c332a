"""A problem for the op: its inputs, the calls, and checks before timing."""
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from typing import Callable, Dict, Optional, Sequence, Tuple

import torch
from measure import Call
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fma_kernels import Hierarchy, fma1d, fma2d

# Largest errors that are rounding; gradients are sums over many queries.
LIMITS = dict(float32=1e-4, float16=2e-2, bfloat16=2e-1)
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
            grid = [-(-size // width) for size in self.grid]
            noise = torch.randn(
                self.batch,
                *grid,
                self.heads,
                self.head_dim,
                device=self.device)
            for axis, size in enumerate(self.grid, 1):
                noise = noise.repeat_interleave(width, axis)
                noise = noise.narrow(axis, 0, size)
            total = total + noise
            width *= 4
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

        Args:
            tensors: ``[B, *grid, heads, head_dim]`` each.
            kernel: By PyTorch's name. On a GPU it is FlashAttention in 16
                bits, which takes no others; else PyTorch chooses.
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
    """``inference``, ``training`` (forward and backward) or ``backward``."""
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

    if mode == 'training':
        return training
    with torch.enable_grad():
        out = function(leaves)
    return partial(torch.autograd.grad, out, leaves, grad, retain_graph=True)


# ------------------------------------------------------------------ checks
def difference(first: Tensor, second: Tensor) -> float:
    return float((first.double() - second.double()).abs().max())


def coarse(x: Tensor, width: int) -> Tensor:
    """The first token of each cell of a width, in all of the cell."""
    for axis, size in enumerate(x.shape[1:-2], 1):
        index = torch.arange(size, device=x.device) // width * width
        x = x.index_select(axis, index)
    return x


def against_oracle(case: Case) -> Dict[str, float]:
    """Errors of output and gradients, on a small ragged grid."""
    m = case.cell_size
    # Two levels at least; the oracle holds tokens x keys.
    grids = {1: (19 * m + m // 2 + 1, ), 2: (5 * m + 1, 4 * m + 3)}
    small = replace(case, grid=grids[len(case.grid)])
    tensors = small.tensors()
    found, oracle = (
        call(replace(small, backend=backend).fma, tensors, 'training')()
        for backend in (case.backend, 'naive'))
    names = 'out', 'grad_query', 'grad_key', 'grad_value'
    return dict(zip(names, map(difference, found, oracle)))


def check(case: Case,
          tensors: Tensors,
          exact: Optional[Tuple[Tensors, Tensor]] = None) -> Dict[str, float]:
    """The largest errors of the op.

    Args:
        case: What is to be measured.
        tensors: On these.
        exact: Tensors on which SDPA gave this output, and the op must.

    Raises:
        RuntimeError: An error is not rounding.
    """
    query, key, value = tensors
    errors = against_oracle(case)
    mean = value.double().mean(tuple(range(1, value.dim() - 2)), True)
    if case.causal:
        count = torch.arange(1, value.shape[1] + 1)[:, None, None]
        mean = value.double().cumsum(1) / count
    errors['mean'] = difference(
        case.fma((query, torch.zeros_like(key), value)), mean)
    if exact is not None:
        inputs, out = exact
        errors['sdpa'] = difference(case.fma(case.cast(inputs)), out)
    if case.pool_queries:
        width = max(case.hierarchy.widths, default=1)
        asked = coarse(query, width), key, value
        plain = replace(case, pool_queries=False)
        errors['plain'] = difference(case.fma(asked), plain.fma(asked))
    if not all(error <= LIMITS[case.dtype] for error in errors.values()):
        raise RuntimeError(f'the op is wrong: {errors} for {case}; nothing '
                           'was timed')
    return errors
