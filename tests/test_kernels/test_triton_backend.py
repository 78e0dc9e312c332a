"""The Triton backend against the oracle: outputs, lse, all gradients.

Without a GPU the kernels are interpreted, which takes milliseconds a step:
shapes are the smallest that reach a branch. On a GPU the same tests run
compiled, and those marked ``gpu`` add real sizes.
"""
import os
import subprocess
import sys
from functools import partial
from typing import List

import pytest
import torch
from compare import TRITON_DEVICE as DEVICE
from compare import check_op
from compare import compare as compare_backend
from compare import missing_triton, op
from compare import run as run_backend
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from fma_kernels import Hierarchy, checks, explain_backend, fma1d, fma2d
from fma_kernels.checks import Request, can_run
from fma_kernels.ops import attention, pool
from fma_kernels.options import Options
from fma_kernels.pooling import average_pyramid, pack
from fma_kernels.testing import (assert_close, random_mask, random_qkv,
                                 random_summaries)

pytestmark = [
    pytest.mark.skipif(
        missing_triton() is not None, reason=str(missing_triton())),
    # Of the interpreter, about numbers that are replaced afterwards.
    pytest.mark.filterwarnings('ignore:.*encountered in:RuntimeWarning')
]

# One head: programs of different heads are compared where it is cheap.
compare = partial(
    compare_backend, 'triton', device=DEVICE, dtype=torch.float32, heads=1)
run = partial(run_backend, 'triton')


def leaves(shape, **options) -> List[Tensor]:
    return list(
        random_qkv(shape, dtype=torch.float32, device=DEVICE, **options))


def plan_of(*geometry):
    from fma_kernels.backends.triton.plan import plan
    return plan(Hierarchy(*geometry).trimmed())


# ------------------------------------------------------------------ geometry
# shape, cell_size, num_levels, rank
FULL = [((1, ), 1), ((5, ), 4), ((3, ), 8), ((19, ), 4, 0), ((1, 1), 2),
        ((3, 2), 4), ((5, 7), 2, 0)]
GROUPED = [((10, ), 1), ((41, ), 4), ((26, ), 4, None, 2), ((19, ), 3),
           ((33, ), 6, None, 3), ((40, ), 8, None, 8), ((5, 6), 1),
           ((9, 10), 2), ((9, 13), 4), ((5, 18), 4), ((13, 21), 4),
           ((4, 9), 3, None, 3), ((6, 5), 2, None, 2), ((1, 30), 4),
           ((11, 1), 2), ((3, 17), 2), ((17, 3), 2)]
# Cells of more than 32 tokens; some of them larger than a block.
LEAVES = [((100, ), 40), ((260, ), 64), ((201, ), 100), ((170, ), 34, None, 2),
          ((7, 25), 6), ((2, 33), 16), ((17, 9), 8, None, 2)]
# Fewer levels than the grid needs: the last lists the whole grid.
TOPS = [((11, ), 2, 1), ((17, ), 2, 2), ((21, ), 2, 2, 2), ((170, ), 34, 1),
        ((297, ), 33, 2), ((3, 10), 2, 1), ((4, 18), 2, 2), ((19, 3), 2, 2, 2)]
MORE = [((11, ), 2, 6), ((5, 6), 2, 3)]


@pytest.mark.parametrize('geometry', FULL, ids=str)
def test_no_far_field(geometry) -> None:
    assert Hierarchy(*geometry).num_levels == 0
    compare(*geometry, heads=2)


@pytest.mark.parametrize('geometry', GROUPED, ids=str)
def test_tiles_that_are_parents(geometry) -> None:
    assert plan_of(*geometry).grouped
    compare(*geometry)


@pytest.mark.parametrize('geometry', LEAVES, ids=str)
def test_tiles_that_are_leaves(geometry) -> None:
    assert not plan_of(*geometry).grouped
    compare(*geometry)


@pytest.mark.parametrize('geometry', TOPS, ids=str)
def test_a_top_level_that_lists_its_grid(geometry) -> None:
    assert plan_of(*geometry).top
    compare(*geometry)


@pytest.mark.parametrize('geometry', MORE, ids=str)
def test_more_levels_than_needed(geometry) -> None:
    compare(*geometry)


@pytest.mark.parametrize(
    'geometry', [((1, ), 2), ((7, ), 4), ((41, ), 16, 0), ((20, ), 1),
                 ((41, ), 4), ((21, ), 2, None, 2), ((57, ), 12, None, 3),
                 ((170, ), 34), ((201, ), 100), ((11, ), 2, 1), ((21, ), 2, 2),
                 ((170, ), 34, 1), ((11, ), 2, 6)],
    ids=str)
def test_causal(geometry) -> None:
    compare(*geometry, causal=True)


def test_heads_and_images() -> None:
    compare((11, ), 2, heads=3)
    compare((11, ), 2, heads=2, batch=2, causal=True)
    compare((3, 5), 2, heads=2, batch=2)


@pytest.mark.parametrize(
    'geometry', [
        ((45, ), 4, None, 2),
        ((45, ), 4, 1),
        ((45, ), 2, 2, 1, True),
        ((70, ), 3, None, 1, True),
        ((300, ), 40),
        ((180, ), 40, None, 2, True),
        ((9, 40), 2),
        ((21, 18), 4, None, 2),
        ((40, 33), 3, None, 3),
        ((40, 33), 2, 2),
        ((70, 90), 8),
        ((70, 90), 8, 2, 2),
        ((1, 50), 8),
        ((33, 2), 1, 3),
    ],
    ids=str)
