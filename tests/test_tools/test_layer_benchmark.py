"""The benchmark of attention layers at tiny sizes, and its table."""
import json

import pytest
import torch


@pytest.fixture
def tool(load_script, repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    module = load_script('benchmarks/layers.py')
    monkeypatch.setattr(module, 'CHECKED',
                        dict(maps=(21, 19), sequences=(330, )))
    monkeypatch.setattr(module, 'SIZES', dict(maps=(8, 2), sequences=(8, 2)))
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def run(tool, out, *options) -> dict:
    tool.main(['--quick', '--threads', '1', '--out', str(out), *options])
    return json.loads(out.read_text())


def test_all_layers_are_measured(tool, load_script, tmp_path,
                                 monkeypatch) -> None:
    found = run(tool, tmp_path / 'layers_cpu.json')
    for part, content in found.items():
        shapes = [list(shape) for shape in tool.QUICK[part]]
        assert [(r['layer'], r['shape']) for r in content['rows']
                ] == [(x, s) for s in shapes for x in tool.LAYERS[part]]
        for row in content['rows']:
            assert row['seconds']['layer']['median'] > 0
            assert row['parameters'] > 0 and row['macs'] > 0
            # At least the output, in float32.
            tokens = torch.Size(row['shape']).numel()
            assert row['peak_memory_bytes'] >= tokens * 8 * 4
            assert ('errors' in row) == row['layer'].startswith('FMA')
    rows = {(r['layer'], *r['shape']): r for r in found['maps']['rows']}
    # Two products of 144 x 144 pairs and four linear layers of 8 channels.
    assert rows['FullAttention', 12,
                12]['macs'] == (2 * 144**2 * 8 + 4 * 144 * 8**2)
    tables = load_script('benchmarks/tables.py')
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    text = tables.TABLES['layers']()
    full = next(x for x in text.splitlines()
                if x.startswith('| `FullAttention`, 20 × 20, inference'))
    assert full.split(' | ')[4] == '1'
    assert text.count('| `MANOAttention`') == 2


def test_a_slow_size_is_left_out(tool, load_script, tmp_path,
                                 monkeypatch) -> None:
    # Two products of 144 x 144 pairs, and four linear layers of 8 channels.
    monkeypatch.setattr(tool, 'MOST', 2 * 144**2 * 8 + 4 * 144 * 8**2)
    found = run(tool, tmp_path / 'layers_cpu.json', '--parts', 'maps',
                '--layers', 'FullAttention', '--training')
    assert [(row['mode'], row['shape'][0], 'reason' in row)
            for row in found['maps']['rows']] == [('inference', 12, False),
                                                  ('inference', 20, True),
                                                  ('training', 12, False),
                                                  ('training', 20, True)]
    tables = load_script('benchmarks/tables.py')
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    text = tables.TABLES['layers']()
    assert text.count(' G MACs a call |') == 2


@pytest.mark.parametrize('name', ['FMA', 'FMA-linear'])
def test_a_wrong_layer_is_not_timed(tool, tmp_path, monkeypatch, name) -> None:
    from fma_vision.layers import attention
    right = attention.fma2d

    def wrong(*args, backend, **kwargs):
        out = right(*args, backend=backend, **kwargs)
        return out if backend == 'naive' else out * 1.001

    monkeypatch.setattr(attention, 'fma2d', wrong)
    out = tmp_path / 'no.json'
    with pytest.raises(RuntimeError, match=f'{name} is wrong.*nothing was'):
        run(tool, out, '--parts', 'maps', '--layers', name)
    assert not out.exists()
