"""Every config of a language model builds, runs and resumes."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.hooks import CheckpointHook
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from synthetic import small_config, write_texts

from fma_vision.engine import UserError, load_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/lm'
CONFIGS = sorted(FOLDER.glob('*.py'))
# The attention layer that a part puts into a config.
PARTS = ROOT / 'configs/_base_/attention'
ATTENTION = {
    'fma': 'FMAttention1D',
    'fmmformer': 'FMMformerAttention1D',
    'full': 'FullAttention1D'
}
OURS = [p for p in CONFIGS if p.name.startswith('fma-')]
MASKED = next(FOLDER.glob('fma-lm-masked*books*.py'))
MINI = next(FOLDER.glob('fma-lm-mini*tinyshakespeare*.py'))


@pytest.fixture(scope='module')
def texts(tmp_path_factory) -> Path:
    """Stands for the checkout, with short texts in ``data``."""
    root = tmp_path_factory.mktemp('texts')
    write_texts(root / 'data')
    return root


@pytest.fixture(scope='module')
def train_tool(load_script):
    return load_script('tools/train.py')


def run(train_tool, config: Path, work: Path, *args: str):
    return train_tool.train(
        train_tool.parse_args(
            [str(config), '--work-dir',
             str(work), '--device', 'cpu', *args]))


def family_of(path: Path) -> str:
    return path.name.split('-')[0]


def test_every_text_is_there() -> None:
    for text in ('tinyshakespeare-256', 'books-1k', 'enwik8-1k', 'text-1k'):
        assert [p for p in OURS if p.stem.endswith(text)], text
    assert [p for p in OURS if 'masked' in p.name and 'books' in p.name]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_builds(path: Path, texts: Path, tmp_path: Path) -> None:
    """Model, data and metric fit each other and the file's name."""
    cfg = load_config(str(path))
    assert cfg.default_scope == 'mmengine'
    task = MODELS.build(cfg.model)
    count = sum(p.numel() for p in task.parameters())
    low, high = (.7e6, 1e6) if 'mini' in path.name else (3e6, 6e6)
    assert low < count < high
    kinds = {type(b.attn).__name__ for b in task.net.blocks}
    assert kinds == {ATTENTION[family_of(path)]}
    assert task.net.causal is ('masked' not in path.name)
    _, batch, end = path.stem.split('_')
    size = end.split('-')[-1]
    length = int(size[:-1]) * 1024 if size.endswith('k') else int(size)
    assert batch.startswith(f'1xb{cfg.train_dataloader.batch_size}-')
    iterations = batch.split('-')[1]
    steps = cfg.train_cfg.max_iters
    assert iterations == (str(steps) if steps < 1000 else f'{steps // 1000}k')
    for phase in ('train', 'val', 'test'):
        assert cfg[f'{phase}_dataloader'].dataset.length == length
    small = load_config(str(small_config(path, texts, tmp_path / path.name)))
    for phase in ('train', 'val', 'test'):
        data = DATASETS.build(small[f'{phase}_dataloader'].dataset)
        assert task.net.head.num_tokens == data.vocab_size
    assert isinstance(cfg.test_evaluator, dict)
    METRICS.build(cfg.test_evaluator)


@pytest.mark.parametrize('layer', ['fmmformer', 'full'])
@pytest.mark.parametrize('path', OURS, ids=lambda p: p.stem)
def test_part_changes_attention_only(path: Path, layer: str) -> None:
    twin = load_config(str(path), bases=[str(PARTS / f'{layer}.py')])
    ours = load_config(str(path))
    sizes = [
        sum(p.numel() for p in MODELS.build(cfg.model).parameters())
        for cfg in (twin, ours)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=.05)
    assert twin.model.net.pop('attn').type == ATTENTION[layer]
    assert ours.model.net.pop('attn').type == 'FMAttention1D'
    assert twin._cfg_dict.to_dict() == ours._cfg_dict.to_dict()


def test_longer_windows_are_options() -> None:
    """As configs/lm/README.md says."""
    options = {
        f'{part}_dataloader.{key}': value
        for part in ('train', 'val', 'test')
        for key, value in (('dataset.length', 4096), ('batch_size', 8))
    }
    cfg = load_config(str(FOLDER / 'fma-lm_1xb32-20k_books-1k.py'), options)
    assert cfg.test_dataloader.dataset.length == 4096


@pytest.mark.slow
@pytest.mark.parametrize(
    'path, layer',
    [(p, None)
     for p in CONFIGS] + [(p, layer) for p in (MINI, MASKED)
                          for layer in ('full', 'fmmformer', 'fma_linear')
                          if p == MASKED or layer != 'fma_linear'],
    ids=lambda x: getattr(x, 'stem', x))
