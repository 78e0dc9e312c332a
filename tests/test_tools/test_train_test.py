"""tools/train.py and tools/test.py on tiny files in the real layouts."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from evil import spoil
from synthetic import small_config, write_fashion_mnist, write_paired

from fma_vision.engine import UserError, run_tool

ROOT = Path(__file__).parents[2]
SEG = next((ROOT / 'configs/camvid').glob('fma-nano*.py'))
CLS = next((ROOT / 'configs/fashion_mnist').glob('fma-nano*.py'))


@pytest.fixture(scope='module')
def tools(load_script) -> SimpleNamespace:
    return SimpleNamespace(
        train=load_script('tools/train.py'), test=load_script('tools/test.py'))


@pytest.fixture(scope='module')
def trained(tools, tmp_path_factory) -> SimpleNamespace:
    """A segmentation and a classification model after two iterations."""
    root = tmp_path_factory.mktemp('trained')
    write_paired(root / 'data/camvid', 11)
    write_fashion_mnist(root / 'data/fashion_mnist')
    space = SimpleNamespace(root=root)
    for name, config, last in (('seg', SEG, 'iter_2.pth'), ('cls', CLS,
                                                            'epoch_1.pth')):
        path = small_config(config, root, root / f'{name}.py')
        args = [str(path), '--work-dir', str(root / name), '--device', 'cpu']
        tools.train.train(tools.train.parse_args(args))
        setattr(space, name, str(path))
        setattr(space, f'{name}_ckpt', str(root / name / last))
    return space


def train(tools, *args: str):
    return tools.train.train(
        tools.train.parse_args([*args, '--device', 'cpu']))


def run_test(tools, *args: str) -> dict:
    return tools.test.test(tools.test.parse_args([*args, '--device', 'cpu']))


def edited(path: str, target: Path, edit: Callable) -> str:
    """Write a changed copy of a config."""
    from fma_vision.engine import load_config
    cfg = load_config(path)
    edit(cfg)
    cfg.dump(str(target))
    return str(target)


def no_chance(cfg) -> None:
    """The same four images in every step, and nothing random."""
    cfg.param_scheduler = []
    cfg.train_dataloader.batch_size = 4
    cfg.train_dataloader.sampler.shuffle = False
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='Resize', scale=(32, 32)),
        dict(type='PackSegInputs')
    ]
    cfg.model.backbone.drop_path_rate = 0.
    cfg.model.decode_head.dropout_ratio = 0.


def one_view(cfg) -> None:
    """Test-time augmentation with a single unchanged view."""
    cfg.tta_pipeline[1].transforms[0] = [
        dict(type='Resize', scale=(64, 64), keep_ratio=True)
    ]
    cfg.tta_pipeline[1].transforms[1] = [dict(type='RandomFlip', prob=0.)]


class TestTrain:

    def test_checkpoint_and_work_dir(self, trained) -> None:
        saved = torch.load(
            trained.seg_ckpt, map_location='cpu', weights_only=False)
        assert saved['meta']['iter'] == 2
        assert 'backbone.patch_embed' in ' '.join(saved['state_dict'])
        assert saved['optimizer']
        folder = trained.root / 'seg'
        assert (folder / 'seg.py').is_file()
        assert list(folder.glob('*/*.log'))

    def test_default_work_dir(self, tools, trained, tmp_path,
                              monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        train(tools, trained.seg, '--no-validate')
        assert (tmp_path / 'work_dirs/seg/iter_2.pth').is_file()
        assert not list(tmp_path.glob('work_dirs/seg/best*'))

    def test_another_layer(self, tools, trained, tmp_path,
                           monkeypatch) -> None:
        """From one option to the report, in a folder of its own."""
        monkeypatch.chdir(tmp_path)
        part = ['--base', str(ROOT / 'configs/_base_/attention/full.py')]
        runner = train(tools, trained.cls, '--no-validate', *part)
        kinds = {type(m).__name__ for m in runner.model.modules()}
        assert 'FullAttention' in kinds and 'FMAttention2D' not in kinds
        weights = 'work_dirs/cls-full/epoch_1.pth'
        run_test(tools, trained.cls, weights, *part, '--out', 'test.json')
        report = json.loads(Path('test.json').read_text())
        assert (report['config'], report['base']) == (trained.cls, part[1:])

    def test_one_number_sets_the_length(self, tools, trained,
                                        tmp_path) -> None:
        """max_iters moves the end of the schedule, too."""
        runner = train(tools, trained.seg, '--work-dir', str(tmp_path),
                       '--no-validate', '--cfg-options',
                       'train_cfg.max_iters=5', 'param_scheduler.0.end=2',
                       'param_scheduler.1.begin=2')
        assert runner.iter == 5
        start, end = 1e-3, 1e-5
        lrs = list(runner.message_hub.get_scalar('train/lr').data[0])
        assert lrs[1] == pytest.approx(start)
        assert lrs[0] == pytest.approx(0.02 * start)
        cosine = [(1 + math.cos(math.pi * t / 3)) / 2 for t in range(3)]
        assert lrs[2:] == pytest.approx(
            [end + (start - end) * c for c in cosine])

    def test_auto_scale_lr(self, tools, trained, tmp_path) -> None:
        """Batches of two under a rate meant for eight: a quarter of it."""
        config = edited(trained.seg, tmp_path / 'still.py', no_chance)
        lrs = []
        for options in ([], ['--auto-scale-lr']):
            runner = train(tools, config, '--work-dir', str(tmp_path),
                           '--no-validate', *options, '--cfg-options',
                           'auto_scale_lr.base_batch_size=8',
                           'train_dataloader.batch_size=2')
            lrs.append(runner.optim_wrapper.param_groups[0]['lr'])
        assert lrs[1] == pytest.approx(lrs[0] / 4)

    def test_auto_scale_lr_needs_a_base(self, tools, trained) -> None:
        with pytest.raises(UserError, match='auto_scale_lr.base_batch_size'):
            train(tools, trained.seg, '--auto-scale-lr')

    @pytest.mark.sampled
    @pytest.mark.parametrize('how', ['auto', 'path'])
    def test_resume_is_the_same_run(self, how: str, tools, trained,
                                    tmp_path) -> None:
        """Two iterations and two more end where four in a row end."""
        config = edited(trained.seg, tmp_path / 'still.py', no_chance)
        options = ['--no-validate', '--cfg-options']
        whole = train(tools, config, '--work-dir', str(tmp_path / 'whole'),
                      *options, 'train_cfg.max_iters=4')
        train(tools, config, '--work-dir', str(tmp_path / 'parts'), *options,
              'train_cfg.max_iters=2')
        resume = ['--resume']
        folder = tmp_path / 'parts'
        if how == 'path':
            resume.append(str(folder / 'iter_2.pth'))
            folder = tmp_path / 'elsewhere'
        parts = train(tools, config, '--work-dir', str(folder), *resume,
                      *options, 'train_cfg.max_iters=4')
        assert parts.iter == whole.iter == 4
        resumed = list(parts.message_hub.get_scalar('train/loss').data[0])
        assert len(resumed) == 4
        for key, value in whole.model.state_dict().items():
            torch.testing.assert_close(parts.model.state_dict()[key], value)

    @pytest.mark.parametrize('kind', ['seg', 'cls'])
    def test_time_limit(self, kind: str, tools, trained, tmp_path) -> None:
        """Stops after a step or an epoch, saves it, and goes on from it."""
        length, unit = {
            'seg': ('train_cfg.max_iters=3', 'iter'),
            'cls': ('train_cfg.max_epochs=3', 'epoch')
        }[kind]
        args = (getattr(trained,
                        kind), '--work-dir', str(tmp_path), '--no-validate',
                '--cfg-options', length, 'default_hooks.checkpoint.interval=9')
        runner = train(tools, *args[:-3], '--time-limit', '0', *args[-3:])
        assert [p.name for p in tmp_path.glob('*.pth')] == [f'{unit}_1.pth']
        steps = runner.iter
        assert steps == {'seg': 1, 'cls': 2}[kind]
        runner = train(tools, *args[:-3], '--time-limit', '9', '--resume',
                       *args[-3:])
        assert runner.iter == 3 * steps
        assert (tmp_path / f'{unit}_3.pth').is_file()

    def test_time_limit_of_several_processes(self, tools, trained) -> None:
        with pytest.raises(UserError, match='--time-limit .* pytorch'):
            train(tools, trained.seg, '--time-limit', '1', '--launcher',
                  'pytorch')

    def test_sharding_strategy_is_refused(self, tools, trained) -> None:
        with pytest.raises(UserError, match='FSDPStrategy.* is refused'):
            train(tools, trained.seg, '--cfg-options',
                  'runner_type=FlexibleRunner', 'strategy.type=FSDPStrategy')

    def test_amp_on_cpu(self, tools, trained, tmp_path) -> None:
        """bfloat16 inside the model, float32 weights and a finite loss."""
        import fma_vision.models.backbones.fma_transformer as module
        seen = []
        forward = module.FMATransformer.forward

        def spy(self, x):
            outs = forward(self, x)
            seen.append(self.stages[0](torch.zeros(1, 4, 4,
                                                   self.embed_dims[0])).dtype)
            seen.append(torch.is_autocast_enabled('cpu'))
            return outs

        module.FMATransformer.forward = spy
        try:
            runner = train(tools, trained.seg, '--amp', '--no-validate',
                           '--work-dir', str(tmp_path))
        finally:
            module.FMATransformer.forward = forward
        assert type(runner.optim_wrapper).__name__ == 'CPUAmpOptimWrapper'
        assert seen[1::2] == [True, True]
        losses = runner.message_hub.get_scalar('train/loss').data[0]
        assert np.isfinite(losses).all()
        assert {p.dtype for p in runner.model.parameters()} == {torch.float32}

    def test_amp_config_of_a_gpu(self, tools, trained, tmp_path) -> None:
        """A config that asks for CUDA's AMP trains on the CPU as it is."""
        runner = train(tools, trained.seg, '--no-validate', '--work-dir',
                       str(tmp_path), '--cfg-options',
                       'optim_wrapper.type=AmpOptimWrapper',
                       'optim_wrapper.loss_scale=dynamic')
        assert type(runner.optim_wrapper).__name__ == 'CPUAmpOptimWrapper'

    def test_sync_bn_on_one_device(self, tools, trained, tmp_path) -> None:
        runner = train(tools, trained.seg, '--no-validate', '--work-dir',
                       str(tmp_path), '--cfg-options',
                       'model.decode_head.norm_cfg.type=SyncBN')
        kinds = {type(m).__name__ for m in runner.model.modules()}
        assert not any('Sync' in kind for kind in kinds)
        assert any('BatchNorm' in kind for kind in kinds)


