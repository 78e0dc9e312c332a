"""torch.func over the ops: right, or refused with a sentence."""
from functools import partial

import pytest
import torch
from compare import CPU_BACKENDS, TRITON_DEVICE, missing_triton, op, place
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vjp, vmap

from fma_kernels import Hierarchy, fma1d, fma2d
from fma_kernels.ops import pool
from fma_kernels.pooling import average_pyramid, pack
from fma_kernels.testing import (assert_close, random_biases, random_mask,
                                 random_qkv, random_summaries)

# token grid, what else is given, options
CASES = [
    ((21, ), (), dict(causal=True)),
    ((9, 10), ('mask', ), dict(rank=2, mass=False)),
    ((9, 10), ('summaries', 'mask'), dict()),
    ((21, ), ('packed', ), dict()),
    ((9, 10), ('biases', ), dict(dropout_p=0.3, dropout_seed=5)),
    ((6, 5), (), dict(num_levels=0)),
    ((21, ), (), dict(pool_queries=True, dropout_p=0.3, dropout_seed=5)),
    ((9, 10), ('mask', ), dict(pool_queries=True, rank=2)),
    ((9, 10), ('summaries', ), dict(pool_queries=True)),
]


def problem(case, backend='torch', seed=0):
    """A function of a tuple of tensors that gives (out, lse), and these."""
    shape, kinds, options = case
    options = dict(options, cell_size=2, return_lse=True, backend=backend)
    h = Hierarchy(shape, 2, options.get('num_levels'), options.get('rank', 1))
    names = ['query', 'key', 'value']
    inputs = list(random_qkv(shape, batch=2, seed=seed, **place(backend)))
    if 'mask' in kinds:
        options['key_mask'] = random_mask(shape, 2)
    summaries = ['key_summaries', 'value_summaries']
    summaries += ['query_summaries'] * options.get('pool_queries', False)
    for i, name in enumerate(summaries if 'summaries' in kinds else ()):
        names += [(name, h.num_levels)]
        inputs += random_summaries(h, batch=2, seed=seed + i, **place(backend))
    if 'packed' in kinds:
        names += summaries
        inputs += [
            pack(
                random_summaries(h, batch=2, seed=seed + i, **place(backend)),
                h.ndim) for i in range(len(summaries))
        ]
    if 'biases' in kinds:
        near, far = random_biases(h, dtype=place(backend)['dtype'])
        names += ['near_bias', ('far_bias', h.num_levels)]
        inputs += [near * (1 + seed), *far]

    def function(*tensors: Tensor):
        tensors, given = list(tensors), {}
        for name in names:
            if isinstance(name, tuple):
                name, count = name
                given[name] = [tensors.pop(0) for _ in range(count)]
            else:
                given[name] = tensors.pop(0)
        return op(shape)(**given, **options)

    return function, tuple(x.detach() for x in inputs)


def total(function, *tensors: Tensor) -> Tensor:
    """A number that depends on output and lse."""
    out, lse = function(*tensors)
    # lse is -inf where nothing is seen
    return out.square().sum() + lse.clamp(min=-30).sin().sum()


