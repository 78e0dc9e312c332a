"""Rotary positions: the rotation, and the layer that pools before it."""

import pytest
import torch

from fma_kernels import Hierarchy, pooling
from fma_vision.layers import FMAttention1D, build_attention, rotate

FORMS = ['avg', 'grouped_conv', 'conv', dict(type='hierarchical', shared=True)]


def _layer(summaries='avg', dim=16, dtype=torch.double, **kwargs):
    """A rotary layer with weights at random, learned summaries included."""
    options = dict(cell_size=4, rank=2, positions='rotary', rotary_base=50.)
    layer = FMAttention1D(
        dim, 2, summaries=summaries, **{
            **options,
            **kwargs
        }).to(dtype)
    for param in layer.parameters():
        torch.nn.init.normal_(param, std=.3)
    return layer


def test_rotate_equals_complex_numbers():
    x = torch.randn(2, 7, 3, 6, dtype=torch.double)
    at = torch.tensor([0., 1., 2.5, -3., 10., 100., 1e6])
    got = rotate(x, at, base=100.)
    # Channels (0, 3), (1, 4), (2, 5) are the planes.
    plane = torch.complex(x[..., :3], x[..., 3:])
    speed = 100.**(-torch.arange(3).double() / 3)
    turn = torch.polar(torch.ones(7, 3).double(), at.double()[:, None] * speed)
    turned = plane * turn[:, None]
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got[:, 0], x[:, 0], rtol=0, atol=0)


def test_rotate_takes_positions_per_image():
    x = torch.randn(2, 5, 3, 8)
    at = torch.randint(0, 9, (2, 5))
    got = rotate(x, at, 10.)
    for image in range(2):
        torch.testing.assert_close(got[image], rotate(x[image], at[image],
                                                      10.))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_rotate_is_precise_at_far_positions(dtype):
    # The angle is not rounded to the dtype, nor to float32: lags stay exact.
    x = torch.randn(1, 4, 2, 16)
    near = rotate(x.to(dtype), torch.arange(4))
    far = rotate(x.to(dtype), torch.arange(4) + 10**6)
    assert near.dtype == far.dtype == dtype
    products = [
        torch.einsum('bqhd,bkhd->bhqk', y.float(), y.float())
        for y in (near, far)
    ]
    tight = 1e-5 if dtype == torch.float32 else .1
    torch.testing.assert_close(*products, rtol=tight, atol=tight)


def _slow(layer, x, key_mask=None, offset=0):
    """Every query apart, from the footprint that the geometry gives it."""
    length, heads, dim = x.shape[1], layer.num_heads, layer.head_dim
    if key_mask is not None:
        x = x.masked_fill(~key_mask[..., None], 0)
    qkv = layer.qkv(x).view(x.shape[0], length, 3, heads, dim)
    query, key, value = qkv.unbind(2)
    tree = Hierarchy((length, ), layer.cell_size, layer.num_levels, layer.rank,
                     layer.causal)
    key_levels, value_levels = (
        pooling.unpack(packed, tree)
        for packed in (layer.key_summaries(key, tree, key_mask),
                       layer.value_summaries(value, tree, key_mask)))
    real = torch.ones(x.shape[:2]).bool() if key_mask is None else key_mask
    rows = []
    for image in range(x.shape[0]):
        for i in range(length):
            keys, values, places, masses = [], [], [], []
            seen = tree.footprint(i)
            for j, in seen.near:
                if real[image, j]:
                    keys.append(key[image, j])
                    values.append(value[image, j])
                    places.append(float(j))
                    masses.append(1.)
            for part in seen.far:
                (start, ), (stop, ) = part.start, part.stop
                mass = real[image, start:stop].sum().item()
                if mass:
                    where = part.level - 1, (image, *part.cell, part.part)
                    keys.append(key_levels[where[0]][where[1]])
                    values.append(value_levels[where[0]][where[1]])
                    side = tree.widths[where[0]] // layer.rank
                    places.append(start + (side - 1) / 2)
                    masses.append(mass)
            if not keys:
                rows.append(torch.zeros(heads * dim).to(x))
                continue
            turn = layer.rotary_base
            k = rotate(torch.stack(keys), torch.tensor(places) + offset, turn)
            q = rotate(query[image, i:i + 1], torch.tensor([i + offset]), turn)
            logits = torch.einsum('qhd,khd->hk', q, k) * dim**-.5
            logits = logits + torch.tensor(masses).to(x).log()
            out = torch.einsum('hk,khd->hd', logits.softmax(-1),
                               torch.stack(values))
            rows.append(out.flatten())
    return layer.proj(torch.stack(rows).view_as(x))


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('summaries', FORMS, ids=str)
def test_layer_equals_slow_reference(summaries, causal):
    layer = _layer(summaries, causal=causal, cell_size=2)
    x = torch.randn(2, 27, 16, dtype=torch.double)
    assert layer.hierarchy(27).num_levels == 3
    expected = _slow(layer, x)
    torch.testing.assert_close(layer(x), expected)
    plain = FMAttention1D(
        16, 2, cell_size=2, rank=2, summaries=summaries,
        causal=causal).double()
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(plain(x), expected)


