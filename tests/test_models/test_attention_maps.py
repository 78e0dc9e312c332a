"""Weights of attention layers as maps: what values they make outputs of."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import pytest
import torch

pytest.importorskip('mmengine')

from fma_vision import layers
from fma_vision.models import FMATransformer
from fma_vision.utils.attention_maps import (attention_maps, map_layers,
                                             record_inputs)

LAYERS = [
    layers.FMAttention2D(16, 2),
    layers.FMAttention2D(16, 2, cell_size=2, rank=2, mass=False),
    layers.FMAttention2D(16, 2, pool_queries=True),
    layers.FMAttention2D(16, 2, positions='rotary'),
    layers.FMAttention2D(16, 2, positions='relative', relative_slope=1.),
    layers.WindowAttention(16, 2, 8),
    layers.WindowAttention(16, 2, 8, shift=True),
    layers.NeighborhoodAttention(16, 2, 5),
    layers.FullAttention(16, 2),
]
QUERIES = [(0, 0), (12, 20), (5, 9)]


@pytest.mark.parametrize(
    'layer', LAYERS, ids=lambda layer: type(layer).__name__)
def test_weights_times_values_is_the_output(layer) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 13, 21, 16)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    maps = attention_maps(layer, x, QUERIES)
    assert maps.shape == (3, 2, 13, 21) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum((-1, -2)), torch.ones(3, 2))
    assert (maps >= 0).all()
    with torch.no_grad():
        value = layer.qkv(x)[0].unflatten(-1, (3, 2, 8))[..., 2, :, :]
        heads = torch.einsum('qhxy,xyhc->qhc', maps, value)
        out = torch.stack([layer(x)[0, row, col] for row, col in QUERIES])
        torch.testing.assert_close(
            layer.proj(heads.flatten(1)), out, atol=1e-5, rtol=1e-4)
    for key, old in layer.state_dict().items():
        assert torch.equal(old, before[key])


def test_full_attention_is_its_softmax() -> None:
    torch.manual_seed(0)
    layer, x = layers.FullAttention(16, 2), torch.randn(1, 5, 7, 16)
    with torch.no_grad():
        query, key, _ = (part[0] for part in layer.project(x))
        logits = torch.einsum('hc,xyhc->hxy', query[2, 3], key) * 8**-.5
    expected = logits.flatten(1).softmax(-1).view(2, 5, 7)
    torch.testing.assert_close(attention_maps(layer, x, [(2, 3)])[0], expected)


def test_far_tokens_share_the_weight_of_their_summary() -> None:
    torch.manual_seed(0)
    layer = layers.FMAttention2D(16, 2, cell_size=4)
    found = attention_maps(layer, torch.randn(1, 32, 32, 16), [(1, 2)])[0]
    cells = found.unfold(1, 4, 4).unfold(2, 4, 4).flatten(-2)  # [2, 8, 8, 16]
    spread = cells.amax(-1) - cells.amin(-1)
    assert (spread[:, :2, :2] > 1e-5).all()  # near: one by one
    spread[:, :2, :2] = 0
    assert (spread < 1e-7).all()
    # At the second level, two by two cells as one.
    assert (found[:, 16:24, 16:24] - found[:, 16:17, 16:17]).abs().max() < 1e-7


def test_layers_of_a_backbone() -> None:
    arch = dict(embed_dims=8, depths=[1, 2], num_heads=[1, 2])
    model = FMATransformer(arch, attn=dict(type='FMAttention2D')).eval()
    found = map_layers(model)
    assert list(found) == [
        f'stages.{i}.blocks.{j}.attn' for i, j in [(0, 0), (1, 0), (1, 1)]
    ]
    with record_inputs(found) as inputs, torch.no_grad():
        model(torch.randn(1, 3, 40, 52))
    assert [tuple(x.shape) for x in inputs.values()] == [(1, 10, 13, 8),
                                                         (1, 5, 7, 16),
                                                         (1, 5, 7, 16)]
    assert not any(layer._forward_pre_hooks for layer in found.values())
    # A window on every scale: not one map.
    mano = FMATransformer(arch, attn=dict(type='MANOAttention'))
    assert not map_layers(mano)


def test_refusals() -> None:
    layer = layers.FullAttention(16, 2)
    with pytest.raises(ValueError, match=r'x must be \[1, H, W, dim\], got'):
        attention_maps(layer, torch.zeros(2, 4, 4, 16), [(0, 0)])
    with pytest.raises(ValueError, match='queries must lie in 4 x 5 tokens'):
        attention_maps(layer, torch.zeros(1, 4, 5, 16), [(0, 5)])

    class Pooled(layers.FullAttention):

        def forward(self, x, key_mask=None):
            return super().forward(x[:, ::2, ::2])

    with pytest.raises(ValueError, match='Pooled does not project each token'):
        attention_maps(Pooled(16, 2), torch.zeros(1, 4, 4, 16), [(0, 0)])