class TestTest:

    def test_metrics_match_a_recount(self, tools, trained, tmp_path) -> None:
        """The reported numbers follow from the masks it writes."""
        report = tmp_path / 'm.json'
        metrics = run_test(tools, trained.seg, trained.seg_ckpt, '--work-dir',
                           str(tmp_path), '--out', str(report))
        run_test(tools, trained.seg, trained.seg_ckpt, '--work-dir',
                 str(tmp_path), '--out', str(tmp_path / 'masks'))
        saved = json.loads(report.read_text())['metrics']
        assert set(saved) == {'aAcc', 'mIoU', 'mAcc'} == set(metrics)
        labels, predictions = [], []
        folder = trained.root / 'data/camvid/annotations/validation'
        for path in sorted(folder.iterdir()):
            label = np.array(Image.open(path))
            mask = np.array(Image.open(tmp_path / 'masks' / path.name))
            assert mask.shape == label.shape
            labels.append(label[label != 255])
            predictions.append(mask[label != 255])
        label, pred = np.concatenate(labels), np.concatenate(predictions)
        ious = []
        for c in range(11):
            union = ((label == c) | (pred == c)).sum()
            if union:
                ious.append(((label == c) & (pred == c)).sum() / union)
        assert saved['mIoU'] == pytest.approx(100 * np.mean(ious), abs=0.01)
        assert saved['aAcc'] == pytest.approx(
            100 * (label == pred).mean(), abs=0.01)

    def test_pictures(self, tools, trained, tmp_path) -> None:
        run_test(tools, trained.seg, trained.seg_ckpt, '--work-dir',
                 str(tmp_path / 'w'), '--show-dir', str(tmp_path / 'seg'))
        run_test(tools, trained.cls, trained.cls_ckpt, '--work-dir',
                 str(tmp_path / 'w'), '--show-dir', str(tmp_path / 'cls'))
        for name, number in (('seg', 2), ('cls', 4)):
            assert len(list((tmp_path / name).rglob('*.png'))) == number, name

    def test_classification(self, tools, trained, tmp_path) -> None:
        """The accuracy follows from the predictions it dumps."""
        out = tmp_path / 'p.pkl'
        metrics = run_test(tools, trained.cls, trained.cls_ckpt, '--work-dir',
                           str(tmp_path), '--out', str(out))
        items = pickle.loads(out.read_bytes())
        assert len(items) == 4
        right = [
            int(i['pred_score'].argmax()) == int(i['gt_label']) for i in items
        ]
        assert metrics['accuracy/top1'] == pytest.approx(100 * np.mean(right))

    def test_tta(self, tools, trained, tmp_path) -> None:
        rest = [trained.seg_ckpt, '--work-dir', str(tmp_path)]
        plain = run_test(tools, trained.seg, *rest)
        # One unchanged view is the plain prediction.
        config = edited(trained.seg, tmp_path / 'one.py', one_view)
        assert run_test(tools, config, *rest, '--tta') == pytest.approx(plain)
        assert set(run_test(tools, trained.seg, *rest, '--tta')) == set(plain)

    def test_tta_needs_a_config_with_it(self, tools, trained) -> None:
        with pytest.raises(UserError, match='--tta needs'):
            run_test(tools, trained.cls, trained.cls_ckpt, '--tta')

    def test_masks_are_for_segmentation(self, tools, trained) -> None:
        with pytest.raises(UserError, match='give FILE.json'):
            run_test(tools, trained.cls, trained.cls_ckpt, '--out', 'folder')


