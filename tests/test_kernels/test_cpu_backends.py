"""Backends of the CPU against the oracle: outputs, lse, all gradients."""
from dataclasses import replace
from math import prod

import pytest
import torch
from compare import CPU_BACKENDS, compare, op, place, run
from hypothesis import given, settings
from hypothesis import strategies as st

from fma_kernels import Hierarchy, fma2d
from fma_kernels.backends import torch as blocked
from fma_kernels.options import Inputs, Options
from fma_kernels.testing import (assert_close, random_mask, random_qkv,
                                 random_summaries)
from fma_vision.engine.timing import peak_memory

pytestmark = pytest.mark.sampled

SHAPES_1D = [(1, ), (2, ), (7, ), (16, ), (33, ), (70, )]
SHAPES_2D = [(1, 1), (1, 19), (19, 1), (3, 2), (8, 8), (13, 21), (17, 16)]


@CPU_BACKENDS
@pytest.mark.parametrize('cell_size, rank', [(1, 1), (2, 1), (2, 2), (3, 3),
                                             (4, 1), (4, 4), (8, 2)])
@pytest.mark.parametrize('shape', SHAPES_1D + SHAPES_2D, ids=str)
def test_shapes_cells_ranks(shape, cell_size, rank, backend) -> None:
    compare(backend, shape, cell_size, rank=rank)


@CPU_BACKENDS
@pytest.mark.parametrize('levels', [None, 0, 1, 2, 6])
@pytest.mark.parametrize('cell_size', [1, 2, 4])
@pytest.mark.parametrize('shape', [(41, ), (2, ), (11, 18), (1, 30)], ids=str)
def test_levels(shape, cell_size, levels, backend) -> None:
    compare(backend, shape, cell_size, levels)


@CPU_BACKENDS
@pytest.mark.parametrize('levels', [None, 0, 1, 6])
@pytest.mark.parametrize('cell_size, rank', [(1, 1), (2, 2), (3, 1), (8, 4),
                                             (16, 1), (20, 2)])
@pytest.mark.parametrize('size', [1, 5, 32, 67])
def test_causal(size, cell_size, rank, levels, backend) -> None:
    compare(backend, (size, ), cell_size, levels, rank, causal=True)


@CPU_BACKENDS
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    'geometry', [((37, ), 2, None, 2), ((37, ), 16, None, 1),
                 ((9, 14), 2, None, 1), ((13, 9), 4, None, 2),
                 ((15, 16), 2, 1, 2), ((6, 7), 2, 0, 1)],
    ids=str)
def test_given_summaries(geometry, masked, backend) -> None:
    shape = geometry[0]
    mask = random_mask(shape, 2, real=0.4) if masked else None
    compare(backend, *geometry, batch=2, mask=mask, summaries=True)


@CPU_BACKENDS
@pytest.mark.parametrize('given', ['key_summaries', 'value_summaries'])
def test_only_one_kind_of_summaries_given(given, backend) -> None:
    h = Hierarchy((12, 13), 2)
    qkv = random_qkv(h.shape, **place(backend))
    options = {given: random_summaries(h, **place(backend)), 'cell_size': 2}
    assert_close(
        fma2d(*qkv, backend=backend, **options),
        fma2d(*qkv, backend='naive', **options))


@CPU_BACKENDS
@pytest.mark.parametrize(
    'options', [
        dict(mass=False),
        dict(scale=2.0),
        dict(scale=0),
        dict(scale=-0.3),
        dict(mass=False, causal=True)
    ],
    ids=str)
@pytest.mark.parametrize('shape', [(50, ), (14, 11)], ids=str)
def test_mass_and_scale(shape, options, backend) -> None:
    if options.get('causal') and len(shape) == 2:
        options = dict(mass=False, scale=1.5)
    compare(backend, shape, 2, rank=2, **options)


@CPU_BACKENDS
@pytest.mark.parametrize('real', [0.05, 0.5, 0.95])
@pytest.mark.parametrize(
    'geometry', [((45, ), 2, None, 1), ((45, ), 16, None, 4),
                 ((12, 15), 2, None, 2), ((19, 9), 4, None, 1),
                 ((16, 16), 4, 1, 2), ((7, 5), 2, 0, 1)],
    ids=str)
