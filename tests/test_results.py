"""Results, the pages and metafiles made from them, and the paths they name."""

import json
import re
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
    dataset='cifar10',
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
    sizes=None,
    training_loss=1.23456,
    samples_per_second=1234.5,
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


RESULTS = [(path, model) for path in METAFILES
           for model in yaml.safe_load(path.read_text())['Models']
           if 'protocol,' in model.get('Training', '')]


@pytest.mark.parametrize(
    'model', [m for _, m in RESULTS], ids=lambda m: m['Name'])
def test_scores_in_metafiles(model: dict) -> None:
    """They are those of the run that is named, or of the shipped weights."""
    protocol, name, seeds = model['Training'].split(', ', 2)
    protocol = protocol.partition(' ')[0]
    seeds = {int(x) for x in re.findall(r'\d+', seeds)}
    lines = (ROOT / 'benchmarks/results/experiments.jsonl').read_text()
    found = [
        line['value'] for line in map(json.loads, lines.splitlines())
        if (line['protocol'], line['name']) == (protocol,
                                                name) and line['seed'] in seeds
    ]
    assert len(found) == len(seeds)
    value = sum(found) / len(found)
    if 'Weights' in model:
        seed, = seeds
        test = json.loads((ROOT / 'benchmarks/results/zoo' / protocol /
                           f'{name}/seed{seed}.json').read_text())
        assert test['config'] == model['Config']
        assert test['checkpoint'] == model['Weights']
        value = next(x for k, x in test['metrics'].items()
                     if k in ('mIoU', 'accuracy/top1'))
    shown, = model['Results'][0]['Metrics'].values()
    assert shown == pytest.approx(value, abs=.00501)


@pytest.mark.parametrize('name', ['books_lm_shipped', 'street8'])
def test_scores_of_other_weights_in_metafiles(name: str) -> None:
    test = json.loads((ROOT / f'benchmarks/results/{name}.json').read_text())
    model, = (
        model for path in METAFILES
        for model in yaml.safe_load(path.read_text())['Models']
        if model.get('Weights') == test['checkpoint'])
    shown = [x for r in model['Results'] for x in r['Metrics'].values()]
    assert shown and {*shown} <= {*test['metrics'].values()}


def test_nothing_measured_leaves_places_empty(tables) -> None:
    for name, table in tables.TABLES.items():
        if not name.startswith('models'):
            assert table() is None, name
    text = tables.TABLES['models, cifar10']()
    assert text.count('| – | – |') == len(text.splitlines()) - 2


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
        dict(LINE, name='ablations/rank-2', value=1.),
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
        ' 1,234 | 987 |\n' in full)
    assert '| shifted windows | 1.37 |' in full and '| 90.50 | 1 |' in full
    assert '| 300 × 32 | 30.00 | 1 | 30.00 | 1.235 | 1,234 |\n' in reduced
    assert '92.33' not in reduced and 'A GPU, torch 2.14' in reduced
    other = tables.TABLES['experiments, camvid']()
    assert '| FMA (pretrained) |' in other
    assert "--only 'tiny_imagenet100/*' 'camvid/*'" in other
    assert '| FMA (rank-2) |' in tables.TABLES['experiments, ablations']()


def test_resolutions(tables, tmp_path) -> None:
    sizes = {'1': 91., '2': 45.5}
    write(tmp_path / 'experiments.jsonl', LINE,
          dict(LINE, seed=1, sizes=sizes))
    assert '| CIFAR-10, FMA | 91.00 (100%) | 45.50 (50%) |' in \
        tables.TABLES['resolutions']()


WEIGHTS = 'demo/weights/fma-nano_fpn_street8.pth'


def test_shipped_weights_in_pages(tables, tmp_path) -> None:
    """A run, and a test of its weights, rounded."""
    test = dict(
        config=CONFIG,
        checkpoint=WEIGHTS,
        metrics={
            'accuracy/top5': 99.,
            'accuracy/top1': 90.25
        })
    path = tmp_path / 'zoo/full/cifar10/fma/seed0.json'
    write(path, test)
    link = f'| top-1, % 90.25 | [model](../../{WEIGHTS}) |'
    assert tables.TABLES['models, cifar10']().count(link) == 1
    path.with_suffix('.log.jsonl').touch()
    assert '[log](' in tables.TABLES['models, cifar10']()
    shown = tables.TABLES['zoo']()
    assert f'| `{Path(CONFIG).stem}`, accuracy/top1 | 90.25 |' in shown
    assert f'`python tools/test.py {CONFIG} {WEIGHTS}`' in shown
    for wrong in ('demo/weights/none.pth', str(ROOT / WEIGHTS)):
        write(path, dict(test, checkpoint=wrong))
        with pytest.raises(SystemExit, match='not a file of this repository'):
            tables.TABLES['models, cifar10']()
    path.write_text('{"config": ')
    with pytest.raises(SystemExit, match='seed0.json cannot be read'):
        tables.TABLES['zoo']()


@pytest.mark.parametrize('text, message', [
    ('[1]', 'TypeError'),
    ('{"name": ', 'JSONDecodeError'),
    (b'{"name": "\xff"}', 'UnicodeDecodeError'),
    ({
        k: v
        for k, v in LINE.items() if k != 'seed'
    }, "KeyError..seed"),
    (dict(LINE, seed=1, attention='win'), "attention must be .* got 'win'"),
    (dict(LINE, seed=1, protocol='x'), "protocol must be .* got 'x'"),
    (dict(LINE, seed=1, value=None), 'TypeError'),
    (dict(LINE, seed=1, value=float('nan')), 'the score is nan'),
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
            SystemExit, match=f'experiments.jsonl, line 2: .*{message}'):
        tables.TABLES['experiments, cifar10']()


ZOO = sorted((ROOT / 'benchmarks/results/zoo').rglob('*.json'))


@pytest.mark.parametrize('path', ZOO, ids=lambda p: p.parent.name)
def test_shipped_weights_load(path: Path) -> None:
    """As ``init_cfg`` of a backbone, and into the config they are of."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmpretrain')
    import torch

    from fma_vision.engine import check_checkpoint, load_config
    from fma_vision.engine.build import build_model
    from fma_vision.models import FMATransformer
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
