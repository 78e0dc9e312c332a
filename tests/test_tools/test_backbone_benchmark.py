"""The benchmark of whole backbones at tiny sizes, and its tables."""

import json

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

PARTS = dict(
    inference=3,
    training=2,
    memory=5,
    large=1,
    compiled=2,
    precision=3,
    camvid=1,
    profile=2)
TABLES = 'backbones', 'backbones, details', 'backbones, profile'
FMA = 'FMA-T'


@pytest.fixture
def module(load_script, repo_root, monkeypatch):
    """The script with small models, and a compiler that does nothing."""
    from fma_kernels.backends.native.library import unavailable
    if unavailable():
        pytest.skip(unavailable())
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    monkeypatch.chdir(repo_root)  # the data is under data/
    module = load_script('benchmarks/backbones.py')
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
            if 'reason' in row:
                assert 'there is no such folder' in row['reason']
    first, *_ = found['inference']['rows']
    assert list(first['seconds']) == list(module.MODELS)
    for row in found['memory']['rows']:
        assert all(size > 0 for size in row['tensors'].values())
    for row in found['profile']['rows']:
        for shares in row['shares'].values():
            assert sum(shares.values()) == pytest.approx(1)
            assert shares['attention'] > 0 and shares['linear layers'] > .05
        training = row['mode'] == 'training'
        assert (row['shares']['native']['optimizer'] > 0) is training
    pages = {name: tables.TABLES[name]() for name in TABLES}
    ratio = 1 / first['ratio']['Swin-T']
    assert '| 64 × 64, inference | ' in pages['backbones']
    assert f'| **{ratio:.2f}** |' in pages['backbones']
    assert '| 512 × 512, inference | ' in pages['backbones, details']
    assert '| attention, % | ' in pages['backbones, profile']


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


def test_other_models_must_give_numbers(module, monkeypatch):

    class Broken(nn.Module):

        def forward(self, x):
            return x / 0

    monkeypatch.setattr(module, 'build', lambda name: Broken())
    with pytest.raises(RuntimeError, match='Swin-T gives numbers'):
        module.calls_of(['Swin-T'], 'inference', torch.zeros(1, 3, 8, 8))
