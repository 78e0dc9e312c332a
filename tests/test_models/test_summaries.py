"""Pooling forms: the average at the start, the definition afterwards."""

import itertools
import math

import pytest
import torch

from fma_kernels import pooling
from fma_kernels.geometry import Hierarchy
from fma_vision.layers import FMAttention1D, FMAttention2D, build_summaries

# Forms that learn; the average has nothing to.
FORMS = {
    'grouped_conv': 'grouped_conv',
    'conv': 'conv',
    'hierarchical': 'hierarchical',
    'shared': dict(type='hierarchical', shared=True),
}

CASES = [
    # grid, cell_size, rank
    ((16, ), 2, 1),
    ((23, ), 4, 2),
    ((8, 8), 2, 1),
    ((7, 11), 2, 2),
    ((13, 9), 3, 1),
]


def _tokens(grid):
    """Tokens and a mask with one summary's tokens all masked."""
    x = torch.randn(2, *grid, 2, 5, dtype=torch.double)
    mask = torch.rand(2, *grid) < .7
    mask[0][tuple(slice(0, 3) for _ in grid)] = False
    return x, mask


def _form(name, grid, cell_size, rank, std=0., max_levels=None):
    """A hierarchy and a form, with weights at random unless ``std`` is 0."""
    tree = Hierarchy(grid, cell_size, rank=rank)
    form = build_summaries(
        FORMS[name],
        ndim=len(grid),
        cell_size=cell_size,
        rank=rank,
        head_dim=5,
        max_levels=max_levels or max(tree.num_levels, 2)).double()
    for weight in form.parameters():
        torch.nn.init.normal_(weight, std=std)
    return tree, form


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('grid, cell_size, rank', CASES, ids=str)
def test_average_is_the_mean(grid, cell_size, rank, masked):
    """Of the real tokens of each sub-cell, one at a time."""
    tree = Hierarchy(grid, cell_size, rank=rank)
    form = build_summaries(
        'avg', ndim=len(grid), cell_size=cell_size, rank=rank, head_dim=5)
    x, mask = _tokens(grid)
    if not masked:
        mask = torch.ones_like(mask)
    for image, place in itertools.product(
            range(2), itertools.product(*map(range, grid))):
        if not mask[(image, *place)]:
            x[(image, *place)] = math.nan
    x.requires_grad_()
    levels = pooling.unpack(form(x, tree, mask if masked else None), tree)
    slopes = [torch.randn_like(level) for level in levels]
    sum((level * slope).sum()
        for level, slope in zip(levels, slopes)).backward()
    grad = torch.zeros_like(x)
    for level, (got, slope) in enumerate(zip(levels, slopes)):
        side = tree.widths[level] // rank
        for image, cell in itertools.product(
                range(2), itertools.product(*map(range, tree.grids[level]))):
            for part, sub in enumerate(
                    itertools.product(range(rank), repeat=len(grid))):
                start = [(c * rank + s) * side for c, s in zip(cell, sub)]
                box = (image, *(slice(n, n + side) for n in start))
                real = mask[box]
                if real.any():
                    here = (image, *cell, part)
                    torch.testing.assert_close(got[here], x[box][real].mean(0))
                    grad[box] += real[..., None, None] * slope[here] \
                        / real.sum()
    torch.testing.assert_close(x.grad, grad)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('grid, cell_size, rank', CASES, ids=str)
@pytest.mark.parametrize('name', FORMS)
def test_form_starts_as_the_mean(name, grid, cell_size, rank, masked):
    tree, form = _form(name, grid, cell_size, rank)
    assert tree.num_levels > 0
    x, mask = _tokens(grid)
    mask = mask if masked else None
    means = pooling.average_pyramid(x, tree, mask)
    levels = pooling.unpack(form(x, tree, mask), tree)
    for got, mean in zip(levels, means, strict=True):
        # Exact where the mean is taken at once, else to the last digits.
        tight = 1e-14 if 'delta_step.0' in form.state_dict() else 0
        torch.testing.assert_close(got, mean, rtol=tight, atol=tight)


