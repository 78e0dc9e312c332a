"""The comparison of attention layers: checks, limits, numbers, training."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')
pytest.importorskip('matplotlib')

from fma_vision.comparison import (LayerSpec, Limits, Setting, checks, limits,
                                   measure, read_specs, training)
from fma_vision.engine import UserError, load_config
from fma_vision.layers import FMAttention2D, FullAttention, WindowAttention
from fma_vision.utils.complexity import measure_complexity
from fma_vision.utils.timing import time_interleaved

ROOT = Path(__file__).parents[2]
# A module of a user's: layers that other packages may bring.
MINE = '''
import torch
from torch import nn
from fma_vision.registry import MODELS


@MODELS.register_module()
class Mean(nn.Module):
    """Each token sees the mean of all; maps only."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.mix = nn.Linear(dim, dim)

    def forward(self, x):
        return x + self.mix(x.mean((1, 2), keepdim=True))


@MODELS.register_module()
class Hungry(Mean):

    def forward(self, x):
        if x.shape[1] > 30:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return super().forward(x)


@MODELS.register_module()
class Gaps(Mean):

    def forward(self, x):
        return super().forward(x) / (x.shape[1] < 30)


@MODELS.register_module()
class Leaky(Mean):
    """Images of a batch see each other."""

    def forward(self, x):
        return x + self.mix(x.mean((0, 1, 2), keepdim=True))
