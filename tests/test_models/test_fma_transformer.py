"""The backbone: sizes, options, and that attention sees real tokens only."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from oracles import definition
from torch import nn

from fma_vision import FMATransformer
from fma_vision.engine.complexity import measure_complexity
from fma_vision.models.backbones.blocks import PatchMerging

TWIN = dict(type='WindowAttention', window_size=7)
SMALL = dict(embed_dims=16, depths=[1, 1, 2], num_heads=[1, 2, 4])
# Every form of positions, by config.
POSITIONS = {
    'conditional':
    dict(),
    'absolute':
    dict(position=dict(type='AbsolutePosition', size=(7, 7))),
    'rotary':
    dict(
        position='none',
        attn=dict(type='FMAttention2D', cell_size=2, positions='rotary')),
    'relative':
    dict(
        position='none',
        attn=dict(type='FMAttention2D', cell_size=2, positions='relative')),
    'none':
    dict(position='none'),
}
# Layers that own attention products: mul-adds are counted by them.
LINEAR = (nn.Linear, nn.Conv2d)


def _macs(model: nn.Module, size: int) -> int:
    """Multiply-adds at ``size`` x ``size``, counted while it runs."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        else:
            total += module.attention_macs(*inputs[0].shape[1:3])

    hooks = [
        m.register_forward_hook(count) for m in model.modules()
        if isinstance(m, LINEAR) or hasattr(m, 'attention_macs')
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    # The layers apply some of their linear maps as functions.
    for block in (b for stage in model.stages for b in stage.blocks):
        assert isinstance(block.attn.proj, nn.Linear)
    return total


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_tiny_is_as_large_as_swin_tiny():
    model = FMATransformer('tiny')
    assert model.embed_dims == [96, 192, 384, 768]
    assert 26.9e6 <= _params(model) <= 29.7e6
    assert 4.05e9 <= _macs(model, 224) <= 4.95e9


def test_twin_is_equal_in_size():
    fma, twin = FMATransformer('nano'), FMATransformer('nano', attn=TWIN)
    assert _params(fma) <= 4e6
    # The twin only adds its bias tables.
    tables = sum(p.numel() for n, p in twin.named_parameters()
                 if 'relative_position_bias_table' in n)
    assert _params(twin) - _params(fma) == tables


@pytest.mark.parametrize('arch, depths, dims', [
    ('nano', [2, 2, 6, 2], [32, 64, 128, 256]),
    ('small', [2, 2, 18, 2], [96, 192, 384, 768]),
    ('base', [2, 2, 18, 2], [128, 256, 512, 1024]),
])
def test_archs(arch, depths, dims):
    with torch.device('meta'):
        model = FMATransformer(arch)
    assert [len(stage.blocks) for stage in model.stages] == depths
    assert model.embed_dims == dims
    assert all(d // h == 32 for d, h in zip(dims, model.num_heads))


@pytest.mark.parametrize(
    'attn', [dict(type='FMAttention2D'), TWIN], ids=['fma', 'twin'])
@pytest.mark.parametrize('patch_size', [1, 2, 4])
@pytest.mark.parametrize('size', [(1, 1), (1, 40), (3, 2), (33, 47)], ids=str)
def test_any_size(size, patch_size, attn):
    model = FMATransformer(
        SMALL, patch_size=patch_size, attn=attn, out_indices=(0, 1, 2)).eval()
    outs = model(torch.randn(2, 3, *size))
    assert isinstance(outs, tuple)
    for i, out in enumerate(outs):
        sides = [math.ceil(s / (patch_size * 2**i)) for s in size]
        assert out.shape == (2, 16 * 2**i, *sides)
        assert out.is_contiguous() and out.isfinite().all()


def test_attention_sees_the_real_grid_and_equals_its_definition():
    """Nothing padded reaches keys or masses, at any stage."""
    for attn in (dict(type='FMAttention2D', cell_size=2), TWIN):
        model = FMATransformer(SMALL, patch_size=2, attn=attn).double().eval()
        seen = []

        def compare(module, inputs, output):
            seen.append(tuple(inputs[0].shape[1:3]))
            torch.testing.assert_close(output, definition(module, *inputs))

        for stage in model.stages:
            for block in stage.blocks:
                block.attn.register_forward_hook(compare)
        with torch.no_grad():
            model(torch.randn(1, 3, 37, 53).double())
        assert seen == [(19, 27), (10, 14), (5, 7), (5, 7)]


def test_ragged_image_equals_zero_filled_patches():
    """Padding is what a strided convolution would see: zeros."""
    model = FMATransformer(SMALL, out_indices=(0, 1, 2)).eval()
    x = torch.randn(1, 3, 33, 47)
    filled = F.pad(x, (0, 1, 0, 3))
    for a, b in zip(model(x), model(filled)):
        torch.testing.assert_close(a, b)


def test_patch_merging_of_an_odd_map():
    merge = PatchMerging(4, 6)
    x = torch.randn(2, 5, 7, 4)
    zero = torch.zeros(2, 4)
    got = merge(x)
    assert got.shape == (2, 3, 4, 6)
    corner = torch.cat([x[:, 4, 6], zero, zero, zero], -1)
    torch.testing.assert_close(got[:, 2, 3],
                               merge.reduction(merge.norm(corner)))
    inside = torch.cat(
        [x[:, i, j] for i, j in [(2, 4), (2, 5), (3, 4), (3, 5)]], -1)
    torch.testing.assert_close(got[:, 1, 2],
                               merge.reduction(merge.norm(inside)))


@pytest.mark.parametrize('stages', [2, 3, 4])
def test_number_of_stages(stages):
    arch = dict(
        embed_dims=8, depths=[1] * stages, num_heads=[1, 2, 4, 8][:stages])
    model = FMATransformer(arch).eval()
    out, = model(torch.randn(1, 3, 40, 40))
    assert out.shape[1] == 8 * 2**(stages - 1)
    assert model.out_indices == [stages - 1]
    uneven = FMATransformer(
        dict(
            embed_dims=[8, 24, 32, 40][:stages],
            depths=[1] * stages,
            num_heads=[1, 2, 4, 8][:stages])).eval()
    assert uneven(torch.randn(1, 3, 40, 40))[0].shape[1] == [24, 32,
                                                             40][stages - 2]


def test_out_indices_build_what_they_need():
    model = FMATransformer(SMALL, out_indices=(0, 1))
    norms = [n for n, _ in model.named_children() if n.startswith('norm')]
    assert norms == ['norm0', 'norm1']
    assert len(model.stages) == 2
    assert FMATransformer(SMALL, out_indices=(0, -1)).out_indices == [0, 2]


@pytest.mark.parametrize(
    'kwargs', [
        dict(),
        dict(out_indices=(0, 1, 2)),
        dict(out_indices=(0, )),
        dict(attn=TWIN),
        dict(attn=dict(type='FullAttention')),
        dict(attn=dict(type='FMAttention2D', summaries='grouped_conv')),
        dict(with_cp=True),
        dict(drop_path_rate=.5, drop_rate=.1),
        *POSITIONS.values(),
        dict(with_cp=True, **POSITIONS['absolute']),
        dict(with_cp=True, **POSITIONS['relative']),
    ],
    ids=str)
def test_no_parameter_is_unused(kwargs):
    """DDP without find_unused_parameters must work."""
    model = FMATransformer(SMALL, **kwargs).train()
    loss = sum(out.square().sum() for out in model(torch.randn(2, 3, 44, 60)))
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    'attn', [
        dict(type='FMAttention2D', summaries='grouped_conv'),
        dict(type='FMAttention2D', positions='relative')
    ],
    ids=str)
def test_ddp_steps(tmp_path, attn):
    """DDP itself raises on the second pass if a parameter went unused."""
    if not torch.distributed.is_available():
        pytest.skip('torch is built without torch.distributed')
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(
            FMATransformer(SMALL, attn=attn))
        for _ in range(2):
            model(torch.randn(1, 3, 40, 40))[0].sum().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_checkpointing_changes_no_gradient():
    plain = FMATransformer(SMALL, drop_path_rate=0.)
    saving = FMATransformer(SMALL, drop_path_rate=0., with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 40, 52)
    for model in (plain, saving):
        model.train()(x)[0].square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_train_and_eval_return_the_model():
    model = FMATransformer(SMALL)
    assert model.train() is model and model.training
    assert model.eval() is model and not model.training


@pytest.mark.parametrize('name', POSITIONS)
def test_positions_by_config_at_any_size(name):
    """Each form, at sizes that it was not built for."""
    model = FMATransformer(SMALL, out_indices=(0, 1, 2), **POSITIONS[name])
    for param in model.parameters():  # tables and all
        nn.init.normal_(param, std=.1)
    for size in [(5, 3), (28, 28), (37, 66)]:
        x = torch.randn(1, 3, *size, requires_grad=True)
        outs = model.train()(x)
        sum(out.square().sum() for out in outs).backward()
        assert x.grad.isfinite().all() and x.grad.any()
        assert [out.shape[2:] for out in outs] == [
            tuple(math.ceil(s / (4 * 2**i)) for s in size) for i in range(3)
        ]


@pytest.mark.parametrize('name', POSITIONS)
def test_positions_break_the_mirror(name):
    """Without positions, a mirrored image gives a mirrored map."""
    model = FMATransformer(SMALL, out_indices=(0, ), **POSITIONS[name])
    for param in model.parameters():
        nn.init.normal_(param, std=.3)
    weight = model.patch_embed.proj.weight.data
    weight += weight.flip(-1)  # the inside of patches is seen by all forms
    x = torch.randn(1, 3, 32, 32)  # whole cells only
    out, mirrored = (model.eval()(y)[0] for y in (x, x.flip(-1)))
    equal = torch.allclose(out, mirrored.flip(-1), rtol=1e-3, atol=1e-3)
    assert equal == (name == 'none')


@pytest.mark.parametrize('name', ['absolute', 'rotary', 'relative'])
def test_positions_are_counted(name):
    """Tables are parameters; neither they nor turning adds products."""
    x = torch.randn(1, 3, 28, 28)
    model = FMATransformer(SMALL, **POSITIONS[name])
    count = measure_complexity(model, x)
    attn = dict(type='FMAttention2D', cell_size=4 if name == 'absolute' else 2)
    plain = FMATransformer(SMALL, position='none', attn=attn)
    expected = measure_complexity(plain, x)
    tables = sum(param.numel() for key, param in model.named_parameters()
                 if key in model.no_weight_decay())
    assert count.parameters == expected.parameters + tables
    assert (tables > 0) == (name != 'rotary')
    if name == 'relative':  # a dense fallback counts all it does
        assert count.macs >= expected.macs
    else:
        assert count == replace(expected, parameters=count.parameters)


def test_no_positions_by_none_or_by_name():
    by_none, by_name = (
        FMATransformer(SMALL, position=p) for p in (None, 'none'))
    assert not any('position' in name for name in by_none.state_dict())
    by_name.load_state_dict(by_none.state_dict())
    x = torch.randn(1, 3, 20, 24)
    torch.testing.assert_close(by_none.eval()(x), by_name.eval()(x))


def test_absolute_positions_are_added_once_to_the_patches():
    model = FMATransformer(SMALL, **POSITIONS['absolute']).eval()
    tables = [n for n in model.state_dict() if 'position' in n]
    assert tables == ['patch_embed.position.absolute_pos_embed']
    assert model.no_weight_decay() == set(tables)
    assert model.get_layer_depth(tables[0]) == (0, 6)
    plain = FMATransformer(SMALL, position='none').eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(
        model.patch_embed(x),
        plain.patch_embed(x) + model.patch_embed.position.absolute_pos_embed)
    frozen = FMATransformer(SMALL, frozen_stages=0, **POSITIONS['absolute'])
    assert not frozen.patch_embed.position.absolute_pos_embed.requires_grad


@pytest.mark.parametrize('name, source, target', [
    ('absolute', dict(),
     dict(position=dict(type='AbsolutePosition', size=(5, 9)))),
    ('relative', dict(),
     dict(
         attn=dict(
             type='FMAttention2D',
             cell_size=4,
             rank=2,
             max_levels=2,
             positions='relative'))),
])
def test_pretrained_tables_are_resized(tmp_path, name, source, target):
    source = FMATransformer(SMALL, **POSITIONS[name], **source)
    for param in source.parameters():
        nn.init.normal_(param, std=.1)
    path = str(tmp_path / 'source.pth')
    torch.save(dict(state_dict=source.state_dict()), path)
    model = FMATransformer(
        SMALL,
        init_cfg=dict(type='Pretrained', checkpoint=path),
        **{
            **POSITIONS[name],
            **target
        })
    before = model.state_dict()
    model.init_weights()
    resized = 0
    for key, param in model.state_dict().items():
        given = source.state_dict()[key]
        if given.shape == param.shape:
            assert torch.equal(param, given), key
        else:
            resized += 1
            assert param.shape == before[key].shape
            assert param.std() > .03, key  # not the table it was built with
    assert resized == (1 if name == 'absolute' else 8)
    # The same by hand, strictly.
    again = FMATransformer(SMALL, **{**POSITIONS[name], **target})
    again.load_state_dict(source.state_dict(), strict=True)
    for key, param in model.state_dict().items():
        assert torch.equal(param, again.state_dict()[key]), key


def test_frozen_stages_stay_frozen():
    model = FMATransformer(
        SMALL, frozen_stages=1, out_indices=(1, 2), drop_path_rate=.5)
    model.train()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    expected = {
        n
        for n, _ in model.named_parameters()
        if n.startswith(('patch_embed.', 'stages.0.', 'stages.1.', 'norm1.'))
    }
    assert frozen == expected and frozen
    assert not model.stages[1].training and model.stages[2].training
    # No stochastic depth left in front of the first norm.
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x)[0], model(x)[0])
    assert all(p.requires_grad for p in FMATransformer(SMALL).parameters())


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('stages', [-1, 0, 1, 2])
def test_frozen_stages_in_a_training_step(stages, with_cp):
    """Any number of them, through what a runner does with a backbone."""
    model = FMATransformer(
        SMALL,
        frozen_stages=stages,
        out_indices=(0, 1, 2),
        with_cp=with_cp,
        position=dict(type='AbsolutePosition', size=7))
    model.init_weights()
    model.train().eval()
    model.train()
    parts = [*model.stages[:stages + 1]] if stages >= 0 else []
    parts += [model.patch_embed] if stages >= 0 else []
    parts += [getattr(model, f'norm{i}') for i in range(stages + 1)]
    frozen = {p for part in parts for p in part.parameters()}
    before = {p: p.detach().clone() for p in model.parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    maps = model(torch.randn(2, 3, 40, 24))
    if stages < 2:
        sum((x * torch.randn_like(x)).sum() for x in maps).backward()
        optimizer.step()
    else:
        assert not any(x.requires_grad for x in maps)
    for name, param in model.named_parameters():
        still = param in frozen
        assert (param.grad is None) == still, name
        assert torch.equal(param, before[param]) == still, name
    assert all(not m.training for part in parts for m in part.modules())


def test_norm_eval_freezes_batch_norms():

    class WithBatchNorm(nn.Module):

        def __init__(self, dim, num_heads, **kwargs):
            super().__init__()
            self.norm = nn.BatchNorm2d(dim)

        def forward(self, x, key_mask=None):
            return self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    for norm_eval in (False, True):
        model = FMATransformer(
            SMALL, attn=dict(type=WithBatchNorm), norm_eval=norm_eval)
        model.init_weights()
        for _ in range(2):  # after each validation, too
            model.eval()
            model.train()
            for stage in model.stages:
                for block in stage.blocks:
                    assert block.attn.norm.training != norm_eval
                    assert block.norm1.training
        before = model.stages[0].blocks[0].attn.norm.running_mean.clone()
        model(torch.randn(2, 3, 24, 24))
        after = model.stages[0].blocks[0].attn.norm.running_mean
        assert torch.equal(before, after) == norm_eval


def test_drop_path_rises_to_its_rate():
    model = FMATransformer('nano', drop_path_rate=.3)
    rates = [
        getattr(block.drop_path, 'drop_prob', 0.) for stage in model.stages
        for block in stage.blocks
    ]
    torch.testing.assert_close(rates, torch.linspace(0, .3, 12).tolist())


def test_one_attention_config_per_stage():
    model = FMATransformer(
        SMALL, attn=[TWIN, dict(type='FMAttention2D'), 'FullAttention'])
    names = [type(s.blocks[0].attn).__name__ for s in model.stages]
    assert names == ['WindowAttention', 'FMAttention2D', 'FullAttention']


def test_weights_start_as_truncated_normal():
    model = FMATransformer('nano')
    for name, param in model.named_parameters():
        if name.endswith('bias'):
            assert (param == 0).all(), name
        elif 'norm' in name:
            assert (param == 1).all(), name
        elif param.numel() > 2000:
            assert .015 < param.std() < .025, name


def test_layer_depths():
    model = FMATransformer(SMALL)  # 4 blocks, stem and rest: 6 depths
    expected = {
        'backbone.patch_embed.proj.weight': 0,
        'backbone.stages.0.blocks.0.attn.qkv.weight': 1,
        'backbone.stages.1.downsample.reduction.weight': 1,
        'backbone.stages.1.blocks.0.position.conv.weight': 2,
        'backbone.stages.2.downsample.norm.weight': 2,
        'backbone.stages.2.blocks.1.mlp.fc1.weight': 4,
        'backbone.norm2.weight': 5,
        'head.fc.weight': 5,
    }
    for name, depth in expected.items():
        assert model.get_layer_depth(name, 'backbone.') == (depth, 6), name
    assert model.get_layer_depth('stages.2.blocks.0.norm1.bias') == (3, 6)


def test_no_weight_decay_names():
    for attn, part in [(TWIN, 'relative_position_bias_table'),
                       (dict(type='FMAttention2D',
                             summaries='grouped_conv'), 'summaries.delta'),
                       (dict(type='FMAttention2D', positions='relative'),
                        'relative_position_bias_table'),
                       (dict(type='FMMformerAttention2D'), 'field_weights')]:
        model = FMATransformer(SMALL, attn=attn)
        names = model.no_weight_decay()
        assert names == {n for n, _ in model.named_parameters() if part in n}
        assert names
        assert part in FMATransformer.no_decay_keys
    assert FMATransformer(SMALL).no_weight_decay() == set()


def test_pretrained_weights_with_prefix(tmp_path):
    source = FMATransformer(SMALL)
    path = str(tmp_path / 'classifier.pth')
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    state['head.fc.weight'] = torch.zeros(3, 3)
    torch.save(dict(state_dict=state), path)
    model = FMATransformer(
        SMALL,
        out_indices=(0, 2),
        init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
    assert not torch.equal(model.patch_embed.proj.weight,
                           source.patch_embed.proj.weight)
    model.init_weights()
    for name, param in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], param), name


