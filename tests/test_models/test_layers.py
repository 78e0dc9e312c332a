"""Attention layers against their definitions, whatever the grid or mask."""

import math
import os
import shutil

import pytest
import torch
from oracles import definition

from fma_vision.layers import (ATTENTION_LAYERS, ConditionalPosition,
                               FMAttention1D, FMAttention2D, FullAttention,
                               WindowAttention, build_attention,
                               build_position)

GRIDS = [(1, 1), (1, 13), (3, 2), (5, 9), (8, 8), (17, 23)]
SUMMARIES = ['avg', 'grouped_conv', 'conv', 'hierarchical']
LAYERS_2D = {
    'fma':
    dict(type='FMAttention2D', cell_size=2),
    'fma_rank2':
    dict(type='FMAttention2D', cell_size=2, rank=2),
    'fma_no_mass':
    dict(type='FMAttention2D', cell_size=3, mass=False),
    'fma_one_level':
    dict(type='FMAttention2D', cell_size=2, num_levels=1),
    'fma_grouped_conv':
    dict(type='FMAttention2D', cell_size=2, summaries='grouped_conv'),
    'fma_conv':
    dict(
        type='FMAttention2D',
        cell_size=2,
        summaries=dict(type='conv', max_levels=3)),
    'fma_hierarchical':
    dict(type='FMAttention2D', cell_size=2, rank=2, summaries='hierarchical'),
    'fma_shared':
    dict(
        type='FMAttention2D',
        cell_size=2,
        summaries=dict(type='hierarchical', shared=True)),
    'full':
    dict(type='FullAttention'),
    'window':
    dict(type='WindowAttention', window_size=4),
    'window_shifted':
    dict(type='WindowAttention', window_size=4, shift=True),
    'window_odd':
    dict(type='WindowAttention', window_size=3, shift=True),
}


def _layer(name: str) -> torch.nn.Module:
    layer = build_attention(LAYERS_2D[name], dim=16, num_heads=2).double()
    # Biases and tables that start at zero would hide mistakes.
    for key, param in layer.named_parameters():
        if 'delta' not in key:
            torch.nn.init.normal_(param, std=.3)
    return layer


def _mask(*shape: int) -> torch.Tensor:
    """About 60 % real; the last image has no real token at all."""
    mask = torch.rand(shape) < .6
    mask[-1] = False
    return mask


@pytest.mark.parametrize('grid', GRIDS, ids=str)
@pytest.mark.parametrize('name', LAYERS_2D)
def test_layer_equals_definition(name, grid):
    layer = _layer(name)
    x = torch.randn(2, *grid, 16, dtype=torch.double)
    torch.testing.assert_close(layer(x), definition(layer, x))


@pytest.mark.parametrize('grid', [(1, 13), (5, 9), (11, 14)], ids=str)
@pytest.mark.parametrize('name', LAYERS_2D)
def test_masked_layer_equals_definition(name, grid):
    layer = _layer(name)
    x = torch.randn(3, *grid, 16, dtype=torch.double)
    mask = _mask(3, *grid)
    out = layer(x, mask)
    expected = definition(layer, x, mask)
    # What a masked query yields is nobody's business but must be finite.
    torch.testing.assert_close(out[mask], expected[mask])
    assert out.isfinite().all()
    # No real token in the last image: attention is 0, the bias is left.
    torch.testing.assert_close(out[-1], layer.proj.bias.expand_as(out[-1]))


@pytest.mark.parametrize('name', LAYERS_2D)
def test_masked_tokens_may_hold_anything(name):
    layer = _layer(name)
    mask = _mask(3, 6, 11)
    results = []
    for filling in (0., 7., math.nan, math.inf):
        x = torch.randn(
            3, 6, 11, 16, generator=torch.Generator().manual_seed(1)).double()
        x[~mask] = filling
        x.requires_grad_()
        layer.zero_grad()
        out = layer(x, mask)
        out[mask].square().sum().backward()
        grads = [p.grad.clone() for p in layer.parameters()]
        results.append((out[mask], x.grad, *grads))
        assert (x.grad[~mask] == 0).all()
    for result in results[1:]:
        for got, expected in zip(result, results[0]):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize('name', LAYERS_2D)
