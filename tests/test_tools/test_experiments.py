"""The driver of the experiments, from training to the tables."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import json
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from mmengine.config import DictAction
from mmengine.registry import MODELS, DefaultScope
from synthetic import small_config, write_class_folders, write_paired

from fma_vision.datasets.classification import CIFAR10_CLASSES
from fma_vision.engine import UserError, load_config
from fma_vision.utils.files import write_json
from fma_vision.utils.results import read_log

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / 'tools/experiments'


@pytest.fixture(scope='module')
def scripts():
    """The driver's modules, imported as when it runs."""
    sys.path.insert(0, str(FOLDER))
    try:
        import archive
        import collect
        import curves
        import protocol
        import run
        yield SimpleNamespace(
            archive=archive,
            collect=collect,
            curves=curves,
            protocol=protocol,
            run=run)
    finally:
        sys.path.remove(str(FOLDER))
        for name in ('archive', 'collect', 'curves', 'protocol', 'run'):
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
    train, test, resolution = (
        load_script(f'tools/{name}.py')
        for name in ('train', 'test', 'analysis_tools/benchmark_resolution'))
    calls = []

    def call(command):
        tool, argv = Path(command[1]).stem, command[2:]
        calls.append(command)
        if tool != 'benchmark_resolution':
            # One process has one logger for each name and second.
            argv += [] if '--cfg-options' in argv else ['--cfg-options']
            argv.append(f'experiment_name=call{len(calls)}')
        try:
            if tool == 'train':
                train.train(train.parse_args(argv))
            elif tool == 'test':
                test.test(test.parse_args(argv))
            else:
                resolution.main(argv)
        except UserError as error:
            raise UserError(f'{tool} failed') from error

    still = {'optim_wrapper.optimizer.lr': 0.}
    Run = scripts.protocol.Run
    cls = Run(
        'cifar10/fma',
        'cifar10',
        'fma',
        small.cls,
        seed=1,
        train_options={
            **scripts.protocol.LAST_ONLY, 'train_cfg.max_epochs': 2
        })
    runs = [
        replace(cls, name='cifar10/wrong', options={'model.type': 'No'}),
        cls,
        Run('camvid/fma-pretrained',
            'camvid',
            'fma',
            small.seg,
            seed=1,
            start='cifar10/fma',
            train_options={
                **scripts.protocol.LAST_ONLY,
                **still
            },
            scales=(1, 2)),
    ]
    monkeypatch.setattr(scripts.run, 'call', call)
    monkeypatch.setitem(scripts.protocol.PROTOCOLS, 'reduced', lambda: runs)
    monkeypatch.setattr(scripts.collect, 'RESULTS', tmp_path / 'results')
    monkeypatch.setattr(scripts.collect, 'PICTURES', tmp_path / 'pictures')
    monkeypatch.chdir(ROOT)
    work = tmp_path / 'work'

    def main(*args):
        scripts.run.main([
            *args, '--protocol', 'reduced', '--work-dir',
            str(work), '--device', 'cpu'
        ])

    return SimpleNamespace(
        main=main, calls=calls, work=work, folder=work / 'reduced')


