"""Packed summaries: the definition cell by cell, gradients, transforms."""
import math
from itertools import product

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (DimDynamic, ShapeEnv,
                                                   StatelessSymbolicContext)

from fma_kernels import Hierarchy, average_pyramid
from fma_kernels.pooling import pack, packed_mass, packed_size, unpack
from fma_kernels.summaries import (SLAB_ELEMENTS, average_summaries,
                                   learned_summaries, summaries)
from fma_kernels.testing import assert_close, missing_compiler, random_mask

core = torch.ops.fma_kernels
FORMS = ['grouped_conv', 'conv', 'hierarchical']
needs_compiler = pytest.mark.skipif(
    missing_compiler() is not None, reason=str(missing_compiler()))

# shape, cell_size, num_levels, rank; the last four have more levels than the
# grid needs, one of them on one axis alone, one in a cell beyond the grid.
CASES = [
    ((23, ), 4, None, 2),
    ((16, ), 2, 2, 1),
    ((7, 11), 2, None, 1),
    ((13, 9), 4, 2, 2),
    ((9, ), 2, 5, 1),
    ((5, 6), 2, 4, 2),
    ((3, 17), 2, 4, 1),
    ((3, 2), 6, 2, 3),
]
HEADS, DIM = 2, 3


def random_weights(form, h, dtype=torch.float64, steps=2):
    """Weights of a hierarchy, ``steps`` at most for the hierarchical form."""
    mixing = (DIM, DIM) if form == 'conv' else (DIM, )
    shapes = [(h.num_parts, width**h.ndim, *mixing) for width in h.widths]
    if form == 'hierarchical':
        step = 2**h.ndim, DIM, DIM
        shapes = [*shapes[:1], *[step] * min(steps, h.num_levels - 1)]
    return [
        torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes
    ]


def random_tokens(h, dtype=torch.float64, batch=2):
    """Strided, as a slice of a projection is."""
    x = torch.randn(batch, *h.shape, 3, HEADS, DIM, dtype=dtype)
    return x[..., 1, :, :].requires_grad_()


def cells(h, level):
    """Cell, part, its box of tokens, the cell's, and own taps, one by one."""
    width, side = h.widths[level], h.widths[level] // h.rank
    for cell in product(*map(range, h.grids[level])):
        whole = tuple(slice(c * width, (c + 1) * width) for c in cell)
        for part, sub in enumerate(product(range(h.rank), repeat=h.ndim)):
            start = [c * width + s * side for c, s in zip(cell, sub)]
            box = tuple(slice(n, n + side) for n in start)
            yield cell, part, sub, whole, box


def direct(x, weights, h, real):
    """(size / mass) sum_real W x with W = (1[own sub-cell] + delta) / size."""
    found = []
    for level, delta in enumerate(weights):
        width, side = h.widths[level], h.widths[level] // h.rank
        out = x.new_zeros(x.shape[0], *h.grids[level], h.num_parts, HEADS, DIM)
        for image in range(len(x)):
            for cell, part, sub, whole, box in cells(h, level):
                size, mass = side**h.ndim, real[image][box].sum().item()
                if not mass:
                    continue
                weight = delta[part].reshape(*[width] * h.ndim,
                                             *delta.shape[2:])
                if delta.ndim == 3:
                    weight = weight.diag_embed()
                own = torch.zeros([width] * h.ndim).to(x)
                own[tuple(slice(s * side, (s + 1) * side) for s in sub)] = 1
                weight = weight + own[..., None, None] * torch.eye(DIM).to(x)
                here = x[image][whole]
                weight = weight[tuple(map(slice, here.shape[:h.ndim]))] / size
                keep = real[image][whole]
                out[(image, *cell, part)] = size / mass * torch.einsum(
                    'toi,thi->ho', weight[keep], here[keep])
        found.append(out)
    return found