def _direct(x, tree, delta, level, mask):
    """(size / mass) * sum_real W x, written as loops over all summaries."""
    grid, width, rank = tree.grids[level], tree.widths[level], tree.rank
    ndim, side = len(grid), tree.widths[level] // tree.rank
    out = x.new_zeros(x.shape[0], *grid, rank**ndim, *x.shape[-2:])
    for image, cell in itertools.product(
            range(x.shape[0]), itertools.product(*map(range, grid))):
        for part, sub in enumerate(
                itertools.product(range(rank), repeat=ndim)):
            total, real = 0, 0
            size = side**ndim
            for tap, place in enumerate(
                    itertools.product(range(width), repeat=ndim)):
                token = tuple(c * width + p for c, p in zip(cell, place))
                if any(t >= n for t, n in zip(token, x.shape[1:])):
                    continue
                if mask is not None and not mask[(image, *token)]:
                    continue
                own = all(p // side == s for p, s in zip(place, sub))
                here, weight = x[(image, *token)], delta[part, tap]
                matrix = weight if weight.ndim == 2 else weight.diag()
                matrix = matrix + float(own) * torch.eye(5).double()
                total = total + here @ matrix.T / size
                real += own
            if real:
                out[(image, *cell, part)] = size / real * total
    return out


def _lifted(children, masses, tree, deltas, level):
    """parent = sum_c (mass_c / mass) (1 + delta_c) child_c, in loops."""
    ndim, rank = tree.ndim, tree.rank
    low = pooling.cells_to_lattice(children, rank, ndim)
    mass = pooling.cells_to_lattice(masses[level - 1], rank, ndim)
    mass = mass.expand(low.shape[0], *mass.shape[1:])
    grid = tree.grids[level]
    sizes = tuple(rank * size for size in grid)
    out = low.new_zeros(low.shape[0], *sizes, *low.shape[-2:])
    for image, place in itertools.product(
            range(low.shape[0]), itertools.product(*map(range, sizes))):
        total, real = 0, 0
        for c, step in enumerate(itertools.product(range(2), repeat=ndim)):
            child = tuple(2 * p + s for p, s in zip(place, step))
            if any(i >= n for i, n in zip(child, low.shape[1:])):
                continue
            here = mass[(image, *child)]
            matrix = torch.eye(5).double() + deltas[c]
            total = total + here * (low[(image, *child)] @ matrix.T)
            real += here
        if real:
            out[(image, *place)] = total / real
    return pooling.lattice_to_cells(out, grid, rank)


def _by_definition(x, tree, form, mask):
    """Every level; a hierarchy of four levels takes its last step again."""
    if not hasattr(form, 'delta_cell'):
        return [
            _direct(x, tree, form.delta[level], level, mask)
            for level in range(tree.num_levels)
        ]
    masses = pooling.masses(tree, mask)
    out = [_direct(x, tree, form.delta_cell, 0, mask)]
    for level in range(1, tree.num_levels):
        step = min(level, len(form.delta_step)) - 1
        out.append(
            _lifted(out[-1], masses, tree, form.delta_step[step], level))
    return out


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    'grid, cell_size, rank', [CASES[1], CASES[3]], ids=str)
@pytest.mark.parametrize('name', FORMS)
def test_form_equals_definition(name, grid, cell_size, rank, masked):
    tree, form = _form(name, grid, cell_size, rank, std=1.)
    x, mask = _tokens(grid)
    mask = mask if masked else None
    masses = pooling.masses(tree, mask)
    expected = _by_definition(x, tree, form, mask)
    for level, got in enumerate(pooling.unpack(form(x, tree, mask), tree)):
        some = (masses[level] > 0).expand(got.shape[:-2])
        assert some.any()
        torch.testing.assert_close(got[some], expected[level][some])


