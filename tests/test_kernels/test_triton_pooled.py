"""Pooled queries in Triton against the oracle: outputs, lse, all gradients.

Interpreted where there is no GPU, as ``test_triton_backend.py``, which also
has the real sizes: the smallest shapes that reach a branch.
"""
from functools import partial

import pytest
import torch
from compare import TRITON_DEVICE as DEVICE
from compare import check_op
from compare import compare as compare_backend
from compare import missing_triton, op
from compare import run as run_backend
from torch import Tensor

from fma_kernels import Hierarchy, explain_backend, fma1d, fma2d
from fma_kernels.checks import Request, can_run
from fma_kernels.pooled import far_field, near_field
from fma_kernels.pooling import average_pyramid, pack
from fma_kernels.testing import assert_close, random_mask, random_qkv

pytestmark = [
    pytest.mark.skipif(
        missing_triton() is not None, reason=str(missing_triton())),
    # Of the interpreter, about numbers that are replaced afterwards.
    pytest.mark.filterwarnings('ignore:.*encountered in:RuntimeWarning')
]

compare = partial(
    compare_backend,
    'triton',
    device=DEVICE,
    dtype=torch.float32,
    heads=1,
    pool_queries=True)
run = partial(run_backend, 'triton')


# shape, cell_size, num_levels, rank
@pytest.mark.parametrize(
    'geometry',
    [
        ((1, ), 2),  # no level at all
        ((35, ), 2),  # tiles of tokens that are parents
        ((70, ), 17),  # that are leaves
        ((41, ), 4, None, 4),
        ((37, ), 2, 1, 2),  # a top level that lists its grid
        ((11, ), 2, 6),  # more levels than needed
        ((5, 9), 1),
        ((1, 9), 2, None, 2),
        ((11, 1), 2),
        ((3, 13), 2, 1),
        ((6, 9), 2, None, 2),
    ],
    ids=str)
def test_geometries(geometry) -> None:
    compare(*geometry)


def test_several_tiles_on_each_axis() -> None:
    compare((6, 10), 1, 2)


@pytest.mark.parametrize(
    'geometry', [((13, ), 2, None, 2), ((3, 10), 2, 1)], ids=str)
def test_masks_with_nan(geometry) -> None:
    """Three images: half real, almost empty, padding only."""
    mask = random_mask(geometry[0], 3, 0.5)
    mask[1] = random_mask(geometry[0], 1, 0.1)[0]
    mask[2] = False
    out, lse, *grads = compare(*geometry, batch=3, mask=mask)
    assert (lse[2] == -torch.inf).all() and not out[2].any()
    assert not any(grad[2].any() for grad in grads)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    'geometry', [((11, ), 2, 6), ((11, ), 4, None, 2), ((3, 5), 2, 2, 2)],
    ids=str)
def test_given_summaries(geometry, masked) -> None:
    """Of mass 0, be it a mask or a border, they may hold NaN."""
    mask = random_mask(geometry[0], 2, 0.3) if masked else None
    compare(*geometry, batch=2, mask=mask, summaries=True)


@pytest.mark.parametrize(
    'options',
    [dict(mass=False), dict(scale=0),
     dict(scale=-0.9)], ids=str)
def test_mass_and_scale(options) -> None:
    compare((11, ), 2, rank=2, mask=random_mask((11, )), **options)
    compare((3, 5), 1, **options)


def test_large_logits() -> None:
    """A merge that does not rescale would overflow."""
    compare((19, ), 2, scale=30.0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    'geometry', [((21, ), 4, None, 2), ((3, 5), 1)], ids=str)
def test_half_precision(geometry, dtype) -> None:
    mask = random_mask(geometry[0], 1)
    compare(*geometry, head_dim=8, dtype=dtype, mask=mask, dirty=False)


@pytest.mark.parametrize('head_dim', [1, 17, 128])
def test_head_dims(head_dim) -> None:
    compare((11, ), 2, head_dim=head_dim, heads=2)


@pytest.mark.parametrize(
    'geometry', [((11, ), 2, None, 2), ((11, ), 2, 1), ((3, 6), 2, 2, 2)],
    ids=str)
def test_dropout_agrees_with_the_oracle(geometry) -> None:
    compare(
        *geometry,
        batch=2,
        heads=2,
        mask=random_mask(geometry[0], 2, 0.8),
        dropout_p=0.4,
        dropout_seed=2**40 + 11)


@pytest.mark.parametrize('shape', [(11, ), (3, 5)], ids=str)
def test_strided_inputs(shape) -> None:
    """One projection gives all three: [B, *grid, 3, heads, head_dim]."""
    qkv = torch.randn(2, *shape, 3, 2, 4, device=DEVICE, requires_grad=True)
    apart = qkv.unbind(-3)
    options = dict(cell_size=2, backend='triton', pool_queries=True)
    out = op(shape)(*apart, **options)
    dense = [x.detach().contiguous().requires_grad_() for x in apart]
    expected = op(shape)(*dense, **options)
    assert_close(out, expected)
    slope = torch.randn(*out.shape[:-1], 8, device=DEVICE)[..., ::2]
    grad, = torch.autograd.grad(out, qkv, slope)
    grads = torch.autograd.grad(expected, dense, slope.contiguous())
    assert_close(grad, torch.stack(grads, -3), grad=True)