'''
LAYERS = '''
custom_imports = dict(imports=['mine'], allow_failed_imports=False)
layers = [
    dict(type='fma_vision.Mean'),
    dict(type='fma_vision.Hungry'),
    dict(type='fma_vision.Gaps', label='holes'),
    dict(type='fma_vision.Leaky'),
    dict(type='FullAttention', ndim=2)
]
'''


@pytest.fixture(scope='module')
def tool(load_script):
    return load_script('tools/analysis_tools/compare_attention.py')


@pytest.fixture
def quick(tool, tmp_path):
    """Runs the tool on small layers and reads what it wrote."""

    def run(*options: str, name: str = 'attention_2d_cpu') -> dict:
        tool.main([
            '--dim', '8', '--heads', '2', '--repeats', '2', '--device', 'cpu',
            '--out',
            str(tmp_path), *options
        ])
        return json.loads((tmp_path / f'{name}.json').read_text())

    return run


@pytest.fixture(scope='module')
def every_layer(tool, tmp_path_factory):
    """All layers at tiny sizes, by one command."""
    out = tmp_path_factory.mktemp('results')
    tool.main([
        '--shapes', '600', '9x11', '12x12', '--dim', '8', '--heads', '2',
        '--repeats', '3', '--train-step', '--device', 'cpu', '--out',
        str(out)
    ])
    return SimpleNamespace(
        out=out,
        maps=json.loads((out / 'attention_2d_cpu.json').read_text()),
        texts=json.loads((out / 'attention_1d_cpu.json').read_text()))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A config file with layers of the user's."""
    (tmp_path / 'mine.py').write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / 'layers.py'
    path.write_text(LAYERS)
    yield str(path)
    from fma_vision.registry import MODELS
    for name in ('Mean', 'Hungry', 'Gaps', 'Leaky'):
        MODELS.module_dict.pop(name, None)
    sys.modules.pop('mine', None)


# -------------------------------------------------------------------- cost
def test_all_layers_are_measured(every_layer):
    for found, sizes in ((every_layer.maps, 2), (every_layer.texts, 1)):
        layers = {row['layer'] for row in found['rows']}
        assert len(found['rows']) == len(layers) * sizes * 2
        for row in found['rows']:
            assert row['status'] == 'measured', row
            median = statistics.median(row['samples_seconds'])
            assert len(row['samples_seconds']) == 3
            assert row['seconds']['median'] == median > 0
            # At least the output, in float32.
            assert row['peak_memory_bytes'] >= row['tokens'] * 8 * 4
            assert row['parameters'] > 0 and row['macs'] > 0
        assert set(found['checks']) == layers
        for errors in found['checks'].values():
            assert {'float32', 'alone and in a batch'} <= set(errors)
        environment = found['environment']
        assert environment['packages']['torch'] == torch.__version__
    assert len({r['layer'] for r in every_layer.maps['rows']}) == 9
    assert len({r['layer'] for r in every_layer.texts['rows']}) == 6
    assert 'naive gradients' in every_layer.maps['checks']['FMA-linear']
    for name in ('attention_2d_cpu.png', 'attention_1d_cpu.txt'):
        assert (every_layer.out / name).stat().st_size > 500


def test_ratios_are_to_full_attention(every_layer):
    rows = [
        row for row in every_layer.maps['rows']
        if row['shape'] == [12, 12] and row['mode'] == 'training'
    ]
    full = next(row for row in rows if row['layer'] == 'FullAttention')
    assert full['ratio_of_medians'] == 1
    for row in rows:
        assert row['reference'] == 'FullAttention'
        assert row['ratio_of_medians'] == (
            row['seconds']['median'] / full['seconds']['median'])


def test_numbers_are_those_of_the_layers(every_layer):
    rows = {
        (row['layer'], *row['shape']): row
        for row in every_layer.maps['rows']
    }
    full, fma = FullAttention(8, 2), FMAttention2D(8, 2)
    for label, layer in (('FullAttention', full), ('FMA', fma),
                         ('WindowAttention', WindowAttention(8, 2))):
        counted = measure_complexity(layer, torch.zeros(1, 9, 11, 8))
        row = rows[label, 9, 11]
        assert row['parameters'] == counted.parameters
        # That of windows holds padding, which its formula leaves out.
        assert row['macs'] == counted.macs
    # A number for each frequency of this size.
    assert rows['GlobalFilter', 9, 11]['parameters'] == 9 * 6 * 8 * 2
    assert rows['GlobalFilter', 12, 12]['parameters'] == 12 * 7 * 8 * 2


def test_training_needs_more(every_layer):
    rows = {
        (row['layer'], row['mode']): row
        for row in every_layer.texts['rows']
    }
    for layer in ('FMA', 'FullAttention1D'):
        peaks = [
            rows[layer, mode]['peak_memory_bytes']
            for mode in ('inference', 'training')
        ]
        assert peaks[1] > peaks[0]


def test_layers_of_a_users_own(quick, mine, capsys):
    found = quick('--layers', mine, '--shapes', '20x20', '32x32', '40x40')
    rows = {(row['layer'], row['shape'][0]): row for row in found['rows']}
    mean = rows['fma_vision.Mean', 32]
    # One product with the mean token, counted as there is no formula.
    assert mean['status'] == 'measured' and mean['macs'] == 8 * 8
    assert rows['fma_vision.Hungry', 20]['status'] == 'measured'
    assert 'out of memory' in rows['fma_vision.Hungry', 32]['reason']
    assert rows['fma_vision.Hungry', 32]['status'] == 'skipped'
    assert rows['holes', 20]['status'] == 'measured'
    assert 'not finite' in rows['holes', 32]['reason']
    # A larger size is not tried, and names the smaller one.
    larger = rows['fma_vision.Hungry', 40]
    assert larger['reason'].startswith('at 32x32: out of memory')
    for side in (20, 32, 40):
        leaky = rows['fma_vision.Leaky', side]
        assert leaky['status'] == 'failed'
        assert 'alone and in a batch' in leaky['reason']
        assert 'seconds' not in leaky
        # Nobody else pays for it.
        assert rows['FullAttention', side]['ratio_of_medians'] == 1
    assert 'skipped: out of memory' in capsys.readouterr().out


def test_wrong_attention_is_not_timed(quick, monkeypatch):
    from fma_vision.layers import attention
    right = attention.fma2d

    def wrong(*args, backend, **kwargs):
        out = right(*args, backend=backend, **kwargs)
        return out if backend == 'naive' else out * 1.001

    monkeypatch.setattr(attention, 'fma2d', wrong)
    found = quick('--layers', 'FMA', 'FullAttention', '--shapes', '9x9')
    fma, full = found['rows']
    assert fma['status'] == 'failed'
    assert 'naive reference: off by' in fma['reason']
    assert 'seconds' not in fma and full['status'] == 'measured'


@pytest.mark.parametrize('name,change', [
    ('FullAttention', lambda layer: layer.register_forward_hook(
        lambda module, args, out: out + 1e-6)),
    ('NeighborhoodAttention', lambda layer: setattr(layer, 'kernel_size', 5)),
])
def test_local_layers_are_held_against_the_definition(name, change,
                                                      monkeypatch):

    def spoilt(spec, grid, setting):
        layer = build(spec, grid, setting)
        change(layer)
        return layer

    build = checks.build_layer
    setting = Setting(8, 2)
    spec = LayerSpec(name, dict(type=name), 2)
    assert 'all tokens' in checks.check_layer(spec, 2, setting)
    monkeypatch.setattr(checks, 'build_layer', spoilt)
    if name == 'NeighborhoodAttention':
        # Its own window says what it sees, so ask for the larger one.
        monkeypatch.setattr(checks, 'window_grid', lambda *args: (7, 7))
    with pytest.raises(checks.CheckError, match='all tokens'):
        checks.check_layer(spec, 2, setting)


def test_causal(quick):
    found = quick('--causal', '--shapes', '90', name='attention_1d_causal_cpu')
    rows = {row['layer']: row for row in found['rows']}
    for layer in ('FMA-linear', 'Fastformer'):
        assert rows[layer]['status'] == 'skipped'
        assert 'no causal form' in rows[layer]['reason']
    for layer in ('FMA', 'FullAttention1D', 'FMMformerAttention1D',
                  'LongShortAttention1D'):
        assert rows[layer]['status'] == 'measured'
        assert 'later tokens' in found['checks'][layer]


def test_wrong_causal_layer_is_no_missing_form(quick, monkeypatch):
    """And with nothing measured, there is no picture to fail on."""
    monkeypatch.setattr(
        measure, 'check_layer', lambda *args:
        (_ for _ in ()).throw(AttributeError('broken')))
    row, other = quick(
        '--causal',
        '--shapes',
        '90',
        '--layers',
        'FullAttention1D',
        'Fastformer',
        name='attention_1d_causal_cpu')['rows']
    assert (row['status'], row['reason']) == ('failed',
                                              'AttributeError: broken')
    assert other['status'] == 'skipped'
    assert 'no causal form' in other['reason']


def test_low_precision(quick):
    found = quick(
        '--dtype',
        'bf16',
        '--layers',
        'FMA',
        'GlobalFilter',
        '--shapes',
        '9x9',
        name='attention_2d_bf16_cpu')
    assert all(row['status'] == 'measured' for row in found['rows'])
    # Without attention over all tokens, FMA is what others are held to.
    assert {row['reference'] for row in found['rows']} == {'FMA'}
    assert found['checks']['FMA']['bfloat16'] > 1e-5


# ------------------------------------------------------------------ limits
def test_memory_limit(quick, capsys):
    found = quick('--shapes', '12x12', '40x40', '--memory-limit', '0.0001',
                  '--layers', 'FullAttention', 'FMA')
    small, large = found['rows'][:2], found['rows'][2:]
    assert {row['status'] for row in small} == {'measured'}
    for row in large:
        assert row['status'] == 'skipped' and 'seconds' not in row
        assert row['reason'].startswith('would need ')
        assert row['reason'].endswith(' of 0.102 MiB')
        assert row['parameters'] > 0 and row['macs'] > 0
    assert 'skipped: would need' in capsys.readouterr().out


def test_time_limit(quick, monkeypatch):
    """What a smaller size took decides; the larger one is never called."""
    called = []
    forward = FullAttention.forward

    def slow(self, x, key_mask=None):
        called.append(x.shape[1])
        time.sleep(.05 * (x.shape[1] == 12))
        return forward(self, x, key_mask)

    monkeypatch.setattr(FullAttention, 'forward', slow)
    found = quick('--shapes', '12x12', '30x30', '--time-limit', '1',
                  '--layers', 'FullAttention', 'WindowAttention')
    full = [row for row in found['rows'] if row['layer'] == 'FullAttention']
    assert full[0]['status'] == 'measured'
    assert full[1]['status'] == 'skipped'
    assert 's a call, 1 s allowed' in full[1]['reason']
    assert 'would take' in full[1]['reason']
    assert 12 in called and 30 not in called
    windows = [row for row in found['rows'] if row not in full]
    assert [row['status'] for row in windows] == ['measured'] * 2


def test_forecast():
    none = Limits(seconds=1e9, memory=10**9)
    found = limits.Forecast()
    assert found.obstacle(10**9, None, none, 'cpu') is None
    for tokens in (100, 200):  # 40 n + 10 n^2 bytes, n / 1000 seconds
        found.add(tokens, None, tokens / 1000, 40 * tokens + 10 * tokens**2)
    need = 40 * 1000 + 10 * 1000**2
    most = Limits(seconds=1e9, memory=need + 1)
    assert found.obstacle(1000, None, most, 'cpu') is None
    less = Limits(seconds=1e9, memory=need - 1)
    assert found.obstacle(1000, None, less, 'cpu').startswith('would need')
    assert found.obstacle(1000, None, Limits(seconds=1.01), 'cpu') is None
    assert 'would take 1 s' in found.obstacle(1000, None, Limits(seconds=.99),
                                              'cpu')
    # Another shape with as many tokens: 0.00004 n^2 - 0.003 n seconds.
    found.add(200, None, 1., 7)
    assert 'would take 37 s' in found.obstacle(1000, None, Limits(seconds=1),
                                               'cpu')
    found = limits.Forecast()
    found.add(100, 1000, 1., 1)
    # By multiply-adds where they are known, and no slower than tokens grow.
    assert 'would take 9 s' in found.obstacle(300, 9000, Limits(seconds=1),
                                              'cpu')
    assert 'would take 3 s' in found.obstacle(300, 1000, Limits(seconds=1),
                                              'cpu')


def test_no_step_is_large():
    found = measure.rungs([(65536, ), (4096, ), (16384, )])
    assert found == [(256, ), (1024, ), (4096, ), (16384, ), (65536, )]
    maps = measure.rungs([(1000, 600)])
    assert maps[-1] == (1000, 600) and maps[0][0] * maps[0][1] <= 512
    assert measure.rungs([(3, 4)]) == [(3, 4)]


def test_what_is_available(monkeypatch, tmp_path):
    whole = limits.available_memory('cpu')
    assert whole is None or whole > 2**20
    most, used = tmp_path / 'max', tmp_path / 'current'
    most.write_text('1000\n')
    used.write_text('400\n')
    monkeypatch.setattr(limits, '_CONTAINER', ((str(most), str(used)), ))
    assert limits.available_memory('cpu') == 600
    most.write_text('max\n')
    assert limits.available_memory('cpu') != 600
    assert Limits(memory=7).bytes_left('cpu') == 7


def test_slow_calls_get_fewer_samples():
    times = time_interleaved(
        dict(slow=lambda: time.sleep(.1), quick=lambda: None),
        repeats=6,
        warmup=0,
        least_seconds=1e-9,
        most_seconds=.1)
    assert len(times['slow']) == 3 and len(times['quick']) == 6


# ----------------------------------------------------------------- options
def test_layers_by_name():
    specs = read_specs([
        'FMA', 'FMA(cell_size=8)', 'FullAttention', 'Fastformer',
        "WindowAttention(window_size=8, shift=True)", 'FMA-linear'
    ])
    found = {(spec.label, spec.ndim): spec.config for spec in specs}
    assert found['FMA(cell_size=8)', 2] == dict(
        type='FMAttention2D', cell_size=8)
    assert found['FMA(cell_size=8)', 1] == dict(
        type='FMAttention1D', cell_size=8, rank=4)
    assert found['WindowAttention(window_size=8, shift=True)', 2] == dict(
        type='WindowAttention', window_size=8, shift=True)
    assert found['Fastformer', 1] == dict(type='Fastformer')
    assert found['FMA-linear', 2]['pool_queries'] is True
    # A shell eats quotes.
    spec, = read_specs(['GlobalFilter(size=grid)'])
    assert spec.build((5, 6), 8, 2).size == (5, 6)


@pytest.mark.parametrize('item,message', [
    ('NoLayer', 'unknown'),
    ('FullAttention(8)', 'need names'),
    ('1 + 2', 'is not NAME'),
    ('no_such_file.py', 'no config file'),
])
def test_bad_layers_are_named(item, message):
    with pytest.raises(UserError, match=message):
        read_specs([item])


def test_layers_need_labels_of_their_own(tmp_path):
    path = tmp_path / 'two.py'
    path.write_text("layers = [dict(type='FullAttention', label='a')] * 2")
    with pytest.raises(UserError, match='twice'):
        read_specs([str(path)])
    path.write_text('layers = 3')
    with pytest.raises(UserError, match='`layers`'):
        read_specs([str(path)])


@pytest.mark.parametrize('option,values', [
    ('--shapes', ['3x4x5']),
    ('--shapes', ['0']),
    ('--memory-limit', ['-1']),
    ('--time-limit', ['soon']),
    ('--causal', ['--shapes', '8x8']),
    ('--no-cost', []),
])
def test_bad_options_are_named(tool, option, values, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.parse_args([option, *values])
    assert stop.value.code == 2
    assert option in capsys.readouterr().err


def test_no_layer_for_a_shape(quick):
    with pytest.raises(UserError, match='none for 2D'):
        quick('--layers', 'Fastformer', '--shapes', '8x8')


# ---------------------------------------------------------------- training
@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A classification config on synthetic images."""
    pytest.importorskip('mmpretrain')
    from synthetic import small_config, write_fashion_mnist
    root = tmp_path_factory.mktemp('images')
    write_fashion_mnist(root / 'data/fashion_mnist', train=16, test=10)
    path = small_config(
        ROOT / 'configs/fashion_mnist/'
        'fma-nano_1xb128-3e_fashion-mnist-28px.py', root, root / 'images.py')
    cfg = load_config(str(path))
    cfg.model.backbone.arch = dict(
        embed_dims=8, depths=[1, 1, 1], num_heads=[1, 2, 2])
    cfg.model.head.in_channels = 32
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.pop('indices')
    cfg.dump(str(path))
    return str(path)


@pytest.fixture
def trained(tool, images, tmp_path):

    def run(*options: str) -> dict:
        tool.main([
            '--no-cost', '--train', images, '--epochs', '2', '--data-limit',
            '4', '--test-limit', '5', '--device', 'cpu', '--work-dir',
            str(tmp_path / 'work'), '--out',
            str(tmp_path), *options
        ])
        path = tmp_path / 'attention_accuracy_images.json'
        return json.loads(path.read_text())

    return run


def test_equal_training(trained, tmp_path, monkeypatch, capsys):
    from fma_vision.engine.hooks import IterationSeedHook
    seen = []
    before = IterationSeedHook.before_train_iter

    def remember(self, runner, batch_idx, data_batch):
        before(self, runner, batch_idx, data_batch)
        pixels = torch.stack(list(data_batch['inputs'])).double().sum().item()
        seen.append((pixels, torch.rand(()).item()))

    monkeypatch.setattr(IterationSeedHook, 'before_train_iter', remember)
    layers = [
        '--layers', 'FMA', 'WindowAttention', 'FullAttention(x=1)',
        'FMA(cell_size=4)'
    ]
    found = trained(*layers)
    fma, window, broken, twin = found['rows']
    assert broken['status'] == 'failed' and "'x'" in broken['reason']
    for row in (fma, window, twin):
        assert row['status'] == 'trained' and not row['resumed']
        # Four samples in batches of two, twice.
        assert row['iterations'] == 4
        assert (row['train_samples'], row['test_samples']) == (4, 5)
        assert 0 <= row['metrics']['accuracy/top1'] <= 100
    # The windows' tables of biases.
    assert window['parameters'] > fma['parameters']
    assert twin['metrics'] == fma['metrics']
    # The same batches, and the same numbers drawn, whatever the layer.
    assert len(seen) == 12
    assert seen[:4] == seen[4:8] == seen[8:]
    assert len(set(seen[:4])) == 4
    assert 'accuracy/top1' in capsys.readouterr().out

    # Done once, they are read; what was interrupted goes on.
    build = training.build_runner
    monkeypatch.setattr(training, 'build_runner', pytest.fail)
    again = trained('--layers', 'FMA', 'WindowAttention')
    assert again['rows'] == [fma, window]
    monkeypatch.setattr(training, 'build_runner', build)
    result, = (tmp_path / 'work/images').glob('FMA_*/result.json')
    result.unlink()
    row, = trained('--layers', 'FMA')['rows']
    assert row['resumed'] and row['metrics'] == fma['metrics']
    assert len(seen) == 12
    # A damaged result is named, and costs its row only.
    result.write_text('{"param')
    row, other = trained('--layers', 'FMA', 'WindowAttention')['rows']
    assert row['status'] == 'failed' and str(result) in row['reason']
    assert other == window


def test_the_other_unit_is_named(tool, images):
    budget = training.Budget(iters=3)
    with pytest.raises(UserError, match='use --epochs'):
        training.prepare_config(images, budget, 0, None)


def test_default_layers_of_a_config(images):
    cfg = load_config(images)
    own = training.own_attention(cfg)
    cfg.model.backbone.attn.cell_size = own['cell_size'] = 2
    specs = {spec.label: spec for spec in training.config_specs(2, own)}
    assert specs['FMA'].config == dict(type='FMAttention2D', cell_size=2)
    assert specs['FMA-linear'].config == dict(
        type='FMAttention2D', cell_size=2, pool_queries=True)
    assert 'size' not in specs['GlobalFilter'].for_model()


def test_language_model(tool, tmp_path):
    from synthetic import small_config, write_texts
    write_texts(tmp_path / 'data')
    path = small_config(
        ROOT / 'configs/lm/'
        'fma-lm-mini_1xb16-1k_tinyshakespeare-256.py', tmp_path,
        tmp_path / 'text.py')
    tool.main([
        '--no-cost', '--train',
        str(path), '--iters', '2', '--test-limit', '2', '--device', 'cpu',
        '--work-dir',
        str(tmp_path / 'work'), '--layers', 'FMA', 'FullAttention1D',
        'Fastformer', '--out',
        str(tmp_path), '--cfg-options', 'model.net.embed_dims=16',
        'model.net.depth=1'
    ])
    found = json.loads((tmp_path / 'attention_accuracy_text.json').read_text())
    fma, full, fast = found['rows']
    for row in (fma, full):
        assert row['iterations'] == 2 and row['test_samples'] == 2
        assert row['metrics']['bpc'] > 0
    assert fast['status'] == 'failed' and 'causal' in fast['reason']


def test_subset_is_spread(images):
    from mmengine.registry import DATASETS, DefaultScope
    cfg = load_config(images)
    settings = cfg.test_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        whole = DATASETS.build(settings)
        part = DATASETS.build(
            dict(type='fma_vision.SpreadSubset', dataset=settings, count=5))
        large = DATASETS.build(
            dict(type='fma_vision.SpreadSubset', dataset=settings, count=99))
        with pytest.raises(ValueError, match='count must be'):
            DATASETS.build(
                dict(
                    type='fma_vision.SpreadSubset', dataset=settings, count=0))
    part.full_init()
    assert len(part) == 5 and len(large) == len(whole) == 10
    assert part.metainfo == whole.metainfo
    labels = [part.get_data_info(i)['gt_label'] for i in range(5)]
    assert labels == [0, 2, 4, 6, 8]
    assert torch.equal(part[4]['inputs'], whole[8]['inputs'])
    with pytest.raises(IndexError):
        part[5]


# ------------------------------------------------------------------ tables
def test_tables(every_layer, load_script, monkeypatch, tmp_path):
    tables = load_script('benchmarks/tables.py')
    monkeypatch.setattr(tables, 'RESULTS', every_layer.out)
    text = tables.TABLES['attention layers']()
    row = next(r for r in every_layer.maps['rows']
               if r['layer'] == 'FMA' and r['shape'] == [12, 12])
    assert '12 × 12, ms' in text and '| 600, MiB |' in text
    number = load_script('benchmarks/report/formats.py').number
    assert number(row['seconds']['median'] * 1e3) in text
    assert 'MANO' not in text
    details = tables.TABLES['attention layers, details']()
    assert details.count('`MANOAttention`') == 4
    assert details.count('](../benchmarks/results/attention_') == 2
    assert tables.TABLES['attention layers, accuracy']() is None
    for line in (text + details).splitlines():
        assert line.count('|') in (0, 4, 6, 8)


def test_tables_say_what_was_skipped(quick, trained, load_script, monkeypatch,
                                     tmp_path):
    tables = load_script('benchmarks/tables.py')
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    quick('--shapes', '12x12', '40x40', '--memory-limit', '0.0001', '--layers',
          'FullAttention', 'FMA')
    assert 'would need' in tables.TABLES['attention layers']()
    details = tables.TABLES['attention layers, details']()
    assert details.count('skipped: would need') == 2
    trained('--layers', 'FMA', 'FullAttention(x=1)')
    scores = tables.TABLES['attention layers, accuracy']()
    assert '| `FMA` | ' in scores and "'x'" in scores
    assert '4 iterations on 4 samples' in scores
