"""Models without memory: built and run on the meta device."""

from typing import Callable

import pytest
import timm
import torch
from networks import NETWORKS, backbone, joined

import fma_vision  # noqa: F401  registers the timm models
from fma_vision.layers import AbsolutePosition

PLAIN = dict(type='FMAttention2D', cell_size=2)
ABSOLUTE = dict(type='AbsolutePosition', size=(5, 5))
OPTIONS = {
    'learned positions': dict(position=ABSOLUTE),
    'no positions': dict(position='none'),
    'checkpointing': dict(with_cp=True),
    'frozen': dict(frozen_stages=0, norm_eval=True),
    'dropout': dict(drop_rate=.1),
}
SLOPE = dict(
    type='FMAttention2D',
    cell_size=2,
    rank=2,
    positions='relative',
    relative_slope=1.,
    attn_drop=.1)
BUILDERS = {
    **NETWORKS,
    **{
        name: lambda options=options: backbone(PLAIN, **options)
        for name, options in OPTIONS.items()
    },
    'slope and dropout':
    lambda: backbone(SLOPE),
    'timm':
    lambda:
    (timm.create_model('fma_nano', num_classes=3), torch.randn(1, 3, 64, 64)),
}


@pytest.mark.parametrize('name', BUILDERS)
def test_builds_and_runs_on_meta(name: str) -> None:
    """Shapes as on the CPU, in both modes; weights come afterwards."""
    build: Callable = BUILDERS[name]
    real, inputs = build()
    expected = joined(real.eval()(inputs))
    with torch.device('meta'):
        net, ghosts = build()
    assert {p.device.type for p in net.parameters()} == {'meta'}
    assert not list(net.buffers())  # nothing that weights would not bring
    for training in (True, False):
        out = joined(net.train(training)(ghosts))
        assert out.device.type == 'meta' and out.shape == expected.shape
    if out.requires_grad:
        joined(net.train()(ghosts)).sum().backward()
    for allocate in (True, False):
        with torch.device('meta'):
            net, _ = build()
        if allocate:
            net = net.to_empty(device='cpu')
        net.load_state_dict(real.state_dict(), assign=True)
        assert torch.equal(joined(net.eval()(inputs)), expected)


@pytest.mark.parametrize('number', [5, 7])
def test_tables_of_another_size_load_into_meta(number: int) -> None:
    saved = AbsolutePosition(4, number).state_dict()
    with torch.device('meta'):
        layer = AbsolutePosition(4, 5)
    layer.load_state_dict(saved, assign=True)
    assert layer.absolute_pos_embed.shape == (1, 5, 5, 4)
    assert layer.absolute_pos_embed.device.type == 'cpu'
