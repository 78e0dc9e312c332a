"""Results, the pages and metafiles made from them, and the paths they name."""

import json
from pathlib import Path

import pytest

yaml = pytest.importorskip('yaml')

ROOT = Path(__file__).parents[1]
METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))
SETS = ('camvid', 'cifar10', 'dubai_aerial', 'tiny_imagenet100')
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
    training={},
    start=None,
    seed=0,
    parameters=1368074,
    macs=164357376,
    epochs=60,
    iterations=23460,
    batch_size=128,
    metric='top1',
    value=91.,
    training_loss=1.23456,
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
    assert {p.stem for p in path.parent.glob('*.py')} == set(names)


def test_shipped_weights_are_in_metafiles() -> None:
    """Each file once, with the config that it is of."""
    models = [
        model for path in METAFILES
        for model in yaml.safe_load(path.read_text())['Models']
    ]
    named = [model['Weights'] for model in models if 'Weights' in model]
    assert sorted(named) == sorted(
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / 'demo/weights').glob('*.pth'))


@pytest.mark.parametrize(
    'path', [p for p in METAFILES if p.parent.name in SETS],
    ids=lambda p: p.parent.name)
def test_recipes_in_metafiles(path: Path) -> None:
    """What a collection says of its models' training is what configs do."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmpretrain')
    from fma_vision.engine import load_config
    content = yaml.safe_load(path.read_text())
    recipes = {c['Name']: c['Metadata'] for c in content['Collections']}
    for model in content['Models']:
        recipe = recipes[model['In Collection']]
        cfg = load_config(str(ROOT / model['Config']))
        assert recipe['Batch Size'] == cfg.train_dataloader.batch_size
        assert recipe.get('Epochs') == cfg.train_cfg.get('max_epochs')
        assert recipe.get('Iterations') == cfg.train_cfg.get('max_iters')
        mixes = (cfg.model.get('train_cfg') or {}).get('augments', [])
        assert {mix.type
                for mix in mixes
                } == {'Mixup', 'CutMix'} & {*recipe['Training Techniques']}


def test_nothing_measured_leaves_places_empty(tables) -> None:
    for name in ('experiments, cifar10', 'ablations', 'resolutions'):
        assert tables.TABLES[name]() is None
    text = tables.TABLES['models, cifar10']()
    assert text.count('| not measured yet | – |') == 2
    assert '| not measured yet | – | – |' in \
        tables.TABLES['models, dubai_aerial']()


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
    assert (
        '| FMA | 1.37 | 0.164 | 60 epochs | 92.33 ± 1.53 | 3 | 91.00 | 1.235 |'
        in full)
    assert '| shifted windows |' in full
    assert '| 90.50 | 1 | 90.50 | 1.235 |' in full
    # The mean share is 91.875 %: the root of .91875 * .08125 / 10000.
    assert '92%, the 10,000 test images leave a standard error of 0.27' in full
    assert ('| 300 × 32 | 30.00 | 1 | 30.00 | 1.235 | 1,234 |\n' in reduced)
    assert '92.33' not in reduced and 'A GPU, torch 2.14' in reduced
    assert '| FMA (pretrained) |' in tables.TABLES['experiments, camvid']()


def test_models(tables, tmp_path) -> None:
    """Unchanged models, from scratch and from other weights apart."""
    config = 'configs/camvid/fma-nano_fpn_1xb8-8k_camvid-360x480.py'
    line = dict(LINE, dataset='camvid', metric='mIoU', config=config)
    started = dict(line, name='camvid/fma-pretrained', start='z')
    write(tmp_path / 'experiments.jsonl', line, dict(line, seed=1, value=92.),
          dict(line, name='camvid/x', options={'model.a': 1}, value=2.),
          started)
    text = tables.TABLES['models, camvid']()
    assert '| 91.50 ± 0.71 (2 seeds) | 91.00 | – |' in text
    write(tmp_path / 'experiments.jsonl', started)
    assert '| – | 91.00 | – |' in tables.TABLES['models, camvid']()
    # Another layer is no result of the config as it is.
    full = dict(line, name='camvid/full', base='configs/_base_/attention/x.py')
    write(tmp_path / 'experiments.jsonl', line, dict(full, value=2.))
    assert '| 91.00 | – | – |' in tables.TABLES['models, camvid']()
    # Another learning rate is no change of the model, but one of the config.
    write(tmp_path / 'experiments.jsonl', line,
          dict(line, name='camvid/fma-lr', training={'lr': 1}, value=2.))
    assert '| 91.00 | – | – |' in tables.TABLES['models, camvid']()
    # Of two that start elsewhere, the one with more seeds.
    write(tmp_path / 'experiments.jsonl', dict(started, name='camvid/fma-a'),
          dict(started, value=93.), dict(started, value=95., seed=1))
    assert '| – | 94.00 ± 1.41 (2 seeds) | – |' in \
        tables.TABLES['models, camvid']()
    write(tmp_path / 'experiments.jsonl', line, dict(line, protocol='reduced'))
    with pytest.raises(SystemExit, match='results of two protocols'):
        tables.TABLES['models, camvid']()


WEIGHTS = 'demo/weights/fma-nano_fpn_street8.pth'


@pytest.fixture
def shipped(tmp_path) -> dict:
    """A run, and a test of its weights, rounded."""
    test = dict(
        config=CONFIG,
        checkpoint=WEIGHTS,
        metrics={
            'accuracy/top5': 99.,
            'accuracy/top1': 90.25
        })
    write(tmp_path / 'experiments.jsonl', LINE)
    write(tmp_path / 'zoo/full/cifar10/fma/seed0.json', test)
    return test


def test_shipped_weights_in_pages(tables, tmp_path, shipped) -> None:
    text = (ROOT / 'configs/cifar10/metafile.yml').read_text()
    bare = tables.zoo.fill_metafile(text, tmp_path / 'none')
    filled = tables.zoo.fill_metafile(bare, tmp_path)
    assert tables.zoo.fill_metafile(filled, tmp_path) == filled
    assert tables.zoo.fill_metafile(filled, tmp_path / 'none') == bare
    wanted = dict(
        Weights=WEIGHTS,
        Training='full protocol, cifar10/fma, seed 0',
        Results=[
            dict(
                Task='Image Classification',
                Dataset='CIFAR-10',
                Metrics={'Top 1 Accuracy': 90.25})
        ])
    for model in yaml.safe_load(filled)['Models']:
        found = {k: v for k, v in model.items() if k in wanted}
        assert found == (wanted if model['Config'] == CONFIG else {})
    assert f'| 91.00 | [model](../../{WEIGHTS}) |' in \
        tables.TABLES['models, cifar10']()
    log = tmp_path / 'zoo/full/cifar10/fma/seed0.log.jsonl'
    log.touch()
    assert '[log](' in tables.TABLES['models, cifar10']()
    assert (f'| `{WEIGHTS}` | `cifar10/fma`, seed 0 | top-1, % | 91.00 | '
            '90.25 |') in tables.TABLES['zoo']()


@pytest.mark.parametrize('change, message', [
    (dict(config='configs/x.py'), 'not the config of a run full/cifar10/fma'),
    (dict(checkpoint='demo/weights/none.pth'), 'not a file of this repo'),
    (dict(checkpoint=str(ROOT / WEIGHTS)), 'not a file of this repository'),
    (dict(metrics={'mIoU': 1.}), 'has no metric top1'),
])
def test_wrong_tests_of_weights(tables, tmp_path, shipped, change,
                                message) -> None:
    path = tmp_path / 'zoo/full/cifar10/fma/seed0.json'
    write(path, dict(shipped, **change))
    with pytest.raises(SystemExit, match=message):
        tables.TABLES['zoo']()
    path.write_text('[1]')
    with pytest.raises(SystemExit, match='has no config, checkpoint, metrics'):
        tables.TABLES['zoo']()
    path.write_text('{"config": ')
    with pytest.raises(SystemExit, match='seed0.json cannot be read'):
        tables.TABLES['zoo']()


def test_results_in_metafiles(tables, tmp_path) -> None:
    """Models without weights have the mean of their seeds."""
    config = 'configs/camvid/fma-nano_fpn_1xb8-8k_camvid-360x480.py'
    line = dict(LINE, dataset='camvid', metric='mIoU', config=config)
    write(
        tmp_path / 'experiments.jsonl',
        dict(line, name='camvid/fma', value=5.),
        dict(line, name='camvid/fma-pretrained', start='z', value=50.),
        dict(line, name='camvid/fma-pretrained', start='z', value=51., seed=1))
    text = (ROOT / 'configs/camvid/metafile.yml').read_text()
    filled = tables.zoo.fill_metafile(text, tmp_path)
    assert tables.zoo.fill_metafile(filled, tmp_path) == filled
    models = yaml.safe_load(filled)['Models']
    model = next(m for m in models if m['Config'] == config)
    assert model['Training'] == ('full protocol, camvid/fma-pretrained, mean '
                                 'of seeds 0, 1')
    assert model['Results'][0]['Metrics'] == {'mIoU': 50.5}
    assert sum('Results' in m for m in models) == 1


@pytest.mark.parametrize('text, message', [
    ('[1]', 'line 2 is no object'),
    ('{"name": ', 'line 2 cannot be read'),
    (b'{"name": "\xff"}', 'line 2 cannot be read'),
    ({
        k: v
        for k, v in LINE.items() if k != 'seed'
    }, 'line 2: has no seed'),
    ({
        k: v
        for k, v in LINE.items() if k != 'macs'
    }, 'line 2: has no macs: collect again'),
    (dict(LINE, seed=1, attention='win'), "attention must be .* got 'win'"),
    (dict(LINE, seed=1, protocol='x'), "protocol must be .* got 'x'"),
    (dict(LINE, seed=1, value=None), 'score must be a number, got None'),
    (dict(LINE, seed=1, value=float('nan')), 'must be a number, got nan'),
    (LINE, 'the same run is there twice'),
])
def test_damaged_results_are_named(tables, tmp_path, text, message) -> None:
    if isinstance(text, dict):
        text = json.dumps(text)
    path = tmp_path / 'experiments.jsonl'
    path.write_bytes(
        json.dumps(LINE).encode() + b'\n' +
        (text if isinstance(text, bytes) else text.encode()))
    with pytest.raises(
            SystemExit,
            match=f'experiments.jsonl, {message}'
            if message.startswith('line') else message):
        tables.TABLES['experiments, cifar10']()


@pytest.mark.parametrize(
    'values, verdict',
    [
        ([91.], '| +1.50 | 1 | yes, on one seed |'),
        ([90.], '| +0.50 | 1 | no, on one seed |'),
        # Means of 1.1 and .9, standard errors of 1.0 and .05.
        ([91.6, 89.6], '| +1.10 ± 1.41 | 2 | yes, within the error |'),
        ([90.35, 90.45], '| +0.90 ± 0.07 | 2 | no |'),
    ])
def test_targets(tables, tmp_path, values, verdict) -> None:
    """The mean decides; what its error leaves open is said."""
    line = dict(LINE, dataset='camvid', metric='mIoU')
    write(
        tmp_path / 'experiments.jsonl',
        *(dict(
            line,
            name=f'camvid/{attention}',
            attention=attention,
            seed=seed,
            value=value) for seed, first in enumerate(values)
          for attention, value in (('fma', first), ('window', 89.5))))
    assert verdict in tables.TABLES['targets']()


def test_missing_runs_are_listed(tables, tmp_path) -> None:
    write(tmp_path / 'experiments.jsonl', LINE)
    text = tables.TABLES['missing runs']()
    assert 'Full protocol: 1 of ' in text
    assert '`cifar10/fma_linear/seed0`' in text
    assert '`cifar10/fma/seed0`' not in text
    assert '**Reduced protocol**: 0 of ' in text
    # The score alone is not all of a run that is tested at several sizes.
    line = dict(LINE, name='dubai_aerial/fma', dataset='dubai_aerial')
    for sizes, missing in ((1, 2), True), ((1, 2, 4), False):
        write(tmp_path / 'experiments.jsonl', LINE, line)
        write(tmp_path / 'resolution.jsonl',
              *(dict(line, scale=size, mIoU=1.) for size in sizes))
        text = tables.TABLES['missing runs']()
        assert ('`dubai_aerial/fma/seed0`' in text) == missing


ZOO = sorted((ROOT / 'benchmarks/results/zoo').rglob('*.json'))


@pytest.mark.parametrize('path', ZOO, ids=lambda p: p.parent.name)
def test_shipped_weights_load(path: Path) -> None:
    """As ``init_cfg`` of a backbone, and into the config they are of."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmpretrain')
    import torch

    from fma_vision.engine import check_checkpoint, load_config
    from fma_vision.models import FMATransformer
    from fma_vision.utils.configs import build_model
    test = json.loads(path.read_text())
    weights = ROOT / test['checkpoint']
    assert weights.stat().st_size <= 15e6
    cfg = load_config(str(ROOT / test['config']))
    check_checkpoint(build_model(cfg), str(weights))
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
    shared = ('protocol', 'attention', 'config', 'options', 'training',
              'start', 'seed', *MACHINE)
    row = {key: LINE[key] for key in shared}
    row.update(name='camvid/fma-hierarchical', dataset='camvid')
    write(
        tmp_path / 'resolution.jsonl',
        dict(
            row,
            scale=1,
            shape=[360, 480],
            mIoU=70.,
            seconds=dict(median=.005),
            peak_memory_bytes=2**20),
        dict(
            row,
            scale=2,
            shape=[720, 960],
            mIoU=61.234,
            seconds=dict(median=.0125),
            peak_memory_bytes=3 * 2**20), dict(row, scale=4, reason='no room'))
    text = tables.TABLES['resolutions']()
    # 61.234 of 70 is 87 %.
    assert ('| CamVid, FMA (hierarchical) | 2 × | 720 × 960 | 61.23 | 87 | 12 '
            '| 3 |' in text)
    assert 'Out of memory: CamVid, FMA (hierarchical) at 4 ×.' in text
    assert 'Full protocol:' in text and "--protocol full --only" in text