def test_every_parameter_gets_a_gradient(name):
    # (4, 4) needs no level at all: learned summaries stay in the graph.
    for grid in [(4, 4), (19, 30)]:
        layer = _layer(name)
        layer(torch.randn(1, *grid, 16).double()).square().sum().backward()
        assert [n for n, p in layer.named_parameters() if p.grad is None] == []


def test_fma_without_levels_is_full_attention():
    fma = FMAttention2D(16, 2, num_levels=0)
    full = FullAttention(16, 2)
    full.load_state_dict(fma.state_dict())
    x = torch.randn(2, 9, 14, 16)
    torch.testing.assert_close(fma(x), full(x))


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('summaries', SUMMARIES)
@pytest.mark.parametrize('length', [1, 7, 40])
def test_fma1d_equals_definition(length, summaries, causal):
    layer = FMAttention1D(
        16, 2, cell_size=2, summaries=summaries, causal=causal).double()
    x = torch.randn(2, length, 16, dtype=torch.double)
    torch.testing.assert_close(layer(x), definition(layer, x))


@pytest.mark.parametrize('summaries', SUMMARIES)
def test_causal_layer_does_not_look_ahead(summaries):
    layer = FMAttention1D(16, 2, cell_size=2, summaries=summaries, causal=True)
    for param in layer.parameters():
        torch.nn.init.normal_(param, std=.3)
    x = torch.randn(1, 37, 16)
    changed = x.clone()
    changed[:, 20:] = torch.randn(1, 17, 16)
    torch.testing.assert_close(layer(x)[:, :20], layer(changed)[:, :20])
    assert not torch.allclose(layer(x)[:, 20:], layer(changed)[:, 20:])


def test_fma_dropout_acts_in_training_only():
    layer = FMAttention2D(16, 2, cell_size=2, attn_drop=.5)
    x = torch.randn(1, 12, 12, 16)
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), definition(layer, x))


def test_window_attention_equals_swin():
    pytest.importorskip('mmpretrain', reason='mmpretrain is the reference')
    from mmpretrain.models.utils import ShiftWindowMSA
    for shift, grid in [(False, (14, 21)), (True, (14, 21)), (True, (7, 7))]:
        swin = ShiftWindowMSA(16, 2, 7, shift_size=3 if shift else 0).eval()
        torch.nn.init.normal_(swin.w_msa.relative_position_bias_table)
        ours = WindowAttention(16, 2, window_size=7, shift=shift).eval()
        ours.load_state_dict({
            k: v
            for k, v in swin.w_msa.state_dict().items() if 'index' not in k
        })
        x = torch.randn(2, *grid, 16)
        expected = swin(x.flatten(1, 2), grid).view_as(x)
        torch.testing.assert_close(ours(x), expected)


def test_window_shifts_in_odd_blocks():
    shifts = [
        build_attention('WindowAttention', 16, 2, block_index=i).shift
        for i in range(4)
    ]
    assert shifts == [False, True, False, True]
    fixed = dict(type='WindowAttention', shift=False)
    assert not build_attention(fixed, 16, 2, block_index=1).shift


def test_bfloat16_autocast_stays_close():
    x = torch.randn(1, 12, 20, 32)
    for name in LAYERS_2D:
        layer = build_attention(LAYERS_2D[name], 32, 2)
        with torch.autocast('cpu', torch.bfloat16):
            out = layer(x)
        torch.testing.assert_close(
            out.float(), layer(x), rtol=.05, atol=.03, msg=name)


def test_build_attention_resolves_types():
    own = build_attention('fma_vision.FullAttention', 16, 2)
    assert type(own) is ATTENTION_LAYERS['FullAttention']

    class Other(torch.nn.Module):

        def __init__(self, dim, num_heads, extra):
            super().__init__()
            self.args = dim, num_heads, extra

    assert build_attention(dict(type=Other, extra=5), 16, 2).args == (16, 2, 5)
    with pytest.raises(ValueError, match="'Nothing' is unknown; allowed"):
        build_attention(dict(type='Nothing'), 16, 2)


