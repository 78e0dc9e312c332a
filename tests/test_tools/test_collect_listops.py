"""Collecting the results of ListOps, and the table from them."""

import json
from pathlib import Path
from typing import Optional

import pytest

from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json

pytest.importorskip('mmpretrain')

NAME = 'fma-lra-small_1xb32-1200_listops-200'
PARTS = (None, 'full', 'fma_linear')


@pytest.fixture
def collector(load_script):
    return load_script('tools/analysis_tools/collect_listops.py')


def fill_work_dir(folder: Path,
                  repo_root: Path,
                  accuracy: float,
                  last: int = 1200,
                  checkpoint: str = 'iter_1200.pth',
                  part: Optional[str] = None,
                  **options: str) -> Path:
    """What a training and its test leave."""
    from fma_vision.engine import load_config
    bases = [f'configs/_base_/attention/{part}.py'] if part else []
    cfg = load_config(
        str(repo_root / f'configs/lra/{NAME}.py'), options,
        [str(repo_root / base) for base in bases])
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
            config=f'configs/lra/{NAME}.py',
            base=bases,
            checkpoint=f'{folder}/{checkpoint}',
            metrics={'accuracy/top1': accuracy},
            environment=collect_environment('cpu', 0)))


def test_rows_and_table(collector, load_script, repo_root, tmp_path,
                        monkeypatch) -> None:
    tests = [
        fill_work_dir(tmp_path / str(part), repo_root, 30. + i, part=part)
        for i, part in enumerate(PARTS)
    ]
    out = tmp_path / 'listops.json'
    collector.main([*map(str, tests), '--out', str(out)])
    rows = json.loads(out.read_text())['rows']
    assert [r['accuracy'] for r in rows] == [30., 31., 32.]
    assert [r['attention'] for r in rows
            ] == ['FMAttention1D', 'FullAttention1D', 'FMAttention1D']
    assert [r['pool_queries'] for r in rows] == [False, False, True]
    assert {(r['iterations'], r['samples'], r['seed'])
            for r in rows} == {(1200, 38400, 0)}
    assert rows[0]['parameters'] > rows[1]['parameters'] > 5e5
    assert rows[0]['curve'] == [
        dict(iterations=1000, accuracy=29.),
        dict(iterations=1200, accuracy=29.)
    ]
    module = load_script('benchmarks/tables.py')
    monkeypatch.setattr(module, 'RESULTS', tmp_path)
    text = module.TABLES['ListOps']()
    assert f'| `{NAME}` | 0.62 | 1,200 | 38,400 | 0 | 30.0 |' in text
    assert (f'| `{NAME}` + `full` | 0.61 | 1,200 | 38,400 | 0 | 31.0 |'
            in text)
    out.unlink()
    assert module.TABLES['ListOps']() is None


@pytest.mark.parametrize('settings, message', [
    (dict(last=900), 'stopped at 900 of 1200'),
    (dict(checkpoint='best.pth'), 'not of the last iteration'),
    ({
        'test_dataloader.dataset.samples': 9
    }, 'all of ListOps'),
])
def test_refuses(settings, message, collector, repo_root, tmp_path) -> None:
    from fma_vision.engine import UserError
    test = fill_work_dir(tmp_path / NAME, repo_root, 30., **settings)
    with pytest.raises(UserError, match=message):
        collector.collect(test)
