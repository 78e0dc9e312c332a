"""The backbones as timm models."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

import fma_vision
from fma_vision import FMATransformer


def test_all_variants_are_listed():
    assert timm.list_models('fma_*') == [
        'fma_base', 'fma_nano', 'fma_small', 'fma_tiny'
    ]
    assert isinstance(timm.create_model('fma_nano'), fma_vision.FMAClassifier)


def test_classifier():
    model = timm.create_model('fma_nano', num_classes=7, in_chans=1).eval()
    x = torch.randn(2, 1, 40, 56)
    logits = model(x)
    assert logits.shape == (2, 7)
    features = model.forward_features(x)
    assert features.shape == (2, 2, 2, 256)  # channels last
    torch.testing.assert_close(model.forward_head(features), logits)
    assert model.forward_head(features, pre_logits=True).shape == (2, 256)
    # The same function as the backbone with a mean and a linear layer.
    pooled = model.backbone(x)[0].mean((2, 3))
    torch.testing.assert_close(model.get_classifier()(pooled), logits)


def test_reset_classifier():
    model = timm.create_model('fma_nano', num_classes=7).eval()
    x = torch.randn(1, 3, 32, 32)
    model.reset_classifier(3)
    assert model(x).shape == (1, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert model(x).shape == (1, 256)
    model.reset_classifier(0, '')
    assert model(x).shape == (1, 1, 1, 256)
    assert timm.create_model('fma_nano', num_classes=0)(x).shape == (1, 256)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), (3, )])
def test_features_only(out_indices):
    model = timm.create_model(
        'fma_nano', features_only=True, out_indices=out_indices)
    maps = model(torch.randn(1, 3, 64, 96))
    channels = model.feature_info.channels()
    reductions = model.feature_info.reduction()
    assert channels == [32 * 2**i for i in out_indices]
    assert reductions == [4 * 2**i for i in out_indices]
    for out, c, r in zip(maps, channels, reductions):
        assert out.shape == (1, c, 64 // r, 96 // r)
    # What is not needed is gone.
    assert len(model.model.backbone.stages) == max(out_indices) + 1


def test_features_only_defaults_to_all_stages():
    model = timm.create_model('fma_nano', features_only=True)
    assert len(model(torch.randn(1, 3, 32, 32))) == 4


def test_forward_intermediates():
    model = timm.create_model('fma_nano').eval()
    x = torch.randn(1, 3, 64, 64)
    final, maps = model.forward_intermediates(x, norm=True)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(maps[-1], final.permute(0, 3, 1, 2))
    early = model.forward_intermediates(
        x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early[0], maps[1])
    last = model.forward_intermediates(
        x, indices=1, output_fmt='NHWC', norm=True, intermediates_only=True)
    torch.testing.assert_close(last[0], final)
    with pytest.raises(ValueError, match="'NCHW' or 'NHWC', got 'NLC'"):
        model.forward_intermediates(x, output_fmt='NLC')


# What timm's own tests ask of each of its models, of this one.
@pytest.fixture(scope='module')
def nano():
    torch.manual_seed(0)
    return timm.create_model('fma_nano', drop_path_rate=0.).eval()


IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_backward_reaches_each_parameter():
    model = timm.create_model('fma_nano', num_classes=42).train()
    out = model(IMAGE)
    assert out.shape == (1, 42)
    out.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize('name', timm.list_models('fma_*'))
def test_default_config(name):
    """Its names and sizes are those of the model."""
    with torch.device('meta'):
        model = timm.create_model(name).eval()
        cfg = model.default_cfg
        x = torch.randn(1, *cfg['input_size'])
        pool = tuple(cfg['pool_size'])
        assert model(x).shape == (1, cfg['num_classes'])
        assert model.forward_features(x).shape[1:3] == pool
        names = set(model.state_dict())
        assert f"{cfg['classifier']}.weight" in names
        assert f"{cfg['first_conv']}.weight" in names
        model.reset_classifier(0)
        assert model(x).shape == (1, model.num_features)
        model.reset_classifier(0, '')
        assert model(x).shape == (1, *pool, model.num_features)
        model = timm.create_model(name, num_classes=0, global_pool='')
        assert model(x).shape == (1, *pool, model.num_features)


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels_of_images(channels):
    model = timm.create_model('fma_nano', in_chans=channels).eval()
    assert model(torch.randn(1, channels, 32, 48)).shape == (1, 1000)


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('layout', ['NCHW', 'NHWC'])
@pytest.mark.parametrize(
    'indices,chosen', [
        (None, [0, 1, 2, 3]),
        (2, [2, 3]),
        ([0], [0]),
        ([1, 3], [1, 3]),
        ([-1], [3]),
    ],
    ids=str)
def test_options_of_intermediates(nano, indices, chosen, layout, norm):
    options = dict(indices=indices, output_fmt=layout, norm=norm)
    final, maps = nano.forward_intermediates(IMAGE, **options)
    torch.testing.assert_close(final, nano.forward_features(IMAGE))
    info = [nano.feature_info[i] for i in chosen]
    assert len(maps) == len(info)
    for x, expected in zip(maps, info):
        channels, *sides = (
            x.shape[1:] if layout == 'NCHW' else x.movedim(-1, 1).shape[1:])
        assert channels == expected['num_chs']
        assert sides == [side // expected['reduction'] for side in (64, 96)]
    alone = nano.forward_intermediates(
        IMAGE, intermediates_only=True, stop_early=True, **options)
    for x, y in zip(maps, alone):
        torch.testing.assert_close(x, y)
    if chosen[-1] == 3:
        last = maps[-1] if layout == 'NHWC' else maps[-1].permute(0, 2, 3, 1)
        if not norm:
            last = nano.backbone.norm3(last)
        torch.testing.assert_close(last, final)


@pytest.mark.parametrize('indices', [1, [0, 2]], ids=str)
def test_pruned_to_intermediates(indices):
    model = timm.create_model('fma_nano').eval()
    expected = model.forward_intermediates(
        IMAGE, indices=indices, intermediates_only=True)
    take = model.prune_intermediate_layers(indices, prune_norm=True)
    found = model.forward_intermediates(
        IMAGE, indices=take, intermediates_only=True)
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y)
    assert len(model.backbone.stages) == take[-1] + 1
    assert model.get_classifier().__class__ is torch.nn.Identity


@pytest.mark.parametrize('coarse', [False, True])
def test_every_parameter_has_a_group(nano, coarse):
    from timm.models import group_parameters
    groups = group_parameters(nano, nano.group_matcher(coarse))
    named = [name for names in groups.values() for name in names]
    assert sorted(named) == sorted(n for n, _ in nano.named_parameters())
    assert len(groups) > 4


class TestFX:
    """Feature extraction through torch.fx, where torchvision is."""

    @pytest.fixture(autouse=True)
    def torchvision(self):
        pytest.importorskip('torchvision.models.feature_extraction')

    def test_last_node_is_the_output(self, nano):
        from timm.models import GraphExtractNet, get_graph_node_names
        nodes = get_graph_node_names(nano)[1]
        found = GraphExtractNet(nano, [nodes[-1]])(IMAGE)
        torch.testing.assert_close(found, nano(IMAGE))

    def test_features_only(self):
        torch.manual_seed(0)
        traced = timm.create_model(
            'fma_nano', features_only=True, feature_cls='fx').eval()
        torch.manual_seed(0)
        plain = timm.create_model('fma_nano', features_only=True).eval()
        for x, y in zip(traced(IMAGE), plain(IMAGE)):
            torch.testing.assert_close(x.permute(0, 3, 1, 2), y)

    def test_backward(self):
        from timm.models import GraphExtractNet, get_graph_node_names
        model = timm.create_model('fma_nano').train()
        nodes = get_graph_node_names(model)[0]
        GraphExtractNet(model, [nodes[-1]])(IMAGE).mean().backward()
        assert all(p.grad is not None for p in model.parameters())

    @pytest.mark.parametrize(
        'attn', [
            dict(positions='rotary'),
            dict(positions='relative'),
            dict(summaries='conv', pool_queries='learned')
        ],
        ids=str)
    def test_plain_backbones(self, attn):
        from timm.models import create_feature_extractor
        arch = dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2])
        net = FMATransformer(
            arch,
            attn=dict(type='FMAttention2D', **attn),
            position=dict(type='AbsolutePosition', size=8),
            out_indices=(0, 1)).eval()
        nodes = {'stages.0.blocks.0.attn': 'attn', 'stages.1': 'map'}
        found = create_feature_extractor(net, nodes)(IMAGE)
        assert found['attn'].shape == (1, 16, 24, 8)
        expected = net.norm1(found['map']).permute(0, 3, 1, 2)
        torch.testing.assert_close(expected, net(IMAGE)[1])


def test_options_reach_the_backbone():
    model = timm.create_model(
        'fma_nano',
        patch_size=2,
        drop_path_rate=.2,
        attn=dict(type='WindowAttention'))
    assert model.feature_info[3]['reduction'] == 16
    block = model.backbone.stages[3].blocks[1]
    assert block.drop_path.drop_prob == pytest.approx(.2)
    assert type(block.attn).__name__ == 'WindowAttention'


def test_grad_checkpointing_switch():
    model = timm.create_model('fma_nano').train()
    model.set_grad_checkpointing()
    assert all(stage.with_cp for stage in model.backbone.stages)
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.set_grad_checkpointing(False)
    assert not any(stage.with_cp for stage in model.backbone.stages)


def test_layer_decay_and_no_decay_in_timm():
    model = timm.create_model(
        'fma_nano',
        num_classes=5,
        attn=dict(type='FMAttention2D', summaries='grouped_conv'))
    optimizer = create_optimizer_v2(
        model, 'adamw', lr=1., weight_decay=.05, layer_decay=.5)
    of_param = {
        id(p): group
        for group in optimizer.param_groups
        for p in group['params']
    }
    groups = {n: of_param[id(p)] for n, p in model.named_parameters()}
    scales = {n: group['lr_scale'] for n, group in groups.items()}
    assert scales['head.fc.weight'] == 1
    first = scales['backbone.stages.0.blocks.0.mlp.fc1.weight']
    second = scales['backbone.stages.0.blocks.1.mlp.fc1.weight']
    assert second == 2 * first
    assert scales['backbone.patch_embed.proj.weight'] < first
    for name, group in groups.items():
        free = 'delta' in name or name.endswith('bias') or 'norm' in name
        assert (group['weight_decay'] == 0) == free, name


def test_names_are_those_of_the_backbone():
    """Weights move to an mmpretrain classifier unchanged."""
    model = timm.create_model('fma_nano', num_classes=5)
    backbone = FMATransformer('nano')
    expected = {f'backbone.{n}' for n in backbone.state_dict()}
    assert set(
        model.state_dict()) == expected | {'head.fc.weight', 'head.fc.bias'}


def test_absolute_positions_are_part_of_the_stem():
    position = dict(type='AbsolutePosition', size=8)
    name = 'backbone.patch_embed.position.absolute_pos_embed'
    model = timm.create_model('fma_nano', position=position).eval()
    assert name in model.no_weight_decay()
    x = torch.randn(1, 3, 40, 48)
    before = model(x)
    maps = model.forward_intermediates(x, intermediates_only=True)
    torch.nn.init.normal_(model.get_parameter(name))
    assert not torch.allclose(model(x), before)
    for old, new in zip(
            maps, model.forward_intermediates(x, intermediates_only=True)):
        assert not torch.allclose(old, new)
    features = timm.create_model(
        'fma_nano', features_only=True, position=position)
    assert len(features(x)) == 4