def test_build_attention_finds_registered_layers():
    registry = pytest.importorskip('mmengine.registry')

    @registry.MODELS.register_module()
    class TestOnlyAttention(torch.nn.Module):

        def __init__(self, dim, num_heads):
            super().__init__()

    try:
        layer = build_attention(dict(type='TestOnlyAttention'), 16, 2)
        assert type(layer) is TestOnlyAttention
    finally:
        registry.MODELS.module_dict.pop('TestOnlyAttention')


@pytest.mark.parametrize('kwargs, message', [
    (dict(dim=10), 'dim=10 .* num_heads=4'),
    (dict(rank=3), 'rank must divide cell_size=4, got 3'),
    (dict(cell_size='4'), 'cell_size must be an int'),
    (dict(num_levels=-1), 'num_levels .* got -1'),
    (dict(attn_drop=1.), r'attn_drop must be in \[0, 1\), got 1.0'),
    (dict(summaries='max'), r"summaries='max' .*\['avg', 'conv', 'grouped"),
    (dict(summaries='grouped_conv', max_levels=0), 'max_levels .* got 0'),
])
def test_fma_layer_refuses(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FMAttention2D(**{**dict(dim=16, num_heads=4), **kwargs})


@pytest.mark.parametrize('name', ['fma', 'full', 'window'])
def test_layer_refuses_bad_tokens(name):
    layer = _layer(name)
    for shape in [(1, 4, 16), (1, 4, 4, 8), (1, 0, 4, 16)]:
        with pytest.raises(ValueError, match=r'x must be \[B, H, W, 16\]'):
            layer(torch.zeros(shape).double())
    x = torch.zeros(1, 4, 4, 16).double()
    for mask in [torch.ones(1, 4, 4), torch.ones(1, 4, 5).bool()]:
        with pytest.raises(ValueError, match='key_mask must be bool'):
            layer(x, mask)


def test_attention_macs_count_the_pairs():
    # 2 products of `dim` multiply-adds for each pair of tokens.
    assert FullAttention(16, 2).attention_macs(3, 5) == 2 * 15 * 15 * 16
    layer = FMAttention2D(16, 2, num_levels=0)
    assert layer.attention_macs(3, 5) == 2 * 15 * 15 * 16
    # 6 windows of 4 x 4 tokens.
    layer = WindowAttention(16, 2, window_size=4)
    assert layer.attention_macs(8, 11) == 2 * 6 * 16 * 16 * 16


def test_conditional_position_depends_on_place_and_size_is_free():
    layer = ConditionalPosition(8)
    for grid in [(1, 1), (2, 9), (7, 5)]:
        out = layer(torch.ones(1, *grid, 8))
        assert out.shape == (1, *grid, 8)
    corner, inside = out[0, 0, 0], out[0, 3, 2]
    assert not torch.allclose(corner, inside)
    # By its definition: a sum over the 3 x 3 neighbours that exist.
    x = torch.randn(1, 4, 4, 8)
    weight = layer.conv.weight[:, 0]  # [8, 3, 3]
    expected = x[0, 0, 3] + layer.conv.bias
    for i, j in [(0, 2), (0, 3), (1, 2), (1, 3)]:
        expected = expected + weight[:, i + 1, j - 2] * x[0, i, j]
    torch.testing.assert_close(layer(x)[0, 0, 3], expected)


def test_build_position():
    x = torch.randn(1, 3, 3, 8)
    assert build_position('none', 8)(x) is x
    assert build_position(None, 8)(x) is x
    cfg = dict(type='fma_vision.ConditionalPosition', kernel_size=5)
    assert build_position(cfg, 8).conv.kernel_size == (5, 5)
    with pytest.raises(ValueError, match="'sine' is unknown; allowed"):
        build_position('sine', 8)
    with pytest.raises(ValueError, match='odd and positive, got 4'):
        ConditionalPosition(8, kernel_size=4)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get('CXX', 'g++')) is None,
    reason='torch.compile on a CPU needs a C++ compiler')
@pytest.mark.parametrize('summaries', ['avg', 'grouped_conv'])
def test_compiled_layer_has_no_graph_break(summaries):
    layer = FMAttention2D(16, 2, cell_size=2, summaries=summaries)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(1, 11, 14, 16, requires_grad=True)
    expected = layer(x)
    expected.square().sum().backward()
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    out = compiled(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    for got, wanted in zip([x.grad, *(p.grad for p in layer.parameters())],
                           grads):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