def test_checkpoints_of_the_host(tmp_path):
    """Saved and loaded as MMEngine does; a wrong prefix is told."""
    runner = pytest.importorskip('mmengine.runner')
    source = FMATransformer(SMALL, out_indices=(0, 1, 2))
    path = str(tmp_path / 'backbone.pth')
    runner.save_checkpoint(dict(state_dict=source.state_dict()), path)
    model = FMATransformer(SMALL, out_indices=(0, 1, 2), frozen_stages=0)
    runner.load_checkpoint(model, path, strict=True)
    for name, param in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], param), name
    model = FMATransformer(
        SMALL,
        init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
    with pytest.raises(AssertionError, match='backbone'):
        model.init_weights()


def test_init_cfg_of_several_parts():
    """A list of initialisers, as any backbone of the hosts takes it."""
    pytest.importorskip('mmengine')
    model = FMATransformer(
        SMALL,
        frozen_stages=0,
        init_cfg=[
            dict(type='TruncNormal', layer='Linear', std=.5, bias=.25),
            dict(type='Constant', layer='LayerNorm', val=2., bias=0.),
            dict(type='Kaiming', layer='Conv2d'),
        ])
    model.init_weights()
    for name, param in model.named_parameters():
        if 'mlp' in name or 'qkv' in name:
            assert (param == .25).all() if name.endswith('bias') else (
                .3 < param.std() < .6), name
        elif 'norm' in name and name.endswith('weight'):
            assert (param == 2).all(), name
    assert not model.patch_embed.proj.weight.requires_grad


@pytest.mark.parametrize('size, sides', [
    ((112, 137), [(28, 35), (14, 18), (7, 9), (4, 5)]),
    ((127, 127), [(32, 32), (16, 16), (8, 8), (4, 4)]),
])
def test_odd_sizes_of_the_hosts_tests(size, sides):
    model = FMATransformer('nano', out_indices=(0, 1, 2, 3)).eval()
    with torch.no_grad():
        outs = model(torch.randn(1, 3, *size))
    assert [tuple(x.shape[2:]) for x in outs] == sides
    assert [x.shape[1] for x in outs] == [32, 64, 128, 256]


def test_it_learns():
    """A few steps fit four images: gradients point the right way."""
    model = FMATransformer(SMALL, patch_size=2, drop_path_rate=0.)
    head = nn.Linear(64, 4)
    x, y = torch.randn(4, 3, 24, 24), torch.arange(4)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()],
                                  lr=2e-3)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(head(model(x)[0].mean((2, 3))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < .2 * losses[0]


@pytest.mark.parametrize('kwargs, message', [
    (dict(arch='huge'), r"arch='huge' is unknown; allowed: \['base'"),
    (dict(arch=dict(depths=[1])), 'exactly the keys'),
    (dict(arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1])),
     'as many depths as num_heads'),
    (dict(arch=dict(embed_dims=8, depths=[0], num_heads=[1])), 'at least 1'),
    (dict(out_indices=(4, )), r'in \[0, 3\], got \(4,\)'),
    (dict(out_indices=(2, 1)), 'increasing'),
    (dict(out_indices=()), 'increasing'),
    (dict(frozen_stages=4), r'frozen_stages must be in \[-1, 3\], got 4'),
    (dict(patch_size=0), 'patch_size'),
    (dict(attn=[TWIN]), r'one per stage \(4\), got 1'),
    (dict(attn=dict(type='Nothing')), "'Nothing' is unknown"),
    (dict(position='sine'), "'sine' is unknown"),
])
def test_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FMATransformer(**{**dict(arch='nano'), **kwargs})


def test_refuses_bad_images():
    model = FMATransformer(SMALL)
    for shape in [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)]:
        with pytest.raises(ValueError, match=r'x must be \[B, 3, H, W\]'):
            model(torch.zeros(shape))