@pytest.mark.parametrize('summaries', ['avg', 'hierarchical'])
def test_masked_tokens_keep_their_positions(summaries):
    layer = _layer(summaries)
    x = torch.randn(2, 41, 16, dtype=torch.double)
    mask = torch.rand(2, 41) < .6
    mask[0, :11] = False
    out = layer(x, mask)
    torch.testing.assert_close(out[mask], _slow(layer, x, mask)[mask])
    x[~mask] = float('nan')
    torch.testing.assert_close(layer(x, mask)[mask], out[mask])


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('summaries', FORMS, ids=str)
def test_shift_of_the_whole_sequence_changes_nothing(summaries, causal):
    layer = _layer(summaries, causal=causal)
    x = torch.randn(1, 61, 16, dtype=torch.double)
    expected = layer(x)
    for offset in [1, 1000, 2**20 + 3]:
        torch.testing.assert_close(
            layer(x, offset=offset), expected, rtol=1e-6, atol=1e-8)
    # In the layer's usual precision too.
    layer = layer.float()
    torch.testing.assert_close(
        layer(x.float(), offset=10**6), expected.float(), rtol=1e-3, atol=1e-4)


def test_masked_cells_before_a_sequence_shift_it():
    layer = _layer('hierarchical', num_levels=2)
    x = torch.randn(1, 48, 16, dtype=torch.double)
    mask = torch.arange(48)[None] >= 16
    torch.testing.assert_close(layer(x, mask)[:, 16:], layer(x[:, 16:]))


@pytest.mark.parametrize('summaries', FORMS[:2] + FORMS[3:], ids=str)
def test_causal_prefixes_agree_across_lengths(summaries):
    layer = _layer(summaries, causal=True, cell_size=2)
    x = torch.randn(1, 70, 16, dtype=torch.double)
    whole = layer(x)
    for length in [1, 3, 8, 9, 17, 33, 50]:
        torch.testing.assert_close(
            layer(x[:, :length]), whole[:, :length], msg=str(length))


def test_layer_without_levels_is_full_attention():
    fma = _layer(num_levels=0, causal=True)
    full = build_attention(
        dict(
            type='FullAttention1D',
            causal=True,
            positions='rotary',
            rotary_base=50.), 16, 2).double()
    full.load_state_dict(fma.state_dict())
    x = torch.randn(2, 37, 16, dtype=torch.double)
    torch.testing.assert_close(fma(x), full(x))


@pytest.mark.parametrize('summaries', FORMS, ids=str)
def test_every_parameter_gets_a_gradient(summaries):
    for length in [5, 90]:
        layer = _layer(summaries)
        layer(torch.randn(1, length, 16).double()).square().sum().backward()
        assert [n for n, p in layer.named_parameters() if p.grad is None] == []


def test_bfloat16_autocast_stays_close():
    layer = _layer('hierarchical', dim=32, dtype=torch.float, causal=True)
    x = torch.randn(1, 90, 32)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
    torch.testing.assert_close(out.float(), layer(x), rtol=.05, atol=.1)


@pytest.mark.parametrize('kwargs, message', [
    (dict(dim=10), 'head_dim must be even, got 5'),
    (dict(rotary_base=0.), 'rotary_base must be positive, got 0'),
    (dict(positions='sine'),
     "positions must be None, 'rotary' or 'relative', got 'sine'"),
])
def test_layer_refuses(kwargs, message):
    options = dict(dim=16, num_heads=2, positions='rotary')
    with pytest.raises(ValueError, match=message):
        FMAttention1D(**{**options, **kwargs})
    # What rotary positions need is nobody else's concern.
    FMAttention1D(dim=10, num_heads=2)


def test_rotate_refuses_odd_channels():
    with pytest.raises(ValueError, match='head_dim must be even, got 5'):
        rotate(torch.randn(3, 1, 5), torch.arange(3))


def test_compiled_layer_has_no_graph_break():
    layer = _layer('hierarchical', dtype=torch.float, causal=True)
    x = torch.randn(1, 61, 16)
    # Without code generation: this asks what can be traced.
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    grads = []
    for run in (layer, compiled):
        layer.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    torch.testing.assert_close(compiled(x), layer(x))
    for got, expected in zip(*grads):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_exported_layer_is_the_layer():
    layer = FMAttention1D(
        16, 2, cell_size=4, causal=True, positions='rotary').eval()
    x = torch.randn(1, 50, 16)
    program = torch.export.export(layer, (x, ))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_function_transforms():
    x, at = torch.randn(3, 5, 2, 4), torch.arange(5.)
    torch.testing.assert_close(
        torch.func.vmap(lambda y: rotate(y, at))(x), rotate(x, at))
    slope = torch.func.grad(lambda y: rotate(y, at).square().sum())(x)
    torch.testing.assert_close(slope, 2 * x)


def test_second_gradients():
    x = torch.randn(1, 5, 2, 4, dtype=torch.float64, requires_grad=True)
    at = torch.arange(5) + .5
    assert torch.autograd.gradgradcheck(lambda x: rotate(x, at), x)
