"""Pooled queries, the linear variant: definition, exactness, backends."""
from functools import partial

import pytest
import torch
from compare import CPU_BACKENDS, backends, check_op
from compare import compare as compare_backend
from compare import op, place, run
from hypothesis import given
from hypothesis import strategies as st
from slow_reference import brute_force_pairs, slow_fma
from test_cpu_backends import CHECKED, geometries, masks
from test_exactness import constant_on, full_lse, softmax_attention

from fma_kernels import Hierarchy, explain_backend, fma1d, fma2d, naive
from fma_kernels.backends import torch as blocked
from fma_kernels.pooled import far_field, near_field
from fma_kernels.pooling import average_pyramid, pack
from fma_kernels.testing import (assert_close, missing_compiler, random_mask,
                                 random_qkv, random_summaries)
from fma_vision.engine.timing import peak_memory

pytestmark = pytest.mark.sampled

compare = partial(compare_backend, pool_queries=True)
BACKENDS = backends('naive', 'torch', 'native')
# shape, cell_size, num_levels, rank
GRIDS = [((29, ), 2, None, 1), ((40, ), 4, 1, 2), ((9, ), 2, 4, 2),
         ((150, ), 2, None, 2), ((67, ), 16, None, 4), ((13, 10), 2, None, 1),
         ((11, 18), 4, 1, 4), ((20, 9), 3, 2, 3), ((1, 14), 1, None, 1),
         ((22, 22), 4, None, 2), ((26, 9), 1, 2, 1)]
grids = pytest.mark.parametrize('grid', GRIDS, ids=str)


# --------------------------------------------------------------- definition
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('given', [False, True])
@pytest.mark.parametrize(
    'geometry', [((21, ), 2, None, 1), ((21, ), 2, None, 2), ((11, ), 3, 5, 3),
                 ((9, 7), 2, None, 1), ((8, 11), 2, 1, 2),
                 ((3, 4), 8, None, 2)],
    ids=str)
def test_oracle_against_the_loop(geometry, given, masked) -> None:
    h = Hierarchy(*geometry)
    qkv = random_qkv(h.shape, batch=2)
    options = dict(scale=0.7, pool_queries=True)
    if masked:
        options['key_mask'] = random_mask(h.shape, 2, real=0.5)
    if given:
        for seed, name in enumerate(('key', 'value', 'query'), 1):
            options[f'{name}_summaries'] = random_summaries(
                h, batch=2, seed=seed)
    with torch.no_grad():
        expected = slow_fma(*qkv, h, **options)
        for actual, other in zip(naive(*qkv, h, **options), expected):
            assert_close(actual, other)
        options.update(pool_queries=False, query_summaries=None)
        plain, _ = naive(*qkv, h, **options)
    widths = h.trimmed().widths
    if widths and widths[-1] > h.rank:  # sub-cells of more than a token
        assert (plain - expected[0]).abs().max() > 1e-3


@BACKENDS
@grids
@pytest.mark.parametrize('masked', [False, True])
def test_equals_the_plain_form_for_constant_queries(grid, masked,
                                                    backend) -> None:
    shape, cell_size, levels, rank = grid
    q, k, v = random_qkv(shape, batch=2, **place(backend))
    q = constant_on(Hierarchy(*grid), q)
    options = dict(
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        key_mask=random_mask(shape, 2, 0.6) if masked else None,
        backend=backend,
        return_lse=True)
    real = options['key_mask'] if masked else torch.ones(2, *shape).bool()
    for a, b in zip(
            op(shape)(q, k, v, pool_queries=True, **options),
            op(shape)(q, k, v, **options)):
        # A masked token asks with the mean of the real ones around it.
        assert_close(a[real], b[real])


@BACKENDS
@pytest.mark.parametrize('shape, cell_size, levels', [((17, ), 2, 0),
                                                      ((9, 6), 2, 0),
                                                      ((7, 8), 4, None),
                                                      ((7, ), 4, 3)])
@pytest.mark.parametrize('masked', [False, True])
def test_no_far_cell_is_full_attention(shape, cell_size, levels, masked,
                                       backend) -> None:
    qkv = random_qkv(shape, batch=2, **place(backend))
    mask = random_mask(shape, 2) if masked else None
    out, lse = op(shape)(
        *qkv,
        cell_size=cell_size,
        num_levels=levels,
        key_mask=mask,
        pool_queries=True,
        backend=backend,
        return_lse=True)
    expected = softmax_attention(*qkv, mask)
    assert_close(out, expected)
    assert_close(lse, full_lse(*qkv[:2], mask))
    slope = torch.randn_like(out)
    for a, b in zip(
            torch.autograd.grad(out, qkv, slope),
            torch.autograd.grad(expected, qkv, slope)):
        assert_close(a, b, grad=True)


