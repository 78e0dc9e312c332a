"""Trainings that end early: killed, or on a full disk; and how they go on."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Tuple

import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from mmengine.dataset import DefaultSampler, InfiniteSampler
from synthetic import (small_config, write_fashion_mnist, write_paired,
                       write_texts)
from torch.utils.data import DataLoader

from fma_vision.engine import (UserError, latest_checkpoint, load_config,
                               read_checkpoint)
from fma_vision.engine.hooks import SeedHook

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'segmentor': next((ROOT / 'configs/camvid').glob('fma-nano*.py')),
    'classifier': next((ROOT / 'configs/fashion_mnist').glob('fma-nano*.py')),
    'language': next((ROOT / 'configs/lm').glob('fma-lm-masked*books*.py')),
}
# A module that a config may import: it ends the process as kill -9 does.
KILLER = '''
import os
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class Killer(Hook):

    def __init__(self, step, saving):
        self.step, self.saving = step, saving

    def after_train_iter(self, runner, **kwargs):
        if runner.iter == self.step:
            if self.saving:
                os.replace = die  # the new file is written, not yet in place
            else:
                die()
'''


@pytest.fixture(scope='module')
def tool(load_script) -> Any:
    return load_script('tools/train.py')


@pytest.fixture(scope='module')
def configs(tmp_path_factory) -> SimpleNamespace:
    """A config of each task with all that is random, six steps long."""
    root = tmp_path_factory.mktemp('data')
    write_paired(root / 'data/camvid', 11)
    write_fashion_mnist(root / 'data/fashion_mnist')
    write_texts(root / 'data')
    found = SimpleNamespace()
    for task, path in CONFIGS.items():
        cfg = load_config(str(small_config(path, root, root / f'{task}.py')))
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        # One worker process, which reads ahead, for good.
        cfg.train_dataloader.update(num_workers=1, persistent_workers=True)
        cfg.default_hooks.checkpoint.update(max_keep_ckpts=1, save_best=None)
        if task == 'classifier':
            cfg.train_cfg.max_epochs = 3
            # Chosen by chance at the start, and part of the checkpoint.
            cfg.randomness = dict(seed=None)
        else:
            cfg.train_cfg.max_iters = 6
            cfg.default_hooks.checkpoint.interval = 2
        if task == 'language':
            cfg.model.net.drop_rate = .1
        setattr(found, task, root / f'{task}.py')
        cfg.dump(str(getattr(found, task)))
    return found


def train(tool: Any, config: Path, folder: Path, *options: str) -> Any:
    args = [str(config), '--work-dir', str(folder), '--device', 'cpu']
    return tool.train(tool.parse_args([*args, *options]))


def saved(folder: Path) -> Tuple[str, dict]:
    """Name and content of the last checkpoint."""
    path = latest_checkpoint(folder)
    return path.name, read_checkpoint(str(path))


def assert_same(found: Any, expected: Any, where: str = '') -> None:
    """Bit for bit, whatever the nesting."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f'{where}/{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected)):
            assert_same(a, b, f'{where}/{i}')
    elif torch.is_tensor(expected):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def assert_same_run(found: Path, expected: Path) -> None:
    name, whole = saved(expected)
    assert saved(found)[0] == name
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(saved(found)[1][part], whole[part], part)


@pytest.mark.slow
@pytest.mark.parametrize('task', CONFIGS)
def test_killed_runs_go_on(task: str, tool: Any, configs: SimpleNamespace,
                           tmp_path: Path) -> None:
    """In mid-epoch, and while a checkpoint is written.

    An epoch has two steps here, and two steps lie between checkpoints.
    """
    config: Path = getattr(configs, task)
    (tmp_path / 'killer.py').write_text(KILLER)
    seed = 5
    for saving in (False, True):
        folder = tmp_path / f'killed {saving}'
        cfg = load_config(str(config))
        cfg.custom_imports.imports.append('killer')
        cfg.custom_hooks = [
            *(cfg.get('custom_hooks') or []),
            dict(type='mmengine.Killer', step=2, saving=saving)
        ]
        cfg.randomness = dict(seed=seed)
        cfg.dump(str(tmp_path / 'killed.py'))
        run = subprocess.run(
            [
                sys.executable, 'tools/train.py',
                str(tmp_path / 'killed.py'), '--work-dir',
                str(folder), '--device', 'cpu'
            ],
            cwd=ROOT,
            capture_output=True,
            env={
                **os.environ, 'PYTHONPATH':
                os.pathsep.join(
                    [str(tmp_path),
                     os.environ.get('PYTHONPATH', '')])
            })
        assert run.returncode == -signal.SIGKILL, run.stderr
        first = 'epoch_1.pth' if task == 'classifier' else 'iter_2.pth'
        assert [p.name for p in folder.glob('*.pth')] == [first]
        assert len(list(folder.glob('.*.pth.*'))) == saving
        # Another number of workers than before.
        train(tool, config, folder, '--resume', '--cfg-options',
              'train_dataloader.num_workers=2')
        assert not list(folder.glob('.*.pth.*'))
    whole = tmp_path / 'whole'
    train(tool, config, whole, '--cfg-options', f'randomness.seed={seed}',
          'train_dataloader.num_workers=0',
          'train_dataloader.persistent_workers=False')
    for saving in (False, True):
        assert_same_run(tmp_path / f'killed {saving}', whole)


