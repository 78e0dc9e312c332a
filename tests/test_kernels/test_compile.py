"""The core op under torch.compile, torch.export and opcheck."""
from typing import Callable

import pytest
import torch
from compare import CPU_BACKENDS, check_op, place
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensorMode

from fma_kernels import Hierarchy, fma1d, fma2d
from fma_kernels.ops import attention, pool
from fma_kernels.pooling import average_pyramid, pack
from fma_kernels.summaries import learned_summaries
from fma_kernels.testing import (assert_close, missing_compiler, random_biases,
                                 random_mask, random_qkv)

core = torch.ops.fma_kernels
needs_compiler = pytest.mark.skipif(
    missing_compiler() is not None, reason=str(missing_compiler()))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# shape, cell_size, num_levels, rank, causal, masked, dropout, dtype
OPS = [
    ((9, 10), 2, None, 1, False, False, 0.0, torch.float32),
    ((9, 10), 2, None, 2, False, True, 0.0, torch.float64),
    ((21, ), 2, None, 1, True, False, 0.3, torch.float32),
    ((6, 5), 2, 0, 1, False, False, 0.0, torch.float32),
    ((12, 8), 4, 1, 2, False, True, 0.0, torch.bfloat16),
]


@CPU_BACKENDS
@pytest.mark.parametrize('case', OPS, ids=str)
def test_opcheck(case, backend) -> None:
    shape, cell_size, levels, rank, causal, masked, p, dtype = case
    if dtype == torch.float64:
        dtype = place(backend)['dtype']
    h = Hierarchy(shape, cell_size, levels, rank, causal)
    q, k, v = random_qkv(shape, batch=2, dtype=dtype)
    mask = random_mask(shape, 2) if masked else None
    if h.num_levels:
        pooled = [
            pack(average_pyramid(x, h, mask),
                 h.ndim).detach().requires_grad_() for x in (k, v)
        ]
    else:
        pooled = [q.new_zeros(2, 0, 2, 4) for _ in range(2)]
    check_op(
        attention,
        (q, k, v, *pooled, mask, torch.tensor(3) if p else None, None, None,
         cell_size, h.num_levels, rank, causal, True, 0.5, p, backend),
        rtol=2e-2 if dtype == torch.bfloat16 else 1e-4,
        atol=2e-2 if dtype == torch.bfloat16 else 1e-5)