@pytest.mark.parametrize('grid, levels', [((33, ), 5), ((9, 17), 4)])
@pytest.mark.parametrize('name, steps', [('hierarchical', 2), ('shared', 1)])
def test_last_step_serves_the_levels_above(name, steps, grid, levels):
    # More levels than the three that `max_levels` allows for.
    tree, form = _form(name, grid, 1, 1, std=1., max_levels=3)
    assert tree.num_levels == levels and len(form.delta_step) == steps
    x, mask = _tokens(grid)
    expected = _by_definition(x, tree, form, mask)
    masses = pooling.masses(tree, mask)
    levels = pooling.unpack(form(x, tree, mask), tree)
    for got, wanted, mass in zip(levels, expected, masses):
        torch.testing.assert_close(got[mass > 0], wanted[mass > 0])


def test_learned_steps_are_not_clipped_to_the_weight_sets():
    for summaries in ['hierarchical', FORMS['shared']]:
        layer = FMAttention1D(
            10, 2, cell_size=2, summaries=summaries, max_levels=2)
        assert layer.hierarchy(64).num_levels == 4
        assert layer(torch.randn(1, 64, 10)).isfinite().all()


@pytest.mark.parametrize('name', FORMS)
def test_masked_nan_reaches_nothing(name):
    tree, form = _form(name, (7, 11), 2, 2, std=1.)
    x, mask = _tokens((7, 11))
    clean = form(x.masked_fill(~mask[..., None, None], 0), tree, mask)
    x = x.masked_fill(~mask[..., None, None], math.nan).requires_grad_()
    out = form(x, tree, mask)
    assert torch.equal(out, clean)
    out.sum().backward()
    assert (x.grad[~mask] == 0).all() and x.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in form.parameters())


@pytest.mark.parametrize('layer, small, large, levels', [
    (FMAttention1D, (14, ), (45, ), 4),
    (FMAttention2D, (9, 10), (13, 18), 3),
])
def test_shared_steps_train_small_and_run_large(layer, small, large, levels):
    """Weights learned on two levels serve on more, by the definition."""
    attn = layer(
        10, 2, cell_size=2, rank=2, summaries=FORMS['shared']).double()
    assert attn.hierarchy(*small).num_levels == 2
    start = {n: p.detach().clone() for n, p in attn.named_parameters()}
    optimizer = torch.optim.SGD(attn.parameters(), lr=1.)
    x = torch.randn(4, *small, 10, dtype=torch.double)
    for _ in range(2):
        optimizer.zero_grad()
        (attn(x) - x).square().mean().backward()
        optimizer.step()
    for name, param in attn.key_summaries.named_parameters():
        assert (param != start[f'key_summaries.{name}']).any(), name
    tree = attn.hierarchy(*large)
    assert tree.num_levels == levels
    x, mask = _tokens(large)
    masses = pooling.masses(tree, mask)
    expected = _by_definition(x, tree, attn.key_summaries, mask)
    levels = pooling.unpack(attn.key_summaries(x, tree, mask), tree)
    for got, wanted, mass in zip(levels, expected, masses):
        torch.testing.assert_close(got[mass > 0], wanted[mass > 0])
    out = attn(torch.randn(1, *large, 10, dtype=torch.double))
    assert out.isfinite().all()


@pytest.mark.parametrize('grid, rank', [((5, 6), 1), ((5, 6), 2), ((19, ), 1),
                                        ((19, ), 2)])
@pytest.mark.parametrize('name', FORMS)
def test_form_gradcheck(name, grid, rank):
    """On ragged grids, with some tokens masked."""
    tree, form = _form(name, grid, 2, rank, std=.5)
    x = torch.randn(1, *grid, 1, 5, dtype=torch.double, requires_grad=True)
    mask = torch.rand(1, *grid) < .7
    mask[(0, *(slice(0, 2) for _ in grid))] = False
    names = [name for name, _ in form.named_parameters()]
    weights = [w.detach().requires_grad_() for w in form.parameters()]

    def run(x, *values):
        state = dict(zip(names, values))
        return torch.func.functional_call(form, state, (x, tree, mask))

    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)


@pytest.mark.parametrize('name', FORMS)
def test_half_precision_sums_in_float32(name):
    # 600 tokens of 150: their sum is beyond float16.
    tree, form = _form(name, (2400, ), 600, 1)
    x = torch.full((1, 2400, 1, 5), 150., dtype=torch.half)
    out = form(x, tree)
    assert out.dtype == torch.half and (out == 150).all()


