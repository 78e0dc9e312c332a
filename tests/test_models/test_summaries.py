"""Pooling forms: the average at the start, the definition afterwards."""

import itertools
import math

import pytest
import torch

from fma_kernels import pooling
from fma_kernels.geometry import Hierarchy
from fma_vision.layers import FMAttention1D, FMAttention2D, build_summaries

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


def _grouped(grid, cell_size, rank, std=0.):
    tree = Hierarchy(grid, cell_size, rank=rank)
    form = build_summaries(
        'grouped_conv',
        ndim=len(grid),
        cell_size=cell_size,
        rank=rank,
        head_dim=5,
        max_levels=tree.num_levels).double()
    for delta in form.delta:
        torch.nn.init.normal_(delta, std=std)
    return tree, form


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('grid, cell_size, rank', CASES, ids=str)
def test_grouped_conv_starts_as_the_mean(grid, cell_size, rank, masked):
    tree, form = _grouped(grid, cell_size, rank)
    assert tree.num_levels > 0
    x, mask = _tokens(grid)
    mask = mask if masked else None
    for got, mean in zip(
            form(x, tree, mask), pooling.average_pyramid(x, tree, mask)):
        assert torch.equal(got, mean)


def _by_definition(x, tree, form, level, mask):
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
                weight = (float(own) + form.delta[level][part, tap]) / size
                total = total + weight * x[(image, *token)]
                real += own
            if real:
                out[(image, *cell, part)] = size / real * total
    return out


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    'grid, cell_size, rank', [CASES[1], CASES[3]], ids=str)
def test_grouped_conv_equals_definition(grid, cell_size, rank, masked):
    tree, form = _grouped(grid, cell_size, rank, std=1.)
    x, mask = _tokens(grid)
    mask = mask if masked else None
    masses = pooling.masses(tree, mask)
    for level, got in enumerate(form(x, tree, mask)):
        expected = _by_definition(x, tree, form, level, mask)
        some = (masses[level] > 0).expand(got.shape[:-2])
        assert some.any()
        torch.testing.assert_close(got[some], expected[some])


def test_masked_nan_reaches_nothing():
    tree, form = _grouped((7, 11), 2, 2, std=1.)
    x, mask = _tokens((7, 11))
    clean = form(x.masked_fill(~mask[..., None, None], 0), tree, mask)
    x = x.masked_fill(~mask[..., None, None], math.nan).requires_grad_()
    out = form(x, tree, mask)
    for got, expected in zip(out, clean):
        assert torch.equal(got, expected)
    sum(level.sum() for level in out).backward()
    assert (x.grad[~mask] == 0).all() and x.grad.isfinite().all()
    assert all(delta.grad.isfinite().all() for delta in form.delta)


def test_grouped_conv_gradcheck():
    tree, form = _grouped((5, 6), 2, 1, std=.5)
    x = torch.randn(1, 5, 6, 1, 5, dtype=torch.double, requires_grad=True)
    deltas = [d.detach().requires_grad_() for d in form.delta]

    def run(x, *values):
        state = {f'delta.{i}': v for i, v in enumerate(values)}
        return tuple(torch.func.functional_call(form, state, (x, tree)))

    assert torch.autograd.gradcheck(run, (x, *deltas))


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


def test_learned_summaries_change_the_output():
    layer = FMAttention2D(16, 2, cell_size=2, summaries='grouped_conv')
    x = torch.randn(1, 12, 12, 16)
    before = layer(x)
    for summaries in (layer.key_summaries, layer.value_summaries):
        after_start = layer(x)
        torch.nn.init.normal_(summaries.delta[0], std=.5)
        assert not torch.allclose(layer(x), after_start)
    assert before.shape == x.shape