@CPU_BACKENDS
@pytest.mark.parametrize(
    'kinds', [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize('shape', [(21, ), (9, 10)], ids=str)
def test_opcheck_of_biases(shape, kinds, backend) -> None:
    """One, the other, both; float32 tables of bfloat16 inputs if both."""
    h = Hierarchy(shape, 2)
    q, k, v = random_qkv(
        shape, batch=2, dtype=torch.bfloat16 if all(kinds) else torch.float32)
    pooled = [
        pack(average_pyramid(x, h), h.ndim).detach().requires_grad_()
        for x in (k, v)
    ]
    near, far = random_biases(h, dtype=torch.float32)
    far = torch.stack(far, 1).detach().requires_grad_()
    tables = [x if given else None for x, given in zip((near, far), kinds)]
    sizes = 2, h.num_levels, 1, False, True, 0.5, 0.0, backend
    args = (q, k, v, *pooled, None, None, *tables)
    check_op(
        attention, (*args, *sizes),
        rtol=2e-2 if all(kinds) else 1e-4,
        atol=2e-2 if all(kinds) else 1e-5)
    out, lse = (x.detach() for x in attention(*args, *sizes))
    args = [x if x is None else x.detach() for x in args]
    torch.library.opcheck(
        core.attention_backward.default, (out, lse, out, lse, *args, *sizes),
        test_utils=('test_schema', 'test_faketensor'))


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_of_pooling(masked, dtype) -> None:
    mask = random_mask((9, 10), 2) if masked else None
    q, k, v = random_qkv((9, 10), batch=2, dtype=dtype)
    check_op(
        pool, (k, mask, 2, 3, 2, 'torch'),
        rtol=2e-2 if dtype == torch.bfloat16 else 1e-4,
        atol=2e-2 if dtype == torch.bfloat16 else 1e-5)
    grad = torch.randn(2, 40 * 3, 2, 4, dtype=dtype)[:, ::2]
    shape = [2, 9, 10, 2, 4]
    h = Hierarchy((9, 10), 2, 2, 1)
    grad = grad[:, :h.num_summaries]
    torch.library.opcheck(
        core.pool_backward.default, (grad, mask, shape, 2, 2, 1, 'torch'),
        test_utils=('test_schema', 'test_faketensor'))


def test_fake_tensors_know_shapes_and_strides() -> None:
    with FakeTensorMode():
        qkv = torch.empty(2, 9, 10, 3, 2, 4, dtype=torch.bfloat16)
        out, lse = fma2d(*qkv.unbind(3), cell_size=2, return_lse=True)
    assert out.shape == (2, 9, 10, 2, 4) and out.is_contiguous()
    assert lse.dtype == torch.float32 and lse.shape == out.shape[:-1]


def test_fake_backward_knows_the_strides() -> None:
    """Of strided inputs as well: the compiler relies on it."""
    qkv = torch.randn(2, 9, 10, 3, 2, 4).unbind(3)
    h = Hierarchy((9, 10), 2)
    pooled = [pack(average_pyramid(x, h), h.ndim) for x in qkv[1:]]
    out, lse = fma2d(*qkv, cell_size=2, return_lse=True)
    torch.library.opcheck(
        core.attention_backward.default,
        (out, lse, out, lse, *qkv, *pooled, None, None, None, None, 2,
         h.num_levels, 1, False, True, 0.5, 0.0, 'torch'),
        test_utils=('test_schema', 'test_faketensor'))


def gradients(function, inputs):
    out = function(*inputs)
    # Where no level is needed, nothing depends on its weights.
    return [
        out, *torch.autograd.grad(
            out.square().sum(), inputs, materialize_grads=True)
    ]


@needs_compiler
def test_compiled_equals_eager() -> None:
    """Forward and backward through the default compiler, no graph break."""
    mask = random_mask((9, 10), 2)

    def function(q, k, v):
        q = q * 1.5  # something to fuse around the op
        return fma2d(q, k, v.relu(), cell_size=2, rank=2, key_mask=mask) + q

    inputs = random_qkv((9, 10), batch=2, dtype=torch.float32)
    compiled = torch.compile(function, fullgraph=True)
    for a, b in zip(gradients(compiled, inputs), gradients(function, inputs)):
        assert_close(a, b)


@needs_compiler
def test_compiled_biases_equal_eager() -> None:
    h = Hierarchy((9, 10), 2)
    near, far = random_biases(h, dtype=torch.float32)

    def function(q, k, v, near, *far):
        # Tables are made anew at each step, as by an interpolation.
        return fma2d(
            q, k, v, cell_size=2, near_bias=2 * near, far_bias=list(far))

    inputs = *random_qkv(h.shape, batch=2, dtype=torch.float32), near, *far
    compiled = torch.compile(function, fullgraph=True)
    for a, b in zip(gradients(compiled, inputs), gradients(function, inputs)):
        assert_close(a, b)


class Layer(nn.Module):
    """The smallest attention layer: one projection, strided inputs."""

    def __init__(self,
                 dim: int = 8,
                 heads: int = 2,
                 biased: tuple = (),
                 **options) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.heads, self.options = heads, options
        if biased:  # the token grid
            h = Hierarchy(biased, options['cell_size'])
            near, far = random_biases(h, heads, torch.float32)
            self.near, self.far = nn.Parameter(near), nn.ParameterList(far)
        self.biased = bool(biased)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        op = fma1d if x.dim() == 3 else fma2d
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        tables = {}
        if self.biased:
            tables = dict(near_bias=self.near, far_bias=list(self.far))
        return op(*qkv.unbind(-3), **tables, **self.options).flatten(-2)


@pytest.mark.parametrize(
    'options', [
        dict(cell_size=2),
        dict(cell_size=4, rank=2, mass=False),
        dict(cell_size=2, num_levels=0),
        dict(cell_size=2, causal=True),
        dict(cell_size=2, biased=(7, 12)),
        dict(cell_size=2, causal=True, biased=(19, ))
    ],
    ids=str)
def test_one_graph(options) -> None:
    """No graph break, and the same gradients, whatever the options."""
    layer = Layer(**options)
    shape = (2, 19, 8) if 'causal' in options else (2, 7, 12, 8)
    x = torch.randn(shape, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    inputs = (x, *layer.parameters())
    for a, b in zip(
            gradients(lambda x, *_: compiled(x), inputs),
            gradients(lambda x, *_: layer(x), inputs)):
        assert_close(a, b)


def test_one_graph_with_fresh_dropout() -> None:
    layer = Layer(cell_size=2, dropout_p=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    x = torch.randn(1, 10, 9, 8)
    torch.manual_seed(1)
    first, second = compiled(x), compiled(x)
    assert (first - second).abs().max() > 0.05  # drawn anew at every call
    torch.manual_seed(1)
    assert_close(first, layer(x))
    seeded = Layer(cell_size=2, dropout_p=0.5, dropout_seed=4)
    compiled = torch.compile(seeded, fullgraph=True, backend='aot_eager')
    assert_close(compiled(x), seeded(x))
    assert torch.equal(compiled(x), compiled(x))


def test_the_second_shape_frees_the_sizes() -> None:
    layer, counter = Layer(cell_size=2), CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for shape in ((9, 7), (5, 12), (31, 18), (2, 3)):
        x = torch.randn(1, *shape, 8)
        assert_close(compiled(x), layer(x))
    assert counter.frame_count == 2
    compiled(torch.randn(1, 1, 3, 8))  # an axis of one is a case of its own
    assert counter.frame_count == 3


# Few and many levels, none at all; the sizes of no other axis, which the
# compiler would take for the same variable.
SIZES = {1: [(23, ), (90, ), (3, ), (301, )], 2: [(9, 17), (37, 5), (7, 3)]}


def learned(form: str) -> Callable:
    """Attention with learned summaries of all levels."""

    def attend(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        levels = None if form == 'hierarchical' else len(weights)
        h = Hierarchy(x.shape[1:2], 2, levels)
        found = learned_summaries(form, x, weights, h)
        return fma1d(
            x,
            2 * x,
            x + 1,
            cell_size=2,
            num_levels=levels,
            key_summaries=found,
            value_summaries=2 * found)

    return attend


def biased(x: torch.Tensor, near: torch.Tensor,
           far: torch.Tensor) -> torch.Tensor:
    levels = Hierarchy(x.shape[1:2], 2).num_levels
    return fma1d(
        x, 2 * x, x + 1, cell_size=2, near_bias=near, far_bias=[far] * levels)


def plain(op: Callable, **options) -> Callable:
    return lambda x: op(x, 2 * x, x + 1, cell_size=2, **options)


# Axes, function, shapes of its weights.
FREE = {
    'causal': (1, plain(fma1d, causal=True), []),
    'image': (2, plain(fma2d, rank=2), []),
    'torch': (2, plain(fma2d, backend='torch'), []),
    'fixed': (2, plain(fma2d, num_levels=2), []),
    'pooled': (1, plain(fma1d, pool_queries=True), []),
    'pooled-torch': (2, plain(fma2d, pool_queries=True, backend='torch'), []),
    'biased': (1, biased, [(6, 7), (6, 1, 7)]),
    'grouped_conv':
    (1, learned('grouped_conv'), [(1, 2 << n, 4) for n in range(7)]),
    'conv': (1, learned('conv'), [(1, 2 << n, 4, 4) for n in range(7)]),
    'hierarchical': (1, learned('hierarchical'), [(1, 2, 4), (2, 4, 4)]),
}


@pytest.mark.parametrize('kind', FREE)
def test_one_graph_for_all_sizes(kind) -> None:
    """Outputs and gradients, at sizes with and without far levels."""
    ndim, function, shapes = FREE[kind]
    weights = [torch.randn(shape).div(9).requires_grad_() for shape in shapes]
    counters.clear()
    compiled = torch.compile(
        function, fullgraph=True, backend='aot_eager', dynamic=True)
    for size in SIZES[ndim]:
        inputs = torch.randn(2, *size, 6, 4, requires_grad=True), *weights
        for a, b in zip(
                gradients(compiled, inputs), gradients(function, inputs)):
            assert_close(a, b)
    assert counters['stats']['unique_graphs'] == 1


@pytest.mark.parametrize('kind', ['causal', 'image', 'pooled'])
def test_export_with_free_sizes(kind) -> None:
    ndim, function, _ = FREE[kind]
    layer = nn.Module()
    layer.forward = function
    first, *others = SIZES[ndim]
    free = {1 + axis: torch.export.Dim.DYNAMIC for axis in range(ndim)}
    program = torch.export.export(
        layer, (torch.randn(1, *first, 6, 4), ), dynamic_shapes=(free, ))
    for size in (first, *others):
        x = torch.randn(1, *size, 6, 4)
        assert_close(program.module()(x), function(x))


@pytest.mark.parametrize(
    'options', [dict(rank=2), dict(biased=(11, 6))], ids=str)
def test_export(options) -> None:
    layer = Layer(cell_size=2, **options).eval()
    x = torch.randn(1, 11, 6, 8)
    program = torch.export.export(layer, (x, ))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count('fma_kernels.attention.default') == 1
    other = torch.randn_like(x)
    assert_close(program.module()(other), layer(other))
