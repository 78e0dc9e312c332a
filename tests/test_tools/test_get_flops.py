"""Multiply-adds, against counts made pair by pair and by dense products."""

import json
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fma_vision import FMALanguageModel, FMATransformer
from fma_vision.engine.complexity import (attention_layer_macs,
                                          count_parameters, fvcore_handles,
                                          measure_complexity)
from fma_vision.layers import (FMAttention1D, FMAttention2D, FullAttention,
                               FullAttention1D, WindowAttention)

SCRIPT = 'tools/analysis_tools/get_flops.py'
TINY = 'configs/imagenet/fma-tiny_16xb64_in1k-224px.py'
UPERNET = 'configs/ade20k/fma-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'


class ExplicitAttention(nn.Module):
    """Dense attention as plain matrix products, which all counters see."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # [B, H, W, C] -> [B, N, C]
        tokens = x.flatten(1, 2)
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, D]
        weights = (query @ key.transpose(-1, -2)).softmax(-1)
        out = (weights @ value).transpose(1, 2).flatten(2)
        return self.proj(out).view_as(x)


@pytest.mark.parametrize('layer', [
    FullAttention(24, 2),
    FMAttention2D(24, 2, cell_size=2, num_levels=0),
    FMAttention2D(24, 2, cell_size=16),
])
def test_full_attention_counts_as_dense_products(layer):
    x = torch.randn(2, 6, 5, 24)
    dense = measure_complexity(ExplicitAttention(24, 2), x)
    found = measure_complexity(layer, x)
    assert found.macs == dense.macs
    assert found.parameters == dense.parameters
    # Q K^T and A V for each of two images of 30 tokens.
    assert found.attention_macs == 2 * 2 * 30 * 30 * 24


@pytest.mark.parametrize('causal', [False, True])
def test_full_attention_over_a_sequence(causal):
    layer = FullAttention1D(24, 2, causal=causal)
    found = measure_complexity(layer, torch.randn(2, 30, 24))
    assert found.attention_macs == 2 * layer.attention_macs(30)


@pytest.mark.parametrize('shape,cell,levels,rank', [
    ((13, 9), 2, None, 1),
    ((13, 9), 2, None, 2),
    ((8, 17), 4, 1, 2),
    ((5, 21), 1, 4, 1),
])
def test_multipole_attention_counts_visited_pairs(shape, cell, levels, rank):
    layer = FMAttention2D(24, 3, cell_size=cell, num_levels=levels, rank=rank)
    found = measure_complexity(layer, torch.randn(2, *shape, 24))
    tree = layer.hierarchy(*shape)
    assert tree.num_levels > 0
    pairs = 0
    for query in product(*map(range, shape)):
        seen = tree.footprint(query)
        pairs += len(seen.near) + len(seen.far)
    assert pairs < (shape[0] * shape[1])**2
    assert found.attention_macs == 2 * 2 * pairs * 24
    # The four projections of every token of both images.
    linear = 2 * shape[0] * shape[1] * 4 * 24 * 24
    assert found.macs == linear + found.attention_macs


def test_causal_sequences_count_only_the_past():
    layer = FMAttention1D(8, 2, cell_size=2, num_levels=0, causal=True)
    found = measure_complexity(layer, torch.randn(1, 7, 8))
    assert found.attention_macs == 2 * (7 * 8 // 2) * 8


def test_windows_count_as_the_layer_says():
    layer = WindowAttention(24, 2, window_size=4)
    found = measure_complexity(layer, torch.randn(1, 8, 12, 24))
    assert found.attention_macs == layer.attention_macs(8, 12)


def test_backward_of_multipole_attention_is_counted():
    layer = FMAttention2D(8, 2, cell_size=2)
    x = torch.randn(1, 9, 9, 8)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    counts = {
        str(op): n
        for op, n in counter.get_flop_counts()['Global'].items()
    }
    forward = counts['fma_kernels.attention']
    assert forward == 4 * layer.hierarchy(9, 9).visited_pairs * 8
    assert counts['fma_kernels.attention_backward'] == forward * 5 // 2


def test_pytorchs_counter_needs_no_formulas():
    """Forward and backward, as of dense products over all tokens."""
    x = torch.randn(2, 6, 5, 24)
    totals = []
    for layer in (FMAttention2D(24, 2, cell_size=16), ExplicitAttention(24,
                                                                        2)):
        with FlopCounterMode(display=False) as counter:
            out = layer(x)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        totals.append((forward, counter.get_total_flops()))
    assert totals[0][0] == totals[1][0]
    # One product more: the backward pass makes the weights anew.
    again = 2 * 2 * 30 * 30 * 24
    assert totals[0][1] == totals[1][1] + again


@pytest.mark.parametrize('form', ['grouped_conv', 'conv'])
def test_learned_summaries_count_as_convolutions(form):
    """Of both kinds, keys and values, at both levels."""
    layer = FMAttention2D(8, 2, cell_size=2, rank=2, summaries=form)
    x = torch.randn(1, 16, 16, 8)
    groups = 1 if form == 'conv' else 4
    with FlopCounterMode(display=False) as dense:
        for width in (2, 4):
            # Heads are a batch; four sub-cells are as many channels more.
            weight = torch.randn(4 * 4, 4 // groups, width, width)
            for _ in range(2):
                F.conv2d(
                    torch.randn(2, 4, 16, 16),
                    weight,
                    stride=width,
                    groups=groups)
    with FlopCounterMode(display=False) as counter:
        out = layer(x)
    counts = {
        str(op): n
        for op, n in counter.get_flop_counts()['Global'].items()
    }
    assert counts['fma_kernels.summaries'] == dense.get_total_flops()
    found = measure_complexity(layer, x)
    assert found.macs == counter.get_total_flops() // 2
    assert found.macs == attention_layer_macs(layer, 16, 16)
    assert found.attention_macs == layer.attention_macs(16, 16)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    backward = {
        str(op): n
        for op, n in counter.get_flop_counts()['Global'].items()
    }
    assert backward['fma_kernels.summaries_backward'] == 2 * counts[
        'fma_kernels.summaries']


ARCH = dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2])


def _backbone(**attn) -> nn.Module:
    attn = {'type': 'FMAttention2D', 'cell_size': 2, **attn}
    return FMATransformer(ARCH, attn=attn, out_indices=(0, 1))


@pytest.mark.parametrize(
    'net,x', [
        (_backbone(), torch.randn(1, 3, 70, 50)),
        (_backbone(summaries='conv'), torch.randn(1, 3, 70, 50)),
        (_backbone(pool_queries=True), torch.randn(1, 3, 70, 50)),
        (_backbone(positions='rotary'), torch.randn(1, 3, 70, 50)),
        (FMATransformer(ARCH, attn='FullAttention'), torch.randn(1, 3, 70,
                                                                 50)),
        (FMALanguageModel(11, 16, depth=1, num_heads=2,
                          cell_size=4), torch.randint(11, (2, 70))),
    ],
    ids=['avg', 'conv', 'pool_queries', 'rotary', 'full', 'language'])
def test_fvcore_agrees(net, x):
    fvcore = pytest.importorskip('fvcore.nn')
    counter = fvcore.FlopCountAnalysis(net.eval(), x)
    counter.set_op_handle(**fvcore_handles())
    counter.unsupported_ops_warnings(False)
    counter.uncalled_modules_warnings(False)
    counts = counter.by_operator()
    counts.pop('layer_norm')  # nobody else counts it
    assert sum(counts.values()) == measure_complexity(net, x).macs


def test_modes_are_restored():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    model[0].eval()
    measure_complexity(model, torch.randn(1, 4))
    assert [m.training for m in model.modules()] == [True, False, True]


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 5)
    assert count_parameters(layer, nn.Sequential(layer)) == 20


@pytest.fixture
def get_flops(load_script):
    pytest.importorskip('mmpretrain')
    pytest.importorskip('mmseg')
    return load_script(SCRIPT)


def test_tiny_has_the_size_of_swin_t(get_flops, repo_root, capsys, tmp_path):
    out = tmp_path / 'new' / 'flops.json'
    get_flops.main(
        [str(repo_root / TINY), '--shape', '224', '224', '--out',
         str(out)])
    found = json.loads(out.read_text())
    backbone = found['backbone']
    assert 26.9e6 <= backbone['parameters'] <= 29.7e6
    assert abs(backbone['macs'] / 4.5e9 - 1) <= 0.1
    assert backbone['attention_macs'] > 0.1e9
    # The classifier's 768 x 1000 weights and biases come on top.
    assert (found['model']['parameters'] - backbone['parameters'] == 769 *
            1000)
    assert found['model']['macs'] - backbone['macs'] == 768 * 1000
    printed = capsys.readouterr().out
    assert f'{backbone["macs"] / 1e9:.3f} G' in printed
    assert f'{backbone["parameters"] / 1e6:.2f} M' in printed
    assert '3 x 224 x 224' in printed


def test_attention_of_a_backbone_is_the_sum_of_its_layers(
        get_flops, repo_root):
    from fma_vision.engine.build import build_model
    cfg = get_flops.load_model_config(
        str(repo_root / TINY), {
            'model.backbone.arch': 'nano',
            'model.head.in_channels': 256
        })
    found = get_flops.measure(cfg, (100, 68))
    backbone = build_model(cfg).backbone
    expected = 0
    for i, stage in enumerate(backbone.stages):
        grid = [-(-size // (4 * 2**i)) for size in (100, 68)]
        expected += sum(
            layer.attention_macs(*grid) for layer in stage.modules()
            if isinstance(layer, FMAttention2D))
    assert expected > 0
    assert found['backbone'].attention_macs == expected


def test_segmentation_without_auxiliary_head(get_flops, repo_root):
    options = {
        'model.backbone.arch': 'nano',
        'model.decode_head.in_channels': [32, 64, 128, 256],
        'model.decode_head.channels': 16,
        'model.auxiliary_head.in_channels': 128
    }
    from fma_vision.engine.build import build_model, training_size
    cfg = get_flops.load_model_config(str(repo_root / UPERNET), options)
    found = get_flops.measure(cfg, (64, 96))
    model = build_model(cfg)
    auxiliary = count_parameters(model.auxiliary_head)
    assert auxiliary > 0
    assert found['model'].parameters == count_parameters(model) - auxiliary
    assert found['model'].macs > found['backbone'].macs > 0
    assert training_size(cfg) == (512, 512)


def test_language_models_take_a_length(get_flops, repo_root, capsys):
    from fma_vision.engine import UserError
    from fma_vision.engine.build import build_model
    path = str(repo_root / 'configs/lm/fma-lm_1xb32-20k_books-1k.py')
    get_flops.main([path])
    assert 'text      1024 tokens' in capsys.readouterr().out
    cfg = get_flops.load_model_config(path)
    found = get_flops.measure(cfg, (300, ))['model']
    net = build_model(cfg).net
    attention = sum(b.attn.attention_macs(300) for b in net.blocks)
    assert found.attention_macs == attention
    # Weights of 6 blocks and the tied projection, once per token.
    dense = 300 * (6 * 12 * 256**2 + 256 * 256)
    assert found.macs - attention == pytest.approx(dense, rel=.02)
    with pytest.raises(UserError, match='one number'):
        get_flops.main([path, '--shape', '3', '4'])


def test_configs_of_installed_toolboxes(get_flops, capsys):
    """Swin-T at 224 px: 28.3 M parameters; published as 4.5 GMACs."""
    get_flops.main(['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k'])
    lines = capsys.readouterr().out.splitlines()
    name, parameters, _, macs, *_ = lines[-1].split()
    assert name == 'model'
    assert float(parameters) == pytest.approx(28.29, abs=.01)
    assert float(macs) == pytest.approx(4.5, rel=.02)


@pytest.mark.parametrize('config,message', [
    ('nowhere.py', 'nowhere.py'),
    ('mmpretrain::nowhere.py', 'ships no config'),
    ('no_such_package::a.py', 'is not installed'),
])
def test_unknown_configs_are_named(get_flops, config, message):
    from fma_vision.engine import UserError
    with pytest.raises(UserError, match=message):
        get_flops.main([config])


def test_configs_without_a_model_are_refused(get_flops, tmp_path):
    from fma_vision.engine import UserError
    path = tmp_path / 'empty.py'
    path.write_text('a = 1\n')
    with pytest.raises(UserError, match='holds no `model`'):
        get_flops.main([str(path)])


@pytest.mark.parametrize('shape', [['0'], ['-3', '4'], ['1', '2', '3']])
def test_bad_shapes_are_refused(get_flops, shape, capsys):
    with pytest.raises(SystemExit) as stop:
        get_flops.main(['any.py', '--shape', *shape])
    assert stop.value.code == 2
    assert '--shape' in capsys.readouterr().err


def test_sequence_classifiers_take_a_length(get_flops, repo_root, capsys):
    from fma_vision.engine.build import build_model
    path = str(repo_root / 'configs/lra/fma-lra-small_1xb32-5k_listops.py')
    get_flops.main([path])
    # The longest sequence that the model takes.
    assert 'text      2000 tokens' in capsys.readouterr().out
    cfg = get_flops.load_model_config(path)
    found = get_flops.measure(cfg, (300, ))['model']
    net = build_model(cfg).net
    assert found.attention_macs == sum(
        b.attn.attention_macs(300) for b in net.blocks)
    # Two blocks with MLPs of three times the width; the head comes once.
    dense = 300 * 2 * 10 * 128**2
    assert found.macs - found.attention_macs == pytest.approx(dense, rel=.02)
