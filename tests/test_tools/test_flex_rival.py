"""flex_attention against the oracle: outputs, lse, gradients, block masks."""
import importlib.util
import warnings
from pathlib import Path
from typing import List, Tuple

import pytest
import torch
from torch import Tensor

from fma_kernels import Hierarchy
from fma_kernels.naive import naive, visibility
from fma_kernels.testing import assert_close, missing_compiler, random_qkv

flex_attention = pytest.importorskip('torch.nn.attention.flex_attention')
if not hasattr(flex_attention, 'AuxRequest'):
    pytest.skip('the rival needs torch 2.9', allow_module_level=True)

spec = importlib.util.spec_from_file_location(
    'flex_rival',
    Path(__file__).parents[2] / 'benchmarks/rivals/flex.py')
rival = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rival)
BLOCK, flex, layout = rival.BLOCK, rival.flex, rival.layout

needs_compiler = pytest.mark.skipif(
    missing_compiler() is not None, reason=str(missing_compiler()))
CPU = torch.device('cpu')


def run(function, inputs: Tuple[Tensor, ...], h: Hierarchy) -> List[Tensor]:
    """[out, lse, gradients] for fixed random slopes."""
    results = function(*inputs, h)
    generator = torch.Generator().manual_seed(3)
    slopes = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        for x in results
    ]
    return [*results, *torch.autograd.grad(results, inputs, slopes)]


def compare(shape,
            cell_size,
            num_levels=None,
            rank=1,
            causal=False,
            *,
            batch=1,
            head_dim=4,
            dtype=torch.float64,
            device='cpu') -> None:
    """Compares everything that comes out with the oracle."""
    h = Hierarchy(shape, cell_size, num_levels, rank, causal)
    inputs = random_qkv(shape, 2, head_dim, batch, dtype=dtype)
    # Half precision is compared with the exact result of the same inputs.
    exact = [
        x.detach().double().requires_grad_() if dtype.itemsize == 2 else x
        for x in inputs
    ]
    moved = [x.detach().to(device).requires_grad_() for x in inputs]
    actual = run(flex, moved, h)
    assert actual[1].dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32)
    for i, (a, b) in enumerate(zip(actual, run(naive, exact, h))):
        assert a.shape == b.shape
        if i != 1:
            assert a.dtype == dtype
        assert_close(a.cpu(), b, dtype, grad=i > 1, what=f'result {i}')


# shape, cell_size, num_levels, rank, causal
GEOMETRIES = [
    ((1, ), 1, None, 1, False),
    ((7, ), 1, None, 1, False),
    ((150, ), 2, None, 2, False),
    ((200, ), 16, 1, 1, False),
    ((33, ), 4, 6, 1, False),
    ((33, ), 4, 0, 1, False),
    ((1, ), 2, None, 1, True),
    ((150, ), 2, None, 2, True),
    ((67, ), 8, 6, 2, True),
    ((140, ), 4, 1, 1, True),
    ((40, ), 4, 0, 1, True),
    ((1, 19), 2, None, 1, False),
    ((3, 2), 4, None, 1, False),
    ((17, 16), 2, None, 2, False),
    ((13, 21), 1, None, 1, False),
    ((13, 21), 4, 1, 2, False),
    ((11, 18), 2, 6, 1, False),
    ((6, 7), 2, 0, 1, False),
]


@pytest.mark.sampled
@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_against_the_oracle(geometry) -> None:
    compare(*geometry)


