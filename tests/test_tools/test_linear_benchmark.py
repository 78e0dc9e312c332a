"""The benchmark of pooled queries at tiny sizes, and the table from it."""

import json

import pytest
import torch

OPTIONS = ('--heads', '1', '--dim', '4', '--cells', '2', '--repeats', '2',
           '--least', '0', '--seed', '3')


@pytest.fixture
def linear(load_script, repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / 'kernels' / 'benchmarks'))
    # The script sets it, for its own process.
    monkeypatch.setenv('THP_MEM_ALLOC_ENABLE', '0')
    return load_script('kernels/benchmarks/linear.py')


@pytest.fixture
def table(load_script, tmp_path, monkeypatch):
    """The table of what lies in the test's own folder."""
    module = load_script('benchmarks/tables.py')
    monkeypatch.setattr(module, 'RESULTS', tmp_path)
    return module.TABLES['linear variant, CPU']


def run(module, out, *options):
    module.main([
        *OPTIONS, '--threads',
        str(torch.get_num_threads()), '--out',
        str(out), *options
    ])
    return json.loads(out.read_text())


def test_parts_and_table(linear, table, tmp_path):
    sizes = ('--lengths', '64', '32', '--sides', '17')
    found = run(linear, tmp_path / 'linear_cpu.json', *sizes)
    assert list(found) == ['scaling', 'plain']
    for part in found.values():
        assert part['environment']['seed'] == 3
        assert part['environment']['packages']['torch'] == torch.__version__
        assert part['setting']['huge_pages'] is False
        for row in part['rows']:
            assert 0 < max(row['errors'].values()) < 1e-4
    rows = found['scaling']['rows']
    assert [row['grid'] for row in rows[::3]] == [[32], [64], [17, 17]]
    names = ['far field', 'with pooling', 'whole']
    assert [row['part'] for row in rows] == names * 3
    for small, large in zip(rows[:3], rows[3:6]):
        assert small['growth'] is small['peak_growth'] is None
        assert large['growth'] == (
            large['seconds']['median'] / small['seconds']['median'])
        assert large['peak_growth'] == (
            large['peak_bytes'] / small['peak_bytes'])
    # Far output and lse of 16 + 8 + 4 and 32 + 16 + 8 + 4 sub-cells, float32.
    for row, cells in ((rows[0], 28), (rows[3], 60)):
        assert row['peak_bytes'] >= cells * 5 * 4
    assert rows[6]['growth'] is None  # another family
    rows = found['plain']['rows']
    assert [row['mode'] for row in rows] == ['inference', 'training'] * 3
    for row in rows:
        assert row['faster'] == (
            row['plain_seconds']['median'] / row['pooled_seconds']['median'])
    text = table()
    assert '| 17 × 17, cell 2, training |' in text
    assert f'**{rows[0]["faster"]:.2f} ×**' in text
    assert text.count('| 64, cell 2 |') == 1


def test_parts_stay(linear, table, tmp_path):
    out, sizes = tmp_path / 'linear_cpu.json', ('--lengths', '40', '--sides')
    first = run(linear, out, '--parts', 'plain', *sizes)
    both = run(linear, out, '--parts', 'scaling', *sizes)
    assert list(both) == ['plain', 'scaling']
    assert both['plain'] == first['plain']
    assert table().count('| 40, cell 2 |') == 1


def test_the_far_field_is_that_of_the_op(linear):
    """What is timed alone gives what the op then merges."""
    args = linear.argparse.Namespace(heads=2, dim=4)
    tensors = linear.qkv((40, ), args)
    far = linear.far_field(tensors, 2)
    out, lse = far['far field']()
    pooled, (again, _) = far['with pooling']()
    assert len(pooled) == 3 and torch.equal(out, again)
    # 20 + 10 + 5 + 3 cells.
    assert out.shape == (1, 38, 2, 4) and lse.shape == (1, 38, 2)
    assert pooled[0].shape == out.shape


@pytest.mark.parametrize('part', ['scaling', 'plain'])
@pytest.mark.parametrize(
    'wrong', [
        dict(mass=False),
        dict(scale=.1),
        dict(rank=2),
        dict(num_levels=1, cell_size=1)
    ],
    ids=str)
def test_a_wrong_op_is_not_timed(linear, tmp_path, monkeypatch, part, wrong):
    out, op = tmp_path / 'op.json', linear.fma1d

    def off(*args, backend='auto', **kwargs):
        if kwargs['pool_queries'] and backend != 'naive':
            kwargs.update(wrong)
        return op(*args, backend=backend, **kwargs)

    monkeypatch.setattr(linear, 'fma1d', off)
    sizes = ('--lengths', '40', '--sides')
    with pytest.raises(RuntimeError, match='is wrong.*nothing was timed'):
        run(linear, out, '--parts', part, *sizes)
    monkeypatch.setattr(linear, 'check_small', lambda *args: None)
    if wrong in (dict(mass=False), dict(scale=.1)):
        with pytest.raises(RuntimeError, match='is wrong'):
            run(linear, out, '--parts', part, *sizes)
    assert not out.exists()