@BACKENDS
@grids
def test_keys_and_queries_constant_on_the_coarsest_cells(grid,
                                                         backend) -> None:
    shape, cell_size, levels, rank = grid
    h = Hierarchy(*grid)
    q, k, v = random_qkv(shape, **place(backend))
    q, k = constant_on(h, q), constant_on(h, k)
    out = op(shape)(
        q,
        k,
        v,
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        pool_queries=True,
        backend=backend)
    assert_close(out, softmax_attention(q, k, v))


@BACKENDS
@grids
def test_permuting_batch_or_heads_commutes(grid, backend) -> None:
    shape, cell_size, levels, rank = grid
    qkv = random_qkv(shape, heads=3, batch=3, **place(backend))
    mask = random_mask(shape, 3)
    options = dict(
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        pool_queries=True,
        backend=backend)
    out = op(shape)(*qkv, key_mask=mask, **options)
    order = [2, 0, 1]
    assert_close(
        op(shape)(*[x[order] for x in qkv], key_mask=mask[order], **options),
        out[order])
    assert_close(
        op(shape)(*[x[..., order, :] for x in qkv], key_mask=mask, **options),
        out[..., order, :])


@BACKENDS
@grids
def test_query_without_real_key_gives_zero(grid, backend) -> None:
    shape, cell_size, levels, rank = grid
    qkv = random_qkv(shape, batch=2, **place(backend))
    mask = random_mask(shape, 2)
    mask[0] = False
    out, lse = op(shape)(
        *qkv,
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        key_mask=mask,
        pool_queries=True,
        backend=backend,
        return_lse=True)
    assert (out[0] == 0).all() and (lse[0] == -torch.inf).all()
    assert (out[1] != 0).all() and torch.isfinite(lse[1]).all()
    slope = torch.ones_like(lse)
    slope[0] = torch.nan
    for grad in torch.autograd.grad((out, lse), qkv,
                                    (torch.randn_like(out), slope)):
        assert (grad[0] == 0).all()
        assert torch.isfinite(grad[1]).all() and (grad[1] != 0).any()


@BACKENDS
def test_lse_counts_the_tokens(backend) -> None:
    q, k, v = random_qkv((13, 22), **place(backend))
    _, lse = fma2d(
        q,
        torch.zeros_like(k),
        v,
        cell_size=2,
        pool_queries=True,
        backend=backend,
        return_lse=True)
    assert_close(lse.exp(), torch.full_like(lse, 13 * 22))


# ----------------------------------------------------------------- backends
@CPU_BACKENDS
@pytest.mark.parametrize('cell_size, rank', [(1, 1), (2, 1), (2, 2), (3, 3),
                                             (4, 1), (8, 2)])
@pytest.mark.parametrize(
    'shape', [(1, ), (7, ), (33, ), (70, ), (1, 19), (13, 21), (17, 16)],
    ids=str)
def test_shapes_cells_ranks(shape, cell_size, rank, backend) -> None:
    compare(backend, shape, cell_size, rank=rank)


@CPU_BACKENDS
@pytest.mark.parametrize('levels', [None, 0, 1, 2, 6])
@pytest.mark.parametrize('cell_size', [1, 2, 4])
@pytest.mark.parametrize('shape', [(41, ), (2, ), (11, 18), (1, 30)], ids=str)
def test_levels(shape, cell_size, levels, backend) -> None:
    compare(backend, shape, cell_size, levels)


@CPU_BACKENDS
@grids
@pytest.mark.parametrize('masked', [False, True])
def test_given_summaries(grid, masked, backend) -> None:
    mask = random_mask(grid[0], 2, real=0.4) if masked else None
    compare(backend, *grid, batch=2, mask=mask, summaries=True)


@CPU_BACKENDS
@pytest.mark.parametrize('kind', ['query', 'key', 'value'])
def test_only_one_kind_of_summaries_given(kind, backend) -> None:
    h = Hierarchy((12, 13), 2)
    qkv = random_qkv(h.shape, **place(backend))
    options = {f'{kind}_summaries': random_summaries(h, **place(backend))}
    options.update(cell_size=2, pool_queries=True)
    assert_close(
        fma2d(*qkv, backend=backend, **options),
        fma2d(*qkv, backend='naive', **options))