def test_far_lists(geometry) -> None:
    """For every tile and child: what the definition lists, and once."""
    from fma_kernels.backends.lists import grid_points
    from fma_kernels.backends.triton.lists import far_lists
    h = Hierarchy(*geometry)
    p, lists = plan_of(*geometry), far_lists(h, torch.device('cpu'))
    assert not lists.index.shape[1] % lists.block
    assert not lists.finest.shape[1] % lists.block
    side = 2 if p.grouped else 1
    children = list(grid_points((side, ) * h.ndim))
    tiles = grid_points(p.tiles[-h.ndim:])
    assert len(lists.index) == len(tiles)
    checked = 0
    for tile, shared, finest in zip(tiles, lists.index, lists.finest):
        for number, child in enumerate(children):
            leaf = tile * side + child
            if (leaf >= torch.tensor(h.leaf_grid)).any():
                continue
            seen = lists.bits >> number & 1 == 1
            found = torch.cat([shared, finest[seen]])
            found = sorted(found[found >= 0].tolist())
            expected = []
            for level in range(1, p.listed + 1):
                start, grid = h.level_starts[level - 1], h.grids[level - 1]
                cell = tuple((leaf >> (level - 1)).tolist())
                for other in h.interaction_list(level, cell):
                    at = other[0] if h.ndim == 1 else (other[0] * grid[1] +
                                                       other[1])
                    at = start + at * h.num_parts
                    expected += range(at, at + h.num_parts)
            assert found == sorted(expected)
            checked += 1
    assert checked == len(grid_points(h.leaf_grid))


# ------------------------------------------------------- dtypes, dims, scales
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    'geometry', [((21, ), 4, None, 2), ((70, ), 34), ((3, 9), 2)], ids=str)
def test_half_precision(geometry, dtype) -> None:
    mask = random_mask(geometry[0], 1)
    compare(*geometry, head_dim=8, dtype=dtype, mask=mask)


@pytest.mark.parametrize(
    'head_dim, dtype', [(1, torch.float32), (17, torch.float32),
                        (32, torch.bfloat16), (48, torch.float32),
                        (48, torch.float16), (128, torch.float32)],
    ids=str)
def test_head_dims(head_dim, dtype) -> None:
    causal = head_dim in (17, 128)
    compare((11, ), 2, causal=causal, head_dim=head_dim, dtype=dtype)


def test_head_dim_of_images() -> None:
    compare((3, 5), 2, head_dim=32, heads=2)


@pytest.mark.parametrize(
    'options',
    [dict(mass=False),
     dict(scale=2.0),
     dict(scale=0),
     dict(scale=-0.3)],
    ids=str)
def test_mass_and_scale(options) -> None:
    compare((11, ), 2, rank=2, **options)
    compare((11, ), 2, mask=random_mask((11, )), causal=True, **options)
    compare((3, 5), 2, **options)


def test_large_logits() -> None:
    """An online softmax that does not rescale would overflow."""
    compare((11, ), 2, scale=30.0)
    compare((11, ), 2, causal=True, scale=-30.0)


@pytest.mark.parametrize('geometry', [((11, ), 2), ((70, ), 34)], ids=str)
def test_small_sums(geometry) -> None:
    """What is hidden must not overflow where all that is real is tiny.

    The only key is opposite to most queries: their lse is below -128, and
    the weight of a masked key, whose logit is 0 before it is hidden, inf.
    """
    mask = torch.zeros(1, *geometry[0], dtype=torch.bool)
    mask[:, 4] = True
    for causal in (False, True):
        lse = compare(
            *geometry, mask=mask, dirty=False, scale=120.0, causal=causal)[1]
        assert lse[lse > -torch.inf].min() < -150


def test_products_are_exact_unless_the_user_said_otherwise() -> None:
    from fma_kernels.backends.triton.call import Call
    h = Hierarchy((9, ), 2)
    q, before = leaves(h.shape)[0], torch.get_float32_matmul_precision()

    def precision() -> str:
        return Call(q, None, None, h, Options('triton')).numbers['PRECISION']

    try:
        torch.set_float32_matmul_precision('highest')
        assert precision() == 'ieee'
        torch.set_float32_matmul_precision('high')
        assert precision() == 'tf32'
    finally:
        torch.set_float32_matmul_precision(before)


# ----------------------------------------------------------- masks, summaries
@pytest.mark.parametrize(
    'geometry', [((19, ), 4, 0), ((21, ), 4), ((11, ), 2, 1, 2), ((70, ), 34),
                 ((3, 9), 2, None, 2), ((6, 9), 4), ((3, 10), 2, 1)],
    ids=str)
def test_masks_with_nan(geometry) -> None:
    """Two images with masks of their own, one of them almost empty."""
    mask = random_mask(geometry[0], 2, 0.5)
    mask[1] = random_mask(geometry[0], 1, 0.06)[0]
    compare(*geometry, batch=2, mask=mask)


@pytest.mark.parametrize(
    'geometry', [((21, ), 4), ((11, ), 2, 1, 2), ((70, ), 34)], ids=str)