def test_bit_equal_on_repeat() -> None:
    inputs = list(
        random_qkv((3, 5), 1, batch=2, dtype=torch.float32, device=DEVICE))
    options = dict(
        cell_size=1, pool_queries=True, dropout_p=0.1, dropout_seed=5)
    first = run(inputs, (3, 5), False, **options)
    again = run(inputs, (3, 5), False, **options)
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_every_element_is_written(monkeypatch) -> None:
    """Nothing is read of what ``torch.empty`` gave before it is written."""
    empty = torch.empty

    def poisoned(*args, **kwargs) -> Tensor:
        x = empty(*args, **kwargs)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, 'empty', poisoned)
    compare((11, ), 2, rank=2, batch=2, mask=random_mask((11, ), 2, 0.2))
    compare((3, 5), 1)


def test_an_empty_batch() -> None:
    inputs = list(
        random_qkv((9, ), batch=0, dtype=torch.float32, device=DEVICE))
    for x in run(inputs, (9, ), False, cell_size=2, pool_queries=True):
        assert x.shape[0] == 0


# shape, cell_size, rank, masked, dropout
@pytest.mark.parametrize(
    'case', [((11, ), 2, 2, True, 0.3), ((3, 5), 1, 1, False, 0.0)], ids=str)
def test_opcheck(case) -> None:
    """Gradients arrive for the sub-cells of all levels."""
    shape, cell_size, rank, masked, p = case
    h = Hierarchy(shape, cell_size, rank=rank)
    batch = 2 if masked else 1
    qkv = random_qkv(shape, 1, batch=batch, dtype=torch.float32, device=DEVICE)
    mask = random_mask(shape, batch).to(DEVICE) if masked else None
    seed = torch.tensor(3, device=DEVICE) if p else None
    pooled = [
        pack(average_pyramid(x, h, mask), h.ndim).detach().requires_grad_()
        for x in qkv
    ]
    core = torch.ops.fma_kernels
    kernels = ('test_schema', 'test_faketensor')
    tolerance = dict(rtol=1e-4, atol=1e-5)
    sizes = (list(shape), cell_size, h.num_levels, rank, True, 0.5, p)
    results = []
    for backend in ('triton', 'torch'):
        out, lse = far_field(*pooled, mask, seed, *sizes, backend)
        slopes = torch.cos(out), torch.cos(lse)
        grads = torch.autograd.grad((out, lse), pooled, slopes)
        results.append([out.detach(), lse.detach(), *grads])
    for a, b in zip(*results):
        assert_close(a, b)
    out, lse = results[0][:2]
    check_op(far_field, (*pooled, mask, seed, *sizes, 'triton'), **tolerance)
    torch.library.opcheck(
        core.far_field_backward.default,
        (out, lse.clamp(min=0), out, lse, *pooled, mask, seed, *sizes,
         'triton'),
        test_utils=kernels)
    # The first level where it lies: in front of the others.
    near = [x[:, :h.level_sizes[0]].requires_grad_() for x in (out, lse)]
    sizes = cell_size, rank, 0.5, p, 'triton'
    check_op(near_field, (*qkv, *near, mask, seed, *sizes), **tolerance)
    with torch.no_grad():
        out, lse = near_field(*qkv, *near, mask, seed, *sizes)
    torch.library.opcheck(
        core.near_field_backward.default,
        (out, lse, out, lse, *qkv, *near, mask, seed, *sizes),
        test_utils=kernels)


# ------------------------------------------------------------- the choice
def test_auto_takes_it_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device:
                        (8, 0))
    request = Request(
        torch.device('cuda'), torch.bfloat16, 64, pool_queries=True)
    assert can_run('triton', request)
    with pytest.raises(
            ValueError, match='it has no near_bias for pool_queries yet'):
        can_run('triton', request._replace(near_bias=True), raise_error=True)
    # Interpreted kernels are for tests: nobody gets them unasked.
    lines = explain_backend(torch.zeros(1, 9, 1, 4), pool_queries=True)
    first, *_, last = lines.splitlines()
    assert first == 'triton: it needs a CUDA device, not cpu'
    assert last in ('native: chosen', 'torch: chosen')


@pytest.mark.parametrize(
    'dtype, head_dim, word', [(torch.float64, 4, 'it has no float64'),
                              (torch.float32, 129, 'at most 128, got 129')],
    ids=str)
def test_what_it_cannot_run(dtype, head_dim, word) -> None:
    qkv = random_qkv((9, ), head_dim=head_dim, dtype=dtype, device=DEVICE)
    options = dict(cell_size=2, pool_queries=True)
    with pytest.raises(ValueError, match=f'cannot run: .*{word}'):
        fma1d(*qkv, backend='triton', **options)
    assert fma1d(*qkv, **options).dtype == dtype  # 'auto' takes another


def test_biases_are_refused() -> None:
    qkv = random_qkv((5, 9), dtype=torch.float32, device=DEVICE)
    bias = torch.zeros(2, 49, device=DEVICE)
    with pytest.raises(
            ValueError, match='triton.* no near_bias for pool_queries yet'):
        fma2d(
            *qkv,
            cell_size=2,
            pool_queries=True,
            near_bias=bias,
            backend='triton')
