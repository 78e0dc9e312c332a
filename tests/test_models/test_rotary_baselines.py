"""Rotary positions of the baselines over maps, for comparisons alike."""

import pytest
import torch

from fma_vision.layers import (FMAttention2D, FullAttention, WindowAttention,
                               rotate)

GRIDS = [(5, 7), (16, 16), (11, 18), (3, 20)]


def _random(layer, seed=0):
    torch.manual_seed(seed)
    for param in layer.parameters():
        torch.nn.init.normal_(param, std=.4)
    return layer.double()


@pytest.mark.parametrize('grid', GRIDS, ids=str)
@pytest.mark.parametrize('masked', [False, True])
def test_full_attention_is_fma_without_levels(grid, masked):
    layer = _random(FullAttention(16, 2, positions='rotary', rotary_base=7.))
    other = FMAttention2D(
        16, 2, num_levels=0, positions='rotary', rotary_base=7.).double()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, *grid, 16, dtype=torch.double)
    mask = torch.rand(2, *grid) < .7 if masked else None
    torch.testing.assert_close(layer(x, mask), other(x, mask))
    plain = FullAttention(16, 2).double()
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer(x, mask), plain(x, mask))


@pytest.mark.parametrize('grid', GRIDS, ids=str)
@pytest.mark.parametrize('shift', [False, True])
@pytest.mark.parametrize('masked', [False, True])
def test_windows_turn_as_the_whole_map(grid, shift, masked):
    """All tokens turned by their places in the map, then cut into windows."""
    layer = _random(
        WindowAttention(16, 2, 8, shift, positions='rotary', rotary_base=7.))
    layer.relative_position_bias_table.data.zero_()
    x = torch.randn(1, *grid, 16, dtype=torch.double)
    mask = torch.rand(1, *grid) < .7 if masked else None
    at = [torch.arange(side) for side in grid]
    labels = []
    for places in at:
        moved = 4 if shift and len(places) > 8 else 0
        labels.append((places - moved).div(8, rounding_mode='floor'))
    label = (labels[0][:, None] * 100 + labels[1]).flatten()
    seen = label[:, None] == label  # [N, N]
    if masked:
        seen = seen & mask.flatten()
        x = x.masked_fill(~mask[..., None], 0)
    query, key, value = layer.project(x)
    query, key = (
        rotate(t, (at[0][:, None], at[1]), 7.).flatten(1, 2)
        for t in (query, key))
    logits = torch.einsum('bnhc,bmhc->bhnm', query, key) * 8**-.5
    weights = logits.masked_fill(~seen, float('-inf')).softmax(-1)
    weights = weights.nan_to_num()  # tokens whose window is all masked
    out = torch.einsum('bhnm,bmhc->bnhc', weights, value.flatten(1, 2))
    expected = layer.proj(out.flatten(-2).unflatten(1, grid))
    torch.testing.assert_close(layer(x, mask), expected)


def test_rotary_twins_have_the_same_parameters():
    for cls, options in ((FullAttention, {}), (WindowAttention,
                                               dict(window_size=8))):
        plain, turned = (
            cls(16, 2, positions=positions, **options).state_dict()
            for positions in (None, 'rotary'))
        assert plain.keys() == turned.keys()
        for options in (dict(positions='relative'), dict(positions=True)):
            with pytest.raises((TypeError, ValueError),
                               match='positions must be'):
                cls(16, 2, **options)
        with pytest.raises(ValueError, match='a multiple of 4, got 2'):
            cls(16, 8, positions='rotary')
        with pytest.raises(ValueError, match='rotary_base must be positive'):
            cls(16, 2, positions='rotary', rotary_base=0.)