def test_causal_masks_with_nan(geometry) -> None:
    """Left padding: the first queries see no key at all."""
    shape = geometry[0]
    mask = random_mask(shape, 2, 0.5)
    mask[0, :shape[0] // 2] = False
    out, lse, *grads = compare(*geometry, batch=2, mask=mask, causal=True)
    unseen = ~mask.cumsum(1).bool()
    assert unseen[0].sum() >= shape[0] // 2
    assert (lse[unseen] == -torch.inf).all() and not out[unseen].any()
    assert not any(grad[unseen].any() for grad in grads)


@pytest.mark.parametrize('geometry', [((11, ), 2), ((3, 5), 2)], ids=str)
def test_an_image_of_padding_only(geometry) -> None:
    mask = random_mask(geometry[0], 2)
    mask[0] = False
    q, k, v = leaves(geometry[0], batch=2, heads=1)
    k, v = (
        x.detach().masked_fill(~mask[..., None, None].to(DEVICE),
                               torch.nan).requires_grad_() for x in (k, v))
    out, lse = op(geometry[0])(
        q,
        k,
        v,
        cell_size=geometry[1],
        key_mask=mask.to(DEVICE),
        backend='triton',
        return_lse=True)
    assert not out[0].any() and (lse[0] == -torch.inf).all()
    # Even a slope that is NaN, as log-sum-exps of nothing give, is stopped.
    slope = torch.ones_like(lse)
    slope[0] = torch.nan
    for grad in torch.autograd.grad((out, lse), (q, k, v),
                                    (torch.ones_like(out), slope)):
        assert not grad[0].any()
        assert torch.isfinite(grad[1]).all() and grad[1].any()


@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
def test_masked_queries_may_hold_anything(bad) -> None:
    shape = (11, )
    q, k, v = leaves(shape, heads=1)
    mask = random_mask(shape).to(DEVICE)
    absent = ~mask[..., None, None]
    options = dict(cell_size=2, key_mask=mask)
    zero, dirty = (
        q.detach().masked_fill(absent, x).requires_grad_() for x in (0, bad))
    expected = run([zero, k, v], shape, False, **options)
    found = run([dirty, k, v], shape, False, **options)
    expected[2] = expected[2].masked_fill(absent, 0)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    'geometry', [((11, ), 2, None, 2), ((11, ), 2, 1), ((70, ), 34),
                 ((3, 5), 2, None, 2), ((19, ), 4, 0), ((5, ), 2, 4)],
    ids=str)
def test_given_summaries(geometry, masked) -> None:
    """Of mass 0, be it a mask or a border, they may hold NaN."""
    mask = random_mask(geometry[0], 2, 0.3) if masked else None
    compare(*geometry, batch=2, mask=mask, summaries=True)


def test_given_summaries_causal() -> None:
    mask = random_mask((11, ), 2, 0.3)
    compare((11, ), 2, batch=2, mask=mask, summaries=True, causal=True)


@pytest.mark.parametrize('given', ['key_summaries', 'value_summaries'])
def test_only_one_kind_of_summaries_given(given) -> None:
    h = Hierarchy((11, ), 2)
    results = []
    for backend, device in (('triton', DEVICE), ('naive', 'cpu')):
        options = dict(dtype=torch.float32, device=device)
        qkv = random_qkv(h.shape, **options)
        levels = {given: random_summaries(h, **options)}
        results.append(fma1d(*qkv, cell_size=2, backend=backend, **levels))
    assert_close(results[0].cpu(), results[1])


# ------------------------------------------------------------------- dropout
@pytest.mark.parametrize(
    'geometry', [((11, ), 2, None, 2), ((11, ), 2, 1), ((70, ), 34),
                 ((19, ), 4, 0), ((3, 5), 2)],
    ids=str)
def test_dropout_agrees_with_the_oracle(geometry) -> None:
    compare(*geometry, heads=2, dropout_p=0.4, dropout_seed=11)


@pytest.mark.parametrize('seed', [-1, 2**31 + 5, 2**40 + 3, 2**63 + 2**33])
def test_any_integer_is_a_seed(seed) -> None:
    compare((11, ), 2, dropout_p=0.5, dropout_seed=seed)


def test_dropout_with_causal_masks_and_summaries() -> None:
    compare((11, ),
            2,
            rank=2,
            heads=2,
            causal=True,
            summaries=True,
            batch=2,
            mask=random_mask((11, ), 2),
            dropout_p=0.3,
            dropout_seed=1)


def test_dropout_draws_from_the_generator() -> None:
    q, k, v = (x.detach() for x in leaves((11, )))
    options = dict(cell_size=2, dropout_p=0.5, backend='triton')
    torch.manual_seed(0)
    first = fma1d(q, k, v, **options)
    assert (first - fma1d(q, k, v, **options)).abs().max() > 0.1
    torch.manual_seed(0)
    assert torch.equal(fma1d(q, k, v, **options), first)