def test_masks_with_nan(geometry, real, backend) -> None:
    mask = random_mask(geometry[0], 3, real)
    mask[1] = False  # an image of padding only
    compare(backend, *geometry, batch=3, mask=mask)


@CPU_BACKENDS
@pytest.mark.parametrize('dtype',
                         [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'geometry', [((45, ), 4, None, 2), ((45, ), 20, None, 1),
                 ((14, 13), 2, None, 1), ((18, 11), 4, None, 2),
                 ((6, 7), 2, 0, 1)],
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
@pytest.mark.parametrize('heads, head_dim', [(1, 1), (1, 16), (5, 3)])
def test_heads_and_dims(heads, head_dim, backend) -> None:
    compare(backend, (11, 12), 2, heads=heads, head_dim=head_dim, batch=2)


@CPU_BACKENDS
@pytest.mark.parametrize('shape', [(33, ), (9, 13)], ids=str)
def test_strided_inputs(shape, backend) -> None:
    # One projection gives all three: [B, *grid, 3, heads, head_dim].
    qkv = torch.randn(
        2, *shape, 3, 2, 4, dtype=place(backend)['dtype'], requires_grad=True)
    apart = qkv.unbind(-3)
    assert not apart[0].is_contiguous()
    out = op(shape)(*apart, cell_size=2, backend=backend)
    dense = [x.detach().contiguous().requires_grad_() for x in apart]
    expected = op(shape)(*dense, cell_size=2, backend=backend)
    assert torch.equal(out, expected)
    slope = torch.randn_like(out)
    grad, = torch.autograd.grad(out, qkv, slope)
    assert torch.equal(
        grad, torch.stack(torch.autograd.grad(expected, dense, slope), -3))


@CPU_BACKENDS
@pytest.mark.parametrize(
    'change',
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1
                                                           ),  # batch inside
        lambda x: x.repeat(2, 1, 1, 1, 1)[::2],  # batch with a step
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2
                                                           ),  # columns first
        lambda x: x.transpose(3, 4).contiguous().transpose(3, 4
                                                           ),  # dim outside
    ],
    ids=['batch-inside', 'batch-step', 'columns-first', 'dim-outside'])
def test_non_contiguous_inputs(change, backend) -> None:
    qkv = [x.detach() for x in random_qkv((9, 6), batch=2, **place(backend))]
    strided = [change(x) for x in qkv]
    for x, y in zip(qkv, strided):
        if y.shape[0] == 2 and not torch.equal(x, y):  # the step repeats
            assert torch.equal(y, x.repeat(2, 1, 1, 1, 1)[::2])
    assert not strided[0].is_contiguous()
    dense = [x.contiguous() for x in strided]
    assert torch.equal(
        fma2d(*strided, cell_size=2, backend=backend),
        fma2d(*dense, cell_size=2, backend=backend))


@CPU_BACKENDS
def test_expanded_values_and_gradients(backend) -> None:
    q, k, _ = random_qkv((12, 9), **place(backend))
    v = torch.randn(
        1, 1, 1, 2, 4, dtype=place(backend)['dtype'], requires_grad=True)
    results = [
        torch.autograd.grad(
            fma2d(q, k, v.expand_as(q), cell_size=2, backend=name).sum(),
            (q, v)) for name in (backend, 'naive')
    ]
    for a, b in zip(*results):
        assert_close(a, b)


def spy_on_chunks(monkeypatch) -> list:
    """Images, tiles and rows of all chunks to come."""
    chunks, plain = [], blocked.Attention._chunk

    def spy(self, *ranges):
        chunks.append(tuple(x.stop - x.start for x in ranges))
        return plain(self, *ranges)

    monkeypatch.setattr(blocked.Attention, '_chunk', spy)
    return chunks


