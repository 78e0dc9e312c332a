"""Baselines over maps against slow definitions, token by token."""

import math
from itertools import product

import pytest
import torch

from fma_vision.engine.complexity import measure_complexity
from fma_vision.layers import NeighborhoodAttention, build_attention
from fma_vision.models import FMATransformer

DIM, HEADS = 16, 2
GRIDS = [(1, 1), (1, 13), (3, 2), (5, 9), (11, 8)]


# ------------------------------------------------------------- definitions
def _qkv(layer, x):
    """Query, key, value ``[B, H * W, heads, head_dim]``."""
    qkv = layer.qkv(x).unflatten(-1, (3, HEADS, DIM // HEADS))
    return qkv.flatten(1, 2).unbind(2)


def _softmax(logits: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Softmax over what is kept; all zero where nothing is."""
    weights = logits.exp() * keep
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def _window(height: int, width: int, size: int) -> torch.Tensor:
    """Which tokens each sees, ``[H * W, H * W]``, by NATTEN's rule."""

    def seen(n: int) -> torch.Tensor:
        table = torch.zeros(n, n).bool()
        for i in range(n):
            first = min(max(i - size // 2, 0), max(n - size, 0))
            table[i, first:first + size] = True
        return table

    both = seen(height)[:, None, :, None] & seen(width)[None, :, None]
    return both.reshape(height * width, -1)


def _near(layer, x, mask) -> torch.Tensor:
    query, key, value = _qkv(layer, x)
    logits = torch.einsum('bihd,bjhd->bhij', query, key)
    keep = _window(*x.shape[1:3], layer.kernel_size) & mask.flatten(1)[:, None,
                                                                       None]
    weights = _softmax(logits * query.shape[-1]**-.5, keep)
    return torch.einsum('bhij,bjhd->bihd', weights, value)


def neighborhood(layer, x, mask) -> torch.Tensor:
    return layer.proj(_near(layer, x, mask).reshape(x.shape))


def fmmformer(layer, x, mask) -> torch.Tensor:
    """A windowed softmax matrix plus weighted linear attention matrices."""
    query, key, value = _qkv(layer, x)
    out = layer.field_weights.near * _near(layer, x, mask)
    maps = (lambda x: torch.where(x > 0, x + 1, x.exp()),
            lambda x: torch.where(x < 0, 1 - x,
                                  (-x).exp()), lambda x: torch.tanh(x) + 1)
    for phi, weight in zip(maps, layer.field_weights.far):
        scores = torch.einsum('bihd,bjhd->bhij', phi(query), phi(key))
        scores = scores * mask.flatten(1)[:, None, None]
        scores = scores / (scores.sum(-1, keepdim=True) + 1e-6)
        far = torch.einsum('bhij,bjhd->bihd', scores, value)
        out = out + weight * far
    return layer.proj(out.reshape(x.shape))


def swin(layer, x, mask) -> torch.Tensor:
    """Dense attention where tokens share a window, with its bias."""
    query, key, value = _qkv(layer, x)
    size, same, offset = layer.window_size, [], []
    for n in x.shape[1:3]:
        side, at = min(size, n), torch.arange(n)
        shift = size // 2 if layer.shift and n > side else 0
        label = (at - shift).div(side, rounding_mode='floor')
        same.append(label[:, None] == label)
        # Clamped offsets are of tokens that no window joins.
        offset.append((at[:, None] - at).clamp(1 - size, size - 1) + size - 1)
    table = layer.relative_position_bias_table.unflatten(0, (2 * size - 1, -1))
    bias = table[offset[0][:, None, :, None], offset[1][None, :, None]]
    keep = same[0][:, None, :, None] & same[1][None, :, None]
    tokens = 2 * (value.shape[1], )
    keep = keep.reshape(tokens) & mask.flatten(1)[:, None, None]
    logits = torch.einsum('bihd,bjhd->bhij', query, key) * key.shape[-1]**-.5
    logits = logits + bias.reshape(*tokens, -1).permute(2, 0, 1)
    out = torch.einsum('bhij,bjhd->bihd', _softmax(logits, keep), value)
    return layer.proj(out.reshape(x.shape))


def mano(layer, x, mask) -> torch.Tensor:
    """The shared window layer on each scale, pooled and joined by loops."""
    ratio, maps = layer.ratio, [(x, mask)]
    while max(maps[-1][0].shape[1:3]) > layer.window.window_size and len(
            maps) != layer.num_scales:
        x, mask = maps[-1]
        grid = [-(-s // ratio) for s in x.shape[1:3]]
        small = torch.zeros(len(x), *grid, DIM).double()
        real = torch.zeros(len(x), *grid).bool()
        for b, i, j in product(*map(range, (len(x), *grid))):
            rows = range(ratio * i, min(ratio * i + ratio, x.shape[1]))
            cols = range(ratio * j, min(ratio * j + ratio, x.shape[2]))
            cells = [(r, c) for r, c in product(rows, cols) if mask[b, r, c]]
            if cells:
                real[b, i, j] = True
                values = torch.stack([
                    x[b, r, c] if layer.down is None else
                    layer.down.weight[:, :, r % ratio,
                                      c % ratio] @ x[b, r, c] * ratio**2
                    for r, c in cells
                ])
                small[b, i, j] = values.mean(0)
                if layer.down is not None:
                    small[b, i, j] += layer.down.bias
        maps.append((small, real))
    outs = [swin(layer.window, *pair) for pair in maps]
    result = outs[-1]
    for i, out in enumerate(outs[-2::-1]):
        rows, cols = (torch.arange(s) // ratio for s in out.shape[1:3])
        result = out + result[:, rows][:, :, cols] / (i + 1)
    return result


def long_short(layer, x, mask) -> torch.Tensor:
    """One softmax over all tokens, most hidden, and the landmarks."""

    def norm(norm, t: torch.Tensor) -> torch.Tensor:
        off = t.flatten(-2) - t.flatten(-2).mean(-1, keepdim=True)
        off = off / (off.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        return (norm.weight * off + norm.bias).view_as(t)

    query, *pair = _qkv(layer, x)
    scores = layer.landmarks.weights(x.flatten(1, 2))
    scores = scores.unflatten(-1, (HEADS, -1)).movedim(1, -1)
    real = mask.flatten(1)
    weights = _softmax(scores, real[:, None, None])  # [B, heads, rank, N]
    long = [torch.einsum('bhrt,bthd->brhd', weights, t) for t in pair]
    key, value = (torch.cat(
        [norm(layer.norms.short, t),
         norm(layer.norms.long, s)], 1) for t, s in zip(pair, long))

    def seen(n: int) -> torch.Tensor:
        side, at = layer.window, torch.arange(n)
        begin = (at // side * side - side // 2)[:, None]
        return (at >= begin) & (at < begin + side + side // 2 * 2)

    near = (seen(x.shape[1])[:, None, :, None]
            & seen(x.shape[2])[None, :, None]).reshape(2 * (real.shape[1], ))
    far = real.any(-1)[:, None, None].expand(-1, len(near), scores.shape[2])
    keep = torch.cat([near & real[:, None], far], -1)[:, None]
    logits = torch.einsum('bihd,bjhd->bhij', query, key)
    weights = _softmax(logits * query.shape[-1]**-.5, keep)
    out = torch.einsum('bhij,bjhd->bihd', weights, value)
    return layer.proj(out.reshape(x.shape))


def global_filter(layer, x, mask) -> torch.Tensor:
    """Discrete Fourier transforms as matrices over all frequencies."""
    height, width = x.shape[1:3]
    rows, half = layer.size[0], layer.size[1] // 2
    number = torch.view_as_complex(layer.filter)

    def at(u: float, v: float) -> torch.Tensor:
        """Between the four stored frequencies around (u, v) cycles."""
        u, v = u * rows, min(v * layer.size[1], half)
        a, b = math.floor(u + 1e-9), math.floor(v + 1e-9)
        s, t = u - a, v - b
        value = 0
        for i, p in ((a, 1 - s), (a + 1, s)):
            for j, q in ((b, 1 - t), (min(b + 1, half), t)):
                value = value + p * q * number[i % rows, j]
        return value

    def dft(n: int) -> torch.Tensor:
        index = torch.arange(n).double()
        angle = -2 * math.pi * index[:, None] * index / n
        return torch.polar(torch.full((n, n), n**-.5).double(), angle)

    left, right = dft(height), dft(width)
    spectrum = torch.einsum('uh,vw,bhwc->buvc', left, right, x + 0j)
    cells = []
    for i, j in product(range(height), range(width)):
        if j <= width // 2:
            cells.append(at(i / height, j / width))
        else:  # a real filter: the conjugate of its mirror image
            cells.append(at(-i % height / height, (width - j) / width).conj())
    spectrum = spectrum * torch.stack(cells).view(height, width, DIM)
    return torch.einsum('uh,vw,buvc->bhwc', left.conj(), right.conj(),
                        spectrum).real


LAYERS = {
    'neighborhood':
    dict(type='NeighborhoodAttention', kernel_size=3),
    'neighborhood_wide':
    dict(type='NeighborhoodAttention', kernel_size=7),
    'neighborhood_itself':
    dict(type='NeighborhoodAttention', kernel_size=1),
    'fmmformer':
    dict(type='FMMformerAttention2D', kernel_size=5),
    'fmmformer_three_maps':
    dict(type='FMMformerAttention2D', kernel_size=3, feature_maps=3),
    'mano':
    dict(type='MANOAttention', window_size=2),
    'mano_shifted':
    dict(type='MANOAttention', window_size=3, shift=True, num_scales=2),
    'mano_conv':
    dict(type='MANOAttention', window_size=2, ratio=3, downsample='conv'),
    'long_short':
    dict(type='LongShortAttention', window=3, rank=2),
    'long_short_even':
    dict(type='LongShortAttention', window=4, rank=3),
    'filter':
    dict(type='GlobalFilter', size=(5, 9)),
    'filter_even':
    dict(type='GlobalFilter', size=8),
    'filter_of_one':
    dict(type='GlobalFilter', size=1),
}
DEFINITIONS = {
    'FMMformerAttention2D': fmmformer,
    'GlobalFilter': global_filter,
    'LongShortAttention': long_short,
    'MANOAttention': mano,
    'NeighborhoodAttention': neighborhood,
}


def _layer(name: str) -> torch.nn.Module:
    layer = build_attention(LAYERS[name], DIM, HEADS).double().eval()
    for param in layer.parameters():
        # A convolution adds more of its weights up.
        torch.nn.init.normal_(param, std=.4 if param.ndim < 4 else .1)
    return layer


def _definition(layer, x, mask=None) -> torch.Tensor:
    mask = torch.ones(x.shape[:3]).bool() if mask is None else mask
    x = x.masked_fill(~mask[..., None], 0)
    return DEFINITIONS[type(layer).__name__](layer, x, mask)


def _gradients(layer, x, out, weight):
    params = [x, *layer.parameters()]
    return torch.autograd.grad(
        (out * weight).sum(), params, materialize_grads=True)


# ------------------------------------------------------------------- tests
@pytest.mark.parametrize('grid', GRIDS, ids=str)
@pytest.mark.parametrize('name', LAYERS)
def test_equals_definition(name, grid):
    """Outputs and gradients, on any grid."""
    layer = _layer(name)
    x = torch.randn(2, *grid, DIM, dtype=torch.double, requires_grad=True)
    out, expected = layer(x), _definition(layer, x)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(x)
    for got, wanted in zip(
            _gradients(layer, x, out, weight),
            _gradients(layer, x, expected, weight)):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize('grid', GRIDS, ids=str)
@pytest.mark.parametrize('name', LAYERS)
def test_masked_equals_definition(name, grid):
    """Masked tokens may hold anything; the last map has no real token."""
    layer = _layer(name)
    mask = torch.rand(3, *grid) < .5
    mask[0, 0, 0], mask[-1] = True, False
    clean = torch.randn(3, *grid, DIM, dtype=torch.double)
    weight = torch.randn_like(clean).masked_fill(~mask[..., None], 0)
    for filling in (0., math.nan, math.inf):
        x = clean.masked_fill(~mask[..., None], filling).requires_grad_()
        out, expected = layer(x, mask), _definition(layer, x, mask)
        assert out.isfinite().all()
        torch.testing.assert_close(out[mask], expected[mask])
        got = _gradients(layer, x, out, weight)
        for grad, wanted in zip(got, _gradients(layer, x, expected, weight)):
            torch.testing.assert_close(grad, wanted)
        assert not got[0][~mask].any()
        # Nothing is left of an empty map but what a bias gives.
        torch.testing.assert_close(out[-1], expected[-1])


@pytest.mark.parametrize('name', LAYERS)
def test_float32_stays_at_rounding(name):
    layer = _layer(name).float()
    x = torch.randn(1, 21, 34, DIM)
    expected = layer.double()(x.double()).float()
    torch.testing.assert_close(
        layer.float()(x), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('name', LAYERS)
def test_bfloat16_autocast_stays_close(name):
    layer = build_attention(LAYERS[name], DIM, HEADS)
    x = torch.randn(2, 7, 10, DIM)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
        out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), layer(x), rtol=.05, atol=.03)


@pytest.mark.parametrize('name', LAYERS)
def test_in_the_backbone(name):
    """Built by config, it runs and trains at any size."""
    model = FMATransformer(
        arch=dict(embed_dims=8, depths=[2, 1], num_heads=[2, 2]),
        attn=LAYERS[name],
        drop_rate=.1,
        out_indices=(0, 1))
    for size in [(32, 32), (41, 70)]:
        maps = model(torch.randn(2, 3, *size))
        assert [m.shape[2:] for m in maps
                ] == [tuple(-(-s // side) for s in size) for side in (4, 8)]
    sum(m.square().sum() for m in maps).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize('grid', [(3, 2), (16, 12), (11, 29)], ids=str)
@pytest.mark.parametrize(
    'name', [n for n in LAYERS if 'mano' not in n and n != 'filter_of_one'])
def test_macs_are_what_is_computed(name, grid):
    layer = _layer(name)
    found = measure_complexity(layer, torch.randn(1, *grid, DIM).double())
    linear = 4 * grid[0] * grid[1] * DIM * DIM
    if 'filter' in name:  # no linear layers; its products go unseen
        linear = -4 * grid[0] * (grid[1] // 2 + 1) * DIM
    assert found.macs == linear + layer.attention_macs(*grid)


@pytest.mark.parametrize('name', LAYERS)
def test_costs_grow_like_the_area(name):
    layer = _layer(name)
    ratio = layer.attention_macs(512, 512) / layer.attention_macs(128, 128)
    assert ratio == pytest.approx(16, rel=.1)


# ------------------------------------------------------------ neighborhood
def test_every_query_sees_as_many_keys():
    """With equal logits, the output is the mean over a full window."""
    layer = NeighborhoodAttention(DIM, 1, kernel_size=5).double()
    torch.nn.init.zeros_(layer.qkv.weight)
    torch.nn.init.zeros_(layer.qkv.bias)
    with torch.no_grad():
        layer.qkv.weight[2 * DIM:] = torch.eye(DIM)
        layer.proj.weight.copy_(torch.eye(DIM))
        layer.proj.bias.zero_()
    x = torch.zeros(1, 12, 9, DIM).double()
    x[0, 0, 0, 0] = 25.
    out = layer(x)[0, ..., 0]
    # The corner is in the windows of the 3 x 3 queries next to it.
    expected = torch.zeros(12, 9).double()
    expected[:3, :3] = 1.
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('kwargs, message', [
    (dict(kernel_size=4), 'kernel_size must be an odd and positive int'),
    (dict(kernel_size=-1), 'kernel_size must be .* int, got -1'),
    (dict(kernel_size=3.), r'kernel_size must be an int, got 3\.0'),
    (dict(attn_drop=-.1), r'attn_drop must be in \[0, 1\), got -0.1'),
    (dict(num_heads=3), 'dim=16 .* num_heads=3'),
])
@pytest.mark.parametrize('kind', ['Neighborhood', 'FMMformer'])
def test_windows_refuse(kind, kwargs, message):
    name = dict(
        Neighborhood='NeighborhoodAttention', FMMformer='FMMformerAttention2D')
    with pytest.raises((TypeError, ValueError), match=message):
        build_attention(
            dict(
                type=name[kind],
                **{
                    k: v
                    for k, v in kwargs.items() if k != 'num_heads'
                }), DIM, kwargs.get('num_heads', HEADS))


# ------------------------------------------------------ MANO, GFNet, others
def test_mano_scales():
    layer = build_attention(
        dict(type='MANOAttention', window_size=4, block_index=1), DIM, HEADS)
    assert layer.grids(13, 20) == [(13, 20), (7, 10), (4, 5), (2, 3)]
    assert layer.grids(4, 3) == [(4, 3)]
    assert layer.window.shift
    # One set of weights, whatever the number of scales.
    assert {n.split('.')[0] for n, _ in layer.named_parameters()} == {'window'}


@pytest.mark.parametrize('name, grid', [('mano', (16, 16)),
                                        ('mano_shifted', (12, 24)),
                                        ('mano_conv', (18, 36))])
def test_mano_macs_are_what_is_computed(name, grid):
    """On grids that no scale has to fill up."""
    layer = _layer(name)
    found = measure_complexity(layer, torch.randn(1, *grid, DIM).double())
    linear = 4 * grid[0] * grid[1] * DIM * DIM
    assert found.macs == linear + layer.attention_macs(*grid)
    assert len(layer.grids(*grid)) > 1


def test_mano_convolution_stays_in_the_graph():
    """Also where the map needs no copy: some trainers insist."""
    layer = _layer('mano_conv')
    layer(torch.randn(1, 2, 2, DIM).double()).sum().backward()
    assert all(not p.grad.any() for p in layer.down.parameters())


def test_mano_sees_the_whole_map():
    layer = _layer('mano')
    x = torch.randn(1, 8, 8, DIM).double()
    changed = x.clone()
    changed[:, 7, 7] += 1
    assert (layer(x) != layer(changed)).any(-1).all()


def test_filter_moves_with_the_map():
    """A circular convolution commutes with circular shifts."""
    layer = _layer('filter')
    x = torch.randn(2, 11, 8, DIM).double()
    shifted = layer(x.roll((3, 5), (1, 2)))
    torch.testing.assert_close(shifted, layer(x).roll((3, 5), (1, 2)))


@pytest.mark.parametrize('grid', [(5, 9), (10, 18), (6, 31)], ids=str)
def test_filter_of_ones_is_the_identity_at_any_size(grid):
    layer = _layer('filter')
    with torch.no_grad():
        layer.filter.copy_(torch.tensor([1., 0.]).expand_as(layer.filter))
    x = torch.randn(1, *grid, DIM).double()
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize('cfg, message', [
    (dict(type='MANOAttention', ratio=1), 'ratio .* at least 2, got 1'),
    (dict(type='MANOAttention', num_scales=0), 'num_scales .* got 0'),
    (dict(type='MANOAttention',
          downsample='max'), "downsample must be 'avg' or 'conv', got 'max'"),
    (dict(type='MANOAttention', window_size=0), 'window_size .* got 0'),
    (dict(type='GlobalFilter', size=0), 'size .* at least 1, got 0'),
    (dict(type='GlobalFilter',
          size=(1, 2, 3)), r'size must be an int or \(an int, an int\)'),
    (dict(type='LongShortAttention', window=0), 'window .* got 0'),
    (dict(type='LongShortAttention', rank=0), 'rank .* got 0'),
    (dict(type='FullAttention', attn_drop=1.), 'attn_drop .* got 1.0'),
    (dict(type='WindowAttention', attn_drop=2.), 'attn_drop .* got 2.0'),
    (dict(type='WindowAttention', window_size=3.), r'window_size .* got 3\.0'),
])
def test_others_refuse(cfg, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build_attention(cfg, DIM, HEADS)


@pytest.mark.parametrize('name', LAYERS)
def test_layers_refuse_bad_tokens(name):
    layer = _layer(name)
    for shape in [(1, 4, DIM), (1, 4, 4, 8), (1, 0, 4, DIM)]:
        with pytest.raises(ValueError, match=r'x must be \[B, H, W, 16\]'):
            layer(torch.zeros(shape).double())
    x = torch.zeros(1, 4, 4, DIM).double()
    for mask in [torch.ones(1, 4, 4), torch.ones(1, 4, 5).bool()]:
        with pytest.raises(ValueError, match='key_mask must be bool'):
            layer(x, mask)