# ----------------------------------------------------------- layout of inputs
@pytest.mark.parametrize('shape', [(11, ), (3, 5)], ids=str)
def test_strided_inputs(shape) -> None:
    """One projection gives all three: [B, *grid, 3, heads, head_dim]."""
    qkv = torch.randn(2, *shape, 3, 2, 4, device=DEVICE, requires_grad=True)
    apart = qkv.unbind(-3)
    assert not apart[0].is_contiguous()
    options = dict(cell_size=2, backend='triton')
    out = op(shape)(*apart, **options)
    dense = [x.detach().contiguous().requires_grad_() for x in apart]
    expected = op(shape)(*dense, **options)
    assert_close(out, expected)
    # The gradient that arrives has strides of its own.
    slope = torch.randn(*out.shape[:-1], 8, device=DEVICE)[..., ::2]
    grad, = torch.autograd.grad(out, qkv, slope)
    grads = torch.autograd.grad(expected, dense, slope.contiguous())
    assert_close(grad, torch.stack(grads, -3), grad=True)


def _dim_outside(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _columns_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _batch_inside(x: Tensor) -> Tensor:
    return x.movedim(0, -2).contiguous().movedim(-2, 0)


@pytest.mark.parametrize('change',
                         [_dim_outside, _columns_first, _batch_inside])
def test_non_contiguous_inputs(change) -> None:
    qkv = [x.detach() for x in leaves((3, 5), batch=2)]
    mask = random_mask((3, 5), 2).to(DEVICE)
    options = dict(cell_size=2, backend='triton')
    strided = [change(x) for x in qkv]
    assert not strided[0].is_contiguous()
    turned = mask.transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(
        fma2d(*strided, key_mask=turned, **options),
        fma2d(*qkv, key_mask=mask, **options))


def test_expanded_values_and_gradients() -> None:
    q, k, _ = leaves((11, ))
    v = torch.randn(1, 1, 2, 4, device=DEVICE, requires_grad=True)
    results = [
        torch.autograd.grad(
            fma1d(q, k, v.expand_as(q), cell_size=2, backend=backend).sum(),
            (q, v)) for backend in ('triton', 'naive')
    ]
    for a, b in zip(*results):
        assert_close(a, b, grad=True)


@pytest.mark.parametrize('shape', [(19, ), (5, 6)], ids=str)
def test_an_empty_batch(shape) -> None:
    mask = random_mask(shape, 0).to(DEVICE)
    inputs = leaves(shape, batch=0)
    results = run(inputs, shape, False, cell_size=2, key_mask=mask)
    assert all(x.shape[0] == 0 for x in results)


@pytest.mark.parametrize(
    'geometry', [((11, ), 2, 1), ((100, ), 40), ((3, 9), 2)], ids=str)
def test_wide_offsets(geometry, monkeypatch) -> None:
    """Tensors whose windows span 2 ** 31 elements and more."""
    from fma_kernels.backends.triton import keys, queries, summaries
    asked = []

    def wide(*args) -> bool:
        asked.append(args)
        return True

    for module in (keys, queries, summaries):
        monkeypatch.setattr(module, 'wide', wide)
    compare(*geometry)
    if len(geometry[0]) == 1:
        compare(*geometry, causal=True)
    assert len(asked) >= 4


def test_which_offsets_are_wide() -> None:
    from fma_kernels.backends.triton.call import wide

    # [B, H, W, heads, head_dim], of which nothing is stored.
    x = torch.empty(1, 1 << 12, 1 << 12, 4, 64, device='meta')
    assert not wide((24, 24), x) and wide((1 << 12, 1 << 12), x)
    assert not wide((1 << 10, 0), x) and wide((1 << 11, 0), x[:, :9], x)
    x = torch.empty(1, 1 << 20, 4, 1 << 10, device='meta')
    assert not wide((1, 1 << 18), x) and wide((1, 1 << 19), x[..., :4], x)


# --------------------------------------------------------------- determinism
@pytest.mark.parametrize('geometry', [((17, ), 2, 2), ((3, 5), 2)], ids=str)
def test_bit_equal_on_repeat(geometry) -> None:
    shape, cell_size, *levels = geometry
    inputs = leaves(shape, batch=2, heads=1)
    options = dict(cell_size=cell_size, dropout_p=0.1, dropout_seed=5)
    if levels:
        options['num_levels'] = levels[0]
    first = run(inputs, shape, False, **options)
    again = run(inputs, shape, False, **options)
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_every_element_is_written(monkeypatch) -> None:
    """Nothing is read of what ``torch.empty`` gave before it is written."""
    empty = torch.empty

    def poisoned(*args, **kwargs) -> Tensor:
        x = empty(*args, **kwargs)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, 'empty', poisoned)
    compare((17, ), 2, 2, 2, batch=2, mask=random_mask((17, ), 2, 0.2))
    compare((3, 9), 2)
    compare((11, ), 2, causal=True)


# ------------------------------------------------------------------- pooling
def packed_average(x: Tensor, h: Hierarchy, mask=None) -> Tensor:
    return pack(average_pyramid(x, h, mask), h.ndim)


# The third and the fourth need several launches.
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    'geometry', [((19, ), 4, None, 2), ((5, 7), 2, None, 2), ((75, ), 1),
                 ((150, ), 6, 7, 3), ((1, 40), 1), ((7, 10), 3, 2),
                 ((9, 8), 8, 1, 4)],
    ids=str)
