"""Baselines over sequences against slow definitions with dense matrices."""

import math

import pytest
import torch

from fma_vision.engine.complexity import measure_complexity
from fma_vision.layers import FMMformerAttention1D, build_attention
from fma_vision.models import FMALanguageModel

DIM, HEADS = 16, 2
LENGTHS = [1, 13, 70]


# ------------------------------------------------------------- definitions
def _turned(layer, x: torch.Tensor, offset: int) -> torch.Tensor:
    """Channel i and i + D / 2 as a complex number, turned by its angle."""
    if not layer.positions:
        return x
    half = x.shape[-1] // 2
    at = torch.arange(x.shape[1], dtype=torch.double) + offset
    rate = layer.rotary_base**(-torch.arange(half, dtype=torch.double) / half)
    turn = torch.polar(torch.ones(1).double(), at[:, None, None] * rate)
    number = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([number.real, number.imag], -1)


def _qkv(layer, x):
    return layer.qkv(x).unflatten(-1, (3, HEADS, DIM // HEADS)).unbind(2)


def _softmax(logits: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Softmax over what is kept; all zero where nothing is."""
    weights = logits.exp() * keep
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def fmmformer(layer, x, mask, offset) -> torch.Tensor:
    """A banded softmax matrix plus weighted linear attention matrices."""
    query, key, value = _qkv(layer, x)
    turned = [_turned(layer, t, offset) for t in (query, key)]
    i, j = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[1])
    seen = mask[:, None, None] & (j <= i if layer.causal else i == i)
    logits = torch.einsum('bihd,bjhd->bhij', *turned) * query.shape[-1]**-.5
    near = _softmax(logits, seen & ((i - j).abs() <= layer.band))
    near = torch.einsum('bhij,bjhd->bihd', near, value)
    out = layer.field_weights.near * near
    maps = (lambda x: torch.where(x > 0, x + 1, x.exp()),
            lambda x: torch.where(x < 0, 1 - x,
                                  (-x).exp()), lambda x: torch.tanh(x) + 1)
    for phi, weight in zip(maps, layer.field_weights.far):
        a, b = phi(query), phi(key)
        turned = [_turned(layer, t, offset) for t in (a, b)]
        top = torch.einsum('bihd,bjhd->bhij', *turned) * seen
        low = (torch.einsum('bihd,bjhd->bhij', a, b) * seen).sum(-1) + 1e-6
        far = torch.einsum('bhij,bjhd->bihd', top / low[..., None], value)
        out = out + weight * far
    return layer.proj(out.flatten(2))


def _norm(norm, x: torch.Tensor) -> torch.Tensor:
    """Layer norm over heads and channels."""
    flat = x.flatten(-2)
    off = flat - flat.mean(-1, keepdim=True)
    off = off / (off.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return (norm.weight * off + norm.bias).view_as(x)


def long_short(layer, x, mask, offset) -> torch.Tensor:
    """One softmax over all tokens, most hidden, and the landmarks."""
    length, (query, *pair) = x.shape[1], _qkv(layer, x)
    size = layer.segment if layer.causal else length
    scores = layer.landmarks.weights(x).unflatten(-1, (HEADS, -1))
    at = torch.arange(length)
    long, exists, seen = [], [], []
    for first in range(0, length, size):
        part = mask[:, first:first + size, None, None]
        weights = _softmax(scores[:, first:first + size].movedim(1, -1),
                           part.movedim(1, -1))  # [B, heads, rank, T]
        long.append(
            torch.stack([
                torch.einsum('bhrt,bthd->brhd', weights,
                             t[:, first:first + size]) for t in pair
            ]))
        after = at // size > first // size if layer.causal else at >= 0
        for _ in range(scores.shape[-1]):
            exists.append(part[..., 0, 0].any(-1))
            seen.append(after)
    long = _norm(layer.norms.long, torch.cat(long, 2))
    key, value = _norm(layer.norms.short, torch.stack(pair))
    logits = torch.cat([
        torch.einsum('bihd,bjhd->bhij', _turned(layer, query, offset),
                     _turned(layer, key, offset)),
        torch.einsum('bihd,bmhd->bhim', query, long[0])
    ], -1) * query.shape[-1]**-.5
    begin = at // layer.window * layer.window - layer.window // 2
    end = at + 1 if layer.causal else begin + layer.window + (
        layer.window // 2 * 2)
    short = (at >= begin[:, None]) & (at < end[:, None])
    far = torch.stack(exists, -1)[:, None] & torch.stack(seen, -1)
    keep = torch.cat([short & mask[:, None], far], -1)[:, None]
    value = torch.cat([value, long[1]], 1)
    out = torch.einsum('bhij,bjhd->bihd', _softmax(logits, keep), value)
    return layer.proj(out.flatten(2))


def fastformer(layer, x, mask, offset) -> torch.Tensor:
    """Two global vectors, one head after the other."""
    outs, (query, key, value) = [], _qkv(layer, x)
    for head in range(HEADS):
        q, k, v = (t[:, :, head] for t in (query, key, value))
        scale = q.shape[-1]**-.5
        score = q @ layer.query_score.weight[head] * scale  # [B, N]
        mean = (_softmax(score, mask)[..., None] * q).sum(1, keepdim=True)
        product = mean * k
        score = product @ layer.key_score.weight[head] * scale
        weights = _softmax(score, mask)[..., None]
        mean = (weights * product).sum(1, keepdim=True)
        outs.append(mean * v)
    return layer.proj(torch.cat(outs, -1)) + query.flatten(2)


LAYERS = {
    'fmmformer':
    dict(type='FMMformerAttention1D', band=3),
    'fmmformer_wide':
    dict(type='FMMformerAttention1D', band=37, feature_maps=1),
    'fmmformer_diagonal':
    dict(type='FMMformerAttention1D', band=0, feature_maps=3),
    'fmmformer_rotary':
    dict(
        type='FMMformerAttention1D',
        band=5,
        feature_maps=3,
        positions='rotary',
        rotary_base=100.),
    'long_short':
    dict(type='LongShortAttention1D', window=6, rank=3, segment=10),
    'long_short_odd':
    dict(type='LongShortAttention1D', window=7, rank=1, segment=7),
    'long_short_single':
    dict(type='LongShortAttention1D', window=1, rank=2, segment=1),
    'long_short_rotary':
    dict(
        type='LongShortAttention1D',
        window=16,
        rank=2,
        segment=5,
        positions='rotary',
        rotary_base=100.),
    'fastformer':
    dict(type='Fastformer'),
}
LAYERS.update({
    f'{name}_causal': dict(cfg, causal=True)
    for name, cfg in LAYERS.items() if cfg['type'] != 'Fastformer'
})
DEFINITIONS = {
    'FMMformerAttention1D': fmmformer,
    'Fastformer': fastformer,
    'LongShortAttention1D': long_short,
}
CAUSAL = [name for name in LAYERS if name.endswith('causal')]


def _layer(name: str) -> torch.nn.Module:
    layer = build_attention(LAYERS[name], DIM, HEADS).double().eval()
    for param in layer.parameters():
        torch.nn.init.normal_(param, std=.4)
    return layer


def _definition(layer, x, mask=None, offset=0) -> torch.Tensor:
    mask = torch.ones(x.shape[:2]).bool() if mask is None else mask
    x = x.masked_fill(~mask[..., None], 0)
    return DEFINITIONS[type(layer).__name__](layer, x, mask, offset)


def _gradients(layer, x, out, weight):
    params = [x, *layer.parameters()]
    return torch.autograd.grad((out * weight).sum(), params)


# ------------------------------------------------------------------- tests
@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('name', LAYERS)
def test_equals_definition(name, length):
    """Outputs and gradients, wherever the sequence starts."""
    layer = _layer(name)
    x = torch.randn(2, length, DIM, dtype=torch.double, requires_grad=True)
    out, expected = layer(x), _definition(layer, x)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(x)
    for got, wanted in zip(
            _gradients(layer, x, out, weight),
            _gradients(layer, x, expected, weight)):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(layer(x, offset=1000), expected)
    # A batch is computed row by row.
    torch.testing.assert_close(layer(x[1:])[0], out[1])


@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('name', LAYERS)
def test_masked_equals_definition(name, length):
    """Masked tokens may hold anything; the last row has no real token."""
    layer = _layer(name)
    mask = torch.rand(3, length) < .6
    mask[:, length // 2:length // 2 + 9] = False  # wider than a band
    mask[0, 0], mask[-1] = True, False
    clean = torch.randn(3, length, DIM, dtype=torch.double)
    weight = torch.randn_like(clean).masked_fill(~mask[..., None], 0)
    for filling in (0., math.nan, math.inf):
        x = clean.masked_fill(~mask[..., None], filling).requires_grad_()
        out, expected = layer(x, mask, 7), _definition(layer, x, mask, 7)
        assert out.isfinite().all()
        torch.testing.assert_close(out[mask], expected[mask])
        # Nothing is left of an empty row but what biases give.
        torch.testing.assert_close(out[-1], expected[-1])
        got = _gradients(layer, x, out, weight)
        for grad, wanted in zip(got, _gradients(layer, x, expected, weight)):
            torch.testing.assert_close(grad, wanted)
        assert not got[0][~mask].any()


@pytest.mark.parametrize('name', CAUSAL)
def test_causal_output_ignores_later_tokens(name):
    """Not even by rounding, and a prefix is a text of its own."""
    layer = _layer(name).float()
    x = torch.randn(2, 150, DIM)
    for at in (1, 31, 32, 64, 100):
        changed = x.clone()
        changed[:, at:] = 1e3 * torch.randn(2, 150 - at, DIM)
        torch.testing.assert_close(
            layer(x)[:, :at], layer(changed)[:, :at], rtol=0, atol=0)
        assert not torch.allclose(layer(x)[:, at:], layer(changed)[:, at:])
        torch.testing.assert_close(layer(x)[:, :at], layer(x[:, :at]))


@pytest.mark.parametrize('name', LAYERS)
def test_float32_stays_at_rounding(name):
    layer = _layer(name).float()
    x = torch.randn(1, 500, DIM)
    expected = layer.double()(x.double()).float()
    torch.testing.assert_close(
        layer.float()(x), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('name', LAYERS)
def test_bfloat16_autocast_stays_close(name):
    layer = build_attention(LAYERS[name], DIM, HEADS)
    x = torch.randn(2, 70, DIM)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
        out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), layer(x), rtol=.05, atol=.03)


@pytest.mark.parametrize('name', LAYERS)
def test_in_the_language_model(name):
    """Built by config, it runs, trains and takes masks."""
    cfg = dict(LAYERS[name])
    causal = cfg.pop('causal', False)
    model = FMALanguageModel(
        13,
        DIM,
        depth=2,
        num_heads=HEADS,
        causal=causal,
        positions='rotary' if cfg.pop('positions', None) else 'none',
        attn=cfg,
        attn_drop_rate=.1,
        drop_rate=.1)
    tokens = torch.randint(12, (2, 40))
    mask = torch.arange(40) < torch.tensor([[40], [23]])
    loss = model.loss(tokens, key_mask=mask)
    loss.backward()
    assert loss.isfinite()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []
    model.eval()
    out = model(tokens, mask)
    torch.testing.assert_close(out[1, :23], model(tokens[1:, :23])[0])
    torch.testing.assert_close(out, model(tokens, mask, offset=5))


# Products over an axis of one entry are no matrix products to the counter.
COUNTED = [
    n for n, cfg in LAYERS.items()
    if 1 not in (cfg.get('rank'), cfg.get('window'))
]


@pytest.mark.parametrize('name', COUNTED)
@pytest.mark.parametrize('length', [13, 200])
def test_macs_are_what_is_computed(name, length):
    layer = _layer(name)
    found = measure_complexity(layer, torch.randn(1, length, DIM).double())
    linear = 4 * length * DIM * DIM
    assert found.macs == linear + layer.attention_macs(length)


# Causal landmarks grow in number with the text.
LINEAR = [n for n in LAYERS if not n.startswith('long') or n not in CAUSAL]


@pytest.mark.parametrize('name', LINEAR)
def test_costs_grow_like_the_length(name):
    layer = _layer(name)
    ratio = layer.attention_macs(2**16) / layer.attention_macs(2**12)
    assert ratio == pytest.approx(16, rel=.01)


# --------------------------------------------------------------- FMMformer
def test_fmmformer_starts_with_the_far_field_alone():
    layer = FMMformerAttention1D(DIM, HEADS, feature_maps=3)
    assert not layer.field_weights.near.any()
    assert (layer.field_weights.far == 1 / 3).all()
    assert layer.field_weights.no_weight_decay() == {'near', 'far'}


def test_fmmformer_full_band_is_full_attention():
    layer = FMMformerAttention1D(DIM, HEADS, band=50, causal=True).double()
    torch.nn.init.ones_(layer.field_weights.near)
    torch.nn.init.zeros_(layer.field_weights.far)
    full = build_attention(
        dict(type='FullAttention1D', causal=True), DIM, HEADS).double()
    full.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(2, 50, DIM).double()
    torch.testing.assert_close(layer(x), full(x))


@pytest.mark.parametrize('kwargs, message', [
    (dict(band=-1), 'band must be an int of at least 0, got -1'),
    (dict(band=2.5), 'band must be an int, got 2.5'),
    (dict(feature_maps=0), r'feature_maps must be in \[1, 3\], got 0'),
    (dict(feature_maps=4), r'feature_maps must be in \[1, 3\], got 4'),
    (dict(positions='sine'), "positions must be None or 'rotary'"),
    (dict(dim=6, positions='rotary'), 'head_dim must be even, got 3'),
    (dict(attn_drop=1.), r'attn_drop must be in \[0, 1\), got 1.0'),
])
def test_fmmformer_refuses(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FMMformerAttention1D(**{**dict(dim=DIM, num_heads=HEADS), **kwargs})


# ------------------------------------------------- Transformer-LS, Fastformer
def test_long_short_without_landmarks_left_is_a_window():
    """Before the first segment ends, a causal query sees its window only."""
    layer = _layer('long_short_causal')
    x = torch.randn(1, 9, DIM).double()
    expected = layer(x)
    torch.nn.init.normal_(layer.landmarks.weights.weight)
    torch.nn.init.normal_(layer.norms.long.weight)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('cfg, message', [
    (dict(type='LongShortAttention1D',
          window=0), 'window must be an int of at least 1, got 0'),
    (dict(type='LongShortAttention1D',
          rank=0), 'rank must be an int of at least 1, got 0'),
    (dict(type='LongShortAttention1D',
          segment=True), 'segment must be an int, got True'),
    (dict(type='LongShortAttention1D',
          positions='learned'), "positions must be None or 'rotary'"),
    (dict(type='Fastformer', causal=True), 'causal must be False, got True'),
    (dict(type='Fastformer',
          positions='rotary'), "positions must be None, got 'rotary'"),
])
def test_others_refuse(cfg, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build_attention(cfg, DIM, HEADS)


def test_layers_without_a_stream_say_so():
    model = FMALanguageModel(
        13, DIM, depth=1, attn=dict(type='LongShortAttention1D')).eval()
    with pytest.raises(TypeError, match='LongShortAttention1D has no stream'):
        model.init_state()
    with pytest.raises(ValueError, match='Fastformer .* no causal form'):
        FMALanguageModel(13, DIM, attn=dict(type='Fastformer'))