# All at once; some tiles of an image; some rows of a tile.
@pytest.mark.parametrize('elements', [1 << 24, 9000, 100])
@pytest.mark.parametrize(
    'geometry', [((70, ), 2, None, 1, False), ((70, ), 16, None, 2, True),
                 ((61, ), 4, 1, 1, True), ((13, 10), 2, None, 1, False),
                 ((17, 12), 4, None, 2, False), ((12, 9), 2, 1, 1, False),
                 ((9, 8), 2, 0, 1, False)],
    ids=str)
@pytest.mark.parametrize('masked', [False, True])
def test_chunks_change_nothing(geometry, masked, elements,
                               monkeypatch) -> None:
    shape, cell_size, levels, rank, causal = geometry
    options = dict(
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        key_mask=random_mask(shape, 3, 0.5) if masked else None,
        dropout_p=0.2,
        dropout_seed=7)
    if len(shape) == 1:
        options['causal'] = causal
    inputs = list(random_qkv(shape, heads=3, batch=3))
    expected = run('torch', inputs, shape, False, **options)
    monkeypatch.setattr(blocked, 'CHUNK_ELEMENTS', elements)
    chunks = spy_on_chunks(monkeypatch)
    for a, b in zip(run('torch', inputs, shape, False, **options), expected):
        assert_close(a, b)
    images, tiles, rows = chunks[0]
    if elements == 100:
        assert images == tiles == rows == 1
    elif elements == 9000:
        assert images * tiles * rows < 3 * prod(shape)
    else:
        assert len(chunks) == 2 and images == 3  # forward and backward


def test_chunks_follow_the_budget(monkeypatch) -> None:
    """Images are split first, then tiles, then the rows of a tile."""
    q, k, v = (x.detach() for x in random_qkv((24, 24), heads=3, batch=2))
    expected = fma2d(q, k, v, cell_size=4, backend='torch')
    chunks, first = spy_on_chunks(monkeypatch), []
    for size in (1 << 22, 1 << 17, 1 << 14, 1 << 10):
        monkeypatch.setattr(blocked, 'CHUNK_ELEMENTS', size)
        chunks.clear()
        assert_close(fma2d(q, k, v, cell_size=4, backend='torch'), expected)
        first.append(chunks[0])
    assert first[0] == (2, 36, 16)
    assert first[1][1] < 36 and first[1][2] == 16
    assert first[2] == (1, 1, 16) and first[3][:2] == (1, 1)
    assert first[3][2] < 16


@pytest.mark.parametrize('levels', [None, 0, 1])
def test_memory_is_linear(levels, monkeypatch) -> None:
    """Beyond tensors of the size of the inputs, a bounded chunk."""
    monkeypatch.setattr(blocked, 'CHUNK_ELEMENTS', 1 << 17)
    for side in (16, 48):
        qkv = random_qkv((side, side),
                         heads=2,
                         head_dim=8,
                         dtype=torch.float32)
        options = dict(cell_size=4, num_levels=levels, backend='torch')

        def forward():
            return fma2d(*qkv, **options)

        def training():
            return torch.autograd.grad(forward().sum(), qkv)

        size = 4 * qkv[0].numel()
        for call, tensors in ((forward, 6), (training, 12)):
            call()
            # Of a chunk: logits, their weights, keys, values, their tables.
            assert peak_memory(call) < tensors * size + 8 * 4 * (1 << 17)


@CPU_BACKENDS
@pytest.mark.parametrize('shape', [(67, ), (13, 22)], ids=str)
def test_bit_equal_on_repeat(shape, backend) -> None:
    inputs = list(random_qkv(shape, batch=2, dtype=torch.float32))
    kwargs = dict(cell_size=2, dropout_p=0.1, dropout_seed=5)
    first = run(backend, inputs, shape, False, **kwargs)
    for _ in range(3):
        again = run(backend, inputs, shape, False, **kwargs)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