def test_pooling(geometry, masked) -> None:
    """Averages and their gradients; once, channels take two blocks."""
    shape, cell_size, levels, rank = (*geometry, None, 1)[:4]
    h = Hierarchy(*geometry)
    dim = 48 if cell_size == 8 else 5
    x = torch.randn(2, *shape, 3, dim, device=DEVICE)
    mask = random_mask(shape, 2, 0.4).to(DEVICE) if masked else None
    if masked:
        x = x.masked_fill(~mask[..., None, None], torch.nan)
    x.requires_grad_()
    found = pool(x, mask, cell_size, h.num_levels, h.rank, 'triton')
    expected = packed_average(x, h, mask)
    assert_close(found, expected)
    slope = torch.randn(*found.shape[:-1], 2 * dim, device=DEVICE)[..., ::2]
    assert_close(
        torch.autograd.grad(found, x, slope)[0],
        torch.autograd.grad(expected, x, slope)[0],
        grad=True)


def test_pooling_takes_several_launches(monkeypatch) -> None:
    from fma_kernels.backends.triton import pooling
    calls = []
    monkeypatch.setattr(pooling, 'run',
                        lambda kernel, *args: calls.append(kernel))
    for geometry in (((75, ), 1), ((150, ), 6, 7)):
        h = Hierarchy(*geometry)
        assert h.num_levels > pooling.LEVELS_A_LAUNCH + 1
        calls.clear()
        pooling.pool(torch.zeros(1, *h.shape, 1, 4), None, h)
        assert calls == [
            pooling.finest_kernel, pooling.coarser_kernel,
            pooling.coarser_kernel
        ]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_pooling_in_half_precision(dtype) -> None:
    """Sums are float32: 512 ones in one cell, and rounded once."""
    h = Hierarchy((512, ), 128, 3)
    x = torch.ones(1, *h.shape, 1, 2, dtype=dtype, device=DEVICE)
    assert (pool(x, None, 128, 3, 1, 'triton') == 1).all()
    x = torch.randn(1, 40, 2, 3, dtype=dtype, device=DEVICE)
    found = pool(x, None, 4, 3, 2, 'triton')
    assert found.dtype == dtype
    h = Hierarchy((40, ), 4, 3, 2)
    assert_close(found, packed_average(x.double(), h), dtype)


def test_pooling_of_a_strided_tensor() -> None:
    qkv = torch.randn(2, 5, 7, 3, 2, 4, device=DEVICE)
    for x in (qkv[..., 1, :, :], _dim_outside(qkv[..., 2, :, :])):
        assert_close(
            pool(x, None, 2, 2, 1, 'triton'),
            packed_average(x, Hierarchy((5, 7), 2, 2)))


# -------------------------------------------------- compiler and registration
@pytest.mark.parametrize(
    'case', [((9, ), 2, True, True, 0.3), ((3, 6), 2, False, False, 0.0)],
    ids=str)
def test_opcheck(case) -> None:
    shape, cell_size, causal, masked, p = case
    h = Hierarchy(shape, cell_size, causal=causal)
    q, k, v = leaves(shape, heads=1)
    mask = random_mask(shape).to(DEVICE) if masked else None
    pooled = [
        packed_average(x, h, mask).detach().requires_grad_() for x in (k, v)
    ]
    seed = torch.tensor(3, device=DEVICE) if p else None
    # Static shapes are promised; a new shape recompiles.
    check_op(
        attention, (q, k, v, *pooled, mask, seed, None, None, cell_size,
                    h.num_levels, 1, causal, True, 0.5, p, 'triton'),
        rtol=1e-4,
        atol=1e-5)


@pytest.mark.parametrize('masked', [False, True])
def test_opcheck_of_pooling(masked) -> None:
    mask = random_mask((9, ), 2).to(DEVICE) if masked else None
    x = leaves((9, ), batch=2)[0]
    check_op(pool, (x, mask, 2, 2, 2, 'triton'), rtol=1e-4, atol=1e-5)
    h = Hierarchy((9, ), 2, 2, 2)
    grad = torch.randn(2, h.num_summaries, 2, 8, device=DEVICE)[..., ::2]
    torch.library.opcheck(
        torch.ops.fma_kernels.pool_backward.default,
        (grad, mask, [2, 9, 2, 4], 2, 2, 2, 'triton'),
        test_utils=('test_schema', 'test_faketensor'))


class Layer(nn.Module):
    """The smallest attention layer: one projection, strided inputs."""

    def __init__(self, dim: int = 8, heads: int = 2, **options) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.heads, self.options = heads, options

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return op(x.shape[1:-1])(
            *qkv, backend='triton', **self.options).flatten(-2)


@pytest.mark.parametrize(
    'case', [((19, ), dict(causal=True)), ((3, 6), {})], ids=str)
def test_one_graph(case) -> None:
    """No graph break, and the same gradients."""
    shape, options = case
    torch._dynamo.reset()
    layer = Layer(cell_size=2, **options).to(DEVICE)
    x = torch.randn(1, *shape, 8, device=DEVICE, requires_grad=True)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    inputs = (x, *layer.parameters())
    results = []
    for function in (compiled, layer):
        out = function(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for a, b in zip(*results):
        assert_close(a, b)
    assert counter.frame_count == 1
    torch._dynamo.reset()


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    'dtype, head_dim, word', [(torch.float64, 4, 'it has no float64'),
                              (torch.float32, 129, 'at most 128, got 129')],
    ids=str)
def test_what_it_cannot_run(dtype, head_dim, word) -> None:
    qkv = random_qkv((5, ), head_dim=head_dim, dtype=dtype, device=DEVICE)
    reason = f"backend='triton' cannot run: .*{word}"
    with pytest.raises(ValueError, match=reason):
        fma1d(*qkv, cell_size=2, backend='triton')
    out = fma1d(*qkv, cell_size=2)  # 'auto' takes another
    assert out.dtype == dtype


