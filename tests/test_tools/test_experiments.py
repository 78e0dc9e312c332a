"""The driver of the experiments, from training to the lines of results."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import json
import sys
from dataclasses import replace
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from mmengine.config import DictAction
from mmengine.registry import MODELS, DefaultScope
from synthetic import small_config, write_class_folders, write_paired

from fma_vision.datasets.classification import CIFAR10_CLASSES
from fma_vision.engine import UserError, load_config, read_checkpoint
from fma_vision.engine.files import write_json

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / 'benchmarks/experiments'
NAMES = ('collect', 'protocol', 'run')


@pytest.fixture(scope='module')
def scripts():
    """The driver's modules, imported as when it runs."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope='module')
def small(tmp_path_factory) -> SimpleNamespace:
    """Small configs of a classification and a segmentation set."""
    root = tmp_path_factory.mktemp('experiments')
    write_class_folders(root / 'data/cifar10', CIFAR10_CLASSES, 32,
                        dict(train=1, test=1))
    write_paired(root / 'data/camvid', 11)
    found = SimpleNamespace(root=root)
    for name, pattern in (('cls', 'cifar10/fma-nano_*60e*'),
                          ('seg', 'camvid/fma-nano_*8k*')):
        config = next((ROOT / 'configs').glob(pattern))
        target = root / f'{name}_1xb2.py'
        setattr(found, name, str(small_config(config, root, target)))
    return found


@pytest.fixture
def driver(scripts, small, load_script, tmp_path, monkeypatch):
    """The driver on a small protocol, its commands run in this process."""
    train, test = (
        load_script(f'tools/{name}.py') for name in ('train', 'test'))
    calls = []

    def call(command, device):
        tool, argv = Path(command[0]).stem, ['--device', device, *command[1:]]
        calls.append(command)
        # One process has one logger for each name and second.
        argv += [] if '--cfg-options' in argv else ['--cfg-options']
        argv.append(f'experiment_name=call{len(calls)}')
        try:
            if tool == 'train':
                train.train(train.parse_args(argv))
            else:
                test.test(test.parse_args(argv))
        except UserError as error:
            raise UserError(f'{tool} failed') from error

    last = {'default_hooks.checkpoint.save_best': None}
    cls = scripts.protocol.Run(
        'cifar10/fma',
        'cifar10',
        'fma',
        small.cls,
        seed=1,
        train_options={
            **last, 'train_cfg.max_epochs': 2
        })
    runs = [
        replace(cls, name='cifar10/wrong', options={'model.type': 'No'}),
        cls,
        replace(
            cls,
            name='camvid/fma-pretrained',
            dataset='camvid',
            config=small.seg,
            start='cifar10/fma',
            train_options={
                **last, 'optim_wrapper.optimizer.lr': 0.
            },
            scales=(1, 2)),
    ]
    monkeypatch.setattr(scripts.run, 'call', call)
    monkeypatch.setattr(scripts.run, 'read', lambda protocol: runs)
    monkeypatch.setattr(scripts.collect, 'RESULTS', tmp_path / 'results')
    monkeypatch.chdir(ROOT)
    work = tmp_path / 'work'

    def main(*args):
        scripts.run.main([
            *args, '--protocol', 'reduced', '--work-dir',
            str(work), '--device', 'cpu'
        ])

    return SimpleNamespace(
        main=main, calls=calls, runs=runs, folder=work / 'reduced')


def settings(run, options=None):
    """The config of a run, its part merged."""
    bases = [str(ROOT / run.base)] if run.base else []
    return load_config(str(ROOT / run.config), options, bases)


def state_of(path: Path) -> dict:
    return read_checkpoint(str(path))['state_dict']