class TestErrors:
    """What the user got wrong is one UserError that says it."""

    def test_config(self, tools, tmp_path) -> None:
        with pytest.raises(UserError, match='no config file no.py'):
            train(tools, 'no.py')
        broken = tmp_path / 'broken.py'
        broken.write_text('model = dict(')
        with pytest.raises(UserError, match='cannot be read: SyntaxError'):
            train(tools, str(broken))
        broken.write_text('x = 1')
        with pytest.raises(UserError, match='no train_dataloader'):
            train(tools, str(broken))

    def test_labels(self, tools, trained, tmp_path) -> None:
        """A mistake in a file is told before the first iteration."""
        root = write_paired(tmp_path / 'data', 11)
        options = [
            '--work-dir',
            str(tmp_path / 'work'), '--cfg-options',
            *(f'{part}_dataloader.dataset.data_root={root}'
              for part in ('train', 'val', 'test'))
        ]
        wrong = Image.fromarray(np.full((48, 64), 77, np.uint8))
        path = next(root.glob('annotations/validation/*'))
        wrong.save(path)
        message = f'{path}: label values 77 found.*num_classes is 11'
        with pytest.raises(UserError, match=message):
            train(tools, trained.seg, *options)
        with pytest.raises(UserError, match=message):
            run_test(tools, trained.seg, trained.seg_ckpt, *options)
        for path in root.glob('annotations/training/*'):
            wrong.save(path)
        with pytest.raises(UserError, match='Target 77.*--check-data all'):
            train(tools, trained.seg, '--check-data', 'none', *options)

    @pytest.mark.parametrize('key, value, words', [
        ('data_prefix', dict(img_path='nowhere'), 'nowhere cannot be read'),
        ('img_suffix', '.gif', r"no image \*.gif.*end with '.jpg'"),
        ('seg_map_suffix', '.gif', "'.gif', the files .* end with '.png'"),
    ])
    def test_no_file(self, key: str, value, words: str, tools, trained,
                     tmp_path) -> None:

        def edit(cfg) -> None:
            dataset = cfg.train_dataloader.dataset
            dataset.pop('cache_images', None)
            dataset.type = 'BaseSegDataset'
            dataset.metainfo = dict(classes=list('abcdefghijk'))
            dataset.data_root = str(trained.root / 'data/camvid')
            dataset[key] = value

        config = edited(trained.seg, tmp_path / 'changed.py', edit)
        with pytest.raises(UserError, match=words) as caught:
            train(tools, config, '--no-validate', '--work-dir', str(tmp_path))
        assert '\n' not in str(caught.value)

    def test_data_root(self, tools, trained) -> None:
        with pytest.raises(UserError, match="data_root 'nowhere'"):
            train(tools, trained.seg, '--cfg-options',
                  'train_dataloader.dataset.data_root=nowhere')

    def test_checkpoint(self, tools, trained, tmp_path) -> None:
        with pytest.raises(UserError, match='no checkpoint file no.pth'):
            run_test(tools, trained.seg, 'no.pth')
        with pytest.raises(UserError, match='no checkpoint file no.pth'):
            train(tools, trained.seg, '--resume', 'no.pth')
        broken = tmp_path / 'broken.pth'
        broken.write_bytes(Path(trained.seg_ckpt).read_bytes()[:1000])
        with pytest.raises(UserError, match='broken.pth cannot be read'):
            run_test(tools, trained.seg, str(broken), '--work-dir',
                     str(tmp_path))
        torch.save(dict(note='nothing'), broken)
        with pytest.raises(UserError, match='holds no weights'):
            run_test(tools, trained.seg, str(broken), '--work-dir',
                     str(tmp_path))

    def test_checkpoint_of_another_model(self, tools, trained,
                                         tmp_path) -> None:
        with pytest.raises(UserError, match='missing.*unexpected') as caught:
            run_test(tools, trained.seg, trained.cls_ckpt, '--work-dir',
                     str(tmp_path))
        assert '\n' not in str(caught.value)
        with pytest.raises(
                UserError,
                match=r'conv_seg.weight \(11, 64, 1, 1\)'
                r' instead of \(5, 64, 1, 1\)'):
            run_test(tools, trained.seg, trained.seg_ckpt, '--work-dir',
                     str(tmp_path), '--cfg-options',
                     'model.decode_head.num_classes=5')

    def test_checkpoint_never_runs_code(self, tools, trained, tmp_path, caplog,
                                        capfd) -> None:
        """Nor does the host's loader, which train.py resumes with."""
        proof = tmp_path / 'proof'
        path = spoil(trained.seg_ckpt, tmp_path / 'evil.pth', proof)
        rest = ['--work-dir', str(tmp_path)]
        for call in (
                lambda: run_test(tools, trained.seg, path, *rest),
                lambda: train(tools, trained.seg, '--resume', path, *rest)):
            with pytest.raises(UserError, match='holds code besides') as info:
                call()
            assert '\n' not in str(info.value)
            assert not proof.exists()
        assert 'Falling back' not in caplog.text + ''.join(capfd.readouterr())

    @pytest.mark.parametrize('number', [5, 20])
    def test_number_of_classes(self, number: int, tools, trained,
                               tmp_path) -> None:
        message = (rf'model.decode_head.num_classes is {number}, but \w+ has '
                   '11 classes')
        options = [
            '--work-dir',
            str(tmp_path), '--cfg-options',
            f'model.decode_head.num_classes={number}'
        ]
        with pytest.raises(UserError, match=message):
            train(tools, trained.seg, *options)
        assert not list(tmp_path.glob('*.pth'))
        from fma_vision.engine import load_config
        from fma_vision.engine.build import build_model
        cfg = load_config(trained.seg)
        cfg.model.decode_head.num_classes = number
        path = tmp_path / 'fits.pth'
        torch.save(dict(state_dict=build_model(cfg).state_dict()), path)
        with pytest.raises(UserError, match=message):
            run_test(tools, trained.seg, str(path), *options)

    @pytest.mark.parametrize('option, words', [
        ('model.backbone.attn.type=Nothing', 'Nothing'),
        ('model.backbone.patch_size=-4', 'patch_size'),
        ('model.backbone.colour=red', 'colour'),
        ('train_dataloader.dataset.colour=red', 'colour'),
    ])
    def test_bad_setting(self, option: str, words: str, tools, trained,
                         tmp_path) -> None:
        with pytest.raises(UserError, match='does not build.*' + words) as e:
            train(tools, trained.seg, '--work-dir', str(tmp_path),
                  '--cfg-options', option)
        assert '\n' not in str(e.value)

    @pytest.mark.skipif(torch.cuda.is_available(), reason='has CUDA')
    def test_device(self, tools, trained) -> None:
        args = tools.train.parse_args([trained.seg, '--device', 'cuda'])
        with pytest.raises(UserError, match='sees no CUDA device'):
            tools.train.train(args)