@pytest.mark.parametrize('name', ['near_bias', 'far_bias'])
def test_biases_are_refused(name) -> None:
    h = Hierarchy((11, ), 2)
    bias = dict(
        near_bias=torch.zeros(2, 7, device=DEVICE),
        far_bias=[torch.zeros(2, 1, 7, device=DEVICE)] * h.num_levels)
    reason = f"backend='triton' cannot run: it has no {name} yet"
    with pytest.raises(ValueError, match=reason):
        fma1d(
            *leaves(h.shape),
            cell_size=2,
            backend='triton',
            **{name: bias[name]})


@pytest.mark.parametrize(
    'capability, dtype, word',
    [((7, 0), torch.float16, '7.5 or newer'),
     ((7, 5), torch.bfloat16, 'bfloat16 needs .* 8.0'),
     ((7, 5), torch.float16, None), ((8, 0), torch.bfloat16, None)],
    ids=str)
def test_old_gpus(capability, dtype, word, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, 'get_device_capability',
                        lambda device: capability)
    request = Request(torch.device('cuda'), dtype, 64)
    assert can_run('triton', request) == (word is None)
    if word:
        with pytest.raises(ValueError, match=word):
            can_run('triton', request, raise_error=True)


def test_triton_is_optional(monkeypatch) -> None:
    monkeypatch.setattr(checks, '_HAS_TRITON', False)
    q, k, v = leaves((11, ))
    lines = explain_backend(q).splitlines()
    assert lines[-1] in ('native: chosen', 'torch: chosen')
    if q.is_cuda:
        assert lines[0] == 'triton: the package triton is not installed'
    with pytest.raises(ValueError, match='triton is not installed'):
        fma1d(q, k, v, cell_size=2, backend='triton')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_auto_on_a_cpu_is_another_backend(dtype) -> None:
    """Interpreted kernels are for tests: nobody gets them unasked."""
    qkv = random_qkv((11, ), dtype=dtype)
    first, *_, last = explain_backend(qkv[0]).splitlines()
    assert first == 'triton: it needs a CUDA device, not cpu'
    chosen, word = last.split(': ')
    assert chosen in ('native', 'torch') and word == 'chosen'
    assert chosen == 'torch' or dtype == torch.float32
    assert torch.equal(
        fma1d(*qkv, cell_size=2), fma1d(*qkv, cell_size=2, backend=chosen))


NO_GPU = """
import sys
import torch
from fma_kernels import fma1d
x = torch.zeros(1, 9, 1, 4)
fma1d(x, x, x, cell_size=2)
print('fma_kernels.backends.triton' in sys.modules)
try:
    fma1d(x, x, x, cell_size=2, backend='triton')
except ValueError as error:
    print(error)
"""


def test_a_cpu_without_the_interpreter() -> None:
    """It is refused, and other backends do without it."""
    env = dict(os.environ, CUDA_VISIBLE_DEVICES='')
    env.pop('TRITON_INTERPRET', None)
    done = subprocess.run([sys.executable, '-c', NO_GPU],
                          env=env,
                          check=True,
                          capture_output=True,
                          text=True)
    assert done.stdout.splitlines() == [
        'False', "backend='triton' cannot run: it needs a CUDA device, not cpu"
    ]


# ------------------------------------------------------------- on a real GPU
# Of the norm of the reference: results are rounded once, and operands of the
# products too; gradients pass through two such products.
ROUNDING = {
    torch.bfloat16: (1e-2, 2e-2),
    torch.float16: (2e-3, 4e-3),
    torch.float32: (1e-5, 5e-5)
}


def test_heads_that_lie_far_apart() -> None:
    """Heads first, as SDPA has them: 2 ** 30 elements from head to head."""
    try:
        memory = torch.empty(2**31 + 2000, dtype=torch.float16, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f'no 4 GiB of address space: {error}')
    x = memory.as_strided((1, 8, 3, 16), (0, 16, 2**30, 1))
    x.copy_(torch.randn(x.shape))
    alone = x.contiguous()
    out = fma1d(x, x, x, cell_size=2, backend='triton')
    assert torch.equal(
        out, fma1d(alone, alone, alone, cell_size=2, backend='triton'))


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, 'fp32_precision'),
    reason='an older PyTorch has one switch for tf32')
def test_the_newer_switch_for_tf32() -> None:
    """Reading the older switch after it would raise."""
    code = ('import torch\n'
            'from fma_kernels import fma1d\n'
            'torch.backends.cuda.matmul.fp32_precision = "tf32"\n'
            f'x = torch.randn(1, 9, 2, 16, device="{DEVICE}")\n'
            'fma1d(x, x, x, cell_size=2, backend="triton")\n')
    subprocess.run([sys.executable, '-c', code], check=True)


def test_a_length_within_the_same_cells_is_the_same_kernel() -> None:
    from fma_kernels.backends.triton.plan import plan
    plans = [plan(Hierarchy((n, ), 128, causal=True)) for n in (130, 139, 256)]
    assert len({(p.tile, p.window) for p in plans}) == 1
    images = [plan(Hierarchy((n, n + 1), 8)) for n in (9, 12)]
    assert len({(p.tile, p.window) for p in images}) == 1