def state_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.slow
def test_from_training_to_results(driver, scripts, small, tmp_path,
                                  monkeypatch, capsys) -> None:
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
    driver.work.rmdir()
    driver.work = tmp_path / 'work'
    driver.work.mkdir()
    (tmp_path / 'elsewhere').rename(driver.folder)
    # -- one run fails, the others do not
    with pytest.raises(UserError, match='1 runs failed: cifar10/wrong/seed1'):
        driver.main()
    assert '2 of 3 runs are done' in capsys.readouterr().out
    assert [p.name for p in folder.glob('*.pth')] == ['epoch_2.pth']
    resumed = next(c for c in driver.calls[1:] if '--resume' in c)
    assert resumed[resumed.index('--resume') + 1].endswith('epoch_1.pth')
    saved = torch.load(folder / 'epoch_2.pth', weights_only=True)
    assert set(saved) == {'meta', 'state_dict'}
    # -- the segmentation model began with the classification weights
    other = driver.folder / 'camvid/fma-pretrained/seed1'
    begun, given = state_of(other / 'iter_2.pth'), saved['state_dict']
    shared = [k for k in given if k.startswith('backbone.stages.')]
    assert len(shared) > 100
    for key in shared:
        torch.testing.assert_close(begun[key], given[key], rtol=0, atol=0)
    # -- nothing is done twice
    before = len(driver.calls)
    driver.main('--only', 'cifar10/fma/*', 'camvid/*')
    assert len(driver.calls) == before
    # -- other settings do not go on with the same folder
    runs = scripts.protocol.PROTOCOLS['reduced']()
    changed = replace(runs[1], options={'model.backbone.mlp_ratio': 2.})
    with pytest.raises(UserError, match='other settings .options.'):
        scripts.run.claim(changed,
                          scripts.run.Workplace(driver.work, 'reduced'), 'cpu')
    # -- what was measured
    test = json.loads((other / 'test.json').read_text())
    sizes = json.loads((other / 'resolution.json').read_text())['rows']
    assert [row['scale'] for row in sizes] == [1, 2]
    assert sizes[0]['mIoU'] == test['metrics']['mIoU']
    assert sizes[1]['shape'] == [2 * side for side in sizes[0]['shape']]
    assert sizes[1]['peak_memory_bytes'] > 2 * sizes[0]['peak_memory_bytes']
    assert (other / 'resolution').is_dir()  # its logs
    # -- collected; a broken folder costs only itself
    (driver.folder / 'cifar10/wrong/seed1/test.json').write_text('{"metr')
    for name in ('gone', 'damaged'):
        old = driver.folder / f'cifar10/{name}/seed0'
        write_json(old / 'run.json', dict(name='cifar10/gone'))
        write_json(old / 'test.json', dict())
    (old / 'run.json').write_text('{')
    results = tmp_path / 'results'
    for _ in range(2):
        with pytest.raises(UserError) as error:
            driver.main('collect')
        assert '3 folders were left out' in str(error.value)
        assert 'no protocol has such a run' in str(error.value)
        lines = [
            json.loads(line)
            for line in (results /
                         'experiments.jsonl').read_text().splitlines()
        ]
        assert [line['name']
                for line in lines] == ['camvid/fma-pretrained', 'cifar10/fma']
    line = lines[1]
    assert line['task'] == 'classification' and line['metric'] == 'top1'
    assert line['model'] == 'cls' and line['attention'] == 'fma'
    assert line['value'] == json.loads(
        (folder / 'test.json').read_text())['metrics']['accuracy/top1']
    weights = sum(v.numel() for k, v in given.items()
                  if k.startswith(('backbone.', 'head.')))
    assert line['parameters'] == weights
    assert (line['epochs'], line['iterations'], line['seed']) == (2, 4, 1)
    # Two lines an epoch: the last of four.
    losses = [x['loss'] for x in read_log(folder)[0] if 'loss' in x]
    assert line['training_loss'] == round(losses[-1], 4)
    assert line['images_per_second'] > 0 and line['training_memory'] is None
    assert line['versions']['torch'] == torch.__version__
    begun = json.loads((folder / 'run.json').read_text())['environment']
    assert line['commit'] == (begun['commit'] or {}).get('hash')
    assert line['date'] == begun['date'] < test['environment']['date']
    assert lines[0]['start'] == 'cifar10/fma' and lines[0]['epochs'] is None
    curve = json.loads((results / 'curves/reduced_cifar10.json').read_text())
    assert list(curve) == ['fma, seed 1']
    assert [x for x, _ in curve['fma, seed 1']['loss']] == [.5, 1, 1.5, 2]
    assert [x for x, _ in curve['fma, seed 1']['metric']] == [1, 2]
    assert len(list((tmp_path / 'pictures').glob('*.png'))) == 2
    rows = (results / 'resolution.jsonl').read_text().splitlines()
    assert [json.loads(row)['scale'] for row in rows] == [1, 2]
    # -- a log that was cut off does not take the place of the whole one
    log = sorted(folder.glob('*/vis_data/scalars.json'))[-1]
    log.write_text('')
    with pytest.raises(UserError, match='the log ends before the training'):
        driver.main('collect', '--only', 'cifar10/fma/*')
    assert json.loads(
        (results / 'experiments.jsonl').read_text().splitlines()[1]) == line