def test_two_iterations(path: Path, layer: str, texts: Path, train_tool,
                        tmp_path: Path) -> None:
    """Two steps, a validation and a checkpoint through tools/train.py."""
    parts = [PARTS / f'{layer}.py'] if layer else []
    config = small_config(path, texts, tmp_path / path.name, parts)
    runner = run(train_tool, config, tmp_path / 'work')
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    losses = scalars['train/loss'].data[0]
    assert len(losses) == 2 and all(math.isfinite(x) for x in losses)
    for name in ('bpc', 'nats', 'perplexity'):
        assert math.isfinite(scalars[f'val/{name}'].current())
    assert list((tmp_path / 'work').glob('best_bpc*.pth'))
    # No decay of what is stored relative to the average, or mixes fields.
    groups = runner.optim_wrapper.param_groups
    frozen = {
        id(p)
        for g in groups if not g['weight_decay'] for p in g['params']
    }
    for name, param in runner.model.named_parameters():
        if any(key in name for key in runner.model.net.no_decay_keys):
            assert id(param) in frozen, name


def weights_of(runner) -> dict:
    return {k: v.clone() for k, v in runner.model.state_dict().items()}


class Interrupt(Exception):
    """What stops a run."""


class StopAfterTwo(CheckpointHook):
    """Saves, then interrupts after the second iteration."""

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        if runner.iter == 1:  # counted from 0; two are done
            raise Interrupt


@pytest.mark.slow
@pytest.mark.parametrize('path', [MINI, MASKED], ids=lambda p: p.stem)
def test_resumed_run_is_the_same_run(path: Path, texts: Path, train_tool,
                                     tmp_path: Path) -> None:
    """Four steps at once, or two, an interrupt, and two more.

    One draws dropout, the other what it hides.
    """
    config = small_config(path, texts, tmp_path / path.name)
    # The schedule knows its end from the start.
    length = [
        '--cfg-options', 'train_cfg.max_iters=4', 'train_cfg.val_interval=2'
    ]

    whole = run(train_tool, config, tmp_path / 'whole', *length)
    args = [
        str(config), '--work-dir',
        str(tmp_path / 'parts'), '--device', 'cpu', *length
    ]

    HOOKS.register_module(module=StopAfterTwo, force=True)
    with pytest.raises(Interrupt):
        train_tool.train(
            train_tool.parse_args(
                [*args, 'default_hooks.checkpoint.type=StopAfterTwo']))
    resumed = train_tool.train(
        train_tool.parse_args([args[0], '--resume', *args[1:]]))
    assert resumed.iter == whole.iter == 4
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(
            weights_of(resumed)[name], value, rtol=0, atol=0, msg=name)
    lost, kept = (
        runner.message_hub.get_scalar('val/bpc').current()
        for runner in (resumed, whole))
    assert lost == kept


@pytest.mark.slow
def test_vocabularies_must_be_the_same(texts: Path, train_tool, load_script,
                                       tmp_path: Path) -> None:
    """As many symbols, but others: every id would mean something else."""
    config = small_config(MINI, texts, tmp_path / MINI.name)
    source = texts / 'data/tinyshakespeare/input.txt'
    (tmp_path / 'other.txt').write_text(source.read_text().replace('#', '~'))
    other = f'dataset.data_root={tmp_path}'
    name = 'dataset.path=other.txt'
    message = r"different vocabularies .* one of them lacks: \['#', '~'\]"
    with pytest.raises(UserError, match=message):
        run(train_tool, config, tmp_path / 'work', '--cfg-options',
            f'val_dataloader.{other}', f'val_dataloader.{name}')
    with pytest.raises(UserError, match='bytes and characters'):
        run(train_tool, config, tmp_path / 'work', '--cfg-options',
            'val_dataloader.dataset.vocabulary=bytes',
            'val_dataloader.dataset.vocab_size=256')
    run(train_tool, config, tmp_path / 'work')
    test_tool = load_script('tools/test.py')
    arguments = [
        str(config),
        str(tmp_path / 'work/iter_2.pth'), '--work-dir',
        str(tmp_path / 'test'), '--device', 'cpu'
    ]
    assert test_tool.test(test_tool.parse_args(arguments))['bpc'] > 0
    with pytest.raises(UserError, match='and checkpoint .*' + message):
        test_tool.test(
            test_tool.parse_args([
                *arguments, '--cfg-options', f'test_dataloader.{other}',
                f'test_dataloader.{name}'
            ]))


@pytest.mark.slow
def test_wrong_settings_are_one_line(texts: Path, train_tool, tmp_path: Path,
                                     monkeypatch) -> None:
    config = small_config(MINI, texts, tmp_path / MINI.name)
    for options, message in (
        (['model.net.vocab_size=256'],
         'vocab_size is 256, but TextDataset has 65 tokens: set it to 65'),
        (['train_dataloader.dataset.length=100000'],
         'too few for a window of length=100000'),
        (['train_dataloader.dataset.vocab_size=64'],
         'the vocabulary has 65 entries, vocab_size is 64'),
    ):
        with pytest.raises(UserError, match=message):
            run(train_tool, config, tmp_path / 'work', '--cfg-options',
                *options)
    # A tokenizer where the package is missing.
    (tmp_path / 'vocabulary.json').write_text('{"model": {}, "version": "1"}')
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(UserError, match='tokenizers.*pip install'):
        run(
            train_tool, config, tmp_path / 'work', '--cfg-options',
            'train_dataloader.dataset.vocabulary='
            f'{tmp_path / "vocabulary.json"}')