@pytest.mark.slow
def test_from_training_to_results(driver, scripts, tmp_path, monkeypatch,
                                  capsys) -> None:
    """Stop, move, go on, fail, finish, collect."""
    # -- stopped after the first of two epochs
    monkeypatch.setattr(scripts.run, 'LEAST_MINUTES', 0)
    driver.main('--only', 'cifar10/fma/*', '--time-limit', '0.0001')
    folder = driver.folder / 'cifar10/fma/seed1'
    assert [p.name for p in folder.glob('*.pth')] == ['epoch_1.pth']
    assert len(driver.calls) == 1
    driver.main('--list')
    assert 'begun    cifar10/fma/seed1' in capsys.readouterr().out
    # -- on another machine
    driver.folder.rename(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere').rename(driver.folder)
    # -- one run fails, the others do not
    with pytest.raises(UserError, match='1 runs failed: cifar10/wrong/seed1'):
        driver.main()
    assert '2 of 3 runs are done' in capsys.readouterr().out
    resumed = next(c for c in driver.calls[1:] if '--resume' in c)
    assert resumed[resumed.index('--resume') + 1].endswith('epoch_1.pth')
    # -- the segmentation model began with the classification weights
    other = driver.folder / 'camvid/fma-pretrained/seed1'
    begun, given = state_of(other / 'iter_2.pth'), state_of(folder /
                                                            'epoch_2.pth')
    shared = [k for k in given if k.startswith('backbone.stages.')]
    assert len(shared) > 100
    for key in shared:
        torch.testing.assert_close(begun[key], given[key], rtol=0, atol=0)
    # -- nothing is done twice
    before = len(driver.calls)
    driver.main('--only', 'cifar10/fma/*', 'camvid/*')
    assert len(driver.calls) == before
    # -- collected, twice; a damaged test costs only itself
    (other / 'test_2x.json').rename(tmp_path / 'kept.json')
    (other / 'test_2x.json').write_text('{"metr')
    results = tmp_path / 'results/experiments.jsonl'
    with pytest.raises(UserError, match='1 folders were left out.*test_2x'):
        driver.main('collect')
    assert len(results.read_text().splitlines()) == 1
    (tmp_path / 'kept.json').rename(other / 'test_2x.json')
    for changed in (1, 0):
        capsys.readouterr()
        driver.main('collect')
        assert f'jsonl: {changed} lines added' in capsys.readouterr().out
    line, seg = map(json.loads, results.read_text().splitlines())
    assert line['metric'] == 'top1' and line['attention'] == 'fma'
    assert line['value'] == json.loads(
        (folder / 'test.json').read_text())['metrics']['accuracy/top1']
    weights = sum(v.numel() for k, v in given.items()
                  if k.startswith(('backbone.', 'head.')))
    assert line['parameters'] == weights
    assert (line['epochs'], line['iterations'], line['seed']) == (2, 4, 1)
    assert line['training'] == {'train_cfg.max_epochs': 2}
    # Two lines an epoch: the last of four.
    losses = [
        x['loss'] for x in scripts.collect.read_log(folder)[0] if 'loss' in x
    ]
    assert line['training_loss'] == round(losses[-1], 4)
    assert line['samples_per_second'] > 0 and line['training_memory'] is None
    assert line['versions']['torch'] == torch.__version__
    begun = json.loads((folder / 'run.json').read_text())['environment']
    assert line['date'] == begun['date']
    assert seg['start'] == 'cifar10/fma' and seg['epochs'] is None
    sizes = [
        json.loads((other / name).read_text())['metrics']['mIoU']
        for name in ('test.json', 'test_2x.json')
    ]
    assert seg['sizes'] == {'1': sizes[0], '2': sizes[1]}
    assert seg['value'] == sizes[0]


def test_larger_images_are_tested(scripts, small) -> None:
    options = scripts.run.larger(small.seg, 2)
    plain, double = (
        load_config(small.seg, x).test_dataloader.dataset.pipeline
        for x in (None, parsed(scripts, options)))
    changed = [(a, b) for a, b in zip(plain, double) if a != b]
    (before, after), = changed
    assert [2 * side for side in before.scale] == list(after.scale)
    with pytest.raises(UserError, match='with one `scale`'):
        scripts.run.larger(small.cls, 2)


def test_other_settings_do_not_go_on(driver, scripts, capsys) -> None:
    run = driver.runs[1]
    folder = driver.folder / run.key
    note = run.note('reduced')
    write_json(folder / 'run.json',
               dict(note, options={'model.type': 'Other'}))
    write_json(folder / 'test.json', dict())
    driver.main('--list', '--only', 'cifar10/fma/*')
    assert 'other settings cifar10/fma/seed1' in capsys.readouterr().out
    with pytest.raises(UserError, match=r'begun with other .*\(options\)'):
        driver.main('--only', 'cifar10/fma/*')
    assert '0 of 1 runs are done' in capsys.readouterr().out
    with pytest.raises(UserError, match=r'other settings \(options\)'):
        driver.main('collect')
    (folder / 'run.json').write_text('{')
    with pytest.raises(UserError, match='run.json cannot be read'):
        driver.main('--only', 'cifar10/fma/*')
    assert not driver.calls


def test_the_time_is_up(driver, capsys) -> None:
    driver.main('--only', 'cifar10/*', '--time-limit', '.5')
    assert '0 of 2 runs are done' in capsys.readouterr().out
    assert not driver.calls


def test_names_are_stable_and_configs_there(scripts) -> None:
    for name in scripts.protocol.FILES:
        runs = scripts.protocol.read(name)
        keys = [run.key for run in runs]
        assert len(set(keys)) == len(keys)
        for place, run in enumerate(runs):
            assert (ROOT / run.config).is_file(), run.config
            assert Path(run.config).name.startswith('fma-')
            assert run.base == scripts.protocol.ATTENTIONS[run.attention]
            assert run.base is None or (ROOT / run.base).is_file(), run.base
            if run.start:
                assert f'{run.start}/seed{run.seed}' in keys[:place]
    for dataset in ('tiny_imagenet100', 'camvid'):
        for attention in ('fma', 'fma-rotary', 'fma_linear', 'window', 'full'):
            assert [
                r.seed for r in scripts.protocol.read('full')
                if r.name == f'{dataset}/{attention}'
            ] == [0, 1, 2]
    assert {r.attention
            for r in scripts.protocol.read('reduced')
            } == set(scripts.protocol.ATTENTIONS)


def test_results_are_of_the_protocol(scripts) -> None:
    """What the tables show can be run again, by its name and settings."""
    runs = {
        (name, run.name, run.seed): run
        for name in scripts.protocol.FILES
        for run in scripts.protocol.read(name)
    }
    lines = (ROOT / 'benchmarks/results/experiments.jsonl').read_text()
    for line in map(json.loads, lines.splitlines()):
        run = runs[line['protocol'], line['name'], line['seed']]
        options = {**run.options, **run.train_options}
        assert line['start'] == run.start and line['amp'] == run.amp
        given = {**line['options'], **line['training']}
        if not given.items() <= options.items():
            # What was an option has become a config or a part of one.
            cfg = settings(run, options)
            for key, value in given.items():
                assert reduce(lambda x, k: x[k], key.split('.'),
                              cfg) == value, run.key


def parsed(scripts, options) -> dict:
    """Options after a way through the command line."""
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(scripts.run.option_list(options)).cfg_options


def test_changed_models_build(scripts) -> None:
    """Every option that changes a model is one that the model takes."""
    seen = set()
    for name in scripts.protocol.FILES:
        for run in scripts.protocol.read(name):
            options = {**run.options, **run.train_options}
            if options:
                assert parsed(scripts, options) == options
            changes = [key for key in run.options if key.startswith('model.')]
            if not changes or str(run.options) in seen:
                continue
            seen.add(str(run.options))
            cfg, plain = settings(run, run.options), settings(run)
            part = 'net' if run.dataset == 'books' else 'backbone'
            assert cfg.model[part] != plain.model[part], run.key
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                MODELS.build(cfg.model[part])
    assert len(seen) > 20


def test_reduced_counts_iterations(scripts) -> None:
    """Short enough for a CPU, in one process, down to the last step."""
    trainings = {
        (run.config, run.base, str(run.train_options)): run
        for run in scripts.protocol.read('reduced')
    }
    for run in trainings.values():
        cfg = settings(run, dict(run.train_options))
        assert cfg.train_cfg.type == 'IterBasedTrainLoop', run.key
        assert cfg.train_cfg.max_iters <= 4000, run.key  # half an hour
        assert cfg.train_dataloader.num_workers == 0, run.key
        assert cfg.default_hooks.checkpoint.save_best is None, run.key
        assert not any(s.by_epoch for s in cfg.param_scheduler), run.key
        assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin
        assert cfg.param_scheduler[0].end <= cfg.train_cfg.max_iters / 5
        # No end of the decay is named: it is the last step.
        assert 'end' not in cfg.param_scheduler[1], run.key


def test_wrong_options(driver, scripts, capsys) -> None:
    with pytest.raises(UserError, match="'nothing' matches no run"):
        driver.main('--only', 'cifar10/*', 'nothing')
    with pytest.raises(UserError, match='--work-dir my runs: a path without'):
        scripts.run.main(['--work-dir', 'my runs'])
    for value in ('0', '-5', 'nan', 'x'):
        with pytest.raises(SystemExit):
            driver.main(f'--time-limit={value}')
        assert 'a positive number is allowed' in capsys.readouterr().err


def test_a_run_waits_for_the_one_it_starts_from(driver, scripts) -> None:
    place = scripts.run.Place(driver.folder, 'reduced', driver.runs[2])
    with pytest.raises(UserError, match='cifar10/fma/seed1, which is not'):
        scripts.run.start_options(place)


def test_commands_and_results_name_the_layer(scripts, tmp_path) -> None:
    run = scripts.run.select('reduced', ['cifar10/full/seed0'])[0]
    assert run.base == 'configs/_base_/attention/full.py'
    place = scripts.run.Place(tmp_path, 'reduced', run)
    named = [run.config, '--base', run.base]
    assert scripts.run.train_command(place, None)[1:4] == named
    assert run.model == named  # as the tests' commands have it
    note = run.note('reduced')  # of which a line of results keeps both
    assert (note['config'], note['base']) == (run.config, run.base)


def test_append_replaces_a_run_made_again(scripts, tmp_path) -> None:
    path = tmp_path / 'x.jsonl'
    first = dict(protocol='full', name='a/b', seed=0, value=1.)
    other = dict(first, seed=1)
    assert scripts.collect.append(path, [first, other]) == 2
    assert scripts.collect.append(path, [first]) == 0
    assert scripts.collect.append(path, [dict(first, value=2.)]) == 1
    values = [json.loads(x) for x in path.read_text().splitlines()]
    assert [(x['seed'], x['value']) for x in values] == [(0, 2.), (1, 1.)]


def test_log_of_a_resumed_training(scripts, tmp_path) -> None:
    """Epochs of validation and iterations of training are told apart."""
    for part, lines in (('1', [(10, None), (1, 5.), (20, None), (2, 6.),
                               (30, None)]), ('2', [(21, None), (3, 7.)])):
        path = tmp_path / part / 'vis_data/scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text('\n'.join(
            json.dumps(
                dict(step=s, loss=part) if top1 is None else {
                    'step': s,
                    'accuracy/top1': top1
                }) for s, top1 in lines))
    found, config = scripts.collect.read_log(tmp_path)
    assert [x['step'] for x in found if 'loss' in x] == [10, 20, 21]
    assert [x['step'] for x in found if 'loss' not in x] == [1, 2, 3]
    assert config.parts[-3] == '2'


def test_log_that_ends_within_a_line(scripts, tmp_path) -> None:
    """As a kill leaves it; what is before counts, a gap in it does not."""
    path = tmp_path / '1/vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    lines = [json.dumps(dict(step=s, loss=1.)) for s in (1, 2, 3)]
    path.write_text('\n'.join(lines)[:-5])
    assert [x['step'] for x in scripts.collect.read_log(tmp_path)[0]] == [1, 2]
    path.write_text('\n'.join([lines[0], lines[1][:-5], lines[2]]))
    with pytest.raises(UserError, match='scalars.json, line 2'):
        scripts.collect.read_log(tmp_path)