def done(driver, run, **changes) -> Path:
    """The folder of a finished run, without having run it."""
    folder = driver.folder / run.key
    write_json(folder / 'run.json', {**run.note('reduced'), **changes})
    write_json(folder / 'test.json', dict())
    (folder / 'trained').touch()
    return folder


def test_what_is_done_with_other_settings_does_not_count(
        driver, scripts, capsys) -> None:
    runs = scripts.protocol.PROTOCOLS['reduced']()
    folder = done(driver, runs[1], options={'model.type': 'Other'})
    driver.main('--list', '--only', 'cifar10/fma/*')
    assert 'other settings cifar10/fma/seed1' in capsys.readouterr().out
    with pytest.raises(UserError, match=r'begun with other .*\(options\)'):
        driver.main('--only', 'cifar10/fma/*')
    assert '0 of 1 runs are done' in capsys.readouterr().out
    with pytest.raises(UserError, match=r'other settings \(options\)'):
        driver.main('collect')
    capsys.readouterr()
    driver.main('--dry-run', '--only', 'cifar10/fma/*')
    assert capsys.readouterr().out.startswith('# cifar10/fma/seed1: ')
    assert not driver.calls
    for text in '{', '[]':
        (folder / 'run.json').write_text(text)
        driver.main('--list', '--only', 'cifar10/fma/*')
        assert 'damaged  cifar10/fma/seed1' in capsys.readouterr().out