def test_a_long_top_list_has_few_partial_sums() -> None:
    from fma_kernels.backends.triton.summaries import range_of_top
    h = Hierarchy((2**20, ), 128, 1, causal=True)
    ranges = range_of_top(h, 16, torch.device('cpu'))
    assert ranges.slots <= 16 * h.num_summaries


def on_gpu(shape, heads, head_dim, dtype, batch=1) -> List[Tensor]:
    """Query, key and value as views of one projection."""
    qkv = torch.randn(
        batch, *shape, 3, heads, head_dim, device='cuda', dtype=dtype)
    return [x.detach().requires_grad_() for x in qkv.unbind(-3)]


def results(inputs: List[Tensor],
            backend: str = 'triton',
            **options) -> List[Tensor]:
    """Output, lse and gradients of a fixed slope."""
    function = op(inputs[0].shape[1:-2])
    out, lse = function(*inputs, backend=backend, return_lse=True, **options)
    slope = torch.linspace(-1, 1, out.shape[-1], device=out.device)
    grads = torch.autograd.grad(out, inputs, slope.to(out).expand_as(out))
    return [out.detach(), lse.detach(), *grads]


def assert_near(found: List[Tensor], expected: List[Tensor],
                dtype: torch.dtype) -> None:
    """Within rounding, of the norm of the whole."""
    for i, (a, b) in enumerate(zip(found, expected)):
        assert torch.isfinite(a).all(), f'result {i}'
        error = float((a.double() - b.double()).norm() / b.double().norm())
        assert error <= ROUNDING[dtype][i > 1], f'result {i}: {error:.1e}'


