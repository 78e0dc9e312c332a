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
    assert text.count('| not measured yet |') == 6


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


def test_models_and_metafile(tables, tmp_path) -> None:
    """Only the full protocol, unchanged; written once, taken out again."""
    path = ROOT / 'configs/cifar10/metafile.yml'
    text = path.read_text()
    lines = [
        LINE,
        dict(LINE, seed=1, value=92.),
        dict(LINE, protocol='reduced', value=1.),
        dict(LINE, name='cifar10/x', options={'model.a': 1}, value=2.),
        dict(LINE, name='cifar10/y', start='z', value=3.)
    ]
    write(tmp_path / 'experiments.jsonl', *lines)
    filled = tables.experiments.fill_metafile(text, tmp_path)
    assert tables.experiments.fill_metafile(filled, tmp_path) == filled
    models = yaml.safe_load(filled)['Models']
    results = {m['Config']: m['Results'] for m in models if 'Results' in m}
    wanted = dict(
        Task='Image Classification',
        Dataset='CIFAR-10',
        Metrics={'Top 1 Accuracy': 91.5})
    assert results == {CONFIG: [wanted]}
    assert '| 91.50 ± 0.71 |' in tables.TABLES['models, cifar10']()
    # Without results the file is what it was.
    empty = tables.experiments.fill_metafile(filled, tmp_path / 'none')
    assert empty == tables.experiments.fill_metafile(text, tmp_path / 'none')
    # A weights line and the order of models outlive the change.
    marked = text.replace(
        '      FLOPs: 164357376\n',
        '      FLOPs: 164357376\n    Weights: demo/weights/x.pth\n')
    again = tables.experiments.fill_metafile(marked, tmp_path)
    first = yaml.safe_load(again)['Models'][0]
    assert first['Weights'] == 'demo/weights/x.pth' and first['Results']


def test_ablations(tables, tmp_path) -> None:
    write(tmp_path / 'experiments.jsonl', LINE,
          dict(LINE, protocol='reduced', value=1.))
    write(
        tmp_path / 'ablations/cifar10.jsonl',
        dict(
            LINE,
            name='ablations/cell-8',
            options={'model.backbone.attn.cell_size': 8},
            value=90.))
    text = tables.TABLES['ablations']()
    assert '| unchanged | 1.37 | 0.164 | 91.00 | 1 |' in text
    assert '| `cell-8` | 1.37 | 0.164 | 90.00 | 1 |' in text
    assert '| 1.00 |' not in text


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