@pytest.mark.parametrize('dtype',
                         [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'geometry', [((45, ), 4, None, 2, True), ((14, 13), 2, None, 1, False)],
    ids=str)
def test_dtypes(geometry, dtype) -> None:
    compare(*geometry, batch=2, head_dim=8, dtype=dtype)


def test_strided_inputs() -> None:
    h = Hierarchy((9, 13), 2)
    qkv = torch.randn(2, *h.shape, 3, 2, 4, dtype=torch.float64)
    apart = qkv.unbind(-3)
    assert not apart[0].is_contiguous()
    dense = [x.contiguous() for x in apart]
    for a, b in zip(flex(*apart, h), flex(*dense, h)):
        assert_close(a, b)


def test_gradcheck() -> None:
    h = Hierarchy((5, 6), 2)
    inputs = random_qkv(h.shape, heads=1, head_dim=2)
    assert torch.autograd.gradcheck(
        lambda *x: flex(*x, h), inputs, fast_mode=True)


# ---------------------------------------------------------- the compiled form
@needs_compiler
@pytest.mark.slow
def test_compiled_inference() -> None:
    """The real kernel, on the CPU: inference, without lse; and silent."""
    torch._dynamo.reset()
    h = Hierarchy((48, 43), 8, rank=2)
    assert all(blocks.any() for blocks in split(layout(h, CPU)))
    qkv = [
        x.detach() for x in random_qkv(
            h.shape, head_dim=16, batch=2, dtype=torch.float32)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        out, lse = flex(*qkv, h, return_lse=False)
    assert lse is None
    assert_close(out, naive(*qkv, h)[0])


def test_eager_is_silent() -> None:
    h = Hierarchy((13, 12), 2)
    qkv = random_qkv(h.shape)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(flex, qkv, h)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    'geometry', [((300, ), 8, None, 2, True), ((700, ), 16, None, 1, False),
                 ((37, 41), 4, None, 2, False), ((29, 19), 2, 0, 1, False),
                 ((64, 64), 8, None, 1, False)],
    ids=str)
def test_on_a_gpu(geometry, dtype) -> None:
    compare(*geometry, batch=2, head_dim=32, dtype=dtype, device='cuda')


# ----------------------------------------------------------- the block mask
def split(plan):
    """bool ``[row blocks, column blocks]``: blocks in part, and full."""
    mask, found = plan.block_mask, []
    for count, index in ((mask.kv_num_blocks, mask.kv_indices),
                         (mask.full_kv_num_blocks, mask.full_kv_indices)):
        shape = mask.kv_indices.shape[2:]
        blocks = torch.zeros(shape, dtype=torch.bool)
        if count is not None:
            listed = torch.arange(shape[1]) < count[0, 0, :, None]
            blocks.scatter_(1, index[0, 0].long(), listed)
        found.append(blocks)
    return found


@pytest.mark.parametrize(
    'geometry', [
        *GEOMETRIES,
        ((1000, ), 64, None, 4, False),
        ((1000, ), 128, None, 1, True),
        ((513, ), 1, None, 1, True),
        ((300, ), 64, 0, 1, True),
        ((40, 33), 8, None, 2, False),
        ((48, 48), 4, 1, 1, False),
        ((20, 50), 5, None, 1, False),
    ],
    ids=str)
def test_the_block_mask_is_exact(geometry) -> None:
    """Touched where a pair is visible, full where all are."""
    h = Hierarchy(*geometry).trimmed()
    plan = layout(h, CPU)
    count, total = h.num_tokens, h.num_tokens + h.num_summaries
    assert torch.equal(plan.queries[plan.places], torch.arange(count))
    # Each key once, what pads blocks of tokens and of summaries aside.
    real = torch.arange(total)
    real[count:] += len(plan.queries) - count
    assert torch.equal(plan.keys[real].sort()[0], torch.arange(total))
    key_places = real[plan.keys[real].argsort()]
    rows, columns = torch.meshgrid(
        torch.arange(len(plan.queries)),
        torch.arange(len(plan.keys)),
        indexing='ij')
    seen = plan.block_mask.mask_mod(0, 0, rows, columns)
    # Element by element: what the oracle sees, and no padding.
    expected = torch.zeros_like(seen)
    expected[plan.places[:, None], key_places] = visibility(h)
    assert torch.equal(seen, expected)
    # [row blocks, BLOCK, column blocks, BLOCK]
    blocks = seen.view(len(plan.queries) // BLOCK, BLOCK, -1, BLOCK)
    partial, full = split(plan)
    assert not (partial & full).any()
    assert torch.equal(partial | full, blocks.any(3).any(1))
    real = torch.arange(len(plan.queries)).view(-1, BLOCK, 1, 1) >= count
    assert torch.equal(full, (blocks | real).all(3).all(1))


def test_the_backward_pass_walks_the_same_blocks() -> None:
    mask = layout(Hierarchy((48, 48), 8), CPU).block_mask
    assert mask.full_kv_num_blocks.any()
    for kind in ('', 'full_'):
        rows = getattr(mask, f'{kind}kv_num_blocks')[0, 0]
        columns = getattr(mask, f'{kind}kv_indices')[0, 0]
        forward = {(i, int(j))
                   for i, n in enumerate(rows)
                   for j in columns[i, :n]}
        counts = getattr(mask, f'{kind}q_num_blocks')[0, 0]
        index = getattr(mask, f'{kind}q_indices')[0, 0]
        backward = {(int(i), j)
                    for j, n in enumerate(counts)
                    for i in index[j, :n]}
        assert forward == backward


@pytest.mark.parametrize(
    'geometry, most', [(((256, 256), 8, None, 1, False), 18),
                       (((65536, ), 64, None, 1, True), 8),
                       (((65536, ), 64, None, 1, False), 12)],
    ids=str)
def test_large_grids_stay_sparse(geometry, most) -> None:
    """``most``: blocks in a row on average, of more than 500."""
    h = Hierarchy(*geometry)
    plan = layout(h, CPU)
    partial, full = split(plan)
    assert partial.shape[1] > 500
    blocks = int(partial.sum() + full.sum())
    assert blocks / partial.shape[0] < most
    # No block is wasted by more than the geometry of blocks explains.
    assert h.visited_pairs <= blocks * BLOCK**2 < 10 * h.visited_pairs


def test_layouts_are_shared() -> None:
    h = Hierarchy((20, 20), 4)
    assert layout(h, CPU) is layout(Hierarchy((20, 20), 4), CPU)
    assert layout.cache_info().maxsize is not None