@pytest.mark.parametrize('name', FORMS)
def test_no_image_gives_no_summaries(name):
    tree, form = _form(name, (7, 11), 2, 2)
    x = torch.randn(0, 7, 11, 2, 5, dtype=torch.double)
    levels = pooling.unpack(form(x, tree), tree)
    shapes = [tuple(level.shape) for level in levels]
    assert shapes == [(0, *grid, 4, 2, 5) for grid in tree.grids]


@pytest.mark.parametrize('name', FORMS)
def test_weights_do_not_decay(name):
    layer = FMAttention1D(10, 2, cell_size=2, summaries=FORMS[name])
    form = layer.key_summaries
    assert form.no_weight_decay() == {n for n, _ in form.named_parameters()}
    # What the configs of optimisers look for.
    assert all('summaries.delta' in name
               for name, _ in layer.named_parameters() if 'summaries' in name)


def test_build_summaries_takes_names_and_configs():
    sizes = dict(ndim=1, cell_size=4, rank=1, head_dim=2, max_levels=3)
    assert len(build_summaries('hierarchical', **sizes).delta_step) == 2
    cfg = dict(type='hierarchical', max_levels=5)
    assert len(build_summaries(cfg, **sizes).delta_step) == 4
    assert cfg == dict(type='hierarchical', max_levels=5)
    for wrong in ['max', None, dict(shared=True), dict(type=['avg'])]:
        with pytest.raises(ValueError, match='is unknown; allowed'):
            build_summaries(wrong, **sizes)
    with pytest.raises(TypeError, match='shared'):
        build_summaries(dict(type='avg', shared=True), **sizes)
    with pytest.raises(ValueError, match='max_levels must be at least 2'):
        build_summaries(dict(type='hierarchical', max_levels=1), **sizes)


def test_levels_are_clipped_to_the_weight_sets():
    layer = FMAttention1D(
        10, 2, cell_size=2, summaries='grouped_conv', max_levels=2)
    assert layer.hierarchy(64).num_levels == 2
    assert FMAttention1D(10, 2, cell_size=2).hierarchy(64).num_levels == 4
    assert layer(torch.randn(1, 64, 10)).isfinite().all()
    # Keys and values own separate weights, one set per level.
    shapes = {
        name: tuple(p.shape)
        for name, p in layer.named_parameters() if 'delta' in name
    }
    assert shapes == {
        f'{kind}_summaries.delta.{level}': (1, 2 * 2**level, 5)
        for kind in ('key', 'value')
        for level in (0, 1)
    }


def test_default_weight_sets():
    in_1d = FMAttention1D(16, 2, summaries='grouped_conv')
    in_2d = FMAttention2D(16, 2, summaries='grouped_conv')
    assert in_1d.key_summaries.max_levels == 8
    assert in_2d.key_summaries.max_levels == 4
    assert in_2d.key_summaries.delta[3].shape == (1, 32 * 32, 8)
    mixing = FMAttention2D(16, 2, summaries='conv').key_summaries
    assert [w.shape for w in mixing.delta] == [(1, 16, 8, 8), (1, 64, 8, 8)]
    lifting = FMAttention2D(16, 2, summaries='hierarchical').key_summaries
    assert [w.shape for w in lifting.delta_step] == [(4, 8, 8)] * 3
    assert lifting.delta_cell.shape == (1, 16, 8)


@pytest.mark.parametrize('name', FORMS)
def test_learned_summaries_change_the_output(name):
    layer = FMAttention2D(16, 2, cell_size=2, summaries=FORMS[name])
    x = torch.randn(1, 12, 12, 16)
    before = layer(x)
    for form in (layer.key_summaries, layer.value_summaries):
        for weight in list(form.parameters())[:2]:
            torch.nn.init.normal_(weight, std=.5)
            after = layer(x)
            assert not torch.allclose(after, before)
            before = after
    assert before.shape == x.shape
