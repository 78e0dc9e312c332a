"""Full attention over a sequence against its definition."""

import math

import pytest
import torch

from fma_vision.layers import FMAttention1D, FullAttention1D


def _layer(**kwargs) -> FullAttention1D:
    layer = FullAttention1D(16, 2, **kwargs).double().eval()
    for param in layer.parameters():
        torch.nn.init.normal_(param, std=.3)
    return layer


def _turned(x: torch.Tensor, offset: int, base: float) -> torch.Tensor:
    """Channel i and i + D / 2 as a complex number, turned by its angle."""
    half = x.shape[-1] // 2
    at = torch.arange(x.shape[1], dtype=torch.double) + offset
    rate = base**(-torch.arange(half, dtype=torch.double) / half)
    turn = torch.polar(torch.ones(1).double(), at[:, None, None] * rate)
    number = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([number.real, number.imag], -1)


def _definition(layer, x, key_mask=None, offset=0) -> torch.Tensor:
    query, key, value = layer.qkv(x).unflatten(-1, (3, 2, 8)).unbind(2)
    if layer.positions:
        query = _turned(query, offset, layer.rotary_base)
        key = _turned(key, offset, layer.rotary_base)
    logits = torch.einsum('bihd,bjhd->bhij', query, key) * 8**-.5
    size = x.shape[1]
    if layer.causal:
        later = torch.ones(size, size).triu(1).bool()
        logits = logits.masked_fill(later, -torch.inf)
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, None], -torch.inf)
    weights = logits.softmax(-1).nan_to_num(0.)  # no real key: all zero
    out = torch.einsum('bhij,bjhd->bihd', weights, value)
    return layer.proj(out.flatten(2))


@pytest.mark.parametrize('positions', [None, 'rotary'])
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('length', [1, 13])
def test_equals_definition(length, causal, positions):
    layer = _layer(causal=causal, positions=positions, rotary_base=100.)
    x = torch.randn(3, length, 16).double()
    expected = _definition(layer, x)
    torch.testing.assert_close(layer(x), expected)
    # Positions matter by their differences alone.
    torch.testing.assert_close(layer(x, offset=1000), expected)
    mask = torch.rand(3, length) < .6
    mask[-1] = False
    expected = _definition(layer, x, mask)
    for filling in (0., math.nan):
        out = layer(x.masked_fill(~mask[..., None], filling), mask)
        torch.testing.assert_close(out[mask], expected[mask])
        assert out.isfinite().all()
    torch.testing.assert_close(out[-1], layer.proj.bias.expand_as(out[-1]))


def test_is_the_twin_of_the_multipole_layer():
    kwargs = dict(causal=True, positions='rotary')
    fma = FMAttention1D(16, 2, num_levels=0, **kwargs)
    full = FullAttention1D(16, 2, **kwargs)
    full.load_state_dict(fma.state_dict())
    x = torch.randn(2, 29, 16)
    torch.testing.assert_close(fma(x), full(x))
    assert full.attention_macs(29) == fma.attention_macs(29)


@pytest.mark.parametrize('kwargs, message', [
    (dict(positions='sine'), "positions must be None or 'rotary'"),
    (dict(dim=6, positions='rotary'), 'head_dim must be even, got 3'),
    (dict(dim=7), 'dim=7 .* num_heads=2'),
])
def test_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FullAttention1D(**{**dict(dim=16, num_heads=2), **kwargs})
