"""The benchmark of the op at tiny sizes, and the tables made from it."""

import json
import sys

import pytest
import torch

PARTS = {
    'speed2d': 6,
    'speed1d': 2,
    'pooled': 24,
    'memory': 14,
    'isa': 4,
    'dtypes': 4
}
TABLES = ('operation, CPU', 'operation, details', 'linear variant, CPU')


@pytest.fixture
def ops(load_script, repo_root, monkeypatch):
    from fma_kernels.backends.native.library import unavailable
    if unavailable():
        pytest.skip(unavailable())
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    threads = torch.get_num_threads()
    yield load_script('benchmarks/ops.py')
    torch.set_num_threads(threads)


@pytest.fixture
def tables(load_script, tmp_path, monkeypatch):
    """The script, reading results from the test's own folder."""
    module = load_script('benchmarks/tables.py')
    monkeypatch.setattr(module, 'RESULTS', tmp_path)
    return module


def run(module, out, *parts):
    module.main([
        '--quick', '--threads', '1', '--seed', '3', '--out',
        str(out), '--parts', *parts
    ])
    return json.loads(out.read_text())


def median(row, name):
    return row['seconds'][name]['median']


@pytest.mark.slow
def test_parts_and_tables(ops, tables, tmp_path):
    found = run(ops, tmp_path / 'op_cpu.json', *PARTS)
    assert {name: len(part['rows']) for name, part in found.items()} == PARTS
    for part in found.values():
        assert part['environment']['seed'] == 3
        assert part['environment']['packages']['torch'] == torch.__version__
        assert part['setting']['quick'] is True
        for row in part['rows']:
            if 'seconds' in row:
                first, *_ = row['seconds']
                assert row['ratio'] == {
                    name: median(row, name) / median(row, first)
                    for name in row['seconds']
                }
    for name in ('speed2d', 'speed1d'):
        for row in found[name]['rows']:
            assert list(row['seconds'])[-1] == 'sdpa'
            assert 0 < row['errors']['fma']['sdpa'] < 1e-4
            assert max(row['errors']['fma'].values()) < 1e-4
            assert row['peak_bytes']['fma'] > 0 and not row['reasons']
            assert 0 < row['pairs'] <= row['all_pairs']
    first, second, third = found['pooled']['rows'][:3]
    assert [first['grid'], second['grid'], third['grid']] == [[512], [2048],
                                                              [8192]]
    assert 'growth' not in first and 'growth' not in found['pooled']['rows'][3]
    assert second['growth']['pooled'] == (
        median(second, 'pooled') / median(first, 'pooled'))
    for inference, training in zip(*[iter(found['memory']['rows'])] * 2):
        # The output is a third of q + k + v, gradients are all of it.
        assert inference['tensors'] >= 1 / 3
        assert training['tensors'] >= 4 / 3
    for row in found['isa']['rows']:
        assert list(row['seconds'])[-1] == 'portable'
    pages = {name: tables.TABLES[name]() for name in TABLES}
    ratio = found['speed1d']['rows'][0]['ratio']['sdpa']
    text = pages['operation, CPU']
    assert '| 1,024, causal, cell 64, inference |' in text
    assert f'**{ratio:.3g} ×**' in text or ratio >= 100
    assert '| 32 × 32, cell 4, training |' in pages['operation, details']
    assert '| 2,048, cell 8, training |' in pages['linear variant, CPU']


def test_parts_stay(ops, tables, tmp_path):
    out = tmp_path / 'op_cpu.json'
    first = run(ops, out, 'speed1d')
    both = run(ops, out, 'dtypes')
    assert list(both) == ['speed1d', 'dtypes']
    assert both['speed1d'] == first['speed1d']
    assert 'faster' not in tables.TABLES['operation, details']()
    assert tables.TABLES['linear variant, CPU']() is None


def test_nothing_measured_leaves_places_empty(tables):
    for name in TABLES:
        assert tables.TABLES[name]() is None


@pytest.mark.sampled
@pytest.mark.parametrize('part', ['speed1d', 'pooled', 'dtypes'])
@pytest.mark.parametrize(
    'wrong',
    [dict(mass=False),
     dict(scale=.1),
     dict(rank=2),
     dict(cell_size=2)],
    ids=str)
def test_a_wrong_op_is_not_timed(ops, tmp_path, monkeypatch, part, wrong):

    def off(op):

        def changed(*args, **kwargs):
            if args[0].dtype != torch.float64:  # the reference
                kwargs.update(wrong)
            return op(*args, **kwargs)

        return changed

    case = sys.modules['case']
    for name in ('fma1d', 'fma2d'):
        monkeypatch.setattr(case, name, off(getattr(case, name)))
    monkeypatch.setattr(ops, 'compare', None)
    out = tmp_path / 'op.json'
    with pytest.raises(ArithmeticError, match='is wrong.*nothing was timed'):
        run(ops, out, part)
    # Not float64 alone finds it.
    if wrong in (dict(mass=False), dict(scale=.1)) and part == 'speed1d':
        monkeypatch.setattr(case, 'allow', lambda *_: None)
        given = case.Case((1024, ), 64, causal=True)
        assert case.against_sdpa(given, given.tensors()) > 1e-3
    assert not out.exists()
