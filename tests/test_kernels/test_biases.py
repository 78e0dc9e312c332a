"""Relative-position biases of the CPU's backends, against the oracle."""
from functools import partial

import pytest
import torch
from compare import CPU_BACKENDS, backends
from compare import compare as compare_backend
from compare import op, place, run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cpu_backends import spy_on_chunks

from fma_kernels import Hierarchy, auto_num_levels, fma1d, fma2d
from fma_kernels.backends import torch as blocked
from fma_kernels.testing import (assert_close, random_biases, random_mask,
                                 random_qkv)
from fma_vision.engine.timing import peak_memory

pytestmark = pytest.mark.sampled

# Outputs, lse and the gradients of queries, keys, values and tables.
compare = partial(compare_backend, biases=True)

# shape, cell_size, num_levels, rank: full attention, one level (its list is
# the whole grid), a top list longer than the automatic one, levels that are
# not needed; tiles that are leaves, and parents.
GEOMETRIES = [((7, ), 4, None, 1), ((41, ), 2, None, 2), ((70, ), 4, 2, 1),
              ((70, ), 16, None, 4), ((67, ), 20, 1, 2), ((33, ), 4, 6, 1),
              ((30, ), 2, 0, 1), ((5, 8), 4, None, 2), ((13, 21), 2, None, 1),
              ((17, 10), 2, None, 2), ((25, 18), 2, 2, 1),
              ((21, 19), 4, None, 2), ((17, 26), 8, None, 1),
              ((1, 19), 1, None, 1), ((15, 16), 2, 1, 1), ((9, 9), 2, 5, 1)]


def geometry_of(case) -> Hierarchy:
    return Hierarchy(*case).trimmed()


def leaves(case, heads: int = 2, batch: int = 1, dtype=torch.float64):
    """Query, key, value and tables, as :func:`compare.run` takes them."""
    near, far = random_biases(Hierarchy(*case), heads, dtype)
    tables = far if near is None else [near, *far]
    return [*random_qkv(case[0], heads, 4, batch, dtype=dtype), *tables]


@CPU_BACKENDS
@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_geometries(geometry, backend) -> None:
    compare(backend, *geometry, batch=2)


@CPU_BACKENDS
@pytest.mark.parametrize(
    'geometry', [g for g in GEOMETRIES if len(g[0]) == 1], ids=str)
def test_causal(geometry, backend) -> None:
    compare(backend, *geometry, causal=True)


def test_all_kinds_of_lists_are_tried() -> None:
    for ndim in (1, 2):
        found = [Hierarchy(*g) for g in GEOMETRIES if len(g[0]) == ndim]
        needed = [auto_num_levels(h.shape, h.cell_size) for h in found]
        assert {0, 1, 2} <= {h.trimmed().num_levels for h in found}
        # A long list at the top; levels beyond need.
        assert any(0 < h.num_levels < n for h, n in zip(found, needed))
        assert any(h.num_levels > n for h, n in zip(found, needed))


@CPU_BACKENDS
@pytest.mark.parametrize('dropout_p', [0.0, 0.3])
@pytest.mark.parametrize('geometry', GEOMETRIES[::2], ids=str)
def test_masks_with_nan_and_dropout(geometry, dropout_p, backend) -> None:
    mask = random_mask(geometry[0], 3, 0.5)
    mask[1] = False  # an image of padding only
    compare(
        backend,
        *geometry,
        batch=3,
        mask=mask,
        summaries=True,
        dropout_p=dropout_p,
        dropout_seed=5)


@CPU_BACKENDS
@pytest.mark.parametrize(
    'options', [dict(mass=False), dict(scale=-2.0)], ids=str)
@pytest.mark.parametrize('shape', [(50, ), (14, 11)], ids=str)
def test_neither_mass_nor_scale_touches_them(shape, options, backend) -> None:
    compare(backend, shape, 2, rank=2, **options)