def hierarchical(x, weights, h, real):
    """parent = sum_c (mass_c / mass) M_c child_c, one sub-cell at a time."""
    leaves = Hierarchy(h.shape, h.cell_size, 1, h.rank)
    found = direct(x, weights[:1], leaves, real)
    mass = unpack(packed_mass(h, real).double(), h)
    for level in range(1, h.num_levels):
        step = weights[min(level, len(weights) - 1)]
        out = x.new_zeros(x.shape[0], *h.grids[level], h.num_parts, HEADS, DIM)
        for image in range(len(x)):
            for cell, part, sub, _, _ in cells(h, level):
                here = (image, *cell, part)
                for c, half in enumerate(product(range(2), repeat=h.ndim)):
                    # Of the child, on the lattice of sub-cells.
                    place = [
                        2 * (q * h.rank + s) + b
                        for q, s, b in zip(cell, sub, half)
                    ]
                    child = tuple(n // h.rank for n in place)
                    number = 0
                    for n in place:
                        number = number * h.rank + n % h.rank
                    if any(a >= n for a, n in zip(child, h.grids[level - 1])):
                        continue
                    there = (image, *child, number)
                    if mass[level - 1][there]:
                        share = mass[level - 1][there] / mass[level][here]
                        matrix = torch.eye(DIM).to(x) + step[c]
                        out[here] += share * found[-1][there] @ matrix.T
        found.append(out)
    return found


def by_definition(form, x, weights, h, mask=None):
    real = torch.ones(x.shape[:-2]).bool() if mask is None else mask
    slow = hierarchical if form == 'hierarchical' else direct
    return pack(slow(x, weights, h, real), h.ndim)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('form', FORMS)
def test_equals_definition(form, case, masked) -> None:
    """Values, and gradients of tokens and of every weight; NaN is masked."""
    h = Hierarchy(*case)
    x, weights = random_tokens(h), random_weights(form, h)
    mask = random_mask(h.shape, 2) if masked else None
    if masked:
        mask[0][tuple(slice(0, 4) for _ in h.shape)] = False
        x = x.detach().masked_fill(~mask[..., None, None], math.nan)
        x.requires_grad_()
    out = learned_summaries(form, x, weights, h, mask)
    expected = by_definition(form, x, weights, h, mask)
    assert out.shape == (2, h.num_summaries, HEADS, DIM)
    assert_close(out, expected)
    empty = (packed_mass(h, mask) == 0).expand(2, -1)
    assert (out[empty] == 0).all()
    slope = torch.randn_like(out)
    grads = torch.autograd.grad(
        out,
        [x, *weights],
        # What reaches a summary of nothing goes nowhere.
        slope.masked_fill(empty[..., None, None], math.nan))
    wanted = torch.autograd.grad(expected, [x, *weights], slope)
    assert_close(grads[0], wanted[0].nan_to_num(), grad=True)
    if masked:
        assert (grads[0][~mask] == 0).all()
    for grad, want in zip(grads[1:], wanted[1:]):
        assert_close(grad, want, grad=True)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('case', CASES, ids=str)
def test_averages(case, masked) -> None:
    """As the pyramid; so is every form at the start, of no level as well."""
    h, none = Hierarchy(*case), Hierarchy(case[0], case[1], 0)
    x = random_tokens(h)
    mask = random_mask(h.shape, 2) if masked else None
    expected = pack(average_pyramid(x, h, mask), h.ndim)
    assert_close(average_summaries(x, h, mask), expected)
    assert average_summaries(x, none, mask).shape == (2, 0, HEADS, DIM)
    for form in FORMS:
        weights = [torch.zeros_like(w) for w in random_weights(form, h)]
        assert_close(learned_summaries(form, x, weights, h, mask), expected)
        out = learned_summaries(form, x, weights, none, mask)
        assert out.shape == (2, 0, HEADS, DIM)
        out.sum().backward()
        assert (x.grad == 0).all()


@pytest.mark.parametrize('case', [CASES[0], CASES[2], CASES[5]], ids=str)
@pytest.mark.parametrize('form', FORMS)
def test_gradcheck(form, case) -> None:
    h = Hierarchy(*case)
    x, mask = random_tokens(h, batch=1), random_mask(h.shape, 1)
    assert torch.autograd.gradcheck(
        lambda x, *weights: learned_summaries(form, x, weights, h, mask),
        (x, *random_weights(form, h)),
        fast_mode=True)


@pytest.mark.parametrize('form', FORMS)
def test_slabs_change_nothing(form, monkeypatch) -> None:
    h = Hierarchy((7, 11), 2, rank=2)
    x, weights = random_tokens(h, batch=20), random_weights(form, h)
    mask = random_mask(h.shape, 20)

    def results():
        out = learned_summaries(form, x, weights, h, mask)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *weights])]

    expected = results()
    monkeypatch.setitem(SLAB_ELEMENTS, 'cpu', 1000)
    for got, wanted in zip(results(), expected):
        assert_close(got, wanted)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('form', FORMS)
def test_half_precision(form, dtype) -> None:
    """Rounded once: the float64 result of the same numbers, and autocast."""
    h = Hierarchy((7, 11), 2, rank=2)
    x, mask = random_tokens(h, dtype), random_mask(h.shape, 2)
    weights = random_weights(form, h, torch.float32)
    exact = [y.detach().double().requires_grad_() for y in (x, *weights)]
    expected = learned_summaries(form, exact[0], exact[1:], h, mask)
    with torch.autocast('cpu', dtype):
        out = learned_summaries(form, x, weights, h, mask)
    assert out.dtype == dtype
    assert_close(out, expected)
    slope = torch.randn_like(out)
    grads = torch.autograd.grad(out, [x, *weights], slope)
    wanted = torch.autograd.grad(expected, exact, slope.double())
    for got, want, y in zip(grads, wanted, (x, *weights)):
        assert got.dtype == y.dtype
        assert_close(got, want, dtype, grad=True)


@pytest.mark.parametrize('form', FORMS)
def test_no_image(form) -> None:
    h = Hierarchy((7, 11), 2, rank=2)
    x, weights = random_tokens(h, batch=0), random_weights(form, h)
    out = learned_summaries(form, x, weights, h)
    assert out.shape == (0, h.num_summaries, HEADS, DIM)
    out.sum().backward()
    assert all((w.grad == 0).all() for w in weights)


