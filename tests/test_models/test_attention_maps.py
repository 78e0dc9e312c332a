"""Weights of attention layers as maps: what values they make outputs of."""
import pytest
import torch

from fma_vision import layers
from fma_vision.models import FMATransformer
from fma_vision.visualization.attention_maps import (attention_maps,
                                                     map_layers, record_inputs)

LAYERS = [
    layers.FMAttention2D(16, 2),
    layers.FMAttention2D(16, 2, cell_size=2, rank=2, mass=False),
    layers.FMAttention2D(16, 2, pool_queries=True),
    layers.FMAttention2D(16, 2, positions='rotary'),
    layers.FMAttention2D(16, 2, positions='relative', relative_slope=1.),
    # At the start, averages.
    layers.FMAttention2D(16, 2, summaries='grouped_conv'),
    layers.FMAttention2D(16, 2, summaries='hierarchical'),
    layers.FMAttention2D(16, 2, attn_drop=.5, proj_drop=.5),
    layers.WindowAttention(16, 2, 8),
    layers.WindowAttention(16, 2, 8, shift=True),
    layers.NeighborhoodAttention(16, 2, 5),
    layers.FullAttention(16, 2),
    layers.FMMformerAttention2D(16, 2),
]
QUERIES = [(0, 0), (12, 20), (5, 9)]


@pytest.mark.parametrize('grid', [(13, 21), (3, 2), (1, 1)], ids=str)
@pytest.mark.parametrize(
    'layer', LAYERS, ids=lambda layer: type(layer).__name__)
def test_weights_times_values_is_the_output(layer, grid) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, *grid, 16)
    queries = [(i % grid[0], j % grid[1]) for i, j in QUERIES]
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.train()
    maps = attention_maps(layer, x, queries)
    assert layer.training
    assert maps.shape == (3, 2, *grid) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum((-1, -2)), torch.ones(3, 2))
    assert (maps >= 0).all()
    layer.eval()
    with torch.no_grad():
        value = layer.qkv(x)[0].unflatten(-1, (3, 2, 8))[..., 2, :, :]
        heads = torch.einsum('qhxy,xyhc->qhc', maps, value)
        out = torch.stack([layer(x)[0, row, col] for row, col in queries])
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
    assert [[tuple(x.shape) for x in calls]
            for calls in inputs.values()] == [[(1, 10, 13, 8)],
                                              [(1, 5, 7, 16)], [(1, 5, 7, 16)]]
    assert not any(layer._forward_pre_hooks for layer in found.values())
    # A window on every scale: not one map.
    mano = FMATransformer(arch, attn=dict(type='MANOAttention'))
    assert not map_layers(mano)


def test_hooks_and_modes_around_it() -> None:
    layer, x = layers.FMAttention2D(16, 2), torch.randn(1, 9, 9, 16)
    expected = attention_maps(layer, x, [(4, 4)])
    with record_inputs(dict(a=layer)) as inputs, torch.inference_mode():
        layer(x)
        found = attention_maps(layer, inputs['a'][0], [(4, 4)])
    assert len(inputs['a']) == 1  # not the numbers of its own
    torch.testing.assert_close(found, expected)


def test_refusals() -> None:
    layer = layers.FullAttention(16, 2)
    with pytest.raises(ValueError, match=r'x must be \[1, H, W, dim\], got'):
        attention_maps(layer, torch.zeros(2, 4, 4, 16), [(0, 0)])
    with pytest.raises(ValueError, match='queries must lie in 4 x 5 tokens'):
        attention_maps(layer, torch.zeros(1, 4, 5, 16), [(0, 5)])
    with pytest.raises(ValueError, match='queries must be at least one'):
        attention_maps(layer, torch.zeros(1, 4, 5, 16), [])
    # Values that are normed first: weights would not be these.
    for other in (layers.LongShortAttention(16,
                                            2), layers.MANOAttention(16, 2)):
        with pytest.raises(ValueError, match='layer must be one of FMAttent'):
            attention_maps(other, torch.zeros(1, 8, 8, 16), [(0, 0)])

    class Pooled(layers.FullAttention):

        def forward(self, x, key_mask=None):
            return super().forward(x[:, ::2, ::2])

    with pytest.raises(ValueError, match='Pooled does not project each token'):
        attention_maps(Pooled(16, 2), torch.zeros(1, 4, 4, 16), [(0, 0)])