def test_full_disk(tool: Any, configs: SimpleNamespace, tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to do; the last checkpoint is whole, and usable."""
    fsync = os.fsync

    def full(handle: int) -> None:
        if (tmp_path / 'iter_2.pth').is_file():
            raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(handle)

    monkeypatch.setattr(os, 'fsync', full)
    options = [
        '--cfg-options', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False'
    ]
    with pytest.raises(
            UserError,
            match='No space left .* last good '
            'checkpoint is .*iter_2.pth: .* --resume') as info:
        train(tool, configs.segmentor, tmp_path, *options)
    assert '\n' not in str(info.value)
    assert [p.name for p in tmp_path.glob('*.pth')] == ['iter_2.pth']
    assert not list(tmp_path.glob('.*'))
    monkeypatch.undo()
    train(tool, configs.segmentor, tmp_path, '--resume', *options)
    assert saved(tmp_path)[0] == 'iter_6.pth'


def test_full_disk_before_the_first_checkpoint(tool: Any) -> None:

    def train() -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    runner = SimpleNamespace(train=train, work_dir='nowhere')
    with pytest.raises(UserError, match='there is no checkpoint yet'):
        tool.train_to_the_end(runner)


def test_best_checkpoint_outlives_a_full_disk(
        tool: Any, configs: SimpleNamespace, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    from fma_vision.engine import hooks
    hook = hooks.SafeCheckpointHook(
        by_epoch=False,
        interval=1,
        max_keep_ckpts=1,
        save_best='score',
        rule='greater')
    fail = []

    def save(folder: str, filename: str, *args: Any, **kwargs: Any) -> None:
        if fail:
            raise OSError(errno.ENOSPC, 'No space left on device')
        (Path(folder) / filename).write_bytes(b'')

    from mmengine.logging import MessageHub, MMLogger
    runner = SimpleNamespace(
        work_dir=str(tmp_path),
        logger=MMLogger.get_instance('best'),
        message_hub=MessageHub.get_instance('best'),
        save_checkpoint=save,
        iter=0,
        epoch=0)

    def names() -> list:
        return sorted(p.name for p in tmp_path.glob('*.pth'))

    hook.before_train(runner)
    for step, score in enumerate((1., 2.)):
        runner.iter = step
        hook._save_checkpoint(runner)
        runner.iter = step + 1
        hook.after_val_epoch(runner, dict(score=score))
        assert names() == [
            f'best_score_iter_{step + 1}.pth', f'iter_{step + 1}.pth'
        ]
    before = names()
    fail.append(True)
    with pytest.raises(OSError):
        hook._save_checkpoint(runner)
    with pytest.raises(OSError):
        hook.after_val_epoch(runner, dict(score=3.))
    assert names() == before


def test_latest_checkpoint(tmp_path: Path) -> None:
    """Also where a run died as it wrote the note, or the folder has moved."""
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / 'none') is None
    for age, name in enumerate(
        ('best_iter_6.pth', 'iter_6.pth', 'iter_4.pth', 'iter_10.pth')):
        (tmp_path / name).write_bytes(b'')
        os.utime(tmp_path / name, (age, age))
    note = tmp_path / 'last_checkpoint'
    for text, name in (('/elsewhere/iter_4.pth', 'iter_4.pth'),
                       ('', 'iter_10.pth'), ('iter_7.pth', 'iter_10.pth')):
        note.write_text(text)
        assert latest_checkpoint(tmp_path) == tmp_path / name
    other = tmp_path / 'other'
    other.mkdir()
    note.rename(other / 'last_checkpoint').write_text(
        str(tmp_path / 'iter_4.pth'))
    assert latest_checkpoint(other) == tmp_path / 'iter_4.pth'


# ------------------------------------------------------------------- seeds
class Draws:
    """A set whose samples are random numbers of each kind."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([
            index,
            random.random(),
            np.random.random(),
            float(torch.rand(()))
        ]).double()


def draws(sampler: type,
          workers: int,
          epochs: int,
          first: int = 0,
          skip: int = 0) -> list:
    """What a run draws in epochs of three batches."""
    data = Draws()
    loader = DataLoader(
        data, 2, sampler=sampler(data, seed=1), num_workers=workers)
    SeedHook().before_train(SimpleNamespace(train_dataloader=loader, seed=3))
    found = []
    for epoch in range(first, epochs):
        loader.sampler.set_epoch(epoch)
        if skip:
            loader.sampler.skip(skip)
        batches = iter(loader)
        found += [next(batches) for _ in range(3 - skip // 2)]
    return found


@pytest.mark.parametrize('workers', [0, 2])
def test_samples_do_not_hang_on_workers(workers: int) -> None:
    expected = draws(DefaultSampler, 0, epochs=2)
    numbers = torch.cat(expected)[:, 1:]
    assert len(numbers.unique()) == numbers.numel()
    random.seed(workers)
    found = draws(DefaultSampler, workers, epochs=2, first=1)
    assert torch.equal(torch.cat(found), torch.cat(expected[3:]))


def test_samples_after_skipped_ones() -> None:
    whole = draws(InfiniteSampler, 0, epochs=1)
    rest = draws(InfiniteSampler, 1, epochs=1, skip=4)
    assert torch.equal(torch.cat(rest), torch.cat(whole[2:]))


def test_iterations_seed_all_generators() -> None:
    runner = SimpleNamespace(seed=0, iter=7)

    def draw() -> Tuple[float, ...]:
        SeedHook().before_train_iter(runner)
        return random.random(), np.random.random(), float(torch.rand(()))

    first = draw()
    assert draw() == first
    runner.iter = 8
    assert not set(draw()) & set(first)
