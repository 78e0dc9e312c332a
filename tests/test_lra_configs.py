"""Every config of Long Range Arena builds; those of ListOps run and resume."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.hooks import CheckpointHook
from mmengine.registry import DATASETS, FUNCTIONS, HOOKS, METRICS, MODELS
from synthetic import small_config, write_sequences

from fma_vision.engine import UserError, load_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/lra'
CONFIGS = sorted(FOLDER.glob('*.py'))
# The attention layer that a part puts into a config.
PARTS = ROOT / 'configs/_base_/attention'
ATTENTION = {
    'fma_linear': 'FMAttention1D',
    'fmmformer': 'FMMformerAttention1D',
    'full': 'FullAttention1D'
}
SHORT = FOLDER / 'fma-lra-small_1xb32-1200_listops-200.py'
LISTOPS = [p for p in CONFIGS if 'listops' in p.name]


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Stands for the checkout, with short sequences in ``data``."""
    root = tmp_path_factory.mktemp('sequences')
    write_sequences(root / 'data')
    return root


@pytest.fixture(scope='module')
def train_tool(load_script):
    return load_script('tools/train.py')


def run(train_tool, config: Path, work: Path, *args: str):
    return train_tool.train(
        train_tool.parse_args(
            [str(config), '--work-dir',
             str(work), '--device', 'cpu', *args]))


def test_every_task_is_there() -> None:
    for task in ('listops', 'listops-200', 'text-4k', 'cifar10-1k'):
        assert [p for p in CONFIGS if p.stem.endswith(task)], task
    assert (FOLDER / 'README.md').is_file()
    assert (FOLDER / 'metafile.yml').is_file()


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_builds(path: Path, data: Path, tmp_path: Path) -> None:
    """Model, data and metric fit each other and the file's name."""
    cfg = load_config(str(path))
    task = MODELS.build(cfg.model)
    count = sum(p.numel() for p in task.parameters())
    assert .54e6 < count < .66e6
    assert 2 <= len(task.net.blocks) <= 4
    attn = task.net.blocks[0].attn
    assert type(attn).__name__ == 'FMAttention1D'
    assert attn.pool_queries is False
    batch, length = path.stem.split('_')[1].split('-')
    assert batch == f'1xb{cfg.train_dataloader.batch_size}'
    iterations = cfg.train_cfg.max_iters
    assert length == (f'{iterations // 1000}k' if iterations %
                      1000 == 0 else str(iterations))
    sampler = cfg.train_dataloader.sampler
    if 'batch_size' in sampler:
        assert sampler.batch_size == cfg.train_dataloader.batch_size
    small = load_config(str(small_config(path, data, tmp_path / path.name)))
    for phase in ('train', 'val', 'test'):
        loader = small[f'{phase}_dataloader']
        built = DATASETS.build(loader.dataset)
        assert task.net.vocab_size == built.metainfo['vocab_size']
        assert task.net.head.num_classes == len(built.metainfo['classes'])
        batch = FUNCTIONS.get(loader.collate_fn.type)([built[0], built[1]])
        assert torch.isfinite(task(**batch, mode='loss')['loss'])
    METRICS.build(cfg.val_evaluator)
    METRICS.build(cfg.test_evaluator)


def test_metafile_has_the_sizes() -> None:
    yaml = pytest.importorskip('yaml')
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    assert {m['Config']
            for m in models
            } == {p.relative_to(ROOT).as_posix()
                  for p in CONFIGS}
    for model in models:
        cfg = load_config(str(ROOT / model['Config']))
        assert model['Name'] == Path(model['Config']).stem
        found = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
        assert model['Metadata']['Parameters'] == found
        attention = cfg.model.net.attn.type
        assert model['Metadata']['Attention'] == attention


@pytest.mark.parametrize('layer', ATTENTION)
@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_part_changes_attention_only(path: Path, layer: str) -> None:
    twin = load_config(str(path), bases=[str(PARTS / f'{layer}.py')])
    ours = load_config(str(path))
    sizes = [
        sum(p.numel() for p in MODELS.build(cfg.model).parameters())
        for cfg in (twin, ours)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=.05)
    other, attn = (cfg.model.net.pop('attn') for cfg in (twin, ours))
    assert other.type == ATTENTION[layer]
    if layer == 'fma_linear':
        assert other == dict(attn, pool_queries=True)
    assert twin._cfg_dict.to_dict() == ours._cfg_dict.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    'path, layer',
    [(p, None) for p in LISTOPS] + [(SHORT, layer) for layer in ATTENTION],
    ids=lambda x: getattr(x, 'stem', x))