@CPU_BACKENDS
@pytest.mark.parametrize(
    'options',
    [dict(mass=False), dict(scale=2.0),
     dict(scale=0)], ids=str)
@pytest.mark.parametrize('shape', [(50, ), (14, 11)], ids=str)
def test_mass_and_scale(shape, options, backend) -> None:
    compare(backend, shape, 2, rank=2, **options)


@CPU_BACKENDS
@pytest.mark.parametrize('real', [0.05, 0.5])
@grids
def test_masks_with_nan(grid, real, backend) -> None:
    mask = random_mask(grid[0], 3, real)
    mask[1] = False  # an image of padding only
    compare(backend, *grid, batch=3, mask=mask)


@BACKENDS
@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
def test_masked_tokens_may_hold_anything(bad, backend) -> None:
    """Queries too: no effect on others, finite, and no gradient."""
    shape = (13, 10)
    mask = random_mask(shape, real=0.4)
    mask[:, :6, :6] = False
    qkv = random_qkv(shape, **place(backend))
    options = dict(
        cell_size=2, key_mask=mask, pool_queries=True, backend=backend)
    clean = [x.detach().masked_fill(~mask[..., None, None], 0) for x in qkv]
    dirty = [x.detach().masked_fill(~mask[..., None, None], bad) for x in qkv]
    for x in (*clean, *dirty):
        x.requires_grad_()
    outs = [fma2d(*x, **options) for x in (clean, dirty)]
    assert torch.isfinite(outs[1]).all() and torch.equal(*outs)
    slope = torch.randn_like(outs[0])
    for a, b in zip(
            torch.autograd.grad(outs[0], clean, slope),
            torch.autograd.grad(outs[1], dirty, slope)):
        assert_close(b[mask], a[mask])
        assert (b[~mask] == 0).all()


@CPU_BACKENDS
@pytest.mark.parametrize('dtype',
                         [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'geometry', [((45, ), 4, None, 2), ((45, ), 20, None, 1),
                 ((14, 13), 2, None, 1), ((18, 11), 4, None, 2)],
    ids=str)
def test_dtypes(geometry, dtype, backend) -> None:
    mask = random_mask(geometry[0], 2)
    compare(
        backend,
        *geometry,
        batch=2,
        head_dim=8,
        dtype=dtype,
        mask=mask,
        dirty=False)


@CPU_BACKENDS
@pytest.mark.parametrize('masked', [False, True])
@grids
def test_dropout_agrees_with_the_oracle(grid, masked, backend) -> None:
    mask = random_mask(grid[0], 2, 0.6) if masked else None
    compare(
        backend,
        *grid,
        batch=2,
        heads=3,
        mask=mask,
        dropout_p=0.4,
        dropout_seed=11)


@CPU_BACKENDS
def test_dropout_keeps_the_expectation(backend) -> None:
    q, k, v = (
        x.detach()
        for x in random_qkv((24, 24), heads=4, batch=4, **place(backend)))
    options = dict(
        cell_size=2, dropout_p=0.3, pool_queries=True, backend=backend)
    outs = torch.stack([
        fma2d(q, k, torch.ones_like(v), dropout_seed=seed, **options)[..., 0]
        for seed in range(8)
    ])
    assert (outs - 1).abs().max() > 0.05
    # A drop is shared by the tokens of a sub-cell, so seeds count.
    means = outs.flatten(1).mean(1)
    assert (means.mean() - 1).abs() < 4 * means.std() / len(means)**0.5
    # Without a seed, PyTorch's generator decides.
    torch.manual_seed(0)
    first = fma2d(q, k, v, **options)
    assert (first - fma2d(q, k, v, **options)).abs().max() > 0.1
    torch.manual_seed(0)
    assert torch.equal(fma2d(q, k, v, **options), first)


@pytest.mark.parametrize('elements', [1, 3000, 12000])
@pytest.mark.parametrize(
    'grid', [((70, ), 2, None, 2), ((70, ), 4, 1, 1), ((13, 10), 2, None, 1),
             ((17, 12), 1, 2, 1)],
    ids=str)
def test_chunks_change_nothing(grid, elements, monkeypatch) -> None:
    """Heads, images and rows of a long top list in parts."""
    shape, cell_size, levels, rank = grid
    options = dict(
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        pool_queries=True,
        key_mask=random_mask(shape, 3, 0.5),
        dropout_p=0.2,
        dropout_seed=7)
    inputs = list(random_qkv(shape, heads=3, batch=3))
    expected = run('torch', inputs, shape, False, **options)
    monkeypatch.setattr(blocked, 'CHUNK_ELEMENTS', elements)
    for a, b in zip(run('torch', inputs, shape, False, **options), expected):
        assert_close(a, b)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    'grid', [((2048, ), 2, None, 1), ((2048, ), 4, None, 2),
             ((50, 70), 2, None, 1)],
    ids=str)