@pytest.mark.parametrize('form', FORMS)
def test_weights_for_fewer_levels_are_refused(form) -> None:
    h = Hierarchy((16, ), 2, 3)
    x, weights = random_tokens(h), random_weights(form, h)
    least = 2 if form == 'hierarchical' else 3
    with pytest.raises(ValueError, match=f'must be at least {least} for 3'):
        learned_summaries(form, x, weights[:least - 1], h)


@pytest.mark.parametrize('form', FORMS)
def test_function_transforms(form) -> None:
    h = Hierarchy((5, 6), 2, 2)
    x, mask = random_tokens(h).detach(), random_mask(h.shape, 2)
    weights = [w.detach() for w in random_weights(form, h)]

    def loss(x, *weights):
        return learned_summaries(form, x, weights, h, mask).square().sum()

    def gradients(x, *weights):
        inputs = [y.detach().requires_grad_() for y in (x, *weights)]
        return torch.autograd.grad(loss(*inputs), inputs)

    every = tuple(range(1 + len(weights)))
    expected = gradients(x, *weights)
    found = torch.func.grad(loss, argnums=every)(x, *weights)
    _, pull = torch.func.vjp(loss, x, *weights)
    rows = torch.func.jacrev(loss, argnums=every)(x, *weights)
    for results in (found, pull(torch.ones(()).double()), rows):
        for got, want in zip(results, expected):
            assert_close(got, want)
    # Of tokens alone, and of tokens and weights: ensembles.
    many = torch.stack([x, x.flip(0), 2 * x], dim=1)
    sets = [torch.stack([w, -w, w * w]) for w in weights]
    for dims, others in ((None, weights), (0, sets)):
        mapped = torch.func.vmap(
            torch.func.grad(loss, argnums=every),
            in_dims=(1, *[dims] * len(others)))(many, *others)
        for i in range(3):
            chosen = others if dims is None else [w[i] for w in others]
            wanted = gradients(many[:, i], *chosen)
            for got, want in zip(mapped, wanted):
                assert_close(got[i], want)


def test_what_is_refused() -> None:
    h = Hierarchy((9, ), 2, 2)
    x, weights = random_tokens(h), random_weights('conv', h)

    def run(x):
        return learned_summaries('conv', x, weights, h).square().sum()

    slope, = torch.autograd.grad(run(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once, not twice'):
        slope.sum().backward()
    with pytest.raises(RuntimeError, match='jvp'):
        torch.func.jvp(run, (x.detach(), ), (x.detach(), ))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('form', FORMS)
def test_opcheck(form, dtype) -> None:
    for case, masked in ((CASES[3], True), (CASES[6], False)):
        h = Hierarchy(*case)
        x = random_tokens(h, dtype).detach()
        mask = random_mask(h.shape, 2) if masked else None
        flat = torch.cat(
            [w.detach().flatten() for w in random_weights(form, h)])
        sizes = form, h.cell_size, h.num_levels, h.rank
        checks = dict(test_utils=('test_schema', 'test_faketensor'))
        torch.library.opcheck(core.summaries.default, (x, mask, flat, *sizes),
                              **checks)
        out = summaries(x, mask, flat, *sizes)
        # A slice: the gradient's strides are not those of the result.
        grad = torch.cat([out, out], -1)[..., :DIM]
        kept = out if form == 'hierarchical' else None
        torch.library.opcheck(core.summaries_backward.default,
                              (grad, x, mask, flat, kept, *sizes), **checks)


def test_size_of_symbolic_grids() -> None:
    """No guard on the size: one trace serves all."""
    for case in CASES:
        h = Hierarchy(*case)
        assert packed_size(h.shape, *case[1:2], h.num_levels,
                           h.rank) == h.num_summaries
    mode = FakeTensorMode(shape_env=ShapeEnv())
    symbolic = StatelessSymbolicContext([DimDynamic.DYNAMIC] * 5)
    x = mode.from_tensor(
        torch.empty(2, 50, 60, HEADS, DIM), symbolic_context=symbolic)
    height, width = x.shape[1:3]
    with mode:
        out = core.summaries(x, None, torch.empty(5), 'hierarchical', 4, 3, 1)
    # Nothing was assumed about the grid.
    assert {height.node.expr,
            width.node.expr} <= out.shape[1].node.expr.free_symbols
    assert not mode.shape_env.guards


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('form', FORMS)
def test_compiled_equals_eager(form) -> None:
    """Forward and backward, without a graph break."""
    torch._dynamo.reset()
    h = Hierarchy((9, 10), 2, rank=2)
    x, mask = random_tokens(h, torch.float32), random_mask(h.shape, 2)
    weights = random_weights(form, h, torch.float32)

    def function(x, *weights):
        # Something to fuse on both sides.
        return learned_summaries(form, x * 1.5, weights, h, mask).exp()

    def results(run):
        out = run(x, *weights)
        return [out, *torch.autograd.grad(out.sum(), [x, *weights])]

    compiled = torch.compile(function, fullgraph=True)
    for got, wanted in zip(results(compiled), results(function)):
        assert_close(got, wanted, grad=True)
    torch._dynamo.reset()