def test_two_iterations_and_a_test(path: Path, layer: str, data: Path,
                                   train_tool, load_script,
                                   tmp_path: Path) -> None:
    parts = [PARTS / f'{layer}.py'] if layer else []
    config = small_config(path, data, tmp_path / path.name, parts)
    runner = run(train_tool, config, tmp_path / 'work')
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    losses = scalars['train/loss'].data[0]
    assert len(losses) == 2 and all(math.isfinite(x) for x in losses)
    assert 0 <= scalars['val/accuracy/top1'].current() <= 100
    test_tool = load_script('tools/test.py')
    arguments = [
        str(config),
        str(tmp_path / 'work/iter_2.pth'), '--work-dir',
        str(tmp_path / 'test'), '--device', 'cpu'
    ]
    found = test_tool.test(test_tool.parse_args(arguments))
    # Four samples, so the accuracy is a multiple of 25 %.
    assert found['accuracy/top1'] % 25 == 0


class Interrupt(Exception):
    """What stops a run."""


class StopAfterTwo(CheckpointHook):
    """Saves, then interrupts after the second iteration."""

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        if runner.iter == 1:  # counted from 0; two are done
            raise Interrupt


@pytest.mark.slow
def test_resumed_run_is_the_same_run(data: Path, train_tool,
                                     tmp_path: Path) -> None:
    """Four steps at once, or two, an interrupt, and two more."""
    config = small_config(SHORT, data, tmp_path / SHORT.name)
    # The schedule knows its end from the start.
    options = [
        '--cfg-options', 'train_cfg.max_iters=4', 'train_cfg.val_interval=2',
        'train_dataloader.sampler.pool=3', 'train_dataloader.dataset.samples=8'
    ]
    whole = run(train_tool, config, tmp_path / 'whole', *options)
    HOOKS.register_module(module=StopAfterTwo, force=True)
    parts = tmp_path / 'parts'
    with pytest.raises(Interrupt):
        run(train_tool, config, parts, *options,
            'default_hooks.checkpoint.type=StopAfterTwo')
    resumed = run(train_tool, config, parts, '--resume', *options)
    assert resumed.iter == whole.iter == 4
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_wrong_settings_are_one_line(data: Path, train_tool,
                                     tmp_path: Path) -> None:
    config = small_config(SHORT, data, tmp_path / SHORT.name)
    for options, message in (
        (['model.net.num_classes=2'],
         'num_classes is 2, but ListOpsDataset has 10 classes'),
        (['train_dataloader.dataset.samples=0'], 'samples is 0'),
        (['model.net.num_classes=0'], 'num_classes must be at least 1'),
    ):
        with pytest.raises(UserError, match=message):
            run(train_tool, config, tmp_path / 'work', '--cfg-options',
                *options)


@pytest.mark.slow
def test_text_of_ones_own(train_tool, tmp_path: Path) -> None:
    """Other folders are other classes, given on the command line."""
    path, = FOLDER.glob('*_text-4k.py')
    for split in ('train', 'test'):
        for label in ('x', 'y', 'z'):
            file = tmp_path / 'mine' / split / label / 'a.txt'
            file.parent.mkdir(parents=True)
            file.write_text(f'{label} ' * 9)
    small = small_config(path, tmp_path, tmp_path / path.name,
                         [PARTS / 'full.py'])
    options = [
        f'{phase}_dataloader.dataset.{option}' for phase in ('train', 'val')
        for option in (f'data_root={tmp_path}/mine', 'classes=None')
    ]
    runner = run(train_tool, small, tmp_path / 'work', '--cfg-options',
                 *options, 'model.net.num_classes=3')
    assert runner.train_dataloader.dataset.metainfo['classes'] == tuple('xyz')
    assert runner.iter == 2
    # Labels of another meaning would be scored as if they were the same.
    (tmp_path / 'mine/test/z').rename(tmp_path / 'mine/test/other')
    with pytest.raises(UserError, match=r"only one .* \['other', 'z'\]"):
        run(train_tool, small, tmp_path / 'work', '--cfg-options', *options,
            'model.net.num_classes=3')