# ------------------------------------------------------------------- export
class Core(torch.nn.Module):
    """What the core ops do, without being ops."""

    def __init__(self, h: Hierarchy, pool_queries: bool) -> None:
        super().__init__()
        self.h, self.pool_queries = h, pool_queries

    def forward(self, q, k, v, mask):
        h, options = self.h, Options(scale=0.5)
        keys, values = (blocked.pool(x, mask, h) for x in (k, v))
        if not self.pool_queries:
            inputs = Inputs(q, k, v, keys, values, mask)
            return blocked.forward(inputs, h, options)
        out, lse = blocked.far_forward(
            blocked.pool(q, mask, h), keys, values, mask, None, h, options)
        count = h.level_sizes[0]
        return blocked.near_forward(q, k, v, out[:, :count],
                                    lse[:, :count], mask, None,
                                    replace(h, num_levels=1), options)


@pytest.mark.parametrize('dynamo', [False, True])
@pytest.mark.parametrize('pool_queries', [False, True])
def test_onnx(pool_queries, dynamo, monkeypatch, tmp_path) -> None:
    """Both exporters, in several chunks."""
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    monkeypatch.setattr(blocked, 'CHUNK_ELEMENTS', 1 << 16)
    module = Core(Hierarchy((22, 30), 4), pool_queries)
    inputs = (*torch.randn(3, 1, 22, 30, 2, 8), random_mask((22, 30)))
    path = str(tmp_path / 'core.onnx')
    options = {} if dynamo else dict(opset_version=17)
    torch.onnx.export(module, inputs, path, dynamo=dynamo, **options)
    session = runtime.InferenceSession(path)
    names = [x.name for x in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs)}
    for a, b in zip(session.run(None, feed), module(*inputs)):
        assert_close(torch.from_numpy(a), b)


# ------------------------------------------------------------------ dropout
@CPU_BACKENDS
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    'geometry', [((45, ), 2, None, 1), ((45, ), 16, 2, 2),
                 ((13, 14), 2, None, 2), ((18, 11), 4, None, 1),
                 ((12, 13), 4, 1, 2), ((6, 7), 2, 0, 1)],
    ids=str)
def test_dropout_agrees_with_the_oracle(geometry, masked, backend) -> None:
    mask = random_mask(geometry[0], 2, 0.6) if masked else None
    compare(
        backend,
        *geometry,
        batch=2,
        heads=3,
        mask=mask,
        dropout_p=0.4,
        dropout_seed=11)


@CPU_BACKENDS
@pytest.mark.parametrize('seed', [-1, 2**40 + 3, 2**63 + 2**33])
def test_any_integer_is_a_seed(seed, backend) -> None:
    compare(backend, (11, 9), 2, dropout_p=0.5, dropout_seed=seed)


@CPU_BACKENDS
def test_dropout_with_causal_and_given_summaries(backend) -> None:
    compare(
        backend, (60, ),
        4,
        rank=2,
        causal=True,
        summaries=True,
        dropout_p=0.3,
        dropout_seed=1)


@CPU_BACKENDS
def test_dropout_seeds_and_rates(backend) -> None:
    q, k, v = (
        x.detach() for x in random_qkv((12, 12), batch=2, **place(backend)))

    def out(**options):
        return fma2d(q, k, v, cell_size=2, backend=backend, **options)

    plain = out()
    assert torch.equal(out(dropout_p=0.0, dropout_seed=3), plain)
    a = out(dropout_p=0.5, dropout_seed=3)
    assert torch.equal(a, out(dropout_p=0.5, dropout_seed=3))
    for seed in (4, 3 + 2**32):
        assert (a - out(dropout_p=0.5, dropout_seed=seed)).abs().max() > 0.1
    # No seed: PyTorch's generator decides.
    torch.manual_seed(0)
    b = out(dropout_p=0.5)
    assert (b - out(dropout_p=0.5)).abs().max() > 0.1
    torch.manual_seed(0)
    assert torch.equal(out(dropout_p=0.5), b)