def run_script(*args: str,
               cwd: Path = ROOT,
               **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        args,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={
            **os.environ, 'OMP_NUM_THREADS': '1',
            **env
        })


def test_command_line_is_quiet(trained, tmp_path) -> None:
    run = run_script(sys.executable, 'tools/train.py', trained.cls,
                     '--work-dir', str(tmp_path), '--device', 'cpu')
    assert run.returncode == 0, run.stderr
    output = run.stdout + run.stderr
    assert 'Epoch(train)' in output and 'accuracy/top1' in output
    for noise in ('OneDL', 'MultiScaleDeformable', 'Warning', 'WARNING',
                  'paramwise_options', 'Traceback'):
        assert noise not in output, output
    assert len(output.splitlines()) < 25, output


def test_command_line_error_is_one_line(trained) -> None:
    run = run_script(sys.executable, 'tools/test.py', trained.seg, 'no.pth')
    assert run.returncode == 1
    assert run.stderr == 'error: no checkpoint file no.pth\n'
    assert run.stdout == ''


@pytest.mark.slow
def test_two_processes(trained, tmp_path) -> None:
    """dist_train.sh and dist_test.sh, two processes on the CPU."""
    port = str(20000 + os.getpid() % 20000)
    # The host leaves a folder where a distributed test ran.
    env = dict(PYTHON=sys.executable, PORT=port, cwd=tmp_path)
    run = run_script(
        str(ROOT / 'tools/dist_train.sh'), trained.seg, '2', '--work-dir',
        str(tmp_path), '--device', 'cpu', **env)
    assert run.returncode == 0, run.stdout + run.stderr
    saved = torch.load(
        tmp_path / 'iter_2.pth', map_location='cpu', weights_only=False)
    assert not any(k.startswith('module.') for k in saved['state_dict'])
    out = tmp_path / 'm.json'
    run = run_script(
        str(ROOT / 'tools/dist_test.sh'), trained.seg,
        str(tmp_path / 'iter_2.pth'), '2', '--work-dir', str(tmp_path),
        '--device', 'cpu', '--out', str(out), **env)
    assert run.returncode == 0, run.stdout + run.stderr
    saved = json.loads(out.read_text())
    assert set(saved['metrics']) == {'aAcc', 'mIoU', 'mAcc'}
    assert saved['environment']['packages']['torch']


def test_tools_leave_the_group(tmp_path) -> None:

    def main() -> None:
        dist.init_process_group(
            'gloo', init_method=f'file://{tmp_path}/it', rank=0, world_size=1)

    run_tool(main)
    assert not dist.is_initialized()


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train'])
def test_shell_scripts(script: str) -> None:
    path = f'tools/{script}.sh'
    assert os.access(ROOT / path, os.X_OK)
    assert run_script('bash', '-n', path).returncode == 0
    run = run_script(f'./{path}')
    assert run.returncode == 2 and 'usage:' in run.stderr


def test_slurm_command(tmp_path) -> None:
    """srun gets the sizes and the tool its options."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    run = run_script(
        'tools/slurm_train.sh',
        'part',
        'job',
        'c.py',
        'out dir',
        '--amp',
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
        GPUS='16',
        GPUS_PER_NODE='4')
    words = run.stdout.splitlines()
    assert {'--partition=part', '--ntasks=16',
            '--ntasks-per-node=4'} <= set(words)
    assert words[-6:] == [
        'c.py', '--work-dir', 'out dir', '--launcher', 'slurm', '--amp'
    ]