def test_a_damaged_test_is_made_again(driver, scripts, capsys) -> None:
    folder = done(driver, scripts.protocol.PROTOCOLS['reduced']()[1])
    (folder / 'test.json').write_text('{"metr')
    driver.main('--list', '--only', 'cifar10/fma/*')
    assert 'trained  cifar10/fma/seed1' in capsys.readouterr().out
    # Here, what it would be made of is not there.
    with pytest.raises(UserError, match='seed1 is trained, but its checkp'):
        driver.main('--only', 'cifar10/fma/*')
    (folder / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')
    (folder / 'epoch_2.pth').touch()
    capsys.readouterr()
    driver.main('--dry-run', '--only', 'cifar10/fma/*')
    assert capsys.readouterr().out.startswith('python tools/test.py ')


def test_done_runs_count_after_the_time_is_up(driver, scripts, capsys) -> None:
    done(driver, scripts.protocol.PROTOCOLS['reduced']()[1])
    driver.main('--only', 'cifar10/*', '--time-limit', '.5')
    out = capsys.readouterr().out
    assert 'The time is up before cifar10/wrong' in out
    assert '1 of 2 runs are done' in out


def test_collect_names_a_missing_folder(driver, scripts) -> None:
    with pytest.raises(UserError, match='work: no such folder'):
        driver.main('collect')
    done(driver, scripts.protocol.PROTOCOLS['reduced']()[1])
    with pytest.raises(UserError, match="--only 'x/.' matches no folder"):
        driver.main('collect', '--only', 'cifar10/*', 'x/*')


def test_names_are_stable_and_configs_there(scripts) -> None:
    for make in scripts.protocol.PROTOCOLS.values():
        runs = make()
        keys = [run.key for run in runs]
        assert len(set(keys)) == len(keys)
        for place, run in enumerate(runs):
            assert (ROOT / run.config).is_file(), run.config
            assert run.dataset in scripts.protocol.TASKS
            assert Path(run.config).name.startswith('fma-')
            assert run.base == scripts.protocol.ATTENTIONS[run.attention]
            assert run.base is None or (ROOT / run.base).is_file(), run.base
            if run.start:
                assert f'{run.start}/seed{run.seed}' in keys[:place]
    full = scripts.protocol.full.runs()
    for dataset in ('tiny_imagenet100', 'camvid'):
        for attention in scripts.protocol.full.HEADLINE:
            assert [
                r.seed for r in full if r.name == f'{dataset}/{attention}'
            ] == [0, 1, 2]
    assert {r.attention
            for r in scripts.protocol.reduced.runs()
            } == set(scripts.protocol.ATTENTIONS)


def parsed(scripts, options) -> dict:
    """Options after a way through the command line."""
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(scripts.run.option_list(options)).cfg_options


def test_options_survive_the_command_line(scripts) -> None:
    for make in scripts.protocol.PROTOCOLS.values():
        for run in make():
            options = {**run.options, **run.train_options}
            if options:
                assert parsed(scripts, options) == options


def test_folders_have_no_spaces(scripts) -> None:
    with pytest.raises(UserError, match='--work-dir my runs: a path without'):
        scripts.run.main(['--work-dir', 'my runs'])


def test_changed_models_build(scripts) -> None:
    """Every option that changes a model is one that the model takes."""
    seen = set()
    for run in (scripts.protocol.full.runs() +
                scripts.protocol.reduced.runs()):
        changes = [key for key in run.options if key.startswith('model.')]
        if not changes or str(run.options) in seen:
            continue
        seen.add(str(run.options))
        bases = [str(ROOT / run.base)] if run.base else []
        cfg = load_config(
            str(ROOT / run.config), parsed(scripts, run.options), bases)
        plain = load_config(str(ROOT / run.config), bases=bases)
        part = 'net' if run.dataset == 'books' else 'backbone'
        assert cfg.model[part] != plain.model[part], run.key
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            MODELS.build(cfg.model[part])
    assert len(seen) >= len(scripts.protocol.changes.ABLATIONS)


def test_reduced_counts_iterations(scripts) -> None:
    """Short enough for a CPU, in one process, down to the last step."""
    for run in scripts.protocol.reduced.runs():
        cfg = load_config(
            str(ROOT / run.config), parsed(scripts, run.train_options))
        assert cfg.train_cfg.type == 'IterBasedTrainLoop', run.key
        assert cfg.train_cfg.max_iters <= 4000, run.key  # half an hour
        assert cfg.train_dataloader.num_workers == 0, run.key
        assert cfg.default_hooks.checkpoint.save_best is None, run.key
        assert not any(s.by_epoch for s in cfg.param_scheduler), run.key
        assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin
        assert cfg.param_scheduler[0].end <= cfg.train_cfg.max_iters / 5
        # No end of the decay is named: it is the last step.
        assert 'end' not in cfg.param_scheduler[1], run.key


def test_unknown_pattern(scripts) -> None:
    with pytest.raises(UserError, match="'nothing' matches no run"):
        scripts.run.select('full', ['cifar10/*', 'nothing'])


def test_a_run_waits_for_the_one_it_starts_from(scripts, tmp_path) -> None:
    place = scripts.run.Workplace(tmp_path, 'full')
    run = scripts.run.select('full', ['camvid/mano-pretrained/*'])[0]
    with pytest.raises(UserError, match='tiny_imagenet100/mano/seed0'):
        scripts.run.start_options(run, place)


def test_commands_and_results_name_the_layer(scripts, tmp_path) -> None:
    run = scripts.run.select('reduced', ['cifar10/full/seed0'])[0]
    assert run.base == 'configs/_base_/attention/full.py'
    place = scripts.run.Workplace(tmp_path, 'reduced')
    commands = [
        scripts.run.train_command(run, place, None, None),
        *scripts.run.test_commands(run, place, None)
    ]
    for command in commands:
        assert command[2:5] == [run.config, '--base', run.base]
    assert len(commands) == 2
    line = scripts.collect._identity(run.note('reduced'))
    assert (line['config'], line['base']) == (run.config, run.base)


def test_append_replaces_a_run_made_again(scripts, tmp_path) -> None:
    path = tmp_path / 'x.jsonl'
    first = dict(protocol='full', name='a/b', seed=0, value=1.)
    other = dict(first, seed=1)
    assert scripts.collect.append(path, [first, other]) == 2
    assert scripts.collect.append(path, [first]) == 0
    assert scripts.collect.append(path, [dict(first, value=2.)]) == 1
    values = [json.loads(x) for x in path.read_text().splitlines()]
    assert [(x['seed'], x['value']) for x in values] == [(0, 2.), (1, 1.)]


def test_curves_are_thinned(scripts) -> None:
    points = [(float(x), 2. * x) for x in range(250)]
    found = scripts.curves.thin(points)
    assert len(found) <= scripts.curves.POINTS
    assert found[0] == (1, 2) and found[-1] == (249, 498)
    assert scripts.curves.thin([]) == []


def test_log_of_a_resumed_training(tmp_path) -> None:
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
    found, config = read_log(tmp_path)
    assert [x['step'] for x in found if 'loss' in x] == [10, 20, 21]
    assert [x['step'] for x in found if 'loss' not in x] == [1, 2, 3]
    assert config.parts[-3] == '2'


def test_log_that_ends_within_a_line(tmp_path) -> None:
    """As a kill leaves it; what is before counts, a gap in it does not."""
    path = tmp_path / '1/vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    lines = [json.dumps(dict(step=s, loss=1.)) for s in (1, 2, 3)]
    path.write_text('\n'.join(lines)[:-5])
    assert [x['step'] for x in read_log(tmp_path)[0]] == [1, 2]
    path.write_text('\n'.join([lines[0], lines[1][:-5], lines[2]]))
    with pytest.raises(UserError, match='scalars.json, line 2'):
        read_log(tmp_path)


@pytest.mark.parametrize('suffix', ['.tar', '.tar.xz'])
def test_pack(suffix: str, scripts, small, tmp_path, monkeypatch) -> None:
    """Every file once, with its times; no archive above the size."""
    data = Path(load_config(small.cls).train_dataloader.dataset.data_root)
    noise = np.random.default_rng(0).integers(0, 256, 90_000, np.uint8)
    for i in range(4):
        (data / f'noise{i}').write_bytes(np.roll(noise, i * 7).tobytes())
    (data / 'cache').mkdir(exist_ok=True)
    (data / 'cache/pixels.bin').write_bytes(b'decoded')
    work = tmp_path / 'runs'
    write_json(work / 'run.json', {})
    for step in (1, 2):
        (work / f'epoch_{step}.pth').write_bytes(b'weights')
    (work / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')
    run = scripts.protocol.Run('cifar10/fma', 'cifar10', 'fma', small.cls)
    folders = {x: Path('work_dirs') / x.name for x in (work, tmp_path / 'no')}
    parts = scripts.archive.pack(tmp_path / f'a{suffix}', [run, run], folders,
                                 .25)
    assert [p.name for p in parts][:2] == [f'a{suffix}', f'a-2{suffix}']
    assert all(p.stat().st_size <= 250_000 for p in parts)
    names = []
    for part in parts:
        with tarfile.open(part) as archive:
            names += archive.getnames()
            for member in archive.getmembers():
                source = (
                    tmp_path / Path(member.name).relative_to('work_dirs')
                    if member.name.startswith('work_dirs') else Path('/') /
                    member.name)
                assert member.mtime == pytest.approx(
                    source.stat().st_mtime, abs=1e-6)
                content = archive.extractfile(member).read()
                assert content == source.read_bytes()
    wanted = [
        p.as_posix()[1:]
        for p in data.rglob('*') if p.is_file() and 'cache' not in p.parts
    ] + [
        f'work_dirs/runs/{name}'
        for name in ('run.json', 'epoch_2.pth', 'last_checkpoint')
    ]
    assert sorted(names) == sorted(wanted)
    # The second of these would be unpacked with the next archive.
    parts[0].unlink()
    with pytest.raises(UserError, match=f'remove .*a-2{suffix}'):
        scripts.archive.pack(tmp_path / f'a{suffix}', [run], {}, 60)


def test_pack_takes_tar_only(scripts, small, tmp_path) -> None:
    run = scripts.protocol.Run('cifar10/fma', 'cifar10', 'fma', small.cls)
    with pytest.raises(UserError, match=r'a\.zip: .* \.tar or \.tar\.xz'):
        scripts.archive.pack(tmp_path / 'a.zip', [run], {}, 60)


def test_packed_links_are_files(scripts, tmp_path) -> None:
    (tmp_path / 'far').write_bytes(b'here')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/link').symlink_to(tmp_path / 'far')
    scripts.archive.pack(
        tmp_path / 'a.tar', [], {tmp_path / 'run': Path('run')},
        60,
        data=False)
    with tarfile.open(tmp_path / 'a.tar') as archive:
        assert archive.extractfile('run/link').read() == b'here'


def test_pack_takes_what_a_run_starts_from(driver, scripts, tmp_path) -> None:
    for run in scripts.protocol.PROTOCOLS['reduced']()[1:]:
        done(driver, run)
    driver.main('pack', str(tmp_path / 'a.tar'), '--no-data', '--only',
                'camvid/*')
    with tarfile.open(tmp_path / 'a.tar') as archive:
        folders = {str(Path(name).parent) for name in archive.getnames()}
    assert folders == {
        f'work_dirs/experiments/reduced/{name}/seed1'
        for name in ('cifar10/fma', 'camvid/fma-pretrained')
    }


@pytest.mark.parametrize('value', ['0', '-5', 'nan', 'x'])
def test_sizes_and_times_are_positive(value, scripts, capsys) -> None:
    for option in ('--max-size', '--time-limit'):
        with pytest.raises(SystemExit):
            scripts.run.parse_args(['pack', 'a.tar', f'{option}={value}'])
        assert 'a positive number is allowed' in capsys.readouterr().err


# ------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize('name', ['run.json', 'last_checkpoint'])
def test_damaged_notes_cost_their_run_only(name, driver, scripts, monkeypatch,
                                           capsys) -> None:
    folder = driver.folder / 'cifar10/wrong/seed1'
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b'{"na' if name == 'run.json' else b'\xff')
    done = []
    finish = scripts.run.finish

    def finish_wrong_only(run, *args):
        done.append(run.name)
        return finish(run, *args) if run.name == 'cifar10/wrong' else True

    monkeypatch.setattr(scripts.run, 'finish', finish_wrong_only)
    with pytest.raises(UserError, match='1 runs failed: cifar10/wrong/seed1'):
        driver.main()
    assert '2 of 3 runs are done' in capsys.readouterr().out
    # A damaged note is found before anything is begun.
    assert [x for x in done if x != 'cifar10/wrong'
            ] == ['cifar10/fma', 'camvid/fma-pretrained']


def test_a_folder_is_for_one_process(scripts, tmp_path, monkeypatch) -> None:
    pytest.importorskip('fcntl')
    alone, ready = scripts.run.alone, tmp_path / 'ready'
    with pytest.raises(UserError, match='another process'):
        with alone(tmp_path / 'run'), alone(tmp_path / 'run'):
            pass
    with alone(tmp_path / 'run'):  # free again
        # What is called holds it, too, even when the caller has gone.
        code = ('import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch();'
                'time.sleep(60)')
        child = subprocess.Popen([sys.executable, '-c', code,
                                  str(ready)],
                                 close_fds=False)
        while not ready.exists():
            time.sleep(.01)
    try:
        with pytest.raises(UserError, match='another process'):
            with alone(tmp_path / 'run'):
                pass
    finally:
        child.kill()
        child.wait()
    with alone(tmp_path / 'run'):
        pass


def test_damaged_results_are_named(scripts, tmp_path) -> None:
    path = tmp_path / 'lines.jsonl'
    path.write_text('{"name": "a"}\n{"name\n')
    with pytest.raises(UserError, match='lines.jsonl, line 2'):
        scripts.collect.append(path, [dict(name='b')])
    assert path.read_text().endswith('{"name\n')


def test_an_interrupted_archive_is_not_there(scripts, small, tmp_path,
                                             monkeypatch) -> None:
    folder = tmp_path / 'run'
    write_json(folder / 'run.json', dict())

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, 'add', interrupt)
    with pytest.raises(KeyboardInterrupt):
        scripts.archive.pack(
            tmp_path / 'out/x.tar', [], {folder: folder}, 60, data=False)
    assert not list((tmp_path / 'out').iterdir())


def test_a_size_that_does_not_fit_costs_only_itself(small, load_script,
                                                    monkeypatch,
                                                    tmp_path) -> None:
    tool = load_script('tools/analysis_tools/benchmark_resolution.py')

    def measure(cfg, checkpoint):
        if cfg.experiment_name.endswith('_2x'):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        if cfg.experiment_name.endswith('_4x'):
            raise RuntimeError('another error')
        return dict(mIoU=1.)

    monkeypatch.setattr(tool, 'measure', measure)
    args = [small.seg, 'x.pth', '--work-dir', str(tmp_path), '--scales']
    rows = tool.benchmark(tool.parse_args([*args, '1', '2']))['rows']
    assert rows[0]['mIoU'] == 1 and 'out of memory' in rows[1]['reason']
    with pytest.raises(RuntimeError, match='another error'):
        tool.benchmark(tool.parse_args([*args, '4']))
