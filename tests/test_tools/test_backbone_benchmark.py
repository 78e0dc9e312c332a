"""The benchmark of whole backbones at tiny sizes, and its tables."""

import json
from argparse import Namespace

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

PARTS = dict(inference=3, training=2, memory=5, large=1, compiled=2)
TABLES = 'backbones', 'backbones, details'
CONFIG = 'configs/camvid/{}-nano_fpn_1xb4-400_camvid-240x320.py'


@pytest.fixture
def module(load_script, repo_root, monkeypatch):
    """The script with small models, and a compiler that does nothing."""
    from fma_kernels.backends.native.library import unavailable
    if unavailable():
        pytest.skip(unavailable())
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    monkeypatch.chdir(repo_root)  # the data is under data/
    module = load_script('benchmarks/backbones.py')
    arch = dict(embed_dims=32, depths=[1] * 4, num_heads=[1, 2, 4, 8])
    changes = dict(arch=arch, out_indices=(3, ))
    models = {'FMA-T': 'fma', 'Swin-T': 'swin'}
    monkeypatch.setattr(module, 'CONFIGS', {
        k: (CONFIG.format(x), changes)
        for k, x in models.items()
    })
    monkeypatch.setattr(module, 'MODELS', tuple(models))
    # No process of its own.
    monkeypatch.setattr('measure.MALLOC', {})
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, 'compile', lambda model, **_: model)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def tables(load_script, tmp_path, monkeypatch):
    """The script, reading results from the test's own folder."""
    module = load_script('benchmarks/tables.py')
    monkeypatch.setattr(module, 'RESULTS', tmp_path)
    return module


def run(module, out, *parts):
    module.main(
        ['--quick', '--threads', '1', '--out',
         str(out), '--parts', *parts])
    return json.loads(out.read_text())


def test_parts_and_tables(module, tables, tmp_path):
    found = run(module, tmp_path / 'backbone_cpu.json', *PARTS)
    assert {name: len(part['rows']) for name, part in found.items()} == PARTS
    for part in found.values():
        assert part['setting']['quick'] is True
        for row in part['rows']:
            if 'seconds' in row:
                times = {k: x['median'] for k, x in row['seconds'].items()}
                first, *_ = times.values()
                assert row['ratio'] == {k: x / first for k, x in times.items()}
            if 'errors' in row:
                assert 0 < row['errors']['naive'] < 1e-3
                assert row['errors']['torch'] < 1e-3
    first, *_ = found['inference']['rows']
    assert list(first['seconds']) == list(module.MODELS)
    for row in found['memory']['rows']:
        assert set(row['process']) <= set(module.MODELS)
    pages = {name: tables.TABLES[name]() for name in TABLES}
    ratio = 1 / first['ratio']['Swin-T']
    assert '| 64 × 64, inference | ' in pages['backbones']
    assert f'| **{ratio:.2f}** |' in pages['backbones']
    assert '| 512 × 512, inference | ' in pages['backbones, details']


@pytest.mark.slow
def test_trained_weights_and_training(module, real_data, tables, tmp_path):
    real_data('camvid')
    real_data('tiny_imagenet100')
    out = tmp_path / 'backbone_cpu.json'
    found = run(module, out, 'precision', 'camvid')
    time, *scores = found['precision']['rows']
    assert time['errors']['float32'] == 0 < time['errors']['bfloat16'] < .1
    assert 0 < time['errors']['int8'] < .2
    for row in scores:
        assert list(row['score']) == list(time['seconds'])
        assert row['images'] == 2 and row['score']['float32'] > 10
    row, = found['camvid']['rows']
    assert row['pixels'] == [240, 320] and len(row['seconds']) == 2
    page = tables.TABLES['backbones, details']()
    assert '| 2 | mIoU |' in page and 'top1 |' in page
    assert f'| **{row["ratio"]["swin-nano"]:.2f}** |' in page


def test_a_set_that_is_not_there_is_named(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = Namespace(quick=True)
    rows = module.camvid(args) + [module.score(args, *module.TRAINED[0])]
    assert all('there is no such folder' in row['reason'] for row in rows)


def test_nothing_measured_leaves_places_empty(tables):
    for name in TABLES:
        assert tables.TABLES[name]() is None


@pytest.mark.parametrize('mode', ['inference', 'training'])
def test_a_wrong_model_is_not_timed(module, tmp_path, monkeypatch, mode):
    from fma_vision.layers import attention

    def wrong(*args, backend, **options):
        scale = {} if backend in ('naive', 'torch') else dict(mass=False)
        return fma2d(*args, backend=backend, **{**options, **scale})

    fma2d = attention.fma2d
    monkeypatch.setattr(attention, 'fma2d', wrong)
    monkeypatch.setattr(module, 'compare', None)
    out = tmp_path / 'backbone_cpu.json'
    with pytest.raises(RuntimeError, match='is wrong.*nothing was timed'):
        run(module, out, mode)
    assert not out.exists()


def test_all_models_give_maps(load_script, repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    module = load_script('benchmarks/backbones.py')
    calls = module.calls_of(module.MODELS, 'inference',
                            torch.randn(1, 3, 64, 64))
    shapes = [list(run().shape) for run in calls.values()]
    assert shapes == [[1, 768, 2, 2]] * 3 + [[1, 17, 384]]


def test_other_models_must_give_numbers(module, monkeypatch):

    class Broken(nn.Module):

        def forward(self, x):
            return x / 0

    monkeypatch.setattr(module, 'build', lambda name: Broken())
    with pytest.raises(RuntimeError, match='Swin-T gives numbers'):
        module.calls_of(['Swin-T'], 'inference', torch.zeros(1, 3, 8, 8))