@CPU_BACKENDS
@pytest.mark.parametrize('dtype',
                         [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'geometry', [((45, ), 4, None, 2), ((14, 13), 2, None, 1),
                 ((26, 19), 4, None, 1), ((6, 7), 4, 0, 1)],
    ids=str)
def test_dtypes(geometry, dtype, backend) -> None:
    compare(backend, *geometry, batch=2, head_dim=8, dtype=dtype)


@CPU_BACKENDS
@pytest.mark.parametrize('amp', [False, True])
def test_float32_tables_of_half_precision_inputs(amp, backend) -> None:
    """They stay float32, as does their gradient; so under autocast."""
    near, far = random_biases(Hierarchy((14, 13), 2), dtype=torch.float32)
    dtype = torch.float32 if amp else torch.bfloat16
    qkv = random_qkv((14, 13), dtype=dtype)
    rounded = [x.detach().bfloat16().double() for x in qkv]

    def gradients(backend, qkv):
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            out = fma2d(
                *qkv,
                near_bias=near,
                far_bias=far,
                cell_size=2,
                backend=backend)
        return out, torch.autograd.grad(out.float().square().sum(),
                                        [near, *far])

    out, grads = gradients(backend, qkv)
    expected, exact = gradients('naive', rounded)
    assert out.dtype == torch.bfloat16
    assert_close(out, expected, torch.bfloat16)
    for a, b in zip(grads, exact):
        assert a.dtype == torch.float32
        assert_close(a, b, torch.bfloat16, grad=True)


@CPU_BACKENDS
@pytest.mark.parametrize('name', ['near_bias', 'far_bias'])
@pytest.mark.parametrize('shape', [(45, ), (19, 14)], ids=str)
def test_one_without_the_other(shape, name, backend) -> None:
    q, k, v, near, *far = leaves((shape, 2), dtype=place(backend)['dtype'])
    given = {name: near if name == 'near_bias' else far}
    tables = [near] if name == 'near_bias' else far
    results = []
    for each in (backend, 'naive'):
        out = op(shape)(q, k, v, cell_size=2, backend=each, **given)
        grads = torch.autograd.grad(out.square().sum(), (q, k, v, *tables))
        results.append([out, *grads])
    for a, b in zip(*results):
        assert_close(a, b)


@CPU_BACKENDS
def test_strided_tables(backend) -> None:
    h = Hierarchy((45, ), 2)
    near, far = random_biases(h, heads=3, **place(backend))
    qkv = random_qkv(h.shape, heads=3, **place(backend))
    shared = near[:1].expand(3, -1)  # one table for all heads
    mirrored = [
        x.detach().flip(2).transpose(0, 2).contiguous().transpose(0, 2)
        for x in far
    ]
    assert not mirrored[0].is_contiguous()
    results = []
    for name in (backend, 'naive'):
        out = fma1d(
            *qkv,
            cell_size=2,
            near_bias=shared,
            far_bias=mirrored,
            backend=name)
        results.append([out, *torch.autograd.grad(out.square().sum(), near)])
    for a, b in zip(*results):
        assert_close(a, b)


@CPU_BACKENDS
def test_tables_beyond_need_get_zero_gradients(backend) -> None:
    case = ((13, 9), 4, 4, 1)
    assert geometry_of(case).num_levels == 1
    compare(backend, *case)
    *_, near, first, second, third, fourth = leaves(
        case, dtype=place(backend)['dtype'])
    out = fma2d(
        *random_qkv(case[0], **place(backend)),
        cell_size=4,
        num_levels=4,
        near_bias=near,
        far_bias=[first, second, third, fourth],
        backend=backend)
    grads = torch.autograd.grad(out.square().sum(),
                                (first, second, third, fourth))
    assert [bool((g != 0).any()) for g in grads] == [True, False, False, False]


@CPU_BACKENDS
def test_full_attention_takes_no_far_tables(backend) -> None:
    compare(backend, (7, 5), 4, 0)
    # Of levels that the grid does not need.
    compare(backend, (7, 5), 4, 3)


@CPU_BACKENDS
@pytest.mark.parametrize('shape', [(17, ), (9, 10)], ids=str)
def test_empty_batch(shape, backend) -> None:
    q, k, v, near, *far = leaves((shape, 2),
                                 batch=0,
                                 dtype=place(backend)['dtype'])
    out = op(shape)(
        q, k, v, cell_size=2, near_bias=near, far_bias=far, backend=backend)
    for grad in torch.autograd.grad(out.sum(), (near, *far)):
        assert (grad == 0).all()


@CPU_BACKENDS
def test_minus_infinity_hides(backend) -> None:
    """A table may forbid an offset, or all that a level shows."""
    near, far = random_biases(
        Hierarchy((22, 23), 2), dtype=place(backend)['dtype'])
    near.data[:, near.shape[1] // 2 + 1] = -torch.inf
    far[0].data[:, :, 10:20] = -torch.inf
    far[1].data[:] = -torch.inf
    qkv = random_qkv((22, 23), **place(backend))
    results = []
    for name in (backend, 'naive'):
        out = fma2d(
            *qkv, cell_size=2, near_bias=near, far_bias=far, backend=name)
        grads = torch.autograd.grad(out.square().sum(), (*qkv, near, *far))
        results.append([out, *grads])
    for a, b in zip(*results):
        assert_close(a, b)


@backends('torch', 'native', 'naive')
@pytest.mark.parametrize('shape', [(33, ), (12, 13)], ids=str)
def test_minus_infinity_everywhere_leaves_no_key(shape, backend) -> None:
    q, k, v, *tables = leaves((shape, 2), dtype=place(backend)['dtype'])
    near, *far = (torch.full_like(x, -torch.inf) for x in tables)
    inputs = [q, k, v, *(x.requires_grad_() for x in (near, *far))]
    out, lse = op(shape)(
        q,
        k,
        v,
        cell_size=2,
        near_bias=near,
        far_bias=far,
        backend=backend,
        return_lse=True)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    for grad in torch.autograd.grad(out.sum(), inputs):
        assert (grad == 0).all()


# ----------------------------------------------------- memory and repetition
@pytest.mark.parametrize('elements', [9000, 100])
@pytest.mark.parametrize(
    'geometry', [
        ((61, ), 4, None, 1),
        ((70, ), 16, 1, 1),
        ((14, 11), 2, None, 1),
        ((17, 13), 4, None, 2),
        ((6, 7), 4, 0, 1),
    ],
    ids=str)
def test_chunks_change_nothing(geometry, elements, monkeypatch) -> None:
    shape, cell_size, levels, rank = geometry
    options = dict(
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        key_mask=random_mask(shape, 3, 0.5))
    inputs = leaves(geometry, heads=3, batch=3)
    expected = run('torch', inputs, shape, False, **options)
    monkeypatch.setattr(blocked, 'CHUNK_ELEMENTS', elements)
    chunks = spy_on_chunks(monkeypatch)
    for a, b in zip(run('torch', inputs, shape, False, **options), expected):
        assert_close(a, b)
    assert len(chunks) > 2  # more than one a pass
    if elements == 100:
        assert set(chunks) == {(1, 1, 1)}


def test_memory_is_bounded(monkeypatch) -> None:
    """What tables add stays in the budget too: tiles as large as the grid."""
    monkeypatch.setattr(blocked, 'CHUNK_ELEMENTS', 1 << 17)
    for shape, cell_size in (((48, 48), 4), ((48, 48), 24), ((700, ), 350)):
        q, k, v, near, *far = leaves((shape, cell_size), dtype=torch.float32)

        def forward():
            return op(shape)(
                q,
                k,
                v,
                cell_size=cell_size,
                near_bias=near,
                far_bias=far,
                backend='torch')

        def training():
            return torch.autograd.grad(forward().sum(), (q, near))

        size = 4 * (q.numel() + near.numel())
        for call, tensors in ((forward, 6), (training, 12)):
            call()
            assert peak_memory(call) < tensors * size + 12 * 4 * (1 << 17)


@CPU_BACKENDS
@pytest.mark.parametrize('shape, cell_size', [((67, ), 2), ((13, 22), 2),
                                              ((40, 24), 4)])
def test_bit_equal_on_repeat(shape, cell_size, backend) -> None:
    inputs = leaves((shape, cell_size), batch=2, dtype=torch.float32)
    options = dict(cell_size=cell_size, dropout_p=0.1, dropout_seed=5)
    first = run(backend, inputs, shape, False, **options)
    for _ in range(3):
        again = run(backend, inputs, shape, False, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


@CPU_BACKENDS
def test_zero_tables_change_nothing(backend) -> None:
    q, k, v, *tables = leaves(((26, 19), 4), dtype=torch.float32)
    near, *far = (torch.zeros_like(x) for x in tables)
    options = dict(cell_size=4, backend=backend, return_lse=True)
    for a, b in zip(
            fma2d(q, k, v, **options),
            fma2d(q, k, v, near_bias=near, far_bias=far, **options)):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- gradcheck
@pytest.mark.parametrize(
    'case', [((13, ), 2, None, 1), ((5, 6), 2, None, 1), ((4, 3), 2, 0, 1)],
    ids=str)
def test_gradcheck(case) -> None:
    """Against finite differences, with and without the lse."""
    shape, cell_size, levels, rank = case
    options = dict(
        cell_size=cell_size, num_levels=levels, rank=rank, backend='torch')
    if len(shape) == 1:
        options['causal'] = True
    near, far = random_biases(Hierarchy(*case), heads=1)
    qkv = random_qkv(shape, heads=1, head_dim=2)

    def call(q, k, v, near, *far):
        return op(shape)(
            q,
            k,
            v,
            near_bias=near,
            far_bias=list(far),
            return_lse=True,
            **options)

    inputs = (*qkv, near, *far)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *x: call(*x)[0], inputs)


# --------------------------------------------------------------- properties
@CPU_BACKENDS
@settings(deadline=None, derandomize=True, max_examples=40, database=None)
@given(st.data())
def test_property(backend, data) -> None:
    draw = data.draw
    ndim = draw(st.integers(1, 2))
    shape = tuple(
        draw(st.integers(1, {
            1: 60,
            2: 18
        }[ndim])) for _ in range(ndim))
    cell_size = draw(st.integers(1, 8))
    rank = draw(
        st.sampled_from([r for r in range(1, 5) if cell_size % r == 0]))
    levels = draw(st.one_of(st.none(), st.integers(0, 5)))
    options = dict(causal=draw(st.booleans())) if ndim == 1 else {}
    mask = random_mask(shape, 2) if draw(st.booleans()) else None
    compare(
        backend,
        shape,
        cell_size,
        levels,
        rank,
        batch=2,
        heads=draw(st.integers(1, 3)),
        summaries=draw(st.booleans()),
        mask=mask,
        **options)