@CPU_BACKENDS
@pytest.mark.parametrize('p', [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(p, backend) -> None:
    # Equal values: the output is the sum of the kept weights / (1 - p).
    q, k, v = (
        x.detach()
        for x in random_qkv((24, 24), heads=4, batch=4, **place(backend)))
    out = fma2d(
        q,
        k,
        torch.ones_like(v),
        cell_size=2,
        dropout_p=p,
        dropout_seed=0,
        backend=backend)[..., 0]
    assert (out - 1).abs().max() > 0.05
    # 9216 sums over about 90 keys: their mean strays by far less than 2 %
    # of the largest spread tried here.
    error = out.std() / out.numel()**0.5
    assert abs(out.mean() - 1) < 4 * error
    # Neither heads, images nor queries share their decisions.
    for axis in range(4):
        shifted = out.roll(1, axis)
        corner = torch.stack([out.flatten(), shifted.flatten()])
        assert corner.corrcoef()[0, 1].abs() < 0.1


@CPU_BACKENDS
def test_lse_is_that_of_the_undropped_weights(backend) -> None:
    qkv = random_qkv((12, 12), **place(backend))
    options = dict(cell_size=2, return_lse=True, backend=backend)
    assert torch.equal(
        fma2d(*qkv, **options)[1],
        fma2d(*qkv, dropout_p=0.5, **options)[1])


# ---------------------------------------------------------------- gradcheck
@pytest.mark.parametrize(
    'name', ['causal', 'masked', 'rank', 'summaries', 'full', 'dropout'])
def test_gradcheck(name) -> None:
    """Against finite differences, with and without the lse."""
    options = dict(cell_size=2, backend='torch')
    shape, levels = (7, 6), []
    if name == 'causal':
        shape, options['causal'] = (13, ), True
    elif name == 'masked':
        options['key_mask'] = random_mask(shape, real=0.6)
    elif name == 'rank':
        options['rank'] = 2
    elif name == 'summaries':
        h = Hierarchy(shape, 2)
        levels = [random_summaries(h, 1, 2, seed=s)[0] for s in (1, 2)]
        assert h.num_levels == 1
    elif name == 'full':
        options['num_levels'] = 0
    else:
        options.update(dropout_p=0.3, dropout_seed=2)
    qkv = random_qkv(shape, heads=1, head_dim=2)

    def call(q, k, v, *levels):
        if levels:
            options.update(
                key_summaries=[levels[0]], value_summaries=[levels[1]])
        return op(shape)(q, k, v, return_lse=True, **options)

    assert torch.autograd.gradcheck(call, (*qkv, *levels), fast_mode=True)
    assert torch.autograd.gradcheck(lambda *x: call(*x)[0], (*qkv, *levels))


@CPU_BACKENDS
def test_second_derivatives_are_refused(backend) -> None:
    q, k, v = random_qkv((5, 5), heads=1, head_dim=2, **place(backend))
    out = fma2d(q, k, v, cell_size=2, backend=backend)
    grad, = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match='autograd'):
        torch.autograd.grad(grad.sum(), q)


# --------------------------------------------------------------- properties
CHECKED = settings(
    deadline=None, derandomize=True, max_examples=60, database=None)


@st.composite
def geometries(draw, ndim: int):
    limit = {1: 60, 2: 16}[ndim]
    shape = tuple(draw(st.integers(1, limit)) for _ in range(ndim))
    cell_size = draw(st.integers(1, 8))
    rank = draw(
        st.sampled_from([r for r in range(1, 5) if cell_size % r == 0]))
    levels = draw(st.one_of(st.none(), st.integers(0, 5)))
    return shape, cell_size, levels, rank


def masks(draw, shape, batch):
    real = draw(st.sampled_from([None, 0.0, 0.1, 0.5, 0.9]))
    if real is None:
        return None
    return random_mask(shape, batch, real, seed=draw(st.integers(0, 99)))


@CPU_BACKENDS
@CHECKED
@given(st.data())
def test_property_1d(backend, data) -> None:
    geometry = data.draw(geometries(1))
    batch = data.draw(st.integers(1, 2))
    compare(
        backend,
        *geometry,
        batch=batch,
        heads=data.draw(st.integers(1, 3)),
        head_dim=data.draw(st.integers(1, 5)),
        causal=data.draw(st.booleans()),
        mass=data.draw(st.booleans()),
        summaries=data.draw(st.booleans()),
        mask=masks(data.draw, geometry[0], batch))


@CPU_BACKENDS
@CHECKED
@given(st.data())
def test_property_2d(backend, data) -> None:
    geometry = data.draw(geometries(2))
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
