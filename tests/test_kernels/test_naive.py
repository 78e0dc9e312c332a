"""The dense oracle against a loop over queries that shares no code."""
import pytest
import torch
from slow_reference import slow_fma

from fma_kernels import Hierarchy, naive
from fma_kernels.naive import visibility
from fma_kernels.testing import (assert_close, random_mask, random_qkv,
                                 random_summaries)

# shape, cell_size, num_levels, rank, causal
GEOMETRIES = [((21, ), 2, None, 1, False), ((21, ), 2, None, 2, True),
              ((11, ), 3, 5, 3, True), ((9, ), 4, 0, 1, True),
              ((9, 7), 2, None, 1, False), ((8, 11), 2, 1, 2, False),
              ((1, 9), 1, None, 1, False), ((3, 4), 8, None, 2, False)]


@pytest.mark.parametrize('mass', [True, False])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('given', [False, True])
@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_against_the_loop(geometry, given, masked, mass) -> None:
    h = Hierarchy(*geometry)
    batch = 2 if masked else 1
    qkv = random_qkv(h.shape, batch=batch)
    options = dict(mass=mass, scale=0.7)
    if masked:
        options['key_mask'] = random_mask(h.shape, batch, real=0.5)
    if given:
        options['key_summaries'] = random_summaries(h, batch=batch, seed=1)
        options['value_summaries'] = random_summaries(h, batch=batch, seed=2)
    with torch.no_grad():
        expected = slow_fma(*qkv, h, **options)
        for actual, other in zip(naive(*qkv, h, **options), expected):
            assert_close(actual, other)


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_biases_against_the_loop(geometry) -> None:
    h = Hierarchy(*geometry)
    qkv = random_qkv(h.shape)
    biases = dict(far_bias=[
        torch.randn(2, h.num_parts, 7**h.ndim, dtype=torch.float64)
        for _ in h.grids
    ])
    if h.num_levels or max(h.leaf_grid) <= 2:
        biases['near_bias'] = torch.randn(
            2, (4 * h.cell_size - 1)**h.ndim, dtype=torch.float64)
    with torch.no_grad():
        expected = slow_fma(*qkv, h, **biases)
        for actual, other in zip(naive(*qkv, h, **biases), expected):
            assert_close(actual, other)
        plain, _ = naive(*qkv, h)
    if biases.get('near_bias') is not None:
        assert (plain - expected[0]).abs().max() > 1e-3


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_visibility_is_the_footprint(geometry) -> None:
    h = Hierarchy(*geometry)
    seen = visibility(h)
    assert seen.shape == (h.num_tokens, h.num_tokens + h.num_summaries)
    tokens = torch.arange(h.num_tokens).view(h.shape)
    for query in torch.cartesian_prod(*map(torch.arange, h.shape)).view(
            -1, h.ndim).tolist():
        expected = torch.zeros_like(seen[0])
        _, near, far = h.footprint(tuple(query))
        for token in near:
            expected[tokens[token]] = True
        for s in far:
            cell = torch.arange(h.level_sizes[s.level - 1]).view(
                *h.grids[s.level - 1], -1)[s.cell]
            # A cell is seen as a whole, its empty sub-cells too.
            expected[h.num_tokens + h.level_starts[s.level - 1] + cell] = True
        assert torch.equal(seen[tokens[tuple(query)]], expected)