def reference(function, inputs):
    """Gradients as loss.backward() finds them."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(total(function, *leaves), leaves)


def compare_all(found, expected) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert_close(a, b)


@CPU_BACKENDS
@pytest.mark.parametrize('case', CASES, ids=str)
def test_gradients(case, backend) -> None:
    function, inputs = problem(case, backend)
    expected = reference(function, inputs)
    assert all((x != 0).any() for x in expected)
    loss, places = partial(total, function), tuple(range(len(inputs)))
    compare_all(grad(loss, places)(*inputs), expected)
    value, pullback = vjp(loss, *inputs)
    compare_all(pullback(torch.ones_like(value)), expected)


@CPU_BACKENDS
@pytest.mark.parametrize('case', CASES, ids=str)
def test_vmap(case, backend) -> None:
    """Over all arguments, then over the last one alone."""
    function, first = problem(case, backend)
    second = problem(case, backend, seed=1)[1]
    for dims in ((0, ) * len(first), (1, ) + (None, ) * (len(first) - 1),
                 (None, ) * (len(first) - 1) + (-1, )):
        pairs = [
            torch.stack([a, b], dim) if dim is not None else a
            for a, b, dim in zip(first, second, dims)
        ]
        other = [
            a if dim is None else b for a, b, dim in zip(first, second, dims)
        ]
        expected = [
            torch.stack(x) for x in zip(function(*first), function(*other))
        ]
        compare_all(vmap(function, dims)(*pairs), expected)
        expected = [
            torch.stack(x) for x in zip(
                reference(function, first), reference(function, other))
        ]
        places = tuple(range(len(first)))
        gradient = grad(partial(total, function), places)
        compare_all(vmap(gradient, dims)(*pairs), expected)


@pytest.mark.parametrize('pool_queries', [False, True])
def test_jacobian(pool_queries) -> None:
    q, k, v = (x.detach() for x in random_qkv((9, ), heads=1, head_dim=2))
    function = partial(fma1d, cell_size=2, pool_queries=pool_queries)
    for argument in range(3):
        expected = torch.autograd.functional.jacobian(
            lambda *x: function(*x, backend='naive'), (q, k, v))[argument]
        assert_close(jacrev(function, argument)(q, k, v), expected)


def test_gradient_of_a_mapped_loss() -> None:
    """The other way round: a gradient through vmap."""
    q, k, v = (x.detach() for x in random_qkv((9, 10), batch=3))

    def loss(q, k, v):
        one = partial(fma2d, cell_size=2, backend='torch')
        return vmap(lambda *x: one(*(y[None] for y in x))[0])(
            q, k, v).square().sum()

    expected = grad(lambda *x: fma2d(*x, cell_size=2).square().sum(),
                    (0, 1, 2))(q, k, v)
    compare_all(grad(loss, (0, 1, 2))(q, k, v), expected)


@pytest.mark.parametrize('masked', [False, True])
def test_pool(masked) -> None:
    h = Hierarchy((9, 10), 2, 2)
    mask = random_mask(h.shape, 2) if masked else None
    x = random_qkv(h.shape, batch=2)[0].detach()

    def loss(x):
        return pool(x, mask, 2, 2, 1, 'torch').square().sum()

    expected = grad(
        lambda x: pack(average_pyramid(x, h, mask), h.ndim).square().sum())(
            x)
    assert_close(grad(loss)(x), expected)
    assert_close(vmap(grad(loss), 1)(torch.stack([x, 2 * x], 1))[0], expected)


@pytest.mark.skipif(missing_triton() is not None, reason=str(missing_triton()))
@pytest.mark.parametrize('pool_queries', [False, True])
def test_triton(pool_queries) -> None:
    qkv = random_qkv((9, ), heads=1, dtype=torch.float32, device=TRITON_DEVICE)
    qkv = tuple(x.detach() for x in qkv)

    def loss(backend, *qkv):
        return fma1d(
            *qkv, cell_size=2, pool_queries=pool_queries,
            backend=backend).square().sum()

    expected = grad(partial(loss, 'naive'), (0, 1, 2))(*qkv)
    for a, b in zip(grad(partial(loss, 'triton'), (0, 1, 2))(*qkv), expected):
        assert_close(a, b, grad=True)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_forward_mode_is_refused(case) -> None:
    """Never silently zero."""
    function, inputs = problem(case)
    with pytest.raises(RuntimeError, match='jvp'):
        jvp(function, inputs, inputs)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, x) for x in inputs]
        with pytest.raises(RuntimeError, match='jvp'):
            function(*duals)


@pytest.mark.parametrize('case', [CASES[0], CASES[6]], ids=str)
def test_second_derivatives_are_refused(case) -> None:
    function, inputs = problem(case)

    def slope(*inputs):
        return grad(partial(total, function))(*inputs).square().sum()

    with pytest.raises(RuntimeError, match='once, not twice: autograd'):
        grad(slope)(*inputs)