def test_the_far_field_holds_no_second_pyramid(grid, masked,
                                               monkeypatch) -> None:
    """Beyond its results, a few blocks: copies of all would outgrow them."""
    monkeypatch.setattr(blocked, 'CHUNK_ELEMENTS', 1 << 16)
    h = Hierarchy(*grid)
    mask = random_mask(grid[0], 1) if masked else None
    count = h.level_starts[-1] + h.level_sizes[-1]
    levels = torch.randn(3, 1, count, 4, 64).unbind()
    options = (list(h.shape), h.cell_size, h.num_levels, h.rank, True, 0.5, 0.,
               'torch')
    with torch.no_grad():
        out, lse = far_field(*levels, mask, None, *options)
        peak = peak_memory(lambda: far_field(*levels, mask, None, *options))
    results = 4 * (out.numel() + lse.numel())
    assert results <= peak < 1.5 * results


@CPU_BACKENDS
@pytest.mark.parametrize('shape', [(67, ), (13, 22)], ids=str)
def test_bit_equal_on_repeat(shape, backend) -> None:
    inputs = list(random_qkv(shape, batch=2, dtype=torch.float32))
    options = dict(
        cell_size=2, dropout_p=0.1, dropout_seed=5, pool_queries=True)
    first = run(backend, inputs, shape, False, **options)
    for _ in range(3):
        again = run(backend, inputs, shape, False, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize(
    'name', ['1d', 'masked', 'rank', 'summaries', 'top', 'dropout'])
def test_gradcheck(name) -> None:
    options = dict(cell_size=2, backend='torch', pool_queries=True)
    shape, levels = (7, 9), []
    if name == '1d':
        shape = (27, )
    elif name == 'masked':
        options['key_mask'] = random_mask(shape, real=0.6)
    elif name == 'rank':
        options['rank'] = 2
    elif name == 'summaries':
        h = Hierarchy(shape, 2)
        levels = [
            x for s in (1, 2, 3) for x in random_summaries(h, 1, 2, seed=s)
        ]
    elif name == 'top':
        options['num_levels'] = 1
    else:
        options.update(dropout_p=0.3, dropout_seed=2)
    qkv = random_qkv(shape, heads=1, head_dim=2)

    def call(q, k, v, *levels):
        third = len(levels) // 3
        if levels:
            options.update(
                key_summaries=levels[:third],
                value_summaries=levels[third:2 * third],
                query_summaries=levels[2 * third:])
        return op(shape)(q, k, v, return_lse=True, **options)

    assert torch.autograd.gradcheck(call, (*qkv, *levels), fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda *x: call(*x)[0], (*qkv, *levels), fast_mode=True)


@CPU_BACKENDS
def test_given_summaries_beyond_need_get_zero_gradients(backend) -> None:
    tree = Hierarchy((7, 7), 4, num_levels=2)
    qkv = random_qkv((7, 7), **place(backend))
    levels = random_summaries(tree, **place(backend))
    out = fma2d(
        *qkv,
        cell_size=4,
        num_levels=2,
        pool_queries=True,
        query_summaries=levels,
        backend=backend)
    assert_close(out, softmax_attention(*qkv))
    for grad in torch.autograd.grad(out.sum(), levels):
        assert (grad == 0).all()


@CPU_BACKENDS
@CHECKED
@given(st.data())
def test_property(backend, data) -> None:
    geometry = data.draw(geometries(data.draw(st.integers(1, 2))))
    batch = data.draw(st.integers(1, 2))
    compare(
        backend,
        *geometry,
        batch=batch,
        heads=data.draw(st.integers(1, 3)),
        head_dim=data.draw(st.integers(1, 5)),
        mass=data.draw(st.booleans()),
        summaries=data.draw(st.booleans()),
        mask=masks(data.draw, geometry[0], batch),
        dropout_p=data.draw(st.sampled_from([0.0, 0.3])),
        dropout_seed=data.draw(st.integers(0, 9)))


# -------------------------------------------------------- arguments, choice
def test_causal_is_refused() -> None:
    qkv = random_qkv((9, ))
    with pytest.raises(ValueError, match='pool_queries .*causal=True.*later'):
        fma1d(*qkv, cell_size=2, causal=True, pool_queries=True)


def test_errors_name_the_argument() -> None:
    qkv = random_qkv((9, 10))
    levels = random_summaries(Hierarchy((9, 10), 2))
    with pytest.raises(ValueError, match='query_summaries .*pool_queries'):
        fma2d(*qkv, cell_size=2, query_summaries=levels)
    with pytest.raises(TypeError, match='pool_queries must be a bool'):
        fma2d(*qkv, cell_size=2, pool_queries='learned')
    for wrong, error in ((levels[:1], ValueError), (levels[0], TypeError),
                         (levels[::-1], ValueError)):
        with pytest.raises(error, match='query_summaries'):
            fma2d(*qkv, cell_size=2, pool_queries=True, query_summaries=wrong)


def test_auto_takes_the_blocked_backend() -> None:
    qkv = random_qkv((9, 10))
    lines = explain_backend(qkv[0], pool_queries=True).splitlines()
    assert lines[-1] == 'torch: chosen'
    options = dict(cell_size=2, pool_queries=True)
    assert torch.equal(
        fma2d(*qkv, **options), fma2d(*qkv, backend='torch', **options))
    bias = torch.randn(2, 49, dtype=torch.float64)
    assert explain_backend(
        qkv[0], pool_queries=True,
        near_bias=bias).splitlines()[-1] == 'naive: chosen'
    assert not torch.equal(
        fma2d(*qkv, near_bias=bias, **options), fma2d(*qkv, **options))


@BACKENDS
def test_autocast(backend) -> None:
    qkv = random_qkv((9, 10), dtype=torch.float32)
    levels = random_summaries(Hierarchy((9, 10), 2), dtype=torch.float32)
    options = dict(cell_size=2, pool_queries=True, query_summaries=levels)
    exact = fma2d(*qkv, **options)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = fma2d(*qkv, backend=backend, **options)
    assert out.dtype == torch.bfloat16
    assert_close(out, exact, torch.bfloat16)


@backends('auto', 'torch', 'native', 'naive')
def test_empty_batch(backend) -> None:
    qkv = random_qkv((9, 10), batch=0, **place(backend))
    out, lse = fma2d(
        *qkv,
        cell_size=2,
        pool_queries=True,
        dropout_p=0.1,
        backend=backend,
        return_lse=True)
    assert out.shape == qkv[0].shape and lse.shape == out.shape[:-1]
    for grad in torch.autograd.grad((out, lse), qkv,
                                    (out.detach(), lse.detach())):
        assert grad.shape == out.shape


# ------------------------------------------------------------------ compiler
# shape, cell_size, num_levels, rank, masked, dropout, dtype
OPS = [((9, 10), 2, 2, 1, False, 0.0, torch.float32),
       ((9, 10), 2, 2, 2, True, 0.0, torch.float64),
       ((21, ), 2, 3, 1, False, 0.3, torch.float32),
       ((12, 8), 4, 1, 2, True, 0.0, torch.bfloat16)]
core = torch.ops.fma_kernels


@CPU_BACKENDS
@pytest.mark.parametrize('case', OPS, ids=str)
def test_opcheck(case, backend) -> None:
    shape, cell_size, levels, rank, masked, p, dtype = case
    if dtype == torch.float64:
        dtype = place(backend)['dtype']
    h = Hierarchy(shape, cell_size, levels, rank)
    qkv = random_qkv(shape, batch=2, dtype=dtype)
    mask = random_mask(shape, 2) if masked else None
    seed = torch.tensor(3) if p else None
    pooled = [
        pack(average_pyramid(x, h, mask), h.ndim).detach().requires_grad_()
        for x in qkv
    ]
    options = dict(rtol=1e-4, atol=1e-5)
    if dtype == torch.bfloat16:
        options = dict(rtol=2e-2, atol=2e-2)
    sizes = list(shape), cell_size, levels, rank, True, 0.5, p, backend
    check_op(far_field, (*pooled, mask, seed, *sizes), **options)
    with torch.no_grad():
        out, lse = far_field(*pooled, mask, seed, *sizes)
    torch.library.opcheck(
        core.far_field_backward.default,
        (out, lse.clamp(min=0), out, lse, *pooled, mask, seed, *sizes),
        test_utils=('test_schema', 'test_faketensor'))
    leaves = h.level_sizes[0]
    near = [x[:, :leaves].clone().requires_grad_() for x in (out, lse)]
    sizes = cell_size, rank, 0.5, p, backend
    check_op(near_field, (*qkv, *near, mask, seed, *sizes), **options)
    # Strided inputs as well: the compiler relies on the strides.
    strided = [
        x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in qkv
    ]
    with torch.no_grad():
        out, lse = near_field(*strided, *near, mask, seed, *sizes)
    torch.library.opcheck(
        core.near_field_backward.default,
        (out, lse, out, lse, *strided, *near, mask, seed, *sizes),
        test_utils=('test_schema', 'test_faketensor'))


@pytest.mark.parametrize(
    'options', [dict(), dict(rank=2, mass=False),
                dict(num_levels=1)], ids=str)
@pytest.mark.parametrize('shape', [(27, ), (9, 12)], ids=str)
def test_one_graph(shape, options) -> None:
    torch._dynamo.reset()

    def function(q, k, v):
        return op(shape)(
            q * 1.5, k, v, cell_size=2, pool_queries=True, **options)

    inputs = random_qkv(shape, batch=2)
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
    results = [(out, *torch.autograd.grad(out.square().sum(), inputs))
               for out in (compiled(*inputs), function(*inputs))]
    for a, b in zip(*results):
        assert_close(a, b)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(
    missing_compiler() is not None, reason=str(missing_compiler()))
def test_compiled_equals_eager() -> None:
    torch._dynamo.reset()
    inputs = random_qkv((9, 10), dtype=torch.float32)
    function = partial(fma2d, cell_size=2, pool_queries=True)
    assert_close(
        torch.compile(function, fullgraph=True)(*inputs), function(*inputs))
    torch._dynamo.reset()


def test_export() -> None:

    class Layer(torch.nn.Module):

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return fma2d(x, x, x, cell_size=2, pool_queries=True)

    x = torch.randn(1, 11, 6, 2, 4)
    program = torch.export.export(Layer(), (x, ))
    names = [str(node.target) for node in program.graph.nodes]
    for name in ('far_field', 'near_field'):
        assert names.count(f'fma_kernels.{name}.default') == 1
    other = torch.randn_like(x)
    assert_close(program.module()(other), Layer()(other))


# ------------------------------------------------------------------- counts
@pytest.mark.parametrize(
    'geometry', [((29, ), 2, None, 1), ((40, ), 4, 1, 2), ((9, ), 2, 4, 2),
                 ((13, 10), 2, None, 1), ((11, 18), 4, 1, 4)],
    ids=str)
def test_pairs_are_those_of_the_definition(geometry) -> None:
    """A sub-cell that holds a token asks each summary that it sees once."""
    h = Hierarchy(*geometry)
    pairs = 0
    for level, grid in enumerate(h.grids, 1):
        side = h.widths[level - 1] // h.rank
        asked = set()
        for query in torch.cartesian_prod(*map(torch.arange, h.shape)).view(
                -1, h.ndim).tolist():
            own = tuple(t // side for t in query)
            if own not in asked:
                asked.add(own)
                pairs += sum(s.level == level
                             for s in h.footprint(tuple(query)).far)
    assert h.pooled_pairs == pairs
    total = 4 * 8 * 3 * 2 * (h.near_pairs + pairs)
    assert h.flops(3, 8, 2, pool_queries=True) == total
    far = brute_force_pairs(h.shape, h.cell_size, h.num_levels, h.rank,
                            False) - h.near_pairs
    assert pairs <= far
    if h.cell_size == 2 and h.rank == 1:
        assert pairs < far


def test_far_pairs_grow_linearly() -> None:
    pairs = [Hierarchy((n, ), 8).pooled_pairs for n in (2**14, 2**17)]
    assert 7.9 < pairs[1] / pairs[0] < 8.1


def test_a_causal_hierarchy_has_no_pooled_count() -> None:
    with pytest.raises(ValueError, match='pool_queries'):
        Hierarchy((9, ), 2, causal=True).flops(1, 1, pool_queries=True)
