"""Summaries are means over real tokens; masses count them."""
from itertools import product

import pytest
import torch

from fma_kernels import Hierarchy, average_pyramid
from fma_kernels.pooling import masses, pack
from fma_kernels.testing import assert_close, random_mask

GRIDS = [((23, ), 4, None, 2), ((5, ), 8, 3, 4), ((13, 10), 2, None, 1),
         ((9, 17), 4, 2, 2), ((6, 1), 3, 1, 3), ((20, 20), 4, 1, 4)]


def sub_cells(hierarchy: Hierarchy):
    """(level, index of the summary, token box) of every sub-cell."""
    for level, (width,
                grid) in enumerate(zip(hierarchy.widths, hierarchy.grids)):
        side = width // hierarchy.rank
        for cell in product(*map(range, grid)):
            for part, sub in enumerate(
                    product(range(hierarchy.rank), repeat=hierarchy.ndim)):
                low = [c * width + s * side for c, s in zip(cell, sub)]
                region = tuple(slice(x, x + side) for x in low)
                yield level, (*cell, part), region


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_mean_and_mass_over_real_tokens(grid, masked) -> None:
    shape, cell, levels, rank = grid
    h = Hierarchy(shape, cell, levels, rank)
    x = torch.randn(2, *shape, 3, 5, dtype=torch.float64)
    mask = random_mask(shape, batch=2, real=0.5) if masked else None
    real = torch.ones(2, *shape, dtype=torch.bool) if mask is None else mask
    pyramid = average_pyramid(x, h, mask)
    counts = masses(h, mask)
    assert [p.shape for p in pyramid] == [(2, *g, h.num_parts, 3, 5)
                                          for g in h.grids]
    seen = [0] * h.num_levels
    for level, index, region in sub_cells(h):
        for b in range(2):
            tokens = x[(b, *region)][real[(b, *region)]]
            count = counts[level][(b if masked else 0, *index)]
            assert count == len(tokens) and count.dtype == torch.int64
            expected = tokens.mean(0) if len(tokens) else torch.zeros(
                3, 5, dtype=x.dtype)
            assert_close(pyramid[level][(b, *index)], expected)
            seen[level] += len(tokens)
    # No real token is lost or counted twice on any level.
    assert seen == [int(real.sum())] * h.num_levels


def test_masked_nan_has_no_effect_and_no_gradient() -> None:
    h = Hierarchy((9, 11), 2, rank=2)
    mask = random_mask(h.shape, batch=2, real=0.6)
    clean = torch.randn(2, *h.shape, 2, 3, dtype=torch.float64)
    dirty = clean.masked_fill(~mask[..., None, None], torch.nan)
    dirty.requires_grad_()
    pyramid = average_pyramid(dirty, h, mask)
    for level, expected in zip(pyramid, average_pyramid(clean, h, mask)):
        assert torch.equal(level, expected)
    weights = [torch.randn_like(level) for level in pyramid]
    grad, = torch.autograd.grad(pyramid, dirty, weights)
    assert torch.isfinite(grad).all()
    assert (grad[~mask] == 0).all() and (grad[mask] != 0).any()


def test_gradcheck() -> None:
    h = Hierarchy((5, 6), 2, 2, 2)
    mask = random_mask(h.shape)
    x = torch.randn(1, *h.shape, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: tuple(average_pyramid(x, h, mask)), (x, ))


def test_half_precision_sums_in_float32() -> None:
    # 4096 ones: a bfloat16 sum would stop growing at 256.
    h = Hierarchy((1 << 13, ), 4096, 1)
    x = torch.ones(1, *h.shape, 1, 1, dtype=torch.bfloat16)
    level, = average_pyramid(x, h)
    assert level.dtype == torch.bfloat16 and (level == 1).all()


def test_no_levels_no_summaries() -> None:
    h = Hierarchy((8, 8), 4, 0)
    assert average_pyramid(torch.zeros(1, 8, 8, 1, 1), h) == []
    assert masses(h) == []


def test_pack_follows_the_level_starts() -> None:
    h = Hierarchy((13, 10), 2, rank=2)
    x = torch.randn(2, *h.shape, 1, 3)
    pyramid = average_pyramid(x, h)
    packed = pack(pyramid, h.ndim)
    assert packed.shape == (2, h.num_summaries, 1, 3)
    for level, start, size in zip(pyramid, h.level_starts, h.level_sizes):
        assert torch.equal(packed[:, start:start + size],
                           level.reshape(2, size, 1, 3))
