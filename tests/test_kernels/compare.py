"""What the backends' tests share: comparison with the oracle."""
from typing import Callable, List, Optional

import pytest
import torch
from torch import Tensor

from fma_kernels import Hierarchy, fma1d, fma2d
from fma_kernels.checks import REFUSALS, Request
from fma_kernels.pooling import masses
from fma_kernels.testing import (assert_close, random_biases, random_qkv,
                                 random_summaries)

# Where Triton's kernels run: on a GPU, or interpreted.
TRITON_DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def place(backend: str) -> dict:
    """Device and most exact dtype of a backend, as keyword arguments."""
    if backend == 'triton':
        return dict(device=TRITON_DEVICE, dtype=torch.float32)
    exact = torch.float32 if backend == 'native' else torch.float64
    return dict(device='cpu', dtype=exact)


def missing(backend: str) -> Optional[str]:
    """Why a backend does not run here, or None; 'auto' always does."""
    if backend == 'auto':
        return None
    device, dtype = place(backend).values()
    return REFUSALS[backend](Request(torch.device(device), dtype, 4))


def missing_triton() -> Optional[str]:
    """Why no Triton kernel runs here, or None."""
    return missing('triton')


def backends(*names: str) -> pytest.MarkDecorator:
    """A test of each; skipped, with the reason, where one does not run."""
    return pytest.mark.parametrize('backend', [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                missing(name) is not None, reason=str(missing(name))))
        for name in names
    ])


# Those that take every argument, on a CPU.
CPU_BACKENDS = backends('torch', 'native')


def op(shape) -> Callable:
    """The public function for a token grid."""
    return fma1d if len(shape) == 1 else fma2d


def run(backend: str, inputs: List[Tensor], shape, summaries: bool,
        **options) -> List[Tensor]:
    """[out, lse, gradient of every input] for fixed random slopes.

    Args:
        inputs: query, key, value; summaries; ``[heads, (4m - 1) ** d]`` and
            per level ``[heads, rank ** d, 7 ** d]``, the biases.
        summaries: whether there are any.
    """
    tables = [x for x in inputs if x.dim() < 4]
    q, k, v, *levels = inputs[:len(inputs) - len(tables)]
    if tables and tables[0].dim() == 2:
        options['near_bias'], *tables = tables
    if tables:
        options['far_bias'] = tables
    if summaries:
        kinds = summary_kinds(options)
        count = len(levels) // len(kinds)
        for i, kind in enumerate(kinds):
            options[kind] = levels[i * count:(i + 1) * count]
    results = op(shape)(q, k, v, backend=backend, return_lse=True, **options)
    generator = torch.Generator().manual_seed(3)
    slopes = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        for x in results
    ]
    grads = torch.autograd.grad(results, inputs, slopes, allow_unused=True)
    assert all(grad is not None for grad in grads)
    return [*results, *grads]


def summary_kinds(options: dict) -> List[str]:
    """The arguments that take summaries, by the other options."""
    kinds = ['key_summaries', 'value_summaries']
    return kinds + ['query_summaries'] * options.get('pool_queries', False)


def check_op(function: Callable, args: tuple, **tolerance) -> None:
    """A core op: what opcheck tests, and the Function around it compiled.

    Args:
        function: as :func:`fma_kernels.autograd.differentiable` makes it.
        args: of the flat schema; leaves require gradients.
        tolerance: rtol and atol.
    """
    torch.library.opcheck(
        getattr(torch.ops.fma_kernels, function.__name__).default,
        tuple(x.detach() if isinstance(x, Tensor) else x for x in args),
        test_utils=('test_schema', 'test_faketensor',
                    'test_aot_dispatch_static'),
        **tolerance)
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    torch._dynamo.reset()  # one shape, seen for the first time
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
    results = []
    for call in (function, compiled):
        found = call(*args)
        found = (found, ) if isinstance(found, Tensor) else found
        slopes = [x.detach().clamp(min=0).cos() for x in found]
        results.append([*found, *torch.autograd.grad(found, leaves, slopes)])
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected, **tolerance)


def _fill(x: Tensor, absent: Tensor) -> Tensor:
    """NaN in all channels of tokens or summaries; a leaf."""
    x = x.detach().masked_fill(absent[..., None, None], torch.nan)
    return x.requires_grad_()


def leaves(h: Hierarchy,
           dtype: torch.dtype,
           batch: int = 1,
           heads: int = 2,
           head_dim: int = 4,
           kinds: int = 0,
           biases: bool = False,
           mask: Optional[Tensor] = None,
           dirty: bool = True) -> List[Tensor]:
    """Random inputs on the CPU, as :func:`run` takes them.

    Args:
        kinds: how many arguments take summaries of all levels.
        biases: whether there are tables.
        mask: bool ``[B, *grid]``.
        dirty: whether keys and values of what is absent hold NaN: masked
            tokens and, of given summaries, those of mass 0.
    """
    inputs = list(random_qkv(h.shape, heads, head_dim, batch, dtype=dtype))
    if mask is not None and dirty:
        inputs[1:] = [_fill(x, ~mask) for x in inputs[1:]]
    counts = masses(h, mask)
    for seed in range(1, 1 + kinds):
        levels = random_summaries(h, heads, head_dim, batch, seed, dtype=dtype)
        if dirty:
            levels = [_fill(x, c == 0) for x, c in zip(levels, counts)]
        inputs += levels
    if biases:
        near, far = random_biases(h, heads, dtype)
        inputs += far if near is None else [near, *far]
    return inputs


def compare(backend: str,
            shape,
            cell_size: int,
            num_levels: Optional[int] = None,
            rank: int = 1,
            *,
            device: str = 'cpu',
            batch: int = 1,
            heads: int = 2,
            head_dim: int = 4,
            dtype: Optional[torch.dtype] = None,
            summaries: bool = False,
            biases: bool = False,
            mask: Optional[Tensor] = None,
            dirty: bool = True,
            **options) -> List[Tensor]:
    """Runs a backend and the oracle and compares everything that comes out.

    Args:
        backend, device: what is tested, and where; the oracle is on the CPU.
        dtype: the most exact one of the backend by default.
        summaries: whether random ones are given for all levels.
        biases: whether random ones are given.
        mask: bool ``[B, *grid]`` on the CPU.
        dirty: see :func:`leaves`.
        options: of the public function.

    Returns:
        What the backend gave, on the CPU: output, lse, gradients.
    """
    h = Hierarchy(shape, cell_size, num_levels, rank,
                  options.get('causal', False))
    dtype = dtype or place(backend)['dtype']
    kinds = len(summary_kinds(options)) if summaries else 0
    inputs = leaves(h, dtype, batch, heads, head_dim, kinds, biases, mask,
                    dirty)
    options.update(cell_size=cell_size, num_levels=num_levels, rank=rank)
    # The exact result of the same inputs.
    exact = [
        x.detach().double().requires_grad_() if dtype.itemsize < 8 else x
        for x in inputs
    ]
    expected = run('naive', exact, shape, summaries, key_mask=mask, **options)
    moved = [x.detach().to(device).requires_grad_() for x in inputs]
    options['key_mask'] = None if mask is None else mask.to(device)
    actual = run(backend, moved, shape, summaries, **options)
    assert actual[1].dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32)
    actual = [x.detach().cpu() for x in actual]
    for i, (a, b) in enumerate(zip(actual, expected)):
        assert a.shape == b.shape
        if i != 1:
            assert a.dtype == dtype
        assert_close(a, b, dtype, grad=i > 1, what=f'result {i}')
    return actual