def poison(nbytes: int) -> None:
    """Leaves NaN in the memory that the next tensors will get.

    The byte 255 repeated is NaN in every floating-point format.
    """
    torch.cuda.empty_cache()
    nbytes = min(nbytes, torch.cuda.mem_get_info()[0] // 2)
    # Requests of up to 1 MiB come from a pool of their own.
    blocks = [
        torch.full((2**19, ), 255, dtype=torch.uint8, device='cuda')
        for _ in range(32)
    ]
    blocks.append(
        torch.full((nbytes, ), 255, dtype=torch.uint8, device='cuda'))
    torch.cuda.synchronize()


# shape, heads, head_dim, dtype, options
REAL = [
    ((56, 56), 3, 32, torch.bfloat16, dict(cell_size=8)),
    ((56, 56), 3, 32, torch.float32, dict(cell_size=4)),
    ((250, 251), 3, 32, torch.bfloat16, dict(cell_size=8)),
    ((250, 251), 2, 48, torch.float16, dict(cell_size=4)),
    ((128, 96), 2, 64, torch.float32, dict(cell_size=8, rank=2)),
    ((97, 130), 2, 128, torch.bfloat16, dict(cell_size=8)),
    ((160, 160), 2, 32, torch.bfloat16, dict(cell_size=8, num_levels=1)),
    ((56, 56), 3, 32, torch.bfloat16, dict(cell_size=8, num_levels=0)),
    ((16381, ), 2, 64, torch.bfloat16, dict(cell_size=128, causal=True)),
    ((16381, ), 2, 64, torch.float32, dict(cell_size=64, causal=True)),
    ((16381, ), 2, 128, torch.float16, dict(cell_size=64)),
    ((4000, ), 2, 32, torch.bfloat16, dict(cell_size=64, num_levels=2)),
    ((1 << 20, ), 1, 64, torch.bfloat16, dict(cell_size=128, causal=True)),
    ((250, 251), 3, 32, torch.bfloat16, dict(cell_size=8, pool_queries=True)),
    ((128, 96), 2, 64, torch.float16,
     dict(cell_size=4, rank=2, pool_queries=True)),
    ((160, 160), 2, 128, torch.float32,
     dict(cell_size=8, num_levels=1, pool_queries=True)),
    ((16381, ), 2, 64, torch.bfloat16, dict(cell_size=64, pool_queries=True)),
]


@pytest.mark.gpu
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('case', REAL, ids=str)
def test_real_sizes(case, masked) -> None:
    """Against the blocked backend in float64, on poisoned memory, twice."""
    shape, heads, head_dim, dtype, options = case
    options = dict(options)
    inputs = on_gpu(shape, heads, head_dim, dtype)
    if masked:
        options.update(
            key_mask=torch.rand(1, *shape, device='cuda') < 0.7,
            dropout_p=0.1,
            dropout_seed=2**40 + 3)
        if options.get('causal'):
            # Every query sees a key: the norm of the lse is finite.
            options['key_mask'][:, 0] = True
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = results(exact, 'torch', **options)
    poison(16 * inputs[0].nbytes)
    found = results(inputs, **options)
    assert_near(found, expected, dtype)
    poison(16 * inputs[0].nbytes)
    for a, b in zip(results(inputs, **options), found):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_auto_on_a_gpu_is_triton() -> None:
    inputs = on_gpu((40, 40), 2, 32, torch.bfloat16)
    assert explain_backend(inputs[0]) == 'triton: chosen'
    for a, b in zip(
            results(inputs, 'auto', cell_size=8), results(inputs,
                                                          cell_size=8)):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype) -> None:
    inputs = on_gpu((40, 40), 2, 32, torch.float32)
    with torch.autocast('cuda', dtype):
        found = results(inputs, cell_size=4)
    assert found[0].dtype == dtype and found[1].dtype == torch.float32
    assert all(x.dtype == torch.float32 for x in found[2:])
    assert_near(found, results(inputs, cell_size=4), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(
    'shape, options', [((40, 40), dict(cell_size=4)),
                       ((40, 40), dict(cell_size=4, pool_queries=True)),
                       ((1000, ), dict(cell_size=64, causal=True))],
    ids=str)
@pytest.mark.parametrize('masked', [False, True])
def test_cuda_graph(shape, options, masked) -> None:
    """Forward and backward are captured, and replayed with other numbers."""
    inputs = on_gpu(shape, 2, 32, torch.bfloat16)
    options = dict(options)
    if masked:
        options['key_mask'] = torch.rand(1, *shape, device='cuda') < 0.7
        options['key_mask'][:, 0] = True
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and fills the caches
        for _ in range(2):
            results(inputs, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(inputs, **options)
    with torch.no_grad():
        for x in inputs:
            x.copy_(torch.randn_like(x))
        if masked:
            options['key_mask'].copy_(options['key_mask'].flip(1))
            options['key_mask'][:, 0] = True
    graph.replay()
    for a, b in zip(captured, results(inputs, **options)):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_a_cuda_graph_drops_anew_at_every_replay() -> None:
    inputs = on_gpu((40, 40), 2, 32, torch.float32)
    options = dict(cell_size=8, dropout_p=0.5)
    results(inputs, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(inputs, **options)
    outs = []
    for _ in range(2):
        graph.replay()
        outs.append(captured[0].clone())
    assert (outs[0] - outs[1]).abs().max() > 0.01


@pytest.mark.gpu
def test_the_default_compiler() -> None:
    torch._dynamo.reset()
    layer = Layer(dim=64, cell_size=4).cuda()
    x = torch.randn(1, 40, 40, 64, device='cuda', requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True)
    found, expected = [], []
    for function, kept in ((compiled, found), (layer, expected)):
        out = function(x)
        grads = torch.autograd.grad(out.sum(), (x, *layer.parameters()))
        kept += [out, *grads]
    # The compiler may order the sums of the projection otherwise.
    assert_near(found, expected, torch.float16)
    torch._dynamo.reset()


@pytest.mark.gpu
def test_a_second_gpu() -> None:
    """Kernels run where the tensors are, not on the current device."""
    if torch.cuda.device_count() < 2:
        pytest.skip('needs two CUDA devices')
    inputs = on_gpu((40, 40), 2, 32, torch.bfloat16)
    moved = [x.detach().to('cuda:1').requires_grad_() for x in inputs]
    assert torch.cuda.current_device() == 0
    for a, b in zip(results(moved, cell_size=4), results(inputs, cell_size=4)):
        assert a.device.index == 1
        assert_close(a.cpu(), b.cpu())


@pytest.mark.gpu
def test_the_search_for_configurations(monkeypatch) -> None:
    from fma_kernels.backends.triton import configs
    inputs = on_gpu((40, 40), 2, 32, torch.bfloat16)
    expected = results(inputs, cell_size=8)
    monkeypatch.setenv('FMA_AUTOTUNE', '1')
    configs.tuned.cache_clear()
    assert_near(results(inputs, cell_size=8), expected, torch.bfloat16)
    assert configs.tuned.cache_info().misses >= 3  # queries twice, keys, ...
    configs.tuned.cache_clear()


def _needs_memory(gigabytes: int) -> None:
    free = torch.cuda.mem_get_info()[0] >> 30
    if free < gigabytes:
        pytest.skip(f'needs {gigabytes} GiB of GPU memory, {free} are free')


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements() -> None:
    """The last head of a large tensor is what it is on its own."""
    torch.cuda.empty_cache()
    _needs_memory(80)
    shape, heads, dim = (2**20 + 77, ), 16, 128
    options = dict(cell_size=128, causal=True)
    x = torch.randn(1, *shape, heads, dim, device='cuda', dtype=torch.bfloat16)
    assert x.numel() > 2**31
    inputs = [y.requires_grad_() for y in (x, x.roll(1, 1), x.roll(2, 1))]
    found = [y[:, -5000:, -1:] for y in results(inputs, **options)]
    alone = [y[..., -1:, :].detach().clone().requires_grad_() for y in inputs]
    expected = [y[:, -5000:] for y in results(alone, **options)]
    assert_near(found, expected, torch.bfloat16)


@pytest.mark.gpu
def test_windows_wider_than_2_to_the_31_elements() -> None:
    """Rows far apart: offsets within a window need 64 bits."""
    from fma_kernels.backends.triton.call import wide
    torch.cuda.empty_cache()
    _needs_memory(16)
    side, step = 26, 2**27
    memory = torch.empty(side, step, dtype=torch.bfloat16, device='cuda')
    parts = memory[:, :3 * side * 64].unflatten(1, (3, side, 2, 32))
    parts.copy_(torch.randn(parts.shape, device='cuda'))
    inputs = [x[None].requires_grad_() for x in parts.unbind(1)]
    assert wide((24, 24), inputs[0])
    dense = [x.detach().contiguous().requires_grad_() for x in inputs]
    assert_near(
        results(inputs, cell_size=8), results(dense, cell_size=8),
        torch.bfloat16)
