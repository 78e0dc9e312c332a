"""Results, the pages and metafiles made from them, and the paths they name."""

import json
from pathlib import Path

import pytest

yaml = pytest.importorskip('yaml')

ROOT = Path(__file__).parents[1]
METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))
CONFIG = 'configs/cifar10/fma-nano_1xb128-60e_cifar10-32px.py'
MACHINE = dict(
    device='A GPU',
    threads=1,
    versions=dict(torch='2.14'),
    commit='0123456789abcdef',
    modified=False,
    date='2026-01-01')
LINE = dict(
    protocol='full',
    name='cifar10/fma',
    task='classification',
    dataset='cifar10',
    model='fma-nano',
    attention='fma',
    config=CONFIG,
    options={},
    start=None,
    seed=0,
    parameters=1368074,
    macs=164357376,
    epochs=60,
    iterations=23460,
    batch_size=128,
    metric='top1',
    value=91.,
    images_per_second=1234.5,
    training_memory=987.,
    **MACHINE)


@pytest.fixture
def tables(load_script, tmp_path, monkeypatch):
    """The script, reading results from the test's own folder."""
    module = load_script('benchmarks/tables.py')
    monkeypatch.setattr(module, 'RESULTS', tmp_path)
    return module


def write(path: Path, *lines: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_pages_and_metafiles_agree_with_the_results(load_script,
                                                    monkeypatch) -> None:
    module = load_script('benchmarks/tables.py')
    monkeypatch.setattr('sys.argv', ['tables.py', '--check'])
    module.main()


@pytest.mark.parametrize('path', METAFILES, ids=lambda p: p.parent.name)
def test_metafile(path: Path) -> None:
    """Configs, pages, code and weights that are named exist."""
    content = yaml.safe_load(path.read_text())
    collections = {c['Name']: c for c in content['Collections']}
    for collection in collections.values():
        assert (ROOT / collection['README']).is_file()
        assert (ROOT / collection['Code']['URL']).is_file()
    names = [model['Name'] for model in content['Models']]
    assert len(set(names)) == len(names)
    for model in content['Models']:
        assert model['In Collection'] in collections
        config = ROOT / model['Config']
        assert config.is_file(), config
        assert config.stem == model['Name']
        weights = model.get('Weights')
        if weights is not None and '://' not in weights:
            assert (ROOT / weights).is_file(), weights
    configs = {
        p.stem
        for p in path.parent.glob('*.py')
        # Another way to test the same weights.
        if not p.stem.endswith('_tta')
    }
    assert configs <= set(names)


def test_nothing_measured_leaves_places_empty(tables) -> None:
    for name in ('experiments, cifar10', 'ablations', 'resolutions'):
        assert tables.TABLES[name]() is None
    text = tables.TABLES['models, cifar10']()
    assert text.count('| not measured yet | – |') == 12


def test_comparison(tables, tmp_path) -> None:
    """Seeds share a row, protocols have tables of their own."""
    write(
        tmp_path / 'experiments.jsonl', LINE, dict(LINE, seed=1, value=92.),
        dict(LINE, seed=2, value=94.),
        dict(LINE, name='cifar10/window', attention='window', value=90.5),
        dict(
            LINE,
            name='camvid/fma-pretrained',
            dataset='camvid',
            metric='mIoU',
            start='tiny_imagenet100/fma'),
        dict(
            LINE,
            protocol='reduced',
            epochs=None,
            iterations=300,
            batch_size=32,
            value=30.,
            training_memory=None))
    text = tables.TABLES['experiments, cifar10']()
    full, reduced = text.split('**Reduced protocol**')
    # Mean 92.333, sample deviation 1.528.
    assert '| FMA | 1.37 | 0.164 | 60 epochs | 92.33 ± 1.53 | 3 |' in full
    assert '| shifted windows |' in full and '| 90.50 | 1 |' in full
    assert '| FMA | 1.37 | 0.164 | 300 × 32 | 30.00 | 1 | 1,234 | – |' in \
        reduced
    assert '92.33' not in reduced and 'A GPU, torch 2.14' in reduced
    assert '| FMA (pretrained) |' in tables.TABLES['experiments, camvid']()


def filled_models(tables, text: str, results: Path) -> dict:
    """The models of a metafile after filling it, by config."""
    filled = tables.experiments.fill_metafile(text, results)
    assert tables.experiments.fill_metafile(filled, results) == filled
    return {m['Config']: m for m in yaml.safe_load(filled)['Models']}


def test_targets(tables, tmp_path) -> None:
    """Differences seed by seed; of bits per character, less is better."""
    rows = []
    for name, values in {
            'camvid/fma': [20.],
            'camvid/fma-pretrained': [30., 34.],
            'camvid/window-pretrained': [29., 31., 50.],
            'camvid/full-pretrained': [30.5]
    }.items():
        rows += [
            dict(LINE, name=name, metric='mIoU', seed=seed, value=value)
            for seed, value in enumerate(values)
        ]
    for name, value in (('fma', 2.), ('full', 2.03), ('fmmformer', 1.9)):
        rows.append(
            dict(LINE, name=f'books/{name}-1k', metric='bpc', value=value))
    write(tmp_path / 'experiments.jsonl', *rows)
    text = tables.TABLES['targets']()
    assert ('| CamVid, pretrained: `fma` over `window` | +1 | +2.00 ± 1.41 | '
            '2 | yes |') in text
    assert ('| CamVid, pretrained: `fma` over `full` | -0.3 | -0.50 | 1 | no '
            '|') in text
    assert '| books, 1k: `fma` over `full` | -0.02 | +0.030 | 1 | yes |' in \
        text
    assert '`fma` over `fmmformer` | +0 | -0.100 | 1 | no |' in text
    assert text.count('\n| ') == 2 + 4  # the head and these


def test_softmax_shares(tables, tmp_path) -> None:
    record = dict(
        config=CONFIG,
        batches=2,
        shares={
            'backbone.a': dict(learned=[.25, .5, .25], even=[.2, .3, .5]),
            'backbone.b': dict(learned=[.9, .1], even=[.6, .4]),
            'backbone.c': dict(learned=[1.], even=[1.])
        })
    (tmp_path / 'softmax_shares').mkdir()
    (tmp_path / 'softmax_shares/x.json').write_text(json.dumps(record))
    text = tables.TABLES['softmax shares']()
    assert '| `a` | 25.0 / 20.0 | 50.0 / 30.0 | 25.0 / 50.0 |' in text
    assert '| `b` | 90.0 / 60.0 | 10.0 / 40.0 | – |' in text
    assert '`c`' not in text


def test_models_and_metafile(tables, tmp_path) -> None:
    """Only from scratch, unchanged; written once, taken out again."""
    text = (ROOT / 'configs/cifar10/metafile.yml').read_text()
    lines = [
        LINE,
        dict(LINE, seed=1, value=92.),
        dict(LINE, name='cifar10/x', options={'model.a': 1}, value=2.),
        dict(LINE, name='cifar10/y', start='z', value=3.)
    ]
    write(tmp_path / 'experiments.jsonl', *lines)
    models = filled_models(tables, text, tmp_path)
    wanted = dict(
        Task='Image Classification',
        Dataset='CIFAR-10',
        Metrics={'Top 1 Accuracy': 91.5})
    found = {c: m['Results'] for c, m in models.items() if 'Results' in m}
    assert found == {CONFIG: [wanted]}
    assert not any('Weights' in model for model in models.values())
    assert '| 91.50 ± 0.71 | – |' in tables.TABLES['models, cifar10']()
    # Without results the file is what it was.
    bare = tables.experiments.fill_metafile(text, tmp_path / 'none')
    filled = tables.experiments.fill_metafile(text, tmp_path)
    assert tables.experiments.fill_metafile(filled, tmp_path / 'none') == bare


def test_shipped_weights_in_pages_and_metafile(tables, tmp_path) -> None:
    """Results are those of the weights, where there are some."""
    text = (ROOT / 'configs/cifar10/metafile.yml').read_text()
    write(tmp_path / 'experiments.jsonl', LINE)
    write(
        tmp_path / 'zoo/x.json',
        dict(
            config=CONFIG,
            checkpoint='demo/weights/x.pth',
            metrics={
                'accuracy/top5': 99.,
                'accuracy/top1': 90.25
            }))
    model = filled_models(tables, text, tmp_path)[CONFIG]
    assert model['Weights'] == 'demo/weights/x.pth'
    assert model['Results'][0]['Metrics'] == {'Top 1 Accuracy': 90.25}
    assert ('| 91.00 | [model](../../demo/weights/x.pth), 90.25 |'
            in tables.TABLES['models, cifar10']())
    assert '| `demo/weights/x.pth` | CIFAR-10 | top-1, % | 90.25 |' in \
        tables.TABLES['zoo']()
    (tmp_path / 'zoo/y.json').write_text('{"config": ')
    with pytest.raises(SystemExit, match='y.json cannot be read'):
        tables.TABLES['zoo']()


ZOO = sorted((ROOT / 'benchmarks/results/zoo').glob('*.json'))


@pytest.mark.parametrize('path', ZOO, ids=lambda p: p.stem)
def test_shipped_weights_load(path: Path) -> None:
    """As ``init_cfg`` of a backbone, and into the config they are of."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmpretrain')
    import torch

    from fma_vision.engine import load_config
    from fma_vision.models import FMATransformer
    test = json.loads(path.read_text())
    weights = ROOT / test['checkpoint']
    assert weights.stat().st_size <= 15e6
    cfg = load_config(str(ROOT / test['config']))
    arguments = dict(cfg.model.backbone)
    arguments.pop('type')
    arguments['init_cfg'] = dict(
        type='Pretrained', checkpoint=str(weights), prefix='backbone.')
    backbone = FMATransformer(**arguments)
    backbone.init_weights()
    given = torch.load(weights, weights_only=True)['state_dict']
    found = backbone.state_dict()
    assert {f'backbone.{key}' for key in found} <= set(given)
    for key, value in found.items():
        torch.testing.assert_close(
            value, given[f'backbone.{key}'].to(value.dtype), rtol=0, atol=0)


def test_ablations(tables, tmp_path) -> None:
    """Beside the unchanged layer of the same protocol."""
    changed = dict(
        LINE,
        name='ablations/cell-8',
        options={'model.backbone.attn.cell_size': 8},
        value=90.)
    write(tmp_path / 'experiments.jsonl', LINE,
          dict(LINE, protocol='reduced', value=1.))
    write(tmp_path / 'ablations/cifar10.jsonl', changed)
    text = tables.TABLES['ablations']()
    assert '| unchanged | 1.37 | 0.164 | 91.00 | 1 |' in text
    assert '| `cell-8` | 1.37 | 0.164 | 90.00 | 1 |' in text
    assert '| 1.00 |' not in text
    write(tmp_path / 'ablations/cifar10.jsonl', changed,
          dict(changed, protocol='reduced', value=2.))
    full, reduced = tables.TABLES['ablations']().split('**Reduced protocol**')
    assert '| 91.00 |' in full and '| 2.00 |' not in full
    assert '| 1.00 |' in reduced and '| 2.00 |' in reduced


def test_resolutions(tables, tmp_path) -> None:
    row = dict(
        protocol='full',
        name='camvid/fma-hierarchical',
        dataset='camvid',
        attention='fma',
        **MACHINE)
    write(
        tmp_path / 'resolution.jsonl',
        dict(
            row,
            scale=2,
            shape=[720, 960],
            mIoU=61.234,
            seconds=dict(median=.0125),
            peak_memory_bytes=3 * 2**20), dict(row, scale=4, reason='no room'))
    text = tables.TABLES['resolutions']()
    assert ('| CamVid, FMA (hierarchical) | 2 × | 720 × 960 | 61.23 | 12 | 3 |'
            in text)
    assert 'Out of memory: CamVid, FMA (hierarchical) at 4 ×.' in text
