"""Collecting the results of ListOps, and the table from them."""

import json
from pathlib import Path

import pytest

from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json

pytest.importorskip('mmpretrain')

NAMES = ('fma-lra-small_1xb8-1600_listops', 'full-lra-small_1xb8-1600_listops',
         'fma-linear-lra-small_1xb8-1600_listops')


@pytest.fixture
def collector(load_script):
    return load_script('tools/analysis_tools/collect_listops.py')


def fill_work_dir(folder: Path,
                  repo_root: Path,
                  accuracy: float,
                  last: int = 1600,
                  checkpoint: str = 'iter_1600.pth',
                  **options: str) -> Path:
    """What a training and its test leave."""
    from fma_vision.engine import load_config
    cfg = load_config(
        str(repo_root / f'configs/lra/{folder.name}.py'), options)
    data = folder / '1' / 'vis_data'
    data.mkdir(parents=True)
    cfg.dump(str(data / 'config.py'))
    lines = []
    for step in (last - 200, last):
        lines.append({'loss': 2., 'iter': step, 'step': step})
        lines.append({'accuracy/top1': accuracy - 1, 'step': step})
    (data / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    return write_json(
        folder / 'test.json',
        dict(
            config=f'configs/lra/{folder.name}.py',
            checkpoint=f'{folder}/{checkpoint}',
            metrics={'accuracy/top1': accuracy},
            environment=collect_environment('cpu', 0)))


def test_rows_and_table(collector, load_script, repo_root, tmp_path,
                        monkeypatch) -> None:
    tests = [
        fill_work_dir(tmp_path / name, repo_root, 30. + i)
        for i, name in enumerate(NAMES)
    ]
    out = tmp_path / 'listops.json'
    collector.main([*map(str, tests), '--out', str(out)])
    rows = json.loads(out.read_text())['rows']
    assert [r['accuracy'] for r in rows] == [30., 31., 32.]
    assert [r['attention'] for r in rows
            ] == ['FMAttention1D', 'FullAttention1D', 'FMAttention1D']
    assert [r['pool_queries'] for r in rows] == [False, False, True]
    assert {(r['iterations'], r['samples'], r['seed'])
            for r in rows} == {(1600, 12800, 0)}
    assert rows[0]['parameters'] > rows[1]['parameters'] > 5e5
    assert rows[0]['curve'] == [
        dict(iterations=1400, accuracy=29.),
        dict(iterations=1600, accuracy=29.)
    ]
    module = load_script('benchmarks/tables.py')
    monkeypatch.setattr(module, 'RESULTS', tmp_path)
    text = module.TABLES['ListOps']()
    assert f'| `{NAMES[1]}` | 0.61 | 1,600 | 12,800 | 0 | 31.0 |' in text
    out.unlink()
    assert module.TABLES['ListOps']() is None


@pytest.mark.parametrize('settings, message', [
    (dict(last=900), 'stopped at 900 of 1600'),
    (dict(checkpoint='best.pth'), 'not of the last iteration'),
    ({
        'test_dataloader.dataset.samples': 9
    }, 'all of ListOps'),
])
def test_refuses(settings, message, collector, repo_root, tmp_path) -> None:
    from fma_vision.engine import UserError
    test = fill_work_dir(tmp_path / NAMES[0], repo_root, 30., **settings)
    with pytest.raises(UserError, match=message):
        collector.collect(test)
